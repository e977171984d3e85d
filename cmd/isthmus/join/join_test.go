package join_test

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/join"
	"github.com/isthmus-mesh/isthmus/manifests"
	"github.com/isthmus-mesh/isthmus/multicluster"
	"github.com/isthmus-mesh/isthmus/testenv/apiserver"
)

// secret is the remote secret of west, nil if there is none.
func (l *lab) secret() *corev1.Secret {
	l.t.Helper()
	s, err := l.east.Client().CoreV1().Secrets("istio-system").Get(l.ctx, "istio-remote-secret-west", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	require.NoError(l.t, err)
	return s
}

// gone waits until a namespace of west is.
func (l *lab) gone(namespace string) {
	l.t.Helper()
	require.Eventually(l.t, func() bool {
		_, err := l.west.Client().CoreV1().Namespaces().Get(l.ctx, namespace, metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	}, time.Minute, 20*time.Millisecond)
}

// settled lists west's objects when what controllers make of a new namespace is there.
func (l *lab) settled() map[string]string {
	l.t.Helper()
	require.NoError(l.t, l.west.EnsureNamespace(l.ctx, "default"))
	return everything(l.ctx, l.t, l.west)
}

// names are the keys of a listing.
func names(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }

// TestJoinAndLeave: joining makes what a remote needs, again it changes nothing,
// and leaving leaves nothing behind.
func TestJoinAndLeave(t *testing.T) {
	l := newLab(t)
	before, primaryBefore := l.settled(), everything(l.ctx, t, l.east)

	require.NoError(t, join.Join(l.ctx, l.options(func(o *join.Options) { o.DryRun = true })))
	require.Contains(t, l.said(), "would be created Secret istio-system/istio-remote-secret-west")
	require.Equal(t, before, l.settled(), "a dry run changes nothing")

	require.NoError(t, join.Join(l.ctx, l.options()))
	said := l.said()
	for _, line := range []string{
		"west  created    Namespace istio-system", "west  created    ServiceAccount istio-system/istio-reader-service-account",
		"west  created    Service istio-system/istiod", "west  created    MutatingWebhookConfiguration istio-sidecar-injector",
		"east  created    Secret istio-system/istio-remote-secret-west: its token ends ",
	} {
		require.Contains(t, said, line)
	}
	s := l.secret()
	cfg, err := multicluster.Sanitize(s.Data["west"], multicluster.Options{})
	require.NoError(t, err, "the control plane takes it")
	reader, err := kubernetes.NewForConfig(cfg)
	require.NoError(t, err)
	_, err = reader.CoreV1().Pods("").List(l.ctx, metav1.ListOptions{})
	require.NoError(t, err, "the rights were in force before the secret was written")
	require.Equal(t, "true", s.Labels[multicluster.SecretLabel])
	require.Equal(t, "west", s.Annotations[multicluster.ClusterAnnotation])
	issued, expires, ends := multicluster.TokenExpiry(s.Data["west"], multicluster.Options{})
	require.True(t, ends)
	require.Equal(t, join.DefaultLifetime, expires.Sub(issued))
	ns, err := l.west.Client().CoreV1().Namespaces().Get(l.ctx, "istio-system", metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, "network-2", ns.Labels["topology.istio.io/network"])
	require.Equal(t, "east", ns.Annotations["topology.istio.io/controlPlaneClusters"])

	require.NoError(t, l.west.EnsureNamespace(l.ctx, "istio-system"))
	joined, primaryJoined := l.settled(), everything(l.ctx, t, l.east)
	require.NoError(t, join.Join(l.ctx, l.options()))
	said = l.said()
	require.NotContains(t, said, "created ")
	require.NotContains(t, said, "changed    ", "only what is unchanged")
	require.Equal(t, joined, l.settled(), "joining again changes nothing in the remote")
	require.Equal(t, primaryJoined, everything(l.ctx, t, l.east), "nor in the primary")

	require.NoError(t, join.Leave(l.ctx, l.options(func(o *join.Options) { o.DryRun = true })))
	require.Contains(t, l.said(), "east  would be deleted Secret istio-system/istio-remote-secret-west")
	require.Equal(t, joined, l.settled())

	require.NoError(t, join.Leave(l.ctx, l.options()))
	l.gone("istio-system")
	require.Equal(t, names(before), names(l.settled()), "nothing is left in the remote")
	require.Equal(t, names(primaryBefore), names(everything(l.ctx, t, l.east)), "nor in the primary")
	require.NoError(t, join.Leave(l.ctx, l.options()), "it may be repeated")
}

// TestLeaveKeepsWhatIsOthers: a namespace that was there stays with what others
// wrote, and one that join made stays with what others put in.
func TestLeaveKeepsWhatIsOthers(t *testing.T) {
	l := newLab(t)
	require.NoError(t, l.west.EnsureNamespace(l.ctx, "istio-system"))
	api := l.west.Client().CoreV1().Namespaces()
	_, err := api.Patch(l.ctx, "istio-system", types.MergePatchType, []byte(`{"metadata":{"labels":{"topology.istio.io/network":"network-7"},
		"annotations":{"topology.istio.io/controlPlaneClusters":"south"}}}`), metav1.PatchOptions{FieldManager: "somebody"})
	require.NoError(t, err)
	require.ErrorIs(t, join.Join(l.ctx, l.options()), join.ErrPreflight)
	require.Contains(t, l.said(), "namespace istio-system says that cluster west is of network network-7, and not of network-2")

	noNetwork := func(o *join.Options) {
		o.Values = map[string]any{"global": map[string]any{"remotePilotAddress": "192.0.2.10"}}
	}
	require.NoError(t, join.Join(l.ctx, l.options(noNetwork)))
	require.Contains(t, l.said(), "the control planes of south look after this cluster too")
	ns, err := api.Get(l.ctx, "istio-system", metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, "south,east", ns.Annotations["topology.istio.io/controlPlaneClusters"])
	hooks, err := l.west.Client().AdmissionregistrationV1().MutatingWebhookConfigurations().Get(l.ctx, "istio-sidecar-injector", metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, "/inject/cluster/west/net/network-7", *hooks.Webhooks[0].ClientConfig.Service.Path)

	require.NoError(t, join.Leave(l.ctx, l.options(noNetwork)))
	ns, err = api.Get(l.ctx, "istio-system", metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, "south", ns.Annotations["topology.istio.io/controlPlaneClusters"])
	require.Equal(t, "network-7", ns.Labels["topology.istio.io/network"])
	require.NoError(t, api.Delete(l.ctx, "istio-system", metav1.DeleteOptions{}))
	l.gone("istio-system")

	require.NoError(t, join.Join(l.ctx, l.options()))
	_, err = l.west.Client().CoreV1().ConfigMaps("istio-system").Create(l.ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "mine"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	l.said()
	require.NoError(t, join.Leave(l.ctx, l.options()))
	require.Contains(t, l.said(), "Namespace istio-system, which holds configmaps mine")
	ns, err = api.Get(l.ctx, "istio-system", metav1.GetOptions{})
	require.NoError(t, err)
	require.Empty(t, ns.Annotations)
	require.NotContains(t, ns.Labels, "topology.istio.io/network")
	require.NoError(t, api.Delete(l.ctx, "istio-system", metav1.DeleteOptions{}))
	l.gone("istio-system")
}

// TestNamesThatAreTaken: no name and no cluster joins twice.
func TestNamesThatAreTaken(t *testing.T) {
	l := newLab(t)
	self := l.options(func(o *join.Options) { o.Remote = o.Primary })
	require.ErrorIs(t, join.Join(l.ctx, self), join.ErrPreflight)
	require.Contains(t, l.said(), "east and east are the same cluster")
	require.ErrorIs(t, join.Join(l.ctx, l.options(func(o *join.Options) { o.Name = "east" })), join.ErrPreflight)
	require.Contains(t, l.said(), "east is the ID of the primary itself")

	require.NoError(t, join.Join(l.ctx, l.options()))
	require.ErrorIs(t, join.Join(l.ctx, l.options(func(o *join.Options) { o.Name = "second" })), join.ErrPreflight)
	require.Contains(t, l.said(), "this cluster has joined already, as west: let it leave first: isthmus leave west")

	api := l.east.Client().CoreV1().Secrets("istio-system")
	rename := func(uid string) {
		_, err := api.Patch(l.ctx, "istio-remote-secret-west", types.MergePatchType,
			[]byte(`{"metadata":{"annotations":{"isthmus.io/cluster-uid":"`+uid+`"}}}`), metav1.PatchOptions{})
		require.NoError(t, err)
	}
	uid := l.secret().Annotations[join.UIDAnnotation]
	rename("of-another")
	require.ErrorIs(t, join.Join(l.ctx, l.options()), join.ErrPreflight)
	require.Contains(t, l.said(), "west is the name of another cluster already")
	require.ErrorContains(t, join.Leave(l.ctx, l.options()), "is that of another cluster than west")
	require.NotNil(t, l.secret())
	rename(uid)
	require.NoError(t, join.Leave(l.ctx, l.options()))
	l.gone("istio-system")

	_, err := api.Create(l.ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "istio-remote-secret-west",
		Labels: map[string]string{multicluster.SecretLabel: "true"}}, Data: map[string][]byte{"west": []byte("theirs")}}, metav1.CreateOptions{})
	require.NoError(t, err)
	l.said()
	require.ErrorIs(t, join.Join(l.ctx, l.options()), join.ErrPreflight)
	require.Contains(t, l.said(), "Secret istio-system/istio-remote-secret-west is there and was not made by join")
	require.ErrorContains(t, join.Leave(l.ctx, l.options()), "was not made by join")
	require.NoError(t, join.Join(l.ctx, l.options(func(o *join.Options) { o.Force = true })))
	require.Equal(t, "west", l.secret().Labels[join.JoinedLabel])
	require.NoError(t, join.Leave(l.ctx, l.options(func(o *join.Options) { o.Remote = nil })), "the remote is gone")
	require.Nil(t, l.secret())
	require.NoError(t, join.Leave(l.ctx, l.options()))
	l.gone("istio-system")
}

// TestInsufficientRights: each rule that is missing is named with its cluster,
// and nothing is changed.
func TestInsufficientRights(t *testing.T) {
	l := newLab(t)
	before := names(l.settled())
	all := []string{"get", "list", "create", "patch", "delete"}
	weak := l.as(l.west, "weak", []rbacv1.PolicyRule{
		{APIGroups: []string{"admissionregistration.k8s.io", "rbac.authorization.k8s.io", "discovery.k8s.io"}, Resources: []string{"*"}, Verbs: append(all, "escalate", "bind")},
		{APIGroups: []string{""}, Resources: []string{"namespaces", "services"}, Verbs: all},
		{APIGroups: []string{""}, Resources: []string{"serviceaccounts"}, Verbs: []string{"get", "list", "create", "delete"}},
		{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: []string{"get"}},
		{APIGroups: []string{"authorization.k8s.io", "authentication.k8s.io"}, Resources: []string{"subjectaccessreviews"}, Verbs: []string{"create"}},
	})
	t.Cleanup(func() {
		for _, c := range []*apiserver.Cluster{l.west, l.east} {
			for _, name := range []string{"weak", "blind"} {
				_ = c.Client().RbacV1().ClusterRoles().Delete(context.WithoutCancel(l.ctx), name, metav1.DeleteOptions{})
				_ = c.Client().RbacV1().ClusterRoleBindings().Delete(context.WithoutCancel(l.ctx), name, metav1.DeleteOptions{})
				_ = c.Client().CoreV1().ServiceAccounts("default").Delete(context.WithoutCancel(l.ctx), name, metav1.DeleteOptions{})
			}
		}
	})
	require.ErrorIs(t, join.Join(l.ctx, l.options(func(o *join.Options) { o.Remote = weak })), join.ErrPreflight)
	said := l.said()
	require.Contains(t, said, "cluster west: you may not patch serviceaccounts in namespace istio-system\n")
	require.Contains(t, said, "cluster west: you may not create serviceaccounts/token istio-reader-service-account in namespace istio-system\n")
	require.Contains(t, said, "cluster west: you may not create tokenreviews.authentication.k8s.io\n")
	require.NotContains(t, said, "may not create services")
	require.Nil(t, l.secret(), "the primary was not touched")

	blind := l.as(l.east, "blind", []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"secrets", "namespaces"}, Verbs: []string{"get", "list", "create", "delete"}}})
	require.ErrorIs(t, join.Join(l.ctx, l.options(func(o *join.Options) { o.Primary = blind })), join.ErrPreflight)
	said = l.said()
	require.Contains(t, said, "cluster east: you may not patch secrets in namespace istio-system\n")
	require.NotContains(t, said, "may not get secrets")
	require.ErrorIs(t, join.Leave(l.ctx, l.options(func(o *join.Options) { o.Remote = weak })), join.ErrPreflight)
	require.Contains(t, l.said(), "cluster west: you may not delete leases.coordination.k8s.io in namespace istio-system\n")
	after := names(l.settled())
	require.Equal(t, before, slices.DeleteFunc(after, func(n string) bool { return strings.HasSuffix(n, "/weak") }), "the remote was not touched")
}

// TestTokens: a token that is good is kept; one that ends soon, or that the
// remote does not take any more, is replaced; one without an end is made only
// when asked for, and leaves with the cluster.
func TestTokens(t *testing.T) {
	l := newLab(t)
	require.NoError(t, join.Join(l.ctx, l.options()))
	first := string(l.secret().Data["west"])
	require.NoError(t, join.Join(l.ctx, l.options(func(o *join.Options) {
		o.Now = func() time.Time { return time.Now().Add(join.DefaultLifetime * 4 / 5) }
	})))
	second := string(l.secret().Data["west"])
	require.NotEqual(t, first, second, "it ends soon")

	require.NoError(t, l.west.Client().CoreV1().ServiceAccounts("istio-system").Delete(l.ctx, multicluster.ReaderAccount, metav1.DeleteOptions{}))
	require.NoError(t, join.Join(l.ctx, l.options()))
	require.NotEqual(t, second, string(l.secret().Data["west"]), "it is of an account that is gone")

	long := func(o *join.Options) { o.LongLived = true }
	require.NoError(t, join.Join(l.ctx, l.options(long)))
	_, _, ends := multicluster.TokenExpiry(l.secret().Data["west"], multicluster.Options{})
	require.False(t, ends)
	require.NotContains(t, l.secret().Annotations, multicluster.ExpiryAnnotation)
	kept := l.secret().ResourceVersion
	require.NoError(t, join.Join(l.ctx, l.options(long)))
	require.Equal(t, kept, l.secret().ResourceVersion)
	require.NoError(t, join.Leave(l.ctx, l.options()))
	l.gone("istio-system")
}

// TestWayToPrimary: the address is found where load balancers are, and asked for
// where none is.
func TestWayToPrimary(t *testing.T) {
	l := newLab(t)
	bare := func(o *join.Options) { o.Values, o.PrimaryName = nil, "" }
	require.ErrorIs(t, join.Join(l.ctx, l.options(bare)), join.ErrPreflight)
	require.Contains(t, l.said(), "give --primary-name")
	noAddress := func(o *join.Options) { o.Values = nil }
	require.ErrorIs(t, join.Join(l.ctx, l.options(noAddress)), join.ErrPreflight)
	require.Contains(t, l.said(), "give --pilot-address, or --read-only")

	// A gateway has the port, and nothing opens it.
	dry := func(o *join.Options) { o.Values, o.DryRun = nil, true }
	l.balancer("gateway", map[string]string{"istio": "eastwestgateway"}, "203.0.113.9")
	require.ErrorIs(t, join.Join(l.ctx, l.options(dry)), join.ErrPreflight)
	require.Contains(t, l.said(), "Service istio-system/gateway of cluster east has port 15012 and no Gateway opens it for the control plane")
	require.NoError(t, l.east.InstallIstioCRDs(l.ctx))
	require.ErrorIs(t, join.Join(l.ctx, l.options(dry)), join.ErrPreflight)
	require.Contains(t, l.said(), "--set controlPlane.expose=true")
	l.expose()
	require.NoError(t, join.Join(l.ctx, l.options(dry)))
	require.Contains(t, l.said(), "reached from outside at 203.0.113.9, by Service istio-system/gateway of cluster east, which Gateway istio-system/istiod-gateway exposes")
	require.NoError(t, join.Join(l.ctx, l.options(dry, func(o *join.Options) { o.Primary = l.as(l.east, "blind", l.joinerWithout("gateways")) })))
	require.Contains(t, l.said(), "could not be read")
	// One of the control plane's own goes before it.
	l.balancer("istiod-external", map[string]string{"app": "istiod"}, "203.0.113.10")
	require.NoError(t, join.Join(l.ctx, l.options(dry)))
	require.Contains(t, l.said(), "reached from outside at 203.0.113.10, by Service istio-system/istiod-external of cluster east")
	require.NoError(t, join.Join(l.ctx, l.options(noAddress, func(o *join.Options) { o.ReadOnly, o.DryRun = true, true })))
	require.NotContains(t, l.said(), "MutatingWebhookConfiguration")
}

// balancer makes a Service of the primary that has an address and port 15012.
func (l *lab) balancer(name string, labels map[string]string, address string) {
	l.t.Helper()
	services := l.east.Client().CoreV1().Services("istio-system")
	s, err := services.Create(l.ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Selector: map[string]string{"app": name, "istio": "eastwestgateway"},
			Ports: []corev1.ServicePort{{Name: "tls-istiod", Port: 15012}}}}, metav1.CreateOptions{})
	require.NoError(l.t, err)
	l.t.Cleanup(func() {
		require.NoError(l.t, services.Delete(context.WithoutCancel(l.ctx), name, metav1.DeleteOptions{}))
	})
	s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: address}}
	_, err = services.UpdateStatus(l.ctx, s, metav1.UpdateOptions{})
	require.NoError(l.t, err)
}

// expose applies the Gateway with which the east-west chart exposes the control
// plane through gateway "gateway".
func (l *lab) expose() {
	l.t.Helper()
	objects, err := manifests.Render(manifests.Options{Chart: manifests.EastWest, Values: map[string]any{
		"name": "gateway", "networkGateway": "network-1", "controlPlane": map[string]any{"expose": true}}})
	require.NoError(l.t, err)
	for _, o := range objects {
		if o.GetKind() != "Gateway" || o.GetName() != "istiod-gateway" {
			continue
		}
		require.NoError(l.t, l.east.ApplyObjects(l.ctx, o))
		l.t.Cleanup(func() {
			gateways := schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "gateways"}
			require.NoError(l.t, l.east.Dynamic().Resource(gateways).Namespace(o.GetNamespace()).Delete(context.WithoutCancel(l.ctx), o.GetName(), metav1.DeleteOptions{}))
		})
		return
	}
	l.t.Fatal("the chart has no Gateway istiod-gateway")
}

// joinerWithout are the rights of joining in the primary without a resource.
func (l *lab) joinerWithout(resource string) []rbacv1.PolicyRule {
	all := []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"secrets", "services", "namespaces"}, Verbs: []string{"*"}},
		{APIGroups: []string{"apps"}, Resources: []string{"deployments"}, Verbs: []string{"*"}},
		{APIGroups: []string{"networking.istio.io"}, Resources: []string{"gateways"}, Verbs: []string{"*"}},
	}
	return slices.DeleteFunc(all, func(r rbacv1.PolicyRule) bool { return slices.Contains(r.Resources, resource) })
}

// TestBadOptions are refused before anybody is asked.
func TestBadOptions(t *testing.T) {
	require.ErrorContains(t, join.Join(t.Context(), join.Options{Name: "west"}), "the primary is missing")
	l := newLab(t)
	require.ErrorContains(t, join.Join(l.ctx, l.options(func(o *join.Options) { o.Name = "West_1" })), `"West_1" is not a DNS-1123 label`)
	require.ErrorContains(t, join.Join(l.ctx, l.options(func(o *join.Options) { o.TokenLifetime = time.Minute })), "at least 10m0s")
	require.ErrorContains(t, join.Join(l.ctx, l.options(func(o *join.Options) { o.Remote = nil })), "the remote is missing")
}

// A cluster may join drained, and joining again does not end a drain.
func TestJoinWithWeight(t *testing.T) {
	l := newLab(t)
	weight := func(n uint32) func(*join.Options) { return func(o *join.Options) { o.Weight = &n } }
	require.NoError(t, join.Join(l.ctx, l.options(weight(0))))
	defer func() {
		require.NoError(t, join.Leave(l.ctx, l.options()))
		l.gone("istio-system")
	}()
	s := l.secret()
	require.Equal(t, "0", s.Annotations[multicluster.WeightAnnotation])

	require.NoError(t, join.Join(l.ctx, l.options()))
	require.Equal(t, s.ResourceVersion, l.secret().ResourceVersion, "nothing asked for, nothing changed")
	_ = l.said()
	require.NoError(t, join.Join(l.ctx, l.options(weight(40))))
	require.Contains(t, l.said(), "east  changed    Secret istio-system/istio-remote-secret-west: weight 40")
	next := l.secret()
	require.Equal(t, "40", next.Annotations[multicluster.WeightAnnotation])
	require.Equal(t, s.Data, next.Data, "the token stays: nobody reads the cluster again")

	// A token that is made anew keeps the weight, whoever wrote it.
	later := func(o *join.Options) { o.Now = func() time.Time { return time.Now().Add(13 * 24 * time.Hour) } }
	for _, written := range []string{"40", "70"} {
		n := uint32(70)
		if written == "70" {
			_, err := multicluster.WriteWeight(l.ctx, l.east.Client(), "istio-system", "west", &n, false)
			require.NoError(t, err)
		}
		before := l.secret()
		require.NoError(t, join.Join(l.ctx, l.options(later)))
		require.NotEqual(t, before.Data, l.secret().Data)
		require.Equal(t, written, l.secret().Annotations[multicluster.WeightAnnotation])
	}
	_, err := multicluster.WriteWeight(l.ctx, l.east.Client(), "istio-system", "west", nil, false)
	require.NoError(t, err)
	require.NotContains(t, l.secret().Annotations, multicluster.WeightAnnotation)
}
