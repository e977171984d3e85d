package build

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	networking "istio.io/api/networking/v1alpha3"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/registry/config"
)

// patchObject is an EnvoyFilter NS/NAME from the JSON of its specification.
func patchObject(t testing.TB, ns, name, spec string, edits ...func(*mesh.Object)) registry.ObjectState {
	t.Helper()
	f := &networking.EnvoyFilter{}
	require.NoError(t, protojson.Unmarshal([]byte(spec), f))
	k := mesh.ObjectKey{Kind: mesh.KindEnvoyFilter, Namespace: ns, Name: name}
	o := &mesh.Object{Key: k, Version: spec, Spec: f, Origin: mesh.ObjectRef{Cluster: "c1", Kind: "EnvoyFilter", Namespace: ns, Name: name}}
	for _, e := range edits {
		e(o)
	}
	return registry.ObjectState{Key: k, Object: o}
}

// patchLab applies EnvoyFilters and returns what is left out of anything.
func patchLab(t testing.TB, list ...registry.ObjectState) (in Inputs, v View, leftOut *[]string) {
	t.Helper()
	l := ruleLab()
	l.objects(list...)
	leftOut = &[]string{}
	in = l.in()
	in.Report = func(o *mesh.Object, field, message string) {
		*leftOut = append(*leftOut, o.Key.Name+" "+field+": "+message)
	}
	v = DeriveView(in, labProxy(func(p *mesh.Proxy) { p.Dialect, p.IstioVersion = mesh.DialectEnvoy, "1.31.0" }), nil)
	return in, v, leftOut
}

// managerOf is the connection manager of a listener's first chain.
func managerOf(t testing.TB, in Inputs, v View, name string) *hcmv3.HttpConnectionManager {
	t.Helper()
	m, err := Listeners{}.Build(in, v, name)
	require.NoError(t, err)
	h := &hcmv3.HttpConnectionManager{}
	filters := m.(*listenerv3.Listener).GetFilterChains()[0].GetFilters()
	require.NoError(t, filters[len(filters)-1].GetTypedConfig().UnmarshalTo(h))
	return h
}

func filterNames(h *hcmv3.HttpConnectionManager) string {
	var out []string
	for _, f := range h.GetHttpFilters() {
		out = append(out, strings.TrimPrefix(f.GetName(), "envoy.filters.http."))
	}
	return strings.Join(out, " ")
}

// httpPatch is a patch of HTTP filters; sub names the filter that it is about.
func httpPatch(op, sub, name, class string) string {
	match := `"filter":{"name":"envoy.filters.network.http_connection_manager"`
	if sub != "" {
		match += `,"subFilter":{"name":"` + sub + `"}`
	}
	value := `,"value":{"name":"` + name + `","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer","max_request_bytes":1}}`
	if op == "REMOVE" {
		value = ""
	}
	if class != "" {
		class = `,"filterClass":"` + class + `"`
	}
	return `{"applyTo":"HTTP_FILTER","match":{"context":"SIDECAR_OUTBOUND","listener":{"filterChain":{` + match + `}}}},"patch":{"operation":"` + op + `"` + class + value + `}}`
}

func TestPatchOperations(t *testing.T) {
	const cors, router = "envoy.filters.http.cors", "envoy.filters.http.router"
	for patch, want := range map[string]string{
		httpPatch("ADD", "", "new", ""):                  "grpc_stats fault cors new router",
		httpPatch("ADD", "", "new", "AUTHN"):             "new grpc_stats fault cors router",
		httpPatch("ADD", "", "new", "STATS"):             "grpc_stats fault cors new router",
		httpPatch("INSERT_FIRST", "", "new", ""):         "new grpc_stats fault cors router",
		httpPatch("INSERT_BEFORE", "", "new", ""):        "new grpc_stats fault cors router",
		httpPatch("INSERT_AFTER", "", "new", ""):         "grpc_stats fault cors new router",
		httpPatch("INSERT_BEFORE", cors, "new", ""):      "grpc_stats fault new cors router",
		httpPatch("INSERT_AFTER", cors, "new", ""):       "grpc_stats fault cors new router",
		httpPatch("INSERT_AFTER", "absent", "new", ""):   "grpc_stats fault cors router",
		httpPatch("REPLACE", cors, "new", ""):            "grpc_stats fault new router",
		httpPatch("REPLACE", "", "new", ""):              "grpc_stats fault cors router",
		httpPatch("REMOVE", "envoy.cors", "", ""):        "grpc_stats fault router",
		httpPatch("REMOVE", "", "", ""):                  "grpc_stats fault cors router",
		httpPatch("INSERT_AFTER", router, "refused", ""): "grpc_stats fault cors router",
		httpPatch("REMOVE", router, "refused", ""):       "grpc_stats fault cors router",
		httpPatch("MERGE", cors, "refused", ""):          "grpc_stats fault cors router",
	} {
		in, v, leftOut := patchLab(t, patchObject(t, "shop", "p", `{"configPatches":[`+patch+`]}`))
		require.Equal(t, want, filterNames(managerOf(t, in, v, "0.0.0.0_80")), patch)
		fits := !strings.Contains(patch, "refused") && !strings.Contains(patch, `"REMOVE"`) || strings.Contains(patch, "envoy.cors") || !strings.Contains(patch, "subFilter")
		require.Equal(t, fits, len(*leftOut) == 0, "%s\n%v", patch, *leftOut)
	}
}

// TestPatchOrder: the root namespace's first whatever their priority, then by
// priority, then by age; in an object as written.
func TestPatchOrder(t *testing.T) {
	aged := func(year int) func(*mesh.Object) {
		return func(o *mesh.Object) { o.Created = time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC) }
	}
	first := func(name string) string { return httpPatch("INSERT_FIRST", "", name, "") }
	in, v, _ := patchLab(t,
		patchObject(t, "shop", "late", `{"priority":5,"configPatches":[`+first("late")+`]}`, aged(2020)),
		patchObject(t, "shop", "old", `{"configPatches":[`+first("old-1")+`,`+first("old-2")+`]}`, aged(2021)),
		patchObject(t, "shop", "new", `{"configPatches":[`+first("new")+`]}`, aged(2022)),
		patchObject(t, "shop", "early", `{"priority":-5,"configPatches":[`+first("early")+`]}`, aged(2023)),
		patchObject(t, mixRoot, "root", `{"priority":9,"configPatches":[`+first("root")+`]}`, aged(2024)),
		patchObject(t, "elsewhere", "other", `{"configPatches":[`+first("other")+`]}`))
	require.Equal(t, "late new old-2 old-1 early root grpc_stats fault cors router", filterNames(managerOf(t, in, v, "0.0.0.0_80")))
}

// TestPatchesForProxies: by kind, by version, by metadata, by the Gateway they
// belong to.
func TestPatchesForProxies(t *testing.T) {
	in, _, _ := patchLab(t,
		patchObject(t, "shop", "a", `{"configPatches":[
			{"applyTo":"CLUSTER","match":{"context":"GATEWAY"},"patch":{"operation":"REMOVE"}},
			{"applyTo":"CLUSTER","match":{"context":"SIDECAR_INBOUND"},"patch":{"operation":"REMOVE"}},
			{"applyTo":"CLUSTER","match":{"proxy":{"proxyVersion":"^1\\.3[01]"}},"patch":{"operation":"REMOVE"}},
			{"applyTo":"CLUSTER","match":{"proxy":{"metadata":{"TIER":"gold","CLUSTER_ID":"c1"}}},"patch":{"operation":"REMOVE"}},
			{"applyTo":"BOOTSTRAP","patch":{"operation":"MERGE","value":{}}}]}`),
		patchObject(t, "shop", "b", `{"targetRefs":[{"group":"gateway.networking.k8s.io","kind":"Gateway","name":"g"}],"configPatches":[{"applyTo":"CLUSTER","patch":{"operation":"REMOVE"}}]}`))
	indices := func(edits ...func(*mesh.Proxy)) []int {
		var out []int
		for _, r := range DeriveView(in, labProxy(edits...), nil).Patches.refs() {
			if r.object.Name == "b" {
				r.index += 10
			}
			out = append(out, r.index)
		}
		return out
	}
	require.Equal(t, []int{1}, indices())
	require.Equal(t, []int{1, 2}, indices(func(p *mesh.Proxy) { p.IstioVersion = "1.31.2" }))
	require.Equal(t, []int{1}, indices(func(p *mesh.Proxy) { p.IstioVersion = "1.29.2" }))
	require.Equal(t, []int{1, 3}, indices(func(p *mesh.Proxy) { p.Metadata = map[string]any{"TIER": "gold"} }))
	require.Equal(t, []int{0, 10}, indices(func(p *mesh.Proxy) {
		p.Kind, p.Labels = mesh.ProxyRouter, map[string]string{labelGatewayName: "g"}
	}))
	require.Empty(t, indices(func(p *mesh.Proxy) { p.Dialect = mesh.DialectGRPC }))
}

func TestPatchMatches(t *testing.T) {
	for _, x := range []struct {
		have, want string
		same       bool
	}{
		{"envoy.filters.http.router", "envoy.router", true}, {"envoy.filters.http.router", "envoy.filters.http.router", true},
		{"envoy.filters.listener.tls_inspector", "envoy.listener.tls_inspector", true}, {"envoy.filters.http.router", "router", false},
		{"own.router", "envoy.router", false}, {"envoy.filters.http.router", "envoy.http.router", false},
	} {
		require.Equal(t, x.same, sameFilter(x.have, x.want), x)
	}
	chain := &listenerv3.FilterChain{Name: "c", FilterChainMatch: &listenerv3.FilterChainMatch{DestinationPort: u32(8080),
		ServerNames: []string{"a"}, TransportProtocol: "tls", ApplicationProtocols: []string{"h2", "istio"}}}
	for match, on := range map[string]bool{
		`{}`: true, `{"name":"c"}`: true, `{"name":"d"}`: false, `{"sni":"a"}`: true, `{"sni":"b"}`: false,
		`{"transportProtocol":"tls"}`: true, `{"transportProtocol":"raw_buffer"}`: false, `{"applicationProtocols":"istio, h2"}`: true,
		`{"applicationProtocols":"http/1.1"}`: false, `{"destinationPort":8080}`: true, `{"destinationPort":80}`: false,
	} {
		m := &networking.EnvoyFilter_ListenerMatch_FilterChainMatch{}
		require.NoError(t, protojson.Unmarshal([]byte(match), m))
		x := &patch{match: &networking.EnvoyFilter_EnvoyConfigObjectMatch{ObjectTypes: &networking.EnvoyFilter_EnvoyConfigObjectMatch_Listener{
			Listener: &networking.EnvoyFilter_ListenerMatch{FilterChain: m}}}}
		require.Equal(t, on, x.onChain("0.0.0.0_80", chain), match)
	}
	redirect := &routev3.Route{Name: "r", Action: &routev3.Route_Redirect{Redirect: &routev3.RedirectAction{}}}
	for match, on := range map[string]bool{
		`{"vhost":{"route":{}}}`: true, `{"vhost":{"route":{"name":"r"}}}`: true, `{"vhost":{"route":{"name":"x"}}}`: false,
		`{"vhost":{"route":{"action":"REDIRECT"}}}`: true, `{"vhost":{"route":{"action":"ROUTE"}}}`: false, `{"vhost":{"route":{"action":"DIRECT_RESPONSE"}}}`: false,
	} {
		require.Equal(t, on, routePatch(t, match).onRoute(redirect), match)
	}
	for match, want := range map[string][]string{
		`{}`:                               {"80", "http.8080", "https.443.tls.gw.edge", "inbound|8080||"},
		`{"portNumber":8080}`:              {"http.8080", "inbound|8080||"},
		`{"portNumber":81}`:                {"http.8080"}, // by the port that the service has
		`{"portNumber":443}`:               {"https.443.tls.gw.edge"},
		`{"portName":"tls"}`:               {"https.443.tls.gw.edge"},
		`{"gateway":"edge/gw"}`:            {"https.443.tls.gw.edge"},
		`{"name":"80"}`:                    {"80"},
		`{"portNumber":4294967295}`:        nil,
		`{"gateway":"x","portNumber":443}`: nil,
	} {
		var got []string
		for _, name := range []string{"80", "http.8080", "https.443.tls.gw.edge", "inbound|8080||"} {
			if routePatch(t, match).onRoutes(name, map[uint16]uint16{81: 8080}) {
				got = append(got, name)
			}
		}
		require.Equal(t, want, got, match)
	}
}

func routePatch(t *testing.T, match string) *patch {
	m := &networking.EnvoyFilter_RouteConfigurationMatch{}
	require.NoError(t, protojson.Unmarshal([]byte(match), m))
	return &patch{match: &networking.EnvoyFilter_EnvoyConfigObjectMatch{
		ObjectTypes: &networking.EnvoyFilter_EnvoyConfigObjectMatch_RouteConfiguration{RouteConfiguration: m}}}
}

// TestMerge: what a merge does to each kind of field.
func TestMerge(t *testing.T) {
	dst, src := &clusterv3.Cluster{}, &clusterv3.Cluster{}
	require.NoError(t, protojson.Unmarshal([]byte(`{"name":"a","connectTimeout":"1s","respectDnsTtl":true,"perConnectionBufferLimitBytes":5,
		"circuitBreakers":{"thresholds":[{"maxRequests":1}]},"metadata":{"filterMetadata":{"a":{"x":1},"b":{}}},
		"edsClusterConfig":{"serviceName":"s"},"transportSocket":{"name":"t","typedConfig":{"@type":"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext","sni":"a"}}}`), dst))
	require.NoError(t, protojson.Unmarshal([]byte(`{"connectTimeout":"0.5s","respectDnsTtl":true,"perConnectionBufferLimitBytes":0,
		"circuitBreakers":{"thresholds":[{"maxRequests":2}]},"metadata":{"filterMetadata":{"a":{"y":2}}},"lbPolicy":"RANDOM",
		"edsClusterConfig":{"edsConfig":{"ads":{}}},"transportSocket":{"name":"t","typedConfig":{"@type":"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext","maxSessionKeys":7}}}`), src))
	before := proto.Clone(src)
	require.NoError(t, merge(dst, src, false))
	require.True(t, proto.Equal(before, src), "the patch is used again")
	want := &clusterv3.Cluster{}
	require.NoError(t, protojson.Unmarshal([]byte(`{"name":"a","connectTimeout":"0.5s","respectDnsTtl":true,"perConnectionBufferLimitBytes":0,
		"circuitBreakers":{"thresholds":[{"maxRequests":1},{"maxRequests":2}]},"metadata":{"filterMetadata":{"a":{"y":2},"b":{}}},"lbPolicy":"RANDOM",
		"edsClusterConfig":{"serviceName":"s","edsConfig":{"ads":{}}},"transportSocket":{"name":"t","typedConfig":{"@type":"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext","sni":"a","maxSessionKeys":7}}}`), want))
	require.True(t, proto.Equal(want, dst), protojson.Format(dst))
	require.ErrorContains(t, merge(dst, &routev3.Route{}, false), "value is a envoy.config.route.v3.Route, not a envoy.config.cluster.v3.Cluster")
}

// TestMergeReplacingLists: lists of the patch take the place of those that are
// there, also within messages; those in packed configuration are appended to.
func TestMergeReplacingLists(t *testing.T) {
	dst, src, want := &clusterv3.Cluster{}, &clusterv3.Cluster{}, &clusterv3.Cluster{}
	const socket = `"transportSocket":{"name":"t","typedConfig":{"@type":"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext","commonTlsContext":{"alpnProtocols":[%s]}}}`
	for m, text := range map[*clusterv3.Cluster]string{
		dst:  `{"circuitBreakers":{"thresholds":[{"maxRequests":1},{"maxRequests":9}]},"filters":[{"name":"a"}],` + fmt.Sprintf(socket, `"a"`) + `}`,
		src:  `{"circuitBreakers":{"thresholds":[{"maxRequests":2}]},` + fmt.Sprintf(socket, `"b"`) + `}`,
		want: `{"circuitBreakers":{"thresholds":[{"maxRequests":2}]},"filters":[{"name":"a"}],` + fmt.Sprintf(socket, `"a","b"`) + `}`,
	} {
		require.NoError(t, protojson.Unmarshal([]byte(text), m))
	}
	require.NoError(t, merge(dst, src, true))
	require.True(t, proto.Equal(want, dst), protojson.Format(dst))
	for to, replaces := range map[networking.EnvoyFilter_ApplyTo]bool{networking.EnvoyFilter_CLUSTER: true, networking.EnvoyFilter_HTTP_FILTER: false} {
		p := &networking.EnvoyFilter_EnvoyConfigObjectPatch{ApplyTo: to, Patch: &networking.EnvoyFilter_Patch{
			Operation: networking.EnvoyFilter_Patch_MERGE_AND_REPLACE_LIST, Value: &structpb.Struct{}}}
		x := decodePatch(&mesh.Object{}, 0, p)
		require.NoError(t, x.err)
		require.Equal(t, networking.EnvoyFilter_Patch_MERGE, x.op)
		require.Equal(t, replaces, x.replaces)
	}
}

// TestPoisonPatch: rows 43 and 44 of the fault table. A patch that does not decode
// and one with an endless expression are left out by name, each by itself; what is
// beside them in the object, and everything else, is served.
func TestPoisonPatch(t *testing.T) {
	endless := strings.Repeat("a", 100_000)
	in, v, leftOut := patchLab(t, patchObject(t, "shop", "poison", `{"configPatches":[
		{"applyTo":"CLUSTER","patch":{"operation":"MERGE","value":{"connect_timeout":"soon"}}},
		{"applyTo":"CLUSTER","match":{"proxy":{"proxyVersion":"`+endless+`"}},"patch":{"operation":"MERGE","value":{"connect_timeout":"5s"}}},
		{"applyTo":"HTTP_ROUTE","patch":{"operation":"ADD","value":{"match":{"safe_regex":{"regex":"`+endless+`"}},"direct_response":{"status":200}}}},
		{"applyTo":"CLUSTER","patch":{"operation":"MERGE"}},
		{"applyTo":"CLUSTER","patch":{"operation":"MERGE","value":{"connect_timeout":"7s"}}}]}`))
	u, err := Upstreams{}.Build(in, v, "outbound|80||web.shop.svc.cluster.local")
	require.NoError(t, err)
	require.Equal(t, 7*time.Second, u.(*clusterv3.Cluster).GetConnectTimeout().AsDuration())
	r, err := Routes{}.Build(in, v, "80")
	require.NoError(t, err)
	require.NotNil(t, r)
	var fields []string
	for _, x := range *leftOut {
		field, _, _ := strings.Cut(strings.TrimPrefix(x, "poison spec."), ":")
		fields = append(fields, field)
		require.Less(t, len(x), 400, "the expression is not repeated")
	}
	slices.Sort(fields)
	require.Equal(t, []string{"configPatches[0]", "configPatches[1]", "configPatches[2]", "configPatches[3]"}, slices.Compact(fields))
}

// TestChainsStayDistinct: two chains for the same connections would cost the proxy
// the whole listener.
func TestChainsStayDistinct(t *testing.T) {
	const tcp = `"filters":[{"name":"tcp","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy","stat_prefix":"x","cluster":"BlackHoleCluster"}}]`
	in, v, leftOut := patchLab(t, patchObject(t, "shop", "p", `{"configPatches":[
		{"applyTo":"FILTER_CHAIN","match":{"listener":{"portNumber":80}},"patch":{"operation":"ADD","value":{"name":"one","filter_chain_match":{"server_names":["a"]},`+tcp+`}}},
		{"applyTo":"FILTER_CHAIN","match":{"listener":{"portNumber":80}},"patch":{"operation":"ADD","value":{"name":"again","filter_chain_match":{"server_names":["a"]},`+tcp+`}}},
		{"applyTo":"FILTER_CHAIN","match":{"listener":{"portNumber":80}},"patch":{"operation":"ADD","value":{"name":"empty"}}}]}`))
	m, err := Listeners{}.Build(in, v, "0.0.0.0_80")
	require.NoError(t, err)
	chains := m.(*listenerv3.Listener).GetFilterChains()
	require.Len(t, chains, 2)
	require.Equal(t, "one", chains[1].GetName())
	require.Len(t, *leftOut, 2)
}

// TestPatchesAreShared: proxies that a patch is not about share what they would
// share without it.
func TestPatchesAreShared(t *testing.T) {
	in, v, _ := patchLab(t, patchObject(t, "shop", "p", `{"configPatches":[
		{"applyTo":"CLUSTER","match":{"cluster":{"service":"web.shop.svc.cluster.local"}},"patch":{"operation":"REMOVE"}},
		{"applyTo":"HTTP_FILTER","match":{"context":"SIDECAR_INBOUND"},"patch":{"operation":"REMOVE"}}]}`))
	without := v
	without.Patches = PatchSet{}
	require.Equal(t, Upstreams{}.Project(in, without, UpstreamBlackHole), Upstreams{}.Project(in, v, UpstreamBlackHole))
	require.Equal(t, Listeners{}.Project(in, without, "0.0.0.0_80"), Listeners{}.Project(in, v, "0.0.0.0_80"))
	require.NotEqual(t, Listeners{}.Project(in, without, ListenerVirtualInbound), Listeners{}.Project(in, v, ListenerVirtualInbound))
	require.NotContains(t, Upstreams{}.List(in, v), "outbound|80||web.shop.svc.cluster.local")
}

// FuzzEnvoyFilter: whatever an EnvoyFilter says, validated or not, everything is
// built, and within the bounds that Envoy's API sets.
func FuzzEnvoyFilter(f *testing.F) {
	text, err := os.ReadFile("testdata/envoyfilter/clusters/c1.yaml")
	require.NoError(f, err)
	for doc := range strings.SplitSeq(string(text), "---\n") {
		var o struct {
			Kind string          `json:"kind"`
			Spec json.RawMessage `json:"spec"`
		}
		if yaml.Unmarshal([]byte(doc), &o) == nil && o.Kind == string(mesh.KindEnvoyFilter) {
			f.Add([]byte(o.Spec))
		}
	}
	for _, p := range policyPatches() {
		f.Add([]byte(`{"configPatches":[` + p + `]}`))
	}
	k, _ := config.Lookup("networking.istio.io/v1alpha3", string(mesh.KindEnvoyFilter))
	f.Fuzz(func(t *testing.T, spec []byte) {
		key := mesh.ObjectKey{Kind: mesh.KindEnvoyFilter, Namespace: "shop", Name: "p"}
		o, err := config.Decode("c1", k, slices.Concat([]byte(`{"metadata":{"name":"p","namespace":"shop"},"spec":`), spec, []byte("}")))
		if err != nil {
			x := &networking.EnvoyFilter{}
			if (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(spec, x) != nil {
				return
			}
			o = &mesh.Object{Key: key, Spec: x} // one that nobody validated
		}
		in, v, _ := patchLab(t, registry.ObjectState{Key: key, Object: o})
		for _, v := range []View{v, DeriveView(in, labProxy(func(p *mesh.Proxy) { p.Kind = mesh.ProxyRouter }), nil)} {
			for _, g := range []Generator{Listeners{}, Upstreams{}, Routes{}} {
				for _, n := range append(g.List(in, v), "80", "http.80") {
					m, err := g.Build(in, v, n)
					require.NoError(t, err)
					if m != nil {
						require.NoError(t, acceptable(m), n)
					}
				}
			}
		}
	})
}
