package build

import (
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"github.com/stretchr/testify/require"
	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/xds/match"
)

// TestHTTPProxyPort: where a proxy is an HTTP proxy to its workload.
func TestHTTPProxyPort(t *testing.T) {
	for name, tt := range map[string]struct {
		mesh     int32
		metadata map[string]any
		edit     func(*mesh.Proxy)
		want     string
	}{
		"nobody asks":               {},
		"the mesh":                  {mesh: 15080, want: "127.0.0.1_15080"},
		"the proxy":                 {metadata: map[string]any{"HTTP_PROXY_PORT": "3128"}, want: "127.0.0.1_3128"},
		"the proxy before the mesh": {mesh: 15080, metadata: map[string]any{"HTTP_PROXY_PORT": 3128.0}, want: "127.0.0.1_3128"},
		"the proxy wants none":      {mesh: 15080, metadata: map[string]any{"HTTP_PROXY_PORT": "0"}},
		"no port":                   {mesh: 15080, metadata: map[string]any{"HTTP_PROXY_PORT": "70000"}, want: "127.0.0.1_15080"},
		"of the proxy itself":       {mesh: 15001},
		"of the workload":           {mesh: 8080},
		"of the agent":              {mesh: 15021, metadata: map[string]any{"ENVOY_STATUS_PORT": 15021.0}},
		"that it may not bind":      {mesh: 88, metadata: map[string]any{"UNPRIVILEGED_POD": "true"}},
		"a router":                  {mesh: 15080, edit: func(p *mesh.Proxy) { p.Kind = mesh.ProxyRouter }},
		"gRPC":                      {mesh: 15080, edit: func(p *mesh.Proxy) { p.Dialect = mesh.DialectGRPC }},
		"without interception":      {mesh: 15080, edit: func(p *mesh.Proxy) { p.Interception = mesh.InterceptNone }, want: "127.0.0.1_15080"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(&meshconfig.MeshConfig{ProxyHttpPort: tt.mesh})
			st := labService("own", "shop", labPorts(labPort("http", 8080, mesh.ProtocolHTTP)), []string{"10.96.0.1"})
			st.Definition.Selector = map[string]string{"app": "me"}
			l.services("c1", st)
			p := labProxy(func(p *mesh.Proxy) { p.Metadata, p.Labels = tt.metadata, map[string]string{"app": "me"} })
			if tt.edit != nil {
				tt.edit(p)
			}
			v := DeriveView(l.in(), p, nil)
			require.Equal(t, tt.want, httpProxyName(v))
			if tt.want != "" {
				require.Contains(t, Listeners{}.List(l.in(), Listeners{}.ListView(v)), tt.want)
				require.NotNil(t, l.listener(t, Listeners{}.Project(l.in(), v, tt.want), tt.want))
				require.Zero(t, Listeners{}.Project(l.in(), v, ListenerVirtualOutbound).Tuning.httpProxy, "concerns that listener alone")
			}
		})
	}
}

// TestHTTPProxyRoutes: host and port of the URL decide, each port for itself.
func TestHTTPProxyRoutes(t *testing.T) {
	l := newLab(&meshconfig.MeshConfig{OutboundTrafficPolicy: &meshconfig.MeshConfig_OutboundTrafficPolicy{Mode: meshconfig.MeshConfig_OutboundTrafficPolicy_REGISTRY_ONLY}})
	l.services("c1",
		labService("web", "shop", labPorts(labPort("http", 80, mesh.ProtocolHTTP), labPort("admin", 8080, mesh.ProtocolHTTP), labPort("db", 3306, mesh.ProtocolTCP)), []string{"fd00::1"}),
		labService("api", "other", labPorts(labPort("any", 9000, mesh.ProtocolAuto)), []string{"10.96.0.2"}),
		labService("hidden", "other", labPorts(labPort("http", 80, mesh.ProtocolHTTP)), nil, labExport(".")))
	r := l.routes(t, labSidecar(), routeHTTPProxy).(*routev3.RouteConfiguration)
	require.False(t, r.GetIgnorePortInHostMatching(), "ports are told apart")
	for host, want := range map[string]string{
		"web.shop":          "web.shop.svc.cluster.local:80",
		"web:80":            "web.shop.svc.cluster.local:80",
		"web.shop.svc:8080": "web.shop.svc.cluster.local:8080",
		"[fd00::1]":         "web.shop.svc.cluster.local:80",
		"[fd00::1]:8080":    "web.shop.svc.cluster.local:8080",
		"api.other:9000":    "api.other.svc.cluster.local:9000",
		"api.other":         blockAll,
		"web:3306":          blockAll,
		"hidden.other":      blockAll,
		"other.example":     blockAll,
	} {
		require.Equal(t, want, match.VirtualHost(r, host).GetName(), host)
	}
}
