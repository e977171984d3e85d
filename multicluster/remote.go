package multicluster

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// remote is one cluster as the manager's loop keeps it. Only the loop touches it.
type remote struct {
	id mesh.ClusterID
	// owner is the claim that counts now; it may be unusable.
	owner claim
	// target is the last usable claim.
	target             claim
	serving, candidate *instance
	attempt            attempt
	failed             string
	retryAt            time.Time
	failures           int
	// since is when the cluster was first claimed.
	since time.Time
	// lastError is the newest error of an instance that ended or did not start.
	lastError   string
	lastErrorAt time.Time
	// health and reason were found at the last look, healthSince when health became so.
	health      Health
	healthSince time.Time
}

// attempt is the effort to get one kubeconfig to report, over all restarts.
type attempt struct {
	content string
	// since is when it began; zero if there is none.
	since time.Time
	// timedOut: it has not reported within the manager's timeout. It goes on.
	timedOut bool
}

// state is what the state machine sees.
func (r *remote) state() clusterState {
	return clusterState{
		target: r.target, serving: r.serving.state(), candidate: r.candidate.state(),
		failed: r.failed, retryAt: r.retryAt,
	}
}

// instance is one run of one source with one kubeconfig. It has a sink of its
// own, so that whatever it does after it was superseded has no effect.
type instance struct {
	generation uint64
	content    string
	origin     Origin
	server     string
	client     kubernetes.Interface
	source     registry.Source
	gate       *gate
	conns      *connections
	started    time.Time
	// accounted: the loop has dealt with its end.
	accounted bool

	cancel context.CancelFunc
	exit   atomic.Pointer[exit]
}

// exit is how a Run ended.
type exit struct {
	at  time.Time
	err error
}

var errEnded = errors.New("source ended without an error")

// start runs the source. done is called after it has returned.
func (i *instance) start(ctx context.Context, now func() time.Time, done func()) {
	ctx, i.cancel = context.WithCancel(ctx)
	go func() {
		defer done()
		err := i.source.Run(ctx, i.gate)
		if err == nil {
			err = errEnded
		}
		i.exit.Store(&exit{at: now(), err: err})
	}()
}

// stop ends the instance and its connections. It does not wait for Run to
// return: the sink is closed, so nothing that Run still does matters.
func (i *instance) stop(d registry.Disposition) {
	i.gate.shut(d)
	i.cancel()
	i.conns.close()
}

// abandon stops an instance that has not reported; false if it has.
func (i *instance) abandon() bool {
	if !i.gate.shutUnsynced() {
		return false
	}
	i.cancel()
	i.conns.close()
	return true
}

func (i *instance) state() *instanceState {
	if i == nil {
		return nil
	}
	return &instanceState{generation: i.generation, content: i.content,
		synced: !i.gate.syncedAt().IsZero(), exited: i.exit.Load() != nil}
}

// report asks the source how it is; nil if it cannot tell.
func (i *instance) report() *SourceStatus {
	if r, ok := i.source.(StatusReporter); ok {
		s := r.Status()
		return &s
	}
	return nil
}

// gate stands between a source and its sink: it notices the first Replace and
// makes sure that a source which is being stopped no longer gets through.
type gate struct {
	sink   registry.Sink
	now    func() time.Time
	notify func()

	mu     sync.Mutex // held while the sink is called, so that shut waits for a call under way
	closed bool
	synced atomic.Pointer[time.Time]
}

func (g *gate) Replace(u registry.Update) {
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return
	}
	g.sink.Replace(u)
	first := g.synced.Load() == nil
	if first {
		at := g.now()
		g.synced.Store(&at)
	}
	g.mu.Unlock()
	if first {
		g.notify()
	}
}

func (g *gate) Apply(u registry.Update) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.sink.Apply(u)
	}
}

// Close does nothing: when a source ends and what becomes of its data is the
// manager's decision.
func (g *gate) Close(registry.Disposition) {}

// syncedAt is when the first Replace went through, zero if none did.
func (g *gate) syncedAt() time.Time {
	if at := g.synced.Load(); at != nil {
		return *at
	}
	return time.Time{}
}

func (g *gate) shut(d registry.Disposition) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.closed = true
		g.sink.Close(d)
	}
}

// shutUnsynced closes the gate with Keep unless something went through it: then
// its source owns the cluster and has to be promoted first.
func (g *gate) shutUnsynced() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.synced.Load() != nil {
		return false
	}
	if !g.closed {
		g.closed = true
		g.sink.Close(registry.Keep)
	}
	return true
}

// Backoff spaces the restarts of a source that ended or could not be started.
type Backoff struct {
	// Initial is the first delay, 1 s if 0. Each further one doubles it.
	Initial time.Duration
	// Max bounds the delay, 1 min if 0. A source that ran for that long starts
	// from Initial again.
	Max time.Duration
	// Jitter is the part of the delay, from 0 to 1, that is random, so that
	// replicas do not return together. 0.2 if 0, none if negative.
	Jitter float64
}

func (b Backoff) withDefaults() Backoff {
	if b.Initial <= 0 {
		b.Initial = time.Second
	}
	if b.Max <= 0 {
		b.Max = time.Minute
	}
	b.Max = max(b.Max, b.Initial)
	switch {
	case b.Jitter == 0:
		b.Jitter = 0.2
	case b.Jitter < 0:
		b.Jitter = 0
	}
	b.Jitter = min(b.Jitter, 1)
	return b
}

// delay before try number n+1, after n failures in a row.
func (b Backoff) delay(n int) time.Duration {
	d := b.Initial
	for ; n > 1 && d < b.Max; n-- {
		d *= 2
	}
	d = min(d, b.Max)
	return d - time.Duration(b.Jitter*rand.Float64()*float64(d))
}
