package main

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// Ports are taken below the range from which systems take the local ports of
// outgoing connections (32768 and up on Linux): otherwise a client's
// connection can sit on our port while the server is down for a restart.
const (
	firstPort = 20000
	lastPort  = 32000
)

// listen opens the serving socket on loopback: on the port asked for, else on
// the one that this data directory used before, else on a free one.
func listen(port int) (net.Listener, error) {
	if port == 0 {
		saved, err := savedPort()
		if err != nil {
			return nil, err
		}
		port = saved
	}
	if port == 0 {
		return listenFree()
	}
	listener, err := listenRetry(port, 5*time.Second)
	if err != nil {
		return nil, err
	}
	return listener, savePort(port)
}

// listenFree takes the first free one of some random ports.
func listenFree() (net.Listener, error) {
	const attempts = 100
	var last error
	for range attempts {
		port := firstPort + rand.IntN(lastPort-firstPort)
		listener, err := listenLoopback(port)
		if err == nil {
			return listener, savePort(port)
		}
		last = err
	}
	return nil, fmt.Errorf("find free port: %w", last)
}

// listenRetry listens on one port, and waits a little for it to become free:
// a predecessor that was killed may be on its way out.
func listenRetry(port int, patience time.Duration) (net.Listener, error) {
	deadline := time.Now().Add(patience)
	for {
		listener, err := listenLoopback(port)
		if err == nil || time.Now().After(deadline) {
			return listener, err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func listenLoopback(port int) (net.Listener, error) {
	listener, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return nil, fmt.Errorf("listen on port %d: %w", port, err)
	}
	return listener, nil
}

// savedPort returns the port of the last run in this directory, or 0.
func savedPort() (int, error) {
	raw, err := os.ReadFile(portFile)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read port file: %w", err)
	}
	port, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		return 0, fmt.Errorf("parse port file: %w", err)
	}
	return port, nil
}

func savePort(port int) error {
	if err := os.WriteFile(portFile, []byte(strconv.Itoa(port)+"\n"), 0o600); err != nil {
		return fmt.Errorf("write port file: %w", err)
	}
	return nil
}
