package install

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/join"
	"github.com/isthmus-mesh/isthmus/multicluster"
	"github.com/isthmus-mesh/isthmus/testenv/plane"
	"github.com/isthmus-mesh/isthmus/testenv/recorder"
	"github.com/isthmus-mesh/isthmus/testenv/validate"
)

const (
	west     = "istio-remote-secret-west"
	upstream = "outbound|80||web.shop.svc.cluster.local"
	// shortLife is the least lifetime of a token; half of it later it is renewed.
	shortLife = 10 * time.Minute
)

// short joins with tokens that are renewed after five minutes.
func short(o *join.Options) { o.TokenLifetime = shortLife }

// web is a service with one pod in west; nothing else writes its slice.
const web = `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints: [{addresses: [10.2.0.1], conditions: {ready: true}}]
`

// serveWeb makes service web in west, until the end of the test.
func (w *world) serveWeb() {
	w.t.Helper()
	c := w.clusters["west"]
	require.NoError(w.t, c.Apply(w.ctx, []byte(web)))
	w.t.Cleanup(func() {
		ctx := context.WithoutCancel(w.ctx)
		_ = c.Client().CoreV1().Services("shop").Delete(ctx, "web", metav1.DeleteOptions{})
		_ = c.Client().DiscoveryV1().EndpointSlices("shop").Delete(ctx, "web-1", metav1.DeleteOptions{})
	})
}

// proxy connects a sidecar of west, on whose network web is, and waits until it
// has its configuration.
func (w *world) proxy(p *plane.Plane) *recorder.Proxy {
	w.t.Helper()
	x, err := recorder.Dial(w.ctx, p.GRPCAddr(), recorder.Node{Name: "client-0", Namespace: "shop", Cluster: "west", Network: "network-2", IP: "10.2.9.1",
		Labels: map[string]string{"app": "client"}}, recorder.Options{Delta: true, Check: validate.Resource})
	require.NoError(w.t, err)
	w.t.Cleanup(x.Close)
	ctx, cancel := context.WithTimeout(w.ctx, plane.Patience)
	defer cancel()
	require.NoError(w.t, x.Wait(ctx, "web's endpoint", func(x *recorder.Proxy) bool { return slices.Equal(x.Endpoints(upstream), []string{"10.2.0.1:8080 1"}) }))
	return x
}

// heldOn asserts that a proxy has heard nothing about upstreams and assignments
// that takes anything from it.
func heldOn(t *testing.T, x *recorder.Proxy, mark int) {
	t.Helper()
	for _, push := range x.Since(mark) {
		require.NotEqual(t, recorder.Assignments, push.TypeURL, "%+v", push)
		require.Empty(t, push.Removed, "%+v", push)
		require.Empty(t, push.Nacked, "%+v", push)
	}
	require.Equal(t, []string{"10.2.0.1:8080 1"}, x.Endpoints(upstream))
}

// kubeconfig is what the remote secret of west holds.
func (w *world) remoteKubeconfig() string {
	w.t.Helper()
	s, err := w.clusters["east"].Client().CoreV1().Secrets(system).Get(w.ctx, west, metav1.GetOptions{})
	require.NoError(w.t, err)
	return string(s.Data["west"])
}

// mayRenew lets the reader of west renew its token, or not.
func (w *world) mayRenew(may bool) {
	w.t.Helper()
	api := w.clusters["west"].Client().RbacV1().Roles(system)
	list, err := api.List(w.ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/part-of=isthmus"})
	require.NoError(w.t, err)
	require.Len(w.t, list.Items, 1)
	role := &list.Items[0]
	i := slices.IndexFunc(role.Rules, func(r rbacv1.PolicyRule) bool { return slices.Contains(r.ResourceNames, multicluster.ReaderAccount) })
	require.GreaterOrEqual(w.t, i, 0)
	role.Rules[i].Verbs = []string{"create"}
	if !may {
		role.Rules[i].Verbs = []string{"get"}
	}
	_, err = api.Update(w.ctx, role, metav1.UpdateOptions{})
	require.NoError(w.t, err)
}

// TestTokenIsRenewed is row 8, by the control plane itself: the token is renewed
// long before it ends, the new one is used, and no proxy hears of it.
func TestTokenIsRenewed(t *testing.T) {
	w := newWorld(t)
	w.serveWeb()
	p := w.start("istiod-0")
	w.join("west", "network-2", short)
	p.AwaitHealth("west", multicluster.HealthOK)
	x := w.proxy(p)
	before, mark := w.remoteKubeconfig(), len(x.Pushes())
	generation := p.Status("west").Generation
	w.eventually("the token's second is over, a new one ends later", func() bool {
		_, expires, _ := multicluster.TokenExpiry([]byte(before), multicluster.Options{})
		return time.Now().Add(shortLife).After(expires.Add(time.Second))
	})
	w.forward(6 * time.Minute)
	w.eventually("the token is renewed", func() bool { return w.remoteKubeconfig() != before })
	w.forward(-6 * time.Minute) // the API server's clock was not forwarded: by ours the new token is old, too
	w.eventually("the new one is used", func() bool {
		s := p.Status("west")
		return s.Generation > generation && s.Candidate == 0 && s.Health == multicluster.HealthOK
	})
	heldOn(t, x, mark)
	require.Equal(t, "1", p.Metric(`isthmus_remote_token_renewals_total{cluster="west",result="renewed"}`))
	w.eventually("its state is told", func() bool { return tokenOf(p, "west").Renewed && tokenOf(p, "west").Problem == "" })
	_, expires, ok := multicluster.TokenExpiry([]byte(w.remoteKubeconfig()), multicluster.Options{})
	require.True(t, ok)
	s, err := w.clusters["east"].Client().CoreV1().Secrets(system).Get(w.ctx, west, metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, expires.UTC().Format(time.RFC3339), s.Annotations[multicluster.ExpiryAnnotation])
	require.NoError(t, join.Join(w.ctx, w.options("west", "network-2", short)), "joining again finds a good token")
	require.Equal(t, s.ResourceVersion, func() string {
		s, err := w.clusters["east"].Client().CoreV1().Secrets(system).Get(w.ctx, west, metav1.GetOptions{})
		require.NoError(t, err)
		return s.ResourceVersion
	}())
}

// TestTokenThatCannotBeRenewed raises an Event, a metric and a line in the
// status, while the cluster goes on being read; it recovers unaided.
func TestTokenThatCannotBeRenewed(t *testing.T) {
	w := newWorld(t)
	p := w.start("istiod-0")
	w.join("west", "network-2", short)
	p.AwaitHealth("west", multicluster.HealthOK)
	w.mayRenew(false)
	before := w.remoteKubeconfig()
	w.forward(6 * time.Minute)
	const lacks = "needs verb create on serviceaccounts/token for the name istio-reader-service-account"
	w.eventually("the status tells", func() bool { return strings.Contains(tokenOf(p, "west").Problem, lacks) })
	w.eventually("an Event tells", func() bool {
		return slices.ContainsFunc(w.events(west), func(e string) bool {
			return strings.HasPrefix(e, multicluster.ReasonNotRenewed) && strings.Contains(e, lacks)
		})
	})
	require.Equal(t, "1", p.Metric(`isthmus_remote_token_at_risk{cluster="west",secret="istio-system/`+west+`"}`))
	require.Equal(t, before, w.remoteKubeconfig())
	require.Equal(t, multicluster.HealthOK, p.Status("west").Health)
	w.mayRenew(true)
	w.forward(2 * time.Minute) // past the wait after the first failure
	w.eventually("it is renewed", func() bool { return w.remoteKubeconfig() != before })
	w.forward(-8 * time.Minute)
	w.eventually("all is well", func() bool { return tokenOf(p, "west").Problem == "" })
	require.Equal(t, "0", p.Metric(`isthmus_remote_token_at_risk{cluster="west",secret="istio-system/`+west+`"}`))
}

// TestBadRotationThenGood is rows 9 and 10: credentials that do not work leave
// the old data served and the cluster degraded; joining again repairs it.
func TestBadRotationThenGood(t *testing.T) {
	w := newWorld(t)
	w.serveWeb()
	p := w.start("istiod-0")
	w.join("west", "network-2")
	p.AwaitHealth("west", multicluster.HealthOK)
	x := w.proxy(p)
	mark := len(x.Pushes())
	bad := withToken(t, []byte(w.remoteKubeconfig()), "bad.token.here")
	patch, err := json.Marshal(map[string]any{"data": map[string][]byte{"west": bad}})
	require.NoError(t, err)
	_, err = w.clusters["east"].Client().CoreV1().Secrets(system).Patch(w.ctx, west, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "somebody"})
	require.NoError(t, err)
	p.AwaitHealth("west", multicluster.HealthDegraded)
	heldOn(t, x, mark)
	require.NoError(t, join.Join(w.ctx, w.options("west", "network-2")))
	p.AwaitHealth("west", multicluster.HealthOK)
	heldOn(t, x, mark)
}

// TestPartialRights is row 14: a kind that may not be read is named, the others
// are; installing again grants it.
func TestPartialRights(t *testing.T) {
	w := newWorld(t)
	w.serveWeb()
	w.join("west", "network-2", func(o *join.Options) { o.NoWait = true })
	api := w.clusters["west"].Client().RbacV1().ClusterRoles()
	const name = "isthmus-reader-istio-system-registry"
	role, err := api.Get(w.ctx, name, metav1.GetOptions{})
	require.NoError(t, err)
	had := role.Rules
	role.Rules = slices.Clone(had)
	role.Rules[0].Resources = []string{"services", "pods", "namespaces"} // and no nodes
	role, err = api.Update(w.ctx, role, metav1.UpdateOptions{})
	require.NoError(t, err)
	p := w.start("istiod-0")
	p.AwaitHealth("west", multicluster.HealthDegraded)
	w.eventually("the kind is named", func() bool { return strings.Contains(p.Status("west").Reason, "nodes") })
	for _, k := range p.Status("west").Kinds {
		require.Equal(t, k.Kind == "nodes" || k.Kind == "Node", k.Error != "", "%+v", k)
	}
	w.proxy(p) // what else is in the cluster is served
	role.Rules = had
	_, err = api.Update(w.ctx, role, metav1.UpdateOptions{})
	require.NoError(t, err)
	p.AwaitHealth("west", multicluster.HealthOK)
}
