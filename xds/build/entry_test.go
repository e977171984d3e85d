package build

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"github.com/stretchr/testify/require"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// labEntry is a ServiceEntry of namespace shop in c1; ports are NAME:NUMBER, and
// speak the protocol that they are called by.
func labEntry(name string, spec *networking.ServiceEntry, ports ...string) registry.ObjectState {
	for _, p := range ports {
		sp := &networking.ServicePort{}
		protocol, number, _ := strings.Cut(p, ":")
		sp.Name, sp.Protocol = protocol, protocol
		_, _ = fmt.Sscan(number, &sp.Number)
		spec.Ports = append(spec.Ports, sp)
	}
	k := mesh.ObjectKey{Kind: mesh.KindServiceEntry, Namespace: "shop", Name: name}
	return registry.ObjectState{Key: k, Object: &mesh.Object{Key: k, Spec: spec, Created: time.Unix(int64(len(name)), 0),
		Origin: mesh.ObjectRef{Cluster: "c1", Kind: string(k.Kind), Namespace: k.Namespace, Name: name}}}
}

func entryLab(list ...registry.ObjectState) *lab {
	l := newLab(&meshconfig.MeshConfig{}, "c2")
	l.sinks["c1"].Apply(registry.Update{Objects: list})
	return l
}

// chains tells of a listener where it sends what.
func chains(t *testing.T, l *listenerv3.Listener) []string {
	t.Helper()
	var out []string
	for _, c := range append(l.GetFilterChains(), l.GetDefaultFilterChain()) {
		if c == nil {
			continue
		}
		m := c.GetFilterChainMatch()
		var text []string
		for _, p := range m.GetPrefixRanges() {
			text = append(text, fmt.Sprintf("%s/%d", p.GetAddressPrefix(), p.GetPrefixLen().GetValue()))
		}
		text = append(append(text, m.GetServerNames()...), m.GetApplicationProtocols()...)
		to := "routes"
		for _, f := range c.GetFilters() {
			var tcp tcpproxyv3.TcpProxy
			if f.GetTypedConfig().MessageIs(&tcp) {
				require.NoError(t, f.GetTypedConfig().UnmarshalTo(&tcp))
				to = tcp.GetCluster()
			}
		}
		out = append(out, strings.Join(text, " ")+" -> "+to)
	}
	return out
}

// TestEntriesShareAPort: hosts without an address are told apart by what a
// connection says of itself, at a listener for all addresses.
func TestEntriesShareAPort(t *testing.T) {
	none, static := networking.ServiceEntry_NONE, networking.ServiceEntry_STATIC
	wiki := labEntry("wiki", &networking.ServiceEntry{Hosts: []string{"*.wiki.example"}, Resolution: none}, "tls:443")
	ranges := labEntry("ranges", &networking.ServiceEntry{Hosts: []string{"ranges.example"}, Addresses: []string{"10.1.0.0/16", "fd00::/64"}, Resolution: none}, "tcp:443")
	named := labEntry("named", &networking.ServiceEntry{Hosts: []string{"named.example"}, Addresses: []string{"10.1.0.0/16"}, Resolution: none}, "https:443")
	late := labEntry("late range", &networking.ServiceEntry{Hosts: []string{"late.example"}, Addresses: []string{"10.1.0.0/16"}, Resolution: none}, "tcp:443")
	rest := labEntry("rest", &networking.ServiceEntry{Hosts: []string{"rest.example"}, Resolution: none}, "tcp:443")
	late2 := labEntry("second rest", &networking.ServiceEntry{Hosts: []string{"second.example"}, Resolution: none}, "tcp:443")
	web := labEntry("web", &networking.ServiceEntry{Hosts: []string{"web.example"}, Resolution: static}, "http:443")
	odd := labEntry("odd", &networking.ServiceEntry{Hosts: []string{"*-api.example"}, Resolution: none}, "tls:443")
	const passed = " -> PassthroughCluster"
	for name, tt := range map[string]struct {
		entries []registry.ObjectState
		want    []string
	}{
		"server name":        {[]registry.ObjectState{wiki, odd}, []string{"*.wiki.example -> outbound|443||*.wiki.example", passed}},
		"part of a label":    {[]registry.ObjectState{odd}, nil},
		"nothing but a port": {[]registry.ObjectState{late2, rest}, []string{" -> outbound|443||rest.example"}},
		"ranges and names": {[]registry.ObjectState{late, ranges, named}, []string{
			"10.1.0.0/16 named.example -> outbound|443||named.example", "10.1.0.0/16 -> outbound|443||ranges.example", passed}},
		"HTTP too": {[]registry.ObjectState{web, wiki, rest}, []string{"http/1.1 h2c -> routes",
			"*.wiki.example -> outbound|443||*.wiki.example", " -> outbound|443||rest.example"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := entryLab(tt.entries...)
			m := l.listener(t, labSidecar(), "0.0.0.0_443")
			listed := Listeners{}.List(l.in(), labSidecar())
			if tt.want == nil {
				require.Nil(t, m)
				require.NotContains(t, listed, "0.0.0.0_443")
				return
			}
			require.Contains(t, listed, "0.0.0.0_443")
			require.Equal(t, tt.want, chains(t, m.(*listenerv3.Listener)))
		})
	}
}

// TestMadeUpAddresses: only for proxies whose clients learn of them.
func TestMadeUpAddresses(t *testing.T) {
	e := labEntry("ext", &networking.ServiceEntry{Hosts: []string{"ext.example"}, Resolution: networking.ServiceEntry_DNS, Location: networking.ServiceEntry_MESH_EXTERNAL}, "tls:443", "http:80")
	e.Object.Status = &mesh.ObjectStatus{Addresses: []mesh.HostAddress{{Host: "ext.example", Address: netip.MustParseAddr("240.240.0.1")}}}
	l := entryLab(e)
	capturing := labSidecar(func(v *View) { v.DNSCapture = true })
	require.Equal(t, []string{"0.0.0.0_443", "0.0.0.0_80", ListenerVirtualInbound, ListenerVirtualOutbound}, Listeners{}.List(l.in(), labSidecar()))
	require.Equal(t, []string{"0.0.0.0_80", "240.240.0.1_443", ListenerVirtualInbound, ListenerVirtualOutbound}, Listeners{}.List(l.in(), capturing))
	require.Equal(t, map[string]nameInfo{"ext.example": {IPs: []string{"240.240.0.1"}, Registry: registryExternal}}, l.names(t, capturing))
	require.NotContains(t, string(resourceText(t, l.routes(t, labSidecar(), "80"))), "240.240.0.1")
	require.Contains(t, string(resourceText(t, l.routes(t, capturing, "80"))), `"240.240.0.1"`)
}

// upstreamText tells how an upstream finds what it dials.
func upstreamText(u *clusterv3.Cluster) string {
	if u == nil {
		return "none"
	}
	out := u.GetType().String()
	if u.GetLoadAssignment() != nil {
		out += " " + u.GetDnsLookupFamily().String()
		for _, g := range u.GetLoadAssignment().GetEndpoints() {
			for _, e := range g.GetLbEndpoints() {
				out += " " + endpointAddressText(e)
			}
		}
	}
	if len(u.GetTransportSocketMatches()) > 0 {
		out += " auto-mtls"
	}
	return out
}

func endpointAddressText(e *endpointv3.LbEndpoint) string {
	a := e.GetEndpoint().GetAddress()
	if p := a.GetPipe(); p != nil {
		return p.GetPath()
	}
	return fmt.Sprintf("%s:%d", a.GetSocketAddress().GetAddress(), a.GetSocketAddress().GetPortValue())
}

func TestEntryUpstreams(t *testing.T) {
	names := []*networking.WorkloadEntry{{Address: "one.example", Locality: "r1"}, {Address: "two.example", Weight: 2}}
	for name, tt := range map[string]struct {
		spec *networking.ServiceEntry
		view View
		want string
	}{
		"none":              {&networking.ServiceEntry{Resolution: networking.ServiceEntry_NONE}, labSidecar(), "ORIGINAL_DST"},
		"none on a router":  {&networking.ServiceEntry{Resolution: networking.ServiceEntry_NONE}, routerOf(nil), "EDS auto-mtls"},
		"static":            {&networking.ServiceEntry{Resolution: networking.ServiceEntry_STATIC}, labSidecar(), "EDS auto-mtls"},
		"static, external":  {&networking.ServiceEntry{Resolution: networking.ServiceEntry_STATIC}, labSidecar(), "EDS"},
		"names":             {&networking.ServiceEntry{Resolution: networking.ServiceEntry_DNS, Endpoints: names}, labSidecar(), "STRICT_DNS V4_ONLY two.example:80 one.example:80 auto-mtls"},
		"IPv6 only":         {&networking.ServiceEntry{Resolution: networking.ServiceEntry_DNS}, labSidecar(func(v *View) { v.IPv4, v.IPv6 = false, true }), "STRICT_DNS V6_ONLY host.example:80 auto-mtls"},
		"both families":     {&networking.ServiceEntry{Resolution: networking.ServiceEntry_DNS}, labSidecar(func(v *View) { v.IPv6 = true }), "STRICT_DNS ALL host.example:80 auto-mtls"},
		"one name":          {&networking.ServiceEntry{Resolution: networking.ServiceEntry_DNS_ROUND_ROBIN, Endpoints: names}, labSidecar(), "LOGICAL_DNS V4_ONLY two.example:80 auto-mtls"},
		"no name":           {&networking.ServiceEntry{Resolution: networking.ServiceEntry_DNS_ROUND_ROBIN, WorkloadSelector: &networking.WorkloadSelector{}}, labSidecar(), "STRICT_DNS V4_ONLY auto-mtls"},
		"names for gRPC":    {&networking.ServiceEntry{Resolution: networking.ServiceEntry_DNS, Endpoints: names}, labSidecar(dialect(mesh.DialectGRPC)), "LOGICAL_DNS AUTO two.example:80"},
		"no names for gRPC": {&networking.ServiceEntry{Resolution: networking.ServiceEntry_DNS, WorkloadSelector: &networking.WorkloadSelector{}}, labSidecar(dialect(mesh.DialectGRPC)), "EDS"},
	} {
		t.Run(name, func(t *testing.T) {
			tt.spec.Hosts = []string{"host.example"}
			if name != "static, external" { // what an entry is that says nothing
				tt.spec.Location = networking.ServiceEntry_MESH_INTERNAL
			}
			l := entryLab(labEntry("e", tt.spec, "http:80"))
			require.Equal(t, tt.want, upstreamText(l.upstreams(t, tt.view)["outbound|80||host.example"]))
		})
	}
}

// TestSocketEndpoints: a socket is on the proxy's own machine.
func TestSocketEndpoints(t *testing.T) {
	l := entryLab(labEntry("e", &networking.ServiceEntry{Hosts: []string{"host.example"}, Resolution: networking.ServiceEntry_STATIC,
		Endpoints: []*networking.WorkloadEntry{{Address: "unix:///run/a.sock"}, {Address: "192.0.2.1"}, {Network: "elsewhere", ServiceAccount: "web"}}}, "http:80"))
	m, err := Assignments{}.Build(l.in(), labSidecar(), "outbound|80||host.example")
	require.NoError(t, err)
	list := m.(*endpointv3.ClusterLoadAssignment).GetEndpoints()[0].GetLbEndpoints()
	require.Len(t, list, 2, "one without an address is behind the gateways of its network, of which there are none")
	require.Equal(t, "/run/a.sock", endpointAddressText(list[0]))
	require.Equal(t, "192.0.2.1:80", endpointAddressText(list[1]))
}

// TestMachinesServe: what a ServiceEntry selects serves its ports, in whichever
// cluster it is.
func TestMachinesServe(t *testing.T) {
	e := labEntry("stock", &networking.ServiceEntry{Hosts: []string{"stock.example"}, Resolution: networking.ServiceEntry_STATIC,
		WorkloadSelector: &networking.WorkloadSelector{Labels: map[string]string{"app": "stock"}}}, "http:80")
	e.Object.Spec.(*networking.ServiceEntry).Ports[0].TargetPort = 8080
	l := entryLab(e)
	k := mesh.ObjectKey{Kind: mesh.KindWorkloadEntry, Namespace: "shop", Name: "vm"}
	l.sinks["c2"].Apply(registry.Update{Objects: []registry.ObjectState{{Key: k, Object: &mesh.Object{Key: k,
		Spec: &networking.WorkloadEntry{Address: "192.0.2.1", Labels: map[string]string{"app": "stock"}, Locality: "r1/z1"}}}}})
	at := netip.MustParseAddr("192.0.2.1")
	w := l.store.Workload(registry.WorkloadKey{Cluster: "c2", Addr: at})
	require.NotNil(t, w, "a machine is known by its address, as pods are")
	p := &mesh.Proxy{Kind: mesh.ProxySidecar, Cluster: "c2", Namespace: "shop", Addresses: []netip.Addr{at}}
	v := DeriveView(l.in(), p, w)
	require.Equal(t, mesh.Locality{Region: "r1", Zone: "z1"}, v.Locality)
	require.Equal(t, []InboundTarget{{Hostname: "stock.example", Name: "stock.example", Namespace: "shop", PortName: "http", Port: 80, Target: 8080,
		Protocol: string(mesh.ProtocolHTTP)}}, v.Inbound.Spec().Targets)
}

// TestNobodyTakesAHostOver: of the same host in two namespaces a Kubernetes
// Service goes before a ServiceEntry, whose namespace comes first by name.
func TestNobodyTakesAHostOver(t *testing.T) {
	squat := labEntry("squat", &networking.ServiceEntry{Hosts: []string{"web.shop.svc.cluster.local"}, Resolution: networking.ServiceEntry_DNS,
		Location: networking.ServiceEntry_MESH_INTERNAL}, "http:80")
	squat.Key.Namespace, squat.Object.Key.Namespace = "attic", "attic"
	l := entryLab(squat)
	l.services("c1", labService("web", "shop", labPorts(labPort("http", 80, mesh.ProtocolHTTP)), []string{"10.0.0.1"}))
	for ns, want := range map[string]string{"other": "EDS auto-mtls", "attic": "STRICT_DNS V4_ONLY web.shop.svc.cluster.local:80 auto-mtls"} {
		u := l.upstreams(t, labSidecar(func(v *View) { v.Namespace = ns }))["outbound|80||web.shop.svc.cluster.local"]
		require.Equal(t, want, upstreamText(u), ns)
	}
}
