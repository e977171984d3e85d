package machine

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	networking "istio.io/api/networking/v1alpha3"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/registry/config"
)

func TestAddressesAreWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gvr := schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "serviceentries"}
		object := func(name string) *unstructured.Unstructured {
			o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry"}}
			o.SetNamespace("shop")
			o.SetName(name)
			return o
		}
		client := fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{gvr: "ServiceEntryList"},
			object("wants"), object("has"), object("none"))
		store := registry.NewStore(registry.Config{Primary: "east", Settings: config.Defaults()})
		state := func(name string, spec *networking.ServiceEntry) registry.ObjectState {
			k := mesh.ObjectKey{Kind: mesh.KindServiceEntry, Namespace: "shop", Name: name}
			spec.Hosts, spec.Ports = []string{name + ".example", "*." + name + ".example"}, []*networking.ServicePort{{Name: "http", Number: 80, Protocol: "HTTP"}}
			return registry.ObjectState{Key: k, Object: &mesh.Object{Key: k, Spec: spec, Origin: mesh.ObjectRef{Cluster: "east", Kind: "ServiceEntry", Namespace: "shop", Name: name}}}
		}
		sink := store.NewSink("east")
		sink.Replace(registry.Update{Objects: []registry.ObjectState{
			state("wants", &networking.ServiceEntry{Resolution: networking.ServiceEntry_STATIC}),
			state("has", &networking.ServiceEntry{Resolution: networking.ServiceEntry_STATIC, Addresses: []string{"240.0.0.1"}}),
			state("none", &networking.ServiceEntry{}),
		}})
		w, err := NewAddressWriter(AddressConfig{Client: client, Store: store})
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- w.Run(ctx) }()
		time.Sleep(2 * addressPause)
		synctest.Wait()
		status := func(name string) []any {
			o, err := client.Resource(gvr).Namespace("shop").Get(context.Background(), name, metav1.GetOptions{})
			require.NoError(t, err)
			list, _, _ := unstructured.NestedSlice(o.Object, "status", "addresses")
			return list
		}
		auto := store.Catalog().Service(mesh.ServiceKey{Namespace: "shop", Hostname: "wants.example"}).Lead.AutoAddresses
		require.Len(t, auto, 2)
		require.Equal(t, []any{map[string]any{"host": "wants.example", "value": auto[0].String()}, map[string]any{"host": "wants.example", "value": auto[1].String()}}, status("wants"))
		require.Empty(t, status("has"))
		require.Empty(t, status("none"))

		// What is read back is not written again.
		written := len(client.Actions())
		back := state("wants", &networking.ServiceEntry{Resolution: networking.ServiceEntry_STATIC})
		back.Object.Status = &mesh.ObjectStatus{Addresses: []mesh.HostAddress{{Host: "wants.example", Address: auto[0]}, {Host: "wants.example", Address: auto[1]}}}
		sink.Apply(registry.Update{Objects: []registry.ObjectState{back}})
		time.Sleep(2 * addressPause)
		synctest.Wait()
		require.Len(t, client.Actions(), written)
		cancel()
		require.NoError(t, <-done)
	})
}

// TestAddressesBesideOtherStatus: somebody who writes into another part of the
// status gives the entry a version that nobody reads as a change; the addresses
// are written all the same. An entry that has others by now is left alone.
func TestAddressesBesideOtherStatus(t *testing.T) {
	gvr := schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "serviceentries"}
	live := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
		"metadata": map[string]any{"namespace": "shop", "name": "x", "generation": int64(1), "resourceVersion": "8"}}}
	want := []mesh.HostAddress{{Host: "x.example", Address: netip.MustParseAddr("240.240.0.1")}}
	for name, tc := range map[string]struct {
		addresses []any
		patches   int
	}{
		"nothing else":    {nil, 2},
		"other addresses": {[]any{map[string]any{"host": "x.example", "value": "240.240.0.9"}}, 1},
	} {
		o := live.DeepCopy()
		if tc.addresses != nil {
			require.NoError(t, unstructured.SetNestedSlice(o.Object, tc.addresses, "status", "addresses"))
		}
		client := fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{gvr: "ServiceEntryList"}, o)
		patches := 0
		client.PrependReactor("patch", "serviceentries", func(a clienttesting.Action) (bool, runtime.Object, error) {
			if patches++; strings.Contains(string(a.(clienttesting.PatchAction).GetPatch()), `"resourceVersion":"8"`) {
				return true, o, nil
			}
			return true, nil, apierrors.NewConflict(gvr.GroupResource(), "x", nil)
		})
		w, err := NewAddressWriter(AddressConfig{Client: client, Store: registry.NewStore(registry.Config{Primary: "east"})})
		require.NoError(t, err)
		require.NoError(t, w.write(t.Context(), &mesh.Object{Key: mesh.ObjectKey{Kind: mesh.KindServiceEntry, Namespace: "shop", Name: "x"}, Version: "7", Generation: 1}, want))
		require.Equal(t, tc.patches, patches, name)
	}
}
