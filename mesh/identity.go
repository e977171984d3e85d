package mesh

import (
	"fmt"
	"strings"
)

// DefaultTrustDomain is the trust domain of an Istio mesh that names none.
const DefaultTrustDomain = "cluster.local"

// Identity is who a workload is: its Kubernetes service account within a trust
// domain. The zero value means that the identity is not known.
type Identity struct{ TrustDomain, Namespace, ServiceAccount string }

// IsZero reports whether the identity is not known.
func (i Identity) IsZero() bool { return i == Identity{} }

// SPIFFE renders the identity as a SPIFFE ID in the form that Istio uses,
// spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT, or "" for the zero value.
func (i Identity) SPIFFE() string {
	if i.IsZero() {
		return ""
	}
	return "spiffe://" + i.TrustDomain + "/ns/" + i.Namespace + "/sa/" + i.ServiceAccount
}

// ParseIdentity reads a SPIFFE ID in the form of [Identity.SPIFFE]. Every part
// must be there: an empty segment would let one identity pass for another.
func ParseIdentity(s string) (Identity, error) {
	rest, ok := strings.CutPrefix(s, "spiffe://")
	if !ok {
		return Identity{}, fmt.Errorf("parse identity %q: not a spiffe:// URI", s)
	}
	parts := strings.Split(rest, "/")
	if len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" {
		return Identity{}, fmt.Errorf("parse identity %q: want spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT", s)
	}
	id := Identity{TrustDomain: parts[0], Namespace: parts[2], ServiceAccount: parts[4]}
	if id.TrustDomain == "" || id.Namespace == "" || id.ServiceAccount == "" {
		return Identity{}, fmt.Errorf("parse identity %q: empty segment", s)
	}
	return id, nil
}
