package scenario

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/serve"
	"github.com/isthmus-mesh/isthmus/multicluster"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/testenv/apiserver"
	"github.com/isthmus-mesh/isthmus/testenv/recorder"
	"github.com/isthmus-mesh/isthmus/testenv/validate"
)

// patience is how long a scenario waits for something that must happen. It is
// generous because machines are: nothing is asserted about time.
const patience = 2 * time.Minute

// World is a mesh of real API servers and the control planes that were started
// in its primary.
type World struct {
	t   *testing.T
	ctx context.Context
	set *set

	Clusters map[string]*apiserver.Cluster
	// names are the clusters in the order of the set; the first is the primary.
	names []string
	// witnesses note what is refused to whoever has a kubeconfig of [World.as].
	witnesses map[string]*apiserver.Witness
	// Plane is the control plane that was started last.
	Plane *Plane
}

// Plane is one running control plane.
type Plane struct {
	*serve.Control
	stop context.CancelFunc
	done chan error
}

// NewWorld gives a test one API server per name. A name may carry a network
// after a slash ("west/network-2"), which labels the system namespace. Tests
// that call it run beside one another.
func NewWorld(t *testing.T, names ...string) *World {
	t.Helper()
	apiserver.NeedBinary(t)
	t.Parallel()
	w := &World{t: t, set: machines.lend(t.Context(), t, len(names)), Clusters: map[string]*apiserver.Cluster{}, witnesses: map[string]*apiserver.Witness{}}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	t.Cleanup(cancel)
	w.ctx = ctx
	var wg sync.WaitGroup
	errs := make([]error, len(names))
	for i, n := range names {
		name, network, _ := strings.Cut(n, "/")
		w.Clusters[name] = w.set.clusters[i]
		w.names = append(w.names, name)
		wg.Go(func() { errs[i] = w.set.clusters[i].Apply(ctx, []byte(basics(name, network))) })
	}
	wg.Wait()
	for _, err := range errs {
		require.NoError(t, err)
	}
	return w
}

// Start starts a control plane in the primary without waiting for anything.
func (w *World) Start(change ...func(*serve.Settings)) *Plane {
	w.t.Helper()
	primary := w.names[0]
	s := serve.Defaults(func(string) string { return "" })
	s.GRPCAddr, s.HTTPAddr, s.MonitoringAddr = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	s.SecureGRPCAddr, s.HTTPSAddr = "", ""
	s.Kubeconfig, s.Primary = writeFile(w.t, w.t.TempDir(), "kubeconfig", w.Clusters[primary].Kubeconfig()), primary
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
	p := &Plane{Control: c, stop: stop, done: make(chan error, 1)}
	go func() { p.done <- c.Run(ctx) }()
	w.t.Cleanup(func() { w.Halt(p) })
	w.Plane = p
	return p
}

// Serve starts a control plane in the primary and waits until it is ready.
func (w *World) Serve(change ...func(*serve.Settings)) *Plane {
	w.t.Helper()
	p := w.Start(change...)
	w.Eventually("control plane is ready", func() bool { return p.NotReady() == "" })
	return p
}

// Halt stops a control plane and waits for it.
func (w *World) Halt(p *Plane) {
	if p.stop == nil {
		return
	}
	p.stop()
	p.stop = nil
	if err := <-p.done; err != nil {
		w.t.Errorf("control plane: %v", err)
	}
}

// Apply applies YAML in a cluster.
func (w *World) Apply(cluster, yaml string) {
	w.t.Helper()
	require.NoError(w.t, w.Clusters[cluster].Apply(w.ctx, []byte(yaml)))
}

// DeleteService deletes a Service and, as nobody else would, its slice.
func (w *World) DeleteService(cluster, name string) {
	w.t.Helper()
	api := w.Clusters[cluster].Client()
	require.NoError(w.t, api.CoreV1().Services("shop").Delete(w.ctx, name, metav1.DeleteOptions{}))
	require.NoError(w.t, api.DiscoveryV1().EndpointSlices("shop").Delete(w.ctx, name+"-1", metav1.DeleteOptions{}))
}

// Reader returns a kubeconfig of a cluster with a fresh token of an account.
func (w *World) Reader(cluster, account string) []byte {
	w.t.Helper()
	kubeconfig, err := w.Clusters[cluster].ReaderKubeconfig(w.ctx, account)
	require.NoError(w.t, err)
	return kubeconfig
}

// Join makes a remote secret for a cluster in the primary, with the credentials
// of a fresh reader account.
func (w *World) Join(cluster string) {
	w.t.Helper()
	w.Secret(multicluster.SecretPrefix+cluster, map[string][]byte{cluster: w.Reader(cluster, multicluster.ReaderAccount)})
}

// Leave deletes a cluster's remote secret.
func (w *World) Leave(cluster string) {
	w.t.Helper()
	require.NoError(w.t, w.Clusters[w.names[0]].Client().CoreV1().Secrets(multicluster.SystemNamespace).
		Delete(w.ctx, multicluster.SecretPrefix+cluster, metav1.DeleteOptions{}))
}

// Secret creates or replaces a labelled secret with kubeconfigs by cluster ID.
func (w *World) Secret(name string, data map[string][]byte) {
	w.t.Helper()
	w.PutSecret(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: multicluster.SystemNamespace,
		Labels: map[string]string{multicluster.SecretLabel: "true"}}, Data: data})
}

// PutSecret creates or replaces a secret in the primary.
func (w *World) PutSecret(s *corev1.Secret) {
	w.t.Helper()
	api := w.Clusters[w.names[0]].Client().CoreV1().Secrets(s.Namespace)
	if _, err := api.Create(w.ctx, s, metav1.CreateOptions{}); err == nil {
		return
	}
	old, err := api.Get(w.ctx, s.Name, metav1.GetOptions{})
	require.NoError(w.t, err)
	old.Data = s.Data
	_, err = api.Update(w.ctx, old, metav1.UpdateOptions{})
	require.NoError(w.t, err)
}

// client is a sidecar of a pod in namespace shop.
func client(cluster, network string) recorder.Node {
	return recorder.Node{Name: "client-0", Namespace: "shop", Cluster: cluster, Network: network, IP: "10.99.0.1",
		Labels: map[string]string{"app": "client"}}
}

// Proxy connects a sidecar and waits until it has its whole configuration.
// Every resource it ever receives passes the validator.
func (w *World) Proxy(cluster, network string, delta bool) *recorder.Proxy {
	w.t.Helper()
	return w.Connect(w.Plane, client(cluster, network), recorder.Options{Delta: delta})
}

// Connect connects any proxy and waits until it has its whole configuration.
func (w *World) Connect(to *Plane, n recorder.Node, o recorder.Options) *recorder.Proxy {
	w.t.Helper()
	if o.Check == nil {
		o.Check = validate.Resource
	}
	p, err := recorder.Dial(w.ctx, to.GRPCAddr(), n, o)
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
	w.await(p, fmt.Sprintf("%s to be %v", upstream, want), func() bool {
		got := p.Endpoints(upstream)
		return got != nil && slices.Equal(got, want)
	})
}

// await waits until ok holds of what a proxy has received.
func (w *World) await(p *recorder.Proxy, what string, ok func() bool) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, patience)
	defer cancel()
	if err := p.Wait(ctx, what, func(*recorder.Proxy) bool { return ok() }); err != nil {
		assignments := map[string][]string{}
		for n := range p.Resources(recorder.Assignments) {
			assignments[n] = p.Endpoints(n)
		}
		require.NoError(w.t, err, "heard last: %v", assignments)
	}
}

// Eventually waits until ok holds.
func (w *World) Eventually(what string, ok func() bool) {
	w.t.Helper()
	require.Eventually(w.t, ok, patience, 20*time.Millisecond, what)
}

// status is what the control plane says of a cluster.
func (w *World) status(cluster string) multicluster.Status {
	for _, s := range w.Plane.Clusters() {
		if string(s.ID) == cluster {
			return s
		}
	}
	return multicluster.Status{}
}

// awaitHealth waits until the control plane says that a cluster is so.
func (w *World) awaitHealth(cluster string, h multicluster.Health) {
	w.t.Helper()
	if !waitFor(w.ctx, func() bool { return w.status(cluster).Health == h }) {
		w.t.Fatalf("cluster %s is not %s but %+v", cluster, h, w.status(cluster))
	}
}

// awaitEvent waits for a warning about a secret in the primary that says this.
func (w *World) awaitEvent(secret, says string) {
	w.t.Helper()
	w.Eventually("an Event about "+secret+" with "+says, func() bool {
		return slices.ContainsFunc(w.events(secret), func(e corev1.Event) bool {
			return e.Type == corev1.EventTypeWarning && strings.Contains(e.Message, says)
		})
	})
}

// events lists the Events about a secret, none if they cannot be read.
func (w *World) events(secret string) []corev1.Event {
	list, err := w.Clusters[w.names[0]].Client().CoreV1().Events(multicluster.SystemNamespace).
		List(w.ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=" + secret})
	if err != nil {
		return nil
	}
	return list.Items
}

// awaitReason waits until the control plane gives a reason for a cluster's health.
func (w *World) awaitReason(cluster, says string) {
	w.t.Helper()
	if !waitFor(w.ctx, func() bool { return strings.Contains(w.status(cluster).Reason, says) }) {
		w.t.Fatalf("cluster %s: no %q in %+v", cluster, says, w.status(cluster))
	}
}

// problems lists what is quarantined in a cluster, each as "Kind name".
func (w *World) problems(cluster string) []string {
	w.t.Helper()
	var list []registry.Problem
	w.debug("problems", &list)
	var out []string
	for _, p := range list {
		if string(p.Object.Cluster) == cluster {
			out = append(out, p.Object.Kind+" "+p.Object.Name)
		}
	}
	return out
}

// grant gives the role of a reader one kind, or takes it, and waits until the
// server decides so.
func (w *World) grant(cluster, role, resource string, allowed bool) {
	w.t.Helper()
	api := w.Clusters[cluster].Client()
	r, err := api.RbacV1().ClusterRoles().Get(w.ctx, role, metav1.GetOptions{})
	require.NoError(w.t, err)
	core := &r.Rules[slices.IndexFunc(r.Rules, func(x rbacv1.PolicyRule) bool { return slices.Contains(x.Resources, "services") })]
	if core.Resources = slices.DeleteFunc(core.Resources, func(x string) bool { return x == resource }); allowed {
		core.Resources = append(core.Resources, resource)
	}
	_, err = api.RbacV1().ClusterRoles().Update(w.ctx, r, metav1.UpdateOptions{})
	require.NoError(w.t, err)
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User:               "system:serviceaccount:" + multicluster.SystemNamespace + ":" + role,
		ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "list", Resource: resource},
	}}
	w.Eventually("the server decides by the new role", func() bool {
		answer, err := api.AuthorizationV1().SubjectAccessReviews().Create(w.ctx, review, metav1.CreateOptions{})
		return err == nil && answer.Status.Allowed == allowed
	})
}

// region is that of the first endpoints of an upstream.
func region(t *testing.T, p *recorder.Proxy, upstream string) string {
	t.Helper()
	var a endpointv3.ClusterLoadAssignment
	require.True(t, p.Get(recorder.Assignments, upstream, &a))
	if len(a.GetEndpoints()) == 0 {
		return ""
	}
	return a.GetEndpoints()[0].GetLocality().GetRegion()
}

// stale is the age of the data of cluster west, in seconds.
func (w *World) stale() float64 {
	w.t.Helper()
	v, err := strconv.ParseFloat(w.metric(staleSeries), 64)
	require.NoError(w.t, err)
	return v
}

func waitFor(ctx context.Context, ok func() bool) bool {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
	return true
}

// debug reads a view below /debug into out.
func (w *World) debug(path string, out any) {
	w.t.Helper()
	require.NoError(w.t, json.Unmarshal([]byte(w.fetch(w.Plane.HTTPAddr(), "/debug/"+path)), out))
}

// metric reads the value of a series as it is exposed, "" if there is none.
func (w *World) metric(series string) string {
	w.t.Helper()
	for line := range strings.Lines(w.fetch(w.Plane.MonitoringAddr(), "/metrics")) {
		if value, ok := strings.CutPrefix(line, series+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func (w *World) fetch(addr, path string) string {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.ctx, http.MethodGet, "http://"+addr+path, nil)
	require.NoError(w.t, err)
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	require.NoError(w.t, err)
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	require.NoError(w.t, err)
	require.Equal(w.t, http.StatusOK, resp.StatusCode, "%s: %s", path, body)
	return string(body)
}

// marks notes how many pushes each proxy has had.
func marks(proxies ...*recorder.Proxy) []int {
	out := make([]int, len(proxies))
	for i, p := range proxies {
		out[i] = len(p.Pushes())
	}
	return out
}

// onlyAbout asserts that every push since a mark concerns assignments of the
// given upstreams only, and that there was one.
func onlyAbout(t *testing.T, p *recorder.Proxy, mark int, upstreams ...string) {
	t.Helper()
	require.NotEmpty(t, p.Since(mark))
	for _, push := range p.Since(mark) {
		require.Equal(t, recorder.Assignments, push.TypeURL, "unexpected push %+v", push)
		for _, n := range slices.Concat(push.Names, push.Removed) {
			require.Contains(t, upstreams, n, "unexpected push %+v", push)
		}
	}
}

// settle makes a change that every proxy must hear and waits for it: whatever
// was on its way before has arrived then.
func (w *World) settle(cluster, addr string, proxies ...*recorder.Proxy) {
	w.t.Helper()
	w.Apply(cluster, Slice("fence", addr))
	for _, p := range proxies {
		w.await(p, "the fence", func() bool { return slices.Contains(p.Endpoints(Upstream("fence")), addr+":8080 1") })
	}
}

// fence is a service whose changes show that everything before has arrived.
func fence(addrs ...string) string {
	s := Service("fence")
	for _, a := range addrs {
		s += Pod("fence", a, false)
	}
	return s + Slice("fence", addrs[0])
}
