package xds

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/xds/build"
)

// snapshot is the state of the Store as far as the engine has worked it in. All
// builds read it, never the Store: what changed in the Store and still waits for
// its dispatch is seen by nobody. So a change that is worked in always leads
// from exactly what all proxies were told to the new state, however many
// changes were merged into it; a proxy that connects in between does not see a
// state that the merged change knows nothing of.
type snapshot struct {
	catalog atomic.Pointer[registry.Catalog]
	cells   sync.Map // mesh.ServiceKey -> *registry.EndpointSet
	report  func(object *mesh.Object, field, message string)
}

var noEndpoints = &registry.EndpointSet{} //nolint:gochecknoglobals // a constant

// Endpoints implements [build.Endpoints].
func (s *snapshot) Endpoints(k mesh.ServiceKey) *registry.EndpointSet {
	if set, ok := s.cells.Load(k); ok {
		return set.(*registry.EndpointSet)
	}
	return noEndpoints
}

func (s *snapshot) inputs() build.Inputs {
	return build.Inputs{Catalog: s.catalog.Load(), Endpoints: s, Report: s.report}
}

func (s *snapshot) revision() uint64 { return s.catalog.Load().Revision }

// load reads the Store as a whole.
func (s *snapshot) load(store Store) {
	cat := store.Catalog()
	s.catalog.Store(cat)
	for svc := range cat.Services() {
		s.cells.Store(svc.Key, store.Endpoints(svc.Key))
	}
}

func (s *snapshot) set(k mesh.ServiceKey, set *registry.EndpointSet) {
	if set.Len() == 0 {
		s.cells.Delete(k)
		return
	}
	s.cells.Store(k, set)
}

// catchUp is the wait for the snapshot to hold what the Store held when it was
// first complete: until then, what is not in it is unknown, not absent.
type catchUp struct {
	done   atomic.Bool
	mu     sync.Mutex
	target uint64 // the Store's revision to reach, once set
	set    bool
	moved  chan struct{} // closed when the snapshot advances
}

// advanced notes that the snapshot has a revision.
func (c *catchUp) advanced(revision uint64) {
	if c.done.Load() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reached(revision)
}

// reached wakes everybody who waits. c.mu is held.
func (c *catchUp) reached(revision uint64) {
	if c.set && revision >= c.target {
		c.done.Store(true)
	}
	if c.moved != nil {
		close(c.moved)
		c.moved = nil
	}
}

// wait blocks until the snapshot has caught up with the Store as it was at the
// first call. It reports false if the context or the server ended first.
func (c *catchUp) wait(ctx context.Context, stopped <-chan struct{}, have func() uint64, newest func() uint64, hurry func()) bool {
	for !c.done.Load() {
		c.mu.Lock()
		if !c.set {
			c.set, c.target = true, newest()
		}
		if now := have(); now >= c.target {
			c.reached(now)
			c.mu.Unlock()
			break
		}
		if c.moved == nil {
			c.moved = make(chan struct{})
		}
		moved := c.moved
		c.mu.Unlock()
		hurry()
		select {
		case <-moved:
		case <-ctx.Done():
			return false
		case <-stopped:
			return false
		}
	}
	return true
}

// batch is what one dispatch works in: the newest states of what changed.
type batch struct {
	since     time.Time
	endpoints map[mesh.ServiceKey]endpointsChange
	workloads map[registry.WorkloadKey]struct{}
	// catalog is the one to go on with.
	catalog *registry.Catalog
	// definitions: the catalog may differ from the snapshot's by these.
	definitions bool
	services    map[mesh.ServiceKey]struct{}
	objects     map[mesh.ObjectKey]struct{}
	scope       registry.Scope
}

type endpointsChange struct {
	aspects registry.Aspect
	after   *registry.EndpointSet
}

// advance moves the snapshot on to the batch's state and returns the change
// that leads there from where it was.
func (s *snapshot) advance(b *batch) *registry.Change {
	old := s.catalog.Load()
	next := old
	if b.catalog != nil {
		next = b.catalog
	}
	c := &registry.Change{Revision: next.Revision, Since: b.since, Scope: b.scope, Workloads: b.workloads,
		Services: make(map[mesh.ServiceKey]registry.ServiceChange, len(b.endpoints)+len(b.services))}
	for k := range b.objects {
		if o := (registry.ObjectChange{Before: old.Object(k), After: next.Object(k)}); o.Before != o.After {
			put(&c.Objects, k, o)
		}
	}
	for k := range b.services {
		set := s.Endpoints(k)
		c.Services[k] = registry.ServiceChange{Aspects: registry.AspectDefinition, Before: old.Service(k), After: next.Service(k),
			EndpointsBefore: set, EndpointsAfter: set}
	}
	for k, e := range b.endpoints {
		x, ok := c.Services[k]
		if !ok {
			x = registry.ServiceChange{Before: old.Service(k), After: next.Service(k), EndpointsBefore: s.Endpoints(k)}
		}
		x.Aspects |= e.aspects
		x.EndpointsAfter = e.after
		c.Services[k] = x
		s.set(k, e.after)
	}
	s.catalog.Store(next)
	return c
}
