package install

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/join"
	"github.com/isthmus-mesh/isthmus/multicluster"
	"github.com/isthmus-mesh/isthmus/testenv/agent"
	"github.com/isthmus-mesh/isthmus/testenv/apiserver"
	"github.com/isthmus-mesh/isthmus/testenv/plane"
)

// everything lists all objects of a cluster by kind, namespace and name with
// their versions, but those that change by themselves.
func (w *world) everything(cluster string) map[string]string {
	w.t.Helper()
	c := w.clusters[cluster]
	lists, err := c.Client().Discovery().ServerPreferredResources()
	require.NoError(w.t, err)
	out := map[string]string{}
	for _, list := range lists {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		require.NoError(w.t, err)
		for _, r := range list.APIResources {
			if !slices.Contains(r.Verbs, "list") || slices.Contains([]string{"events", "leases", "componentstatuses", "endpoints"}, r.Name) {
				continue
			}
			objects, err := c.Dynamic().Resource(gv.WithResource(r.Name)).List(w.ctx, metav1.ListOptions{})
			require.NoError(w.t, err)
			for _, o := range objects.Items {
				if o.GetName() != "kube-root-ca.crt" { // comes to a new namespace when it does
					out[fmt.Sprintf("%s %s %s/%s", list.GroupVersion, r.Name, o.GetNamespace(), o.GetName())] = o.GetResourceVersion()
				}
			}
		}
	}
	return out
}

// TestTwoRemotesJoin is the whole way: a primary, two clusters that join it by
// command, a primary that restarts in between; in all three a pod comes up with
// a proxy of the right cluster and network, whose token gets a certificate of
// the primary's CA; joining again changes nothing, leaving leaves nothing.
func TestTwoRemotesJoin(t *testing.T) {
	w := newWorld(t)
	before := map[string]map[string]string{"west": w.everything("west"), "south": w.everything("south")}
	first := w.start("istiod-0")
	w.join("west", "network-2")
	first.AwaitHealth("west", multicluster.HealthOK)
	first.Halt()
	second := w.start("istiod-1")
	w.join("south", "network-3")
	for cluster, network := range map[string]string{"east": "network-1", "west": "network-2", "south": "network-3"} {
		second.AwaitHealth(cluster, multicluster.HealthOK)
		made := w.create(cluster, pod("web-0"))
		env := proxyEnv(made)
		require.NotNil(t, env, "the pod of cluster %s has no proxy: %v", cluster, made.Annotations)
		require.Equal(t, cluster, env["ISTIO_META_CLUSTER_ID"])
		if cluster != "east" { // its path names no network: the control plane knows it by the label
			require.Equal(t, network, env["ISTIO_META_NETWORK"])
		}
		w.getsCertificate(second, cluster, made)
	}

	joined := map[string]map[string]string{}
	for _, cluster := range []string{"east", "west", "south"} {
		require.NoError(t, w.clusters[cluster].EnsureNamespace(w.ctx, system))
		joined[cluster] = w.everything(cluster)
	}
	require.NoError(t, join.Join(w.ctx, w.options("west", "network-2")))
	require.NoError(t, join.Join(w.ctx, w.options("south", "network-3")))
	for cluster, had := range joined {
		require.Equal(t, had, w.everything(cluster), "joining again changes nothing in cluster %s", cluster)
	}

	for _, cluster := range []string{"west", "south"} {
		require.NoError(t, w.clusters[cluster].Client().CoreV1().Pods("shop").Delete(w.ctx, "web-0", metav1.DeleteOptions{GracePeriodSeconds: new(int64)}))
		w.leave(w.ctx, cluster)
		require.Equal(t, names(before[cluster]), names(w.everything(cluster)), "something is left in cluster %s", cluster)
		w.eventually("the primary has forgotten "+cluster, func() bool { return second.Status(cluster).ID == "" })
	}
	require.Len(t, second.Clusters(), 1)
}

func names(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }

// getsCertificate: the token that the kubelet would mount into the pod gets a
// certificate of the primary's CA, verified with the roots that the pod's
// namespace has.
func (w *world) getsCertificate(p *plane.Plane, cluster string, of *corev1.Pod) {
	w.t.Helper()
	api := w.clusters[cluster].Client().CoreV1()
	seconds := int64(43200)
	answer, err := api.ServiceAccounts("shop").CreateToken(w.ctx, "web", &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{Audiences: []string{"istio-ca"}, ExpirationSeconds: &seconds,
			BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: of.Name, UID: of.UID}},
	}, metav1.CreateOptions{})
	require.NoError(w.t, err)
	var roots string
	w.eventually("the roots are in namespace shop of cluster "+cluster, func() bool {
		cm, err := api.ConfigMaps("shop").Get(w.ctx, "istio-ca-root-cert", metav1.GetOptions{})
		if err == nil {
			roots = cm.Data["root-cert.pem"]
		}
		return err == nil
	})
	a, err := agent.Dial(agent.Config{Address: p.SecureGRPCAddr(), Roots: []byte(roots), Cluster: cluster, Token: answer.Status.Token})
	require.NoError(w.t, err)
	defer func() { _ = a.Close() }()
	issued, err := a.Certificate(w.ctx, agent.CSR{URI: "spiffe://cluster.local/ns/shop/sa/web", ECDSA: true})
	require.NoError(w.t, err, "the token of a pod of cluster %s", cluster)
	require.Equal(w.t, roots, string(issued.Roots()))
}

// TestLinkLocalServer is row 5: a server at a link-local address, written as
// such or found by name, is refused, and nothing is joined.
func TestLinkLocalServer(t *testing.T) {
	w := newWorld(t)
	p := w.start("istiod-0")
	err := join.Join(w.ctx, w.options("west", "network-2", func(o *join.Options) { o.Server, o.NoWait = "https://169.254.169.254", true }))
	t.Cleanup(func() { w.leave(context.WithoutCancel(w.ctx), "west") })
	require.ErrorContains(t, err, "the control plane would refuse it")
	_, err = w.clusters["east"].Client().CoreV1().Secrets(system).Get(w.ctx, "istio-remote-secret-west", metav1.GetOptions{})
	require.Error(t, err, "no secret was written")

	// As somebody might write it who may write secrets.
	secrets := w.clusters["east"].Client().CoreV1().Secrets(system)
	_, err = secrets.Create(w.ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "metadata", Labels: map[string]string{multicluster.SecretLabel: "true"}},
		Data:       map[string][]byte{"metadata": withServer(t, w.clusters["west"], "https://169.254.169.254")}}, metav1.CreateOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { _ = secrets.Delete(context.WithoutCancel(w.ctx), "metadata", metav1.DeleteOptions{}) })
	w.eventually("it is refused", func() bool { return len(p.Refusals()) == 1 })
	require.Contains(t, p.Refusals()[0].Message, "link-local")
}

// withServer is a kubeconfig with a token for another server.
func withServer(t *testing.T, c *apiserver.Cluster, server string) []byte {
	t.Helper()
	raw := fmt.Sprintf("apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n"+
		"clusters: [{name: c, cluster: {server: %q}}]\nusers: [{name: u, user: {token: %s}}]\n", server, c.Name())
	return []byte(raw)
}
