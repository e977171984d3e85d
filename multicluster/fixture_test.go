package multicluster

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// secretToken stands for a credential: it must never show up in an error.
const secretToken = "s3cr3t-t0ken"

// kubeconfigWith returns a good kubeconfig; rotations differ in the token.
func kubeconfigWith(server, token string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: c
contexts: [{name: c, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: %q}}]
users: [{name: u, user: {token: %q}}]
`, server, token)
}

func goodKubeconfig(version string) string {
	return kubeconfigWith("https://10.1.2.3:6443", secretToken+version)
}

// secretObject is what the feed makes of a Secret. age orders Secrets: the
// higher, the younger.
func secretObject(name string, age int, data map[string]string) object {
	s := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "istio-system", Name: name, UID: types.UID("uid-" + name),
			CreationTimestamp: metav1.NewTime(time.Unix(1_700_000_000+int64(age), 0)),
		},
		Data: map[string][]byte{},
	}
	version := ""
	for k, v := range data {
		s.Data[k] = []byte(v)
	}
	o := readSecret(s)
	for _, e := range o.entries {
		version += e.key + e.content
	}
	o.version = version
	return o
}

// fakeFeed reports what a test tells it to.
type fakeFeed struct {
	snapshots chan snapshot
	failures  chan string
	end       chan error
}

func newFakeFeed() *fakeFeed {
	return &fakeFeed{make(chan snapshot), make(chan string), make(chan error)}
}

func (f *fakeFeed) run(ctx context.Context, report func(snapshot), fail func(string)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case s := <-f.snapshots:
			report(s)
		case m := <-f.failures:
			fail(m)
		case err := <-f.end:
			return err
		}
	}
}

// fakeSource is a source that does what a test tells it to.
type fakeSource struct {
	id     mesh.ClusterID
	token  string
	do     chan func(registry.Sink)
	exit   chan error
	status atomic.Pointer[SourceStatus]
	ended  atomic.Bool
}

func (s *fakeSource) Run(ctx context.Context, to registry.Sink) error {
	defer s.ended.Store(true)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case f := <-s.do:
			f(to)
		case err := <-s.exit:
			return err
		}
	}
}

func (s *fakeSource) Status() SourceStatus {
	if st := s.status.Load(); st != nil {
		return *st
	}
	return SourceStatus{Reachable: true, LastEvent: time.Now()}
}

// sync makes the source report that its cluster has n endpoints.
func (s *fakeSource) sync(n int) {
	s.do <- func(to registry.Sink) {
		to.Replace(registry.Update{Services: []registry.ServiceState{service(s.id, n)}})
	}
	synctest.Wait()
}

// apply makes the source report a change.
func (s *fakeSource) apply(n int) {
	send(s.do, func(to registry.Sink) { to.Apply(registry.Update{Services: []registry.ServiceState{service(s.id, n)}}) })
}

func (s *fakeSource) fail(err error) { send(s.exit, err) }

// send hands something to a source that runs, and lets everything settle.
func send[T any](to chan<- T, what T) {
	select {
	case to <- what:
		synctest.Wait()
	case <-time.After(24 * time.Hour): // of the bubble's time
		panic("the source is not running")
	}
}

func (s *fakeSource) say(st SourceStatus) { s.status.Store(&st) }

var serviceKey = mesh.ServiceKey{Namespace: "shop", Hostname: "web.shop.svc.cluster.local"}

func service(id mesh.ClusterID, endpoints int) registry.ServiceState {
	s := registry.ServiceState{Key: serviceKey, Definition: &mesh.Definition{Ports: []mesh.Port{{Name: "http", Number: 80, Protocol: mesh.ProtocolHTTP}}}}
	w := &mesh.Workload{Cluster: id, Namespace: "shop", Name: "web"}
	for i := range endpoints {
		s.Endpoints = append(s.Endpoints, mesh.Endpoint{
			Addr: netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), Port: 8080, Health: mesh.HealthReady, PortName: "http", Workload: w,
		})
	}
	return s
}

type event struct{ object, reason, message string }

// fakeEvents records Events.
type fakeEvents struct {
	mu   sync.Mutex
	list []event
}

func (f *fakeEvents) Event(o runtime.Object, _, reason, message string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ref := o.(*corev1.ObjectReference)
	f.list = append(f.list, event{ref.Kind + " " + ref.Namespace + "/" + ref.Name + " " + string(ref.UID), reason, message})
}

// fakeClient is told apart by its configuration.
type fakeClient struct {
	kubernetes.Interface
	token string
}

// world is a manager with a real Store, a feed and sources under control.
type world struct {
	t       testing.TB
	manager *Manager
	store   *registry.Store
	feed    *fakeFeed
	events  *fakeEvents
	metrics *prometheus.Registry
	logs    *observer.ObservedLogs
	stop    func()
	left    []mesh.ClusterID

	mu      sync.Mutex
	sources map[mesh.ClusterID][]*fakeSource
	broken  error // what NewSource returns if not nil
	changes []registry.Change
}

// newWorld starts a manager. Call it within a synctest bubble.
func newWorld(t testing.TB, edit ...func(*Config)) *world {
	w := &world{t: t, feed: newFakeFeed(), events: &fakeEvents{}, metrics: prometheus.NewRegistry(), sources: map[mesh.ClusterID][]*fakeSource{}}
	w.store = registry.NewStore(registry.Config{Primary: "primary"})
	w.store.OnChange(func(c registry.Change) { w.changes = append(w.changes, c) })
	core, logs := observer.New(zap.DebugLevel)
	w.logs = logs
	c := Config{
		Primary: "primary", Aliases: []mesh.ClusterID{"main"}, NewSink: w.store.NewSink, Events: w.events, Metrics: w.metrics,
		Log: zap.New(core), Backoff: Backoff{Jitter: -1}, Left: func(id mesh.ClusterID) { w.left = append(w.left, id) },
		NewClient: func(cfg *rest.Config) (kubernetes.Interface, error) { return &fakeClient{token: cfg.BearerToken}, nil },
		NewSource: func(id mesh.ClusterID, cfg *rest.Config) (registry.Source, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.broken != nil {
				return nil, w.broken
			}
			s := &fakeSource{id: id, token: cfg.BearerToken, do: make(chan func(registry.Sink)), exit: make(chan error)}
			w.sources[id] = append(w.sources[id], s)
			return s, nil
		},
	}
	for _, f := range edit {
		f(&c)
	}
	var err error
	w.manager, err = New(c)
	require.NoError(t, err)
	w.manager.feed = w.feed
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.manager.Run(ctx) }()
	w.stop = func() {
		cancel()
		require.NoError(t, <-done)
	}
	return w
}

// set makes the feed report these objects and lets everything settle.
func (w *world) set(objects ...object) {
	w.feed.snapshots <- snapshot{objects}
	synctest.Wait()
}

// all returns every source that was started for a cluster, the newest last.
func (w *world) all(id mesh.ClusterID) []*fakeSource {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sources[id]
}

func (w *world) newest(id mesh.ClusterID) *fakeSource {
	all := w.all(id)
	require.NotEmpty(w.t, all, "no source was started for %s", id)
	return all[len(all)-1]
}

// running counts the sources of a cluster that have not ended.
func (w *world) running(id mesh.ClusterID) int {
	n := 0
	for _, s := range w.all(id) {
		if !s.ended.Load() {
			n++
		}
	}
	return n
}

func (w *world) status(id mesh.ClusterID) Status {
	for _, s := range w.manager.Clusters() {
		if s.ID == id {
			return s
		}
	}
	require.Fail(w.t, "no such cluster", "%s", id)
	return Status{}
}

// endpoints counts the endpoints that the Store has of a cluster.
func (w *world) endpoints(id mesh.ClusterID) int {
	n := 0
	for e := range w.store.Endpoints(serviceKey).All() {
		if e.Workload.Cluster == id {
			n++
		}
	}
	return n
}

// forget forgets the changes so far.
func (w *world) forget() { w.changes = nil }

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// newWorldlessSink and unusedSource serve managers that start no source.
func newWorldlessSink(mesh.ClusterID) registry.Sink { return &recordingSink{} }

func unusedSource(mesh.ClusterID, *rest.Config) (registry.Source, error) {
	return nil, errors.New("unused")
}
