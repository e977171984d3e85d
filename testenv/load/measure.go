package load

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// Plan says what to measure.
type Plan struct {
	Topology Topology
	Proxies  int
	Window   int32 // of the clients' connections, see NewFleet
	// Changes is the number of single endpoint changes, each waited for. They are
	// numbered from FirstChange, which must be above all numbers used before.
	// FirstChange itself is the warm-up.
	Changes, FirstChange int
	// Churn is the number of changes per second for ChurnFor; 0 leaves it out.
	Churn    int
	ChurnFor time.Duration
	// Progress is told what happens; may be nil.
	Progress func(format string, args ...any)
}

// Target is the server under test.
type Target struct {
	Addr string
	PID  int
	// Move makes change number n.
	Move func(n int) error
}

// Report is what was measured.
type Report struct {
	SyncCPU            time.Duration
	ReadyP50, ReadyAll time.Duration
	RSS, PeakRSS       int64
	Bytes, Messages    int64
	// FirstP50 and LastP50 are the delays of a single change at the first and at
	// the last proxy, Slowest the worst of the last ones.
	FirstP50, LastP50, Slowest time.Duration
	CPUPerChange               time.Duration
	// StaleP50 and StaleP99 say how old a change is when the last proxy has heard
	// it, or a later one, under churn; ChurnCPU what one such change costs.
	StaleP50, StaleP99, ChurnCPU time.Duration
}

// settle is the quiet time that ends a phase: what the server does after the
// last proxy is ready belongs to the phase too.
const settle = 2 * time.Second

// Measure runs the plan against a target.
func Measure(ctx context.Context, p Plan, t Target) (Report, error) {
	if p.Progress == nil {
		p.Progress = func(string, ...any) {}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f := NewFleet(p.Topology, t.Addr, p.Proxies, p.Window)
	done := make(chan struct{})
	peak := watchPeak(ctx, t.PID)
	var r Report
	before, err := usageOf(t.PID)
	if err != nil {
		return r, err
	}
	begin := time.Now()
	go func() { defer close(done); f.Run(ctx) }()
	defer func() { cancel(); <-done }()

	if err := r.sync(ctx, p, f, begin); err != nil {
		return r, err
	}
	if err := f.quiet(ctx, settle); err != nil {
		return r, err
	}
	after, err := usageOf(t.PID)
	if err != nil {
		return r, err
	}
	r.SyncCPU, r.RSS, r.PeakRSS = after.CPU-before.CPU, after.RSS, peak()
	s := f.Stats()
	r.Bytes, r.Messages = s.Bytes, s.Messages
	p.Progress("%d proxies ready after %.1f s, server CPU %.2f s", p.Proxies, r.ReadyAll.Seconds(), r.SyncCPU.Seconds())

	if err := r.changes(ctx, p, t, f); err != nil {
		return r, err
	}
	if p.Churn > 0 {
		if err := r.churn(ctx, p, t, f); err != nil {
			return r, err
		}
	}
	r.PeakRSS = max(r.PeakRSS, peak())
	return r, nil
}

func (r *Report) sync(ctx context.Context, p Plan, f *Fleet, begin time.Time) error {
	for _, step := range []struct {
		n  int
		at *time.Duration
	}{{(p.Proxies + 1) / 2, &r.ReadyP50}, {p.Proxies, &r.ReadyAll}} {
		if err := f.wait(ctx, func() bool { return f.ready >= step.n }); err != nil {
			return fmt.Errorf("initial sync: %d of %d proxies ready: %w", f.Ready(), p.Proxies, err)
		}
		*step.at = time.Since(begin)
	}
	return nil
}

// changeGap is the pause after a single change: each finds an idle server.
const changeGap = 300 * time.Millisecond

// changes makes single changes and waits for each at every watching proxy. The
// one before them moves the endpoint out of its first state and does not count.
func (r *Report) changes(ctx context.Context, p Plan, t Target, f *Fleet) error {
	if p.Changes == 0 {
		return nil
	}
	if err := f.move(ctx, t, p.FirstChange); err != nil {
		return err
	}
	if err := f.quiet(ctx, settle); err != nil {
		return err
	}
	before, err := usageOf(t.PID)
	if err != nil {
		return err
	}
	from := p.FirstChange + 1
	for n := from; n < from+p.Changes; n++ {
		if err := f.move(ctx, t, n); err != nil {
			return err
		}
		if err := f.quiet(ctx, changeGap); err != nil {
			return err
		}
	}
	after, err := usageOf(t.PID)
	if err != nil {
		return err
	}
	first, last := f.delays(from, from+p.Changes)
	r.FirstP50, r.LastP50, r.Slowest = percentile(first, 50), percentile(last, 50), percentile(last, 100)
	r.CPUPerChange = (after.CPU - before.CPU) / time.Duration(p.Changes)
	p.Progress("one change: first proxy %v, last %v", r.FirstP50.Round(time.Millisecond), r.LastP50.Round(time.Millisecond))
	return nil
}

// move makes change n and waits until every watching proxy has heard it.
func (f *Fleet) move(ctx context.Context, t Target, n int) error {
	f.begin(n)
	if err := t.Move(n); err != nil {
		return err
	}
	return f.reached(ctx, n)
}

// reached waits until every watching proxy knows change n or a later one.
func (f *Fleet) reached(ctx context.Context, n int) error {
	if err := f.wait(ctx, func() bool { return f.changes[n].heard == f.watchers }); err != nil {
		return fmt.Errorf("change %d did not reach every proxy: %w", n, err)
	}
	return nil
}

// churn makes changes at a rate and tells how old each was when the last proxy
// heard it, or a later one.
func (r *Report) churn(ctx context.Context, p Plan, t Target, f *Fleet) error {
	before, err := usageOf(t.PID)
	if err != nil {
		return err
	}
	from := p.FirstChange + 1 + p.Changes
	n, begin := from, time.Now()
	for ; time.Since(begin) < p.ChurnFor; n++ {
		f.begin(n)
		if err := t.Move(n); err != nil {
			return err
		}
		next := begin.Add(time.Duration(n-from+1) * time.Second / time.Duration(p.Churn))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Until(next)):
		}
	}
	if err := f.reached(ctx, n-1); err != nil {
		return err
	}
	after, err := usageOf(t.PID)
	if err != nil {
		return err
	}
	_, stale := f.delays(from, n)
	r.StaleP50, r.StaleP99 = percentile(stale, 50), percentile(stale, 99)
	r.ChurnCPU = (after.CPU - before.CPU) / time.Duration(n-from)
	p.Progress("churn %d/s: staleness p50 %v, p99 %v", p.Churn, r.StaleP50.Round(time.Millisecond), r.StaleP99.Round(time.Millisecond))
	return nil
}

func percentile(d []time.Duration, p int) time.Duration {
	if len(d) == 0 {
		return 0
	}
	d = slices.Sorted(slices.Values(d))
	return d[min(len(d)-1, len(d)*p/100)]
}
