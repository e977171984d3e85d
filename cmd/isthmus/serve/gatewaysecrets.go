package serve

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/isthmus-mesh/isthmus/ca/authn"
	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry/gatewayapi"
	"github.com/isthmus-mesh/isthmus/xds"
)

// typeSecret is the type of SDS.
const typeSecret = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"

// Times of gateway secrets.
const (
	// secretLook is how often every subscription is looked at anew, so that a
	// right that was granted or an API server that came back is noticed.
	secretLook = 10 * time.Second
	// secretWait is how long an answer waits for a Secret that is read for the
	// first time.
	secretWait = 5 * time.Second
)

// gatewaySecrets tells gateways the certificates that their listeners name, and
// whom they trust. A
// gateway hears of the Secrets of its own namespace, if its service account may
// list them in its own cluster. That is asked before anything is looked up.
//
// The Secret of the proxy's own cluster counts, else that of the primary. What
// cannot be read, is not there or is broken is left out, and the proxy keeps
// what it has.
type gatewaySecrets struct {
	c       *Control
	log     *zap.Logger
	watches *secretWatches
}

func newGatewaySecrets(c *Control) *gatewaySecrets {
	g := &gatewaySecrets{c: c, log: c.log.Named("secrets")}
	g.watches = newSecretWatches(c.clientFor, g.changed, g.log)
	return g
}

// run looks after the watches until the context ends.
func (g *gatewaySecrets) run(ctx context.Context) error {
	defer g.watches.start(ctx)()
	tick := time.NewTicker(secretLook)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		g.watches.keep(g.wanted())
		g.c.xds.Refresh(typeSecret, func(*mesh.Proxy, []string) bool { return true })
	}
}

// wanted are the Secrets that connected proxies ask for.
func (g *gatewaySecrets) wanted() map[secretKey]bool {
	out := map[secretKey]bool{}
	g.c.xds.Subscribed(typeSecret, func(p *mesh.Proxy, names []string) {
		for _, n := range names {
			for _, k := range g.places(n, p) {
				out[k] = true
			}
		}
	})
	return out
}

// changed has the proxies told that may use a Secret.
func (g *gatewaySecrets) changed(k secretKey) {
	g.c.xds.Refresh(typeSecret, func(p *mesh.Proxy, names []string) bool {
		may := g.c.mayHave
		if k.configMap {
			may = g.c.mayTrust
		}
		return may(p.Namespace, gatewayapi.Name{Namespace: k.namespace, Name: k.name}) &&
			slices.ContainsFunc(names, func(n string) bool { return slices.Contains(g.places(n, p), k) })
	})
}

// Respond implements [xds.PerProxy].
func (g *gatewaySecrets) Respond(ctx context.Context, p *mesh.Proxy, _ string, names []string) ([]xds.NamedAny, error) {
	caller, ok := xds.CallerFrom(ctx).(authn.Caller)
	if !ok || len(names) == 0 {
		return nil, xds.ErrWithheld // nobody proven: no secret, whatever is asked
	}
	names, err := g.allowed(ctx, p, caller, names)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, secretWait)
	defer cancel()
	var out []xds.NamedAny
	var failed []error
	for _, n := range names {
		x, err := g.resource(ctx, caller, n)
		switch {
		case err != nil:
			failed = append(failed, err)
		case x != nil:
			out = append(out, xds.NamedAny{Name: n, Any: x})
		}
	}
	if len(out) > 0 {
		for _, err := range failed {
			g.c.access.refuse("secret left out", zap.String("proxy", p.ID), zap.Error(err))
		}
		return out, nil
	}
	if len(failed) > 0 {
		return nil, errors.Join(failed...)
	}
	return nil, xds.ErrWithheld
}

// allowed are the names that may be answered: those of Secrets only for a service
// account that may list Secrets.
func (g *gatewaySecrets) allowed(ctx context.Context, p *mesh.Proxy, caller authn.Caller, names []string) ([]string, error) {
	if !slices.ContainsFunc(names, func(n string) bool { return !isRoots(n) }) {
		return names, nil
	}
	allowed, err := g.c.access.secrets.MayListSecrets(ctx, caller, caller.Identity.Namespace)
	if err == nil && allowed {
		return names, nil
	}
	if err == nil {
		g.c.access.refuse("secrets withheld: the proxy's service account may not list secrets of its namespace in its cluster",
			zap.String("proxy", p.ID), zap.Stringer("caller", caller))
		err = xds.ErrWithheld
	}
	names = slices.DeleteFunc(slices.Clone(names), func(n string) bool { return !isRoots(n) })
	if len(names) == 0 {
		return nil, err
	}
	return names, nil
}

// resource makes one resource; nil without an error means that there is no such
// Secret.
func (g *gatewaySecrets) resource(ctx context.Context, caller authn.Caller, resource string) (*anypb.Any, error) {
	if isRoots(resource) {
		m, err := g.rootsResource(ctx, caller.Identity.Namespace, resource)
		if err != nil {
			return nil, err
		}
		return secretAny(m)
	}
	name, err := parseSecretName(resource, caller.Identity.Namespace)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(name.meant(), func(n string) bool {
		return g.c.mayHave(caller.Identity.Namespace, gatewayapi.Name{Namespace: name.namespace, Name: n})
	}) {
		return nil, fmt.Errorf("secret %q: is in another namespace than the proxy, which is in %s, and no ReferenceGrant gives it to a Gateway there", resource, caller.Identity.Namespace)
	}
	for _, k := range name.places(caller.Cluster, g.c.settings.primary()) {
		s, err := g.watches.get(ctx, k)
		if err != nil {
			return nil, err
		}
		if s == nil {
			continue
		}
		m, err := secretResource(resource, name.ca, s)
		if err != nil {
			return nil, fmt.Errorf("secret %s: %w", k, err)
		}
		if m == nil {
			continue // holds no root
		}
		return secretAny(m)
	}
	return nil, nil
}

func secretAny(m *tlsv3.Secret) (*anypb.Any, error) {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode secret %s: %w", m.GetName(), err)
	}
	return &anypb.Any{TypeUrl: typeSecret, Value: body}, nil
}

func inlined(b []byte) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
}

// secretResource renders a Secret; nil if roots are wanted and it has none.
func secretResource(resource string, roots bool, data map[string][]byte) (*tlsv3.Secret, error) {
	if roots {
		pool, crl := firstKey(data, "ca.crt", "cacert"), firstKey(data, "ca.crl", "crl")
		if pool == nil {
			return nil, nil
		}
		if err := checkRoots(pool); err != nil {
			return nil, err
		}
		v := &tlsv3.CertificateValidationContext{TrustedCa: inlined(pool)}
		if crl != nil {
			v.Crl = inlined(crl)
		}
		return &tlsv3.Secret{Name: resource, Type: &tlsv3.Secret_ValidationContext{ValidationContext: v}}, nil
	}
	cert, key := firstKey(data, "tls.crt"), firstKey(data, "tls.key")
	if cert == nil {
		cert, key = firstKey(data, "cert"), firstKey(data, "key")
	}
	if err := checkPair(cert, key); err != nil {
		return nil, err
	}
	return &tlsv3.Secret{Name: resource, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
		CertificateChain: inlined(cert), PrivateKey: inlined(key)}}}, nil
}
