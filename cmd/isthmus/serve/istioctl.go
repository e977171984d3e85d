package serve

import (
	"context"
	"errors"
	"net/http"
	"slices"

	"github.com/isthmus-mesh/isthmus/ca/authn"
	"github.com/isthmus-mesh/isthmus/xds"
)

// debugCaller says whose proxies a caller over ADS is shown: the system
// namespace sees all, another its own. Who proved nothing is nobody.
func (c *Control) debugCaller(ctx context.Context) (namespace string, all bool, err error) {
	caller, ok := xds.CallerFrom(ctx).(authn.Caller)
	if !ok {
		return "", false, errors.New("ask on the secure port, with a token or a certificate")
	}
	ns := caller.Identity.Namespace
	return ns, ns == c.settings.Namespace || slices.Contains(c.settings.Security.DebugNamespaces, ns), nil
}

// debugOverADS serves the debug views to a caller whom package xds has checked.
func (c *Control) debugOverADS(w http.ResponseWriter, r *http.Request) {
	c.monitoringMux().ServeHTTP(w, r)
}

// forIstioctl is what istioctl prints as the version of the control plane.
func (b Build) forIstioctl() xds.BuildInfo {
	return xds.BuildInfo{Version: b.Version, Revision: b.Revision, Status: b.Status}
}
