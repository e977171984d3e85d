package authn

import (
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/isthmus-mesh/isthmus/ca/internal/apifake"
	"github.com/isthmus-mesh/isthmus/mesh"
)

func gatewayCaller() Caller {
	return Caller{Identity: mesh.Identity{TrustDomain: "td", Namespace: "gw", ServiceAccount: "ingress"}, Cluster: "c2", Source: SourceToken, Expiry: start}
}

func newAccess(t testing.TB, change func(*SecretAccessConfig)) (*SecretAccess, *apifake.Server, *clock) {
	t.Helper()
	api, c := apifake.New(t), newClock()
	client := api.Client(t)
	cfg := SecretAccessConfig{
		Clients: func(id mesh.ClusterID) (kubernetes.Interface, bool) { return client, id == "c2" },
		Clock:   c.Now, Retry: time.Millisecond,
	}
	if change != nil {
		change(&cfg)
	}
	a, err := NewSecretAccess(cfg)
	require.NoError(t, err)
	return a, api, c
}

func asked(api *apifake.Server) int { return api.Calls(http.MethodPost, "subjectaccessreviews") }

func TestSecretAccessAsksAsTheAccount(t *testing.T) {
	a, api, c := newAccess(t, nil)
	var spec authorizationv1.SubjectAccessReviewSpec
	api.OnAccess(func(r *authorizationv1.SubjectAccessReview) { spec = r.Spec; r.Status.Allowed = true })
	for range 3 {
		ok, err := a.MayListSecrets(t.Context(), gatewayCaller(), "gw")
		require.NoError(t, err)
		require.True(t, ok)
	}
	require.Equal(t, 1, asked(api))
	require.Equal(t, authorizationv1.SubjectAccessReviewSpec{
		User:               "system:serviceaccount:gw:ingress",
		Groups:             []string{"system:serviceaccounts", "system:serviceaccounts:gw", "system:authenticated"},
		ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: "gw", Verb: "list", Version: "v1", Resource: "secrets"},
	}, spec)
	c.Add(time.Minute)
	_, err := a.MayListSecrets(t.Context(), gatewayCaller(), "gw")
	require.NoError(t, err)
	require.Equal(t, 2, asked(api))
}

// Every input of the answer is part of the key: no answer serves another
// question.
func TestSecretAccessCacheKey(t *testing.T) {
	a, api, _ := newAccess(t, nil)
	api.OnAccess(func(r *authorizationv1.SubjectAccessReview) {
		r.Status.Allowed = r.Spec.User == "system:serviceaccount:gw:ingress" && r.Spec.ResourceAttributes.Namespace == "gw"
	})
	ask := func(change func(*Caller), ns string) bool {
		c := gatewayCaller()
		change(&c)
		ok, err := a.MayListSecrets(t.Context(), c, ns)
		require.NoError(t, err)
		return ok
	}
	same := func(*Caller) {}
	require.True(t, ask(same, "gw"))
	require.False(t, ask(same, "other"))
	require.False(t, ask(func(c *Caller) { c.Identity.ServiceAccount = "x" }, "gw"))
	require.False(t, ask(func(c *Caller) { c.Identity.Namespace = "x" }, "gw"))
	require.False(t, ask(func(c *Caller) { c.Cluster = "" }, "gw"), "an unproven cluster")
	require.False(t, ask(same, ""))
	require.True(t, ask(same, "gw"))
	other := gatewayCaller()
	other.Cluster = "c9"
	_, err := a.MayListSecrets(t.Context(), other, "gw")
	require.ErrorIs(t, err, ErrUnavailable)
}

func TestSecretAccessDenialIsShort(t *testing.T) {
	a, api, c := newAccess(t, nil)
	ask := func() bool {
		ok, err := a.MayListSecrets(t.Context(), gatewayCaller(), "gw")
		require.NoError(t, err)
		return ok
	}
	require.False(t, ask())
	require.False(t, ask())
	require.Equal(t, 1, asked(api))
	api.OnAccess(func(r *authorizationv1.SubjectAccessReview) { r.Status.Allowed = true })
	c.Add(5 * time.Second)
	require.True(t, ask(), "a role granted now works soon")
	api.OnAccess(func(r *authorizationv1.SubjectAccessReview) { r.Status.Allowed, r.Status.Denied = true, true })
	c.Add(time.Minute)
	require.False(t, ask())
}

// Row 35: errors are tried again and never become a denial.
func TestRow35SubjectAccessReviewErrors(t *testing.T) {
	t.Run("a few", func(t *testing.T) {
		a, api, _ := newAccess(t, nil)
		api.OnAccess(func(r *authorizationv1.SubjectAccessReview) { r.Status.Allowed = true })
		var mu sync.Mutex
		left := 3
		api.Before(func(w http.ResponseWriter, _ *http.Request) bool {
			mu.Lock()
			defer mu.Unlock()
			if left--; left < 0 {
				return false
			}
			apifake.Fail(w, 500, metav1.StatusReasonInternalError, "x")
			return true
		})
		ok, err := a.MayListSecrets(t.Context(), gatewayCaller(), "gw")
		require.NoError(t, err)
		require.True(t, ok)
		require.Equal(t, 4, asked(api))
	})
	t.Run("for ever", func(t *testing.T) {
		a, api, _ := newAccess(t, func(c *SecretAccessConfig) { c.Timeout = 50 * time.Millisecond })
		api.OnAccess(func(r *authorizationv1.SubjectAccessReview) { r.Status.Allowed = true })
		api.Hang(func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "subjectaccessreviews") })
		_, err := a.MayListSecrets(t.Context(), gatewayCaller(), "gw")
		require.ErrorIs(t, err, ErrUnavailable)
		require.Empty(t, a.answers)
		api.Before(nil)
		a.cfg.Timeout = time.Minute
		ok, err := a.MayListSecrets(t.Context(), gatewayCaller(), "gw")
		require.NoError(t, err)
		require.True(t, ok)
	})
	t.Run("an authoriser stumbled", func(t *testing.T) {
		a, api, _ := newAccess(t, nil)
		api.OnAccess(func(r *authorizationv1.SubjectAccessReview) { r.Status.EvaluationError = "role not found" })
		for range 2 {
			ok, err := a.MayListSecrets(t.Context(), gatewayCaller(), "gw")
			require.NoError(t, err)
			require.False(t, ok)
		}
		require.Equal(t, 2, asked(api), "not kept")
	})
}

func TestSecretAccessIsBounded(t *testing.T) {
	a, _, _ := newAccess(t, func(c *SecretAccessConfig) { c.Size = 4 })
	for _, ns := range strings.Split("a b c d e f g h i j", " ") {
		_, err := a.MayListSecrets(t.Context(), gatewayCaller(), ns)
		require.NoError(t, err)
		require.LessOrEqual(t, len(a.answers), 4)
	}
}
