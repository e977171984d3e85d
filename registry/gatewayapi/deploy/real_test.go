package deploy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/registry/config"
	"github.com/isthmus-mesh/isthmus/registry/gatewayapi"
	"github.com/isthmus-mesh/isthmus/registry/kube"
	"github.com/isthmus-mesh/isthmus/testenv/apiserver"
)

// lab is a real API server, a Store that reads it and a controller that leads.
type lab struct {
	t       *testing.T
	ctx     context.Context
	c       *apiserver.Cluster
	ctl     *Controller
	refuse  atomic.Pointer[string] // why pods would not be injected
	changes atomic.Int64
	events  *record.FakeRecorder
}

func newLab(t *testing.T) *lab {
	t.Helper()
	apiserver.NeedBinary(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	c, err := apiserver.Start(ctx, apiserver.Config{Name: "east"})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Stop()) })
	require.NoError(t, c.InstallIstioCRDs(ctx))
	require.NoError(t, c.EnsureNamespace(ctx, "istio-system"))
	l := &lab{t: t, ctx: ctx, c: c, events: record.NewFakeRecorder(1000)}
	store := registry.NewStore(registry.Config{Primary: "east", Settings: config.Defaults()})
	source, err := kube.New(kube.Config{Cluster: "east", REST: c.REST(), Primary: true})
	require.NoError(t, err)
	l.ctl, err = New(Config{Dynamic: c.Dynamic(), Store: store, Primary: "east", Namespace: "istio-system", CopyMetadata: true, Events: l.events,
		Injects: func(string, map[string]string, []string, *corev1.Pod) error {
			if why := l.refuse.Load(); why != nil {
				return errors.New(*why)
			}
			return nil
		}})
	require.NoError(t, err)
	running, stop := context.WithCancel(ctx)
	done := make(chan error, 2)
	go func() { done <- source.Run(running, store.NewSink("east")) }()
	go func() {
		l.ctl.Lead(running, func() { l.changes.Add(1) })
		done <- nil
	}()
	t.Cleanup(func() {
		stop()
		for range 2 {
			require.NoError(t, <-done)
		}
		_, settled := l.ctl.State(gatewayapi.Name{Namespace: "parameters", Name: "gw"})
		require.False(t, settled, "who does not lead knows nothing")
	})
	return l
}

func (l *lab) apply(text string) {
	l.t.Helper()
	require.NoError(l.t, l.c.Apply(l.ctx, []byte(text)))
}

// get reads an object by the key of its kind, nil if there is none.
func (l *lab) get(key, namespace, name string) *unstructured.Unstructured {
	l.t.Helper()
	for _, k := range kinds() {
		if k.key != key {
			continue
		}
		o, err := l.c.Dynamic().Resource(k.gvr()).Namespace(namespace).Get(l.ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		require.NoError(l.t, err)
		return o
	}
	l.t.Fatal(key)
	return nil
}

func (l *lab) eventually(what string, ok func() bool) {
	l.t.Helper()
	require.Eventually(l.t, ok, time.Minute, 20*time.Millisecond, what)
}

func (l *lab) says(namespace, text string) {
	l.t.Helper()
	var last gatewayapi.Infrastructure
	if !waits(l.ctx, func() bool {
		last, _ = l.ctl.State(gatewayapi.Name{Namespace: namespace, Name: "gw"})
		return strings.Contains(last.Parameters+last.Message, text)
	}) {
		l.t.Fatalf("want %q, got %+v", text, last)
	}
}

func waits(ctx context.Context, ok func() bool) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
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

// gateway is a Gateway gw; more are fields of its metadata and specification.
func gateway(namespace, metadata, spec string) string {
	return fmt.Sprintf(`
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw, namespace: %s%s}
spec: {gatewayClassName: istio, listeners: [{name: http, port: 80, protocol: HTTP}]%s}`, namespace, metadata, spec)
}

// TestRealAPIServer leads against a real API server.
func TestRealAPIServer(t *testing.T) {
	l := newLab(t)
	for name, f := range map[string]func(*testing.T, string){
		"parameters": l.parameters, "taken-over": l.takenOver, "revisions": l.revisions, "accounts": l.accounts, "not-injected": l.notInjected, "by-hand": l.byHand,
		"earlier": l.earlier, "refused": l.refused, "twice": l.twice,
	} {
		t.Run(name, func(t *testing.T) {
			l.t = t
			require.NoError(t, l.c.EnsureNamespace(l.ctx, name))
			f(t, name)
		})
	}
}

// parameters: an autoscaler and a budget come and go with their overlays, bad
// parameters are told and change nothing, replicas are the autoscaler's.
func (l *lab) parameters(t *testing.T, ns string) {
	options := func(data string) string {
		return "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: options, namespace: " + ns + "}\ndata: {" + data + "}\n---"
	}
	l.apply(gateway(ns, "", ", infrastructure: {parametersRef: {group: '', kind: ConfigMap, name: options}}"))
	l.says(ns, "ConfigMap parameters/options, which is not there")
	require.Nil(t, l.get(keyDeployment, ns, "gw-istio"))
	l.apply(options(`deployment: "spec: {replicas: 2}", podDisruptionBudget: "spec: {minAvailable: 1}", horizontalPodAutoscaler: "spec: {maxReplicas: 5}"`) +
		gateway(ns, ", annotations: {look: again}", ", infrastructure: {parametersRef: {group: '', kind: ConfigMap, name: options}}"))
	l.eventually("all objects are there", func() bool { return l.get(keyScaler, ns, "gw-istio") != nil && l.get(keyBudget, ns, "gw-istio") != nil })
	replicas := func() int64 {
		n, _, _ := unstructured.NestedInt64(l.get(keyDeployment, ns, "gw-istio").Object, "spec", "replicas")
		return n
	}
	_, err := l.c.Dynamic().Resource(kindOf(l.get(keyDeployment, ns, "gw-istio")).gvr()).Namespace(ns).Patch(l.ctx, "gw-istio", types.MergePatchType,
		[]byte(`{"spec":{"replicas":4}}`), metav1.PatchOptions{FieldManager: "autoscaler"}, "scale")
	require.NoError(t, err)
	l.apply(options(`deployment: "spec: {replicas: 2, minReadySeconds: 7}", horizontalPodAutoscaler: "spec: {maxReplicas: 6}"`))
	l.eventually("the budget is gone", func() bool { return l.get(keyBudget, ns, "gw-istio") == nil })
	l.eventually("the rest has changed", func() bool {
		n, _, _ := unstructured.NestedInt64(l.get(keyDeployment, ns, "gw-istio").Object, "spec", "minReadySeconds")
		return n == 7
	})
	require.Equal(t, int64(4), replicas(), "the autoscaler's word stays")
	before := l.get(keyDeployment, ns, "gw-istio").GetResourceVersion()
	l.apply(options(`deployment: "spec: {template: {spec: {hostNetwork: true}}}"`))
	l.says(ns, "spec.template.spec.hostNetwork is refused in parameters beside a Gateway")
	require.Equal(t, before, l.get(keyDeployment, ns, "gw-istio").GetResourceVersion())
	require.NotNil(t, l.get(keyScaler, ns, "gw-istio"), "bad parameters take nothing away")
	l.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: mine, namespace: istio-system, labels: {gateway.istio.io/defaults-for-class: other}}\ndata: {nonsense: x}")
}

// takenOver: what istiod made goes on as ours, without what istiod rendered.
func (l *lab) takenOver(t *testing.T, ns string) {
	l.refuse.Store(new(string)) // nothing is made until istiod's objects are there
	l.apply(gateway(ns, "", ""))
	gw, err := l.c.Dynamic().Resource(schema.GroupVersionResource{Group: gatewayv1.GroupName, Version: "v1", Resource: "gateways"}).Namespace(ns).Get(l.ctx, "gw", metav1.GetOptions{})
	require.NoError(t, err)
	l.says(ns, "would not get their proxy")
	var old unstructured.Unstructured
	require.NoError(t, yaml.Unmarshal([]byte(`
apiVersion: apps/v1
kind: Deployment
metadata:
  name: gw-istio
  namespace: `+ns+`
  labels: {gateway.istio.io/managed: istio.io-gateway-controller, gateway.networking.k8s.io/gateway-name: gw}
  ownerReferences: [{apiVersion: gateway.networking.k8s.io/v1beta1, kind: Gateway, name: gw, uid: `+string(gw.GetUID())+`}]
spec:
  selector: {matchLabels: {gateway.networking.k8s.io/gateway-name: gw, istio.io/gateway-name: gw}}
  template:
    metadata: {labels: {gateway.networking.k8s.io/gateway-name: gw, istio.io/gateway-name: gw, sidecar.istio.io/inject: "false"}}
    spec:
      serviceAccountName: gw-istio
      containers: [{name: istio-proxy, image: 'istio/proxyv2:1', args: [proxy, router], volumeMounts: [{name: istio-data, mountPath: /x}]}]
      volumes: [{name: istio-data, emptyDir: {}}]`), &old.Object))
	_, err = l.c.Dynamic().Resource(kindOf(&old).gvr()).Namespace(ns).Apply(l.ctx, "gw-istio", &old, metav1.ApplyOptions{FieldManager: gatewayapi.Controller})
	require.NoError(t, err)
	l.refuse.Store(nil)
	l.eventually("istiod has no fields any more", func() bool {
		o := l.get(keyDeployment, ns, "gw-istio")
		pod := podOf(o)
		return !istiods(o) && pod.Spec.Containers[0].Image == proxyImage
	})
	pod := podOf(l.get(keyDeployment, ns, "gw-istio"))
	require.Empty(t, pod.Spec.Volumes)
	require.Empty(t, pod.Spec.Containers[0].Args)
	require.Equal(t, "true", pod.Labels[labelInject])
	require.Equal(t, "gw", pod.Labels["istio.io/gateway-name"], "the selector cannot change")
}

// revisions: others care for Gateways that ask for another revision; a tag is as
// good as a revision.
func (l *lab) revisions(t *testing.T, ns string) {
	l.apply(gateway(ns, ", labels: {istio.io/rev: prod}", ""))
	l.apply(strings.ReplaceAll(gateway(ns, "", ""), "name: gw,", "name: ours,"))
	l.eventually("the other Gateway has routers", func() bool { return l.get(keyDeployment, ns, "ours-istio") != nil })
	require.Nil(t, l.get(keyDeployment, ns, "gw-istio"))
	l.apply("apiVersion: admissionregistration.k8s.io/v1\nkind: MutatingWebhookConfiguration\nmetadata: {name: tag, labels: {istio.io/tag: prod, istio.io/rev: default}}")
	l.eventually("the tag is ours", func() bool { return l.get(keyDeployment, ns, "gw-istio") != nil })
	require.Equal(t, "prod", podOf(l.get(keyDeployment, ns, "gw-istio")).Labels[labelRevision])
}

// accounts: somebody else's is used only if its maker says so.
func (l *lab) accounts(t *testing.T, ns string) {
	account := func(labels string) string {
		return "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: admin, namespace: " + ns + labels + "}\n---"
	}
	l.apply(account("") + gateway(ns, ", annotations: {gateway.istio.io/service-account: admin}", ""))
	l.says(ns, "ServiceAccount accounts/admin was made by ")
	require.Nil(t, l.get(keyDeployment, ns, "gw-istio"))
	l.apply(account(", labels: {gateway.networking.k8s.io/gateway-name: gw}"))
	l.eventually("the account is used", func() bool { return l.get(keyDeployment, ns, "gw-istio") != nil })
	require.Equal(t, "admin", podOf(l.get(keyDeployment, ns, "gw-istio")).Spec.ServiceAccountName)
	require.Empty(t, l.get(keyAccount, ns, "admin").GetOwnerReferences(), "and stays its maker's")
}

// notInjected: pods that would not get their proxy are not made.
func (l *lab) notInjected(t *testing.T, ns string) {
	why := "no webhook is asked"
	l.refuse.Store(&why)
	l.apply(gateway(ns, "", ""))
	l.says(ns, why)
	require.Nil(t, l.get(keyService, ns, "gw-istio"))
	l.refuse.Store(nil)
	_, err := l.c.Client().CoreV1().Namespaces().Patch(l.ctx, ns, types.MergePatchType, []byte(`{"metadata":{"labels":{"x":"y"}}}`), metav1.PatchOptions{})
	require.NoError(t, err)
	l.eventually("then they are", func() bool { return l.get(keyService, ns, "gw-istio") != nil })
}

// byHand: a Gateway that names its Service gets nothing, and loses what it had.
func (l *lab) byHand(_ *testing.T, ns string) {
	l.apply(gateway(ns, "", ""))
	l.eventually("routers are made", func() bool { return l.get(keyDeployment, ns, "gw-istio") != nil })
	l.apply(gateway(ns, "", ", addresses: [{type: Hostname, value: ingress}]"))
	l.eventually("and go", func() bool {
		return l.get(keyDeployment, ns, "gw-istio") == nil && l.get(keyService, ns, "gw-istio") == nil && l.get(keyAccount, ns, "gw-istio") == nil
	})
}

// earlier: what belongs to a Gateway that is gone is waited for; what has lost its
// owner is taken up again.
func (l *lab) earlier(t *testing.T, ns string) {
	l.apply(gateway(ns, "", ""))
	l.eventually("routers are made", func() bool { return l.get(keyDeployment, ns, "gw-istio") != nil })
	orphan := metav1.DeletePropagationOrphan
	gateways := l.c.Dynamic().Resource(schema.GroupVersionResource{Group: gatewayv1.GroupName, Version: "v1", Resource: "gateways"}).Namespace(ns)
	require.NoError(t, gateways.Delete(l.ctx, "gw", metav1.DeleteOptions{PropagationPolicy: &orphan}))
	l.eventually("it is gone", func() bool {
		_, err := gateways.Get(l.ctx, "gw", metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
	uid := l.get(keyDeployment, ns, "gw-istio").GetUID()
	l.apply(gateway(ns, "", ""))
	gw, err := gateways.Get(l.ctx, "gw", metav1.GetOptions{})
	require.NoError(t, err)
	l.eventually("they belong to the new one", func() bool {
		owners := l.get(keyDeployment, ns, "gw-istio").GetOwnerReferences()
		return len(owners) == 1 && owners[0].UID == gw.GetUID()
	})
	require.Equal(t, uid, l.get(keyDeployment, ns, "gw-istio").GetUID())
}

// refused: what the API server refuses is told.
func (l *lab) refused(t *testing.T, ns string) {
	l.apply(gateway(ns, ", annotations: {networking.istio.io/service-type: ClusterIP}", ", infrastructure: {parametersRef: {group: '', kind: ConfigMap, name: options}}") +
		"\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: options, namespace: " + ns + "}\ndata: {service: 'spec: {externalTrafficPolicy: Local}'}")
	l.says(ns, "apply Service refused/gw-istio for Gateway gw")
	l.eventually("an Event says so", func() bool {
		select {
		case e := <-l.events.Events:
			return strings.Contains(e, "NotApplied")
		default:
			return false
		}
	})
	require.Positive(t, l.changes.Load())
}

// twice: applying the same again changes nothing, whatever is made.
func (l *lab) twice(t *testing.T, ns string) {
	files, err := filepath.Glob("testdata/make/*.yaml")
	require.NoError(t, err)
	applied := 0
	for i, file := range files {
		if strings.HasSuffix(file, ".golden.yaml") {
			continue
		}
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		in := fixture(t, string(text))
		in.Gateway.Namespace, in.Gateway.Name = ns, fmt.Sprintf("gw%d", i)
		delete(in.Gateway.Annotations, gatewayapi.AnnotationName)
		in.Live = nil
		in.Gateway.Annotations = map[string]string{annotationServiceType: "LoadBalancer"}
		objects, err := Make(in)
		require.NoError(t, err, file)
		for _, o := range objects.List {
			o.SetOwnerReferences(nil) // the Gateway is not there: it would be collected
			var versions []string
			for range 2 {
				now, err := l.c.Dynamic().Resource(kindOf(o).gvr()).Namespace(ns).Apply(l.ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: FieldManager})
				require.NoError(t, err, file)
				versions = append(versions, now.GetResourceVersion())
			}
			require.Equal(t, versions[0], versions[1], "%s of %s", o.GetKind(), file)
			applied++
		}
	}
	require.Greater(t, applied, 15)
}
