package build

import (
	"maps"
	"slices"
	"strconv"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	extensions "istio.io/api/extensions/v1alpha1"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
	telemetry "istio.io/api/telemetry/v1alpha1"
	"pgregory.net/rapid"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/testenv/validate"
)

// policyPatches are patches that fit, patches that fit some resources only and
// patches that never do.
func policyPatches() []string {
	const hcm = `"filter":{"name":"envoy.filters.network.http_connection_manager"`
	const lua = `{"name":"lua","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua","default_source_code":{"inline_string":"--"}}}`
	return []string{
		`{"applyTo":"HTTP_FILTER","match":{"listener":{"filterChain":{` + hcm + `,"subFilter":{"name":"envoy.filters.http.router"}}}}},"patch":{"operation":"INSERT_BEFORE","value":` + lua + `}}`,
		`{"applyTo":"HTTP_FILTER","match":{"context":"SIDECAR_INBOUND","listener":{"filterChain":{` + hcm + `}}}},"patch":{"operation":"ADD","value":` + lua + `}}`,
		`{"applyTo":"HTTP_FILTER","match":{"context":"GATEWAY","listener":{"portNumber":80}},"patch":{"operation":"INSERT_FIRST","filterClass":"STATS","value":` + lua + `}}`,
		`{"applyTo":"HTTP_FILTER","match":{"listener":{"filterChain":{` + hcm + `,"subFilter":{"name":"envoy.filters.http.cors"}}}}},"patch":{"operation":"REMOVE"}}`,
		`{"applyTo":"HTTP_FILTER","match":{"listener":{"filterChain":{` + hcm + `,"subFilter":{"name":"envoy.filters.http.router"}}}}},"patch":{"operation":"REMOVE"}}`,
		`{"applyTo":"HTTP_FILTER","match":{"listener":{"filterChain":{` + hcm + `,"subFilter":{"name":"envoy.filters.http.fault"}}}}},"patch":{"operation":"REPLACE","value":` + lua + `}}`,
		`{"applyTo":"NETWORK_FILTER","match":{"listener":{"portNumber":80,"filterChain":{` + hcm + `}}}},"patch":{"operation":"MERGE","value":{"typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager","stream_idle_timeout":"5s"}}}}`,
		`{"applyTo":"NETWORK_FILTER","match":{"listener":{"filterChain":{"filter":{"name":"envoy.filters.network.tcp_proxy"}}}},"patch":{"operation":"MERGE","value":{"typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy","idle_timeout":"7s"}}}}`,
		`{"applyTo":"NETWORK_FILTER","match":{"listener":{"name":"virtualInbound","portNumber":8080}},"patch":{"operation":"INSERT_FIRST","value":{"name":"limit","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit","stat_prefix":"l","max_connections":"5"}}}}`,
		`{"applyTo":"FILTER_CHAIN","match":{"listener":{"filterChain":{"transportProtocol":"tls","applicationProtocols":"istio"}}},"patch":{"operation":"REMOVE"}}`,
		`{"applyTo":"FILTER_CHAIN","match":{"context":"SIDECAR_OUTBOUND"},"patch":{"operation":"REMOVE"}}`,
		`{"applyTo":"FILTER_CHAIN","match":{"context":"SIDECAR_INBOUND","listener":{"filterChain":{"destinationPort":8080}}},"patch":{"operation":"MERGE","value":{"transport_socket_connect_timeout":"3s"}}}`,
		`{"applyTo":"LISTENER","match":{"context":"SIDECAR_OUTBOUND","listener":{"portNumber":90}},"patch":{"operation":"REMOVE"}}`,
		`{"applyTo":"LISTENER","match":{"listener":{"name":"virtualOutbound"}},"patch":{"operation":"MERGE","value":{"name":"other","per_connection_buffer_limit_bytes":4096}}}`,
		`{"applyTo":"LISTENER","patch":{"operation":"ADD","value":{"name":"own-listener","address":{"socket_address":{"address":"127.0.0.1","port_value":7777}},"filter_chains":[{"filters":[{"name":"tcp","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy","stat_prefix":"own","cluster":"BlackHoleCluster"}}]}]}}}`,
		`{"applyTo":"LISTENER_FILTER","match":{"listener":{"portNumber":80}},"patch":{"operation":"ADD","value":{"name":"proxy","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol"}}}}`,
		`{"applyTo":"ROUTE_CONFIGURATION","patch":{"operation":"MERGE","value":{"name":"other","response_headers_to_remove":["x-a"]}}}`,
		`{"applyTo":"VIRTUAL_HOST","match":{"routeConfiguration":{"portNumber":80}},"patch":{"operation":"MERGE","value":{"domains":["x"]}}}`,
		`{"applyTo":"VIRTUAL_HOST","match":{"routeConfiguration":{"vhost":{"name":"allow_any"}}},"patch":{"operation":"REMOVE"}}`,
		`{"applyTo":"VIRTUAL_HOST","match":{"context":"GATEWAY"},"patch":{"operation":"ADD","value":{"name":"own","domains":["own","x.example.com"]}}}`,
		`{"applyTo":"HTTP_ROUTE","match":{"routeConfiguration":{"vhost":{"route":{"action":"ROUTE"}}}},"patch":{"operation":"MERGE","value":{"route":{"timeout":"7s"}}}}`,
		`{"applyTo":"HTTP_ROUTE","match":{"context":"SIDECAR_INBOUND","routeConfiguration":{"portNumber":8080,"vhost":{"route":{"name":"default"}}}},"patch":{"operation":"INSERT_BEFORE","value":{"match":{"path":"/gone"},"direct_response":{"status":410}}}}`,
		`{"applyTo":"CLUSTER","match":{"cluster":{"portNumber":80}},"patch":{"operation":"MERGE","value":{"connect_timeout":"3s"}}}`,
		`{"applyTo":"CLUSTER","match":{"cluster":{"service":"x.a.svc.cluster.local"}},"patch":{"operation":"REMOVE"}}`,
		`{"applyTo":"CLUSTER","match":{"context":"SIDECAR_OUTBOUND"},"patch":{"operation":"MERGE","value":{"transport_socket":{"name":"envoy.transport_sockets.tls","typed_config":{"@type":"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext","max_session_keys":4}}}}}`,
		`{"applyTo":"CLUSTER","patch":{"operation":"ADD","value":{"name":"own","connect_timeout":"1s","type":"STATIC"}}}`,
		`{"applyTo":"CLUSTER","match":{"context":"SIDECAR_INBOUND"},"patch":{"operation":"MERGE","value":{"connect_timeout":"-1s"}}}`,
		`{"applyTo":"EXTENSION_CONFIG","patch":{"operation":"ADD","value":` + lua + `}}`,
		`{"applyTo":"BOOTSTRAP","patch":{"operation":"MERGE","value":{}}}`,
		`{"applyTo":"HTTP_FILTER","patch":{"operation":"MERGE","value":{"typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer"}}}}`,
	}
}

func policyObject(t *rapid.T, kind mesh.ObjectKind, spec proto.Message) registry.ObjectState {
	k := mesh.ObjectKey{Kind: kind, Namespace: mixOf(t, "policy namespace", "a", "b", mixRoot), Name: mixOf(t, "policy name", "p", "q")}
	if rapid.IntRange(0, 4).Draw(t, "policy gone") == 0 {
		return registry.ObjectState{Key: k}
	}
	return registry.ObjectState{Key: k, Object: &mesh.Object{Key: k, Version: strconv.Itoa(rapid.IntRange(0, 1<<30).Draw(t, "version")), Spec: spec,
		Origin:  mesh.ObjectRef{Cluster: "c1", Kind: string(kind), Namespace: k.Namespace, Name: k.Name},
		Created: time.Unix(int64(rapid.IntRange(0, 2).Draw(t, "age")), 0)}}
}

// policySpec reads a specification that is drawn as JSON.
func policySpec[M proto.Message](t *rapid.T, m M, text string) M {
	if err := protojson.Unmarshal([]byte(text), m); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return m
}

func policyFilter(t *rapid.T) registry.ObjectState {
	f := &networking.EnvoyFilter{Priority: mixOf(t, "priority", int32(0), -1, 5)}
	for range rapid.IntRange(1, 3).Draw(t, "patches") {
		p := policySpec(t, &networking.EnvoyFilter_EnvoyConfigObjectPatch{}, rapid.SampledFrom(policyPatches()).Draw(t, "patch"))
		if rapid.IntRange(0, 5).Draw(t, "for a version") == 0 {
			if p.Match == nil {
				p.Match = &networking.EnvoyFilter_EnvoyConfigObjectMatch{}
			}
			p.Match.Proxy = &networking.EnvoyFilter_ProxyMatch{ProxyVersion: mixOf(t, "version pattern", `^1\.31`, `^9`, `(`)}
		}
		f.ConfigPatches = append(f.ConfigPatches, p)
	}
	if rapid.Bool().Draw(t, "selects") {
		f.WorkloadSelector = &networking.WorkloadSelector{Labels: map[string]string{"app": mixOf(t, "selected", "x", "y")}}
	}
	return policyObject(t, mesh.KindEnvoyFilter, f)
}

func policyTelemetry(t *rapid.T) registry.ObjectState {
	x := policySpec(t, &telemetry.Telemetry{}, mixOf(t, "telemetry",
		`{"accessLogging":[{"providers":[{"name":"envoy"},{"name":"als"}],"filter":{"expression":"true"}}]}`,
		`{"accessLogging":[{"disabled":true}],"tracing":[{"disableSpanReporting":true}]}`,
		`{"accessLogging":[{"match":{"mode":"CLIENT"},"disabled":true}],"metrics":[{"overrides":[{"disabled":true}]}]}`,
		`{"tracing":[{"providers":[{"name":"zipkin"}],"randomSamplingPercentage":3,"customTags":{"a":{"literal":{"value":"b"}}}}]}`,
		`{"tracing":[{"match":{"mode":"SERVER"},"enableIstioTags":false}],"metrics":[{"providers":[{"name":"prometheus"}],"overrides":[{"match":{"metric":"REQUEST_COUNT"},"tagOverrides":{"x":{"value":"y"}}}]}]}`,
	))
	if rapid.Bool().Draw(t, "selects") {
		policySpec(t, x, protojson.Format(x)) // a copy of its own
		x.Selector = policySpec(t, &telemetry.Telemetry{}, `{"selector":{"matchLabels":{"app":"x"}}}`).Selector
	}
	return policyObject(t, mesh.KindTelemetry, x)
}

func policyPlugin(t *rapid.T) registry.ObjectState {
	return policyObject(t, mesh.KindWasmPlugin, policySpec(t, &extensions.WasmPlugin{}, mixOf(t, "plugin",
		`{"url":"oci://example.com/a","phase":"AUTHN","priority":5}`,
		`{"url":"example.com/b:1","type":"NETWORK","match":[{"mode":"CLIENT"}]}`,
		`{"url":"file:///c.wasm","selector":{"matchLabels":{"app":"x"}},"match":[{"ports":[{"number":80}]}],"pluginConfig":{"a":1}}`,
	)))
}

func policyChange(t *rapid.T, l *lab) {
	switch rapid.IntRange(0, 4).Draw(t, "policy change") {
	case 0:
		drawUpdate(t, l)
	case 1:
		l.sinks["c1"].Apply(registry.Update{Objects: []registry.ObjectState{policyTelemetry(t)}})
	case 2:
		l.sinks["c1"].Apply(registry.Update{Objects: []registry.ObjectState{policyPlugin(t)}})
	default:
		l.sinks["c1"].Apply(registry.Update{Objects: []registry.ObjectState{policyFilter(t)}})
	}
}

// policyLab is a random mesh with random policies, whose providers may be
// services of the mesh.
func policyLab(t *rapid.T) *lab {
	m := policySpec(t, &meshconfig.MeshConfig{}, `{"rootNamespace":"`+mixRoot+`","enableTracing":true,"accessLogFile":"/dev/stdout","extensionProviders":[
		{"name":"envoy","envoyFileAccessLog":{"path":"/dev/stdout"}},
		{"name":"als","envoyHttpAls":{"service":"x.a.svc.cluster.local","port":80}},
		{"name":"zipkin","zipkin":{"service":"b/x.b.svc.cluster.local","port":90}}]}`)
	m.DefaultProviders = &meshconfig.MeshConfig_DefaultProviders{Metrics: mixOf(t, "metrics", nil, []string{"prometheus"}), Tracing: mixOf(t, "tracer", nil, []string{"zipkin"})}
	l := newLab(m, "c2")
	for range rapid.IntRange(1, 8).Draw(t, "changes") {
		policyChange(t, l)
	}
	return l
}

func policyProxy(t *rapid.T) *mesh.Proxy {
	p := drawProxy(t)
	p.IstioVersion = mixOf(t, "Istio version", "", "1.31.0")
	return p
}

func policyNames() []string {
	out := append(candidates(Listeners{}), "own", "own-listener", "lua", UpstreamBlackHole, UpstreamPassthrough, UpstreamInboundPassthrough)
	for _, ns := range []string{"a", "b", mixRoot} {
		out = append(out, ns+".p", ns+".q")
	}
	for _, p := range []uint16{80, 90, 8080} {
		out = append(out, UpstreamName(DirectionInbound, p, "", ""))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func policyGenerators() []Generator {
	return []Generator{Listeners{}, Routes{}, Upstreams{}, Extensions{}}
}

func policyBuild(t *rapid.T, in Inputs, v View, g Generator) map[string]proto.Message {
	out := map[string]proto.Message{}
	for _, n := range policyNames() {
		m, err := g.Build(in, v, n)
		if err != nil {
			t.Fatalf("build %s: %v", n, err)
		}
		if m != nil {
			out[n] = m
		}
	}
	return out
}

// TestPoliciesAreProjected: what is built for a view with policies and for its
// projection is equal, and a listener is listed if and only if it is built.
func TestPoliciesAreProjected(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := policyLab(t)
		in := l.in()
		v := DeriveView(in, policyProxy(t), nil)
		for _, g := range policyGenerators() {
			listed := g.List(in, v)
			if again := g.List(in, g.ListView(v)); !slices.Equal(listed, again) {
				t.Fatalf("listed %v, for the projected view %v", listed, again)
			}
			built := policyBuild(t, in, v, g)
			if _, ok := g.(Listeners); ok && v.Dialect != mesh.DialectGRPC && !slices.Equal(listed, slices.Sorted(maps.Keys(built))) {
				t.Fatalf("listed %v\nbuilt  %v", listed, slices.Sorted(maps.Keys(built)))
			}
			for _, n := range policyNames() {
				p := g.Project(in, v, n)
				if again := g.Project(in, p, n); again != p {
					t.Fatalf("%T %s: projecting twice gives another view: %+v, then %+v", g, n, p, again)
				}
				b, err := g.Build(in, p, n)
				if err != nil || !equalResources(built[n], b) {
					t.Fatalf("%T %s differs for the projected view %+v of %+v: %v\n%v\n%v", g, n, p, v, err, built[n], b)
				}
			}
		}
	})
}

// TestPoliciesAffect: whatever a change alters for a view is among what is called
// affected, also if only what [AffectedView] keeps is known.
func TestPoliciesAffect(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := policyLab(t)
		proxy := policyProxy(t)
		v := DeriveView(l.in(), proxy, nil)
		before := map[Generator]map[string]proto.Message{}
		for _, g := range policyGenerators() {
			before[g] = policyBuild(t, l.in(), v, g)
		}
		for range 5 {
			l.last = registry.Change{}
			policyChange(t, l)
			if after := DeriveView(l.in(), proxy, nil); after != v {
				if !ViewConcerned(proxy, &l.last) {
					t.Fatalf("view changed from %+v to %+v, but the change is said not to concern it: %+v", v, after, l.last)
				}
				v = after // whose resources are worked out anew
				for _, g := range policyGenerators() {
					before[g] = policyBuild(t, l.in(), v, g)
				}
				continue
			}
			for _, g := range policyGenerators() {
				about := g.(interface{ AffectedView(View) View }).AffectedView(v)
				a := g.Affected(l.in(), about, &l.last)
				after := policyBuild(t, l.in(), v, g)
				for _, n := range policyNames() {
					if !equalResources(before[g][n], after[n]) && !a.All && !slices.Contains(a.Names, n) {
						t.Fatalf("%T %s of %+v changed, but only %v are affected by %+v", g, n, v, a.Names, l.last)
					}
				}
				before[g] = after
			}
		}
	})
}

// TestProxiesWouldTakePolicies: whatever policies there are, what is served passes
// the deep validator: a patch that does not fit is left out and named, and so is
// a rule that leads where only a looked up name can.
func TestProxiesWouldTakePolicies(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := policyLab(t)
		in := l.in()
		in.Report = func(o *mesh.Object, field, message string) {
			if o.Key.Kind != mesh.KindEnvoyFilter && o.Key.Kind != mesh.KindVirtualService || field == "" || message == "" {
				t.Fatalf("a problem of %s in %q: %q", o.Key, field, message)
			}
		}
		v := DeriveView(in, policyProxy(t), nil)
		check := validate.Options{GRPC: v.Dialect == mesh.DialectGRPC}
		for _, g := range []Generator{Listeners{}, Routes{}, Upstreams{}} {
			for n, m := range policyBuild(t, in, v, g) {
				if err := check.Message(m); err != nil {
					t.Fatalf("%s: %v", n, err)
				}
				if u, ok := m.(*clusterv3.Cluster); ok && u.GetName() != n {
					t.Fatalf("%s is called %s", n, u.GetName())
				}
			}
		}
	})
}
