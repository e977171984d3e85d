package registry

import (
	"net/netip"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

func TestSupersededSinkIsInert(t *testing.T) {
	s := NewStore(Config{Primary: primary})
	slow, old, next := s.NewSink("west"), s.NewSink("west"), s.NewSink("west")
	a := service("west", key("a"), "http:80/HTTP", pod("west", "a1", "10.0.0.1"))
	b := service("west", key("b"), "http:80/HTTP")

	old.Apply(Update{Services: []ServiceState{a}})
	require.Zero(t, s.Catalog().Revision, "Apply before the first Replace has no effect")
	old.Replace(Update{Services: []ServiceState{a}})
	next.Replace(Update{Services: []ServiceState{a, b}})

	seen := record(s)
	old.Apply(Update{Services: []ServiceState{{Key: key("a")}}})
	old.Replace(Update{})
	old.Close(Drop)
	slow.Replace(Update{}) // made before all others, and late: it never owned the cluster
	slow.Close(Drop)
	require.Empty(t, seen.take())
	require.Equal(t, 2, s.Catalog().Len())
	require.Equal(t, 1, s.Endpoints(key("a")).Len())

	next.Apply(Update{Services: []ServiceState{{Key: key("b")}}})
	require.Len(t, seen.take(), 1)
	next.Close(Drop)
	require.Len(t, seen.take(), 1)
	slow.Replace(Update{Services: []ServiceState{a}})
	require.Empty(t, seen.take(), "a cluster that left does not come back through an older sink")
	require.Zero(t, s.Catalog().Len())

	s.NewSink("west").Replace(Update{Services: []ServiceState{a}})
	require.Len(t, seen.take(), 1, "it does through a newer one")
}

func TestCloseKeepsOrDrops(t *testing.T) {
	s := NewStore(Config{Primary: primary})
	sink := s.NewSink("west")
	sink.Replace(Update{
		Services:  []ServiceState{service("west", key("a"), "http:80/HTTP", pod("west", "a1", "10.0.0.1"))},
		Workloads: []WorkloadState{{Key: "shop/a1", Workload: pod("west", "a1", "10.0.0.1")}},
		Cluster: &ClusterState{Network: "n1", Gateways: []mesh.NetworkGateway{
			{Network: "n1", Cluster: "west", Host: "203.0.113.1", Port: 15443}}},
	})
	before, seen := look(s), record(s)

	sink.Close(Keep)
	sink.Apply(Update{Services: []ServiceState{{Key: key("a")}}})
	sink.Replace(Update{})
	require.Empty(t, seen.take())
	require.Equal(t, before, look(s), "an outage takes nothing away")

	sink.Close(Drop)
	require.Equal(t, look(NewStore(Config{Primary: primary})), look(s))
	got := seen.take()
	require.Len(t, got, 1, "one cluster that leaves is one change")
	require.Equal(t, ScopeClusters|ScopeNetworks, got[0].Scope)
	require.Contains(t, got[0].Workloads, WorkloadKey{"west", netip.MustParseAddr("10.0.0.1")})
	sink.Close(Drop)
	require.Empty(t, seen.take())
}

// A replacement that does not know the cluster's state yet does not reset it.
func TestUnknownClusterStateIsNotEmpty(t *testing.T) {
	s := NewStore(Config{Primary: primary})
	s.NewSink("west").Replace(Update{Cluster: &ClusterState{Network: "n1", TrustDomain: "td"}})
	s.NewSink("west").Replace(Update{})
	c, ok := s.Catalog().Cluster("west")
	require.True(t, ok)
	require.Equal(t, Cluster{ID: "west", Network: "n1", TrustDomain: "td"}, c)
}

func TestAspectsAndScopes(t *testing.T) {
	s := NewStore(Config{Primary: primary})
	sink := s.NewSink("east")
	w := pod("east", "a1", "10.0.0.1")
	sink.Replace(Update{Services: []ServiceState{service("east", key("a"), "http:80/HTTP", w)}})
	seen := record(s)
	aspects := func(u Update) (Aspect, Scope, bool) {
		sink.Apply(u)
		list := seen.take()
		require.Len(t, list, 1)
		return list[0].Services[key("a")].Aspects, list[0].Scope, list[0].Definitions()
	}
	other := pod("east", "a1", "10.0.0.2")
	a, scope, defs := aspects(Update{Services: []ServiceState{service("east", key("a"), "http:80/HTTP", other)}})
	require.Equal(t, AspectEndpoints, a, "the same account behind another address")
	require.Zero(t, scope)
	require.False(t, defs)

	a, _, defs = aspects(Update{Services: []ServiceState{service("east", key("a"), "http:80/HTTP", other, pod("east", "a2", "10.0.0.3"))}})
	require.Equal(t, AspectEndpoints|AspectIdentities, a)
	require.True(t, defs)

	a, _, _ = aspects(Update{Services: []ServiceState{service("east", key("a"), "http:81/HTTP", other, pod("east", "a2", "10.0.0.3"))}})
	require.Equal(t, AspectDefinition, a)

	a, _, _ = aspects(Update{Services: []ServiceState{{Key: key("a")}}})
	require.Equal(t, AspectDefinition|AspectEndpoints|AspectIdentities, a)

	_, scope, _ = aspects(Update{Cluster: &ClusterState{TrustDomain: "td"}})
	require.Equal(t, ScopeClusters, scope)
	_, scope, _ = aspects(Update{Cluster: &ClusterState{TrustDomain: "td", Network: "n"}})
	require.Equal(t, ScopeNetworks, scope)
	s.SetSettings(mesh.Settings{Mesh: &meshconfig.MeshConfig{TrustDomain: "x"}})
	require.Equal(t, ScopeSettings, seen.take()[0].Scope)
}

func TestObjectsOfThePrimaryCountByContent(t *testing.T) {
	s := NewStore(Config{Primary: primary})
	east, west := s.NewSink("east"), s.NewSink("west")
	east.Replace(Update{Objects: []ObjectState{object("a", "1", "x")}})
	seen := record(s)
	west.Replace(Update{Objects: []ObjectState{object("b", "1", "x")}})
	for _, c := range seen.take() {
		require.Empty(t, c.Objects)
	}
	require.Len(t, s.Catalog().Objects(mesh.KindGateway), 1, "only the primary's configuration counts")

	east.Apply(Update{Objects: []ObjectState{object("a", "2", "x")}})
	require.Empty(t, seen.take(), "a new version of the same content (a status) is no change")
	east.Apply(Update{Objects: []ObjectState{object("a", "2", "y")}})
	require.Len(t, seen.take(), 1, "new content under a version seen before (a restored server) is one")
	east.Close(Drop)
	require.Empty(t, s.Catalog().Objects(mesh.KindGateway))
}

func TestWorkloadsThatShareAnAddress(t *testing.T) {
	addr := WorkloadKey{"east", netip.MustParseAddr("10.0.0.1")}
	host1, host2, own := pod("east", "h1", "10.0.0.1"), pod("east", "h2", "10.0.0.1"), pod("east", "z", "10.0.0.1")
	host1.HostNetwork, host2.HostNetwork = true, true
	states := []WorkloadState{{Key: "shop/h1", Workload: host1}, {Key: "shop/h2", Workload: host2}, {Key: "shop/z", Workload: own}}
	for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 2, 0}} {
		s := NewStore(Config{Primary: primary})
		sink := s.NewSink("east")
		sink.Replace(Update{})
		for _, i := range order {
			sink.Apply(Update{Workloads: []WorkloadState{states[i]}})
		}
		require.Same(t, own, s.Workload(addr), "one with an address of its own comes first")
		sink.Apply(Update{Workloads: []WorkloadState{{Key: "shop/z"}}})
		require.Same(t, host1, s.Workload(addr))
		sink.Apply(Update{Workloads: []WorkloadState{{Key: "shop/h1"}}})
		require.Same(t, host2, s.Workload(addr))
		sink.Apply(Update{Workloads: []WorkloadState{{Key: "shop/h2"}}})
		require.Nil(t, s.Workload(addr))
	}
}

func TestEndpointsOfAllClustersByPort(t *testing.T) {
	s := NewStore(Config{Primary: primary})
	for _, id := range []mesh.ClusterID{"west", "east"} {
		st := service(id, key("a"), "http:80/HTTP", pod(id, "p2", "10.0.0.2"), pod(id, "p1", "10.0.0.1"), pod(id, "p1", "10.0.0.1"))
		st.Endpoints = append(st.Endpoints, endpoint("admin", pod(id, "p1", "10.0.0.1")))
		given := append([]mesh.Endpoint(nil), st.Endpoints...)
		s.NewSink(id).Replace(Update{Services: []ServiceState{st}})
		require.Equal(t, given, st.Endpoints, "the source's list is left alone")
	}
	set := s.Endpoints(key("a"))
	require.Equal(t, 6, set.Len(), "exact repetitions count once")
	var got []string
	for _, e := range set.Port("http") {
		got = append(got, string(e.Workload.Cluster)+" "+e.Addr.String())
	}
	require.Equal(t, []string{"east 10.0.0.1", "east 10.0.0.2", "west 10.0.0.1", "west 10.0.0.2"}, got)
	require.Len(t, set.Port("admin"), 2)
	require.Empty(t, set.Port("none"))
	require.Len(t, set.Identities(), 2)
	require.Zero(t, s.Endpoints(key("none")).Len())
}

func TestCancelledListenerHearsNothing(t *testing.T) {
	s := NewStore(Config{Primary: primary})
	n := 0
	cancel := s.OnChange(func(Change) { n++ })
	s.NewSink("east").Replace(Update{})
	cancel()
	s.NewSink("west").Replace(Update{})
	require.Equal(t, 1, n)
}

// Many services in one update take another path than one after the other.
func TestBulkEqualsOneByOne(t *testing.T) {
	states := bigStates(primary, 2*bulk)
	whole, single := NewStore(Config{Primary: primary}), NewStore(Config{Primary: primary})
	a, b := whole.NewSink(primary), single.NewSink(primary)
	a.Replace(Update{Services: states})
	b.Replace(Update{})
	for _, st := range states {
		b.Apply(Update{Services: []ServiceState{st}})
	}
	require.Equal(t, look(whole), look(single))
	require.Len(t, whole.Catalog().OnPort(80), 2*bulk)

	kept := states[:bulk/2]
	a.Replace(Update{Services: kept})
	for _, st := range states[bulk/2:] {
		b.Apply(Update{Services: []ServiceState{{Key: st.Key}}})
	}
	require.Equal(t, look(whole), look(single))
	require.Len(t, single.Catalog().InNamespace("ns7"), 1)
}

// One endpoint change must not cost more the more services there are.
func TestCostOfAnEndpointChangeDoesNotGrow(t *testing.T) {
	cost := func(n int) float64 {
		s, sink, states := bigStore(n)
		s.OnChange(func(Change) {})
		more, less := states[n/2], states[n/2]
		less.Endpoints = more.Endpoints[1:]
		return testing.AllocsPerRun(20, func() {
			sink.Apply(Update{Services: []ServiceState{less}})
			sink.Apply(Update{Services: []ServiceState{more}})
		})
	}
	require.InDelta(t, cost(50), cost(2000), 2)
}

func TestReadersBesideWriters(t *testing.T) {
	s, states := NewStore(Config{Primary: primary}), bigStates(primary, 20)
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for last := uint64(0); ; {
				select {
				case <-done:
					return
				default:
				}
				c := s.Catalog()
				if c.Revision < last {
					t.Error("the catalog went back in time")
				}
				last = c.Revision
				for svc := range c.Services() {
					for e := range s.Endpoints(svc.Key).All() {
						_ = e.Workload.Identity
					}
				}
				_ = s.Workload(WorkloadKey{primary, netip.MustParseAddr("10.0.0.1")})
			}
		})
	}
	for i := range 50 {
		sink := s.NewSink(primary)
		sink.Replace(Update{Services: states[:10+i%10], Workloads: []WorkloadState{{Key: "shop/a", Workload: pod(primary, "a", "10.0.0.1")}}})
		sink.Apply(Update{Services: states[i%20:]})
		if i%5 == 0 {
			sink.Close(Drop)
		}
	}
	close(done)
	wg.Wait()
}
