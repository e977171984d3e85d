package registry

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"
	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry/entry"
)

// Config configures a [Store].
type Config struct {
	// Primary is the cluster whose definitions lead and whose configuration
	// objects count.
	Primary mesh.ClusterID
	// Settings are in force until [Store.SetSettings] is called; nil parts count as empty.
	Settings mesh.Settings
	// Clock tells when an update arrived; time.Now if nil.
	Clock func() time.Time
}

// Store merges the states of all clusters. Its readers never wait for writers:
// the catalog and every service's endpoint set are immutable values behind
// atomic pointers. Writers are serialised.
//
// The result is a function of the newest state of each cluster alone: any order
// of updates that ends in the same states gives the same catalog and endpoints.
type Store struct {
	primary mesh.ClusterID
	now     func() time.Time

	catalog atomic.Pointer[Catalog]
	cells   sync.Map // mesh.ServiceKey -> *atomic.Pointer[EndpointSet]
	none    *EndpointSet

	mu       sync.Mutex // guards everything below, and is held while listeners are called
	revision uint64
	settings mesh.Settings
	networks networkRules
	// discovery selects the namespaces that are in the mesh.
	discovery discovery
	shards    map[mesh.ClusterID]*shard
	// entries derives services and endpoints from the objects of the shards.
	entries *entry.Index
	// routing is what was derived from the objects of the Gateway API.
	routing routing
	// owned is the newest generation that ever owned a cluster, also of clusters
	// that left: what an older sink still says is out of date.
	owned    map[mesh.ClusterID]uint64
	lastSink uint64
	// byAddr lists the workloads that claim an address, the one that counts first.
	byAddr    map[WorkloadKey][]*mesh.Workload
	resolved  map[string][]netip.Addr
	listeners map[int]func(Change)
	nextID    int
}

// shard is the newest state of one cluster.
type shard struct {
	owner     *sink
	services  map[mesh.ServiceKey]ServiceState
	workloads map[string]podState
	objects   map[mesh.ObjectKey]*mesh.Object
	state     ClusterState
	held      withheld
}

// NewStore returns an empty store.
func NewStore(c Config) *Store {
	if c.Clock == nil {
		c.Clock = time.Now
	}
	s := &Store{
		primary:   c.Primary,
		now:       c.Clock,
		none:      &EndpointSet{},
		shards:    map[mesh.ClusterID]*shard{},
		owned:     map[mesh.ClusterID]uint64{},
		byAddr:    map[WorkloadKey][]*mesh.Workload{},
		resolved:  map[string][]netip.Addr{},
		listeners: map[int]func(Change){},
	}
	s.setSettings(c.Settings)
	s.entries = entry.NewIndex(trustDomain(s.settings))
	s.entries.SetVisibility(s.settings.Mesh.GetServiceEntryVisibility())
	first := &Catalog{Primary: c.Primary, noObjects: &objectList{}, Settings: s.settings, hosts: newHostTable(),
		clusters: map[mesh.ClusterID]Cluster{}}
	first.index()
	first.gateways = s.mergeGateways(first)
	s.catalog.Store(first)
	return s
}

// Catalog returns the newest definitions.
func (s *Store) Catalog() *Catalog { return s.catalog.Load() }

// Endpoints returns the newest endpoints of a service; never nil.
func (s *Store) Endpoints(k mesh.ServiceKey) *EndpointSet {
	if c, ok := s.cells.Load(k); ok {
		return c.(*atomic.Pointer[EndpointSet]).Load()
	}
	return s.none
}

// Workload returns the workload that has the address in the cluster, or nil. Of
// several that share an address (pods on the network of their host) it is the
// first by namespace and name, and one with an address of its own before all.
func (s *Store) Workload(k WorkloadKey) *mesh.Workload {
	s.mu.Lock()
	defer s.mu.Unlock()
	if list := s.byAddr[k]; len(list) > 0 {
		return list[0]
	}
	return nil
}

// OnChange calls f for every change from now on, one after the other and in
// order of revision, until cancel is called. f runs while the Store is locked:
// it must return at once and must not call the Store except for Catalog and
// Endpoints.
func (s *Store) OnChange(f func(Change)) (cancel func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := s.nextID
	s.nextID++
	s.listeners[id] = f
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.listeners, id)
	}
}

// NewSink returns a sink for a new source instance of the cluster.
func (s *Store) NewSink(id mesh.ClusterID) Sink {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastSink++
	return &sink{store: s, cluster: id, generation: s.lastSink}
}

func sameNumber(a, b *float64) bool {
	return a == b || a != nil && b != nil && *a == *b
}

// SetSettings replaces the mesh-wide settings. Equal settings change nothing.
func (s *Store) SetSettings(to mesh.Settings) {
	at := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.settings
	to.Weights.Secrets = old.Weights.Secrets // not for the settings to say
	s.setSettings(to)
	sameNetworks := proto.Equal(old.Networks, s.settings.Networks)
	same := sameNetworks && proto.Equal(old.Mesh, s.settings.Mesh) && old.FailoverNeedsOutliers == s.settings.FailoverNeedsOutliers &&
		sameNumber(old.TraceSampling, s.settings.TraceSampling)
	b := s.begin(at)
	if !old.Weights.Equal(s.settings.Weights) {
		b.scope |= ScopeWeights
	}
	if same {
		s.settings.Mesh, s.settings.Networks = old.Mesh, old.Networks
		b.publish()
		return
	}
	b.scope |= ScopeSettings
	if !sameSelectors(old.Mesh.GetDiscoverySelectors(), s.discovery) {
		b.rediscover()
	}
	b.updateTrustDomain()
	s.entries.SetVisibility(s.settings.Mesh.GetServiceEntryVisibility())
	if !sameNetworks {
		b.networks = true
		for svc := range s.catalog.Load().Services() {
			b.touch(svc.Key)
		}
	}
	b.publish()
}

// SetSecretWeights replaces the weights that remote secrets give their clusters.
// Nothing but which addresses proxies dial depends on them.
func (s *Store) SetSecretWeights(to map[mesh.ClusterID]mesh.Weight) {
	at := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	weights := s.settings.Weights
	weights.Secrets = maps.Clone(to)
	if weights.Equal(s.settings.Weights) {
		return
	}
	s.settings.Weights = weights
	b := s.begin(at)
	b.scope |= ScopeWeights
	b.publish()
}

func (s *Store) setSettings(to mesh.Settings) {
	if to.Mesh == nil {
		to.Mesh = &meshconfig.MeshConfig{}
	}
	if to.Networks == nil {
		to.Networks = &meshconfig.MeshNetworks{}
	}
	s.settings = to
	s.discovery = to.Mesh.GetDiscoverySelectors()
	s.networks = parseNetworkRules(s.primary, to.Networks)
}

// SetResolved records the addresses that a gateway's host name resolves to. An
// empty list is not taken: the last known addresses stay.
func (s *Store) SetResolved(host string, addrs []netip.Addr) {
	if len(addrs) == 0 {
		return
	}
	at := s.now()
	addrs = slices.Clone(addrs)
	for i, a := range addrs {
		addrs[i] = a.Unmap()
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	addrs = slices.Compact(addrs)
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.Equal(s.resolved[host], addrs) {
		return
	}
	s.resolved[host] = addrs
	b := s.begin(at)
	b.networks = true
	b.publish()
}

// replace and apply are called by sinks.

func (s *Store) replace(from *sink, u Update) {
	at := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if from.closed || s.owned[from.cluster] > from.generation {
		return
	}
	s.owned[from.cluster] = from.generation
	b := s.begin(at)
	sh := s.shards[from.cluster]
	if sh == nil {
		sh = newShard()
		s.shards[from.cluster] = sh
		b.joined = true
	}
	sh.owner = from
	sh.held = newWithheld()
	b.discover(from.cluster, sh, completed(sh, u))
	b.publish()
}

// completed adds to an update the removal of everything that it does not name.
func completed(sh *shard, u Update) Update {
	// What is appended must not land in the caller's arrays.
	u.Services, u.Workloads, u.Objects = slices.Clip(u.Services), slices.Clip(u.Workloads), slices.Clip(u.Objects)
	services := make(map[mesh.ServiceKey]struct{}, len(u.Services))
	for _, x := range u.Services {
		services[x.Key] = struct{}{}
	}
	for k := range sh.services {
		if _, ok := services[k]; !ok {
			u.Services = append(u.Services, ServiceState{Key: k})
		}
	}
	workloads := make(map[string]struct{}, len(u.Workloads))
	for _, x := range u.Workloads {
		workloads[x.Key] = struct{}{}
	}
	for k := range sh.workloads {
		if _, ok := workloads[k]; !ok {
			u.Workloads = append(u.Workloads, WorkloadState{Key: k})
		}
	}
	objects := make(map[mesh.ObjectKey]struct{}, len(u.Objects))
	for _, x := range u.Objects {
		objects[x.Key] = struct{}{}
	}
	for k := range sh.objects {
		if _, ok := objects[k]; !ok {
			u.Objects = append(u.Objects, ObjectState{Key: k})
		}
	}
	return u
}

func newShard() *shard {
	return &shard{services: map[mesh.ServiceKey]ServiceState{}, workloads: map[string]podState{},
		objects: map[mesh.ObjectKey]*mesh.Object{}, held: newWithheld()}
}

func (s *Store) apply(from *sink, u Update) {
	at := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	sh := s.shards[from.cluster]
	if from.closed || sh == nil || sh.owner != from {
		return
	}
	b := s.begin(at)
	b.discover(from.cluster, sh, u)
	b.publish()
}

func (s *Store) close(from *sink, d Disposition) {
	at := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	from.closed = true
	sh := s.shards[from.cluster]
	if d != Drop || sh == nil || sh.owner != from {
		return
	}
	b := s.begin(at)
	b.update(from.cluster, sh, completed(sh, Update{}))
	delete(s.shards, from.cluster)
	b.joined = true
	b.publish()
}

// definitions collects what every cluster says of a service, or what
// ServiceEntries say if no cluster does.
func (s *Store) definitions(k mesh.ServiceKey) map[mesh.ClusterID]*mesh.Definition {
	in := map[mesh.ClusterID]*mesh.Definition{}
	for id, sh := range s.shards {
		if st, ok := sh.services[k]; ok {
			in[id] = st.Definition
		}
	}
	if d := s.entries.Derived(k); d != nil && len(in) == 0 {
		in[s.primary] = d.Definition
	}
	return in
}

// sameDefinitions reports whether a merged service was made of exactly the
// definitions that the clusters have now.
func (s *Store) sameDefinitions(k mesh.ServiceKey, merged *mesh.Service) bool {
	n := 0
	for id, sh := range s.shards {
		st, ok := sh.services[k]
		if !ok {
			continue
		}
		if n++; merged == nil || merged.In[id] != st.Definition {
			return false
		}
	}
	if d := s.entries.Derived(k); d != nil && n == 0 {
		if n++; merged == nil || merged.In[s.primary] != d.Definition {
			return false
		}
	}
	if merged == nil || n != len(merged.In) {
		return merged == nil && n == 0
	}
	return sameConflicts(merged, s.entryConflicts(k, merged.In))
}

// merge makes one service of what is said of it now; nil if nothing is.
func (s *Store) merge(k mesh.ServiceKey) *mesh.Service {
	in := s.definitions(k)
	svc := mergeService(k, s.primary, in)
	if svc != nil {
		svc.Conflicts = append(svc.Conflicts, s.entryConflicts(k, in)...)
	}
	return svc
}

// compareClaims orders the workloads that claim one address.
func compareClaims(a, b *mesh.Workload) int {
	own := func(w *mesh.Workload) int {
		if w.HostNetwork {
			return 1
		}
		return 0
	}
	return cmp.Or(own(a)-own(b), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Kind, b.Kind))
}

// endpoints merges the endpoints that all clusters have of a service, with
// networks, in the order of [mesh.Endpoint.Compare]. Every shard's list is
// sorted already, so port by port the lists are put one behind the other.
func (s *Store) endpoints(k mesh.ServiceKey) []mesh.Endpoint {
	type run struct {
		id      mesh.ClusterID
		network mesh.NetworkID
		rest    []mesh.Endpoint
	}
	var runs []run
	n := 0
	for id, sh := range s.shards {
		if list := sh.services[k].Endpoints; len(list) > 0 {
			runs = append(runs, run{id, sh.state.Network, list})
			n += len(list)
		}
	}
	written := s.entryEndpoints(k)
	if n == 0 && len(written) == 0 {
		return nil
	}
	slices.SortFunc(runs, func(a, b run) int { return cmp.Compare(a.id, b.id) })
	all := make([]mesh.Endpoint, 0, n+len(written))
	for len(all) < n {
		port, found := "", false
		for _, r := range runs {
			if len(r.rest) > 0 && (!found || r.rest[0].PortName < port) {
				port, found = r.rest[0].PortName, true
			}
		}
		for i := range runs {
			r := &runs[i]
			for len(r.rest) > 0 && r.rest[0].PortName == port {
				e := r.rest[0]
				e.Network = s.networks.of(r.id, r.network, e)
				all, r.rest = append(all, e), r.rest[1:]
			}
		}
	}
	if len(written) == 0 {
		return all
	}
	all = append(all, written...)
	slices.SortFunc(all, mesh.Endpoint.Compare)
	return slices.CompactFunc(all, mesh.Endpoint.Equal)
}

// sink is one source instance's access to the Store. Later instances have
// greater generations. closed is guarded by the Store's mutex.
type sink struct {
	store      *Store
	cluster    mesh.ClusterID
	generation uint64
	closed     bool
}

func (k *sink) Replace(u Update)    { k.store.replace(k, u) }
func (k *sink) Apply(u Update)      { k.store.apply(k, u) }
func (k *sink) Close(d Disposition) { k.store.close(k, d) }

// clusterInfo rebuilds the catalog's view of all clusters.
func (s *Store) clusterInfo() map[mesh.ClusterID]Cluster {
	out := make(map[mesh.ClusterID]Cluster, len(s.shards))
	for id, sh := range s.shards {
		out[id] = Cluster{ID: id, Network: sh.state.Network, TrustDomain: sh.state.TrustDomain}
	}
	return out
}
