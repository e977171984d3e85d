package machine

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
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

const entryName = "vms-192.0.2.1-net1"

// lab is an API server and the replicas that write to it.
type lab struct {
	t      *testing.T
	client *fake.FakeDynamicClient
	store  *registry.Store
}

func newLab(t *testing.T) *lab {
	gvr := schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "workloadentries"}
	l := &lab{t: t, client: fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{gvr: "WorkloadEntryList"}),
		store: registry.NewStore(registry.Config{Primary: "east", Settings: config.Defaults()})}
	k := mesh.ObjectKey{Kind: mesh.KindWorkloadGroup, Namespace: "shop", Name: "vms"}
	l.store.NewSink("east").Replace(registry.Update{Objects: []registry.ObjectState{{Key: k, Object: &mesh.Object{Key: k, Spec: &networking.WorkloadGroup{
		Metadata: &networking.WorkloadGroup_ObjectMeta{Labels: map[string]string{"app": "stock", "from": "group"}, Annotations: map[string]string{"note": "x"}},
		Template: &networking.WorkloadEntry{ServiceAccount: "stock", Weight: 7, Labels: map[string]string{"app": "template"}, Ports: map[string]uint32{"http": 8080}},
		Probe:    &networking.ReadinessProbe{},
	}}}}})
	return l
}

// replica starts a registrar that runs until stop is called.
func (l *lab) replica(name string) (r *Registrar, stop func()) {
	r, err := New(Config{Client: l.client, Catalog: l.store.Catalog, Instance: name})
	require.NoError(l.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	return r, func() { cancel(); require.NoError(l.t, <-done) }
}

func vm() *mesh.Proxy {
	return &mesh.Proxy{ID: "vm.shop", Namespace: "shop", Network: "net1", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
		Labels: map[string]string{"from": "proxy"}, Locality: mesh.Locality{Region: "r1", Zone: "z1"}, Metadata: map[string]any{MetadataGroup: "vms"}}
}

func account(name string) mesh.Identity {
	return mesh.Identity{TrustDomain: "td", Namespace: "shop", ServiceAccount: name}
}

func (l *lab) entry() *unstructured.Unstructured {
	gvr := schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "workloadentries"}
	o, err := l.client.Resource(gvr).Namespace("shop").Get(context.Background(), entryName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	require.NoError(l.t, err)
	return o
}

// connect begins a stream; end ends it.
func (l *lab) connect(r *Registrar) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	require.NoError(l.t, r.Connect(ctx, vm(), account("stock")))
	return cancel
}

func TestRegistration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		r, stop := l.replica("a")
		defer stop()
		begin := stamp(time.Now())
		end := l.connect(r)
		synctest.Wait()
		o := l.entry()
		require.NotNil(t, o)
		require.Equal(t, map[string]string{"app": "stock", "from": "proxy"}, o.GetLabels())
		require.Equal(t, map[string]string{AnnotationGroup: "vms", AnnotationController: "a", AnnotationConnected: begin,
			annotationHealthChecks: "true", "note": "x"}, o.GetAnnotations())
		require.Equal(t, map[string]any{"address": "192.0.2.1", "network": "net1", "locality": "r1/z1", "serviceAccount": "stock",
			"weight": int64(7), "labels": map[string]any{"app": "stock", "from": "proxy"}, "ports": map[string]any{"http": int64(8080)}}, o.Object["spec"])

		end()
		synctest.Wait()
		require.Equal(t, begin, l.entry().GetAnnotations()[AnnotationDisconnected])
		time.Sleep(DefaultGrace - time.Second)
		end = l.connect(r)
		synctest.Wait()
		require.NotContains(t, l.entry().GetAnnotations(), AnnotationDisconnected, "it came back in time")
		require.NotEqual(t, begin, l.entry().GetAnnotations()[AnnotationConnected])
		time.Sleep(time.Hour)
		require.NotNil(t, l.entry(), "as long as it is connected")
		end()
		time.Sleep(DefaultGrace + time.Second)
		synctest.Wait()
		require.Nil(t, l.entry())
		require.Empty(t, r.sessions)
	})
}

// A proxy that moves to another replica keeps its entry, whatever the first one
// does about the stream that ended.
func TestAnotherReplicaHasIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		a, stopA := l.replica("a")
		b, stopB := l.replica("b")
		defer stopA()
		defer stopB()
		end := l.connect(a)
		synctest.Wait()
		endB := l.connect(b)
		synctest.Wait()
		require.Equal(t, "b", l.entry().GetAnnotations()[AnnotationController])
		end()
		time.Sleep(time.Minute)
		synctest.Wait()
		require.NotNil(t, l.entry())
		require.NotContains(t, l.entry().GetAnnotations(), AnnotationDisconnected)
		endB()
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Nil(t, l.entry())
	})
}

func TestWhoMayRegister(t *testing.T) {
	l := newLab(t)
	r, err := New(Config{Client: l.client, Catalog: l.store.Catalog, Instance: "a"})
	require.NoError(t, err)
	stranger, other := account("stock"), vm()
	stranger.Namespace = "elsewhere"
	other.Metadata = map[string]any{MetadataGroup: "missing"}
	for name, tt := range map[string]struct {
		proxy  *mesh.Proxy
		caller mesh.Identity
		code   codes.Code
	}{
		"nothing proven":    {vm(), mesh.Identity{}, codes.Unauthenticated},
		"another account":   {vm(), account("web"), codes.PermissionDenied},
		"another namespace": {vm(), stranger, codes.PermissionDenied},
		"no such group":     {other, account("stock"), codes.FailedPrecondition},
	} {
		err := r.Connect(t.Context(), tt.proxy, tt.caller)
		require.Equal(t, tt.code, status.Code(err), "%s: %v", name, err)
	}
	pod := vm()
	pod.Metadata = nil
	require.NoError(t, r.Connect(t.Context(), pod, mesh.Identity{}), "who names no group is none of its business")
	r.Health(pod, false, "")
	require.Empty(t, r.sessions)
}

func TestHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		r, stop := l.replica("a")
		defer stop()
		defer l.connect(r)()
		condition := func() map[string]any {
			synctest.Wait()
			list, _, _ := unstructured.NestedSlice(l.entry().Object, "status", "conditions")
			require.Len(t, list, 1)
			return list[0].(map[string]any)
		}
		r.Health(vm(), true, "")
		require.Equal(t, "True", condition()["status"])
		at := condition()["lastTransitionTime"]
		time.Sleep(time.Second)
		r.Health(vm(), true, "")
		require.Equal(t, at, condition()["lastTransitionTime"], "the same again writes nothing")
		r.Health(vm(), false, "connection refused")
		require.Equal(t, "False", condition()["status"])
		require.Equal(t, "connection refused", condition()["message"])
		require.Equal(t, config.ConditionHealthy, condition()["type"])
	})
}

func TestFailuresAreTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		failures := 3
		l.client.PrependReactor("create", "workloadentries", func(clienttesting.Action) (bool, runtime.Object, error) {
			failures--
			return failures >= 0, nil, errors.New("no answer")
		})
		r, stop := l.replica("a")
		defer stop()
		defer l.connect(r)()
		synctest.Wait()
		require.Nil(t, l.entry())
		time.Sleep(retryMin + 2*retryMin + 4*retryMin)
		synctest.Wait()
		require.NotNil(t, l.entry())
	})
}

// Entries of a replica that went away go too, but not before their proxies had
// the time to come back; what users wrote stays.
func TestForsakenEntries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		gone, kill := l.replica("gone")
		l.connect(gone)
		synctest.Wait()
		kill()
		byHand := l.entry().DeepCopy()
		byHand.SetName("by-hand")
		byHand.SetAnnotations(map[string]string{AnnotationConnected: stamp(time.Now())})
		gvr := schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "workloadentries"}
		_, err := l.client.Resource(gvr).Namespace("shop").Create(context.Background(), byHand, metav1.CreateOptions{})
		require.NoError(t, err)
		_, stop := l.replica("b")
		defer stop()
		time.Sleep(DefaultForsake - time.Minute)
		synctest.Wait()
		require.NotNil(t, l.entry())
		time.Sleep(2 * sweepEvery)
		synctest.Wait()
		require.Nil(t, l.entry())
		_, err = l.client.Resource(gvr).Namespace("shop").Get(context.Background(), "by-hand", metav1.GetOptions{})
		require.NoError(t, err)
	})
}

// While connections have no greatest age, an old connection is no sign that a
// machine was left behind: another replica may look after it.
func TestOldConnectionsAreNotForsaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		a, stopA := l.replica("a")
		defer stopA()
		end := l.connect(a)
		b, err := New(Config{Client: l.client, Catalog: l.store.Catalog, Instance: "b", Forsake: -1})
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- b.Run(ctx) }()
		time.Sleep(100 * DefaultForsake)
		synctest.Wait()
		require.NotNil(t, l.entry())
		end()
		cancel()
		require.NoError(t, <-done)
	})
}

// A replica that takes a machine over between another's look and its note of the
// departure is not overwritten.
func TestDepartureMeetsTakeover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		a, stop := l.replica("a")
		defer stop()
		end := l.connect(a)
		synctest.Wait()
		gvr := schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "workloadentries"}
		o := l.entry()
		o.SetResourceVersion("7") // the tracker numbers nothing
		require.NoError(t, l.client.Tracker().Update(gvr, o, "shop"))
		takenOver := o.DeepCopy()
		annotations := takenOver.GetAnnotations()
		annotations[AnnotationController] = "b"
		takenOver.SetAnnotations(annotations)
		taken := false
		l.client.PrependReactor("patch", "workloadentries", func(action clienttesting.Action) (bool, runtime.Object, error) {
			patch, _ := action.(clienttesting.PatchAction)
			if taken || !strings.Contains(string(patch.GetPatch()), AnnotationDisconnected) {
				return false, nil, nil
			}
			taken = true
			require.NoError(t, l.client.Tracker().Update(gvr, takenOver, "shop"))
			if !strings.Contains(string(patch.GetPatch()), `"resourceVersion":"7"`) {
				return false, nil, nil // nothing keeps it from being applied
			}
			return true, nil, apierrors.NewConflict(gvr.GroupResource(), entryName, errors.New("it has changed"))
		})
		end()
		time.Sleep(time.Minute)
		synctest.Wait()
		require.True(t, taken)
		require.NotNil(t, l.entry())
		require.NotContains(t, l.entry().GetAnnotations(), AnnotationDisconnected)
	})
}

func TestEntryNames(t *testing.T) {
	p := vm()
	require.Equal(t, entryName, entryKey(p, "vms").Name)
	p.Network, p.Addresses = "", []netip.Addr{netip.MustParseAddr("2001:db8::1")}
	require.Equal(t, "vms-2001-db8--1", entryKey(p, "vms").Name)
	long := entryKey(p, strings.Repeat("g", 300)).Name
	require.Len(t, long, maxName)
	require.True(t, strings.HasSuffix(long, "-2001-db8--1"))
}
