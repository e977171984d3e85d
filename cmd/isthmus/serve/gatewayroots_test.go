package serve

import (
	"context"
	"crypto/tls"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"github.com/isthmus-mesh/isthmus/ca/authn"
	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry/gatewayapi"
)

func TestRootsName(t *testing.T) {
	for in, want := range map[string][]gatewayapi.Name{
		"configmap://shop/ca":                {{Namespace: "shop", Name: "ca"}},
		"configmap://shop/ca-cacert":         {{Namespace: "shop", Name: "ca"}},
		"configmap://shop/ca,bank/ca-cacert": {{Namespace: "shop", Name: "ca"}, {Namespace: "bank", Name: "ca"}},
	} {
		got, err := parseRootsName(in)
		require.NoError(t, err, in)
		require.Equal(t, want, got, in)
	}
	for _, bad := range []string{"configmap://", "configmap://shop", "configmap://shop/", "configmap:///ca", "configmap://shop/ca,", "configmap://shop/a/b",
		"configmap://../ca", "configmap://a/a,a/a,a/a,a/a,a/a,a/a,a/a,a/a,a/a,a/a,a/a,a/a,a/a,a/a,a/a,a/a,a/a"} {
		_, err := parseRootsName(bad)
		require.Error(t, err, bad)
	}
}

// A gateway whose account may not list Secrets hears the roots of ConfigMaps: of
// its own namespace and those that the mesh's configuration names, no others. It
// hears of a change, and when no roots are left that nobody is trusted.
func TestRootsOfConfigMaps(t *testing.T) {
	one, other := newOutsideRoot(t, "one").pem(), newOutsideRoot(t, "other").pem()
	object := func(namespace, name string, pem []byte) *corev1.ConfigMap {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace}, Data: map[string]string{"ca.crt": string(pem)}}
	}
	api := fake.NewClientset(object("shop", "own", one), object("bank", "named", one), object("bank", "secret-plans", one))
	api.PrependReactor("create", "subjectaccessreviews", func(a k8stesting.Action) (bool, runtime.Object, error) {
		return true, a.(k8stesting.CreateAction).GetObject(), nil // allowed is nothing
	})
	clients := func(mesh.ClusterID) (kubernetes.Interface, bool) { return api, true }
	core, logged := observer.New(zap.WarnLevel)
	r := run(t, func(c *Control) {
		rule := "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: to-bank, namespace: bank}\n" +
			"spec: {host: bank.test, trafficPolicy: {tls: {mode: SIMPLE, credentialName: \"configmap://bank/named\"}}}\n"
		require.NoError(t, os.WriteFile(filepath.Join(c.settings.Files, "east", "rule.yaml"), []byte(rule), 0o600))
		c.access.chain = authn.Chain{inEast{}}
		c.access.log, c.access.refusals = zap.New(core), rate.NewLimiter(rate.Inf, 1)
		var err error
		c.access.secrets, err = authn.NewSecretAccess(authn.SecretAccessConfig{Clients: clients})
		require.NoError(t, err)
		c.secrets.watches = newSecretWatches(clients, c.secrets.changed, zap.NewNop())
		t.Cleanup(c.secrets.watches.start(context.Background()))
	})
	r.connect(r.control.SecureGRPCAddr(), credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})) //nolint:gosec // it is our own
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(context.Background(), "authorization", "Bearer shop"), time.Minute)
	defer cancel()
	st, err := r.ads.StreamAggregatedResources(ctx)
	require.NoError(t, err)
	md, err := structpb.NewStruct(map[string]any{"CLUSTER_ID": "east", "NAMESPACE": "shop"})
	require.NoError(t, err)
	names := []string{"configmap://shop/own-cacert", "configmap://shop/absent,bank/named-cacert", "configmap://shop/absent", "configmap://bank/secret-plans", "kubernetes://edge"}
	require.NoError(t, st.Send(&discoveryv3.DiscoveryRequest{TypeUrl: typeSecret, ResourceNames: names,
		Node: &corev3.Node{Id: "router~10.1.0.10~edge-0.shop~shop.svc.cluster.local", Metadata: md}}))
	hear := func() map[string]*tlsv3.CertificateValidationContext {
		resp, err := st.Recv()
		require.NoError(t, err, "%v", logged.All())
		require.NoError(t, st.Send(&discoveryv3.DiscoveryRequest{TypeUrl: typeSecret, ResourceNames: names, VersionInfo: resp.VersionInfo, ResponseNonce: resp.Nonce}))
		out := map[string]*tlsv3.CertificateValidationContext{}
		for _, x := range resp.Resources {
			var s tlsv3.Secret
			require.NoError(t, x.UnmarshalTo(&s))
			out[s.Name] = s.GetValidationContext()
		}
		return out
	}
	pem := func(v *tlsv3.CertificateValidationContext) string { return string(v.GetTrustedCa().GetInlineBytes()) }
	await := func(enough func(map[string]*tlsv3.CertificateValidationContext) bool) map[string]*tlsv3.CertificateValidationContext {
		for {
			if got := hear(); enough(got) {
				return got
			}
		}
	}
	got := hear()
	require.Len(t, got, 3)
	require.Equal(t, string(one), pem(got[names[0]]))
	require.Equal(t, string(one), pem(got[names[1]]), "one of two is there")
	require.Nil(t, got[names[2]].GetTrustedCa())
	require.NotEmpty(t, got[names[2]].GetVerifyCertificateHash(), "nobody is trusted")

	_, err = api.CoreV1().ConfigMaps("shop").Update(ctx, object("shop", "own", other), metav1.UpdateOptions{})
	require.NoError(t, err)
	await(func(m map[string]*tlsv3.CertificateValidationContext) bool { return pem(m[names[0]]) == string(other) })
	_, err = api.CoreV1().ConfigMaps("shop").Create(ctx, object("shop", "absent", other), metav1.CreateOptions{})
	require.NoError(t, err)
	got = await(func(m map[string]*tlsv3.CertificateValidationContext) bool { return pem(m[names[2]]) == string(other) })
	require.Equal(t, string(other)+string(one), pem(got[names[1]]))
	require.NoError(t, api.CoreV1().ConfigMaps("shop").Delete(ctx, "own", metav1.DeleteOptions{}))
	await(func(m map[string]*tlsv3.CertificateValidationContext) bool {
		return len(m[names[0]].GetVerifyCertificateHash()) > 0
	})

	require.True(t, slices.ContainsFunc(logged.FilterMessage("secret left out").All(), func(e observer.LoggedEntry) bool {
		return e.ContextMap()["error"] == `roots "configmap://bank/secret-plans": ConfigMap bank/secret-plans is in another namespace than the proxy, which is in shop, and nothing in the mesh's configuration names it`
	}))
	for _, a := range api.Actions() {
		require.NotEqual(t, "secrets", a.GetResource().Resource, "no Secret is read")
	}
}
