package kube

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// event is one object set or deleted.
type event struct {
	obj  any // what is set, or an object of the name that is deleted
	gone bool
}

func (e event) key() string {
	if o, ok := e.obj.(*mesh.Object); ok {
		return fmt.Sprint(o.Key)
	}
	m := e.obj.(metav1.Object)
	return fmt.Sprintf("%T/%s/%s", e.obj, m.GetNamespace(), m.GetName())
}

func (e event) apply(t *Translator) {
	if !e.gone {
		t.Set(e.obj)
		return
	}
	if o, ok := e.obj.(*mesh.Object); ok {
		t.DeleteObject(o.Key)
		return
	}
	m := e.obj.(metav1.Object)
	kind := map[string]Kind{"*v1.Service": KindService, "*v1.EndpointSlice": KindEndpointSlice, "*v1.Pod": KindPod, "*v1.Node": KindNode,
		"*v1.Namespace": KindNamespace, "*v1.ConfigMap": KindConfigMap, "*v1.Gateway": KindGateway}[fmt.Sprintf("%T", e.obj)]
	t.Delete(kind, m.GetNamespace(), m.GetName())
}

// Few names and addresses, so that objects meet: pods take over addresses,
// slices move between services, endpoints name no pod.
func genEvent(t *rapid.T) event {
	pick := func(label string, from ...string) string { return rapid.SampledFrom(from).Draw(t, label) }
	ns := pick("namespace", "a", "b")
	var obj any
	switch pick("kind", "service", "slice", "slice", "pod", "pod", "node", "namespace", "config", "gateway", "object") {
	case "service":
		s := aService(ns, pick("service", "x", "y"), aPort("http", 80))
		s.Spec.PublishNotReadyAddresses = rapid.Bool().Draw(t, "publish")
		s.Spec.Selector = map[string]string{"app": pick("selector", "web", "none")}
		if rapid.Bool().Draw(t, "gateway") {
			s.Labels = map[string]string{labelNetwork: "n1", labelGatewayPort: "80"}
			s.Annotations = map[string]string{annotationNodeSelector: "{}", annotationAccounts: "sa"}
			s.Spec.Type = corev1.ServiceType(pick("type", "LoadBalancer", "NodePort"))
			s.Spec.Ports[0].NodePort = 30080
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.1"}}
		}
		obj = s
	case "slice":
		var endpoints []discoveryv1.Endpoint
		for range rapid.IntRange(0, 3).Draw(t, "endpoints") {
			e := anEndpoint(pick("ip", "10.0.0.1", "10.0.0.2", "10.0.0.3"), pick("pod", "", "p", "q"))
			ready := rapid.Bool().Draw(t, "ready")
			e.Conditions.Ready = &ready
			endpoints = append(endpoints, e)
		}
		obj = aSlice(ns, pick("slice", "s1", "s2"), pick("of", "x", "y", ""), endpoints...)
	case "pod":
		p := aPod(ns, pick("pod", "p", "q", "r"), pick("ip", "10.0.0.1", "10.0.0.2", "10.0.0.3", ""), pick("node", "n1", "n2", ""))
		p.Spec.HostNetwork = rapid.IntRange(0, 4).Draw(t, "host") == 0
		p.CreationTimestamp = metav1.Unix(int64(rapid.IntRange(0, 2).Draw(t, "age")), 0)
		p.Status.Phase = corev1.PodPhase(pick("phase", "Running", "Running", "Succeeded"))
		p.Labels["app"] = pick("app", "web", "other")
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionStatus(pick("ready", "True", "False"))}}
		obj = p
	case "node":
		obj = aNode(pick("node", "n1", "n2"), pick("region", "r1", "r2"))
	case "namespace":
		obj = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: DefaultNamespace, Labels: map[string]string{labelNetwork: pick("network", "n1", "n2")}}}
	case "config":
		obj = &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "istio", Namespace: DefaultNamespace},
			Data: map[string]string{"mesh": "trustDomain: " + pick("trust", "one", "two", `""`)}}
	case "gateway":
		kind := gatewayv1.IPAddressType
		obj = &gatewayv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "gw", Labels: map[string]string{labelNetwork: pick("network", "n1", "n2")}},
			Spec: gatewayv1.GatewaySpec{Listeners: []gatewayv1.Listener{{Port: gatewayv1.PortNumber(rapid.SampledFrom([]int{15443, 1}).Draw(t, "listener"))}},
				Addresses: []gatewayv1.GatewaySpecAddress{{Type: &kind, Value: "203.0.113.5"}}}}
	case "object":
		obj = &mesh.Object{Key: mesh.ObjectKey{Kind: mesh.KindGateway, Namespace: ns, Name: "g"}, Version: pick("version", "1", "2")}
	}
	return event{obj, rapid.IntRange(0, 3).Draw(t, "gone") == 0}
}

// TestAnyOrder holds two things: what flushes report adds up to what a
// translator that starts with the final objects reports, and the order in which
// it is given them does not matter.
func TestAnyOrder(t *testing.T) {
	for _, derive := range []bool{false, true} {
		t.Run(fmt.Sprintf("derive=%v", derive), func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				cfg := TranslatorConfig{Cluster: "east", DeriveEndpoints: derive}
				live, seen := NewTranslator(cfg), newLedger()
				final := map[string]event{}
				for _, e := range rapid.SliceOfN(rapid.Custom(genEvent), 1, 40).Draw(t, "events") {
					e.apply(live)
					final[e.key()] = e
					if rapid.Bool().Draw(t, "flush") {
						u, ok := live.Flush()
						require.Equal(t, ok, len(u.Services)+len(u.Workloads)+len(u.Objects) > 0 || u.Cluster != nil)
						seen.apply(u)
					}
				}
				u, _ := live.Flush()
				seen.apply(u)
				u, again := live.Flush()
				require.False(t, again, "nothing happened, but a flush reports: %s", render(u))

				fresh := NewTranslator(cfg)
				list := make([]event, 0, len(final))
				for _, e := range final {
					if !e.gone {
						list = append(list, e)
					}
				}
				rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1)) //nolint:gosec // a shuffle
				rng.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
				for _, e := range list {
					e.apply(fresh)
				}
				want := render(fresh.Snapshot())
				require.Equal(t, want, render(seen.update()), "flushes add up")
				require.Equal(t, want, render(live.Snapshot()), "snapshot")
				require.Equal(t, fresh.objects, objectsIn(seen), "objects")
				require.Equal(t, fresh.Pending(), live.Pending(), "pending")
				requireNoLeak(t, live, fresh)
			})
		})
	}
}

func objectsIn(l *ledger) map[mesh.ObjectKey]*mesh.Object { return l.objects }

// requireNoLeak compares the sizes of the indexes: one that keeps what is gone
// grows for ever.
func requireNoLeak(t require.TestingT, live, fresh *Translator) {
	size := func(x *Translator) []int {
		i := x.index
		return []int{len(i.slicesOf), len(i.slicesByPod), len(i.slicesByAddr), len(i.podsByAddr), len(i.podsByNode), len(i.podsIn),
			len(i.selecting), len(i.gatewayServices), len(x.pods), len(x.slices), len(x.services), len(x.nodes), len(x.gateways),
			len(x.sent.services), len(x.sent.workloads), len(x.pending)}
	}
	require.Equal(t, size(fresh), size(live), "index sizes")
}

// TestUnchangedIsSilent: what the API server repeats (a relist) changes nothing.
func TestUnchangedIsSilent(t *testing.T) {
	tr := NewTranslator(TranslatorConfig{Cluster: "east"})
	give := func() {
		tr.Set(aService("a", "x", aPort("http", 80)))
		tr.Set(aSlice("a", "s", "x", anEndpoint("10.0.0.1", "p")))
		tr.Set(aPod("a", "p", "10.0.0.1", "n1"))
		tr.Set(aNode("n1", "r1"))
	}
	give()
	first := tr.Snapshot()
	require.Len(t, first.Services, 1)
	require.Len(t, first.Services[0].Endpoints, 1)
	give()
	u, changed := tr.Flush()
	require.False(t, changed, "reported %s", render(u))
}

// TestSharedValues: an endpoint change keeps the definition's pointer, and all
// endpoints of a pod share one workload with its state, so that the Store's
// comparisons stop at the pointer.
func TestSharedValues(t *testing.T) {
	tr := NewTranslator(TranslatorConfig{Cluster: "east"})
	tr.Set(aService("a", "x", aPort("http", 80)))
	tr.Set(aSlice("a", "s", "x", anEndpoint("10.0.0.1", "p")))
	tr.Set(aPod("a", "p", "10.0.0.1", "n1"))
	before := tr.Snapshot()
	require.Same(t, before.Workloads[0].Workload, before.Services[0].Endpoints[0].Workload)
	tr.Set(aPod("a", "q", "10.0.0.2", "n1"))
	tr.Set(aSlice("a", "s", "x", anEndpoint("10.0.0.1", "p"), anEndpoint("10.0.0.2", "q")))
	after, ok := tr.Flush()
	require.True(t, ok)
	require.Len(t, after.Services[0].Endpoints, 2)
	require.Same(t, before.Services[0].Definition, after.Services[0].Definition)
	require.Same(t, before.Workloads[0].Workload, after.Services[0].Endpoints[0].Workload)
	require.Len(t, after.Workloads, 1, "the pod that did not change is not reported")
}

// TestPendingPod: an endpoint whose pod is not known waits for it, unless pods
// cannot be read at all.
func TestPendingPod(t *testing.T) {
	tr := NewTranslator(TranslatorConfig{Cluster: "east"})
	tr.Set(aService("a", "x", aPort("http", 80)))
	tr.Set(aSlice("a", "s", "x", anEndpoint("10.0.0.1", "p")))
	endpoints := func() []mesh.Endpoint { return tr.Snapshot().Services[0].Endpoints }
	require.Empty(t, endpoints())
	require.Equal(t, 1, tr.Pending())

	tr.SetPodsUnknown(true)
	require.Len(t, endpoints(), 1)
	require.Empty(t, endpoints()[0].Workload.Kind, "an address without a pod")
	require.False(t, endpoints()[0].Workload.MTLS)
	require.Zero(t, tr.Pending())

	tr.SetPodsUnknown(false)
	tr.Set(aPod("a", "p", "10.0.0.1", "n1"))
	u, _ := tr.Flush()
	require.Len(t, u.Services, 1, "the pod's arrival translates the service again")
	require.Equal(t, "Pod", endpoints()[0].Workload.Kind)
	require.True(t, endpoints()[0].Workload.MTLS)
}

// TestTrustDomain: it never depends on what came first, a bad configuration
// keeps the last good one, and an override wins.
func TestTrustDomain(t *testing.T) {
	problems := registry.NewProblems(nil)
	tr := NewTranslator(TranslatorConfig{Cluster: "east", Problems: problems})
	meshConfig := func(text string) {
		tr.Set(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "istio", Namespace: DefaultNamespace}, Data: map[string]string{"mesh": text}})
	}
	got := func() []string {
		u := tr.Snapshot()
		return []string{u.Cluster.TrustDomain, u.Workloads[0].Workload.Identity.TrustDomain}
	}
	both := func(s string) []string { return []string{s, s} }
	tr.Set(aPod("a", "p", "10.0.0.1", "n1"))
	require.Equal(t, both("cluster.local"), got())
	meshConfig("trustDomain: east.example")
	require.Equal(t, both("east.example"), got())
	for _, bad := range []string{"trustDomain: [", "trustDomain: a/b", "trustDomain: {}"} {
		meshConfig(bad)
		require.Equal(t, both("east.example"), got(), bad)
		require.Len(t, problems.List(), 1, bad)
		require.Equal(t, "data[mesh].trustDomain", problems.List()[0].Field)
	}
	tr.SetTrustDomain("override.example")
	require.Equal(t, both("override.example"), got())
	tr.SetTrustDomain("")
	require.Equal(t, both("east.example"), got())
	meshConfig("{}")
	require.Equal(t, both("cluster.local"), got())
	require.Empty(t, problems.List())
}

// TestProblemsEnd: a problem ends when its object is put right and when it goes.
func TestProblemsEnd(t *testing.T) {
	problems := registry.NewProblems(nil)
	tr := NewTranslator(TranslatorConfig{Cluster: "east", Problems: problems})
	bad := aService("a", "x", aPort("http", 0))
	tr.Set(bad)
	require.Len(t, problems.List(), 1)
	require.Equal(t, "spec.ports[0].port", problems.List()[0].Field)
	tr.Set(aService("a", "x", aPort("http", 80)))
	require.Empty(t, problems.List())
	tr.Set(bad)
	tr.Delete(KindService, "a", "x")
	require.Empty(t, problems.List())
}

// TestBadObjectsAreLeftOut: a bad object is named and everything else is served.
func TestBadObjectsAreLeftOut(t *testing.T) {
	problems := registry.NewProblems(nil)
	tr := NewTranslator(TranslatorConfig{Cluster: "east", Problems: problems})
	tr.Set(aService("a", "x", aPort("http", 80)))
	tr.Set(aService("a", "x\xff", aPort("http", 80)))
	poison := aPod("a", "p", "10.0.0.1", "n1")
	poison.Labels["app"] = "\xff"
	tr.Set(poison)
	tr.Set(aPod("a", "q", "10.0.0.2", "n1"))
	tr.Set(aSlice("a", "s", "x", anEndpoint("10.0.0.1", "p"), anEndpoint("10.0.0.2", "q")))
	u := tr.Snapshot()
	require.Len(t, u.Services, 1)
	require.Len(t, u.Services[0].Endpoints, 1, "the good pod")
	require.Equal(t, "problem Pod a/p in cluster east: metadata.labels: are not valid text; the pod is not served\n"+
		"problem Service a/x? in cluster east: metadata.name: name and namespace must be DNS labels; the Service is not served\n", renderProblems(problems))
}

// TestAddressTakenOver: while two pods have one address, the younger has it now.
func TestAddressTakenOver(t *testing.T) {
	tr := NewTranslator(TranslatorConfig{Cluster: "east"})
	aged := func(name string, age int64) *corev1.Pod {
		p := aPod("a", name, "10.0.0.1", "n1")
		p.CreationTimestamp = metav1.Unix(age, 0)
		return p
	}
	owner := func() string { return tr.Snapshot().Services[0].Endpoints[0].Workload.Name }
	tr.Set(aService("a", "x", aPort("http", 80)))
	tr.Set(aSlice("a", "s", "x", anEndpoint("10.0.0.1", "")))
	tr.Set(aged("ended", 1))
	tr.Set(aged("next", 2))
	require.Equal(t, "next", owner())
	tr.Set(aged("ended", 3)) // made anew under its old name and address
	require.Equal(t, "ended", owner())
	tr.Delete(KindPod, "a", "ended")
	require.Equal(t, "next", owner())
}
