package build

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networkingv1 "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/testenv/validate"
)

// upstreams builds everything that is listed for a view, and checks it.
func (l *lab) upstreams(t *testing.T, v View) map[string]*clusterv3.Cluster {
	t.Helper()
	out := map[string]*clusterv3.Cluster{}
	for _, name := range (Upstreams{}).List(l.in(), v) {
		m, err := Upstreams{}.Build(l.in(), v, name)
		require.NoError(t, err)
		require.NotNil(t, m, name)
		require.NoError(t, validate.Options{GRPC: v.Dialect == mesh.DialectGRPC}.Message(m))
		out[name] = m.(*clusterv3.Cluster)
	}
	return out
}

// shopLab has a service of every kind.
func shopLab() *lab {
	l := newLab(&meshconfig.MeshConfig{TrustDomain: "td", TrustDomainAliases: []string{"old"}}, "c2")
	as := func(st registry.ServiceState, accounts ...string) registry.ServiceState {
		for i := range st.Endpoints {
			w := *st.Endpoints[i].Workload
			w.Identity = mesh.Identity{TrustDomain: "td", Namespace: "shop", ServiceAccount: accounts[i%len(accounts)]}
			st.Endpoints[i].Workload = &w
		}
		return st
	}
	l.services("c1",
		as(labPods(labService("web", "shop", labPorts(labPort("http", 80, mesh.ProtocolHTTP), labPort("grpc", 90, mesh.ProtocolGRPC),
			labPort("any", 91, mesh.ProtocolAuto), labPort("dns", 53, mesh.ProtocolUDP)), []string{"10.96.0.1"}), "c1", "", "10.0.0.1"), "web"),
		as(labPods(labService("store", "shop", labPorts(labPort("tcp", 7000, mesh.ProtocolTCP)), nil, labHeadless), "c1", "", "10.0.0.2", "10.0.0.3"), "store"),
		labService("hidden", "shop", labPorts(labPort("http", 80, mesh.ProtocolHTTP)), []string{"10.96.0.2"}, labExport("elsewhere")),
		labService("alias", "shop", labPorts(labPort("http", 80, mesh.ProtocolHTTP)), nil, labAlias("web.shop.svc.cluster.local")),
	)
	l.services("c2", as(labPods(labService("web", "shop", labPorts(labPort("http", 80, mesh.ProtocolHTTP)), []string{"10.97.0.1"},
		func(d *mesh.Definition) { d.Identities = []string{"spiffe://td/ns/shop/sa/named", "not-an-id"} }), "c2", "", "10.1.0.1"), "web-east"))
	return l
}

func passthroughGateway(hosts ...string) registry.ObjectState {
	k := mesh.ObjectKey{Kind: mesh.KindGateway, Namespace: "istio-system", Name: "east-west"}
	return registry.ObjectState{Key: k, Object: &mesh.Object{Key: k, Version: strings.Join(hosts, ","), Spec: &networkingv1.Gateway{
		Selector: map[string]string{"istio": "eastwestgateway"},
		Servers: []*networkingv1.Server{{Hosts: hosts, Port: &networkingv1.Port{Number: 15443, Protocol: "TLS", Name: "tls"},
			Tls: &networkingv1.ServerTLSSettings{Mode: networkingv1.ServerTLSSettings_AUTO_PASSTHROUGH}}}}}}
}

func routerOf(labels map[string]string, edits ...func(*View)) View {
	return labSidecar(append([]func(*View){func(v *View) {
		v.Kind, v.Interception, v.Inbound = mesh.ProxyRouter, "", MakeInbound(InboundSpec{Labels: labels})
	}}, edits...)...)
}

func dialect(d mesh.Dialect) func(*View) { return func(v *View) { v.Dialect = d } }

// TestUpstreamGoldens shows every kind of upstream as each kind of proxy gets it.
func TestUpstreamGoldens(t *testing.T) {
	l := shopLab()
	l.sinks["c1"].Apply(registry.Update{Objects: []registry.ObjectState{passthroughGateway("*.local")}})
	serving := func(v *View) {
		v.Inbound = MakeInbound(InboundSpec{Targets: []InboundTarget{
			{Hostname: "web.shop.svc.cluster.local", Name: "web", Namespace: "shop", Port: 80, Target: 8080, Protocol: string(mesh.ProtocolHTTP)},
			{Hostname: "web2.shop.svc.cluster.local", Name: "web2", Namespace: "shop", Port: 80, Target: 8080, Protocol: string(mesh.ProtocolHTTP)},
			{Hostname: "web.shop.svc.cluster.local", Name: "web", Namespace: "shop", Port: 90, Target: 9090, Protocol: string(mesh.ProtocolGRPC)},
		}})
	}
	both := func(v *View) { v.IPv6 = true }
	for name, v := range map[string]View{
		"istio-sidecar": labSidecar(serving),
		"plain-envoy":   labSidecar(serving, both, dialect(mesh.DialectEnvoy)),
		"router":        routerOf(map[string]string{"istio": "eastwestgateway"}),
		"grpc":          labSidecar(dialect(mesh.DialectGRPC)),
	} {
		t.Run(name, func(t *testing.T) {
			built := l.upstreams(t, v)
			var list []proto.Message
			for _, n := range slices.Sorted(maps.Keys(built)) {
				list = append(list, built[n])
			}
			golden(t, "upstreams/"+name+".json", resourceText(t, list...))
		})
	}
}

func TestUpstreamLists(t *testing.T) {
	l := shopLab()
	common := []string{"outbound|7000||store.shop.svc.cluster.local", "outbound|80||web.shop.svc.cluster.local",
		"outbound|90||web.shop.svc.cluster.local", "outbound|91||web.shop.svc.cluster.local"}
	require.Equal(t, common, Upstreams{}.List(l.in(), labSidecar(dialect(mesh.DialectGRPC))))
	router := routerOf(map[string]string{"istio": "eastwestgateway"})
	require.Equal(t, append([]string{UpstreamBlackHole}, common...), Upstreams{}.List(l.in(), router))
	require.Equal(t, append([]string{UpstreamBlackHole, UpstreamInboundPassthrough, UpstreamPassthrough}, common...), Upstreams{}.List(l.in(), labSidecar()))

	l.sinks["c1"].Apply(registry.Update{Objects: []registry.ObjectState{passthroughGateway("other/*", "shop/store.shop.svc.cluster.local")}})
	require.Contains(t, Upstreams{}.List(l.in(), router), "outbound_.7000_._.store.shop.svc.cluster.local")
	require.Contains(t, Upstreams{}.List(l.in(), router), "outbound_.80_._.web.shop.svc.cluster.local", "also of hosts that no server names")
	require.Equal(t, append([]string{UpstreamBlackHole}, common...), Upstreams{}.List(l.in(), routerOf(map[string]string{"istio": "ingress"})))
	require.Contains(t, Upstreams{}.List(l.in(), labSidecar(func(v *View) { v.Namespace = "elsewhere" })), "outbound|80||hidden.shop.svc.cluster.local")
}

// tlsOf returns the TLS context by which an upstream reaches mesh peers.
func tlsOf(t *testing.T, u *clusterv3.Cluster) *tlsv3.UpstreamTlsContext {
	t.Helper()
	socket := u.GetTransportSocket()
	for _, m := range u.GetTransportSocketMatches() {
		if m.GetName() == "tlsMode-istio" {
			socket = m.GetTransportSocket()
		}
	}
	if socket == nil {
		return nil
	}
	out := &tlsv3.UpstreamTlsContext{}
	require.NoError(t, socket.GetTypedConfig().UnmarshalTo(out))
	return out
}

// TestPeersOfAllClustersAreAccepted: the identities of all clusters' endpoints
// and those that definitions name, repeated for each alias of the trust domain.
func TestPeersOfAllClustersAreAccepted(t *testing.T) {
	u := shopLab().upstreams(t, labSidecar())["outbound|80||web.shop.svc.cluster.local"]
	c := tlsOf(t, u).GetCommonTlsContext().GetCombinedValidationContext().GetDefaultValidationContext()
	var got []string
	for _, m := range c.GetMatchSubjectAltNames() { //nolint:staticcheck // the field that all versions read
		got = append(got, m.GetExact())
	}
	require.Equal(t, []string{"not-an-id",
		"spiffe://old/ns/shop/sa/named", "spiffe://old/ns/shop/sa/web", "spiffe://old/ns/shop/sa/web-east",
		"spiffe://td/ns/shop/sa/named", "spiffe://td/ns/shop/sa/web", "spiffe://td/ns/shop/sa/web-east"}, got)
}

// TestHeadlessIsEncryptedOnlyIfAllCan: the original destination cannot be told
// apart by metadata, so one pod without sidecar means plain text for all.
func TestHeadlessIsEncryptedOnlyIfAllCan(t *testing.T) {
	const name = "outbound|7000||store.shop.svc.cluster.local"
	l := shopLab()
	require.NotNil(t, tlsOf(t, l.upstreams(t, labSidecar())[name]))
	st := labPods(labService("store", "shop", labPorts(labPort("tcp", 7000, mesh.ProtocolTCP)), nil, labHeadless), "c1", "", "10.0.0.2", "10.0.0.3")
	st.Endpoints[1].Workload.MTLS = false
	l.services("c1", st)
	require.Nil(t, tlsOf(t, l.upstreams(t, labSidecar())[name]))
	require.Equal(t, clusterv3.Cluster_EDS, l.upstreams(t, routerOf(nil))[name].GetType(), "routers are sent the pods")
	require.NotNil(t, tlsOf(t, l.upstreams(t, routerOf(nil))[name]))
}

// TestGRPCIsEncryptedIfAnyCan: what is not then gets no traffic (see
// TestGRPCLeavesOutPlainPodsAmongMTLS).
func TestGRPCIsEncryptedIfAnyCan(t *testing.T) {
	l := netLab(nil)
	grpc := viewOn("n1", dialect(mesh.DialectGRPC))
	const name = "outbound|80||web.shop.svc.cluster.local"
	webPod(l, "c1", "10.0.0.1", plain)
	require.Nil(t, tlsOf(t, l.upstreams(t, grpc)[name]))
	webPod(l, "c1", "10.0.0.2")
	require.Equal(t, "outbound_.80_._.web.shop.svc.cluster.local", tlsOf(t, l.upstreams(t, grpc)[name]).GetSni())
}

func TestUpstreamSettings(t *testing.T) {
	l := shopLab()
	const name = "outbound|80||web.shop.svc.cluster.local"
	require.Equal(t, 10*time.Second, l.upstreams(t, labSidecar())[name].GetConnectTimeout().AsDuration())
	m := noAutoMTLS()
	m.ConnectTimeout = durationpb.New(3 * time.Second)
	l.store.SetSettings(mesh.Settings{Mesh: m})
	u := l.upstreams(t, labSidecar())[name]
	require.Equal(t, 3*time.Second, u.GetConnectTimeout().AsDuration())
	require.Nil(t, tlsOf(t, u))
	m = proto.Clone(m).(*meshconfig.MeshConfig)
	m.ConnectTimeout = durationpb.New(-time.Second)
	l.store.SetSettings(mesh.Settings{Mesh: m})
	require.Equal(t, 10*time.Second, l.upstreams(t, labSidecar())[name].GetConnectTimeout().AsDuration())
}

// TestTooLongServerNameIsRefusedByName: TLS has no room for it, and proxies
// would reject all upstreams with it.
func TestTooLongServerNameIsRefusedByName(t *testing.T) {
	l := newLab(nil)
	st := labService("web", "shop", webPorts, []string{"10.96.0.1"}, func(d *mesh.Definition) {
		d.Origin = mesh.ObjectRef{Cluster: "c1", Kind: "ServiceEntry", Namespace: "shop", Name: "long"}
	})
	st.Key.Hostname = mesh.Hostname(strings.Repeat("a", 60) + "." + strings.Repeat(strings.Repeat("b", 60)+".", 3) + "com")
	l.services("c1", labPods(st, "c1", "", "10.0.0.1"))
	for _, d := range mixDialects {
		_, err := Upstreams{}.Build(l.in(), labSidecar(dialect(d)), UpstreamName(DirectionOutbound, 80, "", st.Key.Hostname))
		require.ErrorContains(t, err, "ServiceEntry shop/long in cluster c1")
	}
}

// TestAffectedIsNarrow: a change of one service concerns no other, and a change
// of endpoints no upstream.
func TestAffectedIsNarrow(t *testing.T) {
	l := shopLab()
	names := []string{"outbound_.80_._.web.shop.svc.cluster.local", "outbound_.90_._.web.shop.svc.cluster.local", "outbound_.91_._.web.shop.svc.cluster.local",
		"outbound|80||web.shop.svc.cluster.local", "outbound|90||web.shop.svc.cluster.local", "outbound|91||web.shop.svc.cluster.local"}
	st := labPods(labService("web", "shop", l.in().Catalog.Service(webKey).In["c1"].Ports, []string{"10.96.0.1"}), "c1", "", "10.0.0.1", "10.0.0.9")
	for i := range st.Endpoints {
		st.Endpoints[i].Workload.Identity = mesh.Identity{TrustDomain: "td", Namespace: "shop", ServiceAccount: "web"}
	}
	l.services("c1", st)
	require.Equal(t, Affected{Names: names}, Assignments{}.Affected(l.in(), labSidecar(), &l.last))
	for _, d := range mixDialects {
		require.Equal(t, Affected{}, Upstreams{}.Affected(l.in(), labSidecar(dialect(d)), &l.last))
	}
	l.sinks["c1"].Apply(registry.Update{Objects: []registry.ObjectState{passthroughGateway("*")}})
	require.Equal(t, Affected{}, Upstreams{}.Affected(l.in(), labSidecar(), &l.last))
	require.Equal(t, Affected{All: true}, Upstreams{}.Affected(l.in(), routerOf(nil), &l.last))
	require.Equal(t, Affected{}, Assignments{}.Affected(l.in(), routerOf(nil), &l.last))
}

// TestProxiesShare: views that get the same resource are the same key.
func TestProxiesShare(t *testing.T) {
	l := shopLab()
	a := labSidecar(func(v *View) { v.Node, v.Locality.Region = "node1", "r1" })
	b := labSidecar(func(v *View) {
		v.Cluster, v.Namespace, v.Node, v.Dialect = "c2", "other", "node2", mesh.DialectEnvoy
		v.Inbound = MakeInbound(InboundSpec{MeshID: "m"})
	})
	const web = "outbound|80||web.shop.svc.cluster.local"
	require.Equal(t, Assignments{}.Project(l.in(), a, web), Assignments{}.Project(l.in(), b, web))
	b.Dialect = mesh.DialectIstio
	require.Equal(t, View{}, Upstreams{}.Project(l.in(), b, web))
	require.Equal(t, Upstreams{}.Project(l.in(), a, web), Upstreams{}.Project(l.in(), routerOf(nil), web))
	require.NotEqual(t, Upstreams{}.Project(l.in(), a, "outbound|91||web.shop.svc.cluster.local"), Upstreams{}.Project(l.in(), routerOf(nil), "outbound|91||web.shop.svc.cluster.local"))
}

// TestOwnNamespaceGoesFirst: one host, defined by two namespaces.
func TestOwnNamespaceGoesFirst(t *testing.T) {
	l := newLab(nil)
	for _, ns := range []string{"a", "b"} {
		st := labService("web", ns, webPorts, []string{"10.96.0.1"})
		st.Key.Hostname = "web.example.com"
		l.services("c1", labPods(st, "c1", "", map[string]string{"a": "10.0.0.1", "b": "10.0.0.2"}[ns]))
	}
	for ns, want := range map[string]string{"a": "10.0.0.1:80", "b": "10.0.0.2:80", "c": "10.0.0.1:80"} {
		x := Explain(l.in(), labSidecar(func(v *View) { v.Namespace = ns }), "web.example.com", 80)
		require.Len(t, x.Dialled, 1)
		require.Equal(t, want, x.Dialled[0].Address, "from namespace %s", ns)
	}
}
