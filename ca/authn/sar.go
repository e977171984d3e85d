package authn

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/singleflight"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// SecretAccessConfig configures [NewSecretAccess].
type SecretAccessConfig struct {
	// Clients finds the API server of the proxy's cluster. Required.
	Clients Clients
	// Timeout bounds a whole question, retries included. Default 5 s.
	Timeout time.Duration
	// Retry is the wait after a first error; it doubles. Default 100 ms.
	Retry time.Duration
	// AllowTTL is how long a yes is believed. Default 1 min.
	AllowTTL time.Duration
	// DenyTTL is how long a no is believed: short, so that a role granted now
	// works soon. Default 5 s. An error is neither yes nor no and never kept.
	DenyTTL time.Duration
	// Size is how many answers are remembered. Default 10,000.
	Size int
	// InFlight bounds concurrent questions per cluster. Default 32.
	InFlight int

	Logger *zap.Logger
	Clock  func() time.Time
}

// SecretAccess answers whether a service account may list the secrets of a
// namespace, as the API server of the account's own cluster says. A gateway
// hears of a secret only then. It is safe for concurrent use.
type SecretAccess struct {
	cfg     SecretAccessConfig
	log     *zap.Logger
	now     func() time.Time
	flights singleflight.Group
	slots   slots

	mu      sync.Mutex
	answers map[accessKey]accessAnswer
}

// accessKey is every input of the answer.
type accessKey struct {
	client             kubernetes.Interface
	cluster            mesh.ClusterID
	accountNS, account string
	namespace          string
}

type accessAnswer struct {
	allowed bool
	until   time.Time
}

// NewSecretAccess returns an authoriser for secrets.
func NewSecretAccess(cfg SecretAccessConfig) (*SecretAccess, error) {
	if cfg.Clients == nil {
		return nil, errors.New("new secret access: Clients is required")
	}
	cfg.Timeout = orDefault(cfg.Timeout, 5*time.Second)
	cfg.Retry = orDefault(cfg.Retry, 100*time.Millisecond)
	cfg.AllowTTL = orDefault(cfg.AllowTTL, time.Minute)
	cfg.DenyTTL = orDefault(cfg.DenyTTL, 5*time.Second)
	cfg.Size = orDefault(cfg.Size, 10_000)
	cfg.InFlight = orDefault(cfg.InFlight, 32)
	return &SecretAccess{
		cfg:     cfg,
		log:     loggerOrNop(cfg.Logger),
		now:     clockOrSystem(cfg.Clock),
		slots:   slots{size: cfg.InFlight},
		answers: map[accessKey]accessAnswer{},
	}, nil
}

// MayListSecrets reports whether the caller may list the secrets of a namespace
// of its own cluster. An error wraps [ErrUnavailable]: whoever asked keeps what
// it has and asks again. Callers whose cluster is not proven (client
// certificates) may not.
func (a *SecretAccess) MayListSecrets(ctx context.Context, c Caller, namespace string) (bool, error) {
	if c.Cluster == "" || namespace == "" || CheckIdentity(c.Identity) != nil {
		return false, nil
	}
	client, ok := a.cfg.Clients(c.Cluster)
	if !ok {
		return false, fmt.Errorf("review access to secrets: cluster %s is not part of the mesh: %w", c.Cluster, ErrUnavailable)
	}
	key := accessKey{client, c.Cluster, c.Identity.Namespace, c.Identity.ServiceAccount, namespace}
	if allowed, ok := a.cached(key); ok {
		return allowed, nil
	}
	flight := fmt.Sprintf("%p|%s|%s|%s|%s", client, c.Cluster, key.accountNS, key.account, namespace)
	done := a.flights.DoChan(flight, func() (any, error) {
		fctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.cfg.Timeout)
		defer cancel()
		return a.ask(fctx, key)
	})
	select {
	case <-ctx.Done():
		return false, fmt.Errorf("review access to secrets in cluster %s: %w: %w", c.Cluster, context.Cause(ctx), ErrUnavailable)
	case res := <-done:
		if res.Err != nil {
			return false, res.Err
		}
		return res.Val.(bool), nil
	}
}

func (a *SecretAccess) cached(key accessKey) (allowed, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	e, ok := a.answers[key]
	if !ok {
		return false, false
	}
	if !a.now().Before(e.until) {
		delete(a.answers, key)
		return false, false
	}
	return e.allowed, true
}

// ask puts the question until it is answered or the deadline passes.
func (a *SecretAccess) ask(ctx context.Context, key accessKey) (bool, error) {
	release, err := a.slots.acquire(ctx, key.cluster)
	if err != nil {
		return false, fmt.Errorf("review access to secrets in cluster %s: %w: %w", key.cluster, err, ErrUnavailable)
	}
	defer release()
	for wait := a.cfg.Retry; ; wait *= 2 {
		var allowed, certain bool
		if allowed, certain, err = a.askOnce(ctx, key); err == nil {
			if certain {
				a.keep(key, allowed)
			}
			return allowed, nil
		}
		select {
		case <-ctx.Done():
			a.log.Warn("subject access review failed: check that the API server answers and that our account may create subjectaccessreviews there",
				zap.String("cluster", string(key.cluster)), zap.String("namespace", key.namespace), zap.Error(err))
			return false, fmt.Errorf("review access to secrets of namespace %s in cluster %s: %w: %w", key.namespace, key.cluster, err, ErrUnavailable)
		case <-time.After(wait):
		}
	}
}

// askOnce makes one call. An answer is not certain if an authoriser stumbled
// on the way to a no (RBAC does so over a binding to a role that is missing):
// it counts, but is not kept.
func (a *SecretAccess) askOnce(ctx context.Context, key accessKey) (allowed, certain bool, err error) {
	answer, err := key.client.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{
		Spec: authorizationv1.SubjectAccessReviewSpec{
			User: "system:serviceaccount:" + key.accountNS + ":" + key.account,
			// The groups that every token of the account carries.
			Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + key.accountNS, "system:authenticated"},
			ResourceAttributes: &authorizationv1.ResourceAttributes{
				Namespace: key.namespace, Verb: "list", Version: "v1", Resource: "secrets",
			},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return false, false, err
	}
	allowed = answer.Status.Allowed && !answer.Status.Denied
	return allowed, allowed || answer.Status.EvaluationError == "", nil
}

func (a *SecretAccess) keep(key accessKey, allowed bool) {
	ttl := a.cfg.DenyTTL
	if allowed {
		ttl = a.cfg.AllowTTL
	}
	if ttl < 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	if len(a.answers) >= a.cfg.Size {
		for k, e := range a.answers {
			if !now.Before(e.until) {
				delete(a.answers, k)
			}
		}
	}
	if len(a.answers) >= a.cfg.Size {
		clear(a.answers) // an attack, or far too small a size: start anew rather than grow
	}
	a.answers[key] = accessAnswer{allowed: allowed, until: now.Add(ttl)}
}
