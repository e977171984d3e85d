package build

import (
	"cmp"
	"math"
	"net/url"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	httpwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	netwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/wasm/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
	extensions "istio.io/api/extensions/v1alpha1"
	typebeta "istio.io/api/type/v1beta1"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// Filters in WebAssembly. A listener holds only where such a filter stands; what
// it is comes from extension configurations (ECDS), so that a new module does not
// drain connections. The agent beside a proxy fetches the module and hands the
// proxy a file instead; a filter that could not be fetched becomes one that lets
// everything or nothing through.

const (
	httpWasmURL    = typePrefix + "envoy.extensions.filters.http.wasm.v3.Wasm"
	httpRBACURL    = typePrefix + "envoy.extensions.filters.http.rbac.v3.RBAC"
	networkWasmURL = typePrefix + "envoy.extensions.filters.network.wasm.v3.Wasm"
	networkRBACURL = typePrefix + "envoy.extensions.filters.network.rbac.v3.RBAC"

	wasmRuntime = "envoy.wasm.runtime.v8"
	// wasmFetchTimeout bounds fetching a module.
	wasmFetchTimeout = 30 * time.Second
	// noUpstream says that the agent fetches, not the proxy.
	noUpstream = "_"

	// What the agent is told by the module's environment.
	wasmPolicyEnv  = "ISTIO_META_WASM_IMAGE_PULL_POLICY"
	wasmVersionEnv = "ISTIO_META_WASM_PLUGIN_RESOURCE_VERSION"
)

// wasmPlugin is one WasmPlugin of a view.
type wasmPlugin struct {
	object *mesh.Object
	spec   *extensions.WasmPlugin
}

// resourceName is the name of the plugin's extension configuration.
func (p *wasmPlugin) resourceName() string { return p.object.Key.Namespace + "." + p.object.Key.Name }

// network reports whether the plugin is a filter for connections.
func (p *wasmPlugin) network() bool { return p.spec.GetType() == extensions.PluginType_NETWORK }

// selectPlugins lists the WasmPlugins that are about a proxy: those with a higher
// priority first, then the root namespace's, then the oldest.
func selectPlugins(in Inputs, v *View, labels map[string]string) ObjectNames {
	if v.Dialect != mesh.DialectIstio { // without an agent nobody fetches the module
		return ObjectNames{}
	}
	var all []*mesh.Object
	for _, at := range slices.Compact([]string{in.Catalog.RootNamespace(), v.Namespace}) {
		for _, o := range inNamespace(in, mesh.KindWasmPlugin, at) {
			if attaches(v, o, labels) {
				all = append(all, o)
			}
		}
	}
	slices.SortStableFunc(all, func(a, b *mesh.Object) int { return -cmp.Compare(pluginPriority(a), pluginPriority(b)) })
	names := make([]ObjectName, len(all))
	for i, o := range all {
		names[i] = ObjectName{o.Key.Namespace, o.Key.Name}
	}
	return MakeObjectNames(names)
}

// pluginPriority puts plugins without a priority last.
func pluginPriority(o *mesh.Object) int64 {
	if p, ok := o.Spec.(*extensions.WasmPlugin); ok && p.GetPriority() != nil {
		return int64(p.GetPriority().GetValue())
	}
	return math.MinInt64
}

// plugins returns the view's WasmPlugins, in order.
func plugins(in Inputs, v View) []*wasmPlugin {
	var out []*wasmPlugin
	for _, n := range v.Plugins.List() {
		o := in.Catalog.Object(mesh.ObjectKey{Kind: mesh.KindWasmPlugin, Namespace: n.Namespace, Name: n.Name})
		if o == nil {
			continue
		}
		if s, ok := o.Spec.(*extensions.WasmPlugin); ok {
			out = append(out, &wasmPlugin{o, s})
		}
	}
	return out
}

// on reports whether a plugin is for a listener: by the side and, where both name
// one, the port.
func (p *wasmPlugin) on(d Direction, port uint16) bool {
	if len(p.spec.GetMatch()) == 0 {
		return true
	}
	side := typebeta.WorkloadMode_CLIENT
	if d == DirectionInbound {
		side = typebeta.WorkloadMode_SERVER
	}
	return slices.ContainsFunc(p.spec.GetMatch(), func(m *extensions.WasmPlugin_TrafficSelector) bool {
		switch m.GetMode() {
		case typebeta.WorkloadMode_UNDEFINED, typebeta.WorkloadMode_CLIENT_AND_SERVER, side:
		default:
			return false
		}
		return len(m.GetPorts()) == 0 || port == 0 || slices.ContainsFunc(m.GetPorts(), func(x *typebeta.PortSelector) bool {
			return x.GetNumber() == uint32(port)
		})
	})
}

// phased lists the plugins of one type for the listener, in the order in which
// requests pass them: before Istio authenticates, before it authorizes, before it
// counts, then those without a phase.
func (f *filters) phased(network bool) []*wasmPlugin {
	var out []*wasmPlugin
	for _, phase := range []extensions.PluginPhase{extensions.PluginPhase_AUTHN, extensions.PluginPhase_AUTHZ,
		extensions.PluginPhase_STATS, extensions.PluginPhase_UNSPECIFIED_PHASE} {
		for _, p := range f.plugins {
			if p.network() == network && p.spec.GetPhase() == phase && p.on(f.dir, f.port) {
				out = append(out, p)
			}
		}
	}
	return out
}

func (f *filters) httpPlugins() []*hcmv3.HttpFilter {
	var out []*hcmv3.HttpFilter
	for _, p := range f.phased(false) {
		out = append(out, &hcmv3.HttpFilter{Name: p.resourceName(), ConfigType: &hcmv3.HttpFilter_ConfigDiscovery{
			ConfigDiscovery: &corev3.ExtensionConfigSource{ConfigSource: adsSource(), TypeUrls: []string{httpWasmURL, httpRBACURL}},
		}})
	}
	return out
}

func (f *filters) networkPlugins() []*listenerv3.Filter {
	var out []*listenerv3.Filter
	for _, p := range f.phased(true) {
		out = append(out, &listenerv3.Filter{Name: p.resourceName(), ConfigType: &listenerv3.Filter_ConfigDiscovery{
			ConfigDiscovery: &corev3.ExtensionConfigSource{ConfigSource: adsSource(), TypeUrls: []string{networkWasmURL, networkRBACURL}},
		}})
	}
	return out
}

// extension makes the plugin's extension configuration.
func (p *wasmPlugin) extension() (*corev3.TypedExtensionConfig, error) {
	config, err := p.config()
	if err != nil {
		return nil, err
	}
	var filter proto.Message = &httpwasmv3.Wasm{Config: config}
	if p.network() {
		filter = &netwasmv3.Wasm{Config: config}
	}
	a, err := toAny(filter)
	if err != nil {
		return nil, err
	}
	return &corev3.TypedExtensionConfig{Name: p.resourceName(), TypedConfig: a}, nil
}

func (p *wasmPlugin) config() (*wasmv3.PluginConfig, error) {
	out := &wasmv3.PluginConfig{
		Name:   p.resourceName(),
		RootId: p.spec.GetPluginName(),
		Vm: &wasmv3.PluginConfig_VmConfig{VmConfig: &wasmv3.VmConfig{
			Runtime: wasmRuntime, Code: p.code(), EnvironmentVariables: p.environment(),
		}},
	}
	switch p.spec.GetFailStrategy() {
	case extensions.FailStrategy_FAIL_OPEN:
		out.FailOpen = true //nolint:staticcheck // what proxies and agents of all versions read
	case extensions.FailStrategy_FAIL_RELOAD:
		out.FailurePolicy = wasmv3.FailurePolicy_FAIL_RELOAD
	}
	if len(p.spec.GetPluginConfig().GetFields()) > 0 {
		text, err := canonicalJSON(p.spec.GetPluginConfig())
		if err != nil {
			return nil, err
		}
		if out.Configuration, err = toAny(wrapperspb.String(text)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// code is where the module comes from; without a scheme it is an OCI image.
func (p *wasmPlugin) code() *corev3.AsyncDataSource {
	at := p.spec.GetUrl()
	if u, err := url.Parse(at); err == nil && u.Scheme == "" {
		u.Scheme = "oci"
		at = u.String()
		if !strings.HasPrefix(at, "oci://") {
			at = "oci://" + strings.TrimPrefix(p.spec.GetUrl(), "//")
		}
	}
	if path, ok := strings.CutPrefix(at, "file://"); ok {
		return &corev3.AsyncDataSource{Specifier: &corev3.AsyncDataSource_Local{
			Local: &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: path}},
		}}
	}
	return &corev3.AsyncDataSource{Specifier: &corev3.AsyncDataSource_Remote{Remote: &corev3.RemoteDataSource{
		HttpUri: &corev3.HttpUri{
			Uri: at, Timeout: duration(wasmFetchTimeout), HttpUpstreamType: &corev3.HttpUri_Cluster{Cluster: noUpstream},
		},
		Sha256: p.spec.GetSha256(),
	}}}
}

// environment is the module's environment, by which the agent learns how to fetch
// it. What is built is shared by proxies, so no secret is in it: see [WithPullSecret].
func (p *wasmPlugin) environment() *wasmv3.EnvironmentVariables {
	out := &wasmv3.EnvironmentVariables{KeyValues: map[string]string{}}
	for _, e := range p.spec.GetVmConfig().GetEnv() {
		if e.GetValueFrom() == extensions.EnvValueSource_HOST {
			out.HostEnvKeys = append(out.HostEnvKeys, e.GetName())
		} else {
			out.KeyValues[e.GetName()] = e.GetValue()
		}
	}
	if x := p.spec.GetImagePullPolicy(); x != extensions.PullPolicy_UNSPECIFIED_POLICY {
		out.KeyValues[wasmPolicyEnv] = x.String()
	}
	out.KeyValues[wasmVersionEnv] = p.object.Version
	out.HostEnvKeys = slices.DeleteFunc(out.HostEnvKeys, func(k string) bool { _, both := out.KeyValues[k]; return both })
	return out
}

// pluginsChanged lists the extension configurations of the view that a change is
// about.
func pluginsChanged(v View, c *registry.Change) []string {
	var out []string
	for k := range c.Objects {
		if k.Kind == mesh.KindWasmPlugin && v.Plugins.Has(ObjectName{k.Namespace, k.Name}) {
			out = append(out, k.Namespace+"."+k.Name)
		}
	}
	return out
}

// canonicalJSON renders a message as JSON that is equal for equal messages:
// protojson varies its blanks on purpose.
func canonicalJSON(m proto.Message) (string, error) {
	b, err := protojson.Marshal(m)
	if err != nil {
		return "", err
	}
	return compactJSON(b)
}
