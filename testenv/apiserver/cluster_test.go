package apiserver_test

import (
	"context"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/isthmus-mesh/isthmus/testenv/apiserver"
)

// patience of every wait in these tests; none is expected to take it.
const (
	patience = 30 * time.Second
	tick     = 20 * time.Millisecond
)

// TestClusters starts two clusters at once and has all tests share them.
func TestClusters(t *testing.T) {
	apiserver.NeedBinary(t)
	east, west := startPair(t)

	t.Run("api", func(t *testing.T) {
		for name, test := range map[string]func(*testing.T, *apiserver.Cluster){
			"slices follow pods":      testSlices,
			"token audiences":         testTokenAudiences,
			"token secret":            testTokenSecret,
			"reader":                  testReader,
			"protobuf":                testProtobuf,
			"apply":                   testApply,
			"istio definitions":       testIstioCRDs,
			"owner and namespace end": testDeletion,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t, east)
			})
		}
	})
	t.Run("clusters are apart", func(t *testing.T) { testApart(t, east, west) })
	t.Run("kill and restart", func(t *testing.T) { testKillRestart(t, east) })
	t.Run("pause and resume", func(t *testing.T) { testPauseResume(t, west) })
}

// startPair starts two clusters in parallel and stops them when the test ends.
func startPair(t *testing.T) (east, west *apiserver.Cluster) {
	t.Helper()
	began := time.Now()
	group, ctx := errgroup.WithContext(t.Context())
	start := func(name, cidr string, into **apiserver.Cluster) func() error {
		return func() (err error) {
			*into, err = apiserver.Start(ctx, apiserver.Config{Name: name, ServiceCIDR: cidr})
			if err == nil {
				t.Cleanup(func() { assert.NoError(t, (*into).Stop()) })
			}
			return err
		}
	}
	group.Go(start("east", "10.1.0.0/16", &east))
	group.Go(start("west", "10.2.0.0/16", &west))
	require.NoError(t, group.Wait())
	t.Logf("two clusters ready in %s", time.Since(began).Round(time.Millisecond))
	return east, west
}

// world is a node, a service, and a pod that is ready, as kubectl prints it.
const world = `
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Pod
  metadata:
    name: web-0
    namespace: slices
    labels: {app: web}
    uid: 2f1e4b0c-0000-4000-8000-000000000001
    resourceVersion: "77"
  spec:
    nodeName: node-1
    containers: [{name: web, image: web}]
  status:
    phase: Running
    podIP: 172.16.0.9
    podIPs: [{ip: 172.16.0.9}]
    conditions: [{type: Ready, status: "True"}]
- apiVersion: v1
  kind: Service
  metadata: {name: web, namespace: slices}
  spec:
    selector: {app: web}
    ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Node
metadata:
  name: node-1
  labels: {topology.kubernetes.io/region: r1, topology.kubernetes.io/zone: z1}
---
apiVersion: v1
kind: Namespace
metadata: {name: slices}
`

func testSlices(t *testing.T, c *apiserver.Cluster) {
	ctx := t.Context()
	require.NoError(t, c.Apply(ctx, []byte(world)))

	require.EventuallyWithT(t, func(t *assert.CollectT) {
		slices, err := c.Client().DiscoveryV1().EndpointSlices("slices").List(ctx, metav1.ListOptions{
			LabelSelector: "kubernetes.io/service-name=web",
		})
		require.NoError(t, err)
		require.Len(t, slices.Items, 1)
		require.Len(t, slices.Items[0].Endpoints, 1)
		endpoint := slices.Items[0].Endpoints[0]
		assert.Equal(t, []string{"172.16.0.9"}, endpoint.Addresses)
		assert.True(t, *endpoint.Conditions.Ready)
		assert.Equal(t, "z1", *endpoint.Zone)
	}, patience, tick)

	service, err := c.Client().CoreV1().Services("slices").Get(ctx, "web", metav1.GetOptions{})
	require.NoError(t, err)
	assert.Contains(t, service.Spec.ClusterIP, "10.1.", "taken from this cluster's range")
}

func testTokenAudiences(t *testing.T, c *apiserver.Cluster) {
	ctx := t.Context()
	token, err := c.Token(ctx, "tokens", "workload", "istio-ca")
	require.NoError(t, err)

	right := review(t, c, token, "istio-ca")
	assert.True(t, right.Authenticated)
	assert.Equal(t, "system:serviceaccount:tokens:workload", right.User.Username)
	assert.Equal(t, []string{"istio-ca"}, right.Audiences)

	wrong := review(t, c, token, "vault")
	assert.False(t, wrong.Authenticated)
	assert.NotEmpty(t, wrong.Error)

	assert.False(t, review(t, c, token+"x", "istio-ca").Authenticated, "broken signature")
}

// review asks the cluster about a token.
func review(t *testing.T, c *apiserver.Cluster, token string, audiences ...string) authenticationv1.TokenReviewStatus {
	t.Helper()
	answer, err := c.Client().AuthenticationV1().TokenReviews().Create(t.Context(), &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: audiences},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	return answer.Status
}

func testTokenSecret(t *testing.T, c *apiserver.Cluster) {
	ctx := t.Context()
	require.NoError(t, c.EnsureNamespace(ctx, "token-secret"))
	secrets := c.Client().CoreV1().Secrets("token-secret")
	_, err := secrets.Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Name: "default-token", Annotations: map[string]string{corev1.ServiceAccountNameKey: "default"},
		},
		Type: corev1.SecretTypeServiceAccountToken,
	}, metav1.CreateOptions{})
	require.NoError(t, err)

	require.EventuallyWithT(t, func(t *assert.CollectT) {
		secret, err := secrets.Get(ctx, "default-token", metav1.GetOptions{})
		require.NoError(t, err)
		assert.NotEmpty(t, secret.Data[corev1.ServiceAccountTokenKey])
		assert.NotEmpty(t, secret.Data[corev1.ServiceAccountRootCAKey])
	}, patience, tick)
}

func testReader(t *testing.T, c *apiserver.Cluster) {
	ctx := t.Context()
	kubeconfig, err := c.ReaderKubeconfig(ctx, "isthmus-reader")
	require.NoError(t, err)
	parsed, err := clientcmd.Load(kubeconfig)
	require.NoError(t, err)
	assert.Equal(t, "east", parsed.CurrentContext)
	reader := newClient(t, kubeconfig)

	_, err = reader.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	require.NoError(t, err, "may read at once")
	_, err = reader.CoreV1().ConfigMaps("default").Create(ctx,
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "no"}}, metav1.CreateOptions{})
	assert.True(t, apierrors.IsForbidden(err), "may not write: %v", err)

	again, err := c.ReaderKubeconfig(ctx, "isthmus-reader")
	require.NoError(t, err)
	assert.NotEqual(t, kubeconfig, again, "a fresh token")

	require.NoError(t, c.RevokeReader(ctx, "isthmus-reader"))
	_, err = reader.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	assert.True(t, apierrors.IsUnauthorized(err), "refused at once: %v", err)
}

// newClient makes a client from a kubeconfig; the end of the server is the end
// of its connections.
func newClient(t *testing.T, kubeconfig []byte) kubernetes.Interface {
	t.Helper()
	cfg, err := apiserver.RESTConfig(kubeconfig)
	require.NoError(t, err)
	client, err := kubernetes.NewForConfig(cfg)
	require.NoError(t, err)
	return client
}

// recorder remembers the content type of the last response.
type recorder struct {
	next http.RoundTripper
	last *atomic.Value
}

func (r recorder) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := r.next.RoundTrip(request)
	if err == nil {
		r.last.Store(response.Header.Get("Content-Type"))
	}
	return response, err
}

func testProtobuf(t *testing.T, c *apiserver.Cluster) {
	var last atomic.Value
	cfg := c.REST()
	cfg.Wrap(func(next http.RoundTripper) http.RoundTripper { return recorder{next: next, last: &last} })
	client, err := kubernetes.NewForConfig(cfg)
	require.NoError(t, err)

	list, err := client.CoreV1().Services("").List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	assert.NotEmpty(t, list.Items, "has at least the service kubernetes")
	assert.NotEmpty(t, list.ResourceVersion)
	assert.Equal(t, "application/vnd.kubernetes.protobuf", last.Load())
}

func testDeletion(t *testing.T, c *apiserver.Cluster) {
	ctx := t.Context()
	require.NoError(t, c.EnsureNamespace(ctx, "doomed"))
	maps := c.Client().CoreV1().ConfigMaps("doomed")
	owner, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "owner"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	_, err = maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{
		Name: "owned",
		OwnerReferences: []metav1.OwnerReference{
			{APIVersion: "v1", Kind: "ConfigMap", Name: owner.Name, UID: owner.UID},
		},
	}}, metav1.CreateOptions{})
	require.NoError(t, err)

	require.NoError(t, maps.Delete(ctx, "owner", metav1.DeleteOptions{}))
	eventuallyGone(t, func() error {
		_, err := maps.Get(ctx, "owned", metav1.GetOptions{})
		return err
	})
	namespaces := c.Client().CoreV1().Namespaces()
	require.NoError(t, namespaces.Delete(ctx, "doomed", metav1.DeleteOptions{}))
	eventuallyGone(t, func() error {
		_, err := namespaces.Get(ctx, "doomed", metav1.GetOptions{})
		return err
	})
}

func eventuallyGone(t *testing.T, get func() error) {
	t.Helper()
	require.Eventually(t, func() bool { return apierrors.IsNotFound(get()) }, patience, tick)
}

func testApart(t *testing.T, east, west *apiserver.Cluster) {
	ctx := t.Context()
	assert.NotEqual(t, east.URL(), west.URL())
	token, err := east.Token(ctx, "apart", "workload")
	require.NoError(t, err)
	assert.True(t, review(t, east, token).Authenticated)
	assert.False(t, review(t, west, token).Authenticated, "signed by another cluster")

	_, err = west.Client().CoreV1().Namespaces().Get(ctx, "apart", metav1.GetOptions{})
	assert.True(t, apierrors.IsNotFound(err), "%v", err)
}

func testKillRestart(t *testing.T, c *apiserver.Cluster) {
	ctx := t.Context()
	url := c.URL()
	token, err := c.Token(ctx, "restart", "workload")
	require.NoError(t, err)
	kubeconfig, err := c.ReaderKubeconfig(ctx, "restart-reader")
	require.NoError(t, err)

	c.Kill()
	require.False(t, c.Running())
	_, err = c.Client().CoreV1().Namespaces().Get(ctx, "restart", metav1.GetOptions{})
	require.Error(t, err, "nobody answers")

	began := time.Now()
	require.NoError(t, c.Restart(ctx))
	t.Logf("restarted in %s", time.Since(began).Round(time.Millisecond))
	require.True(t, c.Running())
	assert.Equal(t, url, c.URL())

	_, err = c.Client().CoreV1().Namespaces().Get(ctx, "restart", metav1.GetOptions{})
	require.NoError(t, err, "data and the administrator's certificate outlive a kill")
	assert.True(t, review(t, c, token).Authenticated, "tokens outlive a kill")
	_, err = newClient(t, kubeconfig).CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	require.NoError(t, err, "kubeconfigs outlive a kill")
}

func testPauseResume(t *testing.T, c *apiserver.Cluster) {
	ctx := t.Context()
	get := func(ctx context.Context) error {
		_, err := c.Client().CoreV1().Namespaces().Get(ctx, "default", metav1.GetOptions{})
		return err
	}
	require.NoError(t, get(ctx))

	c.Pause()
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, get(short), context.DeadlineExceeded, "connected, and silent")
	require.True(t, c.Running())

	waiting := make(chan error, 1)
	go func() { waiting <- get(ctx) }()
	c.Resume()
	require.NoError(t, <-waiting, "asked while it was paused")
}

func testIstioCRDs(t *testing.T, c *apiserver.Cluster) {
	ctx := t.Context()
	require.NoError(t, c.InstallIstioCRDs(ctx))
	require.NoError(t, c.InstallIstioCRDs(ctx), "may be done twice")
	require.NoError(t, c.Apply(ctx, []byte(`
apiVersion: networking.istio.io/v1beta1
kind: Gateway
metadata: {name: cross-network}
spec:
  selector: {istio: eastwestgateway}
  servers:
  - port: {number: 15443, name: tls, protocol: TLS}
    tls: {mode: AUTO_PASSTHROUGH}
    hosts: ["*.local"]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: eastwest, namespace: default}
spec: {gatewayClassName: istio}
status: {addresses: [{type: IPAddress, value: 192.0.2.1}]}
`)))

	got, err := c.Dynamic().Resource(schema.GroupVersionResource{
		Group: "networking.istio.io", Version: "v1", Resource: "gateways",
	}).Namespace("default").Get(ctx, "cross-network", metav1.GetOptions{})
	require.NoError(t, err)
	assert.Contains(t, got.Object["spec"], "servers", "nothing is pruned")

	got, err = c.Dynamic().Resource(schema.GroupVersionResource{
		Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gateways",
	}).Namespace("default").Get(ctx, "eastwest", metav1.GetOptions{})
	require.NoError(t, err)
	assert.Contains(t, got.Object["status"], "addresses", "status is applied too")
}

func testApply(t *testing.T, c *apiserver.Cluster) {
	ctx := t.Context()
	require.NoError(t, c.Apply(ctx, []byte(`
apiVersion: example.test/v1
kind: Widget
metadata: {name: one, namespace: widgets}
spec: {size: 3}
---
apiVersion: v1
kind: Namespace
metadata: {name: widgets}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.test}
spec:
  group: example.test
  scope: Namespaced
  names: {kind: Widget, listKind: WidgetList, plural: widgets, singular: widget}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties: {size: {type: integer, minimum: 1}}
`)), "in any order")

	widget := func(size string) []byte {
		return []byte("{apiVersion: example.test/v1, kind: Widget, metadata: {name: one, namespace: widgets}, spec: {size: " + size + "}}")
	}
	require.NoError(t, c.Apply(ctx, widget("4")))
	err := c.Apply(ctx, widget("0"))
	require.ErrorContains(t, err, "apply Widget widgets/one in east")
	assert.True(t, apierrors.IsInvalid(err), "the server validates: %v", err)

	got, err := c.Dynamic().Resource(schema.GroupVersionResource{
		Group: "example.test", Version: "v1", Resource: "widgets",
	}).Namespace("widgets").Get(ctx, "one", metav1.GetOptions{})
	require.NoError(t, err)
	assert.Equal(t, map[string]any{"size": int64(4)}, got.Object["spec"])
}
