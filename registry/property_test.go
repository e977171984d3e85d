package registry

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
	"pgregory.net/rapid"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// world is the model: the newest state of each cluster, and nothing else.
type world struct {
	settings mesh.Settings
	resolved map[string][]netip.Addr
	clusters map[mesh.ClusterID]*clusterModel
}

type clusterModel struct {
	sink      Sink
	joined    bool
	services  map[mesh.ServiceKey]ServiceState
	workloads map[string]WorkloadState
	objects   map[mesh.ObjectKey]*mesh.Object
	state     ClusterState
}

func newWorld() *world {
	w := &world{resolved: map[string][]netip.Addr{}, clusters: map[mesh.ClusterID]*clusterModel{}}
	for _, id := range []mesh.ClusterID{"west", "east", "alps"} {
		w.clusters[id] = &clusterModel{}
	}
	return w
}

func (m *clusterModel) apply(u Update, whole bool) {
	if whole || m.services == nil {
		m.services, m.workloads, m.objects = map[mesh.ServiceKey]ServiceState{}, map[string]WorkloadState{}, map[mesh.ObjectKey]*mesh.Object{}
	}
	for _, s := range u.Services {
		m.services[s.Key] = s
		if s.Definition == nil {
			delete(m.services, s.Key)
		}
	}
	for _, w := range u.Workloads {
		m.workloads[w.Key] = w
		if w.Workload == nil {
			delete(m.workloads, w.Key)
		}
	}
	for _, o := range u.Objects {
		m.objects[o.Key] = o.Object
		if o.Object == nil {
			delete(m.objects, o.Key)
		}
	}
	if u.Cluster != nil {
		m.state = *u.Cluster
	}
}

func (m *clusterModel) update() Update {
	u := Update{Services: slices.Collect(maps.Values(m.services)), Cluster: &m.state}
	for _, w := range m.workloads {
		u.Workloads = append(u.Workloads, w)
	}
	for k, o := range m.objects {
		u.Objects = append(u.Objects, ObjectState{k, o})
	}
	return u
}

// rebuild makes a store of nothing but the newest states.
func (w *world) rebuild() *Store {
	s := NewStore(Config{Primary: primary, Settings: w.settings})
	for h, a := range w.resolved {
		s.SetResolved(h, a)
	}
	for id, m := range w.clusters { // in map order: any
		if m.joined {
			s.NewSink(id).Replace(m.update())
		}
	}
	return s
}

// Generators of a small universe, so that updates meet each other.

func genService(t *rapid.T, id mesh.ClusterID) ServiceState {
	k := mesh.ServiceKey{Namespace: rapid.SampledFrom([]string{"shop", "ops"}).Draw(t, "ns"),
		Hostname: mesh.Hostname(rapid.SampledFrom([]string{"a.shop", "b.shop", "gw.shop"}).Draw(t, "host"))}
	st := ServiceState{Key: k}
	if rapid.IntRange(0, 4).Draw(t, "kind") == 0 {
		return st
	}
	ports := rapid.SliceOfN(rapid.SampledFrom([]string{"http:80/HTTP", "http:81/HTTP", "http:80/TCP", "grpc:80/GRPC", "grpc:90/GRPC"}), 1, 2).Draw(t, "ports")
	st.Definition = definition(id, k, ports...)
	st.Definition.Resolution = mesh.Resolution(rapid.IntRange(0, 1).Draw(t, "resolution"))
	st.Definition.Selector = rapid.SampledFrom([]map[string]string{nil, {"app": "a"}}).Draw(t, "selector")
	st.Definition.External = rapid.SliceOfN(rapid.SampledFrom([]string{"203.0.113.1", "203.0.113.2", "lb.example"}), 0, 2).Draw(t, "external")
	pods := map[int]*mesh.Workload{} // a pod is one pod, however many ports it serves
	for _, i := range rapid.SliceOfN(rapid.IntRange(0, 3), 0, 4).Draw(t, "pods") {
		if pods[i] == nil {
			pods[i] = genPod(t, id, i)
		}
		e := endpoint(rapid.SampledFrom([]string{"http", "grpc"}).Draw(t, "port"), pods[i])
		e.Health = mesh.Health(rapid.IntRange(0, 2).Draw(t, "health"))
		st.Endpoints = append(st.Endpoints, e)
	}
	return st
}

func genPod(t *rapid.T, id mesh.ClusterID, i int) *mesh.Workload {
	w := pod(id, fmt.Sprintf("p%d", i), fmt.Sprintf("10.0.0.%d", i/2+1)) // two pods share an address
	w.HostNetwork = i == 0
	w.NetworkLabel = mesh.NetworkID(rapid.SampledFrom([]string{"", "", "n1"}).Draw(t, "label"))
	w.Labels = rapid.SampledFrom([]map[string]string{nil, {"app": "a"}}).Draw(t, "labels")
	return w
}

// genServiceEntry defines hosts that nobody else has, and one that clusters
// report Services of.
func genServiceEntry(t *rapid.T, id mesh.ClusterID, name string) ObjectState {
	spec := &networking.ServiceEntry{
		Hosts:      rapid.SliceOfN(rapid.SampledFrom([]string{"a.shop", "c.shop"}), 1, 2).Draw(t, "hosts"),
		Addresses:  rapid.SampledFrom([][]string{nil, {"240.0.0.1"}}).Draw(t, "addresses"),
		Ports:      []*networking.ServicePort{{Name: "http", Number: 80, Protocol: "HTTP"}},
		Resolution: rapid.SampledFrom([]networking.ServiceEntry_Resolution{networking.ServiceEntry_STATIC, networking.ServiceEntry_DNS}).Draw(t, "resolution"),
	}
	if rapid.Bool().Draw(t, "selects") {
		spec.WorkloadSelector = &networking.WorkloadSelector{Labels: map[string]string{"app": "a"}}
	} else {
		spec.Endpoints = []*networking.WorkloadEntry{{Address: "192.0.2.9", ServiceAccount: "web"}}
	}
	k := mesh.ObjectKey{Kind: mesh.KindServiceEntry, Namespace: "shop", Name: name}
	return ObjectState{k, &mesh.Object{Key: k, Origin: origin(id, k), Created: time.Unix(rapid.Int64Range(0, 1).Draw(t, "created"), 0), Spec: spec}}
}

func genMachine(t *rapid.T, id mesh.ClusterID, name string) ObjectState {
	k := mesh.ObjectKey{Kind: mesh.KindWorkloadEntry, Namespace: "shop", Name: name}
	return ObjectState{k, &mesh.Object{Key: k, Origin: origin(id, k), Spec: &networking.WorkloadEntry{
		Address: rapid.SampledFrom([]string{"192.0.2.1", "10.0.0.1"}).Draw(t, "address"), Network: rapid.SampledFrom([]string{"", "n2"}).Draw(t, "network"),
		Labels:         rapid.SampledFrom([]map[string]string{nil, {"app": "a"}}).Draw(t, "labels"),
		ServiceAccount: rapid.SampledFrom([]string{"", "vm"}).Draw(t, "account"),
	}}}
}

func origin(id mesh.ClusterID, k mesh.ObjectKey) mesh.ObjectRef {
	return mesh.ObjectRef{Cluster: id, Kind: string(k.Kind), Namespace: k.Namespace, Name: k.Name}
}

func genNamespace(t *rapid.T, id mesh.ClusterID, name string) ObjectState {
	k := namespaceKey(name)
	if rapid.IntRange(0, 4).Draw(t, "namespace gone") == 0 {
		return ObjectState{Key: k}
	}
	return ObjectState{k, &mesh.Object{Key: k, Origin: origin(id, k),
		Labels: rapid.SampledFrom([]map[string]string{nil, {"mesh": "in"}, {"mesh": "out"}}).Draw(t, "namespace labels")}}
}

func genUpdate(t *rapid.T, id mesh.ClusterID) Update {
	var u Update
	seen := map[mesh.ServiceKey]bool{}
	for range rapid.IntRange(0, 3).Draw(t, "services") {
		if s := genService(t, id); !seen[s.Key] {
			seen[s.Key] = true
			u.Services = append(u.Services, s)
		}
	}
	for _, i := range rapid.SliceOfNDistinct(rapid.IntRange(0, 3), 0, 3, rapid.ID[int]).Draw(t, "workloads") {
		w := WorkloadState{Key: fmt.Sprintf("shop/p%d", i)}
		if rapid.Bool().Draw(t, "there") {
			w.Workload = genPod(t, id, i)
			w.Health = mesh.Health(rapid.IntRange(0, 2).Draw(t, "readiness"))
		}
		u.Workloads = append(u.Workloads, w)
	}
	for _, n := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"x", "y"}), 0, 2, rapid.ID[string]).Draw(t, "objects") {
		o := object(n, "1", rapid.SampledFrom([]string{"p", "q"}).Draw(t, "selector"))
		if rapid.IntRange(0, 3).Draw(t, "gone") == 0 {
			o.Object = nil
		}
		u.Objects = append(u.Objects, o)
	}
	for _, n := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"x", "y"}), 0, 2, rapid.ID[string]).Draw(t, "entries") {
		o := rapid.OneOf(rapid.Custom(func(t *rapid.T) ObjectState { return genServiceEntry(t, id, n) }),
			rapid.Custom(func(t *rapid.T) ObjectState { return genMachine(t, id, n) })).Draw(t, "entry")
		if rapid.IntRange(0, 3).Draw(t, "gone") == 0 {
			o.Object = nil
		}
		u.Objects = append(u.Objects, o)
	}
	for _, n := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"shop", "ops"}), 0, 2, rapid.ID[string]).Draw(t, "namespaces") {
		u.Objects = append(u.Objects, genNamespace(t, id, n))
	}
	if rapid.IntRange(0, 2).Draw(t, "state") == 0 {
		u.Cluster = &ClusterState{Network: mesh.NetworkID(rapid.SampledFrom([]string{"", "n1", "n2"}).Draw(t, "network"))}
		for _, h := range rapid.SliceOfN(rapid.SampledFrom([]string{"203.0.113.1", "203.0.113.9", "lb.example", "unknown.example"}), 0, 3).Draw(t, "gateways") {
			u.Cluster.Gateways = append(u.Cluster.Gateways, mesh.NetworkGateway{Network: u.Cluster.Network, Cluster: id, Host: h, Port: 15443})
		}
	}
	return u
}

func genVisibility(t *rapid.T) *meshconfig.ServiceEntryVisibility {
	any := rapid.Map(rapid.Int32Range(0, 3), func(i int32) meshconfig.ServiceEntryVisibility_Visibility {
		return meshconfig.ServiceEntryVisibility_Visibility(i)
	})
	rule := &meshconfig.ServiceEntryVisibility_MatchRule{Matcher: &meshconfig.ServiceEntryVisibility_MatchRule_NamespaceSelector{
		NamespaceSelector: &meshconfig.LabelSelector{MatchLabels: map[string]string{"mesh": "in"}}}}
	return &meshconfig.ServiceEntryVisibility{DefaultVisibility: any.Draw(t, "default"), ApplyToSidecars: rapid.Bool().Draw(t, "sidecars"),
		Policies: []*meshconfig.ServiceEntryVisibility_Policy{{Visibility: any.Draw(t, "policy"), MatchingRules: []*meshconfig.ServiceEntryVisibility_MatchRule{rule}}}}
}

func genSettings(t *rapid.T) mesh.Settings {
	return rapid.SampledFrom([]mesh.Settings{
		{Mesh: &meshconfig.MeshConfig{TrustDomain: "td"}},
		{Mesh: &meshconfig.MeshConfig{DiscoverySelectors: []*meshconfig.LabelSelector{{MatchLabels: map[string]string{"mesh": "in"}}}}},
		{Mesh: &meshconfig.MeshConfig{DiscoverySelectors: []*meshconfig.LabelSelector{
			{MatchExpressions: []*meshconfig.LabelSelectorRequirement{{Key: "mesh", Operator: "NotIn", Values: []string{"in"}}}}}}},
		{Mesh: &meshconfig.MeshConfig{ServiceEntryVisibility: genVisibility(t)}},
		networks(map[string]*meshconfig.Network{
			"n1": {Endpoints: []*meshconfig.Network_NetworkEndpoints{fromRegistry("west"), fromCIDR("10.0.0.2/32")},
				Gateways: []*meshconfig.Network_IstioNetworkGateway{gatewayAddress("203.0.113.1", 443), gatewayService("gw.shop", 443)}},
			"n2": {Endpoints: []*meshconfig.Network_NetworkEndpoints{fromCIDR("10.0.0.0/24")}},
		}),
	}).Draw(t, "settings")
}

// step does one thing to the store and to the model.
func (w *world) step(t *rapid.T, s *Store) {
	id := rapid.SampledFrom([]mesh.ClusterID{"east", "west", "alps"}).Draw(t, "cluster")
	m := w.clusters[id]
	switch rapid.SampledFrom([]string{"apply", "apply", "apply", "replace", "rotate", "drop", "settings", "resolved"}).Draw(t, "step") {
	case "apply":
		if m.joined {
			u := genUpdate(t, id)
			m.sink.Apply(u)
			m.apply(u, false)
		}
	case "replace", "rotate":
		if m.sink == nil || rapid.Bool().Draw(t, "new sink") {
			m.sink = s.NewSink(id)
		}
		u := genUpdate(t, id)
		m.sink.Replace(u)
		m.apply(u, true)
		m.joined = true
	case "drop":
		if m.joined {
			m.sink.Close(Drop)
			w.clusters[id] = &clusterModel{}
		}
	case "settings":
		w.settings = genSettings(t)
		s.SetSettings(w.settings)
	case "resolved":
		addrs := rapid.SliceOfN(rapid.SampledFrom([]netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::1")}), 0, 2).Draw(t, "addrs")
		s.SetResolved("lb.example", addrs)
		if len(addrs) > 0 {
			w.resolved["lb.example"] = addrs
		}
	}
}

// follower knows a store by its feed alone.
type follower struct {
	t         require.TestingT
	services  map[mesh.ServiceKey]*mesh.Service
	endpoints map[mesh.ServiceKey]*EndpointSet
	revision  uint64
	merged    Change
}

func (f *follower) take(store *Store, c Change) {
	require.False(f.t, c.Empty(), "an empty change was published")
	require.Equal(f.t, f.revision+1, c.Revision, "revisions without gaps")
	require.Equal(f.t, c.Revision, store.Catalog().Revision, "the catalog is there when the change is told")
	f.revision = c.Revision
	for k, ch := range c.Services {
		require.NotZero(f.t, ch.Aspects)
		require.Same(f.t, f.services[k], ch.Before, "before of %s", k)
		require.Equal(f.t, ch.After != ch.Before, ch.Aspects.Has(AspectDefinition))
		require.Equal(f.t, ch.EndpointsAfter != ch.EndpointsBefore, ch.Aspects.Has(AspectEndpoints))
		require.Same(f.t, ch.After, store.Catalog().Service(k))
		if had := f.endpoints[k]; had != nil {
			require.Same(f.t, had, ch.EndpointsBefore)
		} else {
			require.Zero(f.t, ch.EndpointsBefore.Len())
		}
		f.services[k], f.endpoints[k] = ch.After, ch.EndpointsAfter
		if ch.After == nil {
			delete(f.services, k)
			delete(f.endpoints, k)
		}
	}
	f.merged.Merge(c)
}

// After any steps the store equals one that was built of the newest states
// alone, its indexes equal a rebuild, and who followed the feed knows it all.
func TestStoreIsAFunctionOfTheNewestStates(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, w := NewStore(Config{Primary: primary}), newWorld()
		f := &follower{t: t, services: map[mesh.ServiceKey]*mesh.Service{}, endpoints: map[mesh.ServiceKey]*EndpointSet{}}
		s.OnChange(func(c Change) { f.take(s, c) })
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			w.step(t, s)
			require.Equal(t, look(w.rebuild()), look(s))
		}
		require.Len(t, f.services, s.Catalog().Len())
		for k, svc := range f.services {
			require.Same(t, s.Catalog().Service(k), svc)
			if known := f.endpoints[k]; known != nil {
				require.Same(t, s.Endpoints(k), known)
			} else {
				require.Zero(t, s.Endpoints(k).Len())
			}
		}
		again := *s.Catalog()
		again.index()
		require.Equal(t, again.byPort, s.Catalog().byPort)
		require.Equal(t, again.bySpace, s.Catalog().bySpace)
	})
}

// Saying the same again, in another order or through a new source instance,
// publishes nothing.
func TestSayingTheSameAgainPublishesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, w := NewStore(Config{Primary: primary}), newWorld()
		for range rapid.IntRange(1, 8).Draw(t, "steps") {
			w.step(t, s)
		}
		before, seen := s.Catalog().Revision, record(s)
		for id, m := range w.clusters {
			if !m.joined {
				continue
			}
			u := m.update()
			for i := range u.Services { // a new instance has new pointers and its own order
				d := *u.Services[i].Definition
				u.Services[i].Definition = &d
				eps := slices.Clone(u.Services[i].Endpoints)
				slices.Reverse(eps)
				for j := range eps {
					p := *eps[j].Workload
					eps[j].Workload = &p
				}
				u.Services[i].Endpoints = eps
			}
			state := m.state
			state.Gateways = slices.Clone(state.Gateways)
			slices.Reverse(state.Gateways)
			u.Cluster = &state
			m.sink.Replace(u)
			m.sink.Apply(u)
			s.NewSink(id).Replace(u)
		}
		s.SetSettings(w.settings)
		require.Empty(t, seen.list)
		require.Equal(t, before, s.Catalog().Revision)
	})
}

// However a feed is cut, what the pieces merge to is the same, and it spans
// from the catalog before to the catalog after.
func TestChangeMergeDoesNotDependOnTheCut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, w := NewStore(Config{Primary: primary, Clock: ticking()}), newWorld()
		seen := record(s)
		for range rapid.IntRange(2, 10).Draw(t, "steps") {
			w.step(t, s)
		}
		all := seen.list
		var whole Change
		for _, c := range all {
			whole.Merge(c)
		}
		cut := rapid.IntRange(0, len(all)).Draw(t, "cut")
		var left, right Change
		for _, c := range all[:cut] {
			left.Merge(c)
		}
		for _, c := range all[cut:] {
			right.Merge(c)
		}
		left.Merge(right)
		require.Equal(t, whole, left)
		for k, ch := range whole.Services {
			require.Nil(t, ch.Before, "everything began with an empty store")
			require.Zero(t, ch.EndpointsBefore.Len())
			require.Same(t, s.Catalog().Service(k), ch.After)
		}
		if len(all) > 0 {
			require.Equal(t, all[0].Since, whole.Since)
			require.Equal(t, s.Catalog().Revision, whole.Revision)
		}
	})
}

func ticking() func() time.Time {
	at := time.Unix(1000, 0)
	return func() time.Time {
		at = at.Add(time.Second)
		return at
	}
}
