package build

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	meshconfig "istio.io/api/mesh/v1alpha1"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/registry/config"
	"github.com/isthmus-mesh/isthmus/testenv/simulate"
	"github.com/isthmus-mesh/isthmus/testenv/validate"
)

// labYAML reads a VirtualService of namespace shop as a user writes its spec.
func labYAML(t *testing.T, name, spec string) registry.ObjectState {
	t.Helper()
	kind, ok := config.Lookup("networking.istio.io/v1", string(mesh.KindVirtualService))
	require.True(t, ok)
	body, err := yaml.YAMLToJSON([]byte(spec))
	require.NoError(t, err)
	raw, err := json.Marshal(map[string]any{"metadata": map[string]string{"name": name, "namespace": "shop"}, "spec": json.RawMessage(body)})
	require.NoError(t, err)
	o, err := config.Decode("c1", kind, raw)
	require.NoError(t, err)
	return registry.ObjectState{Key: o.Key, Object: o}
}

// labSimulated is what a proxy with the view is given of listeners and routes.
func labSimulated(t *testing.T, l *lab, v View) *simulate.Proxy {
	t.Helper()
	var all []proto.Message
	for _, n := range (Listeners{}).List(l.in(), v) {
		m := l.listener(t, v, n)
		all = append(all, m)
		for _, r := range validate.RouteNames(m.(*listenerv3.Listener)) {
			all = append(all, l.routes(t, v, r))
		}
	}
	p, err := simulate.NewProxy(all...)
	require.NoError(t, err)
	return p
}

// said writes an answer: upstreams with their shares, or a status, or "dropped".
func said(a *simulate.Answer) string {
	switch {
	case a.Dropped != "":
		return "dropped"
	case a.Location != "":
		return fmt.Sprint(a.Status, " ", a.Location)
	case a.Status != 0:
		return fmt.Sprint(a.Status)
	}
	var out []string
	for _, u := range a.Upstreams {
		id, ok := ParseUpstreamName(u.Name)
		name := u.Name
		if ok {
			name = strings.TrimSuffix(fmt.Sprintf("%s:%d/%s", strings.TrimSuffix(string(id.Host), ".shop.svc.cluster.local"), id.Port, id.Subset), "/")
		}
		if u.Percent < 100 {
			name = fmt.Sprintf("%s %.0f%%", name, u.Percent)
		}
		out = append(out, name)
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// TestWhatRulesMean: where requests and connections of a sidecar go, by what
// Istio's reference says of VirtualServices.
func TestWhatRulesMean(t *testing.T) {
	l := labShop(&meshconfig.MeshConfig{})
	l.services("c1", labService("ratings", "shop", labPorts(labPort("http", 9080, mesh.ProtocolHTTP)), []string{"10.0.0.9"}),
		labService("mail", "shop", labPorts(labPort("tls", 443, mesh.ProtocolTLS)), []string{"10.0.0.8"}))
	l.objects(
		labYAML(t, "web", `
hosts: [web, www.example.com]
http:
- match: [{uri: {prefix: /v2}, headers: {x-user: {exact: jason}}}]
  route: [{destination: {host: web, subset: v2}}]
- match: [{uri: {exact: /old}}]
  redirect: {uri: /new, redirectCode: 302}
- match: [{uri: {prefix: /ratings}, withoutHeaders: {x-internal: {}}}]
  route: [{destination: {host: ratings}}]
- match: [{uri: {prefix: /mine}, sourceLabels: {app: client}}, {uri: {prefix: /theirs}, sourceLabels: {app: other}}]
  directResponse: {status: 403}
- match: [{port: 9000}]
  route: [{destination: {host: web, subset: grpc}}]
- route:
  - {destination: {host: web, subset: v1}, weight: 75}
  - {destination: {host: web, subset: v2}, weight: 25}
`),
		labYAML(t, "all", `{hosts: ["*.shop.svc.cluster.local"], http: [{match: [{uri: {prefix: /all}}], directResponse: {status: 204}}, {route: [{destination: {host: ratings}}]}]}`),
		labYAML(t, "db", `{hosts: [db], tcp: [{match: [{port: 5432}], route: [{destination: {host: db, subset: v1}, weight: 1}, {destination: {host: db, subset: v2}, weight: 3}]}]}`),
		labYAML(t, "mail", `{hosts: [mail, "*.mail.example.com"], tls: [{match: [{sniHosts: [in.mail.example.com]}], route: [{destination: {host: mail, subset: in}}]}, {match: [{sniHosts: ["*.mail.example.com"]}], route: [{destination: {host: mail}}]}]}`),
	)
	client := labSidecar(func(v *View) { v.Labels = MakeLabels(map[string]string{"app": "client"}, []string{"app"}) })
	p := labSimulated(t, l, client)
	get := func(host, path string, headers ...string) *simulate.Request {
		r := &simulate.Request{Method: "GET", Host: host, Path: path, Headers: map[string]string{}}
		for i := 0; i+1 < len(headers); i += 2 {
			r.Headers[headers[i]] = headers[i+1]
		}
		return r
	}
	for name, c := range map[string]struct {
		to, sni string
		request *simulate.Request
		want    string
	}{
		"a split":                              {"10.0.0.1:80", "", get("web", "/"), "web:80/v1 75%, web:80/v2 25%"},
		"both conditions of a match":           {"10.0.0.1:80", "", get("web.shop", "/v2/x", "x-user", "jason"), "web:80/v2"},
		"one condition of two":                 {"10.0.0.1:80", "", get("web", "/v2/x"), "web:80/v1 75%, web:80/v2 25%"},
		"a redirect":                           {"10.0.0.1:80", "", get("web", "/old"), "302 http://web/new"},
		"an exact path is all of the path":     {"10.0.0.1:80", "", get("web", "/old/er"), "web:80/v1 75%, web:80/v2 25%"},
		"the one port of a destination":        {"10.0.0.1:80", "", get("web", "/ratings/1"), "ratings:9080"},
		"a header that must not be there":      {"10.0.0.1:80", "", get("web", "/ratings/1", "x-internal", "1"), "web:80/v1 75%, web:80/v2 25%"},
		"labels of this client":                {"10.0.0.1:80", "", get("web", "/mine"), "403"},
		"labels of another client":             {"10.0.0.1:80", "", get("web", "/theirs"), "web:80/v1 75%, web:80/v2 25%"},
		"a match by port":                      {"10.0.0.1:9000", "", get("web", "/"), "web:9000/grpc"},
		"a host without a service, on port 80": {"192.0.2.7:80", "", get("www.example.com", "/"), "web:80/v1 75%, web:80/v2 25%"},
		"a host that no rule names":            {"192.0.2.7:80", "", get("other.example.com", "/"), "PassthroughCluster"},
		"a wildcard, for a service of its own": {"10.0.0.9:9080", "", get("ratings", "/all"), "204"},
		"no wildcard beside a full name":       {"10.0.0.1:80", "", get("web", "/all"), "web:80/v1 75%, web:80/v2 25%"},
		"connections by weight":                {"10.0.0.2:5432", "", nil, "db:5432/v1 25%, db:5432/v2 75%"},
		"connections to a port without rules":  {"10.0.0.2:7000", "", nil, "db:7000"},
		"the longer server name":               {"10.0.0.8:443", "in.mail.example.com", nil, "mail:443/in"},
		"a server name by wildcard":            {"10.0.0.8:443", "out.mail.example.com", nil, "mail:443"},
		"a server name that no rule has":       {"10.0.0.8:443", "mail.shop", nil, "dropped"},
	} {
		a, err := p.Ask(simulate.Connection{To: netip.MustParseAddrPort(c.to), SNI: c.sni, TLS: c.sni != "", Request: c.request})
		require.NoError(t, err, name)
		require.Equal(t, c.want, said(a), name)
	}
}
