package serve

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/record"
)

// eventsOf are the Events of the system namespace.
func eventsOf(t *testing.T, client kubernetes.Interface) []corev1.Event {
	t.Helper()
	list, err := client.CoreV1().Events("istio-system").List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	return list.Items
}

// replicaOf records as one replica does.
func replicaOf(t *testing.T, client kubernetes.Interface) (say func(reason, message string), written <-chan *corev1.Event) {
	t.Helper()
	done := make(chan *corev1.Event, 10)
	sink := sharedEvents{&typedcorev1.EventSinkImpl{Interface: client.CoreV1().Events("")}}
	b := record.NewBroadcaster()
	t.Cleanup(b.Shutdown)
	b.StartRecordingToSink(noting{sink, done})
	r := b.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "isthmus"})
	about := &corev1.ObjectReference{APIVersion: "v1", Kind: "Secret", Namespace: "istio-system", Name: "west", UID: "1"}
	return func(reason, message string) { r.Event(about, corev1.EventTypeWarning, reason, message) }, done
}

// noting tells what was written, after it was.
type noting struct {
	record.EventSink
	done chan<- *corev1.Event
}

func (n noting) Create(e *corev1.Event) (*corev1.Event, error) {
	out, err := n.EventSink.Create(e)
	n.done <- out
	return out, err
}

func (n noting) Patch(e *corev1.Event, data []byte) (*corev1.Event, error) {
	out, err := n.EventSink.Patch(e, data)
	n.done <- out
	return out, err
}

// TestReplicasShareEvents: what two replicas say of one secret is one Event,
// what they say again is counted once, and something else is another Event.
func TestReplicasShareEvents(t *testing.T) {
	client := fake.NewClientset()
	one, first := replicaOf(t, client)
	two, second := replicaOf(t, client)
	both := func(reason, message string) {
		t.Helper()
		one(reason, message)
		two(reason, message)
		require.NotNil(t, <-first)
		require.NotNil(t, <-second)
	}
	both("InvalidKubeconfig", "secret istio-system/west key west: garbage")
	got := eventsOf(t, client)
	require.Len(t, got, 1)
	require.EqualValues(t, 1, got[0].Count, "two replicas are no two occurrences")
	both("InvalidKubeconfig", "secret istio-system/west key west: garbage")
	got = eventsOf(t, client)
	require.Len(t, got, 1)
	require.EqualValues(t, 2, got[0].Count)
	both("DuplicateCluster", "secret istio-system/west key west: claimed by another")
	require.Len(t, eventsOf(t, client), 2)

	// One that starts later finds the Event and goes on from its count.
	three, third := replicaOf(t, client)
	three("InvalidKubeconfig", "secret istio-system/west key west: garbage")
	require.EqualValues(t, 2, (<-third).Count)
	require.Len(t, eventsOf(t, client), 2)
}

// TestProcessMetrics: what is said of the process has istiod's names.
func TestProcessMetrics(t *testing.T) {
	families, err := filesControl(t).metrics.Gather()
	require.NoError(t, err)
	got := map[string]float64{}
	for _, f := range families {
		got[f.GetName()] = f.GetMetric()[0].GetGauge().GetValue()
	}
	require.InDelta(t, 1, got["pilot_info"], 0)
	require.Contains(t, got, "istiod_uptime_seconds")
	require.Contains(t, got, "pilot_services")
}

func TestEventNames(t *testing.T) {
	e := corev1.Event{InvolvedObject: corev1.ObjectReference{Kind: "Secret", Namespace: "a", Name: "west", UID: "1"}, Reason: "r", Message: "m",
		LastTimestamp: metav1.NewTime(time.Unix(1, 0))}
	name := eventName(&e)
	require.True(t, strings.HasPrefix(name, "west."))
	later := e
	later.Name, later.LastTimestamp, later.Count = "x", metav1.Now(), 7
	require.Equal(t, name, eventName(&later), "when and how often is not what it says")
	for what, change := range map[string]func(*corev1.Event){
		"message": func(e *corev1.Event) { e.Message = "n" },
		"reason":  func(e *corev1.Event) { e.Reason = "s" },
		"uid":     func(e *corev1.Event) { e.InvolvedObject.UID = "2" },
		"bounds":  func(e *corev1.Event) { e.Reason, e.Message = "rm", "" },
	} {
		other := e
		change(&other)
		require.NotEqual(t, name, eventName(&other), what)
	}
	for _, n := range []string{strings.Repeat("a", 253), strings.Repeat("a", maxEventPrefix-1) + ".b"} {
		e.InvolvedObject.Name = n
		require.Empty(t, validation.IsDNS1123Subdomain(eventName(&e)), eventName(&e))
	}
}

// TestEventsDenied: who may not write Events says so once, and asks again only
// after a while.
func TestEventsDenied(t *testing.T) {
	client := fake.NewClientset()
	asked, allow := 0, false
	client.PrependReactor("*", "events", func(clienttesting.Action) (bool, runtime.Object, error) {
		asked++
		return !allow, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "events"}, "x", errors.New("no role"))
	})
	core, said := observer.New(zap.InfoLevel)
	now := time.Unix(1000, 0)
	sink := &allowedEvents{EventSink: sharedEvents{&typedcorev1.EventSinkImpl{Interface: client.CoreV1().Events("")}}, log: zap.New(core), now: func() time.Time { return now }}
	e := &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system"}, Message: "it is broken"}
	for range 100 {
		_, err := sink.Create(e)
		require.NoError(t, err)
		_, err = sink.Patch(e, []byte(`{}`))
		require.NoError(t, err)
	}
	require.Equal(t, 1, asked)
	now = now.Add(eventsDenied)
	_, err := sink.Create(e)
	require.NoError(t, err)
	require.Equal(t, 2, asked)
	require.Len(t, said.All(), 1)
	require.Contains(t, said.All()[0].Message, "grant create and patch on events")
	allow, now = true, now.Add(eventsDenied)
	_, err = sink.Create(e)
	require.NoError(t, err)
	require.Len(t, eventsOf(t, client), 1)
}
