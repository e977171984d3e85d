package xds

import (
	"context"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// pending collects what changed in the Store and was not worked in yet, in two
// lanes: endpoints, identities and workloads do not wait for definitions. It
// holds the newest state of each thing that changed, so its size is bounded by
// the mesh, however fast the mesh changes.
type pending struct {
	store Store
	wake  chan struct{} // one slot

	mu sync.Mutex
	// The fast lane.
	endpoints map[mesh.ServiceKey]endpointsChange
	workloads map[registry.WorkloadKey]struct{}
	since     time.Time // when the oldest change in it began, zero if it is empty
	// The lane of definitions.
	services    map[mesh.ServiceKey]struct{}
	objects     map[mesh.ObjectKey]struct{}
	scope       registry.Scope
	defSince    time.Time
	first, last time.Time // when definitions changed first and last
	hurried     bool      // definitions are due at once
	// catalog is that of the newest change.
	catalog *registry.Catalog
}

func newPending(store Store) *pending { return &pending{store: store, wake: make(chan struct{}, 1)} }

// add takes a change from the Store. It returns at once.
func (p *pending) add(c registry.Change) {
	p.mu.Lock()
	p.catalog = p.store.Catalog() // of this change: the Store is locked
	for k, s := range c.Services {
		if s.Aspects.Has(registry.AspectDefinition) {
			put(&p.services, k, struct{}{})
			p.definition(&c)
		}
		if fast := s.Aspects &^ registry.AspectDefinition; fast != 0 {
			put(&p.endpoints, k, endpointsChange{p.endpoints[k].aspects | fast, s.EndpointsAfter})
			p.fast(&c)
		}
	}
	for k := range c.Workloads {
		put(&p.workloads, k, struct{}{})
		p.fast(&c)
	}
	if len(c.Objects) > 0 || c.Scope != 0 {
		for k := range c.Objects {
			put(&p.objects, k, struct{}{})
		}
		p.scope |= c.Scope
		p.definition(&c)
	}
	p.mu.Unlock()
	p.poke()
}

func (p *pending) fast(c *registry.Change) {
	if p.since.IsZero() {
		p.since = c.Since
	}
}

func (p *pending) definition(c *registry.Change) {
	p.last = time.Now()
	if p.defSince.IsZero() {
		p.defSince, p.first = c.Since, p.last
	}
}

func put[K comparable, V any](m *map[K]V, k K, v V) {
	if *m == nil {
		*m = map[K]V{}
	}
	(*m)[k] = v
}

// take empties the fast lane, and the other one, too, if definitions are due.
func (p *pending) take(definitions bool) *batch {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := &batch{since: p.since, endpoints: p.endpoints, workloads: p.workloads}
	p.endpoints, p.workloads, p.since = nil, nil, time.Time{}
	if definitions {
		if b.since.IsZero() || !p.defSince.IsZero() && p.defSince.Before(b.since) {
			b.since = p.defSince
		}
		p.hurried = false
		b.definitions, b.services, b.objects, b.scope = true, p.services, p.objects, p.scope
		p.services, p.objects, p.scope, p.defSince = nil, nil, 0, time.Time{}
	}
	if p.defSince.IsZero() {
		b.catalog = p.catalog // differs from the last in its revision at most
	}
	return b
}

// everything makes the next dispatch look at everything.
func (p *pending) everything() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.scope |= registry.ScopeSettings | registry.ScopeNetworks | registry.ScopeClusters
	p.last = time.Now()
	if p.defSince.IsZero() {
		p.defSince, p.first = p.last, p.last
	}
}

// hurry makes definitions due at once.
func (p *pending) hurry() {
	p.mu.Lock()
	p.hurried = true
	p.mu.Unlock()
	p.poke()
}

func (p *pending) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// due tells when each lane is due; the zero time means that it is empty.
func (p *pending) due(s *Settings, pace *pacer) (fast, definitions time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.since.IsZero() {
		fast = pace.fast.Add(s.EndpointGap)
	}
	if !p.defSince.IsZero() {
		definitions = p.last.Add(pace.quiet)
		if latest := p.first.Add(s.DebounceMax); definitions.After(latest) {
			definitions = latest
		}
		if p.hurried {
			definitions = p.first
		}
	}
	return fast, definitions
}

// pacer is the pace of dispatching.
type pacer struct {
	fast        time.Time // from when on EndpointGap counts
	definitions time.Time // end of the last dispatch of definitions
	quiet       time.Duration
}

// after adapts the quiet period: it doubles while definitions keep changing.
func (d *pacer) after(s *Settings, now time.Time) {
	if !d.definitions.IsZero() && now.Sub(d.definitions) < s.DebounceMax {
		d.quiet = min(2*d.quiet, s.DebounceMax/2)
	} else {
		d.quiet = s.DebounceAfter
	}
	d.definitions = now
}

// dispatch works changes in until the context ends.
func (srv *Server) dispatch(ctx context.Context) {
	set := &srv.cfg.Settings
	pace := &pacer{quiet: set.DebounceAfter}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		now := time.Now()
		fast, definitions := srv.pending.due(set, pace)
		switch {
		case !definitions.IsZero() && !definitions.After(now):
			srv.workIn(srv.pending.take(true), "config")
			pace.after(set, time.Now())
			pace.fast = time.Now()
			continue
		case !fast.IsZero() && !fast.After(now):
			srv.workIn(srv.pending.take(false), "endpoint")
			// A dispatch that took long is followed by as long a pause.
			end := time.Now()
			pace.fast = end.Add(max(0, end.Sub(now)-set.EndpointGap))
			continue
		}
		timer.Reset(untilFirst(now, fast, definitions))
		select {
		case <-ctx.Done():
			return
		case <-srv.pending.wake:
		case <-timer.C:
		}
	}
}

func untilFirst(now time.Time, times ...time.Time) time.Duration {
	d := time.Hour
	for _, t := range times {
		if !t.IsZero() {
			d = min(d, t.Sub(now))
		}
	}
	return max(d, 0)
}

// workIn works one batch in and hands the streams that it concerns to the
// workers. A bug in the engine must not stop the dispatcher: the batch is
// followed by one that looks at everything.
func (srv *Server) workIn(b *batch, trigger string) {
	begin := time.Now()
	srv.metrics.triggers.WithLabelValues(trigger).Inc()
	srv.metrics.debounce.Observe(srv.cfg.Clock().Sub(b.since).Seconds())
	everything := b.scope != 0
	defer func() {
		if p := recover(); p != nil {
			srv.panicked("dispatch", p)
			if !everything { // else it was tried already
				srv.pending.everything()
			}
		}
	}()
	srv.queue.push(srv.graph.apply(b))
	srv.catchUp.advanced(srv.snapshot.revision())
	srv.metrics.dispatch.Observe(time.Since(begin).Seconds())
}

// start loads the snapshot, so that from then on it and what is pending make
// up the Store. No stream is served before.
func (srv *Server) start() (stop func()) {
	stop = srv.cfg.Store.OnChange(srv.pending.add)
	srv.snapshot.load(srv.cfg.Store)
	// Asking for a workload waits until an update that was half visible while the
	// snapshot was loaded is pending as a whole.
	srv.cfg.Store.Workload(registry.WorkloadKey{})
	b := srv.pending.take(true)
	srv.snapshot.advance(b)
	return stop
}
