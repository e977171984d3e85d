package serve

import (
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"go.uber.org/zap"

	"github.com/isthmus-mesh/isthmus/ca/authn"
)

// debugGuard decides who may look. A caller on this machine may see everything:
// that is how istioctl comes, through a port-forward. Everybody else proves who
// they are, with the credentials that proxies have: the system namespace sees
// everything, another namespace its own proxies.
//
// What a request says of its origin (X-Forwarded-For, Host) does not count, only
// the connection's address; a local caller whose Host is not local is refused,
// so that a web page elsewhere cannot read the answers through a name that
// resolves to loopback.
func (c *Control) debugGuard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, err := netip.ParseAddrPort(r.RemoteAddr)
		switch {
		case err == nil && from.Addr().Unmap().IsLoopback() && localHost(r.Host):
			next.ServeHTTP(w, r)
		case err == nil && from.Addr().Unmap().IsLoopback():
			http.Error(w, "debug views are served under a local name only", http.StatusForbidden)
		default:
			c.debugRemote(w, r, next)
		}
	})
}

// debugRemote serves a caller from another machine.
func (c *Control) debugRemote(w http.ResponseWriter, r *http.Request, next http.Handler) {
	caller, err := c.access.chain.Authenticate(r.Context(), authn.FromHTTP(r))
	switch {
	case errors.Is(err, authn.ErrUnavailable):
		http.Error(w, "the credential could not be checked now: try again", http.StatusServiceUnavailable)
		return
	case err != nil:
		c.access.refuse("debug request not authenticated", zap.String("peer", r.RemoteAddr), zap.Error(err))
		w.Header().Set("WWW-Authenticate", "Bearer")
		http.Error(w, "authentication required: send a service account token for the audience of this control plane, or use kubectl port-forward", http.StatusUnauthorized)
		return
	}
	ns := caller.Identity.Namespace
	if ns == c.settings.Namespace || slices.Contains(c.settings.Security.DebugNamespaces, ns) {
		next.ServeHTTP(w, r)
		return
	}
	if !c.tenantMay(r, ns) {
		http.Error(w, "not allowed: from namespace "+ns+" only syncz, and config_dump, edsz, ndsz with ?proxyID= of a proxy of that namespace", http.StatusForbidden)
		return
	}
	next.ServeHTTP(w, r)
}

// tenantMay reports whether a namespace may see what is asked for, and narrows
// what shows several namespaces to that one.
func (c *Control) tenantMay(r *http.Request, namespace string) bool {
	q := r.URL.Query()
	switch strings.TrimPrefix(r.URL.Path, "/debug/") {
	case "syncz":
		q.Set("namespace", namespace)
		r.URL.RawQuery = q.Encode()
		return true
	case "config_dump", "edsz", "ndsz":
		return c.ownProxy(q.Get("proxyID"), namespace)
	}
	return false
}

// ownProxy reports whether a proxy is of a namespace: all that go by that name
// must be.
func (c *Control) ownProxy(id, namespace string) bool {
	found := false
	for _, p := range c.xds.Proxies() {
		if p.ID == id || p.Connection == id {
			if p.Namespace != namespace {
				return false
			}
			found = true
		}
	}
	return found
}
