package webhook

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networkingv1beta1 "istio.io/api/networking/v1beta1"
	admissionv1 "k8s.io/api/admission/v1"

	"github.com/isthmus-mesh/isthmus/mesh/inject"
)

const webPod = `{"apiVersion":"v1","kind":"Pod","metadata":{"generateName":"web-","namespace":"shop"},"spec":{"containers":[{"name":"web","image":"nginx"}]}}`

func config(t testing.TB) *inject.Config {
	t.Helper()
	c, err := inject.Default(inject.Options{})
	require.NoError(t, err)
	return c
}

func handlerWith(t testing.TB, change func(*Config)) (*Handler, *prometheus.Registry) {
	t.Helper()
	reg, current := prometheus.NewRegistry(), config(t)
	c := Config{Current: func() *inject.Config { return current }, Mesh: func() *meshconfig.MeshConfig { return &meshconfig.MeshConfig{} },
		Primary: "home", Registerer: reg}
	if change != nil {
		change(&c)
	}
	h, err := New(c)
	require.NoError(t, err)
	return h, reg
}

func reviewOf(version, pod string) string {
	return fmt.Sprintf(`{"apiVersion":"admission.k8s.io/%s","kind":"AdmissionReview","request":{"uid":"u1","kind":{"version":"v1","kind":"Pod"},"operation":"CREATE","namespace":"shop","object":%s}}`, version, pod)
}

func post(h http.Handler, path, contentType, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
	r.Header.Set("Content-Type", contentType)
	h.ServeHTTP(w, r)
	return w
}

func answerOf(t testing.TB, w *httptest.ResponseRecorder) admissionv1.AdmissionReview {
	t.Helper()
	require.Equal(t, http.StatusOK, w.Code, w.Body)
	var out admissionv1.AdmissionReview
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &out))
	require.NotNil(t, out.Response)
	require.EqualValues(t, "u1", out.Response.UID)
	return out
}

func counters(t testing.TB, reg *prometheus.Registry) map[string]int {
	t.Helper()
	families, err := reg.Gather()
	require.NoError(t, err)
	out := map[string]int{}
	for _, f := range families {
		for _, m := range f.Metric {
			if m.Counter != nil {
				out[f.GetName()] = int(m.Counter.GetValue())
			} else {
				out[f.GetName()] = int(m.Histogram.GetSampleCount())
			}
		}
	}
	return out
}

func TestBothVersionsAreAnswered(t *testing.T) {
	for _, version := range []string{"v1", "v1beta1"} {
		h, reg := handlerWith(t, nil)
		out := answerOf(t, post(h, "/inject/cluster/c2/net/net2", "application/json; charset=utf-8", reviewOf(version, webPod)))
		require.Equal(t, "admission.k8s.io/"+version, out.APIVersion)
		require.Equal(t, "AdmissionReview", out.Kind)
		require.True(t, out.Response.Allowed)
		require.Equal(t, admissionv1.PatchTypeJSONPatch, *out.Response.PatchType)
		require.Contains(t, string(out.Response.Patch), `{"name":"ISTIO_META_CLUSTER_ID","value":"c2"}`)
		require.Contains(t, string(out.Response.Patch), `{"name":"ISTIO_META_NETWORK","value":"net2"}`)
		require.Equal(t, map[string]int{"sidecar_injection_requests_total": 1, "sidecar_injection_success_total": 1,
			"sidecar_injection_failure_total": 0, "sidecar_injection_skip_total": 0, "sidecar_injection_time_seconds": 1}, counters(t, reg))
	}
}

func TestWhatIsNotInjectedPasses(t *testing.T) {
	for name, body := range map[string]string{
		"label":     reviewOf("v1", strings.Replace(webPod, `"namespace"`, `"labels":{"sidecar.istio.io/inject":"false"},"namespace"`, 1)),
		"host":      reviewOf("v1", strings.Replace(webPod, `"spec":{`, `"spec":{"hostNetwork":true,`, 1)),
		"update":    strings.Replace(reviewOf("v1", webPod), "CREATE", "UPDATE", 1),
		"delete":    strings.Replace(reviewOf("v1", "null"), "CREATE", "DELETE", 1),
		"other":     strings.Replace(reviewOf("v1", `{"kind":"Service"}`), `"kind":"Pod"`, `"kind":"Service"`, 1),
		"ephemeral": strings.Replace(reviewOf("v1", webPod), `"operation"`, `"subResource":"ephemeralcontainers","operation"`, 1),
	} {
		t.Run(name, func(t *testing.T) {
			h, reg := handlerWith(t, nil)
			out := answerOf(t, post(h, "/inject", "application/json", body))
			require.True(t, out.Response.Allowed)
			require.Nil(t, out.Response.Patch)
			require.Nil(t, out.Response.PatchType)
			require.Equal(t, 1, counters(t, reg)["sidecar_injection_skip_total"])
		})
	}
}

func TestPodsThatCannotBeMadeAreRefusedByName(t *testing.T) {
	h, reg := handlerWith(t, nil)
	out := answerOf(t, post(h, "/inject", "application/json",
		reviewOf("v1", strings.Replace(webPod, `"namespace"`, `"annotations":{"sidecar.istio.io/proxyCPU":"much"},"namespace"`, 1))))
	require.False(t, out.Response.Allowed)
	require.Equal(t, `inject pod shop/web-*: annotation sidecar.istio.io/proxyCPU="much": want a quantity such as 100m or 128Mi`, out.Response.Result.Message)
	require.Equal(t, 1, counters(t, reg)["sidecar_injection_failure_total"])
}

func TestRequestsThatAreNone(t *testing.T) {
	for name, tc := range map[string]struct {
		contentType, body string
		status            int
		says              string
	}{
		"content type": {"text/plain", reviewOf("v1", webPod), http.StatusUnsupportedMediaType, "application/json"},
		"none":         {"", reviewOf("v1", webPod), http.StatusUnsupportedMediaType, "application/json"},
		"empty":        {"application/json", "", http.StatusBadRequest, "empty"},
		"not JSON":     {"application/json", "{", http.StatusBadRequest, "read admission review"},
		"other kind":   {"application/json", `{"kind":"Pod","apiVersion":"v1"}`, http.StatusBadRequest, `want AdmissionReview`},
		"no request":   {"application/json", `{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1"}`, http.StatusBadRequest, "no request"},
		"no pod":       {"application/json", reviewOf("v1", `"x"`), http.StatusBadRequest, "read pod"},
		"too large":    {"application/json", reviewOf("v1", `"`+strings.Repeat("x", 2000)+`"`), http.StatusRequestEntityTooLarge, "1000 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			h, reg := handlerWith(t, func(c *Config) { c.MaxBody = 1000 })
			w := post(h, "/inject", tc.contentType, tc.body)
			require.Equal(t, tc.status, w.Code)
			require.Contains(t, w.Body.String(), tc.says)
			require.Equal(t, 1, counters(t, reg)["sidecar_injection_failure_total"])
		})
	}
	h, _ := handlerWith(t, nil)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/inject", nil))
	require.Equal(t, http.StatusMethodNotAllowed, w.Code)
}

// Before there is a configuration the failure policy decides, not we.
func TestWithoutConfiguration(t *testing.T) {
	h, _ := handlerWith(t, func(c *Config) { c.Current = func() *inject.Config { return nil } })
	w := post(h, "/inject", "application/json", reviewOf("v1", webPod))
	require.Equal(t, http.StatusServiceUnavailable, w.Code)
	require.Equal(t, "1", w.Header().Get("Retry-After"))
}

func TestFactsAndProxyConfigsCount(t *testing.T) {
	var asked string
	h, _ := handlerWith(t, func(c *Config) {
		c.ProxyConfigs = func() []inject.ProxyConfigResource {
			return []inject.ProxyConfigResource{{Namespace: "shop", Spec: &networkingv1beta1.ProxyConfig{EnvironmentVariables: map[string]string{"MINE": "yes"}}}}
		}
		c.Facts = func(_ context.Context, cluster, namespace string) Facts {
			asked = cluster + "/" + namespace
			return Facts{Network: "net7", NativeSidecars: true, Namespace: &inject.Namespace{Annotations: map[string]string{"openshift.io/sa.scc.uid-range": "5000/10"}}}
		}
	})
	out := answerOf(t, post(h, "/inject", "application/json", reviewOf("v1", webPod)))
	require.Equal(t, "home/shop", asked)
	patch := string(out.Response.Patch)
	for _, want := range []string{`"value":"net7"`, `{"name":"MINE","value":"yes"}`, `"restartPolicy":"Always"`, `"runAsUser":5009`, `{"name":"ISTIO_META_CLUSTER_ID","value":"home"}`} {
		require.Contains(t, patch, want)
	}
}

// Facts that do not come in time end the request, and a full house refuses.
func TestDeadlinesAndConcurrency(t *testing.T) {
	current := config(t)
	synctest.Test(t, func(t *testing.T) {
		h, _ := handlerWith(t, func(c *Config) {
			c.Current = func() *inject.Config { return current }
			c.Concurrent = 1
			c.Facts = func(ctx context.Context, _, _ string) Facts { <-ctx.Done(); return Facts{} }
		})
		first, second := make(chan int, 1), make(chan int, 1)
		begin := time.Now()
		go func() { first <- post(h, "/inject?timeout=3s", "application/json", reviewOf("v1", webPod)).Code }()
		synctest.Wait()
		go func() { second <- post(h, "/inject?timeout=2s", "application/json", reviewOf("v1", webPod)).Code }()
		require.Equal(t, http.StatusServiceUnavailable, <-second)
		require.Equal(t, 2*time.Second, time.Since(begin))
		require.Equal(t, http.StatusServiceUnavailable, <-first)
		require.Equal(t, 3*time.Second, time.Since(begin))
	})
}

func TestPanicsAreAnswered(t *testing.T) {
	h, reg := handlerWith(t, func(c *Config) { c.Facts = func(context.Context, string, string) Facts { panic("no") } })
	w := post(h, "/inject", "application/json", reviewOf("v1", webPod))
	require.Equal(t, http.StatusInternalServerError, w.Code)
	require.Equal(t, 1, counters(t, reg)["sidecar_injection_failure_total"])
}

// No body makes the handler panic, and what it answers is always an
// AdmissionReview or an error in HTTP.
func FuzzReviews(f *testing.F) {
	f.Add([]byte(reviewOf("v1", webPod)))
	f.Add([]byte(reviewOf("v1beta1", `{}`)))
	f.Add([]byte(reviewOf("v1", strings.Replace(webPod, `"namespace"`, `"annotations":{"proxy.istio.io/overrides":"{\"containers\":[{}]}","sidecar.istio.io/status":"{}"},"namespace"`, 1))))
	f.Add([]byte(reviewOf("v1", strings.Replace(webPod, `"namespace"`, `"annotations":{"inject.istio.io/templates":"gateway","k8s.v1.cni.cncf.io/networks":"[]"},"namespace"`, 1))))
	// A small template, so that most of the time goes into what is fuzzed.
	small, err := inject.Parse("policy: enabled\ntemplates:\n  sidecar: |\n    spec:\n      initContainers: [{name: istio-init, args: ['-u', '1']}]\n"+
		"      containers: [{name: istio-proxy, image: p, env: [{name: N, value: '{{ len .Spec.Containers }}'}]}]\n      volumes: [{name: v, emptyDir: }]\n"+
		"  gateway: 'spec: {containers: [{name: istio-proxy}]}'\n", "sidecarInjectorWebhook: {rewriteAppHTTPProbe: true}", inject.Options{})
	require.NoError(f, err)
	h, _ := handlerWith(f, func(c *Config) {
		c.MaxBody = 64 << 10
		c.Current = func() *inject.Config { return small }
	})
	f.Fuzz(func(t *testing.T, body []byte) {
		w := post(h, "/inject/cluster/c1", "application/json", string(body))
		switch w.Code {
		case http.StatusOK:
			var out admissionv1.AdmissionReview
			require.NoError(t, json.Unmarshal(w.Body.Bytes(), &out))
			require.NotNil(t, out.Response)
			require.True(t, out.Response.Allowed || out.Response.Result.Message != "")
			if out.Response.Patch != nil {
				var ops []map[string]any
				require.NoError(t, json.Unmarshal(out.Response.Patch, &ops))
			}
		case http.StatusBadRequest, http.StatusRequestEntityTooLarge:
		default:
			t.Fatalf("status %d: %s", w.Code, w.Body)
		}
	})
}
