package serve

import (
	"context"
	"crypto/tls"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/isthmus-mesh/isthmus/ca/authn"
	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/xds/build"
)

const pulledPlugins = `
apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {name: auth, namespace: shop}
spec: {url: "oci://registry.example.com/auth:1", imagePullSecret: pull}
---
apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {name: everywhere, namespace: istio-system}
spec: {url: "oci://registry.example.com/everywhere:1", imagePullSecret: pull}
`

// dockerSecret is a Secret of cluster east, version of which its content is.
func dockerSecret(kind corev1.SecretType, version, config string) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "pull", Namespace: "shop", UID: "u", ResourceVersion: version}, Type: kind,
		Data: map[string][]byte{corev1.DockerConfigJsonKey: []byte(config)}}
}

// pulled is a control plane with the plugins, and the API server that has Secrets.
func pulled(t *testing.T, objects ...*corev1.Secret) (*running, *fake.Clientset) {
	t.Helper()
	api := fake.NewClientset()
	for _, o := range objects {
		require.NoError(t, api.Tracker().Add(o))
	}
	clients := func(mesh.ClusterID) (kubernetes.Interface, bool) { return api, true }
	r := runWith(t, func(s *Settings) {
		require.NoError(t, os.WriteFile(filepath.Join(s.Files, "east", "plugins.yaml"), []byte(pulledPlugins), 0o600))
	}, func(c *Control) {
		c.access.chain = authn.Chain{inEast{}}
		c.pulls.watches = newSecretWatches(clients, c.pulls.changed, zap.NewNop())
		t.Cleanup(c.pulls.start(context.Background()))
	})
	return r, api
}

// extensionStream asks for extension configurations as a proxy of a namespace.
func (r *running) extensionStream(namespace string, names ...string) discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient {
	r.Helper()
	r.connect(r.control.SecureGRPCAddr(), credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})) //nolint:gosec // it is our own
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(context.Background(), "authorization", "Bearer "+namespace), time.Minute)
	r.Cleanup(cancel)
	st, err := r.ads.StreamAggregatedResources(ctx)
	require.NoError(r, err)
	md, err := structpb.NewStruct(map[string]any{"CLUSTER_ID": "east", "NAMESPACE": namespace, "ISTIO_VERSION": "1.30.0"})
	require.NoError(r, err)
	require.NoError(r, st.Send(&discoveryv3.DiscoveryRequest{TypeUrl: build.TypeExtension, ResourceNames: names,
		Node: &corev3.Node{Id: "sidecar~10.1.0.12~web-1." + namespace + "~" + namespace + ".svc.cluster.local", Metadata: md}}))
	return st
}

// pullSecretIn reads what a response hands over for fetching, and whether it does.
func pullSecretIn(t *testing.T, resp *discoveryv3.DiscoveryResponse) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, a := range resp.GetResources() {
		e := &corev3.TypedExtensionConfig{}
		require.NoError(t, a.UnmarshalTo(e))
		filter, err := e.GetTypedConfig().UnmarshalNew()
		require.NoError(t, err)
		env := filter.(interface{ GetConfig() *wasmv3.PluginConfig }).GetConfig().GetVmConfig().GetEnvironmentVariables().GetKeyValues()
		require.NotEmpty(t, env)
		secret, ok := env["ISTIO_META_WASM_IMAGE_PULL_SECRET"]
		if !ok {
			secret = "none" // one that is empty makes the agent refuse the module
		}
		out[e.GetName()] = secret
	}
	return out
}

func ack(t *testing.T, st discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient, resp *discoveryv3.DiscoveryResponse, names ...string) {
	t.Helper()
	require.NoError(t, st.Send(&discoveryv3.DiscoveryRequest{TypeUrl: build.TypeExtension, ResourceNames: names,
		VersionInfo: resp.GetVersionInfo(), ResponseNonce: resp.GetNonce()}))
}

// A proxy that has proven to be of the plugin's namespace gets the credential, and
// each that follows; what is shared and shown never has it.
func TestPullSecretIsHandedOver(t *testing.T) {
	r, api := pulled(t, dockerSecret(corev1.SecretTypeDockerConfigJson, "1", `{"auths":{"one":{}}}`))
	st := r.extensionStream("shop", "shop.auth")
	first, err := st.Recv()
	require.NoError(t, err)
	require.Equal(t, map[string]string{"shop.auth": `{"auths":{"one":{}}}`}, pullSecretIn(t, first))
	ack(t, st, first, "shop.auth")

	_, err = api.CoreV1().Secrets("shop").Update(context.Background(), dockerSecret(corev1.SecretTypeDockerConfigJson, "2", `{"auths":{"two":{}}}`), metav1.UpdateOptions{})
	require.NoError(t, err)
	second, err := st.Recv()
	require.NoError(t, err)
	require.Equal(t, map[string]string{"shop.auth": `{"auths":{"two":{}}}`}, pullSecretIn(t, second))
	require.NotEqual(t, first.GetVersionInfo(), second.GetVersionInfo())
	require.NotContains(t, r.page("/debug/config_dump?proxyID=web-1.shop", nil), "auths")
}

// Nobody else gets it, and the plugin's problems say so: the plugin itself is there
// for all.
func TestPullSecretIsForProvenProxiesOfItsNamespace(t *testing.T) {
	r, api := pulled(t, dockerSecret(corev1.SecretTypeDockerConfigJson, "1", `{"auths":{"one":{}}}`))
	resp, err := r.stream("sidecar~10.1.0.12~web-1.shop~shop.svc.cluster.local", build.TypeExtension,
		map[string]any{"CLUSTER_ID": "east", "NAMESPACE": "shop", "ISTIO_VERSION": "1.30.0"}, "shop.auth")
	require.NoError(t, err)
	require.Equal(t, map[string]string{"shop.auth": "none"}, pullSecretIn(t, resp), "over plaintext")
	resp, err = r.extensionStream("shop", "istio-system.everywhere").Recv()
	require.NoError(t, err)
	require.Equal(t, map[string]string{"istio-system.everywhere": "none"}, pullSecretIn(t, resp), "of another namespace")
	for _, a := range api.Actions() {
		require.NotEqual(t, "secrets", a.GetResource().Resource, "not even read")
	}
	var problems []registry.Problem
	r.page("/debug/problems", &problems)
	require.Len(t, problems, 2)
	for i, why := range []string{"some are of namespace shop", "without proof of who they are"} {
		require.Equal(t, fieldPullSecret, problems[i].Field)
		require.Contains(t, problems[i].Message, why)
	}
}

// A Secret that is not there or is of no use costs the credential, not the plugin;
// when it is right, everybody hears of it and the problem is gone.
func TestPullSecretThatIsNone(t *testing.T) {
	for name, tt := range map[string]struct {
		secret *corev1.Secret
		why    string
	}{
		"missing":  {nil, "there is no Secret shop/pull"},
		"opaque":   {dockerSecret(corev1.SecretTypeOpaque, "1", `{}`), `is of type "Opaque"; want kubernetes.io/dockerconfigjson`},
		"no JSON":  {dockerSecret(corev1.SecretTypeDockerConfigJson, "1", `hunter2`), "is not JSON"},
		"empty":    {dockerSecret(corev1.SecretTypeDockerConfigJson, "1", ``), "has no .dockerconfigjson"},
		"too long": {dockerSecret(corev1.SecretTypeDockerConfigJson, "1", strings.Repeat("x", maxPullSecret+1)), "more than 65536"},
	} {
		t.Run(name, func(t *testing.T) {
			var there []*corev1.Secret
			if tt.secret != nil {
				there = append(there, tt.secret)
			}
			r, api := pulled(t, there...)
			st := r.extensionStream("shop", "shop.auth")
			resp, err := st.Recv()
			require.NoError(t, err)
			require.Equal(t, map[string]string{"shop.auth": "none"}, pullSecretIn(t, resp))
			ack(t, st, resp, "shop.auth")
			var problems []registry.Problem
			r.page("/debug/problems", &problems)
			require.Len(t, problems, 1)
			require.Equal(t, "spec.imagePullSecret in cluster east", problems[0].Field)
			require.Contains(t, problems[0].Message, tt.why)
			require.NotContains(t, problems[0].Message, "hunter2")

			right := dockerSecret(corev1.SecretTypeDockerConfigJson, "2", `{"auths":{}}`)
			if tt.secret == nil {
				_, err = api.CoreV1().Secrets("shop").Create(context.Background(), right, metav1.CreateOptions{})
			} else {
				_, err = api.CoreV1().Secrets("shop").Update(context.Background(), right, metav1.UpdateOptions{})
			}
			require.NoError(t, err)
			resp, err = st.Recv()
			require.NoError(t, err)
			require.Equal(t, map[string]string{"shop.auth": `{"auths":{}}`}, pullSecretIn(t, resp))
			r.page("/debug/problems", &problems)
			require.Empty(t, problems)
		})
	}
}

// A cluster that cannot be asked neither hides the primary's Secret nor takes away
// what was handed over before.
func TestPullSecretOfAClusterThatCannotBeAsked(t *testing.T) {
	api := fake.NewClientset(dockerSecret(corev1.SecretTypeDockerConfigJson, "1", `{"auths":{}}`))
	down := map[mesh.ClusterID]bool{"west": true}
	clients := func(id mesh.ClusterID) (kubernetes.Interface, bool) { return api, !down[id] }
	r := run(t, func(c *Control) {
		c.pulls.watches = newSecretWatches(clients, c.pulls.changed, zap.NewNop())
		t.Cleanup(c.pulls.start(context.Background()))
	})
	p, k := r.control.pulls, pullKey{"west", "shop", "pull"}
	x := &pull{}
	require.False(t, p.readOnce(t.Context(), k, x))
	require.JSONEq(t, `{"auths":{}}`, x.config)
	down["east"] = true
	require.False(t, p.readOnce(t.Context(), k, x))
	require.JSONEq(t, `{"auths":{}}`, x.config, "not known is not gone")
	fresh := &pull{}
	require.False(t, p.readOnce(t.Context(), k, fresh))
	require.True(t, fresh.read)
	require.Contains(t, fresh.why, "not part of the mesh now")
	down["east"] = false
	require.NoError(t, api.CoreV1().Secrets("shop").Delete(context.Background(), "pull", metav1.DeleteOptions{}))
	require.Eventually(t, func() bool { return !p.readOnce(t.Context(), k, x) && x.config == "" }, 10*time.Second, 10*time.Millisecond)
	require.Contains(t, x.why, "not part of the mesh now", "of cluster west nothing is known, and it never had it from there")
}
