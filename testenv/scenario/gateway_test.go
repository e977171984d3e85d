package scenario

import (
	"context"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/isthmus-mesh/isthmus/multicluster"
	"github.com/isthmus-mesh/isthmus/testenv/recorder"
)

func TestGatewayAppearsMovesDisappears(t *testing.T) {
	w := NewWorld(t, "east/net-1", "west/net-2")
	w.Apply("west", Service("web")+Pods("web", true, "10.2.0.1", "10.2.0.2"))
	w.Join("west")
	w.Serve()
	p := w.Proxy("east", "net-1", true)
	w.Hears(p, Upstream("web")) // no gateway: nothing, and never a pod address
	w.Apply("west", Gateway("net-2", "203.0.113.1"))
	w.Hears(p, Upstream("web"), "203.0.113.1:15443 2")
	w.Apply("west", Gateway("net-2", "203.0.113.7", "203.0.113.8"))
	w.Hears(p, Upstream("web"), "203.0.113.7:15443 2", "203.0.113.8:15443 2")
	require.NoError(t, w.Clusters["west"].Client().CoreV1().Services("istio-system").Delete(w.ctx, "eastwestgateway", metav1.DeleteOptions{}))
	w.Hears(p, Upstream("web"))
}

// TestClusterMovesToAnotherNetwork: the label of the system namespace counts as
// it is now.
func TestClusterMovesToAnotherNetwork(t *testing.T) {
	w := NewWorld(t, "east/net-1", "west/net-2")
	w.Apply("west", Service("web")+Pods("web", true, "10.2.0.1")+Gateway("net-2", "203.0.113.1"))
	w.Join("west")
	w.Serve()
	p := w.Proxy("east", "net-1", true)
	w.Hears(p, Upstream("web"), "203.0.113.1:15443 1")
	mark := len(p.Pushes())
	w.Apply("west", basics("west", "net-1"))
	w.Hears(p, Upstream("web"), "10.2.0.1:8080 1")
	w.Apply("west", basics("west", "net-2"))
	w.Hears(p, Upstream("web"), "203.0.113.1:15443 1")
	w.Apply("west", Pods("web", true, "10.2.0.2", "10.2.0.3"))
	w.Hears(p, Upstream("web"), "203.0.113.1:15443 2")
	onlyAbout(t, p, mark, Upstream("web"), "outbound|15443||eastwestgateway.istio-system.svc.cluster.local")
}

// TestRouter: an east-west gateway is what a Gateway object makes of a router,
// whether the kind was there when the control plane started or came later.
func TestRouter(t *testing.T) {
	w := NewWorld(t, "east/net-1", "west/net-2")
	w.Apply("east", Service("web")+Pods("web", true, "10.1.0.1")+Pods("plain", false, "10.1.1.1")+Service("plain"))
	w.Apply("west", Service("web")+Pods("web", true, "10.2.0.1")+Gateway("net-2", "203.0.113.2"))
	w.Join("west")
	east := w.Clusters["east"]
	t.Cleanup(func() { _ = east.InstallIstioCRDs(context.WithoutCancel(w.ctx)) })
	definitions := schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	require.NoError(t, east.Dynamic().Resource(definitions).Delete(w.ctx, "gateways.networking.istio.io", metav1.DeleteOptions{}))
	w.Eventually("the kind is gone", func() bool {
		_, err := east.Dynamic().Resource(istioGateways()).List(w.ctx, metav1.ListOptions{})
		return apierrors.IsNotFound(err)
	})
	w.Serve()
	w.Eventually("its absence is said", func() bool {
		kinds := w.Plane.Status("east").Kinds
		i := slices.IndexFunc(kinds, func(k multicluster.KindStatus) bool { return k.Kind == "gateways.networking.istio.io" })
		return i >= 0 && kinds[i].Synced
	})
	require.Equal(t, multicluster.HealthOK, w.Plane.Status("east").Health, "a kind that is not installed is no fault: %+v", w.Plane.Status("east"))

	sidecar := w.Proxy("east", "net-1", true)
	w.Hears(sidecar, Upstream("web"), "10.1.0.1:8080 1", "203.0.113.2:15443 1")
	router := w.Connect(w.Plane, recorder.Node{Kind: "router", Name: "gateway-0", Namespace: "istio-system", Cluster: "east", Network: "net-1",
		IP: "10.1.8.1", Labels: map[string]string{"istio": "eastwestgateway"}, Metadata: map[string]any{"REQUESTED_NETWORK_VIEW": "net-1"}},
		recorder.Options{Delta: true})
	sni := "outbound_.80_._.web.shop.svc.cluster.local"
	require.Nil(t, router.Endpoints(sni))
	mark := len(sidecar.Pushes())

	require.NoError(t, east.InstallIstioCRDs(w.ctx))
	w.Apply("east", `
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: cross-network, namespace: istio-system}
spec:
  selector: {istio: eastwestgateway}
  servers:
  - port: {number: 15443, name: tls, protocol: TLS}
    tls: {mode: AUTO_PASSTHROUGH}
    hosts: ["*.local"]
`)
	w.Hears(router, sni, "10.1.0.1:8080 1") // its own network only
	w.Hears(router, "outbound_.80_._.plain.shop.svc.cluster.local")
	w.await(router, "the passthrough listener", func() bool { return router.Resources(recorder.Listeners)["0.0.0.0_15443"] != nil })
	w.Apply("east", Pods("web", true, "10.1.0.2"))
	w.Hears(router, sni, "10.1.0.2:8080 1")
	w.Hears(sidecar, Upstream("web"), "10.1.0.2:8080 1", "203.0.113.2:15443 1")
	onlyAbout(t, sidecar, mark, Upstream("web"))

	require.NoError(t, east.Dynamic().Resource(istioGateways()).Namespace("istio-system").Delete(w.ctx, "cross-network", metav1.DeleteOptions{}))
	w.await(router, "the gateway to close", func() bool {
		return router.Resources(recorder.Listeners)["0.0.0.0_15443"] == nil && router.Resources(recorder.Upstreams)[sni] == nil
	})
}
