package build

import (
	"slices"

	telemetry "istio.io/api/telemetry/v1alpha1"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// A proxy's telemetry is what MeshConfig sets up, changed by up to three
// Telemetries: that of the root namespace, that of its own namespace and the one
// that selects its workload, each overriding the ones before it.

// selectTelemetry lists the Telemetries that are about a proxy, in the order in
// which they override. Of several that could stand in one place the oldest does.
func selectTelemetry(in Inputs, v *View, labels map[string]string) ObjectNames {
	var names []ObjectName
	whole := func(o *mesh.Object) bool { return !selective(o.Spec) }
	add := func(ns string, picks func(*mesh.Object) bool) {
		all := inNamespace(in, mesh.KindTelemetry, ns)
		if i := slices.IndexFunc(all, picks); i >= 0 {
			names = append(names, ObjectName{ns, all[i].Key.Name})
		}
	}
	root := in.Catalog.RootNamespace()
	add(root, whole)
	if v.Namespace != root {
		add(v.Namespace, whole)
	}
	add(v.Namespace, func(o *mesh.Object) bool { return selective(o.Spec) && attaches(v, o, labels) })
	return MakeObjectNames(names)
}

// telemetries returns the specifications of the view's Telemetries.
func telemetries(in Inputs, v View) []*telemetry.Telemetry {
	var out []*telemetry.Telemetry
	for _, n := range v.Telemetry.List() {
		o := in.Catalog.Object(mesh.ObjectKey{Kind: mesh.KindTelemetry, Namespace: n.Namespace, Name: n.Name})
		if o == nil {
			continue
		}
		if t, ok := o.Spec.(*telemetry.Telemetry); ok {
			out = append(out, t)
		}
	}
	return out
}

// telemetryChanged reports whether a change is about a Telemetry or a WasmPlugin
// of the view.
func telemetryChanged(v View, c *registry.Change) bool {
	for k := range c.Objects {
		n := ObjectName{k.Namespace, k.Name}
		if k.Kind == mesh.KindTelemetry && v.Telemetry.Has(n) || k.Kind == mesh.KindWasmPlugin && v.Plugins.Has(n) {
			return true
		}
	}
	return false
}

// workloadMode is the side on which a listener's proxy is: gateways are clients
// of what is behind them.
func workloadMode(d Direction) telemetry.WorkloadMode {
	if d == DirectionInbound {
		return telemetry.WorkloadMode_SERVER
	}
	return telemetry.WorkloadMode_CLIENT
}

// onSide reports whether a rule for one side is for a listener.
func onSide(rule, side telemetry.WorkloadMode) bool {
	return rule == telemetry.WorkloadMode_CLIENT_AND_SERVER || rule == side
}

func providerNames(refs []*telemetry.ProviderRef) []string {
	out := make([]string, 0, len(refs))
	for _, r := range refs {
		out = append(out, r.GetName())
	}
	return out
}
