package build

import "github.com/isthmus-mesh/isthmus/mesh"

// The AffectedView methods project a view to what Affected looks at, so that
// the engine asks once for all views that agree in it: a thousand proxies that
// differ in what they serve themselves come to one or two questions per change.

// AffectedView keeps what Affected looks at.
func (Assignments) AffectedView(v View) View { return View{Sidecar: v.Sidecar} }

// AffectedView keeps what Affected looks at.
func (Upstreams) AffectedView(v View) View {
	return View{Kind: v.Kind, Dialect: v.Dialect, Sidecar: v.Sidecar, Patches: v.Patches}
}

// AffectedView keeps what Affected looks at.
func (Routes) AffectedView(v View) View {
	return View{Kind: v.Kind, Dialect: v.Dialect, Namespace: v.Namespace, Sidecar: v.Sidecar, Patches: v.Patches}
}

// AffectedView keeps what Affected looks at.
func (Listeners) AffectedView(v View) View {
	switch {
	case v.Dialect == mesh.DialectGRPC:
		return View{Dialect: v.Dialect, Namespace: v.Namespace, Domain: v.Domain, Sidecar: v.Sidecar}
	case v.Kind == mesh.ProxySidecar:
		// The Sidecar and the namespace decide which listeners it binds itself.
		p := View{Kind: v.Kind, Dialect: v.Dialect, Cluster: v.Cluster, IPv4: v.IPv4, IPv6: v.IPv6, Sidecar: v.Sidecar,
			Patches: v.Patches, Plugins: v.Plugins, Telemetry: v.Telemetry, Tuning: Tuning{httpProxy: v.Tuning.httpProxy}}
		if v.Sidecar != (ObjectName{}) {
			p.Namespace, p.Interception = v.Namespace, v.Interception
		}
		return p
	}
	return v // a gateway's listeners are found by its labels
}
