package serve

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"go.uber.org/zap"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/client-go/kubernetes"

	"github.com/isthmus-mesh/isthmus/ca/authn"
	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/xds"
)

// access is who callers are, on every transport, and which proxies they may be.
type access struct {
	c     *Control
	log   *zap.Logger
	chain authn.Chain
	// secrets says who may list secrets.
	secrets *authn.SecretAccess
	// refusals bounds the log lines that strangers can cause.
	refusals *rate.Limiter
}

// newAccess connects the authenticators. Order: client certificate, OIDC rule,
// Kubernetes token.
func newAccess(c *Control) (*access, error) {
	a := &access{c: c, log: c.log.Named("access"), refusals: rate.NewLimiter(20, 100)}
	cert, err := authn.NewCert(authn.CertConfig{Roots: c.trust.authority.Roots, TrustDomains: c.trustDomains, Revoked: c.trust.authority.Revoked,
		Clock: c.settings.Security.Clock})
	if err != nil {
		return nil, err
	}
	a.chain = authn.Chain{cert}
	rules, err := c.settings.Security.jwtRules()
	if err != nil {
		return nil, err
	}
	if len(rules) > 0 {
		for i := range rules {
			rules[i].Cluster = c.settings.canonical(rules[i].Cluster)
		}
		oidc, err := authn.NewOIDC(authn.OIDCConfig{Rules: rules, Logger: a.log, TrustDomain: c.trustDomainOf})
		if err != nil {
			return nil, err
		}
		a.chain = append(a.chain, oidc)
	}
	if c.kube == nil {
		c.log.Info("without Kubernetes nobody can review tokens: proxies on the secure port prove themselves by client certificate only")
	} else if err := a.addTokens(); err != nil {
		return nil, err
	}
	a.secrets, err = authn.NewSecretAccess(authn.SecretAccessConfig{Clients: c.clientFor, Logger: a.log})
	return a, err
}

func (a *access) addTokens() error {
	aliases := map[mesh.ClusterID]mesh.ClusterID{}
	for alias, id := range a.c.settings.Aliases {
		aliases[mesh.ClusterID(alias)] = mesh.ClusterID(id)
	}
	tokens, err := authn.NewKube(authn.KubeConfig{
		Primary: a.c.settings.primary(), Aliases: aliases, Clients: a.c.clientFor, Known: a.c.knownClusters,
		TrustDomain: a.c.trustDomainOf, Audiences: a.c.settings.Security.Audiences, Logger: a.log, Registerer: a.c.metrics,
	})
	a.chain = append(a.chain, tokens)
	return err
}

// clientFor finds the API server of a cluster that is part of the mesh now.
func (c *Control) clientFor(id mesh.ClusterID) (kubernetes.Interface, bool) {
	if c.kube == nil {
		return nil, false
	}
	return c.kube.manager.ClientFor(id)
}

func (c *Control) knownClusters() []mesh.ClusterID {
	var ids []mesh.ClusterID
	for _, s := range c.world.clusters() {
		ids = append(ids, s.ID)
	}
	return ids
}

// trustDomainOf is the trust domain of a cluster's identities, the same that
// its endpoints are expected to have.
func (c *Control) trustDomainOf(id mesh.ClusterID) (string, bool) {
	cat := c.store.Catalog()
	if id != c.settings.primary() {
		x, ok := cat.Cluster(id)
		if !ok || x.TrustDomain != "" {
			return x.TrustDomain, ok
		}
	}
	td := cat.TrustDomain()
	return td, td != ""
}

// trustDomains are all whose identities are of this mesh.
func (c *Control) trustDomains() []string {
	cat := c.store.Catalog()
	out := append([]string{cat.TrustDomain()}, cat.Settings.Mesh.GetTrustDomainAliases()...)
	for _, x := range cat.Clusters() {
		out = append(out, x.TrustDomain)
	}
	return slices.DeleteFunc(out, func(s string) bool { return s == "" })
}

// admit decides about a proxy's first request: on a TLS connection it must be
// who its credential says; on plaintext, which is for users within the cluster,
// nothing is proven and no secret is told.
func (a *access) admit(ctx context.Context, p *mesh.Proxy) (xds.Credential, error) {
	p.Cluster = a.c.settings.canonical(p.Cluster)
	request := authn.FromContext(ctx)
	if request.TLS == nil {
		return xds.Credential{}, nil
	}
	caller, err := a.chain.Authenticate(ctx, request)
	if err != nil {
		a.refuse("proxy not authenticated", zap.String("proxy", p.ID), zap.Stringer("peer", request.Peer), zap.Error(err))
		return xds.Credential{}, authn.Status(err)
	}
	if err := errors.Join(mayBe(caller, p), a.ofItsDomain(caller, p)); err != nil {
		a.refuse("proxy claims to be another", zap.String("proxy", p.ID), zap.Stringer("caller", caller), zap.Error(err))
		return xds.Credential{}, status.Error(codes.PermissionDenied, "authorization failed: "+err.Error())
	}
	return xds.Credential{Caller: caller, Expiry: caller.Expiry}, nil
}

// mayBe reports why a caller cannot be the proxy that it says it is.
func mayBe(c authn.Caller, p *mesh.Proxy) error {
	if p.Namespace != c.Identity.Namespace || p.ServiceAccount != "" && p.ServiceAccount != c.Identity.ServiceAccount {
		return fmt.Errorf("no identities ([%s]) matched %s/%s", c.Identity.SPIFFE(), p.Namespace, p.ServiceAccount)
	}
	if c.Cluster != "" && p.Cluster != c.Cluster {
		return fmt.Errorf("the credential is of cluster %s, the proxy says CLUSTER_ID %s", c.Cluster, p.Cluster)
	}
	return nil
}

// ofItsDomain reports why a caller whose credential names no cluster cannot be of
// the one that it says: a certificate names the trust domain of its cluster.
func (a *access) ofItsDomain(c authn.Caller, p *mesh.Proxy) error {
	domain, known := a.c.trustDomainOf(p.Cluster)
	if c.Cluster != "" || !known || domain == c.Identity.TrustDomain ||
		slices.Contains(a.c.store.Catalog().Settings.Mesh.GetTrustDomainAliases(), c.Identity.TrustDomain) {
		return nil
	}
	return fmt.Errorf("the credential is of trust domain %s, the proxy says CLUSTER_ID %s, which has another", c.Identity.TrustDomain, p.Cluster)
}

func (a *access) refuse(msg string, fields ...zap.Field) {
	if a.refusals.Allow() {
		a.log.Warn(msg, fields...)
	}
}
