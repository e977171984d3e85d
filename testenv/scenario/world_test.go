package scenario

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"github.com/stretchr/testify/require"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/serve"
	"github.com/isthmus-mesh/isthmus/multicluster"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/testenv/apiserver"
	"github.com/isthmus-mesh/isthmus/testenv/plane"
	"github.com/isthmus-mesh/isthmus/testenv/recorder"
	"github.com/isthmus-mesh/isthmus/testenv/validate"
)

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
	Plane *plane.Plane
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
func (w *World) Start(change ...func(*serve.Settings)) *plane.Plane {
	w.t.Helper()
	primary := w.names[0]
	kubeconfig := writeFile(w.t, w.t.TempDir(), "kubeconfig", w.Clusters[primary].Kubeconfig())
	in := func(s *serve.Settings) { s.Kubeconfig, s.Primary = kubeconfig, primary }
	w.Plane = plane.Start(w.t, append([]func(*serve.Settings){in}, change...)...)
	return w.Plane
}

// Serve starts a control plane in the primary and waits until it is ready.
func (w *World) Serve(change ...func(*serve.Settings)) *plane.Plane {
	w.t.Helper()
	p := w.Start(change...)
	p.AwaitReady()
	return p
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
func (w *World) Connect(to *plane.Plane, n recorder.Node, o recorder.Options) *recorder.Proxy {
	w.t.Helper()
	if o.Check == nil {
		o.Check = validate.Resource
	}
	p, err := recorder.Dial(w.ctx, to.GRPCAddr(), n, o)
	require.NoError(w.t, err)
	w.t.Cleanup(p.Close)
	ctx, cancel := context.WithTimeout(w.ctx, plane.Patience)
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
	ctx, cancel := context.WithTimeout(w.ctx, plane.Patience)
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
	require.Eventually(w.t, ok, plane.Patience, 20*time.Millisecond, what)
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
	if !plane.Wait(w.ctx, func() bool { return strings.Contains(w.Plane.Status(cluster).Reason, says) }) {
		w.t.Fatalf("cluster %s: no %q in %+v", cluster, says, w.Plane.Status(cluster))
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
	v, err := strconv.ParseFloat(w.Plane.Metric(staleSeries), 64)
	require.NoError(w.t, err)
	return v
}

// debug reads a view below /debug into out.
func (w *World) debug(path string, out any) {
	w.t.Helper()
	require.NoError(w.t, json.Unmarshal([]byte(plane.Get(w.t, w.Plane.HTTPAddr(), "/debug/"+path)), out))
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
