package manifests_test

import (
	"bytes"
	"cmp"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pmezard/go-difflib/difflib"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/manifests"
)

func update() bool { return flag.Lookup("update").Value.String() == "true" }

func TestMain(m *testing.M) {
	flag.Bool("update", false, "rewrite golden files and generated files")
	flag.Parse()
	os.Exit(m.Run())
}

// golden compares text with a file, or writes the file.
func golden(t *testing.T, file string, text []byte) {
	t.Helper()
	if update() {
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, text, 0o644))
		return
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err, "run: go test ./manifests -update")
	if !bytes.Equal(want, text) {
		diff, err := difflib.GetUnifiedDiffString(difflib.UnifiedDiff{A: difflib.SplitLines(string(want)), B: difflib.SplitLines(string(text)), Context: 2})
		require.NoError(t, err)
		t.Fatalf("%s is not current; run: go test ./manifests -update, and read the diff\n%s", file, diff)
	}
}

func render(t *testing.T, o manifests.Options) []byte {
	t.Helper()
	objects, err := manifests.Render(o)
	require.NoError(t, err)
	text, err := manifests.Encode(objects)
	require.NoError(t, err)
	return text
}

const renderedHead = `# Made from manifests/charts/%s by: go test ./manifests -update. Do not edit.
`

// TestRenderedIsCurrent holds the plain YAML that is checked in equal to the
// charts.
func TestRenderedIsCurrent(t *testing.T) {
	for file, o := range map[string]manifests.Options{
		"primary.yaml": {Chart: manifests.Primary},
		"remote.yaml": {Chart: manifests.Remote, Values: values(t, `
global:
  multiCluster: {clusterName: west}
  network: network-west
  remotePilotAddress: 192.0.2.10`)},
		"eastwest.yaml": {Chart: manifests.EastWest, Values: values(t, `networkGateway: network-east`)},
	} {
		t.Run(file, func(t *testing.T) {
			head := strings.ReplaceAll(renderedHead, "%s", string(o.Chart))
			golden(t, filepath.Join("rendered", file), append([]byte(head), render(t, o)...))
		})
	}
}

func values(t *testing.T, text string) map[string]any {
	t.Helper()
	out := map[string]any{}
	require.NoError(t, yaml.Unmarshal([]byte(text), &out))
	return out
}

// TestDefinitionsAreCurrent holds the definitions equal to those of the module
// that the control plane is built with.
func TestDefinitionsAreCurrent(t *testing.T) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}} {{.Version}}", "istio.io/api").Output()
	require.NoError(t, err)
	at, version, ok := strings.Cut(strings.TrimSpace(string(dir)), " ")
	require.True(t, ok)
	raw, err := os.ReadFile(filepath.Join(at, "kubernetes", "customresourcedefinitions.gen.yaml"))
	require.NoError(t, err)
	head := `# Definitions of Istio's custom resources, from file kubernetes/customresourcedefinitions.gen.yaml of the Go
# module istio.io/api ` + version + `, unchanged. Copyright Istio Authors, Apache License 2.0 (see LICENSE).
# Made by: go test ./manifests -update. Do not edit.
`
	golden(t, "charts/isthmus/crds/istio.yaml", append([]byte(head), raw...))
	crds, err := manifests.CRDs()
	require.NoError(t, err)
	require.NotEmpty(t, crds)
	for _, c := range crds {
		require.Equal(t, "CustomResourceDefinition", c.GetKind())
	}
}

// TestSharedTemplates: charts cannot share templates, so they have copies.
func TestSharedTemplates(t *testing.T) {
	for _, name := range []string{"_injection.tpl", "_remote.tpl"} {
		want, err := os.ReadFile(filepath.Join("charts/isthmus/templates", name))
		require.NoError(t, err)
		golden(t, filepath.Join("charts/remote/templates", name), want)
	}
}

// TestGoldens renders every chart over sets of values.
func TestGoldens(t *testing.T) {
	for _, file := range glob(t, "testdata/values/*.yaml") {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		t.Run(name, func(t *testing.T) {
			raw, err := os.ReadFile(file)
			require.NoError(t, err)
			chart, _, _ := strings.Cut(name, "-")
			golden(t, filepath.Join("testdata", "golden", name+".yaml"), render(t, manifests.Options{Chart: manifests.Chart(chart), Values: values(t, string(raw))}))
		})
	}
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	require.NoError(t, err)
	require.NotEmpty(t, files, pattern)
	return files
}

// TestRefusedValues: what cannot work is refused with a sentence, not rendered.
func TestRefusedValues(t *testing.T) {
	for name, c := range map[string]struct {
		chart         manifests.Chart
		values, wants string
	}{
		"other namespace":     {manifests.Primary, "global: {istioNamespace: mesh}", `global.istioNamespace is "mesh" and the release goes to namespace "istio-system"`},
		"config cluster":      {manifests.Primary, "global: {configCluster: true}", "global.configCluster needs global.remotePilotAddress"},
		"cert provider":       {manifests.Primary, "global: {pilotCertProvider: kubernetes}", "only istiod is supported"},
		"tag is the revision": {manifests.Primary, "{revision: a, revisionTags: [a]}", "which is the revision itself"},
		"remote name":         {manifests.Remote, "global: {remotePilotAddress: 192.0.2.1}", "global.multiCluster.clusterName is empty"},
		"gateway network":     {manifests.EastWest, "{}", "networkGateway is empty"},
		"wrong type":          {manifests.Primary, "global: {proxy: 5}", "proxy"},
		"failure policy":      {manifests.Primary, "sidecarInjectorWebhook: {failurePolicy: Maybe}", "failurePolicy"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := manifests.Render(manifests.Options{Chart: c.chart, Values: values(t, c.values)})
			require.ErrorContains(t, err, c.wants)
			require.NotContains(t, err.Error(), "executing", "a sentence, not the template engine's trace")
		})
	}
	_, err := manifests.Render(manifests.Options{Chart: "no"})
	require.ErrorContains(t, err, `"no"`)
}

func TestUnknownValues(t *testing.T) {
	got, err := manifests.UnknownValues(manifests.Primary, values(t, `
global: {network: a, nonsense: 1, proxy: {alsoNonsense: true}}
meshConfig: {anything: goes}
pilot: {env: {ANY: x}, plugins: []}
telemetry: {enabled: true}`))
	require.NoError(t, err)
	require.Equal(t, []string{"global.nonsense", "global.proxy.alsoNonsense", "pilot.plugins", "telemetry"}, got)
}

// TestValuesAreNotChanged: rendering leaves the caller's values alone.
func TestValuesAreNotChanged(t *testing.T) {
	in := values(t, "{meshConfig: {trustDomain: td1}, global: {network: a}}")
	want := values(t, "{meshConfig: {trustDomain: td1}, global: {network: a}}")
	_, err := manifests.Render(manifests.Options{Chart: manifests.Primary, Values: in})
	require.NoError(t, err)
	require.Equal(t, want, in)
}

func TestValuePaths(t *testing.T) {
	v := map[string]any{"a": "text"}
	manifests.Set(v, `a.b\.c.d`, 1)
	require.Equal(t, map[string]any{"a": map[string]any{"b.c": map[string]any{"d": 1}}}, v)
	require.Equal(t, "1", manifests.Text(v, `a.b\.c.d`))
	_, ok := manifests.Get(v, "a.x.y")
	require.False(t, ok)
	base := values(t, "{a: {b: 1, c: 2}, l: [1]}")
	merged := manifests.Merge(base, values(t, "{a: {b: 3}, l: [2, 3]}"))
	require.Equal(t, values(t, "{a: {b: 3, c: 2}, l: [2, 3]}"), merged)
	require.Equal(t, values(t, "{a: {b: 1, c: 2}, l: [1]}"), base)
}

// TestDecode: documents that are no objects are refused by their number.
func TestDecode(t *testing.T) {
	_, err := manifests.Decode(strings.NewReader("---\n---\napiVersion: v1\nkind: Service\nmetadata: {name: a}\n---\nkind: Service\n"))
	require.ErrorContains(t, err, "is no object")
	_, err = manifests.Decode(strings.NewReader("{"))
	require.Error(t, err)
}

// TestSelectorsAreIstiods: what istioctl and existing Deployments rely on.
func TestSelectorsAreIstiods(t *testing.T) {
	// A Deployment's selector cannot be changed: an existing istiod could not be taken over otherwise.
	for revision, want := range map[string]map[string]any{"": {"istio": "pilot"}, "default": {"istio": "pilot"}, "blue": {"app": "istiod", "istio.io/rev": "blue"}} {
		objects, err := manifests.Render(manifests.Options{Chart: manifests.Primary, Values: map[string]any{"revision": revision}})
		require.NoError(t, err)
		for _, o := range objects {
			if o.GetKind() != "Deployment" {
				continue
			}
			selector, _, _ := unstructured.NestedMap(o.Object, "spec", "selector", "matchLabels")
			require.Equal(t, want, selector)
			labels, _, _ := unstructured.NestedStringMap(o.Object, "spec", "template", "metadata", "labels")
			for k, v := range want {
				require.Equal(t, v, labels[k])
			}
			require.Equal(t, "istiod", labels["app"])
			require.Equal(t, cmp.Or(revision, "default"), labels["istio.io/rev"])
		}
	}
}
