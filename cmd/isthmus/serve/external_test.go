package serve

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry/config"
)

func writeKubeconfig(t *testing.T, file, server, token string, at time.Time) {
	t.Helper()
	text, err := yaml.Marshal(map[string]any{"apiVersion": "v1", "kind": "Config", "current-context": "c",
		"clusters": []any{map[string]any{"name": "c", "cluster": map[string]any{"server": server, "insecure-skip-tls-verify": true}}},
		"users":    []any{map[string]any{"name": "u", "user": map[string]any{"token": token}}},
		"contexts": []any{map[string]any{"name": "c", "context": map[string]any{"cluster": "c", "user": "u"}}}})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, text, 0o600))
	require.NoError(t, os.Chtimes(file, at, at))
}

// TestRenewedToken: the token of an external control plane's kubeconfig is taken
// again when the file changes; a file that is broken or gone leaves the last.
func TestRenewedToken(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config")
	start := time.Now()
	writeKubeconfig(t, file, "https://example.com", "first", start)
	clock := start
	tokens := &fileTokens{file: file, token: "first", now: func() time.Time { return clock }}
	require.Equal(t, "first", tokens.get())
	writeKubeconfig(t, file, "https://example.com", "second", start.Add(time.Second))
	require.Equal(t, "first", tokens.get(), "files are not read at every request")
	clock = clock.Add(tokenLook)
	require.Equal(t, "second", tokens.get())
	require.NoError(t, os.WriteFile(file, []byte("nonsense: ["), 0o600))
	clock = clock.Add(tokenLook)
	require.Equal(t, "second", tokens.get())
	require.NoError(t, os.Remove(file))
	clock = clock.Add(tokenLook)
	require.Equal(t, "second", tokens.get())
}

// TestKubeconfigTokenIsSent: requests carry the token, and a caller's own is not
// replaced.
func TestKubeconfigTokenIsSent(t *testing.T) {
	var got []string
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = append(got, r.Header.Get("Authorization"))
	}))
	defer server.Close()
	file := filepath.Join(t.TempDir(), "config")
	writeKubeconfig(t, file, server.URL, "secret", time.Now())
	cfg, err := fileConfig(file)
	require.NoError(t, err)
	require.Empty(t, cfg.BearerToken)
	client, err := rest.HTTPClientFor(cfg)
	require.NoError(t, err)
	for _, own := range []string{"", "Bearer other"} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil)
		require.NoError(t, err)
		if own != "" {
			r.Header.Set("Authorization", own)
		}
		answer, err := client.Do(r)
		require.NoError(t, err)
		require.NoError(t, answer.Body.Close())
	}
	require.Equal(t, []string{"Bearer secret", "Bearer other"}, got)
	client.CloseIdleConnections()
}

// TestExternalNeedsAPod: remote secrets of the cluster that the control plane
// runs in cannot be read from outside of it.
func TestExternalNeedsAPod(t *testing.T) {
	k := &kubeWorld{c: &Control{settings: Settings{External: true, LocalSecrets: true}}}
	_, err := k.secretsClient()
	require.ErrorContains(t, err, "LOCAL_CLUSTER_SECRET_WATCHER")
	for _, s := range []Settings{{}, {External: true}, {LocalSecrets: true}} {
		k.c.settings = s
		client, err := k.secretsClient()
		require.NoError(t, err)
		require.Nil(t, client, "the primary's are read")
	}
}

func meshMap(name, text string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "istio-system"}, Data: map[string]string{"mesh": text}}
}

// TestSharedMeshConfig: shared settings lie under the control plane's own, both
// live; either may be missing.
func TestSharedMeshConfig(t *testing.T) {
	client := fake.NewClientset(meshMap("shared", "trustDomain: shared.example\ndefaultConfig: {drainDuration: 7s}"))
	seen := make(chan mesh.Settings, 100)
	w, err := config.NewWatcher(config.WatchConfig{Set: func(s mesh.Settings) { seen <- s }, Namespace: "istio-system", Cluster: "c1",
		Client: sharedSettings{client, "shared"}})
	require.NoError(t, err)
	done := make(chan error, 1)
	ctx, cancel := testContext(t)
	go func() { done <- w.Run(ctx) }()
	await := func(trustDomain string, drain float64) {
		t.Helper()
		for {
			select {
			case s := <-seen:
				if s.Mesh.GetTrustDomain() == trustDomain && s.Mesh.GetDefaultConfig().GetDrainDuration().AsDuration().Seconds() == drain {
					return
				}
			case <-ctx.Done():
				t.Fatalf("trust domain %s with %v s was never in force", trustDomain, drain)
			}
		}
	}
	maps := client.CoreV1().ConfigMaps("istio-system")
	await("shared.example", 7)
	_, err = maps.Create(ctx, meshMap("istio", "trustDomain: own.example"), metav1.CreateOptions{})
	require.NoError(t, err)
	await("own.example", 7)
	_, err = maps.Update(ctx, meshMap("shared", "trustDomain: shared.example\ndefaultConfig: {drainDuration: 9s}"), metav1.UpdateOptions{})
	require.NoError(t, err)
	await("own.example", 9)
	require.NoError(t, maps.Delete(ctx, "shared", metav1.DeleteOptions{}))
	await("own.example", 45)
	_, err = maps.Create(ctx, meshMap("shared", "defaultConfig: {drainDuration: 5s}"), metav1.CreateOptions{})
	require.NoError(t, err)
	await("own.example", 5)
	require.NoError(t, maps.Delete(ctx, "istio", metav1.DeleteOptions{}))
	await("cluster.local", 5)
	cancel()
	require.NoError(t, <-done)
}

// TestSharedMeshText: what is no YAML stays as it is, for its reader to name.
func TestSharedMeshText(t *testing.T) {
	require.Equal(t, "a: 1\nb: 2\n", mergeYAML("a: 1", "b: 2"))
	require.Equal(t, "[", mergeYAML("[", "b: 2"))
	require.Equal(t, "[", mergeYAML("a: 1", "["))
}

// TestSharedIsOwn: a control plane whose own ConfigMap is the shared one reads
// it once.
func TestSharedIsOwn(t *testing.T) {
	var client kubernetes.Interface = sharedSettings{fake.NewClientset(meshMap("istio", "trustDomain: a")), "istio"}
	list, err := client.CoreV1().ConfigMaps("istio-system").List(t.Context(),
		metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, "istio").String()})
	require.NoError(t, err)
	require.Len(t, list.Items, 1)
	require.Equal(t, "trustDomain: a", list.Items[0].Data["mesh"])
}

// testContext ends with the test, or when something that must happen does not.
func testContext(t *testing.T) (context.Context, context.CancelFunc) {
	t.Helper()
	return context.WithTimeout(t.Context(), time.Minute)
}
