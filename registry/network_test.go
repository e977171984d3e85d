package registry

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

func TestNetworkOfAnEndpoint(t *testing.T) {
	rules := parseNetworkRules(primary, &meshconfig.MeshNetworks{Networks: map[string]*meshconfig.Network{
		"by-registry": {Endpoints: []*meshconfig.Network_NetworkEndpoints{fromRegistry("west")}},
		"z-registry":  {Endpoints: []*meshconfig.Network_NetworkEndpoints{fromRegistry("west")}},
		"wide":        {Endpoints: []*meshconfig.Network_NetworkEndpoints{fromCIDR("10.0.0.0/8"), fromCIDR("nonsense")}},
		"narrow":      {Endpoints: []*meshconfig.Network_NetworkEndpoints{fromCIDR("10.1.0.9/16")}},
	}})
	tests := []struct {
		name, cluster, clusterNetwork, label, kind, addr, want string
	}{
		{"the pod's label", "west", "of-cluster", "of-pod", "Pod", "10.1.0.1", "of-pod"},
		{"the cluster's network", "west", "of-cluster", "", "Pod", "10.1.0.1", "of-cluster"},
		{"meshNetworks by registry, first by name", "west", "", "", "Pod", "10.1.0.1", "by-registry"},
		{"the longest CIDR, written unmasked", "east", "", "", "Pod", "10.1.0.1", "narrow"},
		{"a shorter CIDR", "east", "", "", "Pod", "10.2.0.1", "wide"},
		{"an IPv4 address in IPv6 form", "east", "", "", "Pod", "::ffff:10.2.0.1", "wide"},
		{"no CIDR for a WorkloadEntry", "east", "", "", "WorkloadEntry", "10.1.0.1", ""},
		{"a label for a WorkloadEntry", "east", "", "of-entry", "WorkloadEntry", "10.1.0.1", "of-entry"},
		{"unknown", "east", "", "", "Pod", "192.0.2.1", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := mesh.Endpoint{Addr: netip.MustParseAddr(tt.addr), Workload: &mesh.Workload{Kind: tt.kind, NetworkLabel: mesh.NetworkID(tt.label)}}
			require.Equal(t, mesh.NetworkID(tt.want), rules.of(mesh.ClusterID(tt.cluster), mesh.NetworkID(tt.clusterNetwork), e))
		})
	}
}

func TestNewNetworkReachesTheEndpoints(t *testing.T) {
	s := NewStore(Config{Primary: primary})
	sink := s.NewSink("west")
	sink.Replace(Update{Services: []ServiceState{service("west", key("a"), "http:80/HTTP", pod("west", "a1", "10.0.0.1"))}})
	network := func() mesh.NetworkID { return s.Endpoints(key("a")).Port("http")[0].Network }
	require.Empty(t, network())

	s.SetSettings(networks(map[string]*meshconfig.Network{"n1": {Endpoints: []*meshconfig.Network_NetworkEndpoints{fromRegistry("west")}}}))
	require.Equal(t, mesh.NetworkID("n1"), network())
	sink.Apply(Update{Cluster: &ClusterState{Network: "n2"}})
	require.Equal(t, mesh.NetworkID("n2"), network())
	sink.Apply(Update{Cluster: &ClusterState{}})
	require.Equal(t, mesh.NetworkID("n1"), network())
}

func gw(network, cluster, host string, port uint16) mesh.NetworkGateway {
	return mesh.NetworkGateway{Network: mesh.NetworkID(network), Cluster: mesh.ClusterID(cluster), Host: host, Port: port}
}

func addresses(list []mesh.NetworkGateway) []string {
	out := []string{}
	for _, g := range list {
		out = append(out, fmt.Sprintf("%s:%d", g.Addr, g.Port))
	}
	return out
}

func TestGateways(t *testing.T) {
	s := NewStore(Config{Primary: primary})
	s.NewSink("west").Replace(Update{Cluster: &ClusterState{Network: "n1", Gateways: []mesh.NetworkGateway{
		gw("n1", "west", "lb.example", 15443), gw("n1", "west", "203.0.113.1", 15443)}}})
	s.NewSink("alps").Replace(Update{Cluster: &ClusterState{Network: "n1", Gateways: []mesh.NetworkGateway{
		gw("n1", "alps", "pending.example", 15443)}}})
	c := s.Catalog()
	require.Len(t, c.Gateways("n1"), 3, "all are listed")
	require.Equal(t, []string{"203.0.113.1:15443"}, addresses(c.GatewaysFor("n1", "west")))
	require.Equal(t, []string{"203.0.113.1:15443"}, addresses(c.GatewaysFor("n1", "alps")), "a gateway without address does not stand in the way")
	require.Equal(t, uint32(1), c.WeightScale())

	seen := record(s)
	s.SetResolved("nobody.example", []netip.Addr{netip.MustParseAddr("203.0.113.9")})
	require.Empty(t, seen.take(), "a name that no gateway has")
	s.SetResolved("lb.example", []netip.Addr{netip.MustParseAddr("203.0.113.3"), netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("203.0.113.3")})
	got := seen.take()
	require.Len(t, got, 1)
	require.Equal(t, ScopeNetworks, got[0].Scope)
	s.SetResolved("lb.example", nil)
	require.Empty(t, seen.take(), "no answer takes nothing away")
	require.Equal(t, []string{"203.0.113.1:15443", "203.0.113.2:15443", "203.0.113.3:15443"}, addresses(s.Catalog().GatewaysFor("n1", "west")))
	require.Equal(t, uint32(3), s.Catalog().WeightScale())

	s.SetResolved("lb.example", []netip.Addr{netip.MustParseAddr("203.0.113.1")})
	require.Equal(t, []string{"203.0.113.1:15443"}, addresses(s.Catalog().GatewaysFor("n1", "west")), "two names of one address are dialled once")
	require.Len(t, s.Catalog().Gateways("n1"), 3)
}

func TestGatewaysOfMeshNetworks(t *testing.T) {
	s := NewStore(Config{Primary: primary})
	s.SetSettings(networks(map[string]*meshconfig.Network{"n1": {
		Endpoints: []*meshconfig.Network_NetworkEndpoints{fromRegistry("west"), fromRegistry("absent")},
		Gateways: []*meshconfig.Network_IstioNetworkGateway{
			gatewayAddress("203.0.113.61", 443), gatewayService(string(key("gw").Hostname), 15443)},
	}}))
	require.Equal(t, []string{"203.0.113.61:443"}, addresses(s.Catalog().GatewaysFor("n1", "west")), "an address belongs to no cluster")

	seen := record(s)
	st := service("west", key("gw"), "tls:15443/TLS")
	st.Definition.External = []string{"203.0.113.7"}
	sink := s.NewSink("west")
	sink.Replace(Update{Services: []ServiceState{st}})
	require.Equal(t, ScopeClusters|ScopeNetworks, seen.take()[0].Scope)
	require.Equal(t, []string{"203.0.113.7:15443"}, addresses(s.Catalog().GatewaysFor("n1", "west")), "a cluster's own come first")
	require.Equal(t, []string{"203.0.113.7:15443", "203.0.113.61:443"}, addresses(s.Catalog().GatewaysFor("n1", "alps")))

	st.Endpoints = []mesh.Endpoint{endpoint("tls", pod("west", "gw", "10.0.0.1"))}
	sink.Apply(Update{Services: []ServiceState{st}})
	require.Zero(t, seen.take()[0].Scope, "endpoints of the gateway's Service change no gateway")
	sink.Apply(Update{Services: []ServiceState{{Key: st.Key}}})
	require.Equal(t, ScopeNetworks, seen.take()[0].Scope)
	require.Equal(t, []string{"203.0.113.61:443"}, addresses(s.Catalog().Gateways("n1")))
}

func TestWeightScale(t *testing.T) {
	set := func(counts ...int) []mesh.NetworkGateway {
		var out []mesh.NetworkGateway
		for cluster, n := range counts {
			for i := range n {
				g := gw("n", fmt.Sprint("c", cluster), "", 15443)
				g.Addr = netip.AddrFrom4([4]byte{10, 0, byte(cluster), byte(i)})
				out = append(out, g)
			}
		}
		return out
	}
	require.Equal(t, uint32(1), newGatewaySet(nil).scale)
	require.Equal(t, uint32(6), newGatewaySet(set(1, 2)).scale, "1, 2 and both together")
	require.Equal(t, uint32(30), newGatewaySet(set(2, 3)).scale)
	require.Equal(t, uint32(maxWeightScale), newGatewaySet(set(11, 13, 17, 19, 23)).scale, "bounded")
	dual := set(3)
	for i := range 2 {
		g := gw("n", "c0", "", 15443)
		g.Addr = netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", i+1))
		dual = append(dual, g)
	}
	require.Equal(t, uint32(30), newGatewaySet(dual).scale, "5 in all, 3 by IPv4, 2 by IPv6")
	none := gw("n", "c0", "pending.example", 15443)
	hbone := gw("n", "c0", "10.9.9.9", 0)
	hbone.Addr = netip.MustParseAddr("10.9.9.9")
	require.Equal(t, uint32(2), newGatewaySet(append(set(2), none, hbone)).scale, "what cannot be dialled does not count")
}
