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
	// Changes is the number of single endpoint changes, each waited for. They are
	// numbered from FirstChange, which must be above all numbers used before.
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
	// StaleP50 and StaleP99 say how old the newest change known to a proxy is
	// when the next arrives, under churn.
	StaleP50, StaleP99 time.Duration
}

// Measure runs the plan against a target.
func Measure(ctx context.Context, p Plan, t Target) (Report, error) {
	if p.Progress == nil {
		p.Progress = func(string, ...any) {}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f := NewFleet(p.Topology, t.Addr, p.Proxies)
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

// changes makes single changes and waits for each at every watching proxy.
func (r *Report) changes(ctx context.Context, p Plan, t Target, f *Fleet) error {
	var first, last []time.Duration
	before, err := usageOf(t.PID)
	if err != nil {
		return err
	}
	for n := p.FirstChange; n < p.FirstChange+p.Changes; n++ {
		begin := time.Now()
		if err := t.Move(n); err != nil {
			return err
		}
		for _, all := range []bool{false, true} {
			if err := f.wait(ctx, func() bool { return f.seen(n, all) }); err != nil {
				return fmt.Errorf("change %d did not reach every proxy: %w", n, err)
			}
			if all {
				last = append(last, time.Since(begin))
			} else {
				first = append(first, time.Since(begin))
			}
		}
	}
	after, err := usageOf(t.PID)
	if err != nil || p.Changes == 0 {
		return err
	}
	r.FirstP50, r.LastP50, r.Slowest = percentile(first, 50), percentile(last, 50), percentile(last, 100)
	r.CPUPerChange = (after.CPU - before.CPU) / time.Duration(p.Changes)
	p.Progress("one change: first proxy %v, last %v", r.FirstP50.Round(time.Millisecond), r.LastP50.Round(time.Millisecond))
	return nil
}

// seen reports whether one, or every, watching proxy knows change n or a later
// one; the fleet's lock is held.
func (f *Fleet) seen(n int, all bool) bool {
	for i, m := range f.marks {
		if !f.watch[i] {
			continue
		}
		if got := m >= n; got != all {
			return got
		}
	}
	return all
}

// churn makes changes at a rate and samples how old what the proxies know is.
func (r *Report) churn(ctx context.Context, p Plan, t Target, f *Fleet) error {
	ctx, cancel := context.WithTimeout(ctx, p.ChurnFor)
	defer cancel()
	var stale []time.Duration
	made := map[int]time.Time{}
	tick := time.NewTicker(time.Second / time.Duration(p.Churn))
	defer tick.Stop()
	for n := p.FirstChange + p.Changes; ; n++ {
		made[n] = time.Now()
		if err := t.Move(n); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			r.StaleP50, r.StaleP99 = percentile(stale, 50), percentile(stale, 99)
			p.Progress("churn %d/s: staleness p50 %v, p99 %v", p.Churn, r.StaleP50.Round(time.Millisecond), r.StaleP99.Round(time.Millisecond))
			return nil
		case <-tick.C:
			stale = append(stale, f.staleness(n, made)...)
		}
	}
}

// staleness says for every watching proxy how long the oldest change that it
// does not know yet has been there.
func (f *Fleet) staleness(newest int, made map[int]time.Time) []time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	var out []time.Duration
	for i, m := range f.marks {
		if !f.watch[i] {
			continue
		}
		at, missing := made[m+1]
		if m >= newest || !missing {
			out = append(out, 0)
			continue
		}
		out = append(out, now.Sub(at))
	}
	return out
}

func percentile(d []time.Duration, p int) time.Duration {
	if len(d) == 0 {
		return 0
	}
	d = slices.Sorted(slices.Values(d))
	return d[min(len(d)-1, len(d)*p/100)]
}
