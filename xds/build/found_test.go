package build

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// What property tests found in rare draws, told apart from what else was drawn.

func foundSidecar(namespace string, s *networking.Sidecar) registry.ObjectState {
	k := mesh.ObjectKey{Kind: mesh.KindSidecar, Namespace: namespace, Name: "default"}
	return registry.ObjectState{Key: k, Object: &mesh.Object{Key: k, Version: s.String(), Spec: s}}
}

// TestNamesOfASidecarForAllNamespaces: "./*" of the root namespace's Sidecar is
// another namespace to each, so that their tables are not one.
func TestNamesOfASidecarForAllNamespaces(t *testing.T) {
	l := newLab(&meshconfig.MeshConfig{RootNamespace: "istio-system"})
	l.services("c1", labService("web", "shop", labTwoPorts, []string{"10.96.0.1"}), labService("db", "store", labTwoPorts, []string{"10.96.0.2"}))
	l.objects(foundSidecar("istio-system", &networking.Sidecar{Egress: []*networking.IstioEgressListener{{Hosts: []string{"./*"}}}}))
	for ns, name := range map[string]string{"shop": "web", "store": "db"} {
		v := DeriveView(l.in(), labProxy(func(p *mesh.Proxy) { p.Namespace = ns }), nil)
		table := l.names(t, NameTables{}.Project(l.in(), v, ""))
		require.Len(t, table, 1, ns)
		require.Contains(t, table, name+"."+ns+".svc.cluster.local")
	}
}

// TestAnEgressListenerThatServesNothing leaves its address to whoever serves
// something there: the port's listener for all, or a later egress listener.
func TestAnEgressListenerThatServesNothing(t *testing.T) {
	bound := func(hosts ...string) *networking.IstioEgressListener {
		return &networking.IstioEgressListener{Hosts: hosts, Bind: "127.0.0.1", Port: &networking.SidecarPort{Number: 8080, Protocol: "HTTP", Name: "http"}}
	}
	for what, egress := range map[string][]*networking.IstioEgressListener{
		"the port's own":       {bound("nobody/*"), {Hosts: []string{"*/*"}}},
		"a later one":          {bound("nobody/*"), bound("*/*")},
		"the first of several": {bound("*/*"), bound("nobody/*")},
	} {
		l := newLab(&meshconfig.MeshConfig{})
		l.services("c1", labService("api", "shop", labPorts(labPort("http", 8080, mesh.ProtocolHTTP)), []string{"10.96.0.1"}))
		l.objects(foundSidecar("shop", &networking.Sidecar{Egress: egress}))
		v := DeriveView(l.in(), labProxy(func(p *mesh.Proxy) { p.Interception = mesh.InterceptNone }), nil)
		require.Equal(t, []string{"127.0.0.1_8080"}, Listeners{}.List(l.in(), v), what)
		require.NotNil(t, l.listener(t, v, "127.0.0.1_8080"), what)
		require.NotNil(t, l.listener(t, Listeners{}.Project(l.in(), v, "127.0.0.1_8080"), "127.0.0.1_8080"), what)
	}
}

// TestAPatchThatUnserves: whether a port is served may hang on the service there.
func TestAPatchThatUnserves(t *testing.T) {
	for spec, keeps := range map[string]bool{
		`{"configPatches":[{"applyTo":"CLUSTER","match":{"cluster":{"service":"web.shop.svc.cluster.local"}},"patch":{"operation":"REMOVE"}}]}`:                            false,
		`{"configPatches":[{"applyTo":"CLUSTER","match":{"cluster":{"service":"db.shop.svc.cluster.local"}},"patch":{"operation":"REMOVE"}}]}`:                             true,
		`{"configPatches":[{"applyTo":"CLUSTER","match":{"cluster":{"service":"web.shop.svc.cluster.local"}},"patch":{"operation":"MERGE","value":{"altStatName":"x"}}}]}`: true,
	} {
		in, v, _ := patchLab(t, patchObject(t, "shop", "p", spec))
		v.Inbound = MakeInbound(InboundSpec{Targets: []InboundTarget{{Hostname: "web.shop.svc.cluster.local", Namespace: "shop", Port: 80, Target: 8080, Protocol: string(mesh.ProtocolHTTP)}}})
		g := Upstreams{}
		name := UpstreamName(DirectionInbound, 8080, "", "")
		m, err := g.Build(in, v, name)
		require.NoError(t, err)
		require.Equal(t, keeps, m != nil, spec)
		require.Equal(t, keeps, slices.Contains(g.List(in, v), name), spec)
		require.Equal(t, g.List(in, v), g.List(in, g.ListView(v)), spec)
	}
}

// TestPatchesOfNoServiceKeepListsShared: who serves a port is not asked for nothing.
func TestPatchesOfNoServiceKeepListsShared(t *testing.T) {
	_, v, _ := patchLab(t, patchObject(t, "shop", "p", `{"configPatches":[{"applyTo":"CLUSTER","match":{"cluster":{"service":"web.shop.svc.cluster.local"}},"patch":{"operation":"MERGE","value":{"altStatName":"x"}}}]}`))
	at := func(host string) View {
		v.Inbound = MakeInbound(InboundSpec{Targets: []InboundTarget{{Hostname: host, Namespace: "shop", Port: 80, Target: 8080}}})
		return Upstreams{}.ListView(v)
	}
	require.Equal(t, at("web.shop.svc.cluster.local"), at("db.shop.svc.cluster.local"))
}

// TestProjectingReadsNoInboundSpec: the name of every listener is projected for
// every view, and hardly any proxy binds a port of its workload. What that costs
// must not grow with what the workload serves.
func TestProjectingReadsNoInboundSpec(t *testing.T) {
	l := newLab(&meshconfig.MeshConfig{})
	l.services("c1", labService("api", "shop", labPorts(labPort("http", 80, mesh.ProtocolHTTP)), []string{"10.96.0.1"}))
	allocations := func(targets int) float64 {
		var spec InboundSpec
		for i := range targets {
			spec.Targets = append(spec.Targets, InboundTarget{Hostname: "web.shop.svc.cluster.local", Namespace: "shop", Port: 80, Target: uint16(8000 + i)})
		}
		in, v := l.in(), labSidecar(func(v *View) { v.Inbound = MakeInbound(spec) })
		return testing.AllocsPerRun(100, func() {
			_ = Listeners{}.Project(in, v, "0.0.0.0_80")
			_ = Listeners{}.ListView(v)
		})
	}
	require.InDelta(t, allocations(1), allocations(50), 0)
}
