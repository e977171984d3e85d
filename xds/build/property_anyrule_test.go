package build

import (
	"encoding/json"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
	"pgregory.net/rapid"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/registry/config"
	"github.com/isthmus-mesh/isthmus/testenv/validate"
)

// drawMessage fills a message in at random: every field that there is, with
// values that are likely to be valid for fields of the name.
func drawMessage(t *rapid.T, m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if o := f.ContainingOneof(); o != nil && m.WhichOneof(o) != nil {
			continue
		}
		always := f.ContainingOneof() != nil || depth > 3 || requiredField(string(f.Name()))
		if !always && rapid.IntRange(0, 3).Draw(t, string(f.Name())) > 0 {
			continue
		}
		switch {
		case depth > 6:
		case f.IsMap():
			if f.MapValue().Kind() == protoreflect.MessageKind {
				v := m.Mutable(f).Map().NewValue()
				drawMessage(t, v.Message(), depth+1)
				m.Mutable(f).Map().Set(protoreflect.ValueOf(drawString(t, "key")).MapKey(), v)
			} else if f.Name() == "source_labels" {
				m.Mutable(f).Map().Set(protoreflect.ValueOf("app").MapKey(), protoreflect.ValueOf("x"))
			} else {
				m.Mutable(f).Map().Set(protoreflect.ValueOf(drawString(t, "changed")).MapKey(), protoreflect.ValueOf(drawString(t, "value")))
			}
		case f.IsList():
			for range rapid.IntRange(1, maxLength(f)).Draw(t, "length") {
				list := m.Mutable(f).List()
				if f.Kind() == protoreflect.MessageKind {
					drawMessage(t, list.AppendMutable().Message(), depth+1)
				} else {
					list.Append(drawScalar(t, f))
				}
			}
		case f.Kind() == protoreflect.MessageKind:
			drawMessage(t, m.Mutable(f).Message(), depth+1)
		default:
			m.Set(f, drawScalar(t, f))
		}
	}
}

func requiredField(name string) bool {
	switch name {
	case "hosts", "host", "http", "weight", "destination", "route", "number", "value", "sni_hosts", "attempts", "status", "seconds", "uri", "fixed_delay":
		return true
	}
	return false
}

// maxLength is how long a list may be: of texts, most may not be there twice.
func maxLength(f protoreflect.FieldDescriptor) int {
	if f.Kind() == protoreflect.StringKind {
		return 1
	}
	return 2
}

func drawScalar(t *rapid.T, f protoreflect.FieldDescriptor) protoreflect.Value {
	name := string(f.Name())
	switch f.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(drawString(t, name))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte("body"))
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(rapid.Bool().Draw(t, name))
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(rapid.IntRange(0, f.Enum().Values().Len()-1).Draw(t, name)))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(rapid.SampledFrom([]float64{0, 0.5, 33.3, 100}).Draw(t, name))
	}
	values := map[string][]int64{"seconds": {1, 5}, "nanos": {0, 5e6}, "redirect_code": {0, 301, 308}, "status": {200, 503},
		"http_status": {200, 503}, "weight": {1, 50}, "attempts": {1, 3}, "percent": {0, 50}, "value": {1, 50}}[name]
	if values == nil {
		values = []int64{80, 81, 443}
	}
	x := rapid.SampledFrom(values).Draw(t, name)
	switch f.Kind() {
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(x))
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(x))
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(uint64(x))
	}
	return protoreflect.ValueOfInt64(x)
}

func drawString(t *rapid.T, field string) string {
	values := map[string][]string{
		"hosts": {"a", "t", "x.example.com", "*.y.com", "10.1.2.3", "A.Shop.svc.cluster.local"}, "host": {"a", "t", "none", "x.example.com"},
		"gateways": {"mesh", "g", "other/g"}, "export_to": {"*", ".", "web"}, "sni_hosts": {"x.example.com", "*.y.com", "a"},
		"destination_subnets": {"10.0.0.0/8", "10.1.2.3", "fd00::/8"}, "regex": {".*", "/(a|b)/[0-9]+", "*"}, "exact": {"", "/a", "GET", "https"},
		"prefix": {"/", "/a", "b"}, "key": {"x-a", "x-b"}, "changed": {"x-a", "x-b", "x-c"}, "allow_headers": {"x-a"}, "expose_headers": {"x-a"}, "value": {"1", "%REQ(x-a)%"}, "retry_on": {"5xx,503", "reset"},
		"scheme": {"http", "https"}, "grpc_status": {"UNAVAILABLE", "INTERNAL"}, "match": {"/(a)(b)"}, "rewrite": {`/\1-\2`, "/x"},
		"uri": {"/", "/new"}, "authority": {"h.example.com", "h:80"}, "namespace": {"", "shop"}, "source_namespace": {"", "shop"}, "subset": {"", "s"},
		"allow_methods": {"GET"}, "remove": {"x-c"}, "string": {"hello"}, "name": {"", "d", "r"}, "source_subnet": {""},
	}[field]
	if values == nil {
		values = []string{"", "x"}
	}
	return rapid.SampledFrom(values).Draw(t, field)
}

// TestAnyRuleIsTaken: whatever VirtualService is taken for valid, proxies take
// what comes of it.
func TestAnyRuleIsTaken(t *testing.T) { rapid.Check(t, anyRuleIsTaken) }

// FuzzAnyRule is the same under the fuzzer's guidance.
func FuzzAnyRule(f *testing.F) { f.Fuzz(rapid.MakeFuzz(anyRuleIsTaken)) }

func anyRuleIsTaken(t *rapid.T) {
	l := newLab(&meshconfig.MeshConfig{})
	l.services("c1", fuzzedServices()...)
	kind, _ := config.Lookup("networking.istio.io/v1", string(mesh.KindVirtualService))
	for _, name := range []string{"one", "two", "d"} {
		vs := &networking.VirtualService{}
		drawMessage(t, vs.ProtoReflect(), 0)
		if name == "d" {
			vs.Hosts, vs.Tcp, vs.Tls, vs.Gateways = nil, nil, nil, nil
		}
		for _, r := range vs.GetTls() {
			for _, m := range r.GetMatch() {
				m.SniHosts = vs.GetHosts()
			}
		}
		for _, r := range vs.GetHttp() { // any of the actions excludes the others
			keepOneAction(t, r)
		}
		spec, err := protojson.Marshal(vs)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := json.Marshal(map[string]any{"metadata": map[string]string{"name": name, "namespace": "shop"}, "spec": json.RawMessage(spec)})
		if err != nil {
			t.Fatal(err)
		}
		o, err := config.Decode("c1", kind, raw)
		if err != nil {
			continue
		}
		l.objects(registry.ObjectState{Key: o.Key, Object: o})
	}
	checkTaken(t, l)
}

func keepOneAction(t *rapid.T, r *networking.HTTPRoute) {
	kept := rapid.IntRange(0, 7).Draw(t, "action")
	if kept != 0 {
		r.Delegate = nil
	}
	if kept != 1 {
		r.Redirect = nil
	}
	if kept != 2 {
		r.DirectResponse = nil
	}
	if r.Delegate == nil && r.Redirect == nil && r.DirectResponse == nil {
		return
	}
	r.Route, r.Rewrite, r.Mirror, r.Mirrors, r.MirrorPercentage, r.MirrorPercent, r.Fault = nil, nil, nil, nil, nil, nil, nil //nolint:staticcheck // drawn as well
	if r.Delegate != nil {
		r.CorsPolicy = nil
	}
}

// checkTaken builds what a sidecar and a gRPC client of namespace shop have.
func checkTaken(t interface{ Fatalf(string, ...any) }, l *lab) {
	check := func(o validate.Options, g Generator, v View, name string) {
		m, err := g.Build(l.in(), v, name)
		if err != nil || m == nil {
			return
		}
		if err := o.Message(m); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if again, err := g.Build(l.in(), g.Project(l.in(), v, name), name); err != nil || !proto.Equal(m, again) {
			t.Fatalf("%s differs for the projected view: %v", name, err)
		}
	}
	for _, d := range []mesh.Dialect{mesh.DialectIstio, mesh.DialectGRPC} {
		v := labSidecar(func(v *View) { v.Dialect = d })
		o := validate.Options{GRPC: d == mesh.DialectGRPC}
		for _, n := range []string{"80", "90", "443", "t.shop.svc.cluster.local:82", UpstreamName(DirectionOutbound, 90, "", "a.shop.svc.cluster.local")} {
			check(o, Routes{}, v, n)
		}
		for _, n := range (Listeners{}).List(l.in(), v) {
			check(o, Listeners{}, v, n)
		}
	}
}

// fuzzedServices are what rules under test are about.
func fuzzedServices() []registry.ServiceState {
	external := func(host mesh.Hostname, ports ...mesh.Port) registry.ServiceState {
		return registry.ServiceState{Key: mesh.ServiceKey{Namespace: "shop", Hostname: host}, Definition: &mesh.Definition{Ports: ports, Resolution: mesh.ResolutionDNS}}
	}
	return []registry.ServiceState{
		labService("a", "shop", labPorts(labPort("http", 80, mesh.ProtocolHTTP), labPort("grpc", 90, mesh.ProtocolGRPC)), []string{"10.0.0.1"}),
		labService("t", "shop", labPorts(labPort("tcp", 81, mesh.ProtocolTCP), labPort("", 82, mesh.ProtocolAuto), labPort("tls", 443, mesh.ProtocolTLS)), []string{"10.0.0.2"}),
		external("x.example.com", labPort("tls", 443, mesh.ProtocolTLS)),
		external("*.y.com", labPort("tls", 443, mesh.ProtocolTLS), labPort("http", 80, mesh.ProtocolHTTP)),
	}
}
