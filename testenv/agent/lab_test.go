package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/isthmus-mesh/isthmus/ca"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/serve"
	"github.com/isthmus-mesh/isthmus/multicluster"
	"github.com/isthmus-mesh/isthmus/testenv/apiserver"
	"github.com/isthmus-mesh/isthmus/testenv/plane"
)

// clusters are two API servers for all tests of the package: c1, the primary,
// and c2, a remote.
var clusters struct {
	once sync.Once
	c1   *apiserver.Cluster
	c2   *apiserver.Cluster
	err  error
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(lending{m}) }

// lending stops the clusters before leaks are looked for.
type lending struct{ *testing.M }

func (l lending) Run() int {
	code := l.M.Run()
	http.DefaultClient.CloseIdleConnections()
	for _, c := range []*apiserver.Cluster{clusters.c1, clusters.c2} {
		if c != nil {
			_ = c.Stop()
		}
	}
	return code
}

// lab is a control plane in c1, and a mesh of c1 and c2.
type lab struct {
	t      *testing.T
	ctx    context.Context
	c1, c2 *apiserver.Cluster
	plane  *plane.Plane
}

// newLab starts a control plane of its own for a test, with a CA of its own.
func newLab(t *testing.T, change ...func(*serve.Settings)) *lab {
	t.Helper()
	apiserver.NeedBinary(t)
	clusters.once.Do(func() {
		var wg sync.WaitGroup
		var errs [2]error
		wg.Go(func() { clusters.c1, errs[0] = apiserver.Start(context.Background(), apiserver.Config{Name: "c1"}) })
		wg.Go(func() { clusters.c2, errs[1] = apiserver.Start(context.Background(), apiserver.Config{Name: "c2"}) })
		wg.Wait()
		if clusters.err = errors.Join(errs[:]...); clusters.err == nil {
			clusters.err = prepare(context.Background())
		}
	})
	require.NoError(t, clusters.err)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	l := &lab{t: t, ctx: ctx, c1: clusters.c1, c2: clusters.c2}
	for _, name := range []string{ca.SelfSignedSecret, ca.RotationSecret} { // a CA of its own for each test
		if err := l.c1.Client().CoreV1().Secrets("istio-system").Delete(ctx, name, metav1.DeleteOptions{}); !apierrors.IsNotFound(err) {
			require.NoError(t, err)
		}
	}
	l.start(change...)
	return l
}

// prepare makes what every test finds.
func prepare(ctx context.Context) error {
	for _, c := range []*apiserver.Cluster{clusters.c1, clusters.c2} {
		for _, ns := range []string{"istio-system", "shop"} {
			if err := c.EnsureNamespace(ctx, ns); err != nil {
				return err
			}
		}
		if err := c.Apply(ctx, []byte(objects)); err != nil {
			return err
		}
	}
	return clusters.c1.InstallIstioCRDs(ctx)
}

const objects = `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: web, namespace: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop, labels: {app: web}}
spec:
  serviceAccountName: web
  nodeName: node1
  containers: [{name: app, image: app, ports: [{containerPort: 8080}]}]
`

func (l *lab) start(change ...func(*serve.Settings)) {
	l.t.Helper()
	l.begin(change...)
	l.plane.AwaitReady()
}

// begin starts a control plane without waiting for it.
func (l *lab) begin(change ...func(*serve.Settings)) {
	l.t.Helper()
	kubeconfig := l.t.TempDir() + "/kubeconfig"
	require.NoError(l.t, os.WriteFile(kubeconfig, l.c1.Kubeconfig(), 0o600))
	in := func(s *serve.Settings) {
		s.SecureGRPCAddr, s.Primary, s.PodName, s.Kubeconfig = "127.0.0.1:0", "c1", "istiod-0", kubeconfig
	}
	l.plane = plane.Start(l.t, append([]func(*serve.Settings){in}, change...)...)
}

// in is the lab for a part of the test.
func (l *lab) in(t *testing.T) *lab {
	c := *l
	c.t = t
	return &c
}

func (l *lab) eventually(what string, ok func() bool) {
	l.t.Helper()
	if !assert.Eventually(l.t, ok, plane.Patience, 20*time.Millisecond, what) {
		l.t.Fatalf("not ready because: %q", l.plane.NotReady())
	}
}

// join makes c2 a remote, and waits until it has been read.
func (l *lab) join() {
	l.t.Helper()
	kubeconfig, err := l.c2.ReaderKubeconfig(l.ctx, multicluster.ReaderAccount)
	require.NoError(l.t, err)
	secrets := l.c1.Client().CoreV1().Secrets("istio-system")
	_, err = secrets.Create(l.ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "remote-c2", Labels: map[string]string{multicluster.SecretLabel: "true"}},
		Data: map[string][]byte{"c2": kubeconfig}}, metav1.CreateOptions{})
	require.NoError(l.t, err)
	l.t.Cleanup(func() { _ = secrets.Delete(context.WithoutCancel(l.ctx), "remote-c2", metav1.DeleteOptions{}) })
	l.eventually("c2 has been read", func() bool {
		for _, s := range l.plane.Clusters() {
			if s.ID == "c2" {
				return s.SyncStatus == multicluster.StatusSynced
			}
		}
		return false
	})
}

// podToken is a token of pod web-0 of service account web, as it is mounted.
func (l *lab) podToken(c *apiserver.Cluster, audience string) string {
	l.t.Helper()
	pod, err := c.Client().CoreV1().Pods("shop").Get(l.ctx, "web-0", metav1.GetOptions{})
	require.NoError(l.t, err)
	seconds := int64(43200)
	answer, err := c.Client().CoreV1().ServiceAccounts("shop").CreateToken(l.ctx, "web", &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{Audiences: []string{audience}, ExpirationSeconds: &seconds,
			BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID}},
	}, metav1.CreateOptions{})
	require.NoError(l.t, err)
	return answer.Status.Token
}

// agent calls with what the configuration says, else as pod web-0 of c1.
func (l *lab) agent(change ...func(*Config)) *Agent {
	l.t.Helper()
	cfg := Config{Address: l.plane.SecureGRPCAddr(), Roots: l.plane.RootsPEM(), Cluster: "c1"}
	for _, f := range change {
		f(&cfg)
	}
	a, err := Dial(cfg)
	require.NoError(l.t, err)
	l.t.Cleanup(func() { _ = a.Close() })
	return a
}

// web is pod web-0 of c1 with its token.
func (l *lab) web(change ...func(*Config)) *Agent {
	l.t.Helper()
	token := l.podToken(l.c1, "istio-ca")
	return l.agent(append([]func(*Config){func(c *Config) { c.Token = token }}, change...)...)
}

func webNode(change ...func(*Node)) Node {
	n := Node{Name: "web-0", Namespace: "shop", Cluster: "c1", ServiceAccount: "web", Network: "net1", IP: "10.1.0.10"}
	for _, f := range change {
		f(&n)
	}
	return n
}

// open opens a stream.
func (l *lab) open(a *Agent, n Node, delta bool) *Stream {
	l.t.Helper()
	node, err := n.Proto()
	require.NoError(l.t, err)
	s, err := a.Open(l.ctx, node, delta)
	require.NoError(l.t, err)
	l.t.Cleanup(s.Close)
	return s
}

func (l *lab) next(s *Stream, typeURL string) Response {
	l.t.Helper()
	r, err := s.Next(l.ctx, typeURL)
	require.NoError(l.t, err)
	return r
}

func (l *lab) ask(s *Stream, r Request) {
	l.t.Helper()
	require.NoError(l.t, s.Ask(r))
}

// refused asserts that the CSR service refuses with a code.
func (l *lab) refused(a *Agent, want codes.Code, says string) {
	l.t.Helper()
	_, err := a.Certificate(l.ctx, CSR{URI: "spiffe://cluster.local/ns/shop/sa/web", ECDSA: true})
	require.Equal(l.t, want, status.Code(err), "%v", err)
	require.ErrorContains(l.t, err, says)
}

// bothProtocols runs a test in delta and in state of the world.
func bothProtocols(t *testing.T, f func(t *testing.T, delta bool)) {
	for _, delta := range []bool{true, false} {
		t.Run(map[bool]string{true: "delta", false: "state of the world"}[delta], func(t *testing.T) { f(t, delta) })
	}
}

func spiffe(ns, sa string) string { return fmt.Sprintf("spiffe://cluster.local/ns/%s/sa/%s", ns, sa) }

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return b
}

// metric reads a series of the control plane, "0" if there is none.
func (l *lab) metric(series string) string {
	l.t.Helper()
	return cmp.Or(l.plane.Metric(series), "0")
}
