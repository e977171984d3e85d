package file

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/registry/kube"
)

func TestParse(t *testing.T) {
	const text = `# a comment
---
apiVersion: v1
kind: Service
metadata: {name: one}
--- # another document
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Service
  metadata:
    name: two
    namespace: shop
- apiVersion: v1
  kind: List
  items:
  - apiVersion: v1
    kind: Node
    metadata: {name: n1, namespace: ignored}
- apiVersion: apps/v1
  kind: Deployment
  metadata: {name: nothing-reads-this}
---
apiVersion: v1
kind: PodList
items:
- metadata: {name: p, namespace: shop}
---
{"apiVersion": "gateway.networking.k8s.io/v1beta1", "kind": "Gateway", "metadata": {"name": "g"}}
---
apiVersion: networking.istio.io/v1alpha3
kind: Gateway
metadata: {name: g}
spec: {selector: {istio: x}, servers: [{hosts: ["*.local"], port: {number: 15443, name: tls, protocol: TLS}, tls: {mode: AUTO_PASSTHROUGH}}]}
---
---
`
	c, err := parse("east", []byte(text))
	require.NoError(t, err)
	require.Equal(t, 1, c.ignored)
	type got struct {
		id   id
		line int
	}
	var list []got
	for _, o := range c.objects {
		require.NoError(t, o.err)
		require.NotNil(t, o.value)
		list = append(list, got{o.id, o.line})
	}
	require.Equal(t, []got{
		{id{kube.KindService, "default", "one"}, 3},
		{id{kube.KindService, "shop", "two"}, 10},
		{id{kube.KindNode, "", "n1"}, 18},
		{id{kube.KindPod, "shop", "p"}, 28},
		{id{kube.KindGateway, "default", "g"}, 30},
		{id{kube.Kind(mesh.KindGateway), "default", "g"}, 32},
	}, list)
	require.Equal(t, "default", c.objects[0].value.(*corev1.Service).Namespace)
	require.Equal(t, "default", c.objects[5].value.(*mesh.Object).Key.Namespace)
}

func TestParseErrors(t *testing.T) {
	tests := []struct {
		name, text string
		line       int
		message    string
	}{
		{"indentation", "# nothing\n---\napiVersion: v1\n kind: Service\n", 4, "mapping values are not allowed"},
		{"unclosed", "kind: [\n", 1, "did not find expected node content"},
		{"tab", "apiVersion: v1\nkind: Service\nmetadata:\n\tname: x\n", 4, "cannot start any token"},
		{"no kind", "\n\napiVersion: v1\n", 3, "apiVersion or kind is missing"},
		{"no name", "apiVersion: v1\nkind: Service\n", 1, "without metadata.name"},
		{"a name that YAML takes for a truth", "apiVersion: v1\nkind: Service\nmetadata:\n  name: y\n", 4, "metadata.name: want string, got bool"},
		{"no object", "- 1\n", 1, "not a Kubernetes object"},
		{"no object in a list", "kind: List\napiVersion: v1\nitems:\n- x\n", 4, "not a Kubernetes object"},
		{"nameless in a list", "kind: List\napiVersion: v1\nitems:\n- kind: Pod\n  apiVersion: v1\n", 4, "Pod without metadata.name"},
		{"lists of lists of lists", strings.Repeat(`{"kind":"List","apiVersion":"v1","items":[`, 9) + strings.Repeat("]}", 9), 1, "too deep"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parse("east", []byte(tt.text))
			var syntax *syntaxError
			require.ErrorAs(t, err, &syntax)
			require.Contains(t, syntax.message, tt.message)
			require.Equal(t, tt.line, syntax.line)
		})
	}
}

// TestBadObject: what is wrong with one object does not concern the others of
// its file, and is found by field and line.
func TestBadObject(t *testing.T) {
	c, err := parse("east", []byte(`apiVersion: v1
kind: Service
metadata: {name: bad, namespace: shop}
spec:
  clusterIP:
  - 10.0.0.1
---
apiVersion: v1
kind: Service
metadata: {name: good, namespace: shop}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: g, namespace: shop}
spec:
  servers:
  - hosts: ["*.local"]
    port:
      number: many
`))
	require.NoError(t, err)
	require.Len(t, c.objects, 3)
	require.ErrorContains(t, c.objects[0].err, "clusterIP")
	require.Equal(t, 6, c.objects[0].line)
	require.NoError(t, c.objects[1].err)
	require.Equal(t, problem{"spec.servers[0].port.number", `g.yaml line 19: want a number, got the string "many"`},
		fixMessage(objectProblem(place{"g.yaml", c.objects[2].line}, c.objects[2].err)))
	require.Equal(t, problem{"spec.clusterIP", "b.yaml line 6: want string, got array"}, objectProblem(place{"b.yaml", 6}, c.objects[0].err))
}

// fixMessage leaves the wording of registry/config out of the comparison.
func fixMessage(p problem) problem {
	if i := strings.Index(p.message, "line 19: "); i >= 0 {
		p.message = p.message[:i] + `line 19: want a number, got the string "many"`
	}
	return p
}

// FuzzFile: no file makes reading fail in another way than with a line, and what
// is read can be translated.
func FuzzFile(f *testing.F) {
	for _, s := range []string{
		"apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {clusterIP: None, ports: [{port: 1, targetPort: a}]}\n---\napiVersion: v1\nkind: List\nitems: [{kind: Pod, apiVersion: v1, metadata: {name: p}}]",
		"kind: ServiceList\napiVersion: v1\nitems: [{metadata: {name: x}}, null, 3]",
		"a: &a [*a]", "---\n--- x\n...\n", "{\"kind\":\"Service\",\"apiVersion\":\"v1\",\"metadata\":{\"name\":1}}", "\xff\xfe",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := parse("east", text)
		if err != nil {
			var syntax *syntaxError
			require.ErrorAs(t, err, &syntax)
			require.Positive(t, syntax.line)
			return
		}
		tr := kube.NewTranslator(kube.TranslatorConfig{Cluster: "east", DeriveEndpoints: true, Problems: registry.NewProblems(nil)})
		for _, o := range c.objects {
			require.Positive(t, o.line)
			if o.err == nil {
				require.True(t, tr.Set(o.value))
			}
		}
		tr.Snapshot()
	})
}
