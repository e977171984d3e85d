package build

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	extensions "istio.io/api/extensions/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
	telemetry "istio.io/api/telemetry/v1alpha1"
	typebeta "istio.io/api/type/v1beta1"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// Policies are the users' objects. Which of them select a proxy by its labels is
// worked out once, with its view: builders find the objects by the names that
// the view holds and never see the labels. The exceptions are policies that one
// resource consults among many (source labels of a VirtualService, the workload
// selector of a DestinationRule, labels that failover goes by); for those the
// view holds the labels with the keys that any such policy names.

// selectPolicies fills in the fields of a view that say which policies are about
// a proxy.
func selectPolicies(in Inputs, p *mesh.Proxy, w *mesh.Workload, v *View) {
	labels := p.Labels
	if w != nil {
		labels = w.Labels
	}
	v.Labels = MakeLabels(labels, policyLabelKeys(in))
	if v.Kind == mesh.ProxySidecar {
		v.Sidecar = selectSidecar(in, v.Namespace, labels)
	}
	if v.Dialect == mesh.DialectGRPC {
		return // it has no filters
	}
	v.Patches = selectPatches(in, p, v, labels)
	v.Plugins = selectPlugins(in, v, labels)
	v.Telemetry = selectTelemetry(in, v, labels)
}

// byNamespace is the objects of one kind by namespace, oldest first. A type of
// its own for each kind lets them be kept side by side.
type byNamespace map[string][]*mesh.Object

func indexNamespaces(all []*mesh.Object) byNamespace {
	out := byNamespace{}
	for _, o := range all {
		out[o.Key.Namespace] = append(out[o.Key.Namespace], o)
	}
	return out
}

// inNamespace lists the objects of a kind in a namespace, oldest first.
func inNamespace(in Inputs, kind mesh.ObjectKind, ns string) []*mesh.Object {
	return registry.Derived(in.Catalog, kind, indexNamespaces)[ns]
}

// Kubernetes Gateways label their proxies with their name.
const (
	labelGatewayName = "gateway.networking.k8s.io/gateway-name"
	groupGateway     = "gateway.networking.k8s.io"
)

// selective reports whether an object is for some workloads of its namespace only.
func selective(spec proto.Message) bool {
	_, has := policySelector(spec)
	return has || len(targetRefs(spec)) > 0
}

// attaches reports whether an object is about a proxy with the labels: by the
// Gateway that it names, else by its selector. Only proxies of the object's own
// namespace belong to a Gateway that it names.
func attaches(v *View, o *mesh.Object, labels map[string]string) bool {
	refs := targetRefs(o.Spec)
	if len(refs) == 0 {
		selector, _ := policySelector(o.Spec)
		return selects(selector, labels)
	}
	name := labels[labelGatewayName]
	return name != "" && v.Namespace == o.Key.Namespace && slices.ContainsFunc(refs, func(r *typebeta.PolicyTargetReference) bool {
		return r.GetGroup() == groupGateway && r.GetKind() == string(mesh.KindGateway) && r.GetName() == name
	})
}

// targetRefs lists what an object names for what it is about.
func targetRefs(spec proto.Message) []*typebeta.PolicyTargetReference {
	switch s := spec.(type) {
	case *networking.EnvoyFilter:
		return s.GetTargetRefs()
	case *extensions.WasmPlugin:
		return withTarget(s.GetTargetRefs(), s.GetTargetRef())
	case *telemetry.Telemetry:
		return withTarget(s.GetTargetRefs(), s.GetTargetRef())
	}
	return nil
}

func withTarget(refs []*typebeta.PolicyTargetReference, one *typebeta.PolicyTargetReference) []*typebeta.PolicyTargetReference {
	if one != nil && len(refs) == 0 {
		return []*typebeta.PolicyTargetReference{one}
	}
	return refs
}

// selectSidecar finds the Sidecar that is in force for a proxy: the oldest of its
// namespace that selects its labels, else the oldest of the namespace without a
// selector, else the root namespace's.
func selectSidecar(in Inputs, ns string, labels map[string]string) ObjectName {
	var general ObjectName
	for _, o := range inNamespace(in, mesh.KindSidecar, ns) {
		selector, has := policySelector(o.Spec)
		switch name := (ObjectName{o.Key.Namespace, o.Key.Name}); {
		case has && selects(selector, labels):
			return name
		case !has && general == (ObjectName{}):
			general = name
		}
	}
	if general != (ObjectName{}) {
		return general
	}
	for _, o := range inNamespace(in, mesh.KindSidecar, in.Catalog.RootNamespace()) {
		if _, has := policySelector(o.Spec); !has {
			return ObjectName{o.Key.Namespace, o.Key.Name}
		}
	}
	return ObjectName{}
}

// policySelector returns the labels by which an object selects workloads, and
// whether it names any: one that does not selects all.
func policySelector(spec proto.Message) (map[string]string, bool) {
	var l map[string]string
	switch s := spec.(type) {
	case *networking.Sidecar:
		l = s.GetWorkloadSelector().GetLabels()
	case *networking.EnvoyFilter:
		l = s.GetWorkloadSelector().GetLabels()
	case *extensions.WasmPlugin:
		l = s.GetSelector().GetMatchLabels()
	case *telemetry.Telemetry:
		l = s.GetSelector().GetMatchLabels()
	case *networking.DestinationRule:
		l = s.GetWorkloadSelector().GetMatchLabels()
	}
	return l, len(l) > 0
}

// Keys of labels that policies of one kind look at.
type (
	virtualServiceKeys  []string
	destinationRuleKeys []string
)

// policyLabelKeys lists the keys of all labels that [View.Labels] holds.
func policyLabelKeys(in Inputs) []string {
	vs := registry.Derived(in.Catalog, mesh.KindVirtualService, func(all []*mesh.Object) virtualServiceKeys {
		k := labelKeys{}
		for _, o := range all {
			addLabelKeys(k, o.Spec)
		}
		return k.sorted()
	})
	dr := registry.Derived(in.Catalog, mesh.KindDestinationRule, func(all []*mesh.Object) destinationRuleKeys {
		k := labelKeys{}
		for _, o := range all {
			addLabelKeys(k, o.Spec)
		}
		return k.sorted()
	})
	k := labelKeys{}
	k.addFailover(in.Catalog.Settings.Mesh.GetLocalityLbSetting())
	if len(k) == 0 && len(vs) == 0 {
		return dr
	}
	out := slices.Concat([]string(vs), []string(dr), k.sorted())
	slices.Sort(out)
	return slices.Compact(out)
}

// addLabelKeys collects the keys that a VirtualService or DestinationRule looks at.
func addLabelKeys(k labelKeys, spec proto.Message) {
	switch s := spec.(type) {
	case *networking.VirtualService:
		for _, r := range s.GetHttp() {
			for _, m := range r.GetMatch() {
				k.addAll(m.GetSourceLabels())
			}
		}
		for _, r := range s.GetTls() {
			for _, m := range r.GetMatch() {
				k.addAll(m.GetSourceLabels())
			}
		}
		for _, r := range s.GetTcp() {
			for _, m := range r.GetMatch() {
				k.addAll(m.GetSourceLabels())
			}
		}
	case *networking.DestinationRule:
		k.addAll(s.GetWorkloadSelector().GetMatchLabels())
		k.addPolicy(s.GetTrafficPolicy())
		for _, sub := range s.GetSubsets() {
			k.addPolicy(sub.GetTrafficPolicy())
		}
	}
}

func (k labelKeys) addPolicy(p *networking.TrafficPolicy) {
	k.addFailover(p.GetLoadBalancer().GetLocalityLbSetting())
	for _, port := range p.GetPortLevelSettings() {
		k.addFailover(port.GetLoadBalancer().GetLocalityLbSetting())
	}
}

// addFailover adds the keys of failoverPriority, each KEY or KEY=VALUE.
func (k labelKeys) addFailover(l *networking.LocalityLoadBalancerSetting) {
	for _, f := range l.GetFailoverPriority() {
		key, _, _ := strings.Cut(f, "=")
		k[key] = struct{}{}
	}
}

// policiesConcern reports whether changed objects may alter which policies are
// about some proxy.
func policiesConcern(c *registry.Change) bool {
	for k, o := range c.Objects {
		switch k.Kind {
		case mesh.KindSidecar, mesh.KindEnvoyFilter, mesh.KindWasmPlugin, mesh.KindTelemetry:
			return true
		case mesh.KindVirtualService, mesh.KindDestinationRule:
			if looksAtLabels(o.Before) || looksAtLabels(o.After) {
				return true
			}
		}
	}
	return false
}

func looksAtLabels(o *mesh.Object) bool {
	if o == nil {
		return false
	}
	k := labelKeys{}
	addLabelKeys(k, o.Spec)
	return len(k) > 0
}
