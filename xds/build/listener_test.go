package build

import (
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networkingv1 "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// labShop is a small mesh with a port of every kind.
func labShop(settings *meshconfig.MeshConfig) *lab {
	l := newLab(settings, "c2")
	l.services("c1",
		labService("web", "shop", labPorts(labPort("http", 80, mesh.ProtocolHTTP), labPort("grpc", 9000, mesh.ProtocolGRPC)), []string{"10.0.0.1", "fd00::1"}),
		labService("db", "shop", labPorts(labPort("tcp", 5432, mesh.ProtocolTCP), labPort("", 7000, mesh.ProtocolAuto)), []string{"10.0.0.2", "fd00::2"}),
		labPods(labService("store", "shop", labPorts(labPort("tcp", 7001, mesh.ProtocolTCP)), nil, labHeadless), "c1", "", "10.1.0.1", "10.1.0.2"))
	return l
}

func labRouter(labels map[string]string) View {
	return View{Kind: mesh.ProxyRouter, Cluster: "c1", Namespace: "istio-system", Domain: DefaultDomain, IPv4: true, Inbound: MakeInbound(InboundSpec{Labels: labels})}
}

func labGateway(name string, number uint32, mode networkingv1.ServerTLSSettings_TLSmode, hosts ...string) registry.ObjectState {
	k := mesh.ObjectKey{Kind: mesh.KindGateway, Namespace: "istio-system", Name: name}
	return registry.ObjectState{Key: k, Object: &mesh.Object{Key: k, Version: "1", Spec: &networkingv1.Gateway{
		Selector: map[string]string{"istio": "eastwest"},
		Servers: []*networkingv1.Server{{Port: &networkingv1.Port{Number: number, Name: "tls", Protocol: "TLS"}, Hosts: hosts,
			Tls: &networkingv1.ServerTLSSettings{Mode: mode}}}}}}
}

// TestGoldenListeners pins every detail of one listener of each kind.
func TestGoldenListeners(t *testing.T) {
	full := &meshconfig.MeshConfig{
		AccessLogFile: "/dev/stdout", EnableTracing: true, TrustDomain: "mesh.example", TrustDomainAliases: []string{"old.example"},
		DefaultProviders: &meshconfig.MeshConfig_DefaultProviders{Metrics: []string{"prometheus"}},
	}
	l := labShop(full)
	l.sinks["c1"].Apply(registry.Update{Objects: []registry.ObjectState{labGateway("ew", 15443, networkingv1.ServerTLSSettings_AUTO_PASSTHROUGH, "*.local")}})
	sidecar := DeriveView(l.in(), labProxy(func(p *mesh.Proxy) { p.ProxyConfig, p.MeshID = map[string]any{"tracing": map[string]any{}}, "m" }), nil)
	plain := sidecar
	plain.Dialect, plain.Tracer = mesh.DialectEnvoy, Tracer{}
	grpc := View{Kind: mesh.ProxySidecar, Dialect: mesh.DialectGRPC, Namespace: "shop", Domain: DefaultDomain}
	for file, tc := range map[string]struct {
		v    View
		name string
	}{
		"http":              {sidecar, "0.0.0.0_80"},
		"tcp":               {sidecar, "10.0.0.2_5432"},
		"sniffed":           {sidecar, "10.0.0.2_7000"},
		"virtual-outbound":  {sidecar, ListenerVirtualOutbound},
		"virtual-inbound":   {sidecar, ListenerVirtualInbound},
		"plain-http":        {plain, "0.0.0.0_80"},
		"plain-inbound":     {plain, ListenerVirtualInbound},
		"passthrough":       {labRouter(map[string]string{"istio": "eastwest"}), "0.0.0.0_15443"},
		"grpc-client":       {grpc, "web.shop.svc.cluster.local:9000"},
		"grpc-client-short": {grpc, "web:9000"},
		"grpc-server":       {grpc, grpcServerPrefix + "[::]:50051"},
	} {
		t.Run(file, func(t *testing.T) {
			m := l.listener(t, tc.v, tc.name)
			require.NotNil(t, m)
			text := resourceText(t, m)
			golden(t, "listeners/"+file+".json", text)
			if tc.v.Dialect == mesh.DialectEnvoy {
				require.NotContains(t, string(text), `"istio.`, "an upstream Envoy has no filters of Istio")
				require.NotContains(t, string(text), "TypedStruct")
			}
		})
	}
}

func TestListenersOfASidecar(t *testing.T) {
	l := labShop(&meshconfig.MeshConfig{})
	v4 := labSidecar()
	require.Equal(t, []string{"0.0.0.0_80", "0.0.0.0_9000", "10.0.0.2_5432", "10.0.0.2_7000", "10.1.0.1_7001", "10.1.0.2_7001",
		ListenerVirtualInbound, ListenerVirtualOutbound}, Listeners{}.List(l.in(), v4))
	v6 := labSidecar(func(v *View) { v.IPv4, v.IPv6 = false, true })
	require.Equal(t, []string{"::_80", "::_9000", "fd00::2_5432", "fd00::2_7000", ListenerVirtualInbound, ListenerVirtualOutbound}, Listeners{}.List(l.in(), v6))
	both := labSidecar(func(v *View) { v.IPv6 = true })
	require.Contains(t, Listeners{}.List(l.in(), both), "fd00::2_5432")
	wild := l.listener(t, both, "0.0.0.0_80").(*listenerv3.Listener)
	require.Equal(t, "::", wild.GetAdditionalAddresses()[0].GetAddress().GetSocketAddress().GetAddress())
	require.Nil(t, l.listener(t, v4, "::_80"))
	require.Nil(t, l.listener(t, v4, "fd00::2_5432"))
}

func TestInterceptionModes(t *testing.T) {
	l := labShop(&meshconfig.MeshConfig{})
	tproxy := labSidecar(func(v *View) { v.Interception = mesh.InterceptTProxy })
	for _, n := range []string{ListenerVirtualInbound, ListenerVirtualOutbound} {
		require.True(t, l.listener(t, tproxy, n).(*listenerv3.Listener).GetTransparent().GetValue())
		require.Nil(t, l.listener(t, labSidecar(), n).(*listenerv3.Listener).GetTransparent())
	}
	require.Equal(t, "envoy.filters.listener.original_src", l.listener(t, tproxy, ListenerVirtualInbound).(*listenerv3.Listener).GetListenerFilters()[1].GetName())
	require.Equal(t, Listeners{}.Project(l.in(), labSidecar(), "10.0.0.2_5432"), Listeners{}.Project(l.in(), tproxy, "10.0.0.2_5432"),
		"how traffic is intercepted makes no difference to the listener of a service")

	none := labSidecar(func(v *View) {
		v.Interception = mesh.InterceptNone
		v.Inbound = MakeInbound(InboundSpec{Targets: []InboundTarget{{Target: 9000}}})
	})
	require.Equal(t, []string{"127.0.0.1_5432", "127.0.0.1_7000", "127.0.0.1_80"}, Listeners{}.List(l.in(), none),
		"on the loopback address, but not on the workload's own port, nor for what dials where the client meant to go")
	require.Equal(t, "outbound|5432||db.shop.svc.cluster.local", upstreamOf(t, l.listener(t, none, "127.0.0.1_5432")))
	require.Nil(t, l.listener(t, none, "127.0.0.1_5432").(*listenerv3.Listener).GetBindToPort())
	own := l.listener(t, none, "127.0.0.1_80").(*listenerv3.Listener)
	require.Nil(t, own.GetBindToPort(), "binds its port")
	require.Equal(t, "127.0.0.1", own.GetAddress().GetSocketAddress().GetAddress())
}

func upstreamOf(t *testing.T, m proto.Message) string {
	t.Helper()
	require.NotNil(t, m)
	chains := m.(*listenerv3.Listener).GetFilterChains()
	filters := chains[0].GetFilters()
	tcp, err := filters[len(filters)-1].GetTypedConfig().UnmarshalNew()
	require.NoError(t, err)
	return tcp.(interface{ GetCluster() string }).GetCluster()
}

// TestAddressesThatTwoClaim: service ranges of clusters overlap.
func TestAddressesThatTwoClaim(t *testing.T) {
	tcp := labPorts(labPort("tcp", 5432, mesh.ProtocolTCP))
	at := "10.0.0.1_5432"
	inC2 := labSidecar(func(v *View) { v.Cluster = "c2" })
	t.Run("each cluster's own", func(t *testing.T) {
		l := newLab(&meshconfig.MeshConfig{}, "c2")
		l.services("c1", labService("a", "shop", tcp, []string{"10.0.0.1"}, labAge(2024)))
		l.services("c2", labService("b", "shop", tcp, []string{"10.0.0.1"}, labAge(2020)))
		require.Equal(t, "outbound|5432||a.shop.svc.cluster.local", upstreamOf(t, l.listener(t, labSidecar(), at)))
		require.Equal(t, "outbound|5432||b.shop.svc.cluster.local", upstreamOf(t, l.listener(t, inC2, at)))
	})
	t.Run("own HTTP before a stranger's TCP", func(t *testing.T) {
		l := newLab(&meshconfig.MeshConfig{}, "c2")
		l.services("c1", labService("a", "shop", labPorts(labPort("http", 5432, mesh.ProtocolHTTP)), []string{"10.0.0.1"}))
		l.services("c2", labService("b", "shop", tcp, []string{"10.0.0.1"}))
		require.Nil(t, l.listener(t, labSidecar(), at), "the address is served by 0.0.0.0_5432")
		require.NotContains(t, Listeners{}.List(l.in(), labSidecar()), at)
		require.Equal(t, "outbound|5432||b.shop.svc.cluster.local", upstreamOf(t, l.listener(t, inC2, at)))
	})
	t.Run("services before pods", func(t *testing.T) {
		l := newLab(&meshconfig.MeshConfig{}, "c2")
		l.services("c1", labPods(labService("a", "shop", tcp, nil, labHeadless, labAge(2000)), "c1", "", "10.0.0.1"),
			labService("b", "shop", tcp, []string{"10.0.0.1"}))
		require.Equal(t, "outbound|5432||b.shop.svc.cluster.local", upstreamOf(t, l.listener(t, labSidecar(), at)))
	})
	t.Run("the older of two", func(t *testing.T) {
		l := newLab(&meshconfig.MeshConfig{})
		l.services("c1", labService("a", "shop", tcp, []string{"10.0.0.1"}, labAge(2024)), labService("b", "shop", tcp, []string{"10.0.0.1"}, labAge(2020)))
		require.Equal(t, "outbound|5432||b.shop.svc.cluster.local", upstreamOf(t, l.listener(t, labSidecar(), at)))
	})
}

// TestHeadlessPods: only pods that the proxy can dial have a listener.
func TestHeadlessPods(t *testing.T) {
	l := newLab(&meshconfig.MeshConfig{ServiceSettings: []*meshconfig.MeshConfig_ServiceSettings{{
		Settings: &meshconfig.MeshConfig_ServiceSettings_Settings{ClusterLocal: true}, Hosts: []string{"local.shop.svc.cluster.local"}}}}, "c2")
	tcp := labPorts(labPort("tcp", 7000, mesh.ProtocolTCP))
	l.services("c1", labPods(labService("store", "shop", tcp, nil, labHeadless), "c1", "n1", "10.1.0.1"),
		labPods(labService("local", "shop", tcp, nil, labHeadless), "c1", "n1", "10.1.0.2"))
	l.services("c2", labPods(labService("store", "shop", tcp, nil, labHeadless), "c2", "n1", "10.1.0.3"),
		labPods(labService("local", "shop", tcp, nil, labHeadless), "c2", "n1", "10.1.0.4"))
	virtual := []string{ListenerVirtualInbound, ListenerVirtualOutbound}
	n1 := labSidecar(func(v *View) { v.Network = "n1" })
	require.Equal(t, append([]string{"10.1.0.1_7000", "10.1.0.2_7000", "10.1.0.3_7000"}, virtual...), Listeners{}.List(l.in(), n1))
	n2 := labSidecar(func(v *View) { v.Network = "n2" })
	require.Equal(t, virtual, Listeners{}.List(l.in(), n2), "an address of another network may be anybody's here")
	unknown := labSidecar(func(v *View) { v.Cluster = "c2" })
	require.Equal(t, append([]string{"10.1.0.1_7000", "10.1.0.3_7000", "10.1.0.4_7000"}, virtual...), Listeners{}.List(l.in(), unknown))
}

// TestTheProxysOwnPortsAreNotTaken: one service on port 15001 must not make
// every proxy refuse its listeners.
func TestTheProxysOwnPortsAreNotTaken(t *testing.T) {
	l := newLab(&meshconfig.MeshConfig{})
	l.services("c1", labService("evil", "shop", labPorts(labPort("http", 15001, mesh.ProtocolHTTP), labPort("http2", 15006, mesh.ProtocolHTTP)), []string{"10.0.0.1"}))
	require.Equal(t, []string{ListenerVirtualInbound, ListenerVirtualOutbound}, Listeners{}.List(l.in(), labSidecar()))
	require.Nil(t, l.listener(t, labSidecar(), "0.0.0.0_15001"))
	v := DeriveView(l.in(), labProxy(func(p *mesh.Proxy) { p.Labels = map[string]string{"app": "evil"} }), nil)
	for _, c := range l.listener(t, v, ListenerVirtualInbound).(*listenerv3.Listener).GetFilterChains() {
		if c.GetFilterChainMatch().GetDestinationPort().GetValue() == 15006 {
			require.Equal(t, chainInboundBlackHole, c.GetName())
		}
	}
}

func TestPassthroughListeners(t *testing.T) {
	auto, simple := networkingv1.ServerTLSSettings_AUTO_PASSTHROUGH, networkingv1.ServerTLSSettings_SIMPLE
	names := func(l *lab, v View) []string {
		var out []string
		for _, n := range (Listeners{}).List(l.in(), v) {
			for _, c := range l.listener(t, v, n).(*listenerv3.Listener).GetFilterChains() {
				out = append(out, n+" "+c.GetFilterChainMatch().GetServerNames()[0])
			}
		}
		return out
	}
	router := labRouter(map[string]string{"istio": "eastwest", "app": "gw"})
	for name, tc := range map[string]struct {
		gateways []registry.ObjectState
		router   View
		want     []string
	}{
		"all of the mesh": {[]registry.ObjectState{labGateway("a", 15443, auto, "*.local")}, router, []string{
			"0.0.0.0_15443 outbound_.5432_._.db.shop.svc.cluster.local", "0.0.0.0_15443 outbound_.7000_._.db.shop.svc.cluster.local",
			"0.0.0.0_15443 outbound_.7001_._.store.shop.svc.cluster.local",
			"0.0.0.0_15443 outbound_.80_._.web.shop.svc.cluster.local", "0.0.0.0_15443 outbound_.9000_._.web.shop.svc.cluster.local"}},
		"hosts choose": {[]registry.ObjectState{labGateway("a", 15443, auto, "shop/store.shop.svc.cluster.local")}, router,
			[]string{"0.0.0.0_15443 outbound_.7001_._.store.shop.svc.cluster.local"}},
		"hosts of two gateways on one port": {[]registry.ObjectState{labGateway("a", 15443, auto, "store.*"), labGateway("b", 15443, auto, "store.shop.svc.cluster.local", "*/store.shop.svc.cluster.local")}, router,
			[]string{"0.0.0.0_15443 outbound_.7001_._.store.shop.svc.cluster.local"}},
		"own namespace only":    {[]registry.ObjectState{labGateway("a", 15443, auto, "./*")}, router, nil},
		"other labels":          {[]registry.ObjectState{labGateway("a", 15443, auto, "*")}, labRouter(map[string]string{"istio": "ingress"}), nil},
		"another mode":          {[]registry.ObjectState{labGateway("a", 15443, simple, "*")}, router, nil},
		"another kind of proxy": {[]registry.ObjectState{labGateway("a", 15443, auto, "*.local")}, func() View { v := router; v.Kind = "waypoint"; return v }(), nil},
		"the pod's port, not the service's": {[]registry.ObjectState{labGateway("a", 443, auto, "store.shop.svc.cluster.local")},
			func() View {
				v := router
				v.Inbound = MakeInbound(InboundSpec{Labels: map[string]string{"istio": "eastwest"}, Opened: map[uint16]uint16{443: 15443}})
				return v
			}(),
			[]string{"0.0.0.0_15443 outbound_.7001_._.store.shop.svc.cluster.local"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := labShop(&meshconfig.MeshConfig{})
			l.sinks["c1"].Apply(registry.Update{Objects: tc.gateways})
			require.ElementsMatch(t, tc.want, names(l, tc.router))
			if len(tc.want) > 0 {
				require.True(t, ServesPassthrough(l.in(), tc.router))
			}
		})
	}
}

// TestProxiesShareListeners: what does not count is projected away.
func TestProxiesShareListeners(t *testing.T) {
	l := labShop(&meshconfig.MeshConfig{EnableTracing: true})
	a := labSidecar(func(v *View) {
		v.Inbound, v.Node, v.Locality = MakeInbound(InboundSpec{CanonicalName: "a"}), "n", mesh.Locality{Region: "r"}
	})
	b := labSidecar(func(v *View) { v.Inbound, v.Namespace = MakeInbound(InboundSpec{CanonicalName: "b"}), "other" })
	g := Listeners{}
	require.Equal(t, g.Project(l.in(), a, "0.0.0.0_80"), g.Project(l.in(), b, "0.0.0.0_80"), "of any workload and namespace")
	require.Equal(t, g.Project(l.in(), a, ListenerVirtualOutbound), g.Project(l.in(), b, ListenerVirtualOutbound))
	a.Tracer = MakeTracer(map[string]any{})
	b.Tracer = a.Tracer
	require.NotEqual(t, g.Project(l.in(), a, "0.0.0.0_80"), g.Project(l.in(), b, "0.0.0.0_80"), "spans name the workload")
	envoy := a
	envoy.Dialect = mesh.DialectEnvoy
	require.Equal(t, Routes{}.Project(l.in(), a, "80"), Routes{}.Project(l.in(), envoy, "80"))
}

func TestAccessLogFormats(t *testing.T) {
	none, err := accessLog(&meshconfig.MeshConfig{})
	require.NoError(t, err)
	require.Nil(t, none)
	for name, m := range map[string]*meshconfig.MeshConfig{
		"text-own":     {AccessLogFormat: "%PROTOCOL%"},
		"json-default": {AccessLogEncoding: meshconfig.MeshConfig_JSON},
		"json-own":     {AccessLogEncoding: meshconfig.MeshConfig_JSON, AccessLogFormat: `{"p": "%PROTOCOL%"}`},
		"json-bad":     {AccessLogEncoding: meshconfig.MeshConfig_JSON, AccessLogFormat: `{"p": `},
	} {
		m.AccessLogFile = "/dev/stderr"
		a, err := accessLog(m)
		require.NoError(t, err)
		golden(t, "accesslog/"+name+".json", resourceText(t, a))
	}
}
