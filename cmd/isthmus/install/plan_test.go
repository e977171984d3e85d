package install_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/install"
	"github.com/isthmus-mesh/isthmus/manifests"
)

// TestPlans maps whole files; the goldens are what is installed, and every
// warning. What is planned renders.
func TestPlans(t *testing.T) {
	files, err := filepath.Glob("testdata/operator/*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		if strings.HasSuffix(file, ".golden.yaml") {
			continue
		}
		t.Run(filepath.Base(file), func(t *testing.T) {
			p, err := install.Input{Files: []string{file}}.Plan()
			require.NoError(t, err)
			_, err = p.Objects()
			require.NoError(t, err)
			text, err := yaml.Marshal(p)
			require.NoError(t, err)
			golden(t, strings.TrimSuffix(file, ".yaml")+".golden.yaml", text)
		})
	}
}

// TestSetPaths: --set takes values, and the paths that istioctl knows.
func TestSetPaths(t *testing.T) {
	p, err := install.Input{Set: []string{"values.global.network=a", "hub=example.com", "components.pilot.k8s.replicaCount=4",
		"global.meshID=m", "meshConfig.trustDomain=td", `pilot.podAnnotations.a\.b/c=d`}}.Plan()
	require.NoError(t, err)
	require.Len(t, p.Installations, 1)
	v := p.Installations[0].Values
	for at, want := range map[string]string{"global.network": "a", "global.hub": "example.com", "pilot.replicaCount": "4", "global.meshID": "m",
		"meshConfig.trustDomain": "td", `pilot.podAnnotations.a\.b/c`: "d"} {
		require.Equal(t, want, manifests.Text(v, at), at)
	}
}

// TestOrderOfInput: later files over earlier ones, fields of the spec over its
// values, --set over files, flags over all.
func TestOrderOfInput(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		return file
	}
	a := write("a.yaml", "kind: IstioOperator\nspec: {revision: a, hub: spec, values: {revision: b, global: {hub: values, tag: one, network: n1}}}")
	b := write("b.yaml", "global: {tag: two}")
	p, err := install.Input{Files: []string{a, b}, Set: []string{"global.network=n2"}, Namespace: "mesh"}.Plan()
	require.NoError(t, err)
	i := p.Installations[0]
	require.Equal(t, "a", i.Revision)
	require.Equal(t, "isthmus-a", i.Release)
	require.Equal(t, "mesh", i.Namespace)
	for at, want := range map[string]string{"global.hub": "spec", "global.tag": "two", "global.network": "n2", "global.istioNamespace": "mesh"} {
		require.Equal(t, want, manifests.Text(i.Values, at), at)
	}
	p, err = install.Input{Files: []string{a, b}, Revision: "c", Release: "mine"}.Plan()
	require.NoError(t, err)
	require.Equal(t, "c", p.Installations[0].Revision)
	require.Equal(t, "mine", p.Installations[0].Release)
}

// TestRefusedInput: what cannot be read is refused with file, document and
// reason.
func TestRefusedInput(t *testing.T) {
	for name, c := range map[string]struct{ text, wants string }{
		"another kind":  {"kind: Deployment", "document 1: is a Deployment"},
		"no YAML":       {"a: [", "document 1"},
		"second is bad": {"a: b\n---\nkind: Pod", "document 2: is a Pod"},
		"spec":          {"kind: IstioOperator\nspec: 5", "spec is no map"},
		"components":    {"kind: IstioOperator\nspec: {components: 5}", "components is no map"},
		"gateways":      {"kind: IstioOperator\nspec: {components: {ingressGateways: 5}}", "spec.components.ingressGateways is no list"},
		"env":           {"kind: IstioOperator\nspec: {components: {pilot: {k8s: {env: [{value: a}]}}}}", "env[0] has no name"},
		"ambient":       {"kind: IstioOperator\nspec: {profile: ambient}", "ambient mode is not supported"},
		"profile":       {"profile: nonsense", `profile "nonsense" is not known`},
		"nothing":       {"kind: IstioOperator\nspec: {profile: empty}", "nothing is to be installed"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := install.Input{Files: []string{"-"}, Stdin: strings.NewReader(c.text)}.Plan()
			require.ErrorContains(t, err, c.wants)
		})
	}
	_, err := install.Input{Files: []string{"/does/not/exist"}}.Plan()
	require.ErrorContains(t, err, "/does/not/exist")
	_, err = install.Input{Set: []string{"no-equals"}}.Plan()
	require.ErrorContains(t, err, "--set no-equals")
}

// FuzzPlan: no file makes planning panic, and what is planned can be named.
func FuzzPlan(f *testing.F) {
	files, err := filepath.Glob("testdata/operator/*.yaml")
	require.NoError(f, err)
	for _, file := range files {
		raw, err := os.ReadFile(file)
		require.NoError(f, err)
		f.Add(string(raw))
	}
	f.Add("kind: IstioOperator\nspec: {components: {ingressGateways: [{label: 5}]}}")
	f.Add("pilot: 5\nglobal: []")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := install.Input{Files: []string{"-"}, Stdin: strings.NewReader(text)}.Plan()
		if err != nil {
			return
		}
		for _, i := range p.Installations {
			require.NotEmpty(t, i.Release)
			require.NotEmpty(t, i.Namespace)
		}
	})
}
