package install

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/install"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/join"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/serve"
	"github.com/isthmus-mesh/isthmus/multicluster"
	"github.com/isthmus-mesh/isthmus/testenv/apiserver"
	"github.com/isthmus-mesh/isthmus/testenv/plane"
)

// system is the system namespace.
const system = apiserver.SystemNamespace

// shared are the API servers of all tests, which run one after the other: the
// primary east, the remotes west and south.
var shared struct {
	once     sync.Once
	clusters map[string]*apiserver.Cluster
	err      error
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(lending{m}) }

// lending stops the clusters before leaks are looked for.
type lending struct{ *testing.M }

func (l lending) Run() int {
	defer func() {
		http.DefaultClient.CloseIdleConnections()
		for _, c := range shared.clusters {
			_ = c.Stop()
		}
	}()
	return l.M.Run()
}

// world is a primary in which the chart is installed, and two clusters that may
// join it.
type world struct {
	t        *testing.T
	ctx      context.Context
	clusters map[string]*apiserver.Cluster
	webhooks string // address of the webhooks, the same for all control planes
	// kubeconfig of the control plane's account in the primary.
	kubeconfig string

	mu     sync.Mutex
	offset time.Duration // of the control planes' clock; guarded by mu
}

func newWorld(t *testing.T) *world {
	t.Helper()
	apiserver.NeedBinary(t)
	shared.once.Do(startClusters)
	require.NoError(t, shared.err)
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	t.Cleanup(cancel)
	w := &world{t: t, ctx: ctx, clusters: shared.clusters}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	w.webhooks = strings.Replace(l.Addr().String(), "127.0.0.1", "localhost", 1)
	require.NoError(t, l.Close())
	w.installPrimary()
	token, err := w.clusters["east"].Token(ctx, system, "istiod")
	require.NoError(t, err)
	w.kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, os.WriteFile(w.kubeconfig, withToken(t, w.clusters["east"].Kubeconfig(), token), 0o600))
	return w
}

func startClusters() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	names := []string{"east", "west", "south"}
	shared.clusters = map[string]*apiserver.Cluster{}
	started, errs := make([]*apiserver.Cluster, len(names)), make([]error, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() {
			started[i], errs[i] = apiserver.Start(ctx, apiserver.Config{Name: name})
			if errs[i] == nil {
				errs[i] = prepare(ctx, started[i])
			}
		})
	}
	wg.Wait()
	for i, name := range names {
		if started[i] != nil {
			shared.clusters[name] = started[i]
		}
	}
	shared.err = errors.Join(errs...)
}

// prepare makes what users have in their clusters: a namespace that asks for
// proxies, with an account, and a node.
func prepare(ctx context.Context, c *apiserver.Cluster) error {
	if err := c.EnsureNamespace(ctx, "shop"); err != nil {
		return err
	}
	return c.Apply(ctx, []byte(`
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio-injection: enabled}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: web, namespace: shop}
`))
}

// withToken returns a kubeconfig for a token.
func withToken(t *testing.T, kubeconfig []byte, token string) []byte {
	t.Helper()
	cfg, err := clientcmd.Load(kubeconfig)
	require.NoError(t, err)
	for name := range cfg.AuthInfos {
		cfg.AuthInfos[name] = &clientcmdapi.AuthInfo{Token: token}
	}
	raw, err := clientcmd.Write(*cfg)
	require.NoError(t, err)
	return raw
}

// installPrimary installs the chart in east, whose API server calls the webhooks
// where control planes of the test listen, and takes it out again at the end.
func (w *world) installPrimary() {
	w.t.Helper()
	plan, err := install.Input{Set: []string{"global.multiCluster.clusterName=east", "global.network=network-1",
		"istiodRemote.injectionURL=https://" + w.webhooks + "/inject", "base.validationURL=https://" + w.webhooks + "/validate"}}.Plan()
	require.NoError(w.t, err)
	i := &install.Installer{Target: w.target("east"), Out: w.t.Output(), NoWait: true, Timeout: plane.Patience}
	require.NoError(w.t, i.Install(w.ctx, plan))
	w.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(w.ctx), plane.Patience)
		defer cancel()
		for _, x := range plan.Installations {
			if err := i.Uninstall(ctx, x.Release, x.Namespace); err != nil {
				w.t.Error(err)
			}
		}
		for _, name := range []string{"istio-ca-secret", "isthmus-ca-rotation"} {
			if err := w.clusters["east"].Client().CoreV1().Secrets(system).Delete(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
				w.t.Error(err)
			}
		}
	})
}

// target is a cluster as its administrator.
func (w *world) target(cluster string) *install.Target {
	w.t.Helper()
	t, err := install.NewTarget(cluster, w.clusters[cluster].REST())
	require.NoError(w.t, err)
	return t
}

// now is the clock of the control planes.
func (w *world) now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Now().Add(w.offset)
}

// forward sets that clock forward.
func (w *world) forward(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.offset += d
}

// begin starts a control plane without waiting for it.
func (w *world) begin(pod string, change ...func(*serve.Settings)) *plane.Plane {
	w.t.Helper()
	installed := func(s *serve.Settings) {
		s.SecureGRPCAddr, s.HTTPSAddr, s.Primary, s.PodName = "127.0.0.1:0", w.webhooks, "east", pod
		s.Kubeconfig, s.External = w.kubeconfig, true
		s.Security.CustomHosts, s.Security.Clock = []string{"localhost"}, w.now
		s.ShutdownDuration = time.Second
	}
	return plane.Start(w.t, append([]func(*serve.Settings){installed}, change...)...)
}

// start starts a control plane and waits until it is ready.
func (w *world) start(pod string, change ...func(*serve.Settings)) *plane.Plane {
	w.t.Helper()
	p := w.begin(pod, change...)
	p.AwaitReady()
	return p
}

// eventually waits until ok holds.
func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	require.Eventually(w.t, ok, plane.Patience, 20*time.Millisecond, what)
}

// options joins a cluster as the command line does.
func (w *world) options(cluster, network string, change ...func(*join.Options)) join.Options {
	w.t.Helper()
	o := join.Options{Name: cluster, Primary: w.target("east"), Remote: w.target(cluster), Out: w.t.Output(), Timeout: plane.Patience, Poll: 20 * time.Millisecond,
		Values: map[string]any{
			"global":       map[string]any{"network": network},
			"istiodRemote": map[string]any{"injectionURL": "https://" + w.webhooks + "/inject/cluster/" + cluster + "/net/" + network}}}
	for _, f := range change {
		f(&o)
	}
	return o
}

// join joins a cluster, which leaves at the end of the test.
func (w *world) join(cluster, network string, change ...func(*join.Options)) {
	w.t.Helper()
	w.t.Cleanup(func() { w.leave(context.WithoutCancel(w.ctx), cluster) })
	require.NoError(w.t, join.Join(w.ctx, w.options(cluster, network, change...)))
}

func (w *world) leave(ctx context.Context, cluster string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(ctx, plane.Patience)
	defer cancel()
	require.NoError(w.t, join.Leave(ctx, w.options(cluster, "", func(o *join.Options) { o.Values, o.PrimaryName = nil, "east" })))
	require.Eventually(w.t, func() bool {
		_, err := w.clusters[cluster].Client().CoreV1().Namespaces().Get(ctx, system, metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	}, plane.Patience, 20*time.Millisecond, "namespace %s of cluster %s is gone", system, cluster)
}

// pod is a pod of shop as users write it.
func pod(name string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop", Labels: map[string]string{"app": "web"}},
		Spec: corev1.PodSpec{ServiceAccountName: "web", Containers: []corev1.Container{{Name: "app", Image: "app", Ports: []corev1.ContainerPort{{ContainerPort: 8080}}}}}}
}

// create creates a pod; the API server may need a moment to learn the bundle
// that it verifies the webhook with.
func (w *world) create(cluster string, p *corev1.Pod) *corev1.Pod {
	w.t.Helper()
	api := w.clusters[cluster].Client().CoreV1().Pods(p.Namespace)
	var made *corev1.Pod
	var err error
	if !plane.Wait(w.ctx, func() bool {
		made, err = api.Create(w.ctx, p, metav1.CreateOptions{})
		return err == nil
	}) {
		w.t.Fatalf("create pod %s in cluster %s: %v", p.Name, cluster, err)
	}
	w.t.Cleanup(func() {
		_ = api.Delete(context.WithoutCancel(w.ctx), p.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64)})
	})
	return made
}

// proxyEnv is the environment of a pod's proxy, nil if it has none.
func proxyEnv(p *corev1.Pod) map[string]string {
	for _, c := range append(p.Spec.InitContainers, p.Spec.Containers...) {
		if c.Name != "istio-proxy" {
			continue
		}
		out := map[string]string{}
		for _, e := range c.Env {
			out[e.Name] = e.Value
		}
		return out
	}
	return nil
}

// tokenOf is the token of a remote secret as a control plane sees it.
func tokenOf(p *plane.Plane, cluster string) multicluster.Token {
	for _, t := range p.Overview().Tokens {
		if string(t.Cluster) == cluster {
			return t
		}
	}
	return multicluster.Token{}
}

// events lists the reasons and messages of Events about an object of the primary.
func (w *world) events(name string) []string {
	list, err := w.clusters["east"].Client().CoreV1().Events(system).List(w.ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=" + name})
	if err != nil {
		return nil
	}
	out := make([]string, len(list.Items))
	for i, e := range list.Items {
		out[i] = e.Reason + ": " + e.Message
	}
	return out
}

// patchOf makes a merge patch.
func patchOf(t *testing.T, format string, args ...any) []byte {
	t.Helper()
	raw := []byte(fmt.Sprintf(format, args...))
	require.True(t, json.Valid(raw), "%s", raw)
	return raw
}
