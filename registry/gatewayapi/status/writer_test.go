package status

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/registry/config"
	"github.com/isthmus-mesh/isthmus/registry/gatewayapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func at(second int) metav1.Time { return metav1.NewTime(time.Unix(int64(second), 0).UTC()) }

func says(status metav1.ConditionStatus) *gatewayapi.Status {
	return &gatewayapi.Status{Parents: []gatewayv1.RouteParentStatus{{ParentRef: gatewayv1.ParentReference{Name: "gw"}, ControllerName: gatewayapi.Controller,
		Conditions: []metav1.Condition{{Type: "Accepted", Status: status, Reason: "R"}}}}}
}

// TestMergeKeepsOthers: what other controllers wrote stays, ours goes when it has
// no reason any more.
func TestMergeKeepsOthers(t *testing.T) {
	t.Parallel()
	theirs := `{"parents":[{"parentRef":{"name":"other"},"controllerName":"example.com/other","conditions":[]}]}`
	parents := func(raw []byte) (out []string) {
		var s gatewayv1.RouteStatus
		require.NoError(t, json.Unmarshal(raw, &s))
		for _, p := range s.Parents {
			out = append(out, string(p.ControllerName))
		}
		return out
	}
	both, err := Merge(mesh.KindHTTPRoute, theirs, says(metav1.ConditionTrue), at(1))
	require.NoError(t, err)
	require.Equal(t, []string{"example.com/other", gatewayapi.Controller}, parents(both))
	left, err := Merge(mesh.KindHTTPRoute, string(both), nil, at(2))
	require.NoError(t, err)
	require.Equal(t, []string{"example.com/other"}, parents(left))
	same, err := Merge(mesh.KindHTTPRoute, theirs, nil, at(3))
	require.NoError(t, err)
	require.Nil(t, same, "nothing of ours was there, and nothing is wanted")
}

// TestMergeTimes: the time of a condition is that of its last change of status.
func TestMergeTimes(t *testing.T) {
	t.Parallel()
	first, err := Merge(mesh.KindHTTPRoute, "", says(metav1.ConditionTrue), at(1))
	require.NoError(t, err)
	same, err := Merge(mesh.KindHTTPRoute, string(first), says(metav1.ConditionTrue), at(2))
	require.NoError(t, err)
	require.Nil(t, same)
	other, err := Merge(mesh.KindHTTPRoute, string(first), says(metav1.ConditionFalse), at(3))
	require.NoError(t, err)
	var s gatewayv1.RouteStatus
	require.NoError(t, json.Unmarshal(other, &s))
	require.Equal(t, int64(3), s.Parents[0].Conditions[0].LastTransitionTime.Unix())
}

// TestMergeRefuses: a status that cannot be read is not overwritten, and there is
// none of a kind without.
func TestMergeRefuses(t *testing.T) {
	t.Parallel()
	_, err := Merge(mesh.KindHTTPRoute, `{"parents":7}`, says(metav1.ConditionTrue), at(1))
	require.ErrorContains(t, err, "decode status")
	_, err = Merge(mesh.KindReferenceGrant, "", nil, at(1))
	require.ErrorContains(t, err, "has none")
}

// TestAttempts: what is new is said at once; what has to be said again and again
// is said ever more seldom.
func TestAttempts(t *testing.T) {
	t.Parallel()
	var a attempt
	now := time.Unix(0, 0)
	require.True(t, a.due("x", now))
	require.False(t, a.due("x", now.Add(retryMin/2)))
	require.True(t, a.due("y", now.Add(retryMin/2)))
	var waits []time.Duration
	for range 12 {
		now = a.next
		require.True(t, a.due("y", now))
		require.False(t, a.due("y", now))
		waits = append(waits, a.wait)
	}
	require.Equal(t, 2*retryMin, waits[0])
	require.Equal(t, retryMax, waits[len(waits)-1])
	require.IsNonDecreasing(t, waits)
}

// server is an API server with a Gateway, read by a Store.
type server struct {
	t     *testing.T
	api   *dynamicfake.FakeDynamicClient
	store *registry.Store
	sink  registry.Sink
	w     *Writer
	now   time.Time
}

func resource(k config.Kind) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: k.Group, Version: k.Version, Resource: k.Resource}
}

func newServer(t *testing.T) *server {
	t.Helper()
	kinds := map[schema.GroupVersionResource]string{}
	for _, k := range config.GatewayKinds() {
		kinds[resource(k)] = k.Name() + "List"
	}
	s := &server{t: t, now: time.Unix(1000, 0), store: registry.NewStore(registry.Config{Primary: "main"}),
		api: dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), kinds)}
	s.sink = s.store.NewSink("main")
	s.sink.Replace(registry.Update{})
	var err error
	s.w, err = New(Config{Dynamic: s.api, Client: fake.NewSimpleClientset(), Store: s.store, Elect: alone,
		Clock: func() time.Time { return s.now }})
	require.NoError(t, err)
	s.w.attempts, s.w.credentials, s.w.classes = map[mesh.ObjectKey]*attempt{}, map[gatewayapi.Credential]knowledge{}, map[string]*attempt{}
	return s
}

// alone leads at once.
func alone(ctx context.Context, lead func(context.Context)) error {
	lead(ctx)
	return nil
}

// put writes an object, as users do.
func (s *server) put(kind, namespace, name string, spec map[string]any) {
	s.t.Helper()
	k, ok := config.Lookup(gatewayv1.GroupName+"/v1", kind)
	require.True(s.t, ok)
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": gatewayv1.GroupName + "/v1", "kind": kind,
		"metadata": map[string]any{"name": name, "namespace": namespace, "generation": int64(1)}, "spec": spec}}
	_, err := s.api.Resource(resource(k)).Namespace(namespace).Create(s.t.Context(), u, metav1.CreateOptions{})
	require.NoError(s.t, err)
}

// read has the Store read what the server has.
func (s *server) read() {
	s.t.Helper()
	var u registry.Update
	for _, k := range config.GatewayKinds() {
		list, err := s.api.Resource(resource(k)).List(s.t.Context(), metav1.ListOptions{})
		require.NoError(s.t, err)
		for _, x := range list.Items {
			doc, err := json.Marshal(x.Object)
			require.NoError(s.t, err)
			o, err := config.Decode("main", k, doc)
			require.NoError(s.t, err)
			u.Objects = append(u.Objects, registry.ObjectState{Key: o.Key, Object: o})
		}
	}
	s.sink.Apply(u)
}

// writes counts the statuses that are written in one pass.
func (s *server) writes() int {
	s.t.Helper()
	s.api.ClearActions()
	s.w.writeAll(s.t.Context())
	n := 0
	for _, a := range s.api.Actions() {
		if a.GetVerb() == "patch" {
			require.Equal(s.t, "status", a.GetSubresource())
			n++
		}
	}
	s.read()
	return n
}

// TestWritesOnce: classes are made, every status is written once, and again only
// when it should say something else. Somebody who writes over ours is not fought.
func TestWritesOnce(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.put("Gateway", "edge", "gw", map[string]any{"gatewayClassName": "istio", "listeners": []any{map[string]any{"name": "http", "port": int64(80), "protocol": "HTTP"}}})
	s.put("HTTPRoute", "edge", "r", map[string]any{"parentRefs": []any{map[string]any{"name": "gw"}}})
	s.put("HTTPRoute", "edge", "theirs", map[string]any{"parentRefs": []any{map[string]any{"name": "unknown"}}})
	s.read()
	require.Equal(t, 2, s.writes(), "the Gateway and one route")
	require.Len(t, s.store.Catalog().Objects(mesh.KindGatewayClass), 3)
	s.now = s.now.Add(time.Hour)
	require.Equal(t, 3, s.writes(), "the classes")
	s.now = s.now.Add(time.Hour)
	require.Zero(t, s.writes())
	route, _ := config.Lookup(gatewayv1.GroupName+"/v1", "HTTPRoute")
	fights := 0
	for range 100 { // a hundred seconds of somebody who always writes over ours
		u, err := s.api.Resource(resource(route)).Namespace("edge").Get(t.Context(), "r", metav1.GetOptions{})
		require.NoError(t, err)
		unstructured.RemoveNestedField(u.Object, "status")
		_, err = s.api.Resource(resource(route)).Namespace("edge").Update(t.Context(), u, metav1.UpdateOptions{})
		require.NoError(t, err)
		s.read()
		s.now = s.now.Add(time.Second)
		fights += s.writes()
	}
	require.Positive(t, fights)
	require.Less(t, fights, 10)
}

// TestMissingCredentials: the status tells of a Secret that is not there.
func TestMissingCredentials(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.put("Gateway", "edge", "gw", map[string]any{"gatewayClassName": "istio", "listeners": []any{map[string]any{"name": "https", "port": int64(443), "protocol": "HTTPS",
		"tls": map[string]any{"certificateRefs": []any{map[string]any{"name": "cert"}}}}}})
	s.read()
	s.writes()
	o := s.store.Catalog().Object(mesh.ObjectKey{Kind: mesh.KindGatewayAPIGateway, Namespace: "edge", Name: "gw"})
	require.Contains(t, written(o), "there is no Secret edge/cert")
	require.Equal(t, gatewayapi.CredentialMissing, s.w.credentials[gatewayapi.Credential{Kind: "Secret", Name: gatewayapi.Name{Namespace: "edge", Name: "cert"}}].state)
}

// routersOf knows one thing about every Gateway, and that it was asked to lead.
type routersOf struct {
	known   gatewayapi.Infrastructure
	settled bool
	led     chan func()
}

func (r *routersOf) Lead(ctx context.Context, changed func()) {
	r.led <- changed
	<-ctx.Done()
}

func (r *routersOf) State(gatewayapi.Name) (gatewayapi.Infrastructure, bool) {
	return r.known, r.settled
}

// TestRouters: who writes status has routers made, and writes what becomes of them.
func TestRouters(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	routers := &routersOf{known: gatewayapi.Infrastructure{Reason: "Pending", Message: "no pod yet"}, led: make(chan func(), 1)}
	s.w.cfg.Routers = routers
	s.put("Gateway", "edge", "gw", map[string]any{"gatewayClassName": "istio", "listeners": []any{map[string]any{"name": "http", "port": int64(80), "protocol": "HTTP"}}})
	s.read()
	require.Zero(t, s.writes(), "nothing is said before anything is known")
	routers.settled = true
	require.Equal(t, 1+3, s.writes(), "the Gateway, and the classes that were made")
	o := s.store.Catalog().Object(mesh.ObjectKey{Kind: mesh.KindGatewayAPIGateway, Namespace: "edge", Name: "gw"})
	require.Contains(t, written(o), "no pod yet")
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); s.w.lead(ctx) }()
	(<-routers.led)() // may be called at any time
	stop()
	<-done
}
