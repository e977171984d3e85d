package gatewayapi_test

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry/config"
	"github.com/isthmus-mesh/isthmus/registry/gatewayapi"
)

var update = flag.Bool("update", false, "rewrite golden files")

// fixture is a set of objects and Services.
type fixture struct {
	objects     map[mesh.ObjectKind][]*mesh.Object
	services    map[gatewayapi.Name]*mesh.Service
	credentials map[gatewayapi.Credential]gatewayapi.CredentialState
}

func newFixture() *fixture {
	return &fixture{objects: map[mesh.ObjectKind][]*mesh.Object{}, services: map[gatewayapi.Name]*mesh.Service{}, credentials: map[gatewayapi.Credential]gatewayapi.CredentialState{}}
}

// read adds the objects of a file. Services get the host names of a cluster, and
// their external addresses; Secrets and ConfigMaps are credentials: those with an
// annotation "malformed" are.
func (f *fixture) read(t testing.TB, text string) {
	t.Helper()
	for doc := range strings.SplitSeq(text, "\n---\n") {
		raw, err := yaml.YAMLToJSON([]byte(doc))
		require.NoError(t, err)
		var meta struct {
			metav1.TypeMeta `json:",inline"`
			Metadata        metav1.ObjectMeta `json:"metadata"`
		}
		require.NoError(t, yaml.Unmarshal(raw, &meta))
		n := gatewayapi.Name{Namespace: meta.Metadata.Namespace, Name: meta.Metadata.Name}
		switch meta.Kind {
		case "Namespace":
			f.add(&mesh.Object{Key: mesh.ObjectKey{Kind: mesh.KindNamespace, Name: n.Name}, Labels: meta.Metadata.Labels})
		case "Service":
			var svc corev1.Service
			require.NoError(t, yaml.Unmarshal(raw, &svc))
			f.service(n, &svc.Spec)
		case "Secret", "ConfigMap":
			f.credentials[gatewayapi.Credential{Kind: meta.Kind, Name: n}] = gatewayapi.CredentialUsable
			if meta.Metadata.Annotations["malformed"] != "" {
				f.credentials[gatewayapi.Credential{Kind: meta.Kind, Name: n}] = gatewayapi.CredentialMalformed
			}
		default:
			k, ok := config.Lookup(meta.APIVersion, meta.Kind)
			require.True(t, ok, "%s %s", meta.APIVersion, meta.Kind)
			o, err := config.Decode("main", k, raw)
			require.NoError(t, err)
			f.add(o)
		}
	}
}

func (f *fixture) add(o *mesh.Object) {
	f.objects[o.Key.Kind] = append(f.objects[o.Key.Kind], o)
}

func (f *fixture) service(n gatewayapi.Name, spec *corev1.ServiceSpec) {
	d := &mesh.Definition{Name: n.Name, Selector: spec.Selector, External: spec.ExternalIPs,
		AwaitsAddress: spec.Type == corev1.ServiceTypeLoadBalancer && len(spec.ExternalIPs) == 0, Origin: mesh.ObjectRef{Kind: "Service", Namespace: n.Namespace, Name: n.Name}}
	for _, p := range spec.Ports {
		d.Ports = append(d.Ports, mesh.Port{Name: p.Name, Number: uint16(p.Port)})
	}
	f.services[n] = &mesh.Service{Key: mesh.ServiceKey{Namespace: n.Namespace, Hostname: mesh.Hostname(n.Name + "." + n.Namespace + ".svc.cluster.local")}, Lead: d, Ports: d.Ports}
}

// input is what is translated: objects oldest first, whatever the order in which
// they were added.
func (f *fixture) input() gatewayapi.Input {
	return gatewayapi.Input{
		Objects: func(k mesh.ObjectKind) []*mesh.Object {
			return slices.SortedFunc(slices.Values(f.objects[k]), mesh.CompareObjects)
		},
		Service: func(n gatewayapi.Name, imported bool) *mesh.Service {
			if imported {
				return nil
			}
			return f.services[n]
		},
		Credential: func(kind string, n gatewayapi.Name) gatewayapi.CredentialState {
			if s, ok := f.credentials[gatewayapi.Credential{Kind: kind, Name: n}]; ok {
				return s
			}
			return gatewayapi.CredentialMissing
		},
	}
}

// golden compares with a file, or rewrites it.
func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		require.NoError(t, os.WriteFile(path, got, 0o644))
		return
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err, "run the test with -update to write it")
	require.Equal(t, string(want), string(got))
}

// derivedYAML renders what was derived.
func derivedYAML(t *testing.T, res *gatewayapi.Result) []byte {
	t.Helper()
	out := []any{}
	for _, o := range res.Objects {
		spec, err := protojson.Marshal(o.Spec)
		require.NoError(t, err)
		var tree any
		require.NoError(t, yaml.Unmarshal(spec, &tree))
		out = append(out, map[string]any{"kind": o.Key.Kind, "name": o.Key.Namespace + "/" + o.Key.Name, "spec": tree, "value": o.Value})
	}
	text, err := yaml.Marshal(out)
	require.NoError(t, err)
	return text
}

// statusYAML renders the wanted statuses by object.
func statusYAML(t *testing.T, res *gatewayapi.Result) []byte {
	t.Helper()
	out := map[string]any{}
	for k, s := range res.Statuses {
		var says any
		switch {
		case s.Class != nil:
			says = s.Class
		case s.Gateway != nil:
			says = s.Gateway
		case s.Ancestors != nil:
			says = s.Ancestors
		default:
			says = s.Parents
		}
		out[string(k.Kind)+" "+k.Namespace+"/"+k.Name] = says
	}
	text, err := yaml.Marshal(out)
	require.NoError(t, err)
	return regexp.MustCompile(`lastTransitionTime: null\n\s*`).ReplaceAll(text, nil)
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.FromSlash(path))
	require.NoError(t, err)
	return string(text)
}
