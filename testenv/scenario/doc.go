// Package scenario tests the whole control plane with real parts: real API
// servers as clusters, the wiring that users run, and proxies that speak ADS
// over real streams and record what they hear.
//
// A scenario is a test: it starts a [World], changes something in a cluster or
// does something to one (kills it, pauses it, rotates its credentials), and
// asserts what proxies received, and that nothing else was pushed.
package scenario

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/serve"
	"github.com/isthmus-mesh/isthmus/testenv/apiserver"
	"github.com/isthmus-mesh/isthmus/testenv/recorder"
	"github.com/isthmus-mesh/isthmus/testenv/validate"
)

// patience is how long a scenario waits for something that must happen. It is
// generous because machines are: nothing is asserted about time.
const patience = 60 * time.Second

// World is a mesh of real API servers and, once started, one control plane.
type World struct {
	t   *testing.T
	ctx context.Context

	Clusters map[string]*apiserver.Cluster
	// Primary is the name of the first cluster.
	Primary string
	Control *serve.Control

	stop context.CancelFunc
	done chan error
}

// NewWorld starts one API server per name, all at once. A name may carry a
// network after a slash ("west/network-2"), which labels the system namespace.
func NewWorld(t *testing.T, names ...string) *World {
	t.Helper()
	apiserver.NeedBinary(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	t.Cleanup(cancel)
	w := &World{t: t, ctx: ctx, Clusters: map[string]*apiserver.Cluster{}}
	var (
		wg sync.WaitGroup
		mu sync.Mutex
	)
	for i, n := range names {
		name, network, _ := strings.Cut(n, "/")
		if i == 0 {
			w.Primary = name
		}
		wg.Go(func() {
			c, err := startCluster(ctx, name, network)
			mu.Lock()
			defer mu.Unlock()
			if c != nil {
				w.Clusters[name] = c
				t.Cleanup(func() { _ = c.Stop() })
			}
			if err != nil {
				t.Errorf("start cluster %s: %v", name, err)
			}
		})
	}
	wg.Wait()
	require.Len(t, w.Clusters, len(names))
	return w
}

func startCluster(ctx context.Context, name, network string) (*apiserver.Cluster, error) {
	c, err := apiserver.Start(ctx, apiserver.Config{Name: name})
	if err != nil {
		return nil, err
	}
	if err := c.InstallIstioCRDs(ctx); err != nil {
		return c, err
	}
	var labels string
	if network != "" {
		labels = fmt.Sprintf("\n  labels: {topology.istio.io/network: %s}", network)
	}
	return c, c.Apply(ctx, []byte(fmt.Sprintf(`
apiVersion: v1
kind: Namespace
metadata:
  name: istio-system%s
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Node
metadata:
  name: node-1
  labels: {topology.kubernetes.io/region: %s, topology.kubernetes.io/zone: %s-a}
`, labels, name, name)))
}

// Serve starts the control plane in the primary and waits until it is ready.
func (w *World) Serve(change ...func(*serve.Settings)) {
	w.t.Helper()
	w.ServeUnready(change...)
	w.Eventually("control plane is ready", func() bool { return w.Control.NotReady() == "" })
}

// ServeUnready starts the control plane without waiting.
func (w *World) ServeUnready(change ...func(*serve.Settings)) {
	w.t.Helper()
	dir := w.t.TempDir()
	file := writeFile(w.t, dir, "kubeconfig", w.Clusters[w.Primary].Kubeconfig())
	s := serve.Defaults(func(string) string { return "" })
	s.GRPCAddr, s.HTTPAddr = "127.0.0.1:0", "127.0.0.1:0"
	s.SecureGRPCAddr, s.MonitoringAddr, s.HTTPSAddr = "", "", ""
	s.Kubeconfig, s.Primary = file, w.Primary
	s.MeshConfig, s.NetworksConfig = "", ""
	for _, f := range change {
		f(&s)
	}
	log := zap.NewNop()
	if testing.Verbose() {
		log = zaptest.NewLogger(w.t, zaptest.Level(zap.InfoLevel))
	}
	c, err := serve.New(s, serve.Build{Version: "test"}, log)
	require.NoError(w.t, err)
	require.NoError(w.t, c.Listen())
	ctx, stop := context.WithCancel(w.ctx)
	done := make(chan error, 1)
	w.Control, w.stop, w.done = c, stop, done
	go func() { done <- c.Run(ctx) }()
	w.t.Cleanup(w.Halt)
}

// Halt stops the control plane and waits for it.
func (w *World) Halt() {
	if w.stop == nil {
		return
	}
	w.stop()
	if err := <-w.done; err != nil {
		w.t.Errorf("control plane: %v", err)
	}
	w.stop = nil
}

// Apply applies YAML in a cluster.
func (w *World) Apply(cluster, yaml string) {
	w.t.Helper()
	require.NoError(w.t, w.Clusters[cluster].Apply(w.ctx, []byte(yaml)))
}

// Join makes a remote secret for a cluster in the primary, with the credentials
// of a fresh reader account.
func (w *World) Join(cluster string) {
	w.t.Helper()
	kubeconfig, err := w.Clusters[cluster].ReaderKubeconfig(w.ctx, "istio-reader-service-account")
	require.NoError(w.t, err)
	w.Secret("istio-remote-secret-"+cluster, map[string][]byte{cluster: kubeconfig})
}

// Secret creates or replaces a labelled secret with kubeconfigs by cluster ID.
func (w *World) Secret(name string, data map[string][]byte) {
	w.t.Helper()
	api := w.Clusters[w.Primary].Client().CoreV1().Secrets("istio-system")
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"istio/multiCluster": "true"}}, Data: data}
	if _, err := api.Create(w.ctx, s, metav1.CreateOptions{}); err == nil {
		return
	}
	old, err := api.Get(w.ctx, name, metav1.GetOptions{})
	require.NoError(w.t, err)
	old.Data = data
	_, err = api.Update(w.ctx, old, metav1.UpdateOptions{})
	require.NoError(w.t, err)
}

// Leave deletes a cluster's remote secret.
func (w *World) Leave(cluster string) { w.DeleteSecret("istio-remote-secret-" + cluster) }

// DeleteSecret deletes a secret of the system namespace.
func (w *World) DeleteSecret(name string) {
	w.t.Helper()
	require.NoError(w.t, w.Clusters[w.Primary].Client().CoreV1().Secrets("istio-system").Delete(w.ctx, name, metav1.DeleteOptions{}))
}

// Proxy connects a sidecar of a pod in namespace shop and waits until it has
// its whole configuration. Every resource it ever receives passes the validator.
func (w *World) Proxy(cluster, network string, delta bool) *recorder.Proxy {
	w.t.Helper()
	return w.Connect(recorder.Node{Name: "client-0", Namespace: "shop", Cluster: cluster, Network: network, IP: "10.99.0.1",
		Labels: map[string]string{"app": "client"}}, recorder.Options{Delta: delta})
}

// Connect connects any proxy and waits until it has its whole configuration.
func (w *World) Connect(n recorder.Node, o recorder.Options) *recorder.Proxy {
	w.t.Helper()
	o.Check = validate.Resource
	p, err := recorder.Dial(w.ctx, w.Control.GRPCAddr(), n, o)
	require.NoError(w.t, err)
	w.t.Cleanup(p.Close)
	ctx, cancel := context.WithTimeout(w.ctx, patience)
	defer cancel()
	require.NoError(w.t, p.Ready(ctx))
	return p
}

// Hears waits until the proxy would dial exactly these endpoints for an
// upstream, each as "address:port weight".
func (w *World) Hears(p *recorder.Proxy, upstream string, want ...string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, patience)
	defer cancel()
	if want == nil {
		want = []string{}
	}
	err := p.Wait(ctx, fmt.Sprintf("%s to be %v", upstream, want), func(p *recorder.Proxy) bool {
		got := p.Endpoints(upstream)
		return got != nil && strings.Join(got, ",") == strings.Join(want, ",")
	})
	require.NoError(w.t, err, "last heard: %v", p.Endpoints(upstream))
}

// Eventually waits until ok holds.
func (w *World) Eventually(what string, ok func() bool) {
	w.t.Helper()
	require.Eventually(w.t, ok, patience, 20*time.Millisecond, what)
}
