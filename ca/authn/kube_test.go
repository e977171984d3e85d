package authn

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/isthmus-mesh/isthmus/ca/internal/apifake"
	"github.com/isthmus-mesh/isthmus/mesh"
)

var start = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: start} }

func (c *clock) Now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.now }

func (c *clock) Add(d time.Duration) { c.mu.Lock(); defer c.mu.Unlock(); c.now = c.now.Add(d) }

// rawToken is a token with a payload that nobody signed.
func rawToken(payload string) string {
	b64 := base64.RawURLEncoding.EncodeToString
	return b64([]byte(`{"alg":"RS256"}`)) + "." + b64([]byte(payload)) + "." + b64([]byte("signature"))
}

func tokenFor(t testing.TB, change func(map[string]any)) string {
	t.Helper()
	claims := map[string]any{
		"aud": []string{"istio-ca"}, "iss": "https://kubernetes.default.svc",
		"exp": start.Add(12 * time.Hour).Unix(), "iat": start.Unix(), "sub": "system:serviceaccount:shop:web",
	}
	if change != nil {
		change(claims)
	}
	b, err := json.Marshal(claims)
	require.NoError(t, err)
	return rawToken(string(b))
}

// yes answers a review as an API server does for a pod-bound token.
func yes(ns, sa string) func(*authenticationv1.TokenReview) {
	return func(tr *authenticationv1.TokenReview) {
		tr.Status = authenticationv1.TokenReviewStatus{
			Authenticated: true, Audiences: tr.Spec.Audiences,
			User: authenticationv1.UserInfo{
				Username: "system:serviceaccount:" + ns + ":" + sa, UID: "sa-uid",
				Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + ns, "system:authenticated"},
				Extra: map[string]authenticationv1.ExtraValue{
					extraPodName: {"web-0"}, extraPodUID: {"uid-1"}, extraNodeName: {"node1"},
				},
			},
		}
	}
}

// kubeWorld is a primary c1 and a remote c2.
type kubeWorld struct {
	clock   *clock
	c1, c2  *apifake.Server
	mu      sync.Mutex
	clients map[mesh.ClusterID]kubernetes.Interface
	domains map[mesh.ClusterID]string
	kube    *Kube
	logs    *observer.ObservedLogs
}

func newKubeWorld(t testing.TB, change func(*KubeConfig)) *kubeWorld {
	t.Helper()
	core, logs := observer.New(zap.DebugLevel)
	w := &kubeWorld{clock: newClock(), c1: apifake.New(t), c2: apifake.New(t), logs: logs}
	w.c1.OnReview(yes("shop", "web"))
	w.c2.OnReview(yes("shop", "web"))
	w.clients = map[mesh.ClusterID]kubernetes.Interface{"c1": w.c1.Client(t), "c2": w.c2.Client(t)}
	w.domains = map[mesh.ClusterID]string{"c1": "cluster.local", "c2": "west.example"}
	cfg := KubeConfig{
		Primary: "c1", Aliases: map[mesh.ClusterID]mesh.ClusterID{"Kubernetes": "c1"},
		Clients: func(id mesh.ClusterID) (kubernetes.Interface, bool) {
			w.mu.Lock()
			defer w.mu.Unlock()
			c, ok := w.clients[id]
			return c, ok
		},
		Known:       func() []mesh.ClusterID { return []mesh.ClusterID{"c1", "c2"} },
		TrustDomain: func(id mesh.ClusterID) (string, bool) { td, ok := w.domains[id]; return td, ok },
		Clock:       w.clock.Now, Logger: zap.New(core),
	}
	if change != nil {
		change(&cfg)
	}
	var err error
	w.kube, err = NewKube(cfg)
	require.NoError(t, err)
	return w
}

func (w *kubeWorld) reviews() int {
	return w.c1.Calls(http.MethodPost, "tokenreviews") + w.c2.Calls(http.MethodPost, "tokenreviews")
}

func TestKubeCallerIsBoundToItsCluster(t *testing.T) {
	w := newKubeWorld(t, nil)
	w.c1.OnReview(func(tr *authenticationv1.TokenReview) {
		require.Equal(t, []string{"istio-ca"}, tr.Spec.Audiences)
		yes("shop", "web")(tr)
	})
	token := tokenFor(t, nil)
	for asked, want := range map[mesh.ClusterID]struct {
		cluster mesh.ClusterID
		domain  string
	}{
		"": {"c1", "cluster.local"}, "c1": {"c1", "cluster.local"}, "Kubernetes": {"c1", "cluster.local"}, "c2": {"c2", "west.example"},
	} {
		got, err := w.kube.Authenticate(t.Context(), Request{Token: token, Cluster: asked})
		require.NoError(t, err)
		require.Equal(t, Caller{
			Identity: mesh.Identity{TrustDomain: want.domain, Namespace: "shop", ServiceAccount: "web"},
			Cluster:  want.cluster, Expiry: time.Unix(start.Add(12*time.Hour).Unix(), 0), Source: SourceToken,
			PodName: "web-0", PodUID: "uid-1", Node: "node1",
		}, got, asked)
	}
	require.Equal(t, 2, w.reviews(), "one per cluster, then cached")
}

// Rows 20, 21 and 23: refused, without any call where the token says enough.
func TestKubeRefusals(t *testing.T) {
	claim := func(name string, v any) string {
		return tokenFor(t, func(c map[string]any) {
			if c[name] = v; v == nil {
				delete(c, name)
			}
		})
	}
	good := tokenFor(t, nil)
	for name, tc := range map[string]struct {
		req     Request
		answer  func(*authenticationv1.TokenReview)
		reviews int
	}{
		"row 20: null":                {req: Request{Token: rawToken("null")}},
		"row 20: null, spaces":        {req: Request{Token: rawToken("  null ")}},
		"row 20: a list":              {req: Request{Token: rawToken("[]")}},
		"row 20: a string":            {req: Request{Token: rawToken(`"x"`)}},
		"row 20: empty":               {req: Request{Token: rawToken("")}},
		"not a JWT":                   {req: Request{Token: "opaque"}},
		"four parts":                  {req: Request{Token: good + ".x"}},
		"long":                        {req: Request{Token: good + strings.Repeat("x", maxToken)}},
		"row 21: wrong audience":      {req: Request{Token: claim("aud", "other")}},
		"row 21: no audience":         {req: Request{Token: claim("aud", nil)}},
		"row 21: odd audience":        {req: Request{Token: claim("aud", 7)}},
		"expired":                     {req: Request{Token: claim("exp", start.Add(-clockSkew-time.Second).Unix())}},
		"no expiry":                   {req: Request{Token: claim("exp", nil)}},
		"odd expiry":                  {req: Request{Token: claim("exp", "never")}},
		"huge expiry":                 {req: Request{Token: claim("exp", 1e300)}},
		"row 23: unknown cluster":     {req: Request{Token: good, Cluster: "c9"}},
		"row 23: alias of alias":      {req: Request{Token: good, Cluster: "kubernetes"}},
		"not authenticated":           {req: Request{Token: good}, reviews: 1, answer: func(tr *authenticationv1.TokenReview) { tr.Status.Error = "expired" }},
		"row 21: answer w/o audience": {req: Request{Token: good}, reviews: 1, answer: edit(func(s *authenticationv1.TokenReviewStatus) { s.Audiences = nil })},
		"row 21: answer for others":   {req: Request{Token: good}, reviews: 1, answer: edit(func(s *authenticationv1.TokenReviewStatus) { s.Audiences = []string{"api"} })},
		"a person":                    {req: Request{Token: good}, reviews: 1, answer: edit(func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "admin" })},
		"no group":                    {req: Request{Token: good}, reviews: 1, answer: edit(func(s *authenticationv1.TokenReviewStatus) { s.User.Groups = nil })},
		"no namespace":                {req: Request{Token: good}, reviews: 1, answer: edit(func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "system:serviceaccount::web" })},
		"no account":                  {req: Request{Token: good}, reviews: 1, answer: edit(func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "system:serviceaccount:shop:" })},
		"three parts":                 {req: Request{Token: good}, reviews: 1, answer: edit(func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "system:serviceaccount:shop" })},
		"five parts":                  {req: Request{Token: good}, reviews: 1, answer: edit(func(s *authenticationv1.TokenReviewStatus) { s.User.Username += ":x" })},
		"path in namespace":           {req: Request{Token: good}, reviews: 1, answer: edit(func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "system:serviceaccount:a/b:web" })},
	} {
		t.Run(name, func(t *testing.T) {
			w := newKubeWorld(t, nil)
			if tc.answer != nil {
				w.c1.OnReview(tc.answer)
			}
			for range 2 {
				_, err := w.kube.Authenticate(t.Context(), tc.req)
				require.ErrorIs(t, err, ErrUnauthenticated)
				require.NotErrorIs(t, err, ErrUnavailable)
				st := status.Convert(Status(err))
				require.Equal(t, codes.Unauthenticated, st.Code())
				for _, secret := range []string{"c1", "c2", "shop", "web"} {
					require.NotContains(t, st.Message(), secret)
				}
			}
			require.Equal(t, 2*tc.reviews, w.reviews(), "refusals are not cached")
			require.Zero(t, w.kube.cache.len())
		})
	}
}

func edit(f func(*authenticationv1.TokenReviewStatus)) func(*authenticationv1.TokenReview) {
	return func(tr *authenticationv1.TokenReview) { yes("shop", "web")(tr); f(&tr.Status) }
}

func TestKubeUnknownClusterIsLoggedWithWhatIsKnown(t *testing.T) {
	w := newKubeWorld(t, nil)
	for range 100 {
		_, _ = w.kube.Authenticate(t.Context(), Request{Token: tokenFor(t, nil), Cluster: "c9"})
	}
	lines := w.logs.FilterMessageSnippet("unknown cluster").All()
	require.NotEmpty(t, lines)
	require.Less(t, len(lines), 10, "strangers cannot flood the log")
	require.Equal(t, []mesh.ClusterID{"c1", "c2"}, lines[0].ContextMap()["known"])
}

func TestKubeTrustDomainNotKnown(t *testing.T) {
	w := newKubeWorld(t, nil)
	delete(w.domains, "c2")
	_, err := w.kube.Authenticate(t.Context(), Request{Token: tokenFor(t, nil), Cluster: "c2"})
	require.ErrorIs(t, err, ErrUnavailable)
	require.Zero(t, w.reviews())
}

// Row 22: a review that hangs ends at the deadline with Unavailable; an API
// server that fails or refuses us likewise; none of it is remembered.
func TestRow22ReviewHangsOrFails(t *testing.T) {
	isReview := func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "tokenreviews") }
	for name, before := range map[string]func(*apifake.Server){
		"hangs": func(s *apifake.Server) { s.Hang(isReview) },
		"500": func(s *apifake.Server) {
			s.Before(func(w http.ResponseWriter, _ *http.Request) bool {
				apifake.Fail(w, 500, metav1.StatusReasonInternalError, "etcd")
				return true
			})
		},
		"revoked kubeconfig": func(s *apifake.Server) {
			s.Before(func(w http.ResponseWriter, _ *http.Request) bool {
				apifake.Fail(w, 401, metav1.StatusReasonUnauthorized, "who are you")
				return true
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newKubeWorld(t, func(c *KubeConfig) { c.Timeout = 50 * time.Millisecond })
			before(w.c2)
			req := Request{Token: tokenFor(t, nil), Cluster: "c2"}
			_, err := w.kube.Authenticate(t.Context(), req)
			require.ErrorIs(t, err, ErrUnavailable)
			require.NotErrorIs(t, err, ErrUnauthenticated)
			require.Equal(t, codes.Unavailable, status.Code(Status(err)))
			require.NotContains(t, status.Convert(Status(err)).Message(), "c2")
			require.NotZero(t, w.logs.FilterMessageSnippet("token review failed").Len())
			w.kube.cfg.Timeout = time.Minute // this machine may be slow
			_, err = w.kube.Authenticate(t.Context(), Request{Token: req.Token, Cluster: "c1"})
			require.NoError(t, err, "other clusters are not affected")
			w.c2.Before(nil)
			_, err = w.kube.Authenticate(t.Context(), req)
			require.NoError(t, err, "errors are not remembered")
		})
	}
}

// A cluster that hangs takes its own slots, never those of others, and who
// waits for one may give up.
func TestKubeHangingClusterIsBounded(t *testing.T) {
	w := newKubeWorld(t, func(c *KubeConfig) { c.Timeout = time.Minute; c.InFlight = 2 })
	var inside, most atomic.Int32
	full, gate := make(chan struct{}), make(chan struct{})
	w.c2.Before(func(rw http.ResponseWriter, _ *http.Request) bool {
		n := inside.Add(1)
		defer inside.Add(-1)
		if n > most.Load() {
			most.Store(n)
			if n == 2 {
				close(full)
			}
		}
		<-gate
		apifake.Fail(rw, 500, metav1.StatusReasonInternalError, "x")
		return true
	})
	ask := func(ctx context.Context, cluster mesh.ClusterID, jti int) error {
		_, err := w.kube.Authenticate(ctx, Request{Cluster: cluster, Token: tokenFor(t, func(c map[string]any) { c["jti"] = jti })})
		return err
	}
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() { require.ErrorIs(t, ask(t.Context(), "c2", i), ErrUnavailable) })
	}
	<-full
	require.NoError(t, ask(t.Context(), "c1", 0))
	impatient, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, ask(impatient, "c2", 99), ErrUnavailable)
	close(gate)
	wg.Wait()
	require.EqualValues(t, 2, most.Load())
	require.Eventually(t, func() bool {
		w.kube.slots.mu.Lock()
		defer w.kube.slots.mu.Unlock()
		return len(w.kube.slots.by) == 0
	}, time.Minute, time.Millisecond, "nothing is left behind")
}

func TestKubeManyCallersOneReview(t *testing.T) {
	w := newKubeWorld(t, nil)
	gate := make(chan struct{})
	w.c1.OnReview(func(tr *authenticationv1.TokenReview) { <-gate; yes("shop", "web")(tr) })
	req := Request{Token: tokenFor(t, nil)}
	gaveUp, cancel := context.WithCancel(t.Context())
	first := make(chan error)
	go func() { _, err := w.kube.Authenticate(gaveUp, req); first <- err }()
	for w.reviews() == 0 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	require.ErrorIs(t, <-first, ErrUnavailable)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			_, err := w.kube.Authenticate(t.Context(), req)
			require.NoError(t, err, "the first caller gave up, the review went on")
		})
	}
	close(gate)
	wg.Wait()
	require.Equal(t, 1, w.reviews())
}

func TestKubeCache(t *testing.T) {
	t.Run("ends", func(t *testing.T) {
		w := newKubeWorld(t, nil)
		req := Request{Token: tokenFor(t, nil)}
		ask := func() int {
			_, err := w.kube.Authenticate(t.Context(), req)
			require.NoError(t, err)
			return w.reviews()
		}
		require.Equal(t, 1, ask())
		w.clock.Add(29 * time.Second)
		require.Equal(t, 1, ask())
		w.clock.Add(time.Second)
		require.Equal(t, 2, ask())
	})
	t.Run("never beyond the token", func(t *testing.T) {
		w := newKubeWorld(t, nil)
		req := Request{Token: tokenFor(t, func(c map[string]any) { c["exp"] = start.Add(10 * time.Second).Unix() })}
		_, err := w.kube.Authenticate(t.Context(), req)
		require.NoError(t, err)
		w.clock.Add(10 * time.Second)
		w.c1.OnReview(nil) // the API server refuses it now
		_, err = w.kube.Authenticate(t.Context(), req)
		require.ErrorIs(t, err, ErrUnauthenticated)
	})
	t.Run("a cluster that left or changed its credentials", func(t *testing.T) {
		w := newKubeWorld(t, nil)
		req := Request{Token: tokenFor(t, nil), Cluster: "c2"}
		_, err := w.kube.Authenticate(t.Context(), req)
		require.NoError(t, err)
		w.mu.Lock()
		delete(w.clients, "c2")
		w.mu.Unlock()
		_, err = w.kube.Authenticate(t.Context(), req)
		require.ErrorIs(t, err, ErrUnauthenticated, "at once")
		other := apifake.New(t)
		w.mu.Lock()
		w.clients["c2"] = other.Client(t)
		w.mu.Unlock()
		_, err = w.kube.Authenticate(t.Context(), req)
		require.ErrorIs(t, err, ErrUnauthenticated, "the new API server does not know the token")
		require.Equal(t, 1, other.Calls(http.MethodPost, "tokenreviews"))
	})
	t.Run("bounded", func(t *testing.T) {
		w := newKubeWorld(t, func(c *KubeConfig) { c.CacheSize = 3 })
		for i := range 10 {
			_, err := w.kube.Authenticate(t.Context(), Request{Token: tokenFor(t, func(c map[string]any) { c["jti"] = fmt.Sprint(i) })})
			require.NoError(t, err)
		}
		require.Equal(t, 3, w.kube.cache.len())
	})
	t.Run("off", func(t *testing.T) {
		w := newKubeWorld(t, func(c *KubeConfig) { c.CacheTTL = -1 })
		for range 2 {
			_, err := w.kube.Authenticate(t.Context(), Request{Token: tokenFor(t, nil)})
			require.NoError(t, err)
		}
		require.Equal(t, 2, w.reviews())
	})
}

// A flood of bad tokens costs no memory and at most a review each.
func TestKubeFloodOfBadTokens(t *testing.T) {
	w := newKubeWorld(t, nil)
	w.c1.OnReview(nil)
	for i := range 200 {
		_, err := w.kube.Authenticate(t.Context(), Request{Token: tokenFor(t, func(c map[string]any) { c["jti"] = i })})
		require.ErrorIs(t, err, ErrUnauthenticated)
	}
	require.Equal(t, 200, w.reviews())
	require.Zero(t, w.kube.cache.len())
	require.Empty(t, w.kube.slots.by)
}
