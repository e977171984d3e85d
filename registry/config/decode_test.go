package config

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/mesh"
)

func TestLookup(t *testing.T) {
	for _, v := range []string{"v1", "v1beta1", "v1alpha3"} {
		k, ok := Lookup("networking.istio.io/"+v, "Gateway")
		require.True(t, ok, v)
		require.Equal(t, Kind{Kind: mesh.KindGateway, Group: "networking.istio.io", Version: "v1", Resource: "gateways"}, k)
	}
	for _, v := range []string{"v1", "v1beta1"} { // the Gateway API has a Gateway, too
		k, ok := Lookup("gateway.networking.k8s.io/"+v, "Gateway")
		require.True(t, ok, v)
		require.Equal(t, mesh.KindGatewayAPIGateway, k.Kind)
	}
	for apiVersion, kind := range map[string]string{"v1": "Gateway", "gateway.networking.k8s.io/v2": "Gateway",
		"networking.istio.io/v2": "Gateway", "networking.istio.io/v1": "Nonsense", "": ""} {
		_, ok := Lookup(apiVersion, kind)
		require.False(t, ok, "%s %s", apiVersion, kind)
	}
}

// Every kind of the table is whole: later kinds are held to it as well.
func TestTable(t *testing.T) {
	for i, d := range table() {
		require.Equal(t, d.Kind, Kinds()[i])
		require.Contains(t, d.versions, d.Version)
		require.NotNil(t, d.newSpec())
		one, other := d.newSpec(), d.newSpec()
		require.NotSame(t, one, other)
		m, _ := d.typed(&corev1.Pod{})
		require.Nil(t, m)
	}
}

func gatewayKindOf(t testing.TB) Kind {
	k, ok := Lookup("networking.istio.io/v1", "Gateway")
	require.True(t, ok)
	return k
}

// gatewayJSON makes a Gateway object with the specification in YAML.
func gatewayJSON(t testing.TB, spec string) []byte {
	var tree any
	require.NoError(t, yaml.Unmarshal([]byte(spec), &tree))
	b, err := json.Marshal(map[string]any{"apiVersion": "networking.istio.io/v1", "kind": "Gateway", "spec": tree,
		"metadata": map[string]any{"name": "gw", "namespace": "edge", "labels": map[string]string{"a": "b"},
			"creationTimestamp": "2026-11-01T12:00:00Z"}})
	require.NoError(t, err)
	return b
}

const eastWest = `
selector: {istio: eastwestgateway}
servers:
- port: {number: 15443, name: tls, protocol: TLS}
  hosts: ["*.local"]
  tls: {mode: AUTO_PASSTHROUGH}
`

func TestDecode(t *testing.T) {
	o, err := Decode("east", gatewayKindOf(t), gatewayJSON(t, eastWest+"futureField: {x: [1]}\n"))
	require.NoError(t, err)
	require.Equal(t, mesh.ObjectKey{Kind: mesh.KindGateway, Namespace: "edge", Name: "gw"}, o.Key)
	require.Equal(t, "Gateway edge/gw in cluster east", o.Origin.String())
	require.Equal(t, map[string]string{"a": "b"}, o.Labels)
	require.True(t, o.Created.Equal(time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)))
	want := &networking.Gateway{Selector: map[string]string{"istio": "eastwestgateway"}, Servers: []*networking.Server{{
		Port: &networking.Port{Number: 15443, Name: "tls", Protocol: "TLS"}, Hosts: []string{"*.local"},
		Tls: &networking.ServerTLSSettings{Mode: networking.ServerTLSSettings_AUTO_PASSTHROUGH}}}}
	require.True(t, proto.Equal(want, o.Spec), "%v", o.Spec)

	same, err := Decode("east", gatewayKindOf(t), gatewayJSON(t, eastWest))
	require.NoError(t, err)
	require.Equal(t, o.Version, same.Version, "a field that is not read does not count")
	other, err := Decode("east", gatewayKindOf(t), gatewayJSON(t, strings.Replace(eastWest, "*.local", "*.example", 1)))
	require.NoError(t, err)
	require.NotEqual(t, o.Version, other.Version)
}

func TestFromTyped(t *testing.T) {
	g := &networkingv1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: "gw", Namespace: "edge", ResourceVersion: "42"}}
	decoded, err := Decode("east", gatewayKindOf(t), gatewayJSON(t, eastWest))
	require.NoError(t, err)
	proto.Merge(&g.Spec, decoded.Spec)
	o, err := FromTyped("east", g)
	require.NoError(t, err)
	require.Equal(t, "42", o.Version)
	require.Equal(t, decoded.Key, o.Key)
	require.True(t, proto.Equal(decoded.Spec, o.Spec))

	g.Spec.Servers = nil
	_, err = FromTyped("east", g)
	require.EqualError(t, err, "validate Gateway edge/gw in cluster east: spec.servers: is empty; a gateway needs at least one server")
	_, err = FromTyped("east", &corev1.Pod{})
	require.ErrorContains(t, err, "type *v1.Pod is not one that is read")
}

func TestDecodeRefuses(t *testing.T) {
	tests := []struct{ name, doc, field, message string }{
		{"not JSON", `{`, "", "decode Gateway in cluster east: unexpected end of JSON input"},
		{"no name", `{"metadata":{"namespace":"x"}}`, "metadata.name", "is empty; name the object"},
		{"a list for an object", `{"metadata":{"name":"a"},"spec":[]}`, "spec", "want an object, got a list"},
		{"an object for a list", `{"metadata":{"name":"a"},"spec":{"servers":{}}}`, "spec.servers", "want a list, got an object"},
		{"a string for a number", `{"metadata":{"name":"a"},"spec":{"servers":[{"port":{"number":"http"}}]}}`,
			"spec.servers[0].port.number", "http is not a number of type uint32"},
		{"a fraction", `{"metadata":{"name":"a"},"spec":{"servers":[{"port":{"number":1.5}}]}}`,
			"spec.servers[0].port.number", "1.5 is not a number of type uint32"},
		{"a number too large", `{"metadata":{"name":"a"},"spec":{"servers":[{"port":{"number":4294967296}}]}}`,
			"spec.servers[0].port.number", "4294967296 is not a number of type uint32"},
		{"a number for a string", `{"metadata":{"name":"a"},"spec":{"servers":[{"hosts":["a",7]}]}}`,
			"spec.servers[0].hosts[1]", "want a string, got the number 7"},
		{"a misspelt enum", `{"metadata":{"name":"a"},"spec":{"servers":[{"tls":{"mode":"AUTO_PASTHROUGH"}}]}}`, "spec.servers[0].tls.mode",
			`"AUTO_PASTHROUGH" is not known; use one of PASSTHROUGH, SIMPLE, MUTUAL, AUTO_PASSTHROUGH, ISTIO_MUTUAL, OPTIONAL_MUTUAL`},
		{"an enum number", `{"metadata":{"name":"a"},"spec":{"servers":[{"tls":{"mode":77}}]}}`, "spec.servers[0].tls.mode", "77 is not a number of TLSmode"},
		{"a map of numbers", `{"metadata":{"name":"a"},"spec":{"selector":{"istio":1}}}`, "spec.selector[istio]", "want a string, got the number 1"},
		{"a null element", `{"metadata":{"name":"a"},"spec":{"servers":[null]}}`, "spec.servers[0]", "want an object, got null"},
		{"both spellings", `{"metadata":{"name":"a"},"spec":{"servers":[{"tls":{"httpsRedirect":true,"https_redirect":false}}]}}`,
			"spec.servers[0].tls.https_redirect", "is given twice, as httpsRedirect and as https_redirect; keep one"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Decode("east", gatewayKindOf(t), []byte(tt.doc))
			require.Error(t, err)
			if tt.field == "" {
				require.EqualError(t, err, tt.message)
				return
			}
			var fe *FieldError
			require.ErrorAs(t, err, &fe)
			require.Equal(t, FieldError{tt.field, tt.message}, *fe)
			require.Contains(t, err.Error(), "in cluster east")
		})
	}
	_, err := Decode("east", Kind{Kind: "Nonsense"}, []byte(`{}`))
	require.ErrorContains(t, err, `kind "Nonsense" is not one that is read`)
}

func TestDecodeOfDeepNesting(t *testing.T) {
	// No field of Gateway nests without end; the bound is for later kinds.
	deep := strings.Repeat(`{"structValue":{"fields":{"a":`, 500) + "1" + strings.Repeat("}}}", 500)
	_, _, err := decodeProto([]byte(deep), "spec", &networking.Gateway{})
	require.NoError(t, err, "an unknown field is left out however deep it is")
}

func FuzzDecode(f *testing.F) {
	f.Add(gatewayJSON(f, eastWest))
	f.Add([]byte(`{"metadata":{"name":"a"},"spec":{"servers":[{"port":{"number":"80"},"hosts":["./*.x","a/b"],"tls":{"httpsRedirect":true}}]}}`))
	f.Add([]byte(`{"metadata":{"name":"a","creationTimestamp":"x"}}`))
	f.Add([]byte(`null`))
	k := gatewayKindOf(f)
	f.Fuzz(func(t *testing.T, doc []byte) {
		o, err := Decode("east", k, doc)
		if (o == nil) == (err == nil) {
			t.Fatalf("object %v, error %v", o, err)
		}
		if err != nil {
			if len(err.Error()) > 64<<10+4*len(doc) {
				t.Fatalf("an error of %d bytes for %d bytes", len(err.Error()), len(doc))
			}
			return
		}
		// What is accepted stays the same when it is read again.
		spec, err := proto.Marshal(o.Spec)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Decode("east", k, doc)
		if err != nil || again.Version != o.Version {
			t.Fatalf("read again: %v, %v", again, err)
		}
		if c := (&checker{path: "spec"}); true {
			g := &networking.Gateway{}
			if err := proto.Unmarshal(spec, g); err != nil {
				t.Fatal(err)
			}
			validateGateway(c, g)
			if err := c.err(); err != nil {
				t.Fatalf("accepted, then refused: %v", err)
			}
		}
	})
}

func TestErrorsAreAllNamed(t *testing.T) {
	_, err := Decode("east", gatewayKindOf(t), gatewayJSON(t, `servers: [{port: {number: 0, name: a, protocol: TCP}, hosts: [x.y]}, {port: {number: 70000, name: a, protocol: TCP}, hosts: []}]`))
	require.EqualError(t, err, "validate Gateway edge/gw in cluster east: "+
		"spec.servers[0].port.number: 0 is not a port; use 1-65535; "+
		"spec.servers[1].port.number: 70000 is not a port; use 1-65535; "+
		`spec.servers[1].hosts: is empty; name at least one host, "*" for all; `+
		`spec.servers[1].port.name: "a" is used by an earlier server; give each port of a gateway its own name`)
	require.ErrorAs(t, err, new(*FieldError))
}
