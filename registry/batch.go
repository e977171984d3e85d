package registry

import (
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// batch collects what one update touches and publishes the difference at once.
// It lives while the Store is locked.
type batch struct {
	store *Store
	since time.Time
	// scope is what is known to have changed; networks and joined say that the
	// gateways or the set of clusters must be looked at.
	scope            Scope
	networks, joined bool
	services         map[mesh.ServiceKey]struct{}
	objects          map[mesh.ObjectKey]*mesh.Object // as they are now; nil for one that is gone
	workloads        map[WorkloadKey]struct{}
}

// begin starts a batch for an update that reached the Store at a time.
func (s *Store) begin(at time.Time) *batch { return &batch{store: s, since: at} }

func (b *batch) touch(k mesh.ServiceKey) {
	if b.services == nil {
		b.services = map[mesh.ServiceKey]struct{}{}
	}
	b.services[k] = struct{}{}
}

func (b *batch) touchWorkload(k WorkloadKey) {
	if b.workloads == nil {
		b.workloads = map[WorkloadKey]struct{}{}
	}
	b.workloads[k] = struct{}{}
}

func (b *batch) touchObject(k mesh.ObjectKey, now *mesh.Object) {
	if b.objects == nil {
		b.objects = map[mesh.ObjectKey]*mesh.Object{}
	}
	b.objects[k] = now
}

// update brings a shard up to date and notes everything that really changed.
func (b *batch) update(id mesh.ClusterID, sh *shard, u Update) {
	for _, st := range u.Services {
		b.updateService(sh, st)
	}
	for _, w := range u.Workloads {
		b.updateWorkload(id, sh, w)
	}
	for _, o := range u.Objects {
		if sameObject(sh.objects[o.Key], o.Object) {
			continue
		}
		if o.Object == nil {
			delete(sh.objects, o.Key)
		} else {
			sh.objects[o.Key] = o.Object
		}
		switch {
		case o.Key.Kind == mesh.KindWorkloadEntry: // no policy looks at those: what they mean is derived
			b.updateMachine(id, o.Key, o.Object)
		case id == b.store.primary:
			b.touchObject(o.Key, b.shown(o.Key, o.Object))
			switch o.Key.Kind {
			case mesh.KindServiceEntry:
				b.store.entries.SetEntry(o.Key, o.Object)
			case mesh.KindNamespace: // may decide who sees its entries
				b.store.entries.SetNamespace(o.Key.Name, labelsOf(o.Object))
			}
		}
	}
	if u.Cluster != nil {
		b.updateCluster(sh, *u.Cluster)
	}
}

// labelsOf are the labels of an object; nil if there is none.
func labelsOf(o *mesh.Object) map[string]string {
	switch {
	case o == nil:
		return nil
	case o.Labels == nil:
		return map[string]string{}
	}
	return o.Labels
}

func (b *batch) updateCluster(sh *shard, to ClusterState) {
	to.Gateways = slices.SortedFunc(slices.Values(to.Gateways), mesh.CompareGateways)
	if sh.state.Network != to.Network {
		for k := range sh.services {
			b.touch(k)
		}
		b.touchDerived() // machines of the cluster may be behind them
	}
	if sh.state.Network != to.Network || sh.state.TrustDomain != to.TrustDomain || !slices.Equal(sh.state.Gateways, to.Gateways) {
		sh.state = to
		b.networks = true
	}
}

func (b *batch) updateService(sh *shard, st ServiceState) {
	old, had := sh.services[st.Key]
	if st.Definition == nil {
		if had {
			delete(sh.services, st.Key)
			b.touch(st.Key)
		}
		return
	}
	st.Endpoints = sortedEndpoints(st.Endpoints)
	if had && old.Definition.Equal(st.Definition) {
		if slices.EqualFunc(old.Endpoints, st.Endpoints, mesh.Endpoint.Equal) {
			return
		}
		st.Definition = old.Definition // keeps the pointer: the merged service stays the same
	}
	sh.services[st.Key] = st
	b.touch(st.Key)
}

// sortedEndpoints returns the endpoints in order and without exact duplicates,
// leaving the list it was given alone.
func sortedEndpoints(in []mesh.Endpoint) []mesh.Endpoint {
	if !slices.IsSortedFunc(in, mesh.Endpoint.Compare) {
		in = slices.Clone(in)
		slices.SortStableFunc(in, mesh.Endpoint.Compare)
	}
	for i := 1; i < len(in); i++ {
		if in[i-1].Equal(in[i]) {
			return slices.CompactFunc(slices.Clone(in), mesh.Endpoint.Equal)
		}
	}
	return in
}

func (b *batch) updateWorkload(id mesh.ClusterID, sh *shard, w WorkloadState) {
	old, now := sh.workloads[w.Key], podState{w.Workload, w.Health}
	if now.workload == nil {
		now.health = 0
	}
	same := old.workload.Equal(now.workload)
	if same && old.health == now.health {
		return
	}
	if same {
		now.workload = old.workload // keeps the pointer that endpoints have
	} else {
		b.claim(id, old.workload, now.workload)
	}
	if now.workload == nil {
		delete(sh.workloads, w.Key)
	} else {
		sh.workloads[w.Key] = now
	}
	b.updatePod(id, w.Key, old, now)
}

// claim makes a workload known under its addresses in place of another one;
// either may be nil.
func (b *batch) claim(id mesh.ClusterID, old, now *mesh.Workload) {
	if old != nil {
		for _, a := range old.Addresses {
			k := WorkloadKey{id, a}
			list := slices.DeleteFunc(b.store.byAddr[k], func(x *mesh.Workload) bool { return x == old })
			if b.store.byAddr[k] = list; len(list) == 0 {
				delete(b.store.byAddr, k)
			}
			b.touchWorkload(k)
		}
	}
	if now == nil {
		return
	}
	for _, a := range now.Addresses {
		k := WorkloadKey{id, a}
		list := b.store.byAddr[k]
		i, _ := slices.BinarySearchFunc(list, now, compareClaims)
		b.store.byAddr[k] = slices.Insert(list, i, now)
		b.touchWorkload(k)
	}
}

// sameObject compares content: a status that was written changes the version of
// an object and nothing else, and a restored API server may reuse a version.
func sameObject(a, b *mesh.Object) bool {
	if a == b || a == nil || b == nil {
		return a == b
	}
	return a.Created.Equal(b.Created) && a.Origin == b.Origin && maps.Equal(a.Labels, b.Labels) &&
		maps.Equal(a.Annotations, b.Annotations) && a.Status.Equal(b.Status) && sameSpec(a, b)
}

// publish makes the new revision visible and tells the listeners, unless
// nothing changed.
func (b *batch) publish() {
	s := b.store
	for _, k := range s.entries.Flush(s.pods) {
		b.touch(k)
	}
	old := s.catalog.Load()
	next := Change{Revision: s.revision + 1, Since: b.since, Workloads: b.workloads}
	var defs map[mesh.ServiceKey]*mesh.Service
	var gone []mesh.ServiceKey
	for k := range b.services {
		ch := b.remerge(old, k, next.Revision)
		if ch.Aspects == 0 {
			continue
		}
		if next.Services == nil {
			next.Services = make(map[mesh.ServiceKey]ServiceChange, len(b.services))
		}
		next.Services[k] = ch
		if ch.Aspects.Has(AspectDefinition) {
			if defs == nil {
				defs = map[mesh.ServiceKey]*mesh.Service{}
			}
			defs[k] = ch.After
		}
		if ch.After == nil {
			gone = append(gone, k)
		}
	}
	cat := b.nextCatalog(old, defs)
	if b.route(cat, next.Services) {
		cat.objects = old.objects.with(b.objects)
	}
	next.Scope, next.Objects = b.scope, objectChanges(old, b.objects)
	if next.Empty() {
		return
	}
	s.revision, cat.Revision = next.Revision, next.Revision
	s.catalog.Store(cat)
	for _, k := range gone { // after the catalog: nobody sees a service that lost its endpoints
		s.cells.Delete(k)
	}
	for _, id := range slices.Sorted(maps.Keys(s.listeners)) {
		s.listeners[id](next)
	}
}

func objectChanges(old *Catalog, now map[mesh.ObjectKey]*mesh.Object) map[mesh.ObjectKey]ObjectChange {
	if len(now) == 0 {
		return nil
	}
	out := make(map[mesh.ObjectKey]ObjectChange, len(now))
	for k, o := range now {
		out[k] = ObjectChange{Before: old.Object(k), After: o}
	}
	return out
}

// remerge publishes one service's endpoint cell and tells what changed.
func (b *batch) remerge(cat *Catalog, k mesh.ServiceKey, revision uint64) ServiceChange {
	s := b.store
	ch := ServiceChange{Before: cat.Service(k), EndpointsBefore: s.Endpoints(k)}
	ch.After = ch.Before
	if !s.sameDefinitions(k, ch.Before) {
		ch.After = s.merge(k)
		if ch.After != ch.Before {
			ch.Aspects |= AspectDefinition
		}
	}
	ch.EndpointsAfter = newEndpointSet(revision, s.endpoints(k))
	if ch.EndpointsAfter.equal(ch.EndpointsBefore) {
		ch.EndpointsAfter = ch.EndpointsBefore
		return ch
	}
	ch.Aspects |= AspectEndpoints
	if !slices.Equal(ch.EndpointsBefore.identities, ch.EndpointsAfter.identities) {
		ch.Aspects |= AspectIdentities
	}
	if ch.After != nil {
		b.setCell(k, ch.EndpointsAfter)
	}
	return ch
}

func (b *batch) setCell(k mesh.ServiceKey, set *EndpointSet) {
	cell, ok := b.store.cells.Load(k)
	if !ok {
		cell, _ = b.store.cells.LoadOrStore(k, &atomic.Pointer[EndpointSet]{})
	}
	cell.(*atomic.Pointer[EndpointSet]).Store(set)
}

// nextCatalog derives the next reading from the last one, sharing everything
// that stays the same, and adds to the scope what turns out to have changed.
func (b *batch) nextCatalog(old *Catalog, defs map[mesh.ServiceKey]*mesh.Service) *Catalog {
	s := b.store
	n := *old
	if len(defs) > 0 {
		n = *old.withServices(defs)
	}
	n.Settings = s.settings
	if b.joined || b.networks {
		if clusters := s.clusterInfo(); !maps.Equal(clusters, old.clusters) {
			n.clusters = clusters
			b.scope |= clusterScope(old.clusters, clusters)
		}
	}
	if b.joined || b.networks || b.gatewayServices() {
		if g := s.mergeGateways(&n); !g.equal(old.gateways) {
			n.gateways = g
			b.scope |= ScopeNetworks
		}
	}
	if len(b.objects) > 0 {
		n.objects = old.objects.with(b.objects)
	}
	return &n
}

// clusterScope tells what a difference between two sets of clusters concerns.
func clusterScope(before, after map[mesh.ClusterID]Cluster) Scope {
	var scope Scope
	if len(before) != len(after) {
		scope |= ScopeClusters
	}
	for id, a := range after {
		b, had := before[id]
		if !had || a.TrustDomain != b.TrustDomain {
			scope |= ScopeClusters
		}
		if a.Network != b.Network {
			scope |= ScopeNetworks
		}
	}
	return scope
}
