package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/client"
)

// Waits for the end of the process, and what of its log is shown if it fails.
const (
	stopWait  = 15 * time.Second
	tailLines = 15
)

// server is isthmus serve as a process.
type server struct {
	cmd       *exec.Cmd
	ads, http string // addresses
	log       string // file
	ended     chan struct{}
	err       error // how it ended; set before ended is closed

	mu    sync.Mutex
	lines []string // the last of the log
}

// serve runs isthmus on the primary and waits until it answers proxies.
func (d *demo) serve(ctx context.Context) error {
	s := &server{log: filepath.Join(d.work, "isthmus.log"), ended: make(chan struct{})}
	args := []string{"serve", "--kubeconfig", d.kubeconfig(d.primary), "--clusterID", d.primary,
		"--grpcAddr", "127.0.0.1:0", "--httpAddr", "127.0.0.1:0", "--monitoringAddr=", "--secureGRPCAddr=", "--httpsAddr="}
	s.cmd = exec.Command(d.isthmus, args...)
	out, err := s.cmd.StderrPipe()
	if err == nil {
		err = s.cmd.Start()
	}
	if err != nil {
		return fmt.Errorf("start isthmus %s: %w", strings.Join(args, " "), err)
	}
	d.server = s
	listening := make(chan struct{})
	go s.read(out, listening)
	select {
	case <-listening:
	case <-s.ended:
		return fmt.Errorf("isthmus serve ended: %w\n%s", s.err, s.tail())
	case <-ctx.Done():
		return fmt.Errorf("wait for isthmus serve to listen: %w\n%s", ctx.Err(), s.tail())
	}
	c, err := client.New(s.http)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.WaitReady(ctx); err != nil {
		return fmt.Errorf("wait for isthmus serve to be ready: %w\n%s", err, s.tail())
	}
	d.say("isthmus serve answers proxies on %s", s.ads)
	return nil
}

// read copies the log to its file and picks the addresses out of it, then waits
// for the process.
func (s *server) read(out io.Reader, listening chan<- struct{}) {
	defer close(s.ended)
	file, err := os.Create(s.log)
	if err != nil {
		file = os.Stderr // the log is better there than lost
	}
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		_, _ = fmt.Fprintln(file, line)
		s.note(line)
		if listening == nil {
			continue
		}
		s.ads, s.http = pick(s.ads, line, "plaintext ADS on "), pick(s.http, line, "http on ")
		if s.ads != "" && s.http != "" {
			close(listening)
			listening = nil
		}
	}
	_, _ = io.Copy(io.Discard, out) // a line too long must not block the process
	s.err = s.cmd.Wait()
	if file != os.Stderr {
		_ = file.Close()
	}
}

// pick takes the word after a mark in a line, unless it is known already.
func pick(known, line, mark string) string {
	_, rest, found := strings.Cut(line, mark)
	if known != "" || !found {
		return known
	}
	word, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	return word
}

func (s *server) note(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, line)
	if len(s.lines) > tailLines {
		s.lines = s.lines[1:]
	}
}

func (s *server) tail() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.lines, "\n")
}

// stop ends the process in order, or kills it.
func (s *server) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // it may have ended already
	select {
	case <-s.ended:
	case <-time.After(stopWait):
		_ = s.cmd.Process.Kill()
		<-s.ended
	}
}
