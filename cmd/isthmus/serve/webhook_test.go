package serve

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/mesh/inject"
)

const reviewOfWeb = `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u1","operation":"CREATE","kind":{"version":"v1","kind":"Pod"},
"namespace":"shop","object":{"metadata":{"name":"web","namespace":"shop"},"spec":{"containers":[{"name":"web","image":"nginx"}]}}}}`

// injectorConfigMap is ConfigMap istio-sidecar-injector with one template.
func injectorConfigMap(t *testing.T, template string) string {
	t.Helper()
	config, err := yaml.Marshal(map[string]any{"policy": "enabled", "templates": map[string]string{"sidecar": template}})
	require.NoError(t, err)
	out, err := yaml.Marshal(corev1.ConfigMap{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{Name: "istio-sidecar-injector", Namespace: "istio-system"},
		Data:       map[string]string{inject.KeyConfig: string(config), inject.KeyValues: "global: {}"}})
	require.NoError(t, err)
	return string(out)
}

// reviewOfBadGateway asks whether a Gateway without servers may be created.
const reviewOfBadGateway = `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"1","operation":"CREATE",
"kind":{"group":"networking.istio.io","version":"v1","kind":"Gateway"},"resource":{"group":"networking.istio.io","version":"v1","resource":"gateways"},
"namespace":"shop","name":"edge","object":{"apiVersion":"networking.istio.io/v1","kind":"Gateway","metadata":{"name":"edge","namespace":"shop"},"spec":{"selector":{"app":"edge"}}}}}`

// The webhook listens over TLS with a certificate of the mesh's CA for the name
// that API servers call, and injects what the folder's ConfigMap says.
func TestWebhookOverTLS(t *testing.T) {
	r := runWith(t, func(s *Settings) {
		s.HTTPSAddr = "127.0.0.1:0"
		text := injectorConfigMap(t, "metadata: {annotations: {from: 'the folder in {{ .Values.global.multiCluster.clusterName }}'}}")
		require.NoError(t, os.WriteFile(filepath.Join(s.Files, s.Primary, "injector.yaml"), []byte("# settings\n---\n"+text+"---\n{}\n"), 0o600))
	})
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(r.control.RootsPEM()))
	transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "istiod.istio-system.svc", MinVersion: tls.VersionTLS12}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}

	resp, err := client.Post("https://"+r.control.WebhookAddr()+"/inject/cluster/c2?timeout=5s", "application/json", strings.NewReader(reviewOfWeb))
	require.NoError(t, err)
	defer func() { require.NoError(t, resp.Body.Close()) }()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode, string(body))
	var review admissionv1.AdmissionReview
	require.NoError(t, json.Unmarshal(body, &review))
	require.True(t, review.Response.Allowed)
	require.Contains(t, string(review.Response.Patch), "the folder in c2")

	checked, err := client.Post("https://"+r.control.WebhookAddr()+"/validate", "application/json", strings.NewReader(reviewOfBadGateway))
	require.NoError(t, err)
	verdict := admissionv1.AdmissionReview{}
	require.NoError(t, json.NewDecoder(checked.Body).Decode(&verdict))
	require.NoError(t, checked.Body.Close())
	require.False(t, verdict.Response.Allowed)
	require.Contains(t, verdict.Response.Result.Message, "spec.servers")

	ready, err := client.Get("https://" + r.control.WebhookAddr() + "/ready")
	require.NoError(t, err)
	require.NoError(t, ready.Body.Close())
	require.Equal(t, http.StatusOK, ready.StatusCode)
	code, metrics := r.get("/metrics")
	require.Equal(t, http.StatusOK, code)
	require.Contains(t, metrics, "sidecar_injection_success_total 1")
	code, debug := r.get("/debug/inject")
	require.Equal(t, http.StatusOK, code)
	require.Contains(t, debug, "istio-sidecar-injector")
}

// Configuration that cannot be used is on record by name, and what was in force
// stays; good configuration takes its place at once.
func TestInjectionConfigurationKeepsTheLastGood(t *testing.T) {
	c := filesControl(t)
	i := newInjection(c)
	require.NotEmpty(t, i.notReady())
	data := func(template string) map[string]string {
		var cm corev1.ConfigMap
		require.NoError(t, yaml.Unmarshal([]byte(injectorConfigMap(t, template)), &cm))
		return cm.Data
	}
	i.take(data("{{ broken"), true)
	require.Empty(t, i.notReady())
	require.Nil(t, i.config(), "nothing is in force before anything good was there")
	problems := c.problems.List()
	require.Len(t, problems, 1)
	require.Equal(t, "istio-sidecar-injector", problems[0].Object.Name)
	require.Contains(t, problems[0].Message, `template "sidecar", line 1`)

	i.take(data("metadata: {}"), true)
	first := i.config()
	require.NotNil(t, first)
	require.Empty(t, c.problems.List())

	i.take(data("{{ broken"), true)
	require.Same(t, first, i.config())
	require.Len(t, c.problems.List(), 1)
	i.take(nil, false)
	require.Same(t, first, i.config())
	require.Contains(t, c.problems.List()[0].Message, "has been deleted")
	i.take(data("metadata: {labels: {a: b}}"), true)
	require.NotSame(t, first, i.config())
	require.Empty(t, c.problems.List())
}

func TestInjectionWithoutConfigMapUsesOurTemplates(t *testing.T) {
	i := newInjection(filesControl(t))
	i.take(nil, false)
	require.Equal(t, inject.DefaultTemplates(), i.config().Sources())
}

func TestFindConfigMap(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	write("broken.yaml", "istio-sidecar-injector: [")
	write(".hidden/cm.yaml", injectorConfigMap(t, "hidden"))
	write("notes.txt", injectorConfigMap(t, "no YAML file"))
	_, there, err := findConfigMap(dir, "istio-system", "istio-sidecar-injector")
	require.NoError(t, err)
	require.False(t, there)
	write("deep/er/all.yml", "kind: Service\n---  # a comment\n"+injectorConfigMap(t, "found"))
	data, there, err := findConfigMap(dir, "istio-system", "istio-sidecar-injector")
	require.NoError(t, err)
	require.True(t, there)
	require.Contains(t, data[inject.KeyConfig], "found")
	_, there, err = findConfigMap(dir, "other", "istio-sidecar-injector")
	require.NoError(t, err)
	require.False(t, there)
	_, _, err = findConfigMap(filepath.Join(dir, "nosuch"), "a", "b")
	require.Error(t, err)
	require.Equal(t, []string{"istio-sidecar-injector", "istio-sidecar-injector", "istio-sidecar-injector-canary"},
		[]string{injectionConfigMap(""), injectionConfigMap("default"), injectionConfigMap("canary")})
}

func nodes(versions ...string) *fake.Clientset {
	client := fake.NewClientset()
	for i, v := range versions {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("n", i)}, Status: corev1.NodeStatus{NodeInfo: corev1.NodeSystemInfo{KubeletVersion: v}}}
		_ = client.Tracker().Add(n)
	}
	return client
}

func TestNativeSidecarsNeedAllNodes(t *testing.T) {
	for _, tc := range []struct {
		mode     string
		versions []string
		want     bool
	}{
		{nativeAuto, nil, false}, // nobody knows what will run the pod
		{nativeAuto, []string{"v1.33.0", "v1.34.1+k3s1"}, true},
		{nativeAuto, []string{"v1.33.0", "v1.32.9-eks-1"}, false},
		{nativeBeta, []string{"v1.29.0"}, true},
		{nativeAuto, []string{"what"}, false},
	} {
		s := Injection{NativeSidecars: tc.mode}
		got, err := nodesAtLeast(t.Context(), nodes(tc.versions...), s.leastKubelet())
		require.NoError(t, err)
		require.Equal(t, tc.want, got, tc)
	}
	require.Nil(t, (&Injection{NativeSidecars: nativeOn}).leastKubelet())
	require.Error(t, (&Injection{NativeSidecars: "maybe"}).validate())
	require.NoError(t, (&Injection{NativeSidecars: nativeOff}).validate())
}

// What was found out is asked for once while it is fresh, and is not forgotten
// when the API server does not answer.
func TestFactsAreRemembered(t *testing.T) {
	f := &injectionFacts{log: zap.NewNop()}
	known := map[string]*fact[bool]{}
	asked := 0
	answer := func(v bool, err error) func(ctx context.Context) (bool, error) {
		return func(context.Context) (bool, error) { asked++; return v, err }
	}
	require.True(t, lookup(t.Context(), f, known, "a", time.Hour, answer(true, nil)))
	require.True(t, lookup(t.Context(), f, known, "a", time.Hour, answer(false, nil)))
	require.Equal(t, 1, asked)
	known["a"].until = time.Time{}
	require.True(t, lookup(t.Context(), f, known, "a", time.Hour, answer(false, os.ErrDeadlineExceeded)))
	require.Equal(t, 2, asked)
	require.True(t, lookup(t.Context(), f, known, "a", time.Hour, answer(false, nil)), "not asked again at once")
	require.Equal(t, 2, asked)
	known["a"].until = time.Time{}
	require.False(t, lookup(t.Context(), f, known, "a", time.Hour, answer(false, nil)))
}
