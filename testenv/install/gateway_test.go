package install

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/serve"
	"github.com/isthmus-mesh/isthmus/registry/gatewayapi/deploy"
	"github.com/isthmus-mesh/isthmus/testenv/plane"
)

// gatewayAPI makes the primary take Gateways and their classes, with the schemas
// that users have.
func (w *world) gatewayAPI() {
	w.t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/gateway-api").Output()
	require.NoError(w.t, err)
	for _, name := range []string{"gatewayclasses", "gateways"} {
		text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "config/crd/standard/gateway.networking.k8s.io_"+name+".yaml"))
		require.NoError(w.t, err)
		var definition unstructured.Unstructured
		require.NoError(w.t, yaml.Unmarshal(text, &definition.Object))
		unstructured.RemoveNestedField(definition.Object, "status")
		require.NoError(w.t, w.clusters["east"].ApplyObjects(w.ctx, &definition))
	}
}

// edge is a namespace of its own for a test, which is emptied at the end.
func (w *world) edge(name string) {
	w.t.Helper()
	require.NoError(w.t, w.clusters["east"].EnsureNamespace(w.ctx, name))
	w.t.Cleanup(func() {
		_ = w.clusters["east"].Client().CoreV1().Namespaces().Delete(context.WithoutCancel(w.ctx), name, metav1.DeleteOptions{})
	})
}

func resources() map[string]schema.GroupVersionResource {
	return map[string]schema.GroupVersionResource{
		"Gateway":        {Group: gatewayv1.GroupName, Version: "v1", Resource: "gateways"},
		"ServiceAccount": {Version: "v1", Resource: "serviceaccounts"},
		"Service":        {Version: "v1", Resource: "services"},
		"Deployment":     {Group: "apps", Version: "v1", Resource: "deployments"},
	}
}

// get reads an object of the primary, nil if there is none.
func (w *world) get(kind, namespace, name string) *unstructured.Unstructured {
	w.t.Helper()
	o, err := w.clusters["east"].Dynamic().Resource(resources()[kind]).Namespace(namespace).Get(w.ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	require.NoError(w.t, err)
	return o
}

// patch changes an object of the primary as another manager.
func (w *world) patch(kind, namespace, name, patch string, subresources ...string) {
	w.t.Helper()
	_, err := w.clusters["east"].Dynamic().Resource(resources()[kind]).Namespace(namespace).Patch(w.ctx, name, types.MergePatchType, []byte(patch),
		metav1.PatchOptions{FieldManager: "somebody"}, subresources...)
	require.NoError(w.t, err)
}

func (w *world) gatewayObject(namespace, name, class string) string {
	return `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: ` + name + `, namespace: ` + namespace + `}
spec:
  gatewayClassName: ` + class + `
  listeners: [{name: http, port: 80, protocol: HTTP}]`
}

// programmed is condition Programmed of a Gateway, and the status that it is in.
func (w *world) programmed(namespace, name string) (metav1.Condition, gatewayv1.GatewayStatus) {
	w.t.Helper()
	o := w.get("Gateway", namespace, name)
	require.NotNil(w.t, o)
	gw := &gatewayv1.Gateway{}
	require.NoError(w.t, runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, gw))
	c := apimeta.FindStatusCondition(gw.Status.Conditions, string(gatewayv1.GatewayConditionProgrammed))
	if c == nil || c.ObservedGeneration != gw.Generation {
		return metav1.Condition{}, gw.Status
	}
	return *c, gw.Status
}

func (w *world) awaitProgrammed(namespace, name, reason string) (metav1.Condition, gatewayv1.GatewayStatus) {
	w.t.Helper()
	var c metav1.Condition
	var s gatewayv1.GatewayStatus
	if !plane.Wait(w.ctx, func() bool { c, s = w.programmed(namespace, name); return c.Reason == reason }) {
		w.t.Fatalf("Gateway %s/%s: %+v", namespace, name, s)
	}
	return c, s
}

func (w *world) made(namespace, name string) bool {
	w.t.Helper()
	return w.get("ServiceAccount", namespace, name) != nil && w.get("Service", namespace, name) != nil && w.get("Deployment", namespace, name) != nil
}

// refused is how many requests the primary has refused for want of rights.
func (w *world) refused() int {
	w.t.Helper()
	raw, err := w.clusters["east"].Client().Discovery().RESTClient().Get().AbsPath("/metrics").DoRaw(w.ctx)
	require.NoError(w.t, err)
	total := 0
	for line := range strings.Lines(string(raw)) {
		if strings.HasPrefix(line, "apiserver_request_total{") && strings.Contains(line, `code="403"`) {
			n, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndex(line, " "):]), 64)
			require.NoError(w.t, err)
			total += int(n)
		}
	}
	return total
}

// routerPod creates the pod that a Deployment's controllers would.
func (w *world) routerPod(namespace, name string) *corev1.Pod {
	w.t.Helper()
	d, err := w.clusters["east"].Client().AppsV1().Deployments(namespace).Get(w.ctx, name, metav1.GetOptions{})
	require.NoError(w.t, err)
	p := &corev1.Pod{ObjectMeta: d.Spec.Template.ObjectMeta, Spec: d.Spec.Template.Spec}
	p.Name, p.Namespace = name+"-1", namespace
	return w.create("east", p)
}

// TestGatewayRouters: with the rights of the chart a Gateway gets an account, a
// Service and a Deployment whose pods get their proxy from the real webhook; its
// status follows them; edits are put back and others' fields stay; applying again
// changes nothing; all of it goes with the Gateway.
func TestGatewayRouters(t *testing.T) {
	w := newWorld(t)
	w.gatewayAPI()
	w.edge("edge")
	refused := w.refused()
	p := w.start("istiod-0")
	w.hasBundle(p, "east", injector)
	east := w.clusters["east"]
	require.NoError(t, east.Apply(w.ctx, []byte(w.gatewayObject("edge", "gw", "istio"))))
	w.eventually("the Gateway has routers", func() bool { return w.made("edge", "gw-istio") })
	uid := w.get("Gateway", "edge", "gw").GetUID()
	for _, kind := range []string{"ServiceAccount", "Service", "Deployment"} {
		o := w.get(kind, "edge", "gw-istio")
		require.Equal(t, uid, o.GetOwnerReferences()[0].UID, kind)
		require.Equal(t, "istio.io-gateway-controller", o.GetLabels()["gateway.istio.io/managed"], kind)
	}

	pod := w.routerPod("edge", "gw-istio")
	require.Len(t, pod.Spec.Containers, 1)
	proxy := pod.Spec.Containers[0]
	require.Equal(t, "docker.io/istio/proxyv2:1.31.1", proxy.Image)
	require.Equal(t, []string{"proxy", "router"}, proxy.Args[:2])
	require.Equal(t, "east", proxyEnv(pod)["ISTIO_META_CLUSTER_ID"])
	require.Equal(t, "gw-istio", pod.Spec.ServiceAccountName)

	c, _ := w.awaitProgrammed("edge", "gw", string(gatewayv1.GatewayReasonPending))
	require.Contains(t, c.Message, "Deployment edge/gw-istio has no pod that is available")
	w.patch("Deployment", "edge", "gw-istio", `{"status":{"replicas":1,"readyReplicas":1,"availableReplicas":1}}`, "status")
	w.awaitProgrammed("edge", "gw", string(gatewayv1.GatewayReasonAddressNotAssigned))
	w.patch("Service", "edge", "gw-istio", `{"status":{"loadBalancer":{"ingress":[{"ip":"192.0.2.10"}]}}}`, "status")
	_, s := w.awaitProgrammed("edge", "gw", string(gatewayv1.GatewayReasonProgrammed))
	require.Equal(t, "192.0.2.10", s.Addresses[0].Value)

	w.patch("Deployment", "edge", "gw-istio", `{"metadata":{"annotations":{"theirs":"stays"},"labels":{"gateway.istio.io/managed":null}},"spec":{"replicas":3,
		"template":{"spec":{"serviceAccountName":"default","nodeSelector":{"theirs":"stays"}}}}}`)
	w.patch("Service", "edge", "gw-istio", `{"spec":{"selector":{"gateway.networking.k8s.io/gateway-name":"other"}}}`)
	account := func() string {
		name, _, _ := unstructured.NestedString(w.get("Deployment", "edge", "gw-istio").Object, "spec", "template", "spec", "serviceAccountName")
		return name
	}
	selector := func() string {
		s, _, _ := unstructured.NestedStringMap(w.get("Service", "edge", "gw-istio").Object, "spec", "selector")
		return s["gateway.networking.k8s.io/gateway-name"]
	}
	w.eventually("edits are put back", func() bool { return account() == "gw-istio" && selector() == "gw" })
	d := w.get("Deployment", "edge", "gw-istio")
	require.Equal(t, "istio.io-gateway-controller", d.GetLabels()["gateway.istio.io/managed"])
	require.Equal(t, "stays", d.GetAnnotations()["theirs"])
	replicas, _, _ := unstructured.NestedInt64(d.Object, "spec", "replicas")
	require.Equal(t, int64(3), replicas)

	before := map[string]string{}
	for _, kind := range []string{"ServiceAccount", "Deployment"} {
		before[kind] = w.get(kind, "edge", "gw-istio").GetResourceVersion()
	}
	p.Halt()
	p = w.start("istiod-1") // which applies everything once
	w.patch("Service", "edge", "gw-istio", `{"spec":{"selector":{"gateway.networking.k8s.io/gateway-name":"other"}}}`)
	w.eventually("the new leader puts edits back", func() bool { return selector() == "gw" })
	for kind, version := range before {
		require.Equal(t, version, w.get(kind, "edge", "gw-istio").GetResourceVersion(), "%s: applying again changes nothing", kind)
	}

	w.deleteGateway("edge", "gw")
	w.eventually("all of it is collected", func() bool {
		return w.get("ServiceAccount", "edge", "gw-istio") == nil && w.get("Service", "edge", "gw-istio") == nil && w.get("Deployment", "edge", "gw-istio") == nil
	})
	require.NoError(t, east.Apply(w.ctx, []byte(w.gatewayObject("edge", "gw", "istio"))))
	w.eventually("a new Gateway gets new routers", func() bool { return w.made("edge", "gw-istio") })
	require.NoError(t, east.Apply(w.ctx, []byte(w.gatewayObject("edge", "gw", "istio-remote"))))
	w.eventually("a class without routers has none", func() bool {
		return w.get("Service", "edge", "gw-istio") == nil && w.get("Deployment", "edge", "gw-istio") == nil
	})
	require.Equal(t, refused, w.refused(), "the API server refused something: grant it in the chart, with its reason")
	require.Empty(t, p.Overview().Registry.Problems)
}

func (w *world) deleteGateway(namespace, name string) {
	w.t.Helper()
	require.NoError(w.t, w.clusters["east"].Dynamic().Resource(resources()["Gateway"]).Namespace(namespace).Delete(w.ctx, name, metav1.DeleteOptions{}))
}

// TestGatewayNameTaken: what somebody else made under the name is left alone, and
// the Gateway says so; when it is gone, the Gateway gets its own.
func TestGatewayNameTaken(t *testing.T) {
	w := newWorld(t)
	w.gatewayAPI()
	w.edge("taken")
	w.start("istiod-0")
	east := w.clusters["east"]
	require.NoError(t, east.Apply(w.ctx, []byte(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: gw-istio, namespace: taken}
spec:
  selector: {matchLabels: {app: theirs}}
  template: {metadata: {labels: {app: theirs}}, spec: {containers: [{name: app, image: app}]}}`)))
	theirs := w.get("Deployment", "taken", "gw-istio").GetResourceVersion()
	require.NoError(t, east.Apply(w.ctx, []byte(w.gatewayObject("taken", "gw", "istio"))))
	c, _ := w.awaitProgrammed("taken", "gw", string(gatewayv1.GatewayReasonInvalid))
	require.Contains(t, c.Message, "Deployment taken/gw-istio was made by ")
	require.Contains(t, c.Message, "name-override")
	require.Equal(t, theirs, w.get("Deployment", "taken", "gw-istio").GetResourceVersion())
	require.Nil(t, w.get("Service", "taken", "gw-istio"))
	require.Nil(t, w.get("ServiceAccount", "taken", "gw-istio"))
	w.eventually("an Event says so", func() bool {
		list, err := east.Client().CoreV1().Events("taken").List(w.ctx, metav1.ListOptions{})
		return err == nil && slices.ContainsFunc(list.Items, func(e corev1.Event) bool { return e.Reason == "NameTaken" && e.InvolvedObject.Kind == "Gateway" })
	})
	require.NoError(t, east.Client().AppsV1().Deployments("taken").Delete(w.ctx, "gw-istio", metav1.DeleteOptions{}))
	w.eventually("the Gateway gets its own", func() bool { return w.made("taken", "gw-istio") })
	require.Equal(t, deploy.FieldManager, w.get("Deployment", "taken", "gw-istio").GetManagedFields()[0].Manager)
}

// TestGatewayRoutersOff: with istiod's variable nothing is made, and the status
// says what is missing.
func TestGatewayRoutersOff(t *testing.T) {
	off := serve.Defaults(func(name string) string {
		return map[string]string{"PILOT_ENABLE_GATEWAY_API_DEPLOYMENT_CONTROLLER": "false"}[name]
	})
	require.False(t, off.Gateways.Deploy)
	w := newWorld(t)
	w.gatewayAPI()
	w.edge("without")
	w.start("istiod-0", func(s *serve.Settings) { s.Gateways = off.Gateways })
	require.NoError(t, w.clusters["east"].Apply(w.ctx, []byte(w.gatewayObject("without", "gw", "istio"))))
	c, _ := w.awaitProgrammed("without", "gw", string(gatewayv1.GatewayReasonAddressNotAssigned))
	require.Contains(t, c.Message, "there is no Service without/gw-istio")
	for _, kind := range []string{"ServiceAccount", "Service", "Deployment"} {
		require.Nil(t, w.get(kind, "without", "gw-istio"))
	}
}
