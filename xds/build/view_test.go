package build

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

func labProxy(edits ...func(*mesh.Proxy)) *mesh.Proxy {
	p := &mesh.Proxy{ID: "web-1.shop", Kind: mesh.ProxySidecar, Cluster: "c1", Namespace: "shop", DNSDomain: "shop.svc.cluster.local",
		Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.1")}, Labels: map[string]string{"app": "web"}, WorkloadName: "web-v1"}
	for _, e := range edits {
		e(p)
	}
	return p
}

func TestViewOfAProxy(t *testing.T) {
	l := newLab(&meshconfig.MeshConfig{})
	w := &mesh.Workload{Locality: mesh.ParseLocality("r/z"), Node: "node-2", Labels: map[string]string{"app": "registry"}}
	v := DeriveView(l.in(), labProxy(func(p *mesh.Proxy) {
		p.NetworkView = []mesh.NetworkID{"n2", "n1", "n2"}
		p.ProxyConfig = map[string]any{"tracing": map[string]any{}}
	}), w)
	v.Inbound = Inbound{}
	require.Equal(t, View{Kind: mesh.ProxySidecar, Cluster: "c1", NetworkView: "n1,n2", Namespace: "shop", Domain: "cluster.local",
		Locality: mesh.Locality{Region: "r", Zone: "z"}, Node: "node-2", IPv4: true, Interception: mesh.InterceptRedirect, Tracer: MakeTracer(map[string]any{})}, v)

	own := DeriveView(l.in(), labProxy(func(p *mesh.Proxy) {
		p.Locality, p.NodeName, p.Interception = mesh.ParseLocality("own"), "node-1", mesh.InterceptTProxy
		p.Addresses = []netip.Addr{netip.MustParseAddr("::ffff:10.1.0.1"), netip.MustParseAddr("fd00::1")}
		p.DNSDomain = "shop.svc.example.org"
	}), w)
	require.Equal(t, mesh.Locality{Region: "own"}, own.Locality, "the proxy's own word goes first")
	require.Equal(t, "node-1", own.Node)
	require.Equal(t, mesh.InterceptTProxy, own.Interception)
	require.True(t, own.IPv4 && own.IPv6)
	require.Equal(t, "example.org", own.Domain)
}

func TestClusterDomain(t *testing.T) {
	for dns, want := range map[string]string{
		"shop.svc.cluster.local": "cluster.local", "shop.svc.a.b.": "a.b", "": DefaultDomain, "shop": DefaultDomain, "shop.svc.": DefaultDomain,
	} {
		require.Equal(t, want, clusterDomain(dns), dns)
	}
}

// TestNetworkOfAProxy: the rules are those that hold for endpoints, in order.
func TestNetworkOfAProxy(t *testing.T) {
	l := newLab(&meshconfig.MeshConfig{}, "c2", "c3")
	l.sinks["c2"].Apply(registry.Update{Cluster: &registry.ClusterState{Network: "of-cluster"}})
	l.store.SetSettings(mesh.Settings{Mesh: &meshconfig.MeshConfig{}, Networks: &meshconfig.MeshNetworks{Networks: map[string]*meshconfig.Network{
		"of-registry": {Endpoints: []*meshconfig.Network_NetworkEndpoints{{Ne: &meshconfig.Network_NetworkEndpoints_FromRegistry{FromRegistry: "c3"}}}},
		"wide":        {Endpoints: []*meshconfig.Network_NetworkEndpoints{{Ne: &meshconfig.Network_NetworkEndpoints_FromCidr{FromCidr: "10.0.0.0/8"}}}},
		"narrow":      {Endpoints: []*meshconfig.Network_NetworkEndpoints{{Ne: &meshconfig.Network_NetworkEndpoints_FromCidr{FromCidr: "10.1.0.0/16"}}}},
	}}})
	labelled := &mesh.Workload{NetworkLabel: "of-pod"}
	for name, tc := range map[string]struct {
		cluster  mesh.ClusterID
		metadata mesh.NetworkID
		workload *mesh.Workload
		addr     string
		want     mesh.NetworkID
	}{
		"metadata":              {"c2", "of-metadata", labelled, "10.1.0.1", "of-metadata"},
		"label":                 {"c2", "", labelled, "10.1.0.1", "of-pod"},
		"cluster":               {"c2", "", &mesh.Workload{}, "10.1.0.1", "of-cluster"},
		"meshNetworks registry": {"c3", "", nil, "10.1.0.1", "of-registry"},
		"meshNetworks address":  {"c1", "", nil, "10.1.0.1", "narrow"},
		"wider address":         {"c1", "", nil, "10.2.0.1", "wide"},
		"unknown":               {"c1", "", nil, "192.168.0.1", ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := labProxy(func(p *mesh.Proxy) {
				p.Cluster, p.Network, p.Addresses = tc.cluster, tc.metadata, []netip.Addr{netip.MustParseAddr(tc.addr)}
			})
			require.Equal(t, tc.want, DeriveView(l.in(), p, tc.workload).Network)
		})
	}
}

func targetsOf(v View) map[string]uint16 {
	out := map[string]uint16{}
	for _, t := range v.Inbound.Spec().Targets {
		out[t.Name+"/"+t.PortName] = t.Target
	}
	return out
}

// TestInboundTargets: what a workload serves, by the definitions of its own
// cluster and namespace only.
func TestInboundTargets(t *testing.T) {
	l := newLab(&meshconfig.MeshConfig{}, "c2")
	named := mesh.Port{Name: "named", Number: 81, Protocol: mesh.ProtocolHTTP, TargetName: "web"}
	number := labPort("http", 80, mesh.ProtocolHTTP)
	same := mesh.Port{Name: "same", Number: 82, Protocol: mesh.ProtocolTCP}
	udp := labPort("udp", 53, mesh.ProtocolUDP)
	noSelector := func(d *mesh.Definition) { d.Selector = nil }
	other := func(d *mesh.Definition) { d.Selector = map[string]string{"app": "other"} }
	manual := labService("manual", "shop", labPorts(number), nil, noSelector)
	for _, a := range []string{"10.1.0.1", "10.1.0.9"} {
		manual.Endpoints = append(manual.Endpoints, mesh.Endpoint{Addr: netip.MustParseAddr(a), Port: 9000, PortName: "http", Workload: &mesh.Workload{Cluster: "c1"}})
	}
	l.services("c1",
		labService("web", "shop", labPorts(number, named, same, udp), nil),
		labService("web", "elsewhere", labPorts(number), nil),
		labService("other", "shop", labPorts(number), nil, other),
		labService("alias", "shop", labPorts(number), nil, labAlias("web.shop.svc.cluster.local")),
		manual, labService("nobody", "shop", labPorts(number), nil, noSelector))
	l.services("c2",
		labService("remote", "shop", labPorts(number), nil, func(d *mesh.Definition) { d.Selector = map[string]string{"app": "web"} }),
		labService("other", "shop", labPorts(number), nil, func(d *mesh.Definition) { d.Selector = map[string]string{"app": "web"} }))

	w := &mesh.Workload{Labels: map[string]string{"app": "web", "version": "v1"}, ContainerPorts: map[string]uint16{"web": 8081}}
	require.Equal(t, map[string]uint16{"web/http": 80, "web/named": 8081, "web/same": 82, "manual/http": 9000},
		targetsOf(DeriveView(l.in(), labProxy(), w)))

	byProxy := labProxy(func(p *mesh.Proxy) { p.ContainerPorts = map[string]uint16{"web": 8082} })
	require.Equal(t, map[string]uint16{"web/http": 80, "web/named": 8082, "web/same": 82, "manual/http": 9000}, targetsOf(DeriveView(l.in(), byProxy, nil)),
		"without a workload the proxy's own labels and ports count")
	require.NotContains(t, targetsOf(DeriveView(l.in(), labProxy(), nil)), "web/named", "a port that nobody names is nowhere")

	l.services("c1", labPods(labService("web", "shop", labPorts(number, named, same, udp), nil), "c1", "", "10.1.0.1"))
	require.Equal(t, uint16(81), targetsOf(DeriveView(l.in(), labProxy(), nil))["web/named"], "but an endpoint may name it")

	stranger := labProxy(func(p *mesh.Proxy) { p.Cluster = "c2" })
	require.Equal(t, map[string]uint16{"other/http": 80, "remote/http": 80}, targetsOf(DeriveView(l.in(), stranger, nil)))
}

// TestOldestServiceOfAPortComesFirst: of several services on one target port.
func TestOldestServiceOfAPortComesFirst(t *testing.T) {
	l := newLab(&meshconfig.MeshConfig{})
	sel := func(d *mesh.Definition) { d.Selector = map[string]string{"app": "web"} }
	l.services("c1",
		labService("a-new", "shop", labPorts(labPort("http", 80, mesh.ProtocolHTTP)), nil, sel, labAge(2024)),
		labService("z-old", "shop", labPorts(labPort("tcp", 80, mesh.ProtocolTCP)), nil, sel, labAge(2020)))
	targets := DeriveView(l.in(), labProxy(), nil).Inbound.Spec().Targets
	require.Equal(t, []string{"z-old", "a-new"}, []string{targets[0].Name, targets[1].Name})
}

func TestRoutersHaveLabelsAndOpenedPorts(t *testing.T) {
	l := newLab(&meshconfig.MeshConfig{})
	tls := mesh.Port{Name: "tls", Number: 443, Protocol: mesh.ProtocolTLS, TargetPort: 15443}
	l.services("c1", labService("web", "shop", labPorts(tls, labPort("status", 15021, mesh.ProtocolAuto)), nil))
	v := DeriveView(l.in(), labProxy(func(p *mesh.Proxy) { p.Kind = mesh.ProxyRouter }), nil)
	spec := v.Inbound.Spec()
	require.Empty(t, spec.Targets)
	require.Equal(t, map[string]string{"app": "web"}, spec.Labels)
	require.Equal(t, map[uint16]uint16{443: 15443}, spec.Opened)
	require.Empty(t, v.Interception, "a router intercepts nothing")
	require.Empty(t, DeriveView(l.in(), labProxy(), nil).Inbound.Spec().Labels, "no sidecar is chosen by labels yet: they would only part views")
}

func TestMetadataPorts(t *testing.T) {
	for in, want := range map[any]uint16{"15021": 15021, 15090.0: 15090, "x": 0, -1.0: 0, 70000.0: 0, true: 0, 1.5: 0} {
		require.Equal(t, want, metadataPort(map[string]any{"P": in}, "P"), "%v", in)
	}
	require.Zero(t, metadataPort(nil, "P"))
}

func TestViewConcerned(t *testing.T) {
	p := labProxy()
	plain := labService("web", "shop", labPorts(labPort("http", 80, mesh.ProtocolHTTP)), nil)
	svc := func(ns string, a registry.Aspect, sel map[string]string) *registry.Change {
		d := *plain.Definition
		d.Selector = sel
		s := &mesh.Service{Key: mesh.ServiceKey{Namespace: ns}, Lead: &d, In: map[mesh.ClusterID]*mesh.Definition{"c1": &d}}
		return &registry.Change{Services: map[mesh.ServiceKey]registry.ServiceChange{s.Key: {Aspects: a, After: s}}}
	}
	app := map[string]string{"app": "web"}
	require.True(t, ViewConcerned(p, svc("shop", registry.AspectDefinition, app)))
	require.True(t, ViewConcerned(p, svc("shop", registry.AspectEndpoints, nil)), "endpoints alone tell what a service without selector has")
	require.False(t, ViewConcerned(p, svc("shop", registry.AspectEndpoints, app)))
	require.False(t, ViewConcerned(p, svc("other", registry.AspectDefinition, app)))
	at := func(c mesh.ClusterID, a string) *registry.Change {
		return &registry.Change{Workloads: map[registry.WorkloadKey]struct{}{{Cluster: c, Addr: netip.MustParseAddr(a)}: {}}}
	}
	require.True(t, ViewConcerned(p, at("c1", "10.1.0.1")))
	require.False(t, ViewConcerned(p, at("c2", "10.1.0.1")))
	require.True(t, ViewConcerned(p, &registry.Change{Scope: registry.ScopeNetworks}))
}
