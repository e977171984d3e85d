package registry

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/isthmus-mesh/isthmus/mesh"
)

func hostPod(id mesh.ClusterID, namespace, name string, host bool, addrs ...netip.Addr) WorkloadState {
	return WorkloadState{Key: namespace + "/" + name,
		Workload: &mesh.Workload{Cluster: id, Namespace: namespace, Name: name, HostNetwork: host, Addresses: addrs}}
}

func nameOf(w *mesh.Workload) string {
	if w == nil {
		return ""
	}
	return fmt.Sprint(w.Cluster, "/", w.Namespace, "/", w.Name)
}

// TestWorkloadOf: the name decides among those with the address, in the proxy's
// own cluster only.
func TestWorkloadOf(t *testing.T) {
	s := NewStore(Config{Primary: "east"})
	node, own, shared := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	s.NewSink("east").Replace(Update{Workloads: []WorkloadState{
		hostPod("east", "a", "agent", true, node), hostPod("east", "shop", "web.v1-0", true, node), hostPod("east", "shop", "db", false, own),
		hostPod("east", "a", "agent2", true, shared), hostPod("east", "z", "own", false, shared)}})
	s.NewSink("west").Replace(Update{Workloads: []WorkloadState{hostPod("west", "shop", "db2", false, own)}})
	for _, c := range []struct {
		id              mesh.ClusterID
		addr            netip.Addr
		namespace, name string
		want            string
	}{
		{"east", node, "shop", "web.v1-0", "east/shop/web.v1-0"},
		{"east", node, "a", "agent", "east/a/agent"},
		{"east", node, "shop", "agent", ""}, // neither of them
		{"east", node, "shop", "not-known-yet", ""},
		{"east", own, "shop", "db", "east/shop/db"},
		{"east", own, "x", "envoy", "east/shop/db"},
		{"west", own, "shop", "db", "west/shop/db2"},
		{"east", shared, "x", "envoy", "east/z/own"},
		{"east", shared, "a", "agent2", "east/a/agent2"},
		{"south", own, "shop", "db", ""},
	} {
		require.Equal(t, c.want, nameOf(s.WorkloadOf(c.id, []netip.Addr{c.addr}, c.namespace, c.name)), "%+v", c)
	}
	second := []netip.Addr{own, node}
	require.Equal(t, "east/a/agent", nameOf(s.WorkloadOf("east", second, "a", "agent")), "a name at any address goes before an address")
}

// TestWorkloadOfIsExact: whatever came and went, a pod that is there is found by
// its name and address, and never another for it.
func TestWorkloadOfIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := NewStore(Config{Primary: "east"})
		sink := s.NewSink("east")
		sink.Replace(Update{})
		nodes := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")}
		there := map[string]netip.Addr{}
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			name := rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "name")
			if rapid.Bool().Draw(t, "goes") {
				delete(there, name)
				sink.Apply(Update{Workloads: []WorkloadState{{Key: "shop/" + name}}})
				continue
			}
			there[name] = rapid.SampledFrom(nodes).Draw(t, "node")
			sink.Apply(Update{Workloads: []WorkloadState{hostPod("east", "shop", name, true, there[name])}})
		}
		for _, name := range []string{"a", "b", "c", "d"} {
			for _, n := range nodes {
				got := s.WorkloadOf("east", []netip.Addr{n}, "shop", name)
				if there[name] == n {
					require.Equal(t, "east/shop/"+name, nameOf(got))
				} else if got != nil {
					// The only pod of the node stands for a proxy of any name.
					require.Equal(t, n, there[got.Name])
					for other, at := range there {
						require.False(t, at == n && other != got.Name, "%s for %s beside %s", got.Name, name, other)
					}
				}
			}
		}
	})
}
