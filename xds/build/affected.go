package build

import "github.com/isthmus-mesh/isthmus/mesh"

// The AffectedView methods project a view to what Affected looks at, so that
// the engine asks once for all views that agree in it: a thousand proxies that
// differ in what they serve themselves come to one or two questions per change.

// AffectedView says that Affected does not depend on the view.
func (Assignments) AffectedView(View) View { return View{} }

// AffectedView keeps what Affected looks at.
func (Upstreams) AffectedView(v View) View { return View{Kind: v.Kind, Dialect: v.Dialect} }

// AffectedView keeps what Affected looks at.
func (Routes) AffectedView(v View) View { return View{Dialect: v.Dialect} }

// AffectedView keeps what Affected looks at.
func (Listeners) AffectedView(v View) View {
	switch {
	case v.Dialect == mesh.DialectGRPC:
		return View{Dialect: v.Dialect, Namespace: v.Namespace, Domain: v.Domain}
	case v.Kind == mesh.ProxySidecar:
		return View{Kind: v.Kind, Dialect: v.Dialect, Cluster: v.Cluster, IPv4: v.IPv4, IPv6: v.IPv6}
	}
	return v // a gateway's listeners are found by its labels
}
