package config

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// kindNamed finds a kind of the table.
func kindNamed(t testing.TB, name string) Kind {
	d, ok := lookupKind(mesh.ObjectKind(name))
	require.True(t, ok, name)
	return d.Kind
}

// objectJSON makes an object of a specification.
func objectJSON(t testing.TB, k Kind, spec any) []byte {
	b, err := json.Marshal(map[string]any{"apiVersion": k.Group + "/" + k.Version, "kind": k.Kind, "spec": spec,
		"metadata": map[string]any{"name": "x", "namespace": "edge"}})
	require.NoError(t, err)
	return b
}

// specsOf reads testdata/objects/KIND.yaml: specifications by name.
func specsOf(t testing.TB, kind string) map[string]any {
	text, err := os.ReadFile(filepath.Join("testdata/objects", kind+".yaml"))
	require.NoError(t, err)
	specs := map[string]any{}
	require.NoError(t, yaml.UnmarshalStrict(text, &specs))
	require.NotEmpty(t, specs)
	return specs
}

// TestObjects: every kind has specifications, by name, in testdata/objects, and
// what is said of each in a file beside it. Those whose name begins with "ok"
// are accepted, whatever the file says.
func TestObjects(t *testing.T) {
	for _, k := range Kinds() {
		t.Run(string(k.Kind), func(t *testing.T) {
			specs := specsOf(t, string(k.Kind))
			var said strings.Builder
			for _, name := range sortedKeys(specs) {
				doc := objectJSON(t, k, specs[name])
				warnings, err := Review("east", k, doc)
				o, decodeErr := Decode("east", k, doc)
				require.Equal(t, strings.HasPrefix(name, "ok"), err == nil, "%s: %v", name, err)
				if err == nil {
					require.NoError(t, decodeErr, name)
					requireRoundTrip(t, k, o)
				} else if name != "fields that do not exist" {
					require.Error(t, decodeErr, name)
				}
				fmt.Fprintf(&said, "%s\n", name)
				for _, f := range FieldErrors(err) {
					fmt.Fprintf(&said, "  error   %s\n", f)
				}
				for _, w := range warnings {
					fmt.Fprintf(&said, "  warning %s\n", w)
				}
			}
			golden := filepath.Join("testdata/objects", string(k.Kind)+".txt")
			if *update {
				require.NoError(t, os.WriteFile(golden, []byte(said.String()), 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			require.Equal(t, string(want), said.String())
		})
	}
}

// requireRoundTrip: what was accepted is accepted again as we would write it, and
// means the same.
func requireRoundTrip(t testing.TB, k Kind, o *mesh.Object) {
	spec, err := protojson.Marshal(o.Spec)
	require.NoError(t, err)
	again, err := Decode("east", k, objectJSON(t, k, json.RawMessage(spec)))
	require.NoError(t, err, "%s", spec)
	require.True(t, proto.Equal(o.Spec, again.Spec), "%s", spec)
}

// TestGatewayName: the name of a gateway becomes a part of other names, which dots
// separate.
func TestGatewayName(t *testing.T) {
	_, err := Decode("east", kindNamed(t, "Gateway"), []byte(`{"metadata":{"name":"a.b"},"spec":{"servers":[{"port":{"number":1,"name":"a","protocol":"TCP"},"hosts":["*"]}]}}`))
	require.ErrorContains(t, err, `metadata.name: "a.b" is not the name of a gateway`)
}

// TestObjectsHaveFiles: no file is left behind by a kind that is gone.
func TestObjectsHaveFiles(t *testing.T) {
	files, err := filepath.Glob("testdata/objects/*")
	require.NoError(t, err)
	require.Len(t, files, 2*len(Kinds()))
}

func TestMetadata(t *testing.T) {
	policy, gateway := kindNamed(t, "AuthorizationPolicy"), kindNamed(t, "Gateway")
	tests := []struct {
		name        string
		kind        Kind
		annotations map[string]string
		spec, err   string
	}{
		{"dry run", policy, map[string]string{"istio.io/dry-run": "true"}, `{"action":"DENY","rules":[{}]}`, ""},
		{"neither", policy, map[string]string{"istio.io/dry-run": "maybe"}, `{}`, `metadata.annotations[istio.io/dry-run]: "maybe" is neither true nor false`},
		{"other action", policy, map[string]string{"istio.io/dry-run": "true"}, `{"action":"AUDIT"}`,
			"metadata.annotations[istio.io/dry-run]: works for the actions ALLOW and DENY only; remove it from one of action AUDIT"},
		{"other kind", gateway, map[string]string{"istio.io/dry-run": "true"}, `{"servers":[{"port":{"number":1,"name":"a","protocol":"TCP"},"hosts":["*"]}]}`,
			"metadata.annotations[istio.io/dry-run]: works for AuthorizationPolicies only; remove it"},
		{"acting for another", policy, map[string]string{"internal.istio.io/parent-namespace": "x"}, `{}`,
			"metadata.annotations[internal.istio.io/parent-namespace]: is not for users to set; remove it"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			doc, err := json.Marshal(map[string]any{"metadata": map[string]any{"name": "x", "annotations": tt.annotations}, "spec": json.RawMessage(tt.spec)})
			require.NoError(t, err)
			_, err = Decode("east", tt.kind, doc)
			if tt.err == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, tt.err)
			_, err = Review("east", tt.kind, doc)
			require.ErrorContains(t, err, tt.err)
		})
	}
}

func TestReview(t *testing.T) {
	k := kindNamed(t, "Gateway")
	_, err := Review("east", k, []byte(`{"kind":"Gateway","status":{},"extra":1,"spec":{"servers":[],"sevrers":1}}`))
	require.EqualError(t, err, "review Gateway  in cluster east: spec.servers: is empty; a gateway needs at least one server; "+
		"spec.sevrers: is not a field of Gateway; check the spelling and the level it is on; extra: is not a field of Gateway; what is configured goes below spec")
	require.Len(t, FieldErrors(err), 3)
	for _, doc := range []string{``, `[]`, `null`, `{"metadata":5}`, `{"spec":[]}`} {
		_, err := Review("east", k, []byte(doc))
		require.Error(t, err, doc)
	}
	_, err = Review("east", Kind{Kind: "Nonsense"}, []byte(`{}`))
	require.ErrorContains(t, err, `kind "Nonsense" is not one that is read`)
	require.Empty(t, FieldErrors(err))
	require.Empty(t, FieldErrors(nil))
}
