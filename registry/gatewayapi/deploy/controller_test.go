package deploy

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/registry/gatewayapi"
)

// TestNewWants: what is missing is told before anything runs.
func TestNewWants(t *testing.T) {
	t.Parallel()
	_, err := New(Config{})
	require.ErrorContains(t, err, "must be set")
}

// TestWhose: whose an object is under a name that is wanted.
func TestWhose(t *testing.T) {
	t.Parallel()
	gw := &gatewayv1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: "gw", Namespace: "edge", UID: "new"}}
	j := &job{gw: gw}
	labels := map[string]string{gatewayapi.LabelManaged: "istio.io-gateway-controller", gatewayapi.LabelGateway: "gw"}
	owned := func(kind, name string, uid types.UID) []metav1.OwnerReference {
		return []metav1.OwnerReference{{APIVersion: "gateway.networking.k8s.io/v1", Kind: kind, Name: name, UID: uid}}
	}
	for name, c := range map[string]struct {
		labels  map[string]string
		owners  []metav1.OwnerReference
		manager string
		whose   owner
		who     string
	}{
		"made for it":                            {labels, owned("Gateway", "gw", "new"), FieldManager, isOurs, ""},
		"made for it by istiod":                  {labels, owned("Gateway", "gw", "new"), "istio.io/gateway-controller", isOurs, ""},
		"its labels were taken off":              {nil, owned("Gateway", "gw", "new"), FieldManager, isOurs, ""},
		"its owners were taken off":              {labels, nil, FieldManager, isOurs, ""},
		"both were":                              {nil, nil, FieldManager, isOurs, ""},
		"restored from a copy":                   {labels, nil, "restore", isOurs, ""},
		"of an earlier one":                      {labels, owned("Gateway", "gw", "old"), FieldManager, isEarlier, ""},
		"of another Gateway":                     {labels, owned("Gateway", "other", "old"), FieldManager, isTheirs, "Gateway other"},
		"of another Gateway that lost its owner": {map[string]string{gatewayapi.LabelManaged: "istio.io-gateway-controller", gatewayapi.LabelGateway: "other"}, nil, FieldManager, isTheirs, FieldManager},
		"a user's":                               {nil, nil, "kubectl", isTheirs, "kubectl"},
		"a user's, owned by the Gateway":         {nil, owned("Gateway", "gw", "new"), "kubectl", isTheirs, "kubectl"},
		"a waypoint's":                           {map[string]string{gatewayapi.LabelManaged: "istio.io-mesh-controller", gatewayapi.LabelGateway: "gw"}, nil, "istiod", isTheirs, "istiod"},
		"of a chart":                             {nil, owned("Release", "gw", "x"), "helm", isTheirs, "Release gw"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := &unstructured.Unstructured{Object: map[string]any{}}
			o.SetLabels(c.labels)
			o.SetOwnerReferences(c.owners)
			o.SetManagedFields([]metav1.ManagedFieldsEntry{{Manager: c.manager, Operation: metav1.ManagedFieldsOperationApply}})
			whose, who := j.whose(o)
			require.Equal(t, c.whose, whose)
			require.Equal(t, c.who, who)
		})
	}
}

// TestMine: which revision cares for a Gateway.
func TestMine(t *testing.T) {
	t.Parallel()
	rev := func(name string) map[string]string { return map[string]string{labelRevision: name} }
	for name, c := range map[string]struct {
		gateway, namespace map[string]string
		names              []string
		mine               bool
	}{
		"nobody says anything, the default":   {nil, nil, []string{"default"}, true},
		"nobody says anything, another":       {nil, nil, []string{"canary"}, false},
		"the namespace asks":                  {nil, rev("canary"), []string{"canary"}, true},
		"the namespace asks for another":      {nil, rev("canary"), []string{"default"}, false},
		"the Gateway's word goes before":      {rev("default"), rev("canary"), []string{"default"}, true},
		"a tag":                               {rev("prod"), nil, []string{"canary", "prod"}, true},
		"nobody is asked who owns no default": {nil, nil, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, c.mine, mine(c.gateway, c.namespace, c.names))
		})
	}
}

// informerOf holds objects.
func informerOf(t *testing.T, objects ...map[string]string) cache.SharedIndexInformer {
	t.Helper()
	i := cache.NewSharedIndexInformer(nil, &unstructured.Unstructured{}, 0, nil)
	for n, labels := range objects {
		o := &unstructured.Unstructured{Object: map[string]any{}}
		o.SetName(string(rune('a' + n)))
		o.SetCreationTimestamp(metav1.NewTime(time.Unix(int64(100-n), 0)))
		o.SetLabels(labels)
		require.NoError(t, i.GetStore().Add(o))
	}
	return i
}

// TestAnswersTo: the names of a revision are its own and those of its tags; a tag
// default of another takes that name away.
func TestAnswersTo(t *testing.T) {
	t.Parallel()
	tag := func(name, revision string) map[string]string {
		return map[string]string{labelTag: name, labelRevision: revision}
	}
	answers := func(revision string, tags ...map[string]string) []string {
		c := &Controller{cfg: Config{Revision: revision}}
		return (&term{c: c, tags: informerOf(t, tags...)}).answersTo()
	}
	require.Equal(t, []string{"default"}, answers(""))
	require.Equal(t, []string{"canary", "prod"}, answers("canary", tag("prod", "canary"), tag("stage", "default")))
	require.Equal(t, []string{"canary", "default"}, answers("canary", tag("default", "canary")))
	require.Empty(t, answers("", tag("default", "canary")))
}

// TestClassDefaults: of several ConfigMaps for a class the oldest counts.
func TestClassDefaults(t *testing.T) {
	t.Parallel()
	of := func(class string) map[string]string { return map[string]string{labelClassDefaults: class} }
	x := &term{defaults: informerOf(t, of("istio"), of("istio"), of("other"))}
	require.Equal(t, "b", x.classDefaults("istio").GetName())
	require.Equal(t, "c", x.classDefaults("other").GetName())
	require.Nil(t, x.classDefaults("none"))
}

// TestState: nothing is said of a Gateway's routers before this term has looked at
// them, unless it cannot for long.
func TestState(t *testing.T) {
	t.Parallel()
	store := registry.NewStore(registry.Config{Primary: "main"})
	sink := store.NewSink("main")
	sink.Replace(registry.Update{})
	for name, class := range map[string]gatewayv1.ObjectName{"gw": "istio", "remote": "istio-remote"} {
		key := mesh.ObjectKey{Kind: mesh.KindGatewayAPIGateway, Namespace: "edge", Name: name}
		sink.Apply(registry.Update{Objects: []registry.ObjectState{{Key: key, Object: &mesh.Object{Key: key, Value: &gatewayv1.GatewaySpec{GatewayClassName: class}}}}})
	}
	now := time.Unix(1000, 0)
	c := &Controller{cfg: Config{Store: store, Clock: func() time.Time { return now }}, known: map[gatewayapi.Name]gatewayapi.Infrastructure{}}
	n := gatewayapi.Name{Namespace: "edge", Name: "gw"}
	settled := func(n gatewayapi.Name) bool { _, ok := c.State(n); return ok }
	require.True(t, settled(gatewayapi.Name{Namespace: "edge", Name: "remote"}), "nothing is made for it")
	require.True(t, settled(gatewayapi.Name{Namespace: "edge", Name: "none"}))
	require.False(t, settled(n))
	c.begin(now)
	require.False(t, settled(n))
	now = now.Add(patience + time.Second)
	require.True(t, settled(n))
	c.begin(now)
	require.True(t, c.know(n, gatewayapi.Infrastructure{}), "that nothing is wrong is news the first time")
	require.False(t, c.know(n, gatewayapi.Infrastructure{}))
	require.True(t, settled(n))
	c.forget(n)
	require.False(t, settled(n))
}

// TestDue: what is new is applied at once, what has to be put back again and again
// waits longer every time, and when there was peace it is put back at once again.
func TestDue(t *testing.T) {
	t.Parallel()
	var w written
	now := time.Unix(1000, 0)
	ok, _ := w.due("a", now)
	require.True(t, ok)
	ok, in := w.due("a", now)
	require.False(t, ok)
	require.Equal(t, retryMin, in)
	ok, _ = w.due("b", now)
	require.True(t, ok, "it says something else")
	var waits []time.Duration
	for range 20 {
		now = w.next
		ok, _ = w.due("b", now)
		require.True(t, ok)
		waits = append(waits, w.wait)
	}
	require.IsNonDecreasing(t, waits)
	require.Equal(t, 2*retryMin, waits[0])
	require.Equal(t, retryMax, waits[len(waits)-1])
	ok, _ = w.due("b", w.next.Add(calm+time.Second))
	require.True(t, ok)
	require.Equal(t, retryMin, w.wait)
}

// TestReached: who can reach routers.
func TestReached(t *testing.T) {
	t.Parallel()
	object := func(status, spec map[string]any) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{"metadata": map[string]any{"name": "gw-istio", "namespace": "edge"}, "status": status, "spec": spec}}
	}
	there := object(map[string]any{"availableReplicas": int64(1)}, nil)
	balanced := map[string]any{"type": "LoadBalancer"}
	for name, c := range map[string]struct {
		service, deployment *unstructured.Unstructured
		reason, message     string
	}{
		"nothing is there":     {nil, nil, "", ""},
		"no pod":               {object(nil, balanced), object(nil, nil), "Pending", "Deployment edge/gw-istio has no pod that is available"},
		"no pod can be made":   {object(nil, balanced), object(map[string]any{"conditions": []any{map[string]any{"type": "ReplicaFailure", "status": "True", "message": "quota"}}}, nil), "Pending", ": quota"},
		"no address":           {object(nil, balanced), there, "AddressNotAssigned", "Service edge/gw-istio has no address"},
		"an address":           {object(map[string]any{"loadBalancer": map[string]any{"ingress": []any{map[string]any{"ip": "192.0.2.1"}}}}, balanced), there, "", ""},
		"within the cluster":   {object(nil, map[string]any{"type": "ClusterIP"}), there, "", ""},
		"an address by policy": {object(nil, map[string]any{"type": "LoadBalancer", "externalIPs": []any{"192.0.2.1"}}), there, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := reached(c.service, c.deployment)
			require.Equal(t, c.reason, got.Reason)
			require.Contains(t, got.Message, c.message)
		})
	}
}

// TestSameButStatus: our own words about a Gateway ask for nothing.
func TestSameButStatus(t *testing.T) {
	t.Parallel()
	before := &mesh.Object{Generation: 1, Labels: map[string]string{"a": "b"}}
	after := *before
	after.Status = &mesh.ObjectStatus{Written: "{}"}
	require.True(t, sameButStatus(before, &after))
	for _, change := range []func(*mesh.Object){
		func(o *mesh.Object) { o.Generation = 2 }, func(o *mesh.Object) { o.Generation = 0 }, func(o *mesh.Object) { o.Labels = nil },
		func(o *mesh.Object) { o.Annotations = map[string]string{"x": "y"} }, func(o *mesh.Object) { o.Created = time.Unix(1, 0) },
	} {
		other := after
		change(&other)
		require.False(t, sameButStatus(before, &other))
	}
	require.False(t, sameButStatus(nil, before))
	require.False(t, sameButStatus(before, nil))
}
