package inject

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	meshconfig "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/mesh"
)

var update = flag.Bool("update", false, "write the golden files anew")

// settings are the first document of a case: all that injection takes beside
// the object, which is the second.
type settings struct {
	Path        string
	Native      bool
	Revision    string
	Namespace   *Namespace
	Mesh        string         // overlaid on the mesh's defaults
	Proxy       string         // overlaid on defaultConfig
	Values      map[string]any // merged into the default values
	Config      map[string]any // merged into the default configuration
	InitFirst   []string
	Compliance  string
	ExpectError bool
}

// testMesh are the settings of a mesh whose users set nothing.
func testMesh() *meshconfig.MeshConfig {
	return &meshconfig.MeshConfig{ProxyListenPort: 15001, ProxyInboundListenPort: 15006, TrustDomain: "cluster.local",
		RootNamespace: "istio-system", DefaultConfig: mesh.DefaultProxyConfig()}
}

// mergeTree merges b into a copy of a.
func mergeTree(a, b map[string]any) map[string]any {
	out := copyJSON(a)
	for k, v := range b {
		if sub, ok := v.(map[string]any); ok {
			if old, ok := out[k].(map[string]any); ok {
				out[k] = mergeTree(old, sub)
				continue
			}
		}
		out[k] = v
	}
	return out
}

func overlaid(t testing.TB, text string, with map[string]any) string {
	t.Helper()
	tree := map[string]any{}
	require.NoError(t, yaml.Unmarshal([]byte(text), &tree))
	out, err := yaml.Marshal(mergeTree(tree, with))
	require.NoError(t, err)
	return string(out)
}

func (s *settings) build(t testing.TB) (*Config, Request) {
	t.Helper()
	c, err := Parse(overlaid(t, DefaultConfig(), s.Config), overlaid(t, DefaultValues(), s.Values),
		Options{Revision: s.Revision, InitBeforeProxy: s.InitFirst, Compliance: s.Compliance})
	require.NoError(t, err)
	m := testMesh()
	if s.Mesh != "" {
		j, err := yaml.YAMLToJSON([]byte(s.Mesh))
		require.NoError(t, err)
		require.NoError(t, overlayJSON(m, j))
	}
	m.DefaultConfig, err = OverlayProxyConfig(m.DefaultConfig, s.Proxy)
	require.NoError(t, err)
	return c, Request{Namespace: "default", Mesh: m, Env: ParsePath(s.Path), NativeSidecars: s.Native, InNamespace: s.Namespace}
}

type testCase struct {
	name     string
	settings settings
	object   map[string]any
}

func cases(t testing.TB) []testCase {
	t.Helper()
	files, err := filepath.Glob("testdata/cases/*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	var out []testCase
	for _, file := range files {
		if strings.HasSuffix(file, ".golden.yaml") {
			continue
		}
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		parts := bytes.SplitN(text, []byte("\n---\n"), 2)
		require.Len(t, parts, 2, "%s: want settings and an object", file)
		c := testCase{name: strings.TrimSuffix(filepath.Base(file), ".yaml")}
		require.NoError(t, yaml.UnmarshalStrict(parts[0], &c.settings), file)
		require.NoError(t, yaml.Unmarshal(parts[1], &c.object), file)
		out = append(out, c)
	}
	return out
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(got), 0o600))
		return
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err, "run with -update")
	require.Equal(t, string(want), got)
}

func TestInjectedObjects(t *testing.T) {
	for _, tc := range cases(t) {
		t.Run(tc.name, func(t *testing.T) {
			c, r := tc.settings.build(t)
			path := filepath.Join("testdata", "cases", tc.name+".golden.yaml")
			result, err := c.InjectObject(tc.object, r)
			if tc.settings.ExpectError {
				require.Error(t, err)
				golden(t, path, "# error: "+err.Error()+"\n")
				return
			}
			require.NoError(t, err)
			require.NotNil(t, result)
			head := "# " + result.Reason + "\n"
			for _, w := range result.Warnings {
				head += "# warning: " + w + "\n"
			}
			out, err := yaml.Marshal(result.Object)
			require.NoError(t, err)
			golden(t, path, head+string(out))

			again, err := c.InjectObject(result.Object, r)
			require.NoError(t, err)
			repeated, err := yaml.Marshal(again.Object)
			require.NoError(t, err)
			require.Equal(t, string(out), string(repeated), "injecting again must change nothing")
		})
	}
	if *update {
		removeOrphans(t)
	}
}

func removeOrphans(t *testing.T) {
	t.Helper()
	files, err := filepath.Glob("testdata/cases/*.golden.yaml")
	require.NoError(t, err)
	for _, f := range files {
		if _, err := os.Stat(strings.TrimSuffix(f, ".golden.yaml") + ".yaml"); os.IsNotExist(err) {
			require.NoError(t, os.Remove(f))
		}
	}
}

func BenchmarkInject(b *testing.B) {
	c, err := Default(Options{})
	require.NoError(b, err)
	pod := &corev1.Pod{}
	pod.Name, pod.Namespace = "p", "shop"
	pod.Spec.Containers = []corev1.Container{{Name: "app", Image: "a"}}
	for b.Loop() {
		if _, err := c.Inject(Request{Pod: pod, Mesh: testMesh()}); err != nil {
			b.Fatal(err)
		}
	}
}
