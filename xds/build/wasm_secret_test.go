package build

import (
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	extensions "istio.io/api/extensions/v1alpha1"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// TestPullSecret: it is found by the name of the extension, and added to a copy.
func TestPullSecret(t *testing.T) {
	l := newLab(nil)
	plugin := func(name string, spec *extensions.WasmPlugin) registry.ObjectState {
		k := mesh.ObjectKey{Kind: mesh.KindWasmPlugin, Namespace: "shop", Name: name}
		return registry.ObjectState{Key: k, Object: &mesh.Object{Key: k, Version: "1", Spec: spec}}
	}
	host := []*extensions.EnvVar{{Name: wasmSecretEnv, ValueFrom: extensions.EnvValueSource_HOST}, {Name: "A", Value: "b"}}
	l.sinks["c1"].Apply(registry.Update{Objects: []registry.ObjectState{
		plugin("a.b", &extensions.WasmPlugin{Url: "oci://x", ImagePullSecret: "pull", VmConfig: &extensions.VmConfig{Env: host}}),
		plugin("stream", &extensions.WasmPlugin{Url: "oci://x", ImagePullSecret: "pull", Type: extensions.PluginType_NETWORK}),
		plugin("free", &extensions.WasmPlugin{Url: "oci://x"}),
	}})
	c := l.store.Catalog()
	for _, n := range []string{"shop.free", "shop.nothing", "other.a.b", "name"} {
		o, _ := PullSecretOf(c, n)
		require.Nil(t, o, n)
	}
	for _, name := range []string{"shop.a.b", "shop.stream"} {
		o, secret := PullSecretOf(c, name)
		require.NotNil(t, o)
		require.Equal(t, "pull", secret)
		v := labSidecar(func(v *View) { v.Plugins = MakeObjectNames([]ObjectName{{"shop", o.Key.Name}}) })
		m, err := Extensions{}.Build(l.in(), v, name)
		require.NoError(t, err)
		shared, err := proto.Marshal(m)
		require.NoError(t, err)
		require.NotContains(t, string(shared), "hunter2")
		whole, err := WithPullSecret(shared, "hunter2")
		require.NoError(t, err)
		e := &corev3.TypedExtensionConfig{}
		require.NoError(t, proto.Unmarshal(whole, e))
		filter, err := e.GetTypedConfig().UnmarshalNew()
		require.NoError(t, err)
		env := filter.(interface{ GetConfig() *wasmv3.PluginConfig }).GetConfig().GetVmConfig().GetEnvironmentVariables()
		require.Equal(t, "hunter2", env.GetKeyValues()[wasmSecretEnv])
		require.Equal(t, "1", env.GetKeyValues()[wasmVersionEnv])
		require.NotContains(t, env.GetHostEnvKeys(), wasmSecretEnv, "a name twice is refused")
	}
}

// TestPullSecretOfWhatFetchesNothing: such an extension is left as it is.
func TestPullSecretOfWhatFetchesNothing(t *testing.T) {
	b, err := proto.Marshal(&corev3.TypedExtensionConfig{Name: "x", TypedConfig: mustAny(&routerv3.Router{})})
	require.NoError(t, err)
	_, err = WithPullSecret(b, "hunter2")
	require.ErrorContains(t, err, "fetches no module")
	require.NotContains(t, err.Error(), "hunter2")
	_, err = WithPullSecret([]byte{0xff}, "hunter2")
	require.ErrorContains(t, err, "decode extension configuration")
}
