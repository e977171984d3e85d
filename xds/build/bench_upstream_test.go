package build

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// benchLab is one service of n endpoints, half of them on the other network
// behind a gateway if remote is set.
func benchLab(tb testing.TB, n int, remote bool) (Inputs, View, string) {
	tb.Helper()
	l := newLab(nil, "c2")
	l.sinks["c1"].Apply(registry.Update{Cluster: &registry.ClusterState{Network: "n1"}})
	l.sinks["c2"].Apply(registry.Update{Cluster: &registry.ClusterState{Network: "n2", Gateways: []mesh.NetworkGateway{
		{Network: "n2", Cluster: "c2", Host: "203.0.113.1", Port: 15443}}}})
	ports := labPorts(labPort("http", 80, mesh.ProtocolHTTP))
	for _, id := range []mesh.ClusterID{"c1", "c2"} {
		st := labService("web", "shop", ports, []string{"10.96.0.1"})
		if id == "c2" && !remote {
			continue
		}
		count := n
		if remote {
			count = n / 2
		}
		for i := range count {
			addr := netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})
			w := &mesh.Workload{Cluster: id, Namespace: "shop", Name: fmt.Sprintf("web-v1-74lqqpjbt-%05d", i), WorkloadName: "web-v1", Kind: "Pod",
				Addresses: []netip.Addr{addr}, Locality: mesh.Locality{Region: "region1", Zone: fmt.Sprintf("zone%d", i%3)}, MTLS: true, Node: "node-1",
				Identity: mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"},
				Labels: map[string]string{"app": "web", "version": "v1", "pod-template-hash": "74lqqpjbt", "security.istio.io/tlsMode": "istio",
					"service.istio.io/canonical-name": "web", "service.istio.io/canonical-revision": "v1"}}
			st.Endpoints = append(st.Endpoints, mesh.Endpoint{Addr: addr, Port: 8080, PortName: "http", Health: mesh.HealthReady, Workload: w})
		}
		l.services(id, st)
	}
	v := labSidecar(func(v *View) { v.Network = "n1" })
	return l.in(), v, "outbound|80||web.shop.svc.cluster.local"
}

func benchSizes(b *testing.B, f func(b *testing.B, in Inputs, v View, name string)) {
	for _, n := range []int{10, 100, 1000} {
		for _, remote := range []bool{false, true} {
			b.Run(fmt.Sprintf("endpoints=%d/behind-gateway=%t", n, remote), func(b *testing.B) {
				in, v, name := benchLab(b, n, remote)
				b.ReportAllocs()
				f(b, in, v, name)
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/endpoint")
			})
		}
	}
}

// BenchmarkAssignmentStruct is the readable path: the message, then its bytes.
func BenchmarkAssignmentStruct(b *testing.B) {
	benchSizes(b, func(b *testing.B, in Inputs, v View, name string) {
		for b.Loop() {
			m, err := Assignments{}.Build(in, v, name)
			require.NoError(b, err)
			_, err = deterministic().Marshal(m)
			require.NoError(b, err)
		}
	})
}

// BenchmarkAssignmentEncode is the direct path.
func BenchmarkAssignmentEncode(b *testing.B) {
	benchSizes(b, func(b *testing.B, in Inputs, v View, name string) {
		var buf []byte
		for b.Loop() {
			var ok bool
			var err error
			if buf, ok, err = (Assignments{}).Encode(in, v, name, buf[:0]); err != nil || !ok {
				b.Fatal(ok, err)
			}
		}
	})
}

// BenchmarkUpstream is one upstream with its bytes.
func BenchmarkUpstream(b *testing.B) {
	in, v, name := benchLab(b, 10, true)
	b.ReportAllocs()
	for b.Loop() {
		m, err := Upstreams{}.Build(in, v, name)
		require.NoError(b, err)
		_, err = deterministic().Marshal(m)
		require.NoError(b, err)
	}
}

// BenchmarkUpstreamList lists the upstreams of 1,000 services.
func BenchmarkUpstreamList(b *testing.B) {
	l := newLab(nil)
	for i := range 1000 {
		l.services("c1", labService(fmt.Sprintf("web-%d", i), "shop", labPorts(labPort("http", 80, mesh.ProtocolHTTP)), []string{"10.96.0.1"}))
	}
	in, v := l.in(), labSidecar()
	b.ReportAllocs()
	for b.Loop() {
		if len((Upstreams{}).List(in, v)) < 1000 {
			b.Fatal("short list")
		}
	}
}
