package multicluster

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"
	clienttesting "k8s.io/client-go/testing"
)

// jwt is a token with these claims; nobody verifies it.
func jwt(claims string) string {
	return "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".sig"
}

// accountJWT is a token of the reader account that begins now.
func accountJWT(lifetime time.Duration) string {
	now := time.Now()
	return jwt(fmt.Sprintf(`{"sub":"system:serviceaccount:istio-system:reader","iat":%d,"exp":%d}`, now.Unix(), now.Add(lifetime).Unix()))
}

// renewal is a renewer with one remote secret and a remote that issues tokens.
type renewal struct {
	*Renewer
	t       *testing.T
	secrets *fake.Clientset
	events  *fakeEvents
	metrics *prometheus.Registry
	leads   bool
	// mu guards what the test says and counts while the renewer runs.
	mu sync.Mutex
	// What the remote says, and whether it takes the new token; nil is yes.
	refuse, reject error
	asked          int
}

const life = time.Hour

func newRenewal(t *testing.T, annotated bool) *renewal {
	t.Helper()
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "remote", Labels: map[string]string{SecretLabel: "true"}},
		Data: map[string][]byte{"west": []byte(kubeconfigWith("https://10.1.2.3:6443", accountJWT(life)))}}
	if annotated {
		s.Annotations = map[string]string{ExpiryAnnotation: "whenever"}
	}
	r := &renewal{t: t, secrets: fake.NewClientset(s), events: &fakeEvents{}, metrics: prometheus.NewRegistry(), leads: true}
	var err error
	r.Renewer, err = NewRenewer(RenewerConfig{Secrets: r.secrets, Namespace: "istio-system", NewClient: r.client, Events: r.events, Metrics: r.metrics,
		Elect: func(ctx context.Context, lead func(context.Context)) error {
			if r.leads {
				lead(ctx)
			}
			<-ctx.Done()
			return nil
		}})
	require.NoError(t, err)
	return r
}

// client is a client of the remote.
func (r *renewal) client(cfg *rest.Config) (kubernetes.Interface, func(), error) {
	held, ok := readToken(cfg.BearerToken)
	require.True(r.t, ok)
	require.True(r.t, held.expires.After(time.Now()), "the remote is asked with a token that it still takes")
	c := fake.NewClientset()
	c.PrependReactor("create", "serviceaccounts", func(a clienttesting.Action) (bool, runtime.Object, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.asked++
		create := a.(clienttesting.CreateActionImpl)
		require.Equal(r.t, "token", a.GetSubresource())
		require.Equal(r.t, "reader", create.Name)
		seconds := *create.Object.(*authenticationv1.TokenRequest).Spec.ExpirationSeconds
		return true, &authenticationv1.TokenRequest{Status: authenticationv1.TokenRequestStatus{Token: accountJWT(time.Duration(seconds) * time.Second)}}, r.refuse
	})
	c.PrependReactor("get", "version", func(clienttesting.Action) (bool, runtime.Object, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		return true, nil, r.reject
	})
	return c, func() {}, nil
}

// held is the token in the secret.
func (r *renewal) held() accountToken {
	r.t.Helper()
	s, err := r.secrets.CoreV1().Secrets("istio-system").Get(context.Background(), "remote", metav1.GetOptions{})
	require.NoError(r.t, err)
	cfg, err := Sanitize(s.Data["west"], Options{})
	require.NoError(r.t, err)
	require.Equal(r.t, "https://10.1.2.3:6443", cfg.Host)
	t, ok := readToken(cfg.BearerToken)
	require.True(r.t, ok)
	return t
}

// during runs the renewer while a test looks on, in time that is not real.
func during(t *testing.T, annotated bool, f func(r *renewal), change ...func(*renewal)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newRenewal(t, annotated)
		for _, c := range change {
			c(r)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		f(r)
		stop()
		require.NoError(t, <-done)
	})
}

// gauge reads a metric of which there is one series.
func (r *renewal) gauge(name string) float64 {
	r.t.Helper()
	families, err := r.metrics.Gather()
	require.NoError(r.t, err)
	for _, f := range families {
		if f.GetName() == name {
			require.Len(r.t, f.GetMetric(), 1)
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	r.t.Fatal("no metric ", name)
	return 0
}

func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestTokensAreRenewedForEver(t *testing.T) {
	during(t, true, func(r *renewal) {
		pass(life/2 - time.Minute)
		require.Zero(t, r.asked, "half of the lifetime is not over")
		for range 48 { // two days
			pass(life / 2)
			require.Greater(t, time.Until(r.held().expires), life/4)
			require.Empty(t, r.Tokens()[0].Problem)
		}
		require.InDelta(t, 48, r.asked, 2)
		s, err := r.secrets.CoreV1().Secrets("istio-system").Get(t.Context(), "remote", metav1.GetOptions{})
		require.NoError(t, err)
		require.Equal(t, r.held().expires.UTC().Format(time.RFC3339), s.Annotations[ExpiryAnnotation])
		require.Empty(t, r.events.list)
	})
}

func TestTokenThatCannotBeRenewed(t *testing.T) {
	gr := schema.GroupResource{Resource: "serviceaccounts"}
	for name, break1 := range map[string]func(*renewal){
		"not allowed":  func(r *renewal) { r.refuse = apierrors.NewForbidden(gr, "reader", errors.New("no rule")) },
		"not answered": func(r *renewal) { r.refuse = errors.New("connection refused") },
		"bad token":    func(r *renewal) { r.reject = apierrors.NewUnauthorized("bad") },
	} {
		t.Run(name, func(t *testing.T) {
			during(t, true, func(r *renewal) {
				first := r.held()
				pass(life/2 + time.Minute)
				require.Equal(t, first, r.held(), "only a token that works replaces one that does")
				require.Contains(t, r.Tokens()[0].Problem, "could not be renewed: ")
				require.Len(t, r.events.list, 1)
				require.Equal(t, ReasonNotRenewed, r.events.list[0].reason)
				pass(life / 3)
				require.LessOrEqual(t, r.asked, 10, "tries are spaced")
				require.Len(t, r.events.list, 2, "once when it fails, once when the end comes near")
				require.Equal(t, ReasonTokenEnds, r.events.list[1].reason)
				require.InDelta(t, 1, r.gauge("isthmus_remote_token_at_risk"), 0)
				r.mu.Lock()
				r.refuse, r.reject = nil, nil
				r.mu.Unlock()
				pass(life / 10)
				require.Empty(t, r.Tokens()[0].Problem)
				require.NotEqual(t, first, r.held())
			}, break1)
		})
	}
}

func TestTokenThatEnded(t *testing.T) {
	during(t, false, func(r *renewal) {
		pass(life * 4 / 5)
		require.Zero(t, r.asked, "it is somebody else's to renew")
		require.Contains(t, r.Tokens()[0].Problem, "is not for this control plane to renew")
		require.False(t, r.Tokens()[0].Renewed)
		pass(life)
		require.Contains(t, r.Tokens()[0].Problem, "has ended")
	})
}

// A change by somebody else in between is not lost, and no failure.
func TestRenewalConflict(t *testing.T) {
	writes := 0
	during(t, true, func(r *renewal) {
		pass(life/2 + time.Minute)
		require.Equal(t, 2, writes, "refused, then taken")
		require.Empty(t, r.Tokens()[0].Problem)
		require.Greater(t, time.Until(r.held().expires), life*9/10)
		require.Empty(t, r.events.list)
	}, func(r *renewal) {
		r.secrets.PrependReactor("update", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
			writes++
			return writes == 1, nil, apierrors.NewConflict(schema.GroupResource{Resource: "secrets"}, "remote", errors.New("changed"))
		})
	})
}

// Replicas that do not lead tell how the tokens stand, and renew nothing.
func TestFollowersOnlyLook(t *testing.T) {
	during(t, true, func(r *renewal) {
		pass(life * 4 / 5)
		require.Zero(t, r.asked)
		require.Contains(t, r.Tokens()[0].Problem, "ends soon and has not been renewed")
		require.NoError(t, r.secrets.CoreV1().Secrets("istio-system").Delete(t.Context(), "remote", metav1.DeleteOptions{}))
		pass(time.Minute)
		require.Empty(t, r.Tokens())
	}, func(r *renewal) { r.leads = false })
}

func TestReadToken(t *testing.T) {
	good := `{"sub":"system:serviceaccount:a:b","iat":100,"exp":4100}`
	got, ok := readToken(jwt(good))
	require.True(t, ok)
	require.Equal(t, accountToken{"a", "b", time.Unix(100, 0), time.Unix(4100, 0)}, got)
	require.Equal(t, time.Unix(2100, 0), got.renewAt())
	require.Equal(t, time.Unix(3100, 0), got.lateAt())
	for _, bad := range []string{"", "a.b", "a.!.c", jwt("{"), jwt(`{"sub":"system:serviceaccount:a:b"}`), jwt(`{"sub":"user","iat":1,"exp":2}`),
		jwt(`{"sub":"system:serviceaccount:a","iat":1,"exp":2}`), jwt(`{"sub":"system:serviceaccount::b","iat":1,"exp":2}`),
		jwt(`{"sub":"system:serviceaccount:a:b","iat":5,"exp":5}`), jwt(`{"sub":"system:serviceaccount:a:b","iat":1,"exp":1e300}`),
		jwt(strings.Repeat(" ", maxToken) + good)} {
		_, ok := readToken(bad)
		require.False(t, ok, "%.80s", bad)
	}
}

func FuzzReadToken(f *testing.F) {
	f.Add(jwt(`{"sub":"system:serviceaccount:a:b","iat":100,"exp":4100}`))
	f.Add("a.b.c")
	f.Fuzz(func(t *testing.T, token string) {
		got, ok := readToken(token)
		if !ok {
			return
		}
		require.Positive(t, got.lifetime())
		require.False(t, got.renewAt().Before(got.issued) || got.lateAt().After(got.expires) || got.lateAt().Before(got.renewAt()))
		require.NotEmpty(t, got.namespace+got.name)
	})
}

func TestWithToken(t *testing.T) {
	out, err := withToken([]byte(kubeconfigWith("https://10.1.2.3:6443", "old")), "new")
	require.NoError(t, err)
	cfg, err := Sanitize(out, Options{})
	require.NoError(t, err)
	require.Equal(t, "new", cfg.BearerToken)
	for _, bad := range []string{"{", "apiVersion: v1\nkind: Config\ncurrent-context: nowhere"} {
		_, err := withToken([]byte(bad), "new")
		require.Error(t, err)
	}
	require.ErrorContains(t, func() error { _, err := NewRenewer(RenewerConfig{}); return err }(), "are required")
}
