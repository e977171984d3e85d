package webhooks

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/isthmus-mesh/isthmus/ca/internal/apifake"
)

// Of several webhooks that refuse an object the API server names the first. One
// that is called at the same place with the same bundle speaks for the other; any
// other does not.
func TestWhoRefused(t *testing.T) {
	api := apifake.New(t)
	answer := ""
	api.Before(func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.URL.Query().Get("dryRun") != "All":
			apifake.Fail(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, "a trial must not last")
		case answer == "":
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte(`{}`))
		default:
			apifake.Fail(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, answer)
		}
		return true
	})
	p, err := New(Config{Client: api.Client(t), Bundle: func() []byte { return nil }, SystemNamespace: "istio-system", Replica: "a"})
	require.NoError(t, err)
	hook := func(name, url string) admissionv1.ValidatingWebhook {
		return admissionv1.ValidatingWebhook{Name: name, ClientConfig: admissionv1.WebhookClientConfig{URL: &url, CABundle: []byte("roots")}}
	}
	store := cache.NewStore(cache.MetaNamespaceKeyFunc)
	for name, w := range map[string]admissionv1.ValidatingWebhook{"one": hook("validation.istio.io", "https://a/validate"), "two": hook("far.validation.istio.io", "https://b/validate")} {
		require.NoError(t, store.Add(&admissionv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name}, Webhooks: []admissionv1.ValidatingWebhook{w}}))
	}
	term := &term{p: p, stores: map[string]cache.Store{kindValidating: store}}
	rev := hook("rev.validation.istio.io", "https://a/validate")
	for _, tc := range []struct{ answer, wrong string }{
		{"", "was admitted"},
		{`admission webhook "rev.validation.istio.io" denied the request: no servers`, ""},
		{`admission webhook "validation.istio.io" denied the request: no servers`, ""},
		{`admission webhook "far.validation.istio.io" denied the request: no servers`, "it was webhook far.validation.istio.io that refused"},
		{`admission webhook "policy.example.com" denied the request: no`, "it was webhook policy.example.com that refused"},
		{`failed calling webhook "validation.istio.io": no`, "try validation"},
	} {
		answer = tc.answer
		err := term.works(t.Context(), &rev)
		if tc.wrong == "" {
			require.NoError(t, err)
		} else {
			require.ErrorContains(t, err, tc.wrong)
		}
	}
}
