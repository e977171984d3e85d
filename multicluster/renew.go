package multicluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// RenewalLease is the name of the Lease that decides who renews tokens.
const RenewalLease = "isthmus-remote-tokens"

// Times of renewal.
const (
	renewLook    = 10 * time.Second // how often the secrets are looked at
	renewTimeout = 15 * time.Second // of one renewal
	renewAtOnce  = 8                // renewals at the same time
)

// Reasons of Events about tokens.
const (
	ReasonNotRenewed = "TokenNotRenewed"
	ReasonTokenEnds  = "TokenEnds"
)

// RenewerConfig configures a [Renewer].
type RenewerConfig struct {
	// Secrets reads and writes the remote secrets of Namespace. Both are required.
	Secrets   kubernetes.Interface
	Namespace string
	// Options are what kubeconfigs may do beyond the usual.
	Options Options
	// Elect runs a function while this replica renews; required.
	Elect func(ctx context.Context, lead func(context.Context)) error
	// NewClient makes a client of a remote, and a function that closes its
	// connections; nil makes one with client-go.
	NewClient func(cfg *rest.Config) (kubernetes.Interface, func(), error)
	// Events, Log, Metrics and Clock may be nil.
	Events  EventRecorder
	Log     *zap.Logger
	Metrics prometheus.Registerer
	Clock   func() time.Time
}

// Token is the state of a token in a remote secret that ends.
type Token struct {
	Cluster mesh.ClusterID `json:"cluster"`
	// SecretName is "namespace/name" of the Secret.
	SecretName string `json:"secretName"`
	// Renewed: the control plane renews it. Others are somebody else's to renew.
	Renewed bool      `json:"renewed"`
	Expires time.Time `json:"expires"`
	// RenewAt is when it is to be renewed, zero if it is not.
	RenewAt time.Time `json:"renewAt,omitzero"`
	// Problem says what is wrong, "" if nothing is.
	Problem string `json:"problem,omitempty"`
}

// Renewer renews the tokens of remote secrets before they end, each through the
// API server that issued it and by the token itself, and writes the new
// kubeconfig into the secret. It renews what is annotated with [ExpiryAnnotation]:
// create-remote-secret and join have made it so. Of several replicas one renews;
// all of them tell how the tokens stand.
type Renewer struct {
	cfg     RenewerConfig
	log     *zap.Logger
	now     func() time.Time
	leading atomic.Bool
	tokens  atomic.Pointer[[]Token]
	counted *prometheus.CounterVec

	mu       sync.Mutex
	attempts map[place]attempted
}

// place is where a kubeconfig is.
type place struct{ secret, key string }

// attempted is how renewing went last.
type attempted struct {
	failures int
	next     time.Time // not before
	problem  string
	told     string // reason of the last Event
}

// NewRenewer returns a renewer. It does no I/O.
func NewRenewer(cfg RenewerConfig) (*Renewer, error) {
	if cfg.Secrets == nil || cfg.Namespace == "" || cfg.Elect == nil {
		return nil, errors.New("new token renewer: Secrets, Namespace and Elect are required")
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.NewClient == nil {
		cfg.NewClient = newRemoteClient
	}
	r := &Renewer{cfg: cfg, log: cfg.Log, now: cfg.Clock, attempts: map[place]attempted{},
		counted: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "isthmus_remote_token_renewals_total",
			Help: "Times that the token of a remote cluster was renewed, or could not be."}, []string{"cluster", "result"})}
	r.tokens.Store(&[]Token{})
	if cfg.Metrics != nil {
		if err := cfg.Metrics.Register(tokenCollector{r}); err != nil {
			return nil, fmt.Errorf("register metrics of token renewal: %w", err)
		}
	}
	return r, nil
}

// newRemoteClient makes a client with connections of its own.
func newRemoteClient(cfg *rest.Config) (kubernetes.Interface, func(), error) {
	h, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, nil, fmt.Errorf("build transport: %w", err)
	}
	client, err := kubernetes.NewForConfigAndClient(cfg, h)
	return client, func() { utilnet.CloseIdleConnectionsFor(h.Transport) }, err
}

// Tokens returns the tokens that end, by cluster.
func (r *Renewer) Tokens() []Token { return slices.Clone(*r.tokens.Load()) }

// Run looks after the tokens until the context ends.
func (r *Renewer) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var observer sync.WaitGroup
	defer observer.Wait()
	defer cancel()
	observer.Go(func() {
		every(ctx, func() {
			if !r.leading.Load() {
				r.look(ctx, false)
			}
		})
	})
	err := r.cfg.Elect(ctx, func(ctx context.Context) {
		r.leading.Store(true)
		defer r.leading.Store(false)
		r.log.Info("renewing tokens of remote secrets")
		every(ctx, func() { r.look(ctx, true) })
	})
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("renew tokens of remote secrets: %w", err)
	}
	return nil
}

// every calls a function now, and again and again until the context ends.
func every(ctx context.Context, look func()) {
	tick := time.NewTicker(renewLook)
	defer tick.Stop()
	for {
		look()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// look reads all remote secrets, and renews what is due if we lead.
func (r *Renewer) look(ctx context.Context, lead bool) {
	listing, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	list, err := r.cfg.Secrets.CoreV1().Secrets(r.cfg.Namespace).List(listing, metav1.ListOptions{LabelSelector: SecretLabel + "=true"})
	if err != nil {
		if ctx.Err() == nil {
			r.log.Warn("cannot look at the tokens of remote secrets now", zap.String("namespace", r.cfg.Namespace), zap.Error(err))
		}
		return // unknown is not none: what is known of the tokens stays
	}
	found := make([][]Token, len(list.Items))
	var g errgroup.Group
	g.SetLimit(renewAtOnce)
	for i := range list.Items {
		g.Go(func() error {
			found[i] = r.lookAt(ctx, &list.Items[i], lead)
			return nil
		})
	}
	_ = g.Wait() // none of them fails
	if ctx.Err() != nil {
		return
	}
	tokens := slices.Concat(found...)
	slices.SortFunc(tokens, func(a, b Token) int {
		return cmp.Or(cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.SecretName, b.SecretName))
	})
	r.tokens.Store(&tokens)
	r.forget(list.Items)
}

// forget drops what is known of secrets that are gone.
func (r *Renewer) forget(secrets []corev1.Secret) {
	there := map[place]bool{}
	clusters := map[string]bool{}
	for i := range secrets {
		for key := range secrets[i].Data {
			there[place{secrets[i].Name, key}] = true
			clusters[key] = true
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for p := range r.attempts {
		if there[p] {
			continue
		}
		delete(r.attempts, p)
		if !clusters[p.key] {
			r.counted.DeletePartialMatch(prometheus.Labels{"cluster": p.key})
		}
	}
}

// lookAt reads the tokens of one secret, and renews those that are due.
func (r *Renewer) lookAt(ctx context.Context, s *corev1.Secret, lead bool) []Token {
	_, ours := s.Annotations[ExpiryAnnotation]
	var out []Token
	for _, key := range slices.Sorted(maps.Keys(s.Data)) {
		cfg, err := Sanitize(s.Data[key], r.cfg.Options)
		if err != nil {
			continue // the manager refuses it, and says so
		}
		token, ok := readToken(cfg.BearerToken)
		if !ok {
			continue
		}
		at := place{s.Name, key}
		if ours && lead && r.due(at, token) {
			next, fresh, err := r.renew(ctx, s, key, cfg, token)
			if err == nil {
				s, token = next, fresh
			}
			r.account(ctx, s, key, token, err)
		}
		t := Token{Cluster: mesh.ClusterID(key), SecretName: s.Namespace + "/" + s.Name, Renewed: ours, Expires: token.expires,
			Problem: r.problem(at, token, ours)}
		if ours {
			t.RenewAt = token.renewAt()
		}
		out = append(out, t)
	}
	return out
}

// due reports whether a token is to be renewed now.
func (r *Renewer) due(at place, t accountToken) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	return !now.Before(t.renewAt()) && !now.Before(r.attempts[at].next)
}

// problem says what is wrong with a token.
func (r *Renewer) problem(at place, t accountToken, ours bool) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	failed, now := r.attempts[at].problem, r.now()
	switch {
	case !now.Before(t.expires):
		return strings.TrimSuffix("its token has ended, the cluster cannot be read any more: join it again; "+failed, "; ")
	case failed != "":
		return failed
	case now.Before(t.lateAt()):
		return ""
	case ours:
		return "its token ends soon and has not been renewed: see the Events of the secret"
	}
	return "its token ends soon, and is not for this control plane to renew: whoever made the secret must"
}

// renew asks for a new token, tries it, and writes it into the secret. Only a
// token that works replaces one that does.
func (r *Renewer) renew(ctx context.Context, s *corev1.Secret, key string, cfg *rest.Config, old accountToken) (*corev1.Secret, accountToken, error) {
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	token, err := r.request(ctx, cfg, old)
	if err != nil {
		return nil, old, err
	}
	fresh, ok := readToken(token)
	if !ok || !fresh.expires.After(old.expires) {
		return nil, old, fmt.Errorf("the API server issued a token that ends no later than the one there is (%s)", old.expires.UTC().Format(time.RFC3339))
	}
	kubeconfig, err := withToken(s.Data[key], token)
	if err != nil {
		return nil, old, err
	}
	// The version in it keeps somebody else's change from being lost.
	next := s.DeepCopy()
	next.Data[key] = kubeconfig
	next.Annotations[ExpiryAnnotation] = soonest(next, r.cfg.Options).UTC().Format(time.RFC3339)
	got, err := r.cfg.Secrets.CoreV1().Secrets(s.Namespace).Update(ctx, next, metav1.UpdateOptions{FieldManager: "isthmus-renewal"})
	if err != nil {
		return nil, old, fmt.Errorf("write the renewed token into the secret: %w", err)
	}
	return got, fresh, nil
}

// soonest is when the first of the tokens in a secret ends.
func soonest(s *corev1.Secret, o Options) time.Time {
	var out time.Time
	for _, raw := range s.Data {
		if _, ends, ok := TokenExpiry(raw, o); ok && (out.IsZero() || ends.Before(out)) {
			out = ends
		}
	}
	return out
}

// request asks the remote for a token of the same account and lifetime, and
// shows it there once.
func (r *Renewer) request(ctx context.Context, cfg *rest.Config, old accountToken) (string, error) {
	cfg = rest.CopyConfig(cfg)
	cfg.Timeout = renewTimeout
	client, done, err := r.cfg.NewClient(cfg)
	if err != nil {
		return "", fmt.Errorf("make client of the remote: %w", err)
	}
	defer done()
	seconds := int64(old.lifetime() / time.Second)
	account := old.namespace + "/" + old.name
	answer, err := client.CoreV1().ServiceAccounts(old.namespace).CreateToken(ctx, old.name, tokenRequest(seconds), metav1.CreateOptions{})
	switch {
	case apierrors.IsForbidden(err):
		return "", fmt.Errorf("service account %s of the remote may not renew its own token: it needs verb create on serviceaccounts/token for the name %s in namespace %s: %w",
			account, old.name, old.namespace, err)
	case err != nil:
		return "", fmt.Errorf("request token of service account %s from the remote: %w", account, err)
	}
	trial := rest.CopyConfig(cfg)
	trial.BearerToken = answer.Status.Token
	fresh, closeTrial, err := r.cfg.NewClient(trial)
	if err != nil {
		return "", fmt.Errorf("make client of the remote: %w", err)
	}
	defer closeTrial()
	// Whoever has a bad token may not even ask for the version.
	if _, err := fresh.Discovery().ServerVersion(); err != nil {
		return "", fmt.Errorf("try the renewed token of service account %s: %w", account, err)
	}
	return answer.Status.Token, nil
}
