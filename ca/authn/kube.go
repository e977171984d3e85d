package authn

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// DefaultAudience is the audience of the tokens that Istio's injector mounts.
const DefaultAudience = "istio-ca"

// Extra fields of a token that is bound to a pod.
const (
	extraPodName  = "authentication.kubernetes.io/pod-name"
	extraPodUID   = "authentication.kubernetes.io/pod-uid"
	extraNodeName = "authentication.kubernetes.io/node-name"
)

// Clients looks up the client of a cluster that is part of the mesh now. Two
// lookups return the same client as long as the cluster's credentials do not
// change, so that what was cached for one client is not used with another.
type Clients func(mesh.ClusterID) (kubernetes.Interface, bool)

// KubeConfig configures [NewKube].
type KubeConfig struct {
	// Primary is the cluster that answers when a request names none.
	Primary mesh.ClusterID
	// Aliases are other names of clusters (flag --clusterAliases).
	Aliases map[mesh.ClusterID]mesh.ClusterID
	// Clients finds API servers. Required.
	Clients Clients
	// Known lists the clusters for the log line about an unknown one; may be nil.
	Known func() []mesh.ClusterID
	// TrustDomain is that of the identities of a cluster; false means that it is
	// not known (yet), and then nobody of that cluster is let in. Required.
	TrustDomain func(mesh.ClusterID) (string, bool)
	// Audiences of which a token must have one. Default istio-ca.
	Audiences []string
	// Timeout bounds a whole authentication, waiting included. Default 5 s.
	Timeout time.Duration
	// CacheTTL is how long a reviewed token is believed. Default 30 s; negative
	// switches the cache off. A token is never believed after its expiry, nor
	// after its cluster left or changed its credentials.
	CacheTTL time.Duration
	// CacheSize is how many tokens are remembered. Default 20,000 (about 10 MB).
	CacheSize int
	// InFlight bounds concurrent reviews per cluster. Default 64.
	InFlight int

	Logger     *zap.Logger
	Clock      func() time.Time
	Registerer prometheus.Registerer
}

// Kube authenticates service account tokens with a TokenReview in the API
// server of the cluster that the request names. It is safe for concurrent use.
type Kube struct {
	cfg     KubeConfig
	log     *zap.Logger
	now     func() time.Time
	cache   *tokenCache
	flights singleflight.Group
	slots   slots
	// unknownLog bounds log lines that strangers can cause at will.
	unknownLog *rate.Limiter
	reviews    *prometheus.CounterVec
}

// NewKube returns an authenticator for Kubernetes tokens.
func NewKube(cfg KubeConfig) (*Kube, error) {
	if cfg.Clients == nil || cfg.TrustDomain == nil {
		return nil, errors.New("new token authenticator: Clients and TrustDomain are required")
	}
	if len(cfg.Audiences) == 0 {
		cfg.Audiences = []string{DefaultAudience}
	}
	cfg.Timeout = orDefault(cfg.Timeout, 5*time.Second)
	cfg.CacheTTL = orDefault(cfg.CacheTTL, 30*time.Second)
	cfg.CacheSize = orDefault(cfg.CacheSize, 20_000)
	cfg.InFlight = orDefault(cfg.InFlight, 64)
	k := &Kube{
		cfg:        cfg,
		log:        loggerOrNop(cfg.Logger),
		now:        clockOrSystem(cfg.Clock),
		cache:      newTokenCache(cfg.CacheSize),
		slots:      slots{size: cfg.InFlight},
		unknownLog: rate.NewLimiter(1, 5),
		reviews: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "isthmus_token_reviews_total",
			Help: "Token reviews by result: cached, ok, refused, error.",
		}, []string{"result"}),
	}
	if cfg.Registerer != nil {
		if err := cfg.Registerer.Register(k.reviews); err != nil {
			return nil, fmt.Errorf("register token review metrics: %w", err)
		}
	}
	return k, nil
}

// Authenticate implements [Authenticator].
func (k *Kube) Authenticate(ctx context.Context, r Request) (Caller, error) {
	if r.Token == "" {
		return Caller{}, fmt.Errorf("authenticate token: %w", ErrNoCredential)
	}
	claims, err := peekToken(r.Token)
	if err != nil {
		return Caller{}, fmt.Errorf("read token: %w: %w", err, ErrUnauthenticated)
	}
	if why := claims.refuseEarly(k.now(), k.cfg.Audiences); why != "" {
		return Caller{}, fmt.Errorf("read token: %s: %w", why, ErrUnauthenticated)
	}
	cluster := k.resolve(r.Cluster)
	client, ok := k.cfg.Clients(cluster)
	if !ok {
		k.logUnknown(r)
		return Caller{}, fmt.Errorf("clusterid %q is not part of the mesh: %w", clip(string(r.Cluster)), ErrUnauthenticated)
	}
	trustDomain, ok := k.cfg.TrustDomain(cluster)
	if !ok || trustDomain == "" {
		return Caller{}, fmt.Errorf("trust domain of cluster %s is not known yet: %w", cluster, ErrUnavailable)
	}
	who, err := k.review(ctx, cluster, client, r.Token)
	if err != nil {
		return Caller{}, err
	}
	return Caller{
		Identity: mesh.Identity{TrustDomain: trustDomain, Namespace: who.namespace, ServiceAccount: who.account},
		Cluster:  cluster,
		Expiry:   claims.expiry(),
		Source:   SourceToken,
		PodName:  who.podName,
		PodUID:   who.podUID,
		Node:     who.node,
	}, nil
}

// resolve gives the cluster that a request means: the primary when it names
// none, the target of an alias, else what it says. It never guesses: a name
// that nobody knows is looked up as it is and not found.
func (k *Kube) resolve(id mesh.ClusterID) mesh.ClusterID {
	if id == "" {
		return k.cfg.Primary
	}
	if to, ok := k.cfg.Aliases[id]; ok {
		return to
	}
	return id
}

func (k *Kube) logUnknown(r Request) {
	if !k.unknownLog.Allow() {
		return
	}
	fields := []zap.Field{zap.String("clusterid", clip(string(r.Cluster))), zap.Stringer("peer", r.Peer)}
	if k.cfg.Known != nil {
		fields = append(fields, zap.Any("known", k.cfg.Known()))
	}
	k.log.Warn("token of an unknown cluster refused: add a remote secret for the cluster or correct ISTIO_META_CLUSTER_ID of the workload", fields...)
}

// reviewed is what an API server said about a valid token.
type reviewed struct {
	namespace, account    string
	podName, podUID, node string
}

// review asks the cache, then the API server. Callers with the same token wait
// for one review; it goes on when the first of them gives up, since the others
// still want it, but never longer than the timeout.
func (k *Kube) review(ctx context.Context, cluster mesh.ClusterID, client kubernetes.Interface, token string) (reviewed, error) {
	sum := sha256.Sum256([]byte(token))
	key := tokenKey{cluster: cluster, sum: sum}
	if who, ok := k.cache.get(key, client, k.now()); ok {
		k.reviews.WithLabelValues("cached").Inc()
		return who, nil
	}
	flight := fmt.Sprintf("%p/%s/%x", client, cluster, sum)
	done := k.flights.DoChan(flight, func() (any, error) {
		rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), k.cfg.Timeout)
		defer cancel()
		who, err := k.ask(rctx, cluster, client, token)
		if err == nil && k.cfg.CacheTTL > 0 {
			k.cache.put(key, client, who, k.believeUntil(token))
		}
		return who, err
	})
	select {
	case <-ctx.Done():
		return reviewed{}, fmt.Errorf("review token in cluster %s: %w: %w", cluster, context.Cause(ctx), ErrUnavailable)
	case res := <-done:
		if res.Err != nil {
			return reviewed{}, res.Err
		}
		return res.Val.(reviewed), nil
	}
}

// believeUntil is when a cached answer ends: after the TTL, at the token's own
// expiry at the latest.
func (k *Kube) believeUntil(token string) time.Time {
	until := k.now().Add(k.cfg.CacheTTL)
	if claims, err := peekToken(token); err == nil && claims.expiry().Before(until) {
		until = claims.expiry()
	}
	return until
}

// ask makes one TokenReview call.
func (k *Kube) ask(ctx context.Context, cluster mesh.ClusterID, client kubernetes.Interface, token string) (reviewed, error) {
	release, err := k.slots.acquire(ctx, cluster)
	if err != nil {
		k.reviews.WithLabelValues("error").Inc()
		return reviewed{}, fmt.Errorf("review token in cluster %s: too many reviews wait for its API server: %w: %w", cluster, err, ErrUnavailable)
	}
	defer release()
	answer, err := client.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: k.cfg.Audiences},
	}, metav1.CreateOptions{})
	if err != nil {
		k.reviews.WithLabelValues("error").Inc()
		k.log.Warn("token review failed: check that the API server answers and that our account may create tokenreviews there",
			zap.String("cluster", string(cluster)), zap.Error(err))
		return reviewed{}, fmt.Errorf("review token in cluster %s: %w: %w", cluster, err, ErrUnavailable)
	}
	who, err := readReview(answer, k.cfg.Audiences)
	if err != nil {
		k.reviews.WithLabelValues("refused").Inc()
		return reviewed{}, fmt.Errorf("review token in cluster %s: %w: %w", cluster, err, ErrUnauthenticated)
	}
	k.reviews.WithLabelValues("ok").Inc()
	return who, nil
}

// readReview takes the identity from an answer and refuses what is not whole.
func readReview(answer *authenticationv1.TokenReview, audiences []string) (reviewed, error) {
	st := answer.Status
	if !st.Authenticated {
		return reviewed{}, fmt.Errorf("not authenticated: %s", clip(st.Error))
	}
	// An API server that does not know audiences accepts any token and answers
	// without them: only an answer that names one of ours is about ours.
	if !intersects(st.Audiences, audiences) {
		return reviewed{}, fmt.Errorf("accepted for audiences %q, not for one of %q", clipAll(st.Audiences), audiences)
	}
	parts := strings.Split(st.User.Username, ":")
	if len(parts) != 4 || parts[0] != "system" || parts[1] != "serviceaccount" {
		return reviewed{}, fmt.Errorf("user %q is not a service account", clip(st.User.Username))
	}
	if !intersects(st.User.Groups, []string{"system:serviceaccounts"}) {
		return reviewed{}, fmt.Errorf("user %q is not in the group of service accounts", clip(st.User.Username))
	}
	who := reviewed{
		namespace: parts[2],
		account:   parts[3],
		podName:   one(st.User.Extra[extraPodName]),
		podUID:    one(st.User.Extra[extraPodUID]),
		node:      one(st.User.Extra[extraNodeName]),
	}
	for _, part := range parts[2:] {
		if err := checkIdentityPart(part); err != nil {
			return reviewed{}, fmt.Errorf("user %q: %w", clip(st.User.Username), err)
		}
	}
	return who, nil
}

func one(v authenticationv1.ExtraValue) string {
	if len(v) != 1 {
		return ""
	}
	return v[0]
}
