package ca_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	securityapi "istio.io/api/security/v1alpha1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/isthmus-mesh/isthmus/ca"
	"github.com/isthmus-mesh/isthmus/ca/authn"
	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/testenv/apiserver"
)

// realWorld is two real clusters and a control plane's CA in the first.
type realWorld struct {
	east, west *apiserver.Cluster
	mu         sync.Mutex
	clients    map[mesh.ClusterID]kubernetes.Interface
	authority  *ca.Authority
	service    *ca.Service
	access     *authn.SecretAccess
}

func (w *realWorld) client(id mesh.ClusterID) (kubernetes.Interface, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c, ok := w.clients[id]
	return c, ok
}

func startCluster(t *testing.T, name string) *apiserver.Cluster {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	c, err := apiserver.Start(ctx, apiserver.Config{Name: name})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Stop()) })
	for _, ns := range []string{"istio-system", "shop"} {
		require.NoError(t, c.EnsureNamespace(ctx, ns))
	}
	return c
}

// TestRealAPIServers asks real API servers what our fake ones only pretend to
// know: tokens bound to pods, audiences, another cluster's tokens, a role for
// secrets, and one root for two replicas that start at once.
func TestRealAPIServers(t *testing.T) {
	apiserver.NeedBinary(t)
	w := &realWorld{east: startCluster(t, "east"), west: startCluster(t, "west")}
	w.clients = map[mesh.ClusterID]kubernetes.Interface{"east": w.east.Client(), "west": w.west.Client()}
	stop := w.start(t)
	defer stop()
	t.Run("roots reach every namespace", func(t *testing.T) {
		require.Eventually(t, func() bool {
			cm, err := w.east.Client().CoreV1().ConfigMaps("shop").Get(t.Context(), ca.RootConfigMap, metav1.GetOptions{})
			return err == nil && cm.Data["root-cert.pem"] == string(w.authority.RootsPEM())
		}, 30*time.Second, 50*time.Millisecond)
	})
	pod, token := boundToken(t, w.west, "istio-ca")
	t.Run("pod-bound token of a remote", func(t *testing.T) {
		resp, err := w.ask(t, token, "west")
		require.NoError(t, err)
		block, _ := pem.Decode([]byte(resp.CertChain[0]))
		leaf, err := x509.ParseCertificate(block.Bytes)
		require.NoError(t, err)
		require.Equal(t, "spiffe://cluster.local/ns/shop/sa/default", leaf.URIs[0].String())
		require.Equal(t, string(w.authority.RootsPEM()), resp.CertChain[len(resp.CertChain)-1])
	})
	t.Run("refused", func(t *testing.T) {
		_, wrong := boundToken(t, w.west, "other")
		for name, tc := range map[string]struct{ token, cluster string }{
			"another cluster's token": {token, "east"},
			"no cluster means ours":   {token, ""},
			"unknown cluster":         {token, "north"},
			"wrong audience":          {wrong, "west"},
			"no token":                {"", "west"},
		} {
			_, err := w.ask(t, tc.token, tc.cluster)
			require.Equal(t, codes.Unauthenticated, status.Code(err), name)
		}
	})
	t.Run("secrets by role", func(t *testing.T) {
		caller := authn.Caller{Identity: mesh.Identity{TrustDomain: "td", Namespace: "shop", ServiceAccount: "default"}, Cluster: "west", Expiry: time.Now()}
		ok, err := w.access.MayListSecrets(t.Context(), caller, "shop")
		require.NoError(t, err)
		require.False(t, ok)
		require.NoError(t, w.west.Apply(t.Context(), []byte(secretsRole)))
		require.Eventually(t, func() bool {
			ok, err = w.access.MayListSecrets(t.Context(), caller, "shop")
			return err == nil && ok
		}, 20*time.Second, 50*time.Millisecond)
		ok, err = w.access.MayListSecrets(t.Context(), caller, "istio-system")
		require.NoError(t, err)
		require.False(t, ok)
	})
	t.Run("deleted pod", func(t *testing.T) {
		zero := int64(0)
		require.NoError(t, w.west.Client().CoreV1().Pods("shop").Delete(t.Context(), pod, metav1.DeleteOptions{GracePeriodSeconds: &zero}))
		require.Eventually(t, func() bool {
			_, err := w.ask(t, token, "west")
			return status.Code(err) == codes.Unauthenticated
		}, 30*time.Second, 100*time.Millisecond)
	})
	t.Run("API server that hangs", func(t *testing.T) {
		_, fresh := boundToken(t, w.west, "istio-ca")
		w.west.Pause()
		defer w.west.Resume()
		_, err := w.ask(t, fresh, "west")
		require.Equal(t, codes.Unavailable, status.Code(err))
	})
	t.Run("cluster that left", func(t *testing.T) {
		_, fresh := boundToken(t, w.west, "istio-ca")
		_, err := w.ask(t, fresh, "west")
		require.NoError(t, err)
		w.mu.Lock()
		delete(w.clients, "west")
		w.mu.Unlock()
		_, err = w.ask(t, fresh, "west")
		require.Equal(t, codes.Unauthenticated, status.Code(err), "at once, whatever was cached")
	})
}

// start runs two replicas' keepers, which must agree, and one distributor.
func (w *realWorld) start(t *testing.T) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	var authorities []*ca.Authority
	for _, name := range []string{"istiod-0", "istiod-1"} {
		authority, err := ca.NewAuthority(ca.AuthorityConfig{})
		require.NoError(t, err)
		self, err := ca.NewSelfSigned(ca.SelfSignedConfig{Client: w.east.Client(), Cluster: "east", Namespace: "istio-system", Replica: name})
		require.NoError(t, err)
		keeper, err := ca.NewKeeper(ca.KeeperConfig{
			Authority: authority, Client: w.east.Client(), Cluster: "east", Namespace: "istio-system", Replica: name,
			Sources: []ca.Source{ca.NewSecretSource(w.east.Client(), "east", "istio-system", nil), self},
		})
		require.NoError(t, err)
		running.Go(func() { _ = keeper.Run(ctx) })
		authorities = append(authorities, authority)
	}
	require.Eventually(t, func() bool { return authorities[0].Ready() && authorities[1].Ready() }, 30*time.Second, 20*time.Millisecond)
	require.Equal(t, string(authorities[0].RootsPEM()), string(authorities[1].RootsPEM()))
	w.authority = authorities[0]
	distributor, err := ca.NewDistributor(ca.DistributorConfig{
		Client: w.east.Client(), Cluster: "east", SystemNamespace: "istio-system", Replica: "istiod-0",
		Bundle: w.authority.RootsPEM, OnChange: w.authority.OnChange,
	})
	require.NoError(t, err)
	running.Go(func() { _ = distributor.Run(ctx) })

	kube, err := authn.NewKube(authn.KubeConfig{
		Primary: "east", Clients: w.client, Timeout: 3 * time.Second, CacheTTL: time.Second,
		TrustDomain: func(mesh.ClusterID) (string, bool) { return "cluster.local", true },
	})
	require.NoError(t, err)
	w.service, err = ca.NewService(ca.ServiceConfig{Authority: w.authority, Authenticator: authn.Chain{kube}})
	require.NoError(t, err)
	w.access, err = authn.NewSecretAccess(authn.SecretAccessConfig{Clients: w.client, DenyTTL: -1})
	require.NoError(t, err)
	return func() { cancel(); running.Wait() }
}

func (w *realWorld) ask(t *testing.T, token, cluster string) (*securityapi.IstioCertificateResponse, error) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	require.NoError(t, err)
	md := metadata.MD{}
	if token != "" {
		md.Set("authorization", "Bearer "+token)
	}
	if cluster != "" {
		md.Set("clusterid", cluster)
	}
	ctx := peer.NewContext(t.Context(), &peer.Peer{Addr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort("10.0.0.1:1"))})
	return w.service.CreateCertificate(metadata.NewIncomingContext(ctx, md), &securityapi.IstioCertificateRequest{
		Csr: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), ValidityDuration: 3600,
	})
}

// boundToken makes a pod and a token bound to it.
func boundToken(t *testing.T, c *apiserver.Cluster, audience string) (pod, token string) {
	t.Helper()
	var made *corev1.Pod
	require.Eventually(t, func() bool { // the default account comes a little later
		var err error
		made, err = c.Client().CoreV1().Pods("shop").Create(t.Context(), &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "web-"},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "app"}}},
		}, metav1.CreateOptions{})
		return err == nil
	}, 30*time.Second, 50*time.Millisecond)
	seconds := int64(3600)
	tr, err := c.Client().CoreV1().ServiceAccounts("shop").CreateToken(t.Context(), "default", &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{
			Audiences: []string{audience}, ExpirationSeconds: &seconds,
			BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: made.Name, UID: made.UID},
		},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	return made.Name, tr.Status.Token
}

const secretsRole = `
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: secrets, namespace: shop}
rules: [{apiGroups: [""], resources: [secrets], verbs: [get, watch, list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: secrets, namespace: shop}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: secrets}
subjects: [{kind: ServiceAccount, name: default, namespace: shop}]
`
