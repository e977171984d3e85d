package machine

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	networking "istio.io/api/networking/v1alpha3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/registry/config"
	"github.com/isthmus-mesh/isthmus/registry/kube"
	"github.com/isthmus-mesh/isthmus/testenv/apiserver"
)

// TestRealAPIServer writes to a real API server and reads back from it what was
// written, as a control plane does: a machine, its health, an address.
func TestRealAPIServer(t *testing.T) {
	apiserver.NeedBinary(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	c, err := apiserver.Start(ctx, apiserver.Config{Name: "east"})
	require.NoError(t, err)
	defer func() { require.NoError(t, c.Stop()) }()
	require.NoError(t, c.InstallIstioCRDs(ctx))
	require.NoError(t, c.EnsureNamespace(ctx, "shop"))
	require.NoError(t, c.Apply(ctx, []byte(`
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: vms, namespace: shop}
spec:
  metadata: {labels: {app: stock}}
  probe: {httpGet: {port: 8080}}
  template: {serviceAccount: stock}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: stock, namespace: shop}
spec:
  hosts: [stock.example]
  location: MESH_INTERNAL
  ports: [{name: http, number: 80, protocol: HTTP}]
  resolution: STATIC
  workloadSelector: {labels: {app: stock}}
`)))
	store := registry.NewStore(registry.Config{Primary: "east", Settings: config.Defaults()})
	source, err := kube.New(kube.Config{Cluster: "east", REST: c.REST(), Primary: true})
	require.NoError(t, err)
	r, err := New(Config{Client: c.Dynamic(), Catalog: store.Catalog, Instance: "a", Grace: 100 * time.Millisecond})
	require.NoError(t, err)
	w, err := NewAddressWriter(AddressConfig{Client: c.Dynamic(), Store: store})
	require.NoError(t, err)
	running, stop := context.WithCancel(ctx)
	done := make(chan error, 3)
	for _, run := range []func(context.Context) error{func(ctx context.Context) error { return source.Run(ctx, store.NewSink("east")) }, r.Run, w.Run} {
		go func() { done <- run(running) }()
	}
	defer func() {
		stop()
		for range 3 {
			require.NoError(t, <-done)
		}
	}()
	eventually := func(what string, f func() bool) {
		t.Helper()
		require.Eventually(t, f, 30*time.Second, 20*time.Millisecond, what)
	}
	k := mesh.ServiceKey{Namespace: "shop", Hostname: "stock.example"}
	eventually("the entry is read", func() bool { return store.Catalog().Service(k) != nil })
	auto := store.Catalog().Service(k).Lead.AutoAddresses
	object := func(resource, name string) *unstructured.Unstructured {
		o, err := c.Dynamic().Resource(schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: resource}).Namespace("shop").Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return &unstructured.Unstructured{}
		}
		return o
	}
	eventually("the address is written", func() bool {
		list, _, _ := unstructured.NestedSlice(object("serviceentries", "stock").Object, "status", "addresses")
		return len(list) == len(auto)
	})
	// Somebody else's allocation stays.
	require.NoError(t, w.write(ctx, &mesh.Object{Key: mesh.ObjectKey{Namespace: "shop", Name: "stock"}, Version: "1", Spec: &networking.ServiceEntry{}},
		[]mesh.HostAddress{{Host: "stock.example", Address: netip.MustParseAddr("240.240.9.9")}}))
	list, _, _ := unstructured.NestedSlice(object("serviceentries", "stock").Object, "status", "addresses")
	require.Equal(t, auto[0].String(), list[0].(map[string]any)["value"])

	stream, leave := context.WithCancel(ctx)
	require.NoError(t, r.Connect(stream, vm(), account("stock")))
	health := func() []mesh.Health {
		var out []mesh.Health
		for e := range store.Endpoints(k).All() {
			out = append(out, e.Health)
		}
		return out
	}
	eventually("the machine is an endpoint, not ready before it reports", func() bool { h := health(); return len(h) == 1 && h[0] == mesh.HealthNotReady })
	r.Health(vm(), true, "")
	eventually("it is ready", func() bool { h := health(); return len(h) == 1 && h[0] == mesh.HealthReady })
	r.Health(vm(), false, "refused")
	eventually("it is not ready", func() bool { h := health(); return len(h) == 1 && h[0] == mesh.HealthNotReady })
	leave()
	eventually("it is gone", func() bool { return len(health()) == 0 && object("workloadentries", entryName).GetName() == "" })
}
