package kube

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// patience is how long a test waits for what must happen. Nothing that passes
// takes it.
const patience = 30 * time.Second

// recorder is a sink that keeps what it is told.
type recorder struct {
	changed chan struct{}

	mu       sync.Mutex
	replaces int
	applied  []registry.Update
	state    *ledger
	status   []Status
}

func newRecorder() *recorder {
	return &recorder{changed: make(chan struct{}, 1), state: newLedger()}
}

func (r *recorder) note(f func()) {
	r.mu.Lock()
	f()
	r.mu.Unlock()
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

func (r *recorder) Replace(u registry.Update) {
	r.note(func() {
		r.replaces++
		r.state = newLedger()
		r.state.apply(u)
	})
}

func (r *recorder) Apply(u registry.Update) {
	r.note(func() {
		r.applied = append(r.applied, u)
		r.state.apply(u)
	})
}

func (r *recorder) Close(registry.Disposition) {}

// latest is the newest status; the recorder must be locked.
func (r *recorder) latest() Status {
	if len(r.status) == 0 {
		return Status{}
	}
	return r.status[len(r.status)-1]
}

func (r *recorder) onStatus(s Status) { r.note(func() { r.status = append(r.status, s) }) }

// await waits until a condition holds.
func (r *recorder) await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(patience)
	for {
		if r.holds(holds) {
			return
		}
		select {
		case <-r.changed:
		case <-deadline:
			require.Fail(t, "did not happen: "+what)
		}
	}
}

func (r *recorder) holds(f func() bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return f()
}

func (r *recorder) endpoints(host string) []mesh.Endpoint {
	return r.state.services[mesh.ServiceKey{Namespace: "a", Hostname: mesh.Hostname(host + ".a.svc.cluster.local")}].Endpoints
}

// metric is the value of a metric with the label values, or -1 without it.
func metric(t *testing.T, r *prometheus.Registry, name string, labels ...string) float64 {
	t.Helper()
	families, err := r.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			var got []string
			for _, l := range m.GetLabel() {
				got = append(got, l.GetValue())
			}
			if slices.Equal(got, labels) {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return -1
}

func kindOf(s Status, kind string) KindStatus {
	for _, k := range s.Kinds {
		if k.Kind == kind {
			return k
		}
	}
	return KindStatus{}
}

// started is a source that runs against a fake server.
type started struct {
	*recorder
	source   *Source
	problems *registry.Problems
	offset   *atomic.Int64 // nanoseconds that the source's clock is ahead
	metrics  *prometheus.Registry
}

func start(t *testing.T, f *fakeServer, edit func(*Config)) *started {
	t.Helper()
	s := &started{recorder: newRecorder(), problems: registry.NewProblems(nil), offset: &atomic.Int64{}, metrics: prometheus.NewRegistry()}
	c := Config{Cluster: "east", Problems: s.problems, OnStatus: s.onStatus, KindTimeout: time.Millisecond, Metrics: s.metrics,
		Clock: func() time.Time { return time.Now().Add(time.Duration(s.offset.Load())) }}
	if f != nil {
		c.REST = f.rest()
	}
	if edit != nil {
		edit(&c)
	}
	var err error
	s.source, err = New(c)
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.source.Run(ctx, s) }()
	t.Cleanup(func() {
		stop()
		select {
		case err := <-done:
			require.NoError(t, err)
		case <-time.After(patience):
			require.Fail(t, "Run does not end with its context")
		}
	})
	return s
}

func (s *started) awaitSync(t *testing.T) {
	t.Helper()
	s.await(t, "first sync", func() bool { return s.replaces == 1 })
}
