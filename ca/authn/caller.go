package authn

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// ErrCredentialExpired is the cause with which [Caller.Context] ends.
var ErrCredentialExpired = errors.New("the credential of this connection has expired")

// Source says which kind of credential proved an identity.
type Source string

// Kinds of credentials.
const (
	SourceMTLS  Source = "mtls"
	SourceToken Source = "token"
	SourceOIDC  Source = "oidc"
)

// Caller is who a request comes from, as far as its credential proves it. The
// identity of a caller is always complete.
type Caller struct {
	Identity mesh.Identity
	// Cluster is the cluster whose API server vouched for the identity. It is
	// empty for client certificates, which do not carry one: whoever decides by
	// cluster must then refuse, not guess.
	Cluster mesh.ClusterID
	// Expiry is when the credential ends; never zero.
	Expiry time.Time
	Source Source
	// PodName, PodUID and Node are set for tokens bound to a pod.
	PodName string
	PodUID  string
	Node    string
	// Peer is the address the request came from, invalid if unknown.
	Peer netip.Addr
}

// Key tells proxies apart that share one identity: by pod where the credential
// says which, else by peer address. Two calls of one proxy have equal keys as
// long as it keeps its pod or its address.
func (c Caller) Key() string {
	if c.PodUID != "" {
		return string(c.Cluster) + "/" + c.PodUID
	}
	return c.Identity.SPIFFE() + "@" + c.Peer.String()
}

// Context returns a context that ends when the caller's credential expires,
// with [ErrCredentialExpired] as its cause. Whoever serves a long stream serves
// it under this context, so that no stream outlives what let it in.
func (c Caller) Context(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithDeadlineCause(ctx, c.Expiry, ErrCredentialExpired)
}

// String renders the caller for logs.
func (c Caller) String() string {
	return fmt.Sprintf("%s (%s, cluster %q, pod %q, node %q, from %s)",
		c.Identity.SPIFFE(), c.Source, c.Cluster, c.PodName, c.Node, c.Peer)
}

// maxIdentityPart bounds each part of an identity: Kubernetes names end at 253
// octets, trust domains at 255.
const maxIdentityPart = 255

// CheckIdentity reports whether an identity is complete and every part of it
// stands for itself in a SPIFFE ID. Letters, digits, dot, dash and underscore
// are allowed; an empty part, "." and "..", slashes and percent signs are not,
// because with them one identity could be read as another after normalisation.
func CheckIdentity(id mesh.Identity) error {
	for _, part := range []struct{ name, value string }{
		{"trust domain", id.TrustDomain},
		{"namespace", id.Namespace},
		{"service account", id.ServiceAccount},
	} {
		if err := checkIdentityPart(part.value); err != nil {
			return fmt.Errorf("check identity: %s %q: %w", part.name, clip(part.value), err)
		}
	}
	// The trust domain is the host of a URI: with an empty label no Go program
	// could parse the certificate.
	if slices.Contains(strings.Split(id.TrustDomain, "."), "") {
		return fmt.Errorf("check identity: trust domain %q: holds an empty label", clip(id.TrustDomain))
	}
	return nil
}

func checkIdentityPart(s string) error {
	switch {
	case s == "":
		return errors.New("missing")
	case len(s) > maxIdentityPart:
		return fmt.Errorf("longer than %d octets", maxIdentityPart)
	case s == "." || s == "..":
		return errors.New("is a path element")
	}
	for i := range len(s) {
		c := s[i]
		ok := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '-' || c == '_'
		if !ok {
			return errors.New("holds a character other than letters, digits, '.', '-' and '_'")
		}
	}
	return nil
}

// clip shortens text that a caller sent before it goes to a log.
func clip(s string) string {
	const limit = 128
	if len(s) <= limit {
		return s
	}
	return s[:limit] + "..."
}
