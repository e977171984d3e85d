package build

import (
	"fmt"
	"strings"
	"testing"
	"time"

	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// labVirtualService is a VirtualService of a namespace that was made in a year.
func labVirtualService(namespace, name string, year int, vs *networking.VirtualService) registry.ObjectState {
	k := mesh.ObjectKey{Kind: mesh.KindVirtualService, Namespace: namespace, Name: name}
	return registry.ObjectState{Key: k, Object: &mesh.Object{Key: k, Created: time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC),
		Version: fmt.Sprint(year, vs), Spec: vs}}
}

func vsNames(list []*virtualService) string {
	var out []string
	for _, vs := range list {
		out = append(out, vs.name.String())
	}
	return strings.Join(out, " ")
}

// TestRulesForHost: what a client's namespace alone sees goes first, then what is
// exported to it by name, then the rest, each oldest first and those that
// delegate last; a full name before a wildcard, a longer wildcard before a
// shorter one.
func TestRulesForHost(t *testing.T) {
	rule := func(exportTo []string, hosts ...string) *networking.VirtualService {
		return &networking.VirtualService{Hosts: hosts, ExportTo: exportTo}
	}
	delegating := rule(nil, "a.com")
	delegating.Http = []*networking.HTTPRoute{{Delegate: &networking.Delegate{Name: "nobody"}}}
	gateway := rule(nil, "a.com")
	gateway.Gateways = []string{"front", "x/front"}
	l := newLab(&meshconfig.MeshConfig{})
	l.objects(
		labVirtualService("x", "old", 2001, rule(nil, "a.com")),
		labVirtualService("x", "new", 2002, rule([]string{"*"}, "A.COM", "a.com")),
		labVirtualService("x", "root", 2000, delegating),
		labVirtualService("x", "named", 2010, rule([]string{"shop", "y"}, "a.com")),
		labVirtualService("shop", "own", 2020, rule([]string{"."}, "a.com")),
		labVirtualService("y", "others", 2000, rule([]string{"."}, "a.com", "*.b.com")),
		labVirtualService("x", "nobody", 2000, rule([]string{"~"}, "a.com")),
		labVirtualService("x", "short", 2000, rule(nil, "*.com", "*")),
		labVirtualService("x", "long", 2005, rule(nil, "*.b.com")),
		labVirtualService("x", "gateway", 2000, gateway),
		labVirtualService("shop", "service", 2000, rule(nil, "web")),
	)
	b := ruleTables(l.in()).bound[meshGateway]
	for _, c := range []struct{ namespace, host, want string }{
		{"shop", "a.com", "shop/own x/named x/old x/new x/root"},
		{"y", "a.com", "y/others x/named x/old x/new x/root"},
		{"z", "a.com", "x/old x/new x/root"},
		{"z", "c.b.com", "x/long"},
		{"y", "c.b.com", "y/others"},
		{"z", "b.com", "x/short"},
		{"z", "*.c.b.com", "x/long"},
		{"z", "*.b.com", "x/long"},
		{"z", "*", "x/short"},
		{"z", "anything", "x/short"},
		{"z", "web.shop.svc.cluster.local", "shop/service"},
	} {
		require.Equal(t, c.want, vsNames(b.forHost(l.in(), labSidecar(func(v *View) { v.Namespace = c.namespace }), mesh.Hostname(c.host))), "%s asks for %s", c.namespace, c.host)
	}
	require.Equal(t, "x/short x/long", vsNames(b.overlapping(l.in(), labSidecar(func(v *View) { v.Namespace = "z" }), "*.c.b.com")))
	require.Equal(t, "x/gateway", vsNames(virtualServicesFor(l.in(), labSidecar(), "x/front")))
	require.Empty(t, virtualServicesFor(l.in(), labSidecar(), "shop/front"))

	private := newLab(&meshconfig.MeshConfig{DefaultVirtualServiceExportTo: []string{"."}})
	private.objects(labVirtualService("x", "old", 2001, rule(nil, "a.com")))
	require.Empty(t, virtualServicesFor(private.in(), labSidecar(), meshGateway))
	require.Len(t, virtualServicesFor(private.in(), labSidecar(func(v *View) { v.Namespace = "x" }), meshGateway), 1)

	listed := newLab(&meshconfig.MeshConfig{DefaultVirtualServiceExportTo: []string{".", "shop"}})
	listed.objects(labVirtualService("x", "old", 2001, rule(nil, "a.com")))
	require.Len(t, virtualServicesFor(listed.in(), labSidecar(), meshGateway), 1, "namespaces may be named beside the own")
	require.Empty(t, virtualServicesFor(listed.in(), labSidecar(func(v *View) { v.Namespace = "y" }), meshGateway))
}

func TestFullGateway(t *testing.T) {
	for in, want := range map[string]string{
		"mesh": "mesh", "front": "shop/front", "x/front": "x/front", "./front": "shop/front",
		"front.x": "x/front", "front.x.svc.cluster.local": "x/front",
	} {
		require.Equal(t, want, fullGateway(in, "shop"))
	}
}

// TestMatchesThatDelegatesMayHave: a delegate's match must lie within one of the
// root's.
func TestMatchesThatDelegatesMayHave(t *testing.T) {
	exact := func(s string) *networking.StringMatch {
		return &networking.StringMatch{MatchType: &networking.StringMatch_Exact{Exact: s}}
	}
	prefix := func(s string) *networking.StringMatch {
		return &networking.StringMatch{MatchType: &networking.StringMatch_Prefix{Prefix: s}}
	}
	regex := &networking.StringMatch{MatchType: &networking.StringMatch_Regex{Regex: ".*"}}
	type m = networking.HTTPMatchRequest
	headers := func(s *networking.StringMatch) map[string]*networking.StringMatch {
		return map[string]*networking.StringMatch{"x": s}
	}
	for name, c := range map[string]struct {
		root, sub *m
		conflict  bool
	}{
		"nothing":                {&m{}, &m{}, false},
		"only the root":          {&m{Uri: prefix("/a")}, &m{}, false},
		"only the delegate":      {&m{}, &m{Uri: regex}, false},
		"longer prefix":          {&m{Uri: prefix("/a")}, &m{Uri: prefix("/a/b")}, false},
		"exact within prefix":    {&m{Uri: prefix("/a")}, &m{Uri: exact("/a/b")}, false},
		"shorter prefix":         {&m{Uri: prefix("/a/b")}, &m{Uri: prefix("/a")}, true},
		"exact outside prefix":   {&m{Uri: prefix("/a")}, &m{Uri: exact("/b")}, true},
		"prefix of exact":        {&m{Uri: exact("/a")}, &m{Uri: prefix("/a")}, true},
		"same exact":             {&m{Method: exact("GET")}, &m{Method: exact("GET")}, false},
		"regular expressions":    {&m{Uri: regex}, &m{Uri: regex}, true},
		"other header value":     {&m{Headers: headers(exact("1"))}, &m{Headers: headers(exact("2"))}, true},
		"other without header":   {&m{WithoutHeaders: headers(exact("1"))}, &m{WithoutHeaders: headers(exact("2"))}, true},
		"other query":            {&m{QueryParams: headers(exact("1"))}, &m{QueryParams: headers(exact("2"))}, true},
		"other case":             {&m{IgnoreUriCase: true}, &m{}, true},
		"other port":             {&m{Port: 80}, &m{Port: 81}, true},
		"same port":              {&m{Port: 80}, &m{Port: 80}, false},
		"other namespace":        {&m{SourceNamespace: "a"}, &m{SourceNamespace: "b"}, true},
		"other labels":           {&m{SourceLabels: map[string]string{"a": "1"}}, &m{SourceLabels: map[string]string{"a": "2"}}, true},
		"more labels":            {&m{SourceLabels: map[string]string{"a": "1"}}, &m{SourceLabels: map[string]string{"b": "2"}}, false},
		"gateways within":        {&m{Gateways: []string{"a/a", "b/b"}}, &m{Gateways: []string{"a/a"}}, false},
		"gateways outside":       {&m{Gateways: []string{"a/a"}}, &m{Gateways: []string{"b/b"}}, true},
		"gateways of a delegate": {&m{}, &m{Gateways: []string{"b/b"}}, false},
	} {
		merged, ok := mergeMatches([]*m{c.root}, []*m{c.sub})
		require.Equal(t, !c.conflict, ok, name)
		require.Equal(t, ok, len(merged) == 1, name)
	}
	merged, ok := mergeMatches([]*m{{Name: "a", Uri: prefix("/a"), Headers: headers(exact("1")), Port: 80}, {Uri: prefix("/b")}},
		[]*m{{Name: "b", Uri: prefix("/a/b"), QueryParams: headers(exact("1"))}, {Scheme: exact("http")}})
	require.True(t, ok)
	require.Len(t, merged, 3, "the first match has one root, the second two")
	require.Equal(t, "a-b", merged[0].GetName())
	require.Equal(t, "/a/b", merged[0].GetUri().GetPrefix())
	require.EqualValues(t, 80, merged[0].GetPort())
	require.Len(t, merged[0].GetHeaders(), 1)
}

// TestDelegatesDoNotDelegate: such rules are left out, in whatever circle.
func TestDelegatesDoNotDelegate(t *testing.T) {
	to := func(name string) []*networking.HTTPRoute {
		return []*networking.HTTPRoute{{Name: "to-" + name, Delegate: &networking.Delegate{Name: name}}}
	}
	l := newLab(&meshconfig.MeshConfig{})
	l.objects(
		labVirtualService("x", "root", 2000, &networking.VirtualService{Hosts: []string{"a.com"}, Http: append(to("one"), to("root")...)}),
		labVirtualService("x", "one", 2000, &networking.VirtualService{Http: append(to("two"), &networking.HTTPRoute{Name: "end"})}),
		labVirtualService("x", "two", 2000, &networking.VirtualService{Http: to("one")}),
	)
	vs := virtualServicesFor(l.in(), labSidecar(), meshGateway)
	require.Len(t, vs, 1)
	require.Len(t, vs[0].http, 1)
	require.Equal(t, "to-one-end", vs[0].http[0].GetName())
}

func TestRetries(t *testing.T) {
	p := retryPolicy(nil, false)
	require.EqualValues(t, 2, p.GetNumRetries().GetValue())
	require.Len(t, p.GetRetryHostPredicate(), 1)
	require.Empty(t, retryPolicy(nil, true).GetRetryHostPredicate(), "bound to an endpoint")
	require.Nil(t, retryPolicy(&networking.HTTPRetry{}, false))
	for on, want := range map[string]struct {
		on       string
		statuses []uint32
	}{
		"5xx":                              {"5xx", nil},
		"503":                              {"retriable-status-codes", []uint32{503}},
		" reset , 503,429,":                {"reset,retriable-status-codes", []uint32{503, 429}},
		"503,retriable-status-codes,reset": {"retriable-status-codes,reset", []uint32{503}},
		"999":                              {"999", nil},
	} {
		got := retryPolicy(&networking.HTTPRetry{Attempts: 1, RetryOn: on}, false)
		require.Equal(t, want.on, got.GetRetryOn())
		require.Equal(t, want.statuses, got.GetRetriableStatusCodes())
	}
	got := retryPolicy(&networking.HTTPRetry{Attempts: 1, RetryIgnorePreviousHosts: wrapperspb.Bool(true), PerTryTimeout: durationpb.New(time.Second)}, true)
	require.Len(t, got.GetRetryHostPredicate(), 1)
	require.Equal(t, time.Second, got.GetPerTryTimeout().AsDuration())
}

func TestRedirectPorts(t *testing.T) {
	derive := func(p networking.HTTPRedirect_RedirectPortSelection) *networking.HTTPRedirect {
		return &networking.HTTPRedirect{RedirectPort: &networking.HTTPRedirect_DerivePort{DerivePort: p}}
	}
	to := func(port uint32, scheme string) *networking.HTTPRedirect {
		return &networking.HTTPRedirect{RedirectPort: &networking.HTTPRedirect_Port{Port: port}, Scheme: scheme}
	}
	for name, c := range map[string]struct {
		redirect *networking.HTTPRedirect
		port     uint16
		tls      bool
		want     uint32
	}{
		"none":                   {&networking.HTTPRedirect{}, 8080, false, 0},
		"of the request":         {derive(networking.HTTPRedirect_FROM_REQUEST_PORT), 8080, false, 8080},
		"of the request, 80":     {derive(networking.HTTPRedirect_FROM_REQUEST_PORT), 80, false, 0},
		"of the request, TLS":    {derive(networking.HTTPRedirect_FROM_REQUEST_PORT), 443, true, 0},
		"of the request, 80 TLS": {derive(networking.HTTPRedirect_FROM_REQUEST_PORT), 80, true, 80},
		"of the protocol":        {derive(networking.HTTPRedirect_FROM_PROTOCOL_DEFAULT), 8080, false, 0},
		"given":                  {to(9443, ""), 80, false, 9443},
		"given, implied":         {to(443, "https"), 80, false, 0},
		"given, not implied":     {to(443, "http"), 80, false, 443},
	} {
		s := &routeScope{port: c.port, tls: c.tls}
		require.Equal(t, c.want, s.redirect(c.redirect).GetPortRedirect(), name)
	}
	s := &routeScope{}
	require.Equal(t, "/p", s.redirect(&networking.HTTPRedirect{PrefixRewrite: "/p"}).GetPrefixRewrite())
}

func TestClaims(t *testing.T) {
	for name, want := range map[string][]string{
		"@request.auth.claims.group":         {"group"},
		"@REQUEST.auth.claims.group.id":      {"group", "id"},
		"@request.auth.claims[group][a.b/c]": {"group", "a.b/c"},
		"@request.auth.claims":               nil,
		"@request.auth.claims.":              nil,
		"@request.auth.claims[]":             nil,
		"@request.auth.claimsgroup":          nil,
		"x-group":                            nil,
	} {
		require.Equal(t, want, claimPath(name), name)
	}
	m := routeMatch(&networking.HTTPMatchRequest{
		Headers:        map[string]*networking.StringMatch{"@request.auth.claims.a": {MatchType: &networking.StringMatch_Exact{Exact: "1"}}},
		WithoutHeaders: map[string]*networking.StringMatch{"@request.auth.claims.b": {}},
	})
	require.Empty(t, m.GetHeaders())
	require.Len(t, m.GetDynamicMetadata(), 2)
	require.False(t, m.GetDynamicMetadata()[0].GetInvert())
	require.True(t, m.GetDynamicMetadata()[1].GetInvert())
	path := func(m *matcherv3.MetadataMatcher) (out []string) {
		for _, p := range m.GetPath() {
			out = append(out, p.GetKey())
		}
		return out
	}
	require.Equal(t, []string{"payload", "a"}, path(m.GetDynamicMetadata()[0]))
}
