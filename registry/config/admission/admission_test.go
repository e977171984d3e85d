package admission

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
)

func newHandler(t testing.TB) (*Handler, *prometheus.Registry) {
	r := prometheus.NewRegistry()
	h, err := New(Config{Cluster: "north", Metrics: r})
	require.NoError(t, err)
	return h, r
}

// request makes the body of a review.
func request(t testing.TB, op admissionv1.Operation, apiVersion, kind, object string, change ...func(*admissionv1.AdmissionRequest)) []byte {
	group, version, _ := strings.Cut(apiVersion, "/")
	r := &admissionv1.AdmissionRequest{UID: "u-1", Kind: metav1.GroupVersionKind{Group: group, Version: version, Kind: kind},
		Operation: op, Name: "x", Namespace: "edge", Object: runtime.RawExtension{Raw: []byte(object)}}
	for _, f := range change {
		f(r)
	}
	b, err := json.Marshal(admissionv1.AdmissionReview{TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"}, Request: r})
	require.NoError(t, err)
	return b
}

func post(h http.Handler, body []byte) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, "/validate", bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/json; charset=utf-8")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func answer(t testing.TB, w *httptest.ResponseRecorder) *admissionv1.AdmissionResponse {
	require.Equal(t, http.StatusOK, w.Code, w.Body)
	var review admissionv1.AdmissionReview
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &review))
	require.Equal(t, "AdmissionReview", review.Kind)
	require.Nil(t, review.Request)
	require.Equal(t, types.UID("u-1"), review.Response.UID)
	return review.Response
}

const (
	networking = "networking.istio.io/v1"
	good       = `{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"x","namespace":"edge"},"spec":{"hosts":["a.example"],"http":[{"route":[{"destination":{"host":"a"}}]}]}}`
	bad        = `{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"x","namespace":"edge"},"spec":{"hosts":["a.example"],"http":[{"timeout":"0s","route":[{"destination":{"host":"a"},"weight":-1}]}]}}`
)

func TestReviews(t *testing.T) {
	tests := []struct {
		name    string
		body    []byte
		allowed bool
		message string
	}{
		{"good", request(t, admissionv1.Create, networking, "VirtualService", good), true, ""},
		{"an older version", request(t, admissionv1.Update, "networking.istio.io/v1alpha3", "VirtualService", good), true, ""},
		{"no name yet", request(t, admissionv1.Create, networking, "VirtualService", strings.Replace(good, `"name":"x"`, `"generateName":"x-"`, 1)), true, ""},
		{"bad", request(t, admissionv1.Create, networking, "VirtualService", bad), false,
			"configuration is invalid: spec.http[0].timeout: 0s is too short; use at least 1ms; spec.http[0].route[0].weight: -1 is negative; use 0 or more"},
		{"unknown field", request(t, admissionv1.Update, networking, "VirtualService", strings.Replace(good, "route", "rout", 1)), false,
			"configuration is invalid: spec.http[0]: does nothing with a request; give route, redirect or directResponse; " +
				"spec.http[0].rout: is not a field of VirtualService; check the spelling and the level it is on"},
		{"not an object", request(t, admissionv1.Create, networking, "VirtualService", `"x"`), false,
			"error decoding configuration: review VirtualService in cluster north: json: cannot unmarshal string into Go value of type map[string]json.RawMessage"},
		{"deleted", request(t, admissionv1.Delete, networking, "VirtualService", `null`), true, ""},
		{"on its way out", request(t, admissionv1.Update, networking, "VirtualService", strings.Replace(bad, `"name"`, `"deletionTimestamp":"2026-11-01T12:00:00Z","name"`, 1)), true, ""},
		{"a status", request(t, admissionv1.Update, networking, "VirtualService", bad, func(r *admissionv1.AdmissionRequest) { r.SubResource = "status" }), true, ""},
		{"another kind", request(t, admissionv1.Create, "apps/v1", "Deployment", bad), true, ""},
		{"a kind of the future", request(t, admissionv1.Create, "networking.istio.io/v9", "VirtualService", bad), true, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h, _ := newHandler(t)
			a := answer(t, post(h, tt.body))
			require.Equal(t, tt.allowed, a.Allowed)
			if tt.allowed {
				require.Nil(t, a.Result)
				return
			}
			require.Equal(t, tt.message, a.Result.Message)
			require.Equal(t, metav1.StatusReasonInvalid, a.Result.Reason)
			require.EqualValues(t, http.StatusUnprocessableEntity, a.Result.Code)
		})
	}
}

// What nobody here reads is taken, and its author is told.
func TestKindsThatAreNotReadWarn(t *testing.T) {
	h, _ := newHandler(t)
	a := answer(t, post(h, request(t, admissionv1.Create, "extensions.istio.io/v1alpha1", "TrafficExtension", good)))
	require.True(t, a.Allowed)
	require.Equal(t, []string{"TrafficExtension of extensions.istio.io/v1alpha1 is not read by this control plane: the object has no effect"}, a.Warnings)
	require.Empty(t, answer(t, post(h, request(t, admissionv1.Create, "apps/v1", "Deployment", bad))).Warnings)
	require.Empty(t, answer(t, post(h, request(t, admissionv1.Delete, "extensions.istio.io/v1alpha1", "TrafficExtension", "null"))).Warnings)
}

func TestFieldsAndWarnings(t *testing.T) {
	h, _ := newHandler(t)
	a := answer(t, post(h, request(t, admissionv1.Create, networking, "VirtualService", bad)))
	require.Equal(t, []metav1.StatusCause{
		{Type: metav1.CauseTypeFieldValueInvalid, Field: "spec.http[0].timeout", Message: "0s is too short; use at least 1ms"},
		{Type: metav1.CauseTypeFieldValueInvalid, Field: "spec.http[0].route[0].weight", Message: "-1 is negative; use 0 or more"},
	}, a.Result.Details.Causes)

	gateways := `["mesh"` + strings.Repeat(`,"`+strings.Repeat("é_", 200)+`"`, 30) + `]`
	a = answer(t, post(h, request(t, admissionv1.Create, networking, "VirtualService", strings.Replace(good, `"hosts"`, `"gateways":`+gateways+`,"hosts"`, 1))))
	require.True(t, a.Allowed)
	require.Len(t, a.Warnings, maxWarnings)
	for _, w := range a.Warnings {
		require.LessOrEqual(t, len(w), maxWarning+len("..."))
	}
	require.Equal(t, []string{strings.Repeat("a", maxWarning-1) + "..."}, clip([]string{strings.Repeat("a", maxWarning-1) + "éé"}), "no half of a character")
}

func TestRequestsThatAreNoReviews(t *testing.T) {
	h, r := newHandler(t)
	call := func(change func(*http.Request), body string) int {
		q := httptest.NewRequest(http.MethodPost, "/validate", strings.NewReader(body))
		q.Header.Set("Content-Type", "application/json")
		change(q)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, q)
		return w.Code
	}
	nothing := func(*http.Request) {}
	require.Equal(t, 405, call(func(q *http.Request) { q.Method = http.MethodGet }, ""))
	require.Equal(t, 415, call(func(q *http.Request) { q.Header.Set("Content-Type", "text/yaml") }, "{}"))
	require.Equal(t, 400, call(nothing, ""))
	require.Equal(t, 400, call(nothing, "{}"))
	require.Equal(t, 400, call(nothing, `{"apiVersion":"admission.k8s.io/v2","kind":"AdmissionReview","request":{}}`))
	require.Equal(t, 400, call(nothing, `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}`))
	require.Equal(t, 413, call(nothing, strings.Repeat(" ", DefaultMaxBody+1)))
	require.Equal(t, map[string]float64{
		"galley_validation_http_error 405": 1, "galley_validation_http_error 415": 1, "galley_validation_http_error 400": 4, "galley_validation_http_error 413": 1,
	}, counters(t, r))
}

// counters reads all counters by name and values of labels.
func counters(t *testing.T, r *prometheus.Registry) map[string]float64 {
	families, err := r.Gather()
	require.NoError(t, err)
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			out[name] = m.GetCounter().GetValue()
		}
	}
	return out
}

func TestMetrics(t *testing.T) {
	h, r := newHandler(t)
	other, err := New(Config{Metrics: r})
	require.NoError(t, err)
	post(h, request(t, admissionv1.Create, networking, "VirtualService", good))
	post(other, request(t, admissionv1.Create, networking, "VirtualService", good))
	post(h, request(t, admissionv1.Create, networking, "VirtualService", bad))
	post(h, request(t, admissionv1.Create, "apps/v1", "Deployment", bad))
	require.Equal(t, map[string]float64{
		"galley_validation_failed networking.istio.io invalid_resource virtualservices v1": 1,
		"galley_validation_passed networking.istio.io virtualservices v1":                  2,
	}, counters(t, r))
	_, err = New(Config{MaxBody: -1})
	require.ErrorContains(t, err, "use a positive number")
}

// FuzzReview: every body gets an answer that an API server can read: an HTTP
// error, or a review of the same version with the same UID.
func FuzzReview(f *testing.F) {
	f.Add(request(f, admissionv1.Create, networking, "VirtualService", good))
	f.Add(request(f, admissionv1.Update, networking, "VirtualService", bad))
	f.Add(request(f, admissionv1.Delete, networking, "Gateway", "null"))
	f.Add(request(f, admissionv1.Create, "security.istio.io/v1", "AuthorizationPolicy", `{"metadata":{"annotations":{"istio.io/dry-run":"x"}}}`))
	f.Add([]byte(`{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview","request":{"uid":"a","operation":"CREATE","kind":{"group":"networking.istio.io","version":"v1","kind":"Sidecar"}}}`))
	h, _ := newHandler(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		w := post(h, body)
		if w.Code != http.StatusOK {
			if w.Code < 400 || w.Code > 499 {
				t.Fatalf("status %d: %s", w.Code, w.Body)
			}
			return
		}
		var in, out admissionv1.AdmissionReview
		if err := json.Unmarshal(body, &in); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil {
			t.Fatal(err)
		}
		if out.Response == nil || out.APIVersion != in.APIVersion || out.Response.Allowed != (out.Response.Result == nil) {
			t.Fatalf("answer %s", w.Body)
		}
	})
}
