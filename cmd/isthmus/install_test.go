package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/isthmus-mesh/isthmus/manifests"
	"github.com/isthmus-mesh/isthmus/multicluster"
)

// TestManifestGenerate prints what install applies: for values, for IstioOperator
// files with every field that has no meaning named on stderr, with definitions.
func TestManifestGenerate(t *testing.T) {
	r := runCommand(t.Context(), "manifest", "generate", "--set", "global.network=network-1", "--set", "values.global.meshID=mesh1")
	require.Zero(t, r.code, r.err)
	require.Empty(t, r.err)
	objects, err := manifests.Decode(strings.NewReader(r.out))
	require.NoError(t, err)
	plain, err := manifests.Render(manifests.Options{Chart: manifests.Primary, Version: "v1.2.3", Values: map[string]any{
		"global": map[string]any{"network": "network-1", "meshID": "mesh1", "istioNamespace": "istio-system"}}})
	require.NoError(t, err)
	want, err := manifests.Encode(plain)
	require.NoError(t, err)
	require.Equal(t, string(want), r.out)

	with := runCommand(t.Context(), "manifest", "generate", "--crds")
	all, err := manifests.Decode(strings.NewReader(with.out))
	require.NoError(t, err)
	crds, err := manifests.CRDs()
	require.NoError(t, err)
	require.Len(t, all, len(objects)+len(crds))

	file := filepath.Join(t.TempDir(), "operator.yaml")
	require.NoError(t, os.WriteFile(file, []byte("kind: IstioOperator\nspec: {profile: remote, addonComponents: {}, values: {nonsense: 1}}"), 0o600))
	r = runCommand(t.Context(), "manifest", "generate", "-f", file)
	require.Zero(t, r.code)
	require.Contains(t, r.err, "warning: spec.addonComponents has no meaning here")
	require.Contains(t, r.err, "warning: value nonsense has no meaning for chart remote")
	require.Contains(t, r.out, "name: istio-reader-service-account")
}

// TestManifestDiff compares files: equal is silent and 0, different is a diff
// and 1.
func TestManifestDiff(t *testing.T) {
	dir := t.TempDir()
	write := func(name, color string) string {
		file := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(file, []byte("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: b}\ndata: {color: "+color+"}\n"), 0o600))
		return file
	}
	a, b := write("a.yaml", "red"), write("b.yaml", "blue")
	r := runCommand(t.Context(), "manifest", "diff", a, a)
	require.Zero(t, r.code, r.err)
	require.Empty(t, r.out)
	r = runCommand(t.Context(), "manifest", "diff", a, b)
	require.Equal(t, exitFailed, r.code)
	require.Contains(t, r.out, "-  color: red\n+  color: blue\n")
	require.Contains(t, r.out, "ConfigMap b/a")
	r = runCommand(t.Context(), "manifest", "diff", a, filepath.Join(dir, "none"))
	require.Equal(t, exitFailed, r.code)
	require.Contains(t, r.err, "none")
}

// TestInstallMistakes: a wrong command line is told with what would be right.
func TestInstallMistakes(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		code int
		says string
	}{
		"profile":           {[]string{"install", "--profile", "ambient"}, exitFailed, "ambient mode is not supported"},
		"set":               {[]string{"manifest", "generate", "--set", "a"}, exitFailed, "want PATH=VALUE"},
		"argument":          {[]string{"install", "now"}, exitUsage, "takes no arguments"},
		"one file":          {[]string{"manifest", "diff", "a"}, exitUsage, "needs no argument or two files"},
		"uninstall profile": {[]string{"uninstall", "--profile", "default"}, exitUsage, "is not one of primary, remote, eastwest"},
		"context":           {[]string{"install", "--kubeconfig", "/does/not/exist", "--context", "west"}, exitFailed, "find the cluster"},
		"file":              {[]string{"install", "-f", "/does/not/exist.yaml"}, exitFailed, "/does/not/exist.yaml"},
	} {
		t.Run(name, func(t *testing.T) {
			r := runCommand(t.Context(), c.args...)
			require.Equal(t, c.code, r.code, r.err)
			require.Contains(t, r.err, c.says)
			require.Empty(t, r.out)
		})
	}
}

// TestImageVersion: only builds that have an image of their own name it.
func TestImageVersion(t *testing.T) {
	for version, want := range map[string]string{"dev": "", "v1.2.3": "v1.2.3"} {
		e := environment{out: &bytes.Buffer{}, err: &bytes.Buffer{}}
		e.build.Version, e.build.Status = version, "Clean"
		require.Equal(t, want, e.imageVersion())
		e.build.Status = "Modified"
		require.Empty(t, e.imageVersion())
	}
}

// TestConfigSecret: the Secret of an external control plane has the name and key
// that its chart mounts, and is no remote secret.
func TestConfigSecret(t *testing.T) {
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "istio-remote-secret-east", Namespace: "istio-system",
		Labels: map[string]string{multicluster.SecretLabel: "true"}, Annotations: map[string]string{multicluster.ClusterAnnotation: "east"}},
		StringData: map[string]string{"east": "kubeconfig"}}
	makeConfigSecret(s)
	require.Equal(t, "istio-kubeconfig", s.Name)
	require.Empty(t, s.Labels)
	require.Equal(t, map[string]string{"config": "kubeconfig"}, s.StringData)
}
