// Bench measures isthmus and the floor server in turn, in one run, and prints
// the table of docs/performance.md.
//
//	go run ./testenv/load/cmd/bench -isthmus bin/isthmus -proxies 1000
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/isthmus-mesh/isthmus/testenv/load"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// maxChangesPerRun keeps the change numbers of runs apart.
const maxChangesPerRun = 5000

type options struct {
	isthmus, floorOf  string
	proxies           string
	changes, churn    int
	churnFor, timeout time.Duration
	topology          load.Topology
	window            int
	runs              int
}

func run(ctx context.Context) error {
	o := options{topology: load.Standard()}
	flag.StringVar(&o.isthmus, "isthmus", "bin/isthmus", "binary to measure")
	flag.StringVar(&o.floorOf, "floor-of", "", "internal: be the floor server, recorded from this address")
	flag.StringVar(&o.proxies, "proxies", "100,500,1000", "numbers of proxies, comma separated")
	flag.IntVar(&o.topology.Services, "services", o.topology.Services, "services of the mesh")
	flag.IntVar(&o.topology.Endpoints, "endpoints", o.topology.Endpoints, "endpoints of each service")
	flag.IntVar(&o.changes, "changes", 10, "single endpoint changes, each waited for")
	flag.IntVar(&o.churn, "churn", 20, "changes per second in the churn phase")
	flag.DurationVar(&o.churnFor, "churn-for", 10*time.Second, "length of the churn phase")
	flag.DurationVar(&o.timeout, "timeout", 5*time.Minute, "bound on each measurement")
	flag.IntVar(&o.window, "window", 0, "initial HTTP/2 window of the clients in bytes; 0: grpc's own, 64 KiB that grows (Istio's agent: 1048576)")
	flag.Parse()
	if o.window < 0 || o.window > 1<<30 {
		return fmt.Errorf("-window %d: want 0 to 1073741824 bytes", o.window)
	}
	if o.floorOf != "" {
		return beFloor(ctx, o)
	}
	world, err := os.MkdirTemp("", "isthmus-bench")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(world) }()
	if err := o.topology.Write(world); err != nil {
		return err
	}
	fmt.Printf("%s, %s/%s, %d CPUs, %s; %d services x %d endpoints, delta xDS, plaintext\n\n", time.Now().Format(time.DateOnly),
		runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), runtime.Version(), o.topology.Services, o.topology.Endpoints)
	fmt.Println("| server / proxies | sync CPU s | all ready s (p50) | RSS (peak) MiB | MB per proxy | CPU per change ms (churn) | first / last proxy p50 (slowest) ms | staleness p50 / p99 ms |")
	fmt.Println("| --- | --- | --- | --- | --- | --- | --- | --- |")
	for n := range strings.SplitSeq(o.proxies, ",") {
		count, err := strconv.Atoi(strings.TrimSpace(n))
		if err != nil {
			return fmt.Errorf("-proxies %q: %w", o.proxies, err)
		}
		if err := both(ctx, &o, world, count); err != nil {
			return err
		}
	}
	return nil
}

// both measures isthmus, then the floor recorded from a fresh isthmus.
func both(ctx context.Context, o *options, world string, proxies int) error {
	ours, err := start(ctx, o.isthmus, "serve", "--files", world, "--primary", load.Cluster, "--grpcAddr", "127.0.0.1:0",
		"--httpAddr=", "--monitoringAddr=", "--httpsAddr=", "--secureGRPCAddr=")
	if err != nil {
		return err
	}
	defer ours.stop()
	if err := report(ctx, o, "isthmus", proxies, load.Target{Addr: ours.addr, PID: ours.pid(),
		Move: func(n int) error { return o.topology.Move(world, load.Mark(n)) }}); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	floor, err := start(ctx, self, "-floor-of", ours.addr, "-services", strconv.Itoa(o.topology.Services), "-endpoints", strconv.Itoa(o.topology.Endpoints))
	if err != nil {
		return err
	}
	defer floor.stop()
	ours.stop()
	return report(ctx, o, "floor", proxies, load.Target{Addr: floor.addr, PID: floor.pid(),
		Move: func(n int) error { _, err := fmt.Fprintln(floor.in, n); return err }})
}

func report(ctx context.Context, o *options, name string, proxies int, t load.Target) error {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	// A mark is known for good once it was seen: every run has numbers of its own.
	first := 1 + o.runs*maxChangesPerRun
	o.runs++
	r, err := load.Measure(ctx, load.Plan{Topology: o.topology, Proxies: proxies, Window: int32(o.window), Changes: o.changes, FirstChange: first, Churn: o.churn, ChurnFor: o.churnFor,
		Progress: func(f string, a ...any) { fmt.Fprintf(os.Stderr, "%s: "+f+"\n", append([]any{name}, a...)...) }}, t)
	if err != nil {
		return fmt.Errorf("measure %s with %d proxies: %w", name, proxies, err)
	}
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	fmt.Printf("| %s / %d | %.2f | %.1f (%.1f) | %d (%d) | %.2f | %.1f (%.1f) | %.0f / %.0f (%.0f) | %.0f / %.0f |\n", name, proxies, r.SyncCPU.Seconds(),
		r.ReadyAll.Seconds(), r.ReadyP50.Seconds(), r.RSS>>20, r.PeakRSS>>20, float64(r.Bytes)/1e6/float64(proxies), ms(r.CPUPerChange), ms(r.ChurnCPU),
		ms(r.FirstP50), ms(r.LastP50), ms(r.Slowest), ms(r.StaleP50), ms(r.StaleP99))
	return nil
}

// beFloor records from a server and replays to everybody, moving the marked
// endpoint for each number read from standard input.
func beFloor(ctx context.Context, o options) error {
	f, err := load.Record(ctx, o.topology, o.floorOf)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go func() {
		in := bufio.NewScanner(os.Stdin)
		for in.Scan() {
			if n, err := strconv.Atoi(in.Text()); err == nil {
				_ = f.Move(n) // a stream that ends meanwhile is no error of the measurement
			}
		}
	}()
	fmt.Printf("plaintext ADS on %s\nready\n", l.Addr())
	return f.Serve(ctx, l)
}

// server is a process under test.
type server struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	addr string
	done bool
}

// start runs a server and waits until it has printed the address it listens on
// and, after that, that it is ready.
func start(ctx context.Context, binary string, args ...string) (*server, error) {
	cmd := exec.CommandContext(ctx, binary, args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", filepath.Base(binary), err)
	}
	_ = w.Close()
	s := &server{cmd: cmd, in: in}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	var last string
	for lines.Scan() {
		last = lines.Text()
		if a := address(last); a != "" {
			s.addr = a
		}
		if s.addr != "" && strings.Contains(last, "ready") && !strings.Contains(last, "not ready") {
			go func() { _, _ = io.Copy(io.Discard, r) }()
			return s, nil
		}
	}
	return nil, errors.Join(fmt.Errorf("%s ended before it listened; last line: %s", filepath.Base(binary), last), cmd.Wait())
}

// address finds the plaintext ADS address in a line of log.
func address(line string) string {
	_, rest, ok := strings.Cut(line, "plaintext ADS on ")
	if !ok {
		return ""
	}
	return strings.TrimRight(strings.Fields(rest)[0], `"},`)
}

func (s *server) pid() int { return s.cmd.Process.Pid }

func (s *server) stop() {
	if s.done {
		return
	}
	s.done = true
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	_ = s.in.Close()
	_ = s.cmd.Wait()
}
