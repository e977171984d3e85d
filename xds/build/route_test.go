package build

import (
	"fmt"
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// domains lists each virtual host with its domains, "name: a b c".
func domains(m proto.Message) []string {
	var out []string
	for _, h := range m.(*routev3.RouteConfiguration).GetVirtualHosts() {
		out = append(out, h.GetName()+": "+strings.Join(h.GetDomains(), " "))
	}
	return out
}

func web(p ...mesh.Port) []mesh.Port {
	if len(p) == 0 {
		return labPorts(labPort("http", 80, mesh.ProtocolHTTP))
	}
	return p
}

func TestDomainsOfAPort(t *testing.T) {
	l := newLab(&meshconfig.MeshConfig{}, "c2")
	l.services("c1",
		labService("reviews", "shop", web(), []string{"10.0.0.1", "fd00::1"}),
		labService("agent", "tools", web(), []string{"10.0.0.2"}),
		labPods(labService("store", "shop", web(), nil, labHeadless), "c1", "", "10.1.0.1"),
		labService("hidden", "tools", web(), []string{"10.0.0.3"}, labExport(".")),
		labService("old", "shop", web(), nil, labAlias("reviews.shop.svc.cluster.local")),
		labService("older", "tools", web(), nil, labAlias("old.shop.svc.cluster.local")),
		labService("out", "shop", web(), nil, labAlias("www.example.com")),
		labService("tcp", "shop", web(labPort("tcp", 80, mesh.ProtocolTCP)), []string{"10.0.0.5"}),
		registry.ServiceState{Key: mesh.ServiceKey{Namespace: "shop", Hostname: "ext.example.com"}, Definition: &mesh.Definition{Ports: web(), Resolution: mesh.ResolutionDNS}},
	)
	l.services("c2", labService("reviews", "shop", web(), []string{"10.9.0.1"}), labService("far", "shop", web(), []string{"10.9.0.2"}))
	require.Equal(t, []string{
		"agent.tools.svc.cluster.local:80: agent.tools.svc.cluster.local agent.tools.svc.cluster.local. agent.tools.svc agent.tools 10.0.0.2",
		"ext.example.com:80: ext.example.com ext.example.com.",
		"far.shop.svc.cluster.local:80: far.shop.svc.cluster.local far.shop.svc.cluster.local. far far.shop.svc far.shop 10.9.0.2",
		"reviews.shop.svc.cluster.local:80: reviews.shop.svc.cluster.local reviews.shop.svc.cluster.local. reviews reviews.shop.svc reviews.shop " +
			"old.shop.svc.cluster.local old.shop.svc.cluster.local. old old.shop.svc old.shop " +
			"older.tools.svc.cluster.local older.tools.svc.cluster.local. older.tools.svc older.tools 10.0.0.1 [fd00::1]",
		"store.shop.svc.cluster.local:80: store.shop.svc.cluster.local store.shop.svc.cluster.local. store store.shop.svc store.shop " +
			"*.store.shop.svc.cluster.local *.store.shop.svc.cluster.local. *.store *.store.shop.svc *.store.shop",
		"allow_any: *",
	}, domains(l.routes(t, labSidecar(), "80")))

	fromC2 := domains(l.routes(t, labSidecar(func(v *View) { v.Cluster, v.Namespace, v.Domain = "c2", "tools", "example.org" }), "80"))
	require.Contains(t, fromC2, "reviews.shop.svc.cluster.local:80: reviews.shop.svc.cluster.local reviews.shop.svc.cluster.local. "+
		"old.shop.svc.cluster.local old.shop.svc.cluster.local. older.tools.svc.cluster.local older.tools.svc.cluster.local. 10.9.0.1",
		"VIPs are those of the proxy's cluster, and hosts of another cluster domain have no short names")
	require.Contains(t, fromC2, "hidden.tools.svc.cluster.local:80: hidden.tools.svc.cluster.local hidden.tools.svc.cluster.local. 10.0.0.3")
}

// TestDomainsThatTwoClaim: the rule of [Routes] for every kind of clash.
func TestDomainsThatTwoClaim(t *testing.T) {
	has := func(d []string, host, domain string) bool {
		for _, line := range d {
			name, list, _ := strings.Cut(line, ": ")
			if name == host && strings.Contains(" "+list+" ", " "+domain+" ") {
				return true
			}
		}
		return false
	}
	t.Run("older service has the address", func(t *testing.T) {
		l := newLab(&meshconfig.MeshConfig{})
		l.services("c1", labService("a", "shop", web(), []string{"10.0.0.1"}, labAge(2022)), labService("b", "shop", web(), []string{"10.0.0.1"}, labAge(2021)))
		d := domains(l.routes(t, labSidecar(), "80"))
		require.True(t, has(d, "b.shop.svc.cluster.local:80", "10.0.0.1"), "%v", d)
	})
	t.Run("own cluster has the address", func(t *testing.T) {
		l := newLab(&meshconfig.MeshConfig{}, "c2")
		l.services("c1", labService("a", "shop", web(), []string{"10.0.0.1"}, labAge(2021)))
		l.services("c2", labService("b", "shop", web(), []string{"10.0.0.1"}, labAge(2022)))
		require.True(t, has(domains(l.routes(t, labSidecar(), "80")), "a.shop.svc.cluster.local:80", "10.0.0.1"))
		inC2 := labSidecar(func(v *View) { v.Cluster = "c2" })
		require.True(t, has(domains(l.routes(t, inC2, "80")), "b.shop.svc.cluster.local:80", "10.0.0.1"))
	})
	t.Run("a host's own name before a short name", func(t *testing.T) {
		l := newLab(&meshconfig.MeshConfig{})
		l.services("c1", labService("a", "shop", web(), nil, labAge(2000)),
			registry.ServiceState{Key: mesh.ServiceKey{Namespace: "shop", Hostname: "a"}, Definition: &mesh.Definition{Ports: web(), Resolution: mesh.ResolutionDNS}})
		d := domains(l.routes(t, labSidecar(), "80"))
		require.True(t, has(d, "a:80", "a"), "%v", d)
	})
	t.Run("one host in two namespaces", func(t *testing.T) {
		l := newLab(&meshconfig.MeshConfig{})
		ext := func(ns string, p mesh.Protocol) registry.ServiceState {
			return registry.ServiceState{Key: mesh.ServiceKey{Namespace: ns, Hostname: "ext.example.com"}, Definition: &mesh.Definition{
				Ports: labPorts(labPort("p", 80, p)), Resolution: mesh.ResolutionDNS}}
		}
		l.services("c1", ext("other", mesh.ProtocolHTTP), ext("shop", mesh.ProtocolTCP))
		require.Nil(t, l.routes(t, labSidecar(), "80"), "its own namespace says TCP")
		require.Len(t, domains(l.routes(t, labSidecar(func(v *View) { v.Namespace = "third" }), "80")), 2)
	})
	t.Run("a service that stands for every host", func(t *testing.T) {
		l := newLab(&meshconfig.MeshConfig{})
		l.services("c1", registry.ServiceState{Key: mesh.ServiceKey{Namespace: "shop", Hostname: "*"}, Definition: &mesh.Definition{Ports: web()}})
		require.Equal(t, []string{"*:80: * *."}, domains(l.routes(t, labSidecar(), "80")))
	})
}

func TestRoutesThatAreNot(t *testing.T) {
	l := newLab(&meshconfig.MeshConfig{})
	l.services("c1", labService("tcp", "shop", web(labPort("tcp", 9000, mesh.ProtocolTCP)), []string{"10.0.0.1"}),
		labService("auto", "shop", web(labPort("", 9001, mesh.ProtocolAuto)), []string{"10.0.0.2"}),
		labService("http", "shop", web(), []string{"10.0.0.3"}))
	for _, name := range []string{"9000", "9001", "080", "", "http", "80 ", "tcp.shop.svc.cluster.local:9000", "http.shop.svc.cluster.local:80", "auto.shop.svc.cluster.local:9002"} {
		require.Nil(t, l.routes(t, labSidecar(), name), name)
	}
	require.Equal(t, []string{"auto.shop.svc.cluster.local:9001: *"}, domains(l.routes(t, labSidecar(), "auto.shop.svc.cluster.local:9001")))
	require.Nil(t, l.routes(t, labSidecar(func(v *View) { v.Kind = mesh.ProxyRouter }), "80"))
}

func TestRegistryOnlyRefusesUnknownHosts(t *testing.T) {
	l := newLab(&meshconfig.MeshConfig{OutboundTrafficPolicy: &meshconfig.MeshConfig_OutboundTrafficPolicy{Mode: meshconfig.MeshConfig_OutboundTrafficPolicy_REGISTRY_ONLY}})
	l.services("c1", labService("http", "shop", web(), []string{"10.0.0.3"}))
	hosts := l.routes(t, labSidecar(), "80").(*routev3.RouteConfiguration).GetVirtualHosts()
	last := hosts[len(hosts)-1]
	require.Equal(t, "block_all", last.GetName())
	require.EqualValues(t, 502, last.GetRoutes()[0].GetDirectResponse().GetStatus())
	l.listener(t, labSidecar(), ListenerVirtualOutbound)
	require.Contains(t, string(resourceText(t, l.listener(t, labSidecar(), "0.0.0.0_80"))), `"BlackHoleCluster"`)
	require.NotContains(t, string(resourceText(t, l.listener(t, labSidecar(), ListenerVirtualOutbound))), `"PassthroughCluster"`)
}

func FuzzNames(f *testing.F) {
	for _, s := range []string{"80", "0.0.0.0_80", "::_80", "10.0.0.1_65536", "fd00::1%eth0_80", "a:80", "xds.istio.io/grpc/lds/inbound/[::]:80", "outbound|80||a", "virtualInbound"} {
		f.Add(s)
	}
	l := newLab(&meshconfig.MeshConfig{})
	l.services("c1", labService("a", "shop", web(), []string{"10.0.0.1"}), labService("b", "shop", web(labPort("", 81, mesh.ProtocolAuto)), []string{"10.0.0.2"}))
	f.Fuzz(func(t *testing.T, name string) {
		for _, d := range []mesh.Dialect{mesh.DialectIstio, mesh.DialectEnvoy, mesh.DialectGRPC} {
			v := labSidecar(func(v *View) { v.Dialect = d })
			if m := l.listener(t, v, name); m != nil {
				require.Equal(t, name, m.(interface{ GetName() string }).GetName())
			}
			if m := l.routes(t, v, name); m != nil {
				require.Equal(t, name, m.(interface{ GetName() string }).GetName())
			}
		}
	})
}

// labLarge has n HTTP services on port 80 in ten namespaces.
func labLarge(n int) *lab {
	l := newLab(&meshconfig.MeshConfig{AccessLogFile: "/dev/stdout"})
	var all []registry.ServiceState
	for i := range n {
		all = append(all, labService(fmt.Sprintf("service-%d", i), fmt.Sprintf("ns-%d", i%10),
			labPorts(labPort("http", 80, mesh.ProtocolHTTP), labPort("tcp", 9000, mesh.ProtocolTCP)), []string{fmt.Sprintf("10.0.%d.%d", i/250, i%250+1)}))
	}
	l.services("c1", all...)
	return l
}

// BenchmarkPortRoutes builds the route configuration of a port with 1,000 services.
func BenchmarkPortRoutes(b *testing.B) {
	l := labLarge(1000)
	in, v := l.in(), labSidecar(func(v *View) { v.Namespace = "ns-1" })
	b.ReportAllocs()
	for b.Loop() {
		if m, err := (Routes{}).Build(in, v, "80"); m == nil || err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPortRoutesEncode also encodes it.
func BenchmarkPortRoutesEncode(b *testing.B) {
	l := labLarge(1000)
	in, v := l.in(), labSidecar(func(v *View) { v.Namespace = "ns-1" })
	b.ReportAllocs()
	for b.Loop() {
		m, _ := (Routes{}).Build(in, v, "80")
		body, err := deterministic().Marshal(m)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(len(body)), "bytes")
	}
}

// BenchmarkListeners lists and builds all listeners of a sidecar in a mesh of
// 1,000 services with a TCP port of one number: the worst case for finding the
// owner of an address.
func BenchmarkListeners(b *testing.B) {
	l := labLarge(1000)
	in, v := l.in(), labSidecar(func(v *View) { v.Namespace = "ns-1" })
	b.ReportAllocs()
	for b.Loop() {
		for _, n := range (Listeners{}).List(in, v) {
			if m, err := (Listeners{}).Build(in, v, n); m == nil || err != nil {
				b.Fatal(n, err)
			}
		}
	}
}

// BenchmarkListenerProject projects the view for one listener of each kind.
func BenchmarkListenerProject(b *testing.B) {
	l := labLarge(1000)
	in, v := l.in(), labSidecar(func(v *View) { v.Namespace = "ns-1" })
	b.ReportAllocs()
	for b.Loop() {
		for _, n := range []string{ListenerVirtualInbound, ListenerVirtualOutbound, "0.0.0.0_80", "10.0.1.1_9000"} {
			_ = (Listeners{}).Project(in, v, n)
		}
	}
}
