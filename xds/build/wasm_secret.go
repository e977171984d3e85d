package build

import (
	"fmt"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"google.golang.org/protobuf/proto"
	extensions "istio.io/api/extensions/v1alpha1"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// wasmSecretEnv is the variable of a module's environment in which Istio's agent
// looks for the credential to fetch it with, in the form of Docker's config.json.
// The agent takes it out again before the proxy sees it; where it is there and
// empty, it refuses the module.
const wasmSecretEnv = "ISTIO_META_WASM_IMAGE_PULL_SECRET"

// PullSecretOf finds the WasmPlugin that an extension configuration is made from,
// and the name of the Secret, in the plugin's namespace, that its module is to be
// fetched with. nil if there is none, or it names no Secret.
func PullSecretOf(c *registry.Catalog, extension string) (plugin *mesh.Object, secret string) {
	ns, name, ok := strings.Cut(extension, ".") // namespaces have no dots
	if !ok {
		return nil, ""
	}
	o := c.Object(mesh.ObjectKey{Kind: mesh.KindWasmPlugin, Namespace: ns, Name: name})
	spec, ok := specOf[*extensions.WasmPlugin](o)
	if !ok || spec.GetImagePullSecret() == "" {
		return nil, ""
	}
	return o, spec.GetImagePullSecret()
}

// WithPullSecret adds the credential for fetching the module to an encoded
// extension configuration. The result is for single proxies that may have it.
func WithPullSecret(extension []byte, dockerConfig string) ([]byte, error) {
	e := &corev3.TypedExtensionConfig{}
	if err := proto.Unmarshal(extension, e); err != nil {
		return nil, fmt.Errorf("decode extension configuration: %w", err)
	}
	filter, err := e.GetTypedConfig().UnmarshalNew()
	if err != nil {
		return nil, fmt.Errorf("decode extension %s: %w", e.GetName(), err)
	}
	w, ok := filter.(interface{ GetConfig() *wasmv3.PluginConfig })
	if !ok || w.GetConfig().GetVmConfig() == nil {
		return nil, fmt.Errorf("extension %s is a %s and fetches no module", e.GetName(), e.GetTypedConfig().GetTypeUrl())
	}
	vm := w.GetConfig().GetVmConfig()
	if vm.EnvironmentVariables == nil {
		vm.EnvironmentVariables = &wasmv3.EnvironmentVariables{}
	}
	env := vm.EnvironmentVariables
	env.HostEnvKeys = slices.DeleteFunc(env.HostEnvKeys, func(k string) bool { return k == wasmSecretEnv })
	put(&env.KeyValues, wasmSecretEnv, dockerConfig)
	if e.TypedConfig, err = toAny(filter); err != nil {
		return nil, fmt.Errorf("encode extension %s: %w", e.GetName(), err)
	}
	return proto.MarshalOptions{Deterministic: true}.Marshal(e)
}
