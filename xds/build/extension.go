package build

import (
	"maps"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// TypeExtension is the xDS type of extension configurations.
const TypeExtension = typePrefix + "envoy.config.core.v3.TypedExtensionConfig"

// Extensions makes extension configurations (ECDS), which are asked for by the
// names that listeners give: NAMESPACE.NAME of a WasmPlugin, or the name of what an
// EnvoyFilter adds to EXTENSION_CONFIG.
type Extensions struct{}

var _ Generator = Extensions{}

// TypeURL implements [Generator].
func (Extensions) TypeURL() string { return TypeExtension }

// List implements [Generator]: extensions are asked for by name.
func (Extensions) List(Inputs, View) []string { return nil }

// ListView implements [Generator].
func (Extensions) ListView(View) View { return View{} }

// Project implements [Generator].
func (Extensions) Project(in Inputs, v View, name string) View {
	p := View{Dialect: v.Dialect}
	for _, n := range v.Plugins.List() {
		if n.Namespace+"."+n.Name == name {
			p.Plugins = MakeObjectNames([]ObjectName{n})
			return p
		}
	}
	p.Patches = projectPatches(in, v, name, []networking.EnvoyFilter_ApplyTo{networking.EnvoyFilter_EXTENSION_CONFIG})
	return p
}

// Build implements [Generator].
func (Extensions) Build(in Inputs, v View, name string) (proto.Message, error) {
	for _, p := range plugins(in, v) {
		if p.resourceName() == name {
			return p.extension()
		}
	}
	if m, ok := added[*corev3.TypedExtensionConfig](in, v, networking.EnvoyFilter_EXTENSION_CONFIG, name); ok {
		return m, nil
	}
	return nil, nil
}

// Affected implements [Generator].
func (Extensions) Affected(in Inputs, v View, c *registry.Change) Affected {
	names := map[string]struct{}{}
	for _, n := range pluginsChanged(v, c) {
		names[n] = struct{}{}
	}
	for k, o := range c.Objects {
		if k.Kind != mesh.KindEnvoyFilter || !v.Patches.has(ObjectName{k.Namespace, k.Name}) {
			continue
		}
		for _, x := range []*mesh.Object{o.Before, o.After} {
			if x == nil {
				continue
			}
			f, ok := x.Spec.(*networking.EnvoyFilter)
			if !ok {
				continue
			}
			for i, cp := range f.GetConfigPatches() {
				if cp.GetApplyTo() != networking.EnvoyFilter_EXTENSION_CONFIG {
					continue
				}
				if n, adds := decodePatch(x, i, cp).adds(); adds {
					names[n] = struct{}{}
				}
			}
		}
	}
	return Affected{Names: slices.Sorted(maps.Keys(names))}
}

// AffectedView keeps what Affected looks at.
func (Extensions) AffectedView(v View) View { return View{Plugins: v.Plugins, Patches: v.Patches} }
