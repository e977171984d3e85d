package registry

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// bigStates makes the services of one cluster: n services of ten pods.
func bigStates(id mesh.ClusterID, n int) []ServiceState {
	out := make([]ServiceState, n)
	for i := range out {
		k := mesh.ServiceKey{Namespace: fmt.Sprint("ns", i%50), Hostname: mesh.Hostname(fmt.Sprintf("svc%d.ns%d.svc.cluster.local", i, i%50))}
		st := ServiceState{Key: k, Definition: definition(id, k, "http:80/HTTP", "grpc:90/GRPC")}
		net := byte(10)
		if id != primary {
			net = 11
		}
		for j := range 10 {
			w := pod(id, fmt.Sprintf("svc%d-%d", i, j), "10.0.0.1")
			w.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{net, byte(i >> 8), byte(i), byte(j)})}
			w.Identity.ServiceAccount = fmt.Sprint("svc", i)
			w.Labels = map[string]string{"app": fmt.Sprint("svc", i), "version": "v1"}
			st.Endpoints = append(st.Endpoints, endpoint("grpc", w), endpoint("http", w))
		}
		st.Endpoints = sortedEndpoints(st.Endpoints)
		out[i] = st
	}
	return out
}

func bigStore(n int) (*Store, Sink, []ServiceState) {
	s := NewStore(Config{Primary: primary})
	states := bigStates(primary, n)
	east := s.NewSink(primary)
	east.Replace(Update{Services: states, Cluster: &ClusterState{Network: "n1"}})
	s.NewSink("west").Replace(Update{Services: bigStates("west", n), Cluster: &ClusterState{Network: "n2"}})
	return s, east, states
}

// One pod of one service goes and comes. The cost must not depend on how many
// services there are.
func BenchmarkOneEndpointChange(b *testing.B) {
	for _, n := range []int{100, 1000, 10000} {
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			s, sink, states := bigStore(n)
			s.OnChange(func(Change) {})
			more := states[n/2]
			less := more
			less.Endpoints = append(append([]mesh.Endpoint(nil), more.Endpoints[:4]...), more.Endpoints[5:]...)
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				st := more
				if i%2 == 0 {
					st = less
				}
				sink.Apply(Update{Services: []ServiceState{st}})
			}
		})
	}
}

// One service changes a port.
func BenchmarkOneDefinitionChange(b *testing.B) {
	for _, n := range []int{100, 1000, 10000} {
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			s, sink, states := bigStore(n)
			s.OnChange(func(Change) {})
			one := states[n/2]
			other := one
			other.Definition = definition(primary, one.Key, "http:80/HTTP", "grpc:91/GRPC")
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				st := one
				if i%2 == 0 {
					st = other
				}
				sink.Apply(Update{Services: []ServiceState{st}})
			}
		})
	}
}

// A relist of a cluster in which nothing changed, with new pointers throughout.
func BenchmarkReplaceUnchanged(b *testing.B) {
	s, _, _ := bigStore(10000)
	again := Update{Services: bigStates(primary, 10000), Cluster: &ClusterState{Network: "n1"}}
	seen := record(s)
	b.ReportAllocs()
	for b.Loop() {
		s.NewSink(primary).Replace(again)
	}
	if len(seen.list) > 0 {
		b.Fatal("a replacement of equal content published a change")
	}
}

// A cluster of 10,000 services and 200,000 endpoints joins an empty store.
func BenchmarkReplaceFirst(b *testing.B) {
	states := bigStates(primary, 10000)
	b.ReportAllocs()
	for b.Loop() {
		NewStore(Config{Primary: primary}).NewSink(primary).Replace(Update{Services: states})
	}
}

func BenchmarkReadEndpoints(b *testing.B) {
	s, _, states := bigStore(1000)
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		if s.Endpoints(states[i%1000].Key).Len() == 0 {
			b.Fatal("no endpoints")
		}
	}
}
