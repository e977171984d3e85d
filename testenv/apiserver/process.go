package apiserver

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	logName  = "isthmus-kube.log"
	logTail  = 4 << 10
	stopWait = 7 * time.Second
)

// process is one run of isthmus-kube. Signals go to it by its id, through
// os.Process, which knows when the id is no longer its own.
type process struct {
	cmd   *exec.Cmd
	log   *os.File // closed when the process has ended
	url   string
	ended chan struct{} // closed when it has ended and been waited for
	err   error         // how it ended; set before ended is closed
}

// startProcess runs the binary on a data directory and waits until it is
// ready, or ctx ends. Its log goes to a file in the directory, and to log.
func startProcess(ctx context.Context, binary string, cfg Config) (*process, error) {
	file, err := os.OpenFile(filepath.Join(cfg.Dir, logName), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	p := &process{log: file, ended: make(chan struct{})}
	p.cmd = exec.Command(binary, "--dir", cfg.Dir, "--service-cidr", cfg.ServiceCIDR)
	p.cmd.Stderr = file
	if cfg.Log != nil {
		p.cmd.Stderr = io.MultiWriter(file, cfg.Log)
	}
	dieWithParent(p.cmd)
	out, err := p.cmd.StdoutPipe()
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start process: %w", err), file.Close())
	}
	ready := make(chan string, 1)
	go p.watch(out, ready)

	select {
	case p.url = <-ready:
		return p, nil
	case <-p.ended:
		return nil, fmt.Errorf("start process: %w\n%s", errors.Join(p.err, errors.New("ended before it was ready")), tail(file.Name()))
	case <-ctx.Done():
		p.signal(syscall.SIGKILL)
		<-p.ended
		return nil, fmt.Errorf("start process: %w\n%s", context.Cause(ctx), tail(file.Name()))
	}
}

// watch reads standard output to its end, passes on the URL of the ready
// line, and waits for the process.
func (p *process) watch(out io.Reader, ready chan<- string) {
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if url, ok := strings.CutPrefix(lines.Text(), "ready "); ok {
			ready <- url
			break
		}
	}
	_, _ = io.Copy(io.Discard, out)
	p.err = errors.Join(p.cmd.Wait(), p.log.Close())
	close(p.ended)
}

// signal sends a signal; to a process that has ended it does nothing.
func (p *process) signal(sig os.Signal) {
	_ = p.cmd.Process.Signal(sig)
}

// kill ends the process at once and waits for it.
func (p *process) kill() {
	p.signal(syscall.SIGKILL)
	<-p.ended
}

// stop ends the process in order, and by force if it takes too long.
func (p *process) stop() {
	p.signal(syscall.SIGTERM)
	p.signal(syscall.SIGCONT) // a paused process does not hear the first
	timer := time.NewTimer(stopWait)
	defer timer.Stop()
	select {
	case <-p.ended:
	case <-timer.C:
		p.kill()
	}
}

// tail returns the end of a log, for error messages.
func tail(name string) []byte {
	raw, err := os.ReadFile(name)
	if err != nil {
		return nil
	}
	return bytes.TrimSpace(raw[max(0, len(raw)-logTail):])
}
