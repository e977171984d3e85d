package build

import (
	"testing"

	"github.com/stretchr/testify/require"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/xds/match"
)

func toHost(hosts ...string) []*networking.HTTPRouteDestination {
	var out []*networking.HTTPRouteDestination
	for _, h := range hosts {
		out = append(out, &networking.HTTPRouteDestination{Destination: &networking.Destination{Host: h}, Weight: 50})
	}
	return out
}

func TestExplainRoute(t *testing.T) {
	l := newLab(nil)
	for _, n := range []string{"web", "old"} {
		l.services("c1", labService(n, "shop", labPorts(labPort("http", 80, mesh.ProtocolHTTP), labPort("tcp", 90, mesh.ProtocolTCP)), nil))
	}
	prefix := func(p string) []*networking.HTTPMatchRequest {
		return []*networking.HTTPMatchRequest{{Uri: &networking.StringMatch{MatchType: &networking.StringMatch_Prefix{Prefix: p}}}}
	}
	l.objects(
		labVirtualService("shop", "web", 2001, &networking.VirtualService{Hosts: []string{"web"}, Http: []*networking.HTTPRoute{
			{Name: "admin", Match: prefix("/admin"), DirectResponse: &networking.HTTPDirectResponse{Status: 403}},
			{Name: "split", Match: prefix("/api"), Route: toHost("web", "old")},
		}}),
		labVirtualService("shop", "z-younger", 2002, &networking.VirtualService{Hosts: []string{"web"}, Http: []*networking.HTTPRoute{{Route: toHost("old")}}}),
		labVirtualService("shop", "edge", 2003, &networking.VirtualService{Hosts: []string{"web"}, Gateways: []string{"edge"}, Http: []*networking.HTTPRoute{{Route: toHost("old")}}}),
		labVirtualService("bank", "private", 2004, &networking.VirtualService{Hosts: []string{"web.shop.svc.cluster.local"}, ExportTo: []string{"."}, Http: []*networking.HTTPRoute{{Route: toHost("old.shop.svc.cluster.local")}}}),
		labVirtualService("shop", "wild", 2005, &networking.VirtualService{Hosts: []string{"*.svc.cluster.local"}, Http: []*networking.HTTPRoute{{Route: toHost("old")}}}),
	)
	ask := func(path string) *RouteExplanation {
		x, err := ExplainRoute(l.in(), labSidecar(), match.Request{Host: "web.shop.svc.cluster.local", Path: path}, 80)
		require.NoError(t, err)
		require.NotNil(t, x)
		return x
	}
	admin := ask("/admin/x")
	require.Equal(t, "80", admin.Configuration)
	require.Equal(t, "web.shop.svc.cluster.local:80", admin.VirtualHost)
	require.Equal(t, []ExplainedRoute{{Name: "admin", Rule: "shop/web", Match: "path /admin*", Taken: true}}, admin.Routes)
	require.Equal(t, "403: the proxy answers itself", admin.Action)

	api := ask("/api")
	require.Equal(t, "the path is not /admin*", api.Routes[0].Reason)
	require.True(t, api.Routes[1].Taken)
	require.Equal(t, []ExplainedShare{{"outbound|80||web.shop.svc.cluster.local", 50}, {"outbound|80||old.shop.svc.cluster.local", 50}}, api.Upstreams)

	reasons := map[string]string{}
	for _, r := range api.Lost {
		reasons[r.Rule] = r.Reason
	}
	require.Contains(t, reasons["shop/edge"], "bound to gateways only (shop/edge)")
	require.Contains(t, reasons["bank/private"], "not exported to namespace shop (exportTo .)")
	require.Contains(t, reasons["shop/wild"], "more specific host")
	require.Contains(t, reasons["shop/z-younger"], "older")
	require.NotContains(t, reasons, "shop/web")

	x, err := ExplainRoute(l.in(), labSidecar(), match.Request{Host: "web.shop.svc.cluster.local"}, 90)
	require.NoError(t, err)
	require.Nil(t, x, "connections to the port are not taken apart")
}
