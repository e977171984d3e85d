package scenario

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/install"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/serve"
	"github.com/isthmus-mesh/isthmus/manifests"
	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/multicluster"
	"github.com/isthmus-mesh/isthmus/registry/config"
	"github.com/isthmus-mesh/isthmus/registry/config/status"
	"github.com/isthmus-mesh/isthmus/testenv/apiserver"
	"github.com/isthmus-mesh/isthmus/testenv/plane"
)

// TestInstalledRights runs the control plane with exactly what the charts grant
// in the primary and in a remote, and lets it do everything that writes or
// reads. Whoever stands between it and the API servers sees what is refused: nothing.
func TestInstalledRights(t *testing.T) {
	w := NewWorld(t, "east", "west")
	w.install("east", "primary", "global.multiCluster.clusterName=east")
	w.install("west", "remote", "global.multiCluster.clusterName=west", "global.remotePilotAddress=192.0.2.1")
	_, err := w.Clusters["west"].Client().CoreV1().Namespaces().Patch(w.ctx, multicluster.SystemNamespace, types.MergePatchType,
		[]byte(`{"metadata":{"annotations":{"topology.istio.io/controlPlaneClusters":"east"}}}`), metav1.PatchOptions{})
	require.NoError(t, err)
	for _, cluster := range []string{"east", "west"} {
		witness, err := w.Clusters[cluster].Witness()
		require.NoError(t, err)
		t.Cleanup(witness.Close)
		w.witnesses[cluster] = witness
	}

	// The reader's kubeconfig beside one that is refused, about which an Event is written.
	w.Secret(multicluster.SecretPrefix+"west", map[string][]byte{"west": w.as("west", multicluster.ReaderAccount)})
	w.Secret(multicluster.SecretPrefix+"broken", map[string][]byte{"broken": []byte("no kubeconfig")})
	kubeconfig := writeFile(t, t.TempDir(), "config", w.as("east", "istiod"))
	w.Serve(func(s *serve.Settings) {
		s.Kubeconfig, s.External = kubeconfig, true
		s.SecureGRPCAddr, s.HTTPSAddr = "127.0.0.1:0", "127.0.0.1:0"
	})
	w.Plane.AwaitHealth("west", multicluster.HealthOK)
	w.awaitEvent(multicluster.SecretPrefix+"broken", "broken")
	for _, cluster := range []string{"east", "west"} {
		w.Eventually("the roots are in cluster "+cluster, func() bool {
			_, err := w.Clusters[cluster].Client().CoreV1().ConfigMaps("shop").Get(w.ctx, "istio-ca-root-cert", metav1.GetOptions{})
			return err == nil
		})
		require.Empty(t, w.problems(cluster))
	}
	w.Apply("east", `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: outside, namespace: shop}
spec: {hosts: [outside.example.com], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}`)
	entries := w.Clusters["east"].Dynamic().Resource(schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "serviceentries"}).Namespace("shop")
	w.t.Cleanup(func() { _ = entries.Delete(context.WithoutCancel(w.ctx), "outside", metav1.DeleteOptions{}) })
	w.Eventually("the host has an address", func() bool {
		o, err := entries.Get(w.ctx, "outside", metav1.GetOptions{})
		if err != nil {
			return false
		}
		list, _, _ := unstructured.NestedSlice(o.Object, "status", "addresses")
		return len(list) > 0
	})
	w.Apply("east", poison("")["virtualservices"])
	api, _ := w.poisoned("virtualservices")
	w.t.Cleanup(func() { _ = api.Delete(context.WithoutCancel(w.ctx), "virtualservices", metav1.DeleteOptions{}) })
	w.Eventually("the author of an object that is refused is told", func() bool {
		said, _ := w.told("virtualservices", status.ConditionType)
		return said != ""
	})
	w.awaitRouters()
	_, err = w.Clusters["east"].Client().CoreV1().Secrets(multicluster.SystemNamespace).Get(w.ctx, "istio-ca-secret", metav1.GetOptions{})
	require.NoError(t, err, "the CA keeps its key")
	for cluster, witness := range w.witnesses {
		require.Empty(t, witness.Refused(), "the API server of cluster %s refused something: grant it in the chart, with its reason", cluster)
	}
}

// awaitRouters has everything made that may be made for a Gateway, and a part of it
// deleted.
func (w *World) awaitRouters() {
	w.t.Helper()
	east := w.Clusters["east"]
	parameters := func(data string) string {
		return "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: options, namespace: shop}\ndata: {" + data + "}\n"
	}
	w.Apply("east", parameters(`podDisruptionBudget: "spec: {minAvailable: 1}", horizontalPodAutoscaler: "spec: {maxReplicas: 2}"`)+`
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: routers, namespace: shop}
spec:
  gatewayClassName: istio
  listeners: [{name: http, port: 80, protocol: HTTP}]
  infrastructure: {parametersRef: {group: "", kind: ConfigMap, name: options}}`)
	gateways := east.Dynamic().Resource(schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gateways"}).Namespace("shop")
	w.t.Cleanup(func() { _ = gateways.Delete(context.WithoutCancel(w.ctx), "routers", metav1.DeleteOptions{}) })
	budget := func() bool {
		_, err := east.Client().PolicyV1().PodDisruptionBudgets("shop").Get(w.ctx, "routers-istio", metav1.GetOptions{})
		return err == nil
	}
	w.Eventually("the Gateway has routers", budget)
	_, err := east.Client().AppsV1().Deployments("shop").Get(w.ctx, "routers-istio", metav1.GetOptions{})
	require.NoError(w.t, err)
	_, err = east.Client().AutoscalingV2().HorizontalPodAutoscalers("shop").Get(w.ctx, "routers-istio", metav1.GetOptions{})
	require.NoError(w.t, err)
	w.Apply("east", parameters(`podDisruptionBudget: "spec: {selector: null}"`))
	w.Eventually("an Event says why not", func() bool {
		list, err := east.Client().CoreV1().Events("shop").List(w.ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=routers"})
		return err == nil && slices.ContainsFunc(list.Items, func(e corev1.Event) bool { return strings.Contains(e.Message, "spec.selector is refused") })
	})
	w.Apply("east", parameters(`horizontalPodAutoscaler: "spec: {maxReplicas: 2}"`))
	w.Eventually("the budget is gone", func() bool { return !budget() })
}

// TestConfigRights: the chart grants reading of every kind of configuration that
// is read, and of no other, and writing the status of Istio's own kinds.
func TestConfigRights(t *testing.T) {
	var read, told []string
	for _, k := range append(config.Kinds(), config.GatewayKinds()...) {
		if k.Kind != mesh.KindGatewayAPIGateway { // which belong to the registry, in every cluster
			read = append(read, k.Resource+"."+k.Group)
		}
	}
	for _, k := range config.Kinds() {
		told = append(told, k.Resource+"/status."+k.Group)
	}
	require.ElementsMatch(t, read, granted(t, nil, "isthmus-istio-system-config", "get", "list", "watch"))
	require.ElementsMatch(t, told, granted(t, nil, "isthmus-istio-system-status", "patch"))
	off := map[string]any{"pilot": map[string]any{"configStatus": false}}
	require.Empty(t, granted(t, off, "isthmus-istio-system-status"))
}

// granted lists what a ClusterRole of the chart grants, each as "resource.group",
// all with the same verbs.
func granted(t *testing.T, values map[string]any, role string, verbs ...any) (out []string) {
	t.Helper()
	objects, err := manifests.Render(manifests.Options{Chart: manifests.Primary, Values: values})
	require.NoError(t, err)
	for _, o := range objects {
		if o.GetName() != role || o.GetKind() != "ClusterRole" {
			continue
		}
		for _, x := range o.Object["rules"].([]any) {
			rule := x.(map[string]any)
			require.Equal(t, verbs, rule["verbs"])
			for _, group := range rule["apiGroups"].([]any) {
				for _, resource := range rule["resources"].([]any) {
					out = append(out, fmt.Sprintf("%s.%s", resource, group))
				}
			}
		}
	}
	return out
}

// install installs a chart and takes it out again at the end, because clusters
// are shared by scenarios.
func (w *World) install(cluster, profile string, set ...string) {
	w.t.Helper()
	plan, err := install.Input{Profile: profile, Set: set}.Plan()
	require.NoError(w.t, err)
	target, err := install.NewTarget(cluster, w.Clusters[cluster].REST())
	require.NoError(w.t, err)
	var said strings.Builder
	// What other scenarios left in a shared cluster is taken over, and goes with the rest.
	i := &install.Installer{Target: target, Out: &said, NoWait: true, Force: true}
	require.NoError(w.t, i.Install(w.ctx, plan), "%s", &said)
	w.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), plane.Patience) // the test's own has ended
		defer cancel()
		for _, x := range plan.Installations {
			if err := i.Uninstall(ctx, x.Release, x.Namespace); err != nil {
				w.t.Error(err)
			}
		}
	})
}

// as returns a kubeconfig of a cluster with a token of an account of the system
// namespace. The witness of the cluster sees what is done with it.
func (w *World) as(cluster, account string) []byte {
	w.t.Helper()
	token, err := w.Clusters[cluster].Token(w.ctx, apiserver.SystemNamespace, account)
	require.NoError(w.t, err)
	raw, err := w.witnesses[cluster].Kubeconfig(account, token)
	require.NoError(w.t, err)
	return raw
}
