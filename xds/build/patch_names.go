package build

import (
	"maps"
	"slices"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// adds reports whether a patch adds a resource of its own, and under which name.
func (x *patch) adds() (string, bool) {
	if x.op != networking.EnvoyFilter_Patch_ADD || x.err != nil {
		return "", false
	}
	switch v := x.value.(type) {
	case *listenerv3.Listener:
		return v.GetName(), v.GetName() != ""
	case *clusterv3.Cluster:
		return v.GetName(), v.GetName() != ""
	case *corev3.TypedExtensionConfig:
		return v.GetName(), v.GetName() != ""
	}
	return "", false
}

// patchedNames changes a sorted list of names by the patches that add and remove
// resources as a whole.
func patchedNames(in Inputs, v View, to networking.EnvoyFilter_ApplyTo, names []string) []string {
	if v.Patches == (PatchSet{}) {
		return names
	}
	set := map[string]struct{}{}
	list := resolvePatches(in, v.Patches)
	for _, n := range names {
		if !removed(in, v, list, to, n) {
			set[n] = struct{}{}
		}
	}
	for _, x := range list {
		if n, ok := x.adds(); ok && x.applyTo == to && !slices.Contains(names, n) {
			set[n] = struct{}{}
		}
	}
	return slices.Sorted(maps.Keys(set))
}

// removed reports whether a patch removes a resource as a whole.
func removed(in Inputs, v View, list []*patch, to networking.EnvoyFilter_ApplyTo, name string) bool {
	return slices.ContainsFunc(list, func(x *patch) bool {
		return x.applyTo == to && x.op == networking.EnvoyFilter_Patch_REMOVE && x.err == nil && x.concerns(in, v, name)
	})
}

// added returns a copy of the resource that a patch adds under a name, nil if none
// does. It does not replace one that is there anyway.
func added[M proto.Message](in Inputs, v View, to networking.EnvoyFilter_ApplyTo, name string) (m M, ok bool) {
	if v.Patches == (PatchSet{}) {
		return m, false
	}
	for _, x := range resolvePatches(in, v.Patches) {
		if n, adds := x.adds(); !adds || n != name || x.applyTo != to {
			continue
		}
		if v, is := x.value.(M); is {
			return proto.CloneOf(v), true
		}
	}
	return m, false
}

// concerns reports whether a patch may be about the resource with a name: a
// listener or what is in it, an upstream, a route configuration, an extension.
func (x *patch) concerns(in Inputs, v View, name string) bool {
	if n, ok := x.adds(); ok && (x.applyTo == networking.EnvoyFilter_LISTENER || x.applyTo == networking.EnvoyFilter_CLUSTER ||
		x.applyTo == networking.EnvoyFilter_EXTENSION_CONFIG) {
		return n == name
	}
	switch x.applyTo {
	case networking.EnvoyFilter_CLUSTER:
		return x.inContext(sideOfUpstream(name)) && x.onUpstream(name, inboundHosts(v, name))
	case networking.EnvoyFilter_LISTENER, networking.EnvoyFilter_LISTENER_FILTER, networking.EnvoyFilter_FILTER_CHAIN,
		networking.EnvoyFilter_NETWORK_FILTER, networking.EnvoyFilter_HTTP_FILTER:
		return x.inContext(sideOfListener(name)) && x.onListener(name, listenerPort(in, name))
	}
	return true
}

// listenerPatches are the kinds of patches that change listeners.
func listenerPatches(name string) []networking.EnvoyFilter_ApplyTo {
	out := []networking.EnvoyFilter_ApplyTo{networking.EnvoyFilter_LISTENER, networking.EnvoyFilter_LISTENER_FILTER,
		networking.EnvoyFilter_FILTER_CHAIN, networking.EnvoyFilter_NETWORK_FILTER, networking.EnvoyFilter_HTTP_FILTER}
	if name == ListenerVirtualInbound { // its routes are written in it
		out = append(out, routePatches()...)
	}
	return out
}

// projectPatches keeps those of a view's patches that may be about a resource.
func projectPatches(in Inputs, v View, name string, kinds []networking.EnvoyFilter_ApplyTo) PatchSet {
	if v.Patches == (PatchSet{}) {
		return v.Patches
	}
	var refs []patchRef
	table := patches(in)
	for _, r := range v.Patches.refs() {
		list := table.byName[r.object]
		if r.index >= len(list) {
			continue
		}
		x := list[r.index]
		if !slices.Contains(kinds, x.applyTo) || !x.concerns(in, v, name) {
			continue
		}
		if slices.Contains(routePatches(), x.applyTo) {
			side := networking.EnvoyFilter_SIDECAR_OUTBOUND
			if name == ListenerVirtualInbound {
				side = networking.EnvoyFilter_SIDECAR_INBOUND
			} else if !x.onRoutes(name, v.Inbound.Spec().Opened) {
				continue
			}
			if !x.inContext(side) {
				continue
			}
		}
		refs = append(refs, r)
	}
	return makePatchSet(refs)
}

// patchesChanged reports whether a change is about an EnvoyFilter of the view.
func patchesChanged(v View, c *registry.Change) bool {
	if v.Patches == (PatchSet{}) {
		return false
	}
	for k := range c.Objects {
		if k.Kind == mesh.KindEnvoyFilter && v.Patches.has(ObjectName{k.Namespace, k.Name}) {
			return true
		}
	}
	return false
}
