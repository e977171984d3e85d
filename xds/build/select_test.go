package build

import (
	"math"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"
	meshconfig "istio.io/api/mesh/v1alpha1"
	"pgregory.net/rapid"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// netLab has c1 on n1, c2 on n2 with the gateways of the test, c3 on n3 with none.
func netLab(settings *meshconfig.MeshConfig, gateways ...mesh.NetworkGateway) *lab {
	l := newLab(settings, "c2", "c3")
	for i := range gateways {
		gateways[i].Network, gateways[i].Cluster = "n2", "c2"
		if gateways[i].Port == 0 {
			gateways[i].Port = 15443
		}
	}
	for id, state := range map[mesh.ClusterID]registry.ClusterState{"c1": {Network: "n1"}, "c2": {Network: "n2", Gateways: gateways}, "c3": {Network: "n3"}} {
		l.sinks[id].Apply(registry.Update{Cluster: &state})
	}
	return l
}

func gatewayAt(host string) mesh.NetworkGateway { return mesh.NetworkGateway{Host: host} }

var webPorts = []mesh.Port{{Name: "http", Number: 80, Protocol: mesh.ProtocolHTTP, TargetPort: 80}}

// webPod adds a pod to the service web.shop in a cluster.
func webPod(l *lab, id mesh.ClusterID, addr string, edits ...func(*mesh.Endpoint)) {
	st := labPods(labService("web", "shop", webPorts, []string{"10.96.0.1"}), id, "", addr)
	w := *st.Endpoints[0].Workload
	st.Endpoints[0].Workload = &w
	for _, e := range edits {
		e(&st.Endpoints[0])
	}
	st.Endpoints = append(st.Endpoints, l.podsOf(id, st.Key)...)
	l.services(id, st)
}

func (l *lab) podsOf(id mesh.ClusterID, k mesh.ServiceKey) []mesh.Endpoint {
	var out []mesh.Endpoint
	for e := range l.store.Endpoints(k).All() {
		if e.Workload.Cluster == id {
			out = append(out, e)
		}
	}
	return out
}

var webKey = mesh.ServiceKey{Namespace: "shop", Hostname: "web.shop.svc.cluster.local"}

func (l *lab) selectWeb(v View) Selection {
	s := l.in().Catalog.Service(webKey)
	return Select(l.in(), v, s, s.Ports[0])
}

// sent renders what is dialled: locality and address to weight.
func sent(sel Selection) map[string]uint32 {
	out := map[string]uint32{}
	for _, g := range sel.Groups {
		for _, e := range g.Entries {
			out[g.Locality.String()+" "+e.Address().String()] = e.Weight
		}
	}
	return out
}

func plain(e *mesh.Endpoint)                      { e.Workload.MTLS = false }
func weighing(w uint32) func(*mesh.Endpoint)      { return func(e *mesh.Endpoint) { e.Weight = w } }
func inHealth(h mesh.Health) func(*mesh.Endpoint) { return func(e *mesh.Endpoint) { e.Health = h } }
func onNetwork(n mesh.NetworkID) func(*mesh.Endpoint) {
	return func(e *mesh.Endpoint) { e.Workload.NetworkLabel = n }
}
func inRegion(r string) func(*mesh.Endpoint) {
	return func(e *mesh.Endpoint) { e.Workload.Locality.Region = r }
}
func viewOn(n mesh.NetworkID, edits ...func(*View)) View {
	return labSidecar(append(edits, func(v *View) { v.Network = n })...)
}

// TestVerdicts: one endpoint, one proxy, one reason.
func TestVerdicts(t *testing.T) {
	gw := gatewayAt("203.0.113.1")
	tests := map[string]struct {
		gateways []mesh.NetworkGateway
		settings *meshconfig.MeshConfig
		cluster  mesh.ClusterID
		addr     string
		edit     func(*mesh.Endpoint)
		view     View
		want     VerdictCode
	}{
		"same network":                            {cluster: "c1", view: viewOn("n1"), want: VerdictDirect},
		"not ready on the same network":           {cluster: "c1", edit: inHealth(mesh.HealthNotReady), view: viewOn("n1"), want: VerdictDirect},
		"no sidecar on the same network":          {cluster: "c1", edit: plain, view: viewOn("n1"), want: VerdictDirect},
		"other cluster, same network":             {cluster: "c2", edit: onNetwork("n1"), view: viewOn("n1"), want: VerdictDirect},
		"proxy's network unknown":                 {cluster: "c2", view: viewOn(""), want: VerdictDirect},
		"other network":                           {cluster: "c2", gateways: []mesh.NetworkGateway{gw}, view: viewOn("n1"), want: VerdictGateway},
		"other network without gateways":          {cluster: "c3", gateways: []mesh.NetworkGateway{gw}, view: viewOn("n1"), want: VerdictNoGateway},
		"no gateways in the whole mesh":           {cluster: "c2", view: viewOn("n1"), want: VerdictNoGateway},
		"gateway not resolved":                    {cluster: "c2", gateways: []mesh.NetworkGateway{gatewayAt("gw.example")}, view: viewOn("n1"), want: VerdictGatewayUnresolved},
		"gateway of the other family":             {cluster: "c2", gateways: []mesh.NetworkGateway{gatewayAt("fd00::1")}, view: viewOn("n1"), want: VerdictGatewayFamily},
		"IPv6 pod behind an IPv4 gateway":         {cluster: "c2", addr: "fd00::9", gateways: []mesh.NetworkGateway{gw}, view: viewOn("n1"), want: VerdictGateway},
		"no sidecar behind a gateway":             {cluster: "c2", edit: plain, gateways: []mesh.NetworkGateway{gw}, view: viewOn("n1"), want: VerdictGatewayNotMTLS},
		"not ready behind a gateway":              {cluster: "c2", edit: inHealth(mesh.HealthNotReady), gateways: []mesh.NetworkGateway{gw}, view: viewOn("n1"), want: VerdictGatewayNotReady},
		"draining behind a gateway":               {cluster: "c2", edit: inHealth(mesh.HealthDraining), gateways: []mesh.NetworkGateway{gw}, view: viewOn("n1"), want: VerdictGatewayNotReady},
		"health unknown behind a gateway":         {cluster: "c2", edit: inHealth(mesh.HealthUnknown), gateways: []mesh.NetworkGateway{gw}, view: viewOn("n1"), want: VerdictGateway},
		"network not in view":                     {cluster: "c2", gateways: []mesh.NetworkGateway{gw}, view: viewOn("n1", func(v *View) { v.NetworkView = "n1" }), want: VerdictNetworkView},
		"network in view":                         {cluster: "c2", gateways: []mesh.NetworkGateway{gw}, view: viewOn("n1", func(v *View) { v.NetworkView = "n1,n2" }), want: VerdictGateway},
		"family that the proxy lacks":             {cluster: "c1", addr: "fd00::9", view: viewOn("n1"), want: VerdictFamily},
		"family of a proxy with both":             {cluster: "c1", addr: "fd00::9", view: viewOn("n1", func(v *View) { v.IPv6 = true }), want: VerdictDirect},
		"IPv4 written as IPv6":                    {cluster: "c1", addr: "::ffff:10.0.0.9", view: viewOn("n1"), want: VerdictDirect},
		"cluster-local, own cluster":              {cluster: "c1", settings: localShop(true), view: viewOn("n1"), want: VerdictDirect},
		"cluster-local, other cluster":            {cluster: "c2", settings: localShop(true), gateways: []mesh.NetworkGateway{gw}, view: viewOn("n1"), want: VerdictClusterLocal},
		"automatic mTLS off, same network":        {cluster: "c1", settings: noAutoMTLS(), view: viewOn("n1"), want: VerdictDirect},
		"automatic mTLS off, behind a gateway":    {cluster: "c2", settings: noAutoMTLS(), gateways: []mesh.NetworkGateway{gw}, view: viewOn("n1"), want: VerdictGatewayNotMTLS},
		"a gRPC client and a pod without sidecar": {cluster: "c1", edit: plain, view: viewOn("n1", func(v *View) { v.Dialect = mesh.DialectGRPC }), want: VerdictDirect},
	}
	for name, c := range tests {
		t.Run(name, func(t *testing.T) {
			l := netLab(c.settings, c.gateways...)
			if c.addr == "" {
				c.addr = "10.0.0.9"
			}
			if c.edit == nil {
				c.edit = func(*mesh.Endpoint) {}
			}
			webPod(l, c.cluster, c.addr, c.edit)
			sel := l.selectWeb(c.view)
			require.Len(t, sel.Candidates, 1)
			require.Equal(t, c.want.String(), sel.Candidates[0].Verdict.Code.String(), sel.Candidates[0].Text(c.view))
			require.Equal(t, c.want.Kept(), len(sel.Groups) == 1)
			if c.want == VerdictDirect {
				require.Equal(t, netip.MustParseAddr(c.addr).Unmap(), sel.Groups[0].Entries[0].Address().Addr())
			}
		})
	}
}

func localShop(local bool) *meshconfig.MeshConfig {
	return &meshconfig.MeshConfig{ServiceSettings: []*meshconfig.MeshConfig_ServiceSettings{{
		Hosts: []string{"*.shop.svc.cluster.local"}, Settings: &meshconfig.MeshConfig_ServiceSettings_Settings{ClusterLocal: local}}}}
}

func noAutoMTLS() *meshconfig.MeshConfig {
	return &meshconfig.MeshConfig{EnableAutoMtls: wrapperspb.Bool(false)}
}

func TestHBONEOnlyGatewayIsNotDialled(t *testing.T) {
	l := newLab(nil, "c2")
	l.sinks["c2"].Apply(registry.Update{Cluster: &registry.ClusterState{Network: "n2", Gateways: []mesh.NetworkGateway{
		{Network: "n2", Cluster: "c2", Host: "203.0.113.1", HBONEPort: 15008}}}})
	webPod(l, "c2", "10.0.0.9")
	require.Equal(t, VerdictGatewayUnresolved, l.selectWeb(viewOn("n1")).Candidates[0].Verdict.Code)
}

// TestNodeLocal: only pods on the proxy's own node, which is a node of its own
// cluster: nodes of two clusters may have one name.
func TestNodeLocal(t *testing.T) {
	l := newLab(nil, "c2")
	for id, nodes := range map[mesh.ClusterID][]string{"c1": {"node1", "node2"}, "c2": {"node1"}} {
		st := labService("web", "shop", webPorts, []string{"10.96.0.1"}, func(d *mesh.Definition) { d.NodeLocal = true })
		for i, n := range nodes {
			st = labPods(st, id, "", netip.AddrFrom4([4]byte{10, 0, id[1], byte(i + 1)}).String())
			st.Endpoints[i].Workload.Node = n
		}
		l.services(id, st)
	}
	sel := l.selectWeb(labSidecar(func(v *View) { v.Node = "node1" }))
	require.Equal(t, map[string]uint32{" 10.0.49.1:80": 1}, sent(sel))
	require.Len(t, sel.Candidates, 3)
}

// TestGatewaysCarryTheWeightOfWhatTheyStandFor, exactly, in the locality of the
// pods, each gateway once per locality.
func TestGatewaysCarryTheWeightOfWhatTheyStandFor(t *testing.T) {
	l := netLab(nil, gatewayAt("203.0.113.1"), gatewayAt("203.0.113.2"), gatewayAt("203.0.113.3"))
	webPod(l, "c1", "10.0.0.1", inRegion("r1"))
	webPod(l, "c2", "10.0.0.1", inRegion("r2"))
	webPod(l, "c2", "10.0.0.2", inRegion("r2"), weighing(4))
	webPod(l, "c2", "10.0.0.3", inRegion("r3"))
	require.Equal(t, map[string]uint32{
		"r1 10.0.0.1:80":       3,
		"r2 203.0.113.1:15443": 5, "r2 203.0.113.2:15443": 5, "r2 203.0.113.3:15443": 5,
		"r3 203.0.113.1:15443": 1, "r3 203.0.113.2:15443": 1, "r3 203.0.113.3:15443": 1,
	}, sent(l.selectWeb(viewOn("n1"))))

	grpc := viewOn("n1", func(v *View) { v.Dialect = mesh.DialectGRPC })
	require.Equal(t, map[string]uint32{
		"r1 10.0.0.1:80":       3,
		"r2 203.0.113.1:15443": 6, "r2 203.0.113.2:15443": 6, "r2 203.0.113.3:15443": 6,
	}, sent(l.selectWeb(grpc)), "gRPC refuses an address that is there twice")
}

// TestOwnGatewaysFirst: the endpoint's own cluster's, then any of the network,
// also if its own have the wrong family.
func TestOwnGatewaysFirst(t *testing.T) {
	l := newLab(nil, "c2", "c3")
	l.sinks["c2"].Apply(registry.Update{Cluster: &registry.ClusterState{Network: "n2", Gateways: []mesh.NetworkGateway{
		{Network: "n2", Cluster: "c2", Host: "203.0.113.2", Port: 15443}}}})
	own := registry.ClusterState{Network: "n2", Gateways: []mesh.NetworkGateway{{Network: "n2", Cluster: "c3", Host: "203.0.113.3", Port: 15443}}}
	l.sinks["c3"].Apply(registry.Update{Cluster: &own})
	webPod(l, "c3", "10.0.0.1")
	require.Equal(t, map[string]uint32{" 203.0.113.3:15443": 2}, sent(l.selectWeb(viewOn("n1"))))

	own.Gateways = []mesh.NetworkGateway{{Network: "n2", Cluster: "c3", Host: "fd00::3", Port: 15443}}
	l.sinks["c3"].Apply(registry.Update{Cluster: &own})
	require.Equal(t, map[string]uint32{" 203.0.113.2:15443": 2}, sent(l.selectWeb(viewOn("n1"))))
}

// TestGRPCLeavesOutPlainPodsAmongMTLS: one upstream speaks mTLS or not.
func TestGRPCLeavesOutPlainPodsAmongMTLS(t *testing.T) {
	l := netLab(nil)
	webPod(l, "c1", "10.0.0.1")
	webPod(l, "c1", "10.0.0.2", plain)
	grpc := viewOn("n1", func(v *View) { v.Dialect = mesh.DialectGRPC })
	require.Equal(t, map[string]uint32{" 10.0.0.1:80": 1}, sent(l.selectWeb(grpc)))
	require.Len(t, sent(l.selectWeb(viewOn("n1"))), 2)
}

// TestSNIUpstreamsLeadToMTLSOnly: a gateway cannot open what it passes on.
func TestSNIUpstreamsLeadToMTLSOnly(t *testing.T) {
	l := netLab(nil)
	webPod(l, "c1", "10.0.0.1")
	webPod(l, "c1", "10.0.0.2", plain)
	s := l.in().Catalog.Service(webKey)
	sel := selection(l.in(), viewOn("n1"), served{s, s.Ports[0]}, "", true)
	require.Equal(t, map[string]uint32{" 10.0.0.1:80": 1}, sent(sel))
	require.Equal(t, VerdictSNINotMTLS, sel.Candidates[1].Verdict.Code)
}

// TestPortNamesDecide: a cluster that calls the port's number otherwise does
// not serve it, and its endpoints say so.
func TestPortNamesDecide(t *testing.T) {
	l := newLab(nil, "c2")
	l.services("c1", labPods(labService("web", "shop", webPorts, nil), "c1", "", "10.0.0.1"))
	l.services("c2", labPods(labService("web", "shop", labPorts(labPort("web", 80, mesh.ProtocolHTTP)), nil), "c2", "", "10.0.0.2"))
	sel := l.selectWeb(labSidecar())
	require.Equal(t, map[string]uint32{" 10.0.0.1:80": 1}, sent(sel))
	require.Len(t, sel.Candidates, 2)
	require.Equal(t, VerdictPortName, sel.Candidates[1].Verdict.Code)
}

func TestClusterLocalHosts(t *testing.T) {
	setting := func(local bool, hosts ...string) *meshconfig.MeshConfig_ServiceSettings {
		return &meshconfig.MeshConfig_ServiceSettings{Hosts: hosts, Settings: &meshconfig.MeshConfig_ServiceSettings_Settings{ClusterLocal: local}}
	}
	discovery := &meshconfig.ProxyConfig{DiscoveryAddress: "istiod.istio-system.svc:15012"}
	tests := []struct {
		host     mesh.Hostname
		settings []*meshconfig.MeshConfig_ServiceSettings
		want     bool
	}{
		{host: "web.shop.svc.cluster.local"},
		{host: "kubernetes.default.svc.cluster.local", want: true},
		{host: "kubernetes.default.svc.other.domain", want: true},
		{host: "kubernetes.shop.svc.cluster.local"},
		{host: "kube-dns.kube-system.svc.cluster.local", want: true},
		{host: "kube-system.shop.svc.cluster.local"},
		{host: "istiod.istio-system.svc.cluster.local", want: true},
		{host: "istiod-canary.istio-system.svc.cluster.local"},
		{host: "istiod.istio-system.svcx.example"},
		{host: "web.shop.svc.cluster.local", settings: []*meshconfig.MeshConfig_ServiceSettings{setting(true, "*.shop.svc.cluster.local")}, want: true},
		{host: "web.shopping.svc.cluster.local", settings: []*meshconfig.MeshConfig_ServiceSettings{setting(true, "*.shop.svc.cluster.local")}},
		{host: "kube-dns.kube-system.svc.cluster.local", settings: []*meshconfig.MeshConfig_ServiceSettings{setting(false, "*.kube-system.svc.cluster.local")}},
		{host: "web.shop.svc.cluster.local", want: true,
			settings: []*meshconfig.MeshConfig_ServiceSettings{setting(true, "web.shop.svc.cluster.local"), setting(false, "*.svc.cluster.local")}},
		{host: "web.shop.svc.cluster.local", settings: []*meshconfig.MeshConfig_ServiceSettings{setting(true, "*"), setting(false, "*.shop.svc.cluster.local")}},
		{host: "web.shop.svc.cluster.local", settings: []*meshconfig.MeshConfig_ServiceSettings{setting(true, "*"), setting(false, "*")}},
	}
	for _, c := range tests {
		s := mesh.Settings{Mesh: &meshconfig.MeshConfig{DefaultConfig: discovery, ServiceSettings: c.settings}}
		require.Equal(t, c.want, clusterLocal(s, c.host), "%s with %v", c.host, c.settings)
	}
	require.False(t, clusterLocal(mesh.Settings{}, "web.shop.svc.cluster.local"))
}

// TestSharesAddUp: nothing is lost or won by splitting a weight.
func TestSharesAddUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, n := rapid.Uint32().Draw(t, "weight"), rapid.IntRange(1, 50).Draw(t, "gateways")
		var sum uint64
		least, most := uint32(math.MaxUint32), uint32(0)
		for i := range n {
			part := share(w, i, n)
			sum, least, most = sum+uint64(part), min(least, part), max(most, part)
		}
		if sum != uint64(w) || most-least > 1 {
			t.Fatalf("%d over %d: sum %d, parts from %d to %d", w, n, sum, least, most)
		}
	})
}

// TestWeightsFit: proxies reject assignments whose weights exceed 32 bits.
func TestWeightsFit(t *testing.T) {
	l := netLab(nil)
	webPod(l, "c1", "10.0.0.1", weighing(math.MaxUint32))
	webPod(l, "c1", "10.0.0.2", weighing(math.MaxUint32))
	webPod(l, "c1", "10.0.0.3", weighing(1))
	got := sent(l.selectWeb(viewOn("n1")))
	require.Equal(t, got[" 10.0.0.1:80"], got[" 10.0.0.2:80"])
	require.Equal(t, uint32(1), got[" 10.0.0.3:80"])
	require.LessOrEqual(t, uint64(got[" 10.0.0.1:80"])*2+1, uint64(math.MaxUint32))
	require.Greater(t, got[" 10.0.0.1:80"], uint32(1<<30))
}
