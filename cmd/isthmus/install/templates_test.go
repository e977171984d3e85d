package install_test

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/manifests"
	"github.com/isthmus-mesh/isthmus/mesh/inject"
)

// TestInjectionTemplates: the templates that the chart installs are those that
// the control plane has built in. helm reads them from files, so there are
// copies.
func TestInjectionTemplates(t *testing.T) {
	const to = "../../../manifests/charts/isthmus/files/inject"
	templates := inject.DefaultTemplates()
	require.NotEmpty(t, templates)
	for name, text := range templates {
		golden(t, filepath.Join(to, name+".yaml"), []byte(text))
	}
	have, err := filepath.Glob(to + "/*.yaml")
	require.NoError(t, err)
	require.Len(t, have, len(templates), "a template that is not there any more has a file")
}

// TestInjectorConfigMap: what the chart puts into ConfigMap
// istio-sidecar-injector is taken by the control plane, and has every value
// that its templates read.
func TestInjectorConfigMap(t *testing.T) {
	for name, given := range map[string]string{
		"defaults": "{}",
		"custom":   "sidecarInjectorWebhook: {templates: {custom: 'metadata: {labels: {a: b}}'}, defaultTemplates: [sidecar, custom], neverInjectSelector: [{matchLabels: {a: b}}]}",
	} {
		t.Run(name, func(t *testing.T) {
			objects, err := manifests.Render(manifests.Options{Chart: manifests.Primary, Values: values(t, given)})
			require.NoError(t, err)
			found := false
			for _, o := range objects {
				if o.GetName() != "istio-sidecar-injector" || o.GetKind() != "ConfigMap" {
					continue
				}
				found = true
				data := o.Object["data"].(map[string]any)
				config, err := inject.Parse(data["config"].(string), data["values"].(string), inject.Options{})
				require.NoError(t, err)
				require.Empty(t, config.Warnings())
				require.Contains(t, config.Templates(), "sidecar")
				builtIn, installed := values(t, inject.DefaultValues()), values(t, data["values"].(string))
				require.Empty(t, lacking("", builtIn, installed))
				for _, at := range []string{"global.hub", "global.tag", "global.proxy.image"} {
					require.Equal(t, manifests.Text(builtIn, at), manifests.Text(installed, at), at)
				}
			}
			require.True(t, found)
		})
	}
}

// lacking lists the paths of want that have has not.
func lacking(prefix string, want, have map[string]any) []string {
	var out []string
	for key, v := range want {
		got, ok := have[key]
		if !ok {
			out = append(out, prefix+key)
			continue
		}
		inner, isMap := v.(map[string]any)
		if gotMap, ok := got.(map[string]any); ok && isMap {
			out = append(out, lacking(prefix+key+".", inner, gotMap)...)
		}
	}
	return out
}

// TestMeshConfigMap: the chart's mesh settings are valid YAML with what other
// values say in them.
func TestMeshConfigMap(t *testing.T) {
	objects, err := manifests.Render(manifests.Options{Chart: manifests.Primary, Values: values(t,
		"{global: {meshID: mesh1}, pilot: {traceSampling: 10}, meshConfig: {trustDomain: example.org, defaultConfig: {holdApplicationUntilProxyStarts: true}}}")})
	require.NoError(t, err)
	for _, o := range objects {
		if o.GetKind() != "ConfigMap" || o.GetName() != "istio" {
			continue
		}
		mesh := map[string]any{}
		require.NoError(t, yaml.Unmarshal([]byte(o.Object["data"].(map[string]any)["mesh"].(string)), &mesh))
		require.Equal(t, values(t, `
trustDomain: example.org
rootNamespace: istio-system
enablePrometheusMerge: true
defaultProviders: {metrics: [prometheus]}
defaultConfig:
  meshId: mesh1
  tracing: {sampling: 10}
  discoveryAddress: istiod.istio-system.svc:15012
  holdApplicationUntilProxyStarts: true`), mesh)
		return
	}
	t.Fatal("there is no ConfigMap istio")
}
