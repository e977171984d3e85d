package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/registry/config"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is an API server with objects, and what a control plane knows of them.
type server struct {
	t        *testing.T
	api      *dynamicfake.FakeDynamicClient
	problems *registry.Problems
	w        *Writer
	now      time.Time
	logs     *observer.ObservedLogs
	served   map[mesh.ObjectKey]int64
}

func newServer(t *testing.T) *server {
	t.Helper()
	lists := map[schema.GroupVersionResource]string{}
	for _, k := range config.Kinds() {
		lists[resource(k)] = k.Name() + "List"
	}
	core, logs := observer.New(zap.WarnLevel)
	s := &server{t: t, now: at(1000), logs: logs, problems: registry.NewProblems(nil), served: map[mesh.ObjectKey]int64{},
		api: dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), lists)}
	s.w = s.writer(zap.New(core), func() time.Time { return s.now })
	s.w.begin()
	return s
}

// writer is another one that leads at once.
func (s *server) writer(log *zap.Logger, clock func() time.Time) *Writer {
	s.t.Helper()
	w, err := New(Config{Client: s.api, Cluster: "east", Problems: s.problems, Log: log, Clock: clock,
		Generation: func(k mesh.ObjectKey) int64 { return s.served[k] },
		Elect: func(ctx context.Context, lead func(context.Context)) error {
			lead(ctx)
			return nil
		}})
	require.NoError(s.t, err)
	return w
}

func kindOf(t *testing.T, name mesh.ObjectKind) config.Kind {
	t.Helper()
	for _, k := range config.Kinds() {
		if k.Kind == name {
			return k
		}
	}
	t.Fatalf("no kind %s", name)
	return config.Kind{}
}

// put writes an object as its author does, keeping its status.
func (s *server) put(kind mesh.ObjectKind, name string, generation int64, spec string, labels map[string]string) {
	s.t.Helper()
	k := kindOf(s.t, kind)
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": k.Group + "/" + k.Version, "kind": k.Name()}}
	u.SetNamespace("shop")
	u.SetName(name)
	u.SetGeneration(generation)
	u.SetLabels(labels)
	var content map[string]any
	require.NoError(s.t, json.Unmarshal([]byte(spec), &content))
	u.Object["spec"] = content
	api := s.api.Resource(resource(k)).Namespace("shop")
	old, err := api.Get(s.t.Context(), name, metav1.GetOptions{})
	if err == nil {
		if st, ok := old.Object["status"]; ok {
			u.Object["status"] = st
		}
		_, err = api.Update(s.t.Context(), u, metav1.UpdateOptions{})
	} else {
		_, err = api.Create(s.t.Context(), u, metav1.CreateOptions{})
	}
	require.NoError(s.t, err)
}

func (s *server) status(kind mesh.ObjectKind, name string) map[string]any {
	s.t.Helper()
	u, err := s.api.Resource(resource(kindOf(s.t, kind))).Namespace("shop").Get(s.t.Context(), name, metav1.GetOptions{})
	require.NoError(s.t, err)
	out, _, _ := unstructured.NestedMap(u.Object, "status")
	return out
}

// says is the reason and message of our condition, "" if there is none.
func (s *server) says(kind mesh.ObjectKind, name string) string {
	s.t.Helper()
	list, _ := s.status(kind, name)["conditions"].([]any)
	c, ok := find(list, ConditionType)
	if !ok {
		return ""
	}
	require.Equal(s.t, "False", c["status"])
	return fmt.Sprintf("%s %d %s", c["reason"], generationOf(c), c["message"])
}

// writes runs a pass and counts what was written in it, and read one by one.
func (s *server) writes() (written, read int) {
	s.t.Helper()
	s.api.ClearActions()
	s.w.pass(s.t.Context())
	for _, a := range s.api.Actions() {
		switch a.GetVerb() {
		case "patch", "update":
			require.Equal(s.t, "status", a.GetSubresource())
			written++
		case "get":
			read++
		}
	}
	return written, read
}

func (s *server) wrote() int {
	s.t.Helper()
	n, _ := s.writes()
	return n
}

func ref(kind mesh.ObjectKind, name string) mesh.ObjectRef {
	return mesh.ObjectRef{Cluster: "east", Kind: string(kind), Namespace: "shop", Name: name}
}

const (
	goodRule = `{"host":"web"}`
	badRule  = `{"host":""}`
)

// TestRefusedAndMended: who is refused hears it once, and no more when it is
// mended; healthy objects are not touched; nobody else's status is.
func TestRefusedAndMended(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.put(mesh.KindDestinationRule, "bad", 1, badRule, nil)
	s.put(mesh.KindDestinationRule, "good", 1, goodRule, nil)
	s.put(mesh.KindDestinationRule, "theirs", 1, badRule, map[string]string{"istio.io/rev": "canary"})
	s.put(mesh.KindDestinationRule, "default", 1, badRule, map[string]string{"istio.io/rev": "default"})
	for _, name := range []string{"bad", "theirs", "default"} {
		s.problems.Set(ref(mesh.KindDestinationRule, name), "spec.host", "is empty")
	}
	elsewhere := ref(mesh.KindDestinationRule, "good")
	elsewhere.Cluster = "west"
	s.problems.Set(elsewhere, "", "is another cluster's")
	s.problems.Set(mesh.ObjectRef{Cluster: "east", Kind: "Pod", Namespace: "shop", Name: "good"}, "", "is no object of Istio's")
	require.Equal(t, 2, s.wrote())
	require.Contains(t, s.says(mesh.KindDestinationRule, "bad"), "Refused 1 Nothing of this is served, what was read before stays: spec.host: ")
	require.NotEmpty(t, s.says(mesh.KindDestinationRule, "default"))
	require.Empty(t, s.status(mesh.KindDestinationRule, "good"))
	require.Empty(t, s.status(mesh.KindDestinationRule, "theirs"))
	s.now = s.now.Add(time.Hour)
	require.Zero(t, s.wrote(), "it says so already")

	s.put(mesh.KindDestinationRule, "bad", 2, goodRule, nil)
	s.now = s.now.Add(time.Hour)
	require.Zero(t, s.wrote(), "it is mended, which has not been read yet: nothing wrong is said of what is there now")
	s.problems.Clear(ref(mesh.KindDestinationRule, "bad"))
	require.Zero(t, s.wrote(), "it may be that more is heard of it")
	s.now = s.now.Add(settled)
	require.Equal(t, 1, s.wrote())
	require.Empty(t, s.says(mesh.KindDestinationRule, "bad"))
	s.now = s.now.Add(time.Hour)
	s.writes()
	require.Len(t, s.w.objects, 2, "what is well is not remembered")
	require.Zero(t, s.logs.Len())
}

// TestPartsLeftOut: each part is named; the condition follows what is known, but
// for an object that has changed since.
func TestPartsLeftOut(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	about := ref(mesh.KindEnvoyFilter, "patches")
	s.put(mesh.KindEnvoyFilter, "patches", 4, `{}`, nil)
	s.problems.SetParts(about, 4, []registry.Part{{Field: "spec.configPatches[1]", Message: "fits nowhere"}})
	require.Equal(t, 1, s.wrote())
	require.Equal(t, "PartsLeftOut 4 Served without spec.configPatches[1]: fits nowhere", s.says(mesh.KindEnvoyFilter, "patches"))
	s.problems.SetParts(about, 4, []registry.Part{{Field: "spec.configPatches[0]", Message: "is none"}, {Field: "spec.configPatches[1]", Message: "fits nowhere"}})
	require.Equal(t, 1, s.wrote(), "what is new is said at once")
	require.Contains(t, s.says(mesh.KindEnvoyFilter, "patches"), "spec.configPatches[0]: is none; spec.configPatches[1]: fits nowhere")
	s.put(mesh.KindEnvoyFilter, "patches", 5, `{"priority":1}`, nil)
	s.problems.SetParts(about, 4, []registry.Part{{Field: "spec.configPatches[0]", Message: "is old"}})
	require.Zero(t, s.wrote(), "said of another generation")
	s.problems.SetParts(about, 0, nil)
	require.Zero(t, s.wrote())
	s.problems.SetParts(about, 5, []registry.Part{{Field: "spec.configPatches[0]", Message: "is none"}})
	require.Equal(t, 1, s.wrote(), "builders tell of it again, and it was never taken back")
	require.Contains(t, s.says(mesh.KindEnvoyFilter, "patches"), "PartsLeftOut 5 ")
}

// TestNewLeader: it takes back what was said of an object that is well by now. Of
// parts that it would not know of, because no proxy of its own needs them, it
// leaves what another replica found.
func TestNewLeader(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	for _, name := range []string{"stands", "changed"} {
		s.put(mesh.KindEnvoyFilter, name, 1, `{}`, nil)
		s.problems.SetParts(ref(mesh.KindEnvoyFilter, name), 1, []registry.Part{{Field: "spec", Message: "m"}})
		s.served[mesh.ObjectKey{Kind: mesh.KindEnvoyFilter, Namespace: "shop", Name: name}] = 1
	}
	s.put(mesh.KindDestinationRule, "mended", 1, badRule, nil)
	s.problems.Set(ref(mesh.KindDestinationRule, "mended"), "spec.host", "is empty")
	require.Equal(t, 3, s.wrote())

	s.problems = registry.NewProblems(nil)
	s.put(mesh.KindDestinationRule, "mended", 2, goodRule, nil)
	s.put(mesh.KindEnvoyFilter, "changed", 2, `{"priority":1}`, nil)
	s.served[mesh.ObjectKey{Kind: mesh.KindEnvoyFilter, Namespace: "shop", Name: "changed"}] = 2
	fails := true
	s.api.PrependReactor("list", "envoyfilters", func(clienttesting.Action) (bool, runtime.Object, error) {
		return fails, nil, errors.New("not now")
	})
	s.w = s.writer(s.w.log, func() time.Time { return s.now })
	s.w.begin()
	require.Zero(t, s.wrote())
	s.now = s.now.Add(settled)
	require.Equal(t, 1, s.wrote(), "of EnvoyFilters nothing is known yet")
	fails = false
	for range 4 {
		s.now = s.now.Add(settled + retryMin)
		s.writes()
	}
	require.Empty(t, s.says(mesh.KindDestinationRule, "mended"))
	require.Empty(t, s.says(mesh.KindEnvoyFilter, "changed"))
	require.NotEmpty(t, s.says(mesh.KindEnvoyFilter, "stands"))
}

// TestOtherStatusStays: addresses of a ServiceEntry, conditions of others.
func TestOtherStatusStays(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.put(mesh.KindServiceEntry, "x", 1, `{"hosts":[]}`, nil)
	api := s.api.Resource(resource(kindOf(t, mesh.KindServiceEntry))).Namespace("shop")
	u, err := api.Get(t.Context(), "x", metav1.GetOptions{})
	require.NoError(t, err)
	before := map[string]any{"addresses": []any{map[string]any{"host": "a", "value": "240.240.0.1"}}, "observedGeneration": "7",
		"conditions": []any{map[string]any{"type": "Healthy", "status": "True", "lastProbeTime": "x"}}}
	u.Object["status"] = before
	_, err = api.Update(t.Context(), u, metav1.UpdateOptions{})
	require.NoError(t, err)
	s.problems.Set(ref(mesh.KindServiceEntry, "x"), "spec.hosts", "is empty")
	require.Equal(t, 1, s.wrote())
	require.NotEmpty(t, s.says(mesh.KindServiceEntry, "x"))
	s.problems.Clear(ref(mesh.KindServiceEntry, "x"))
	s.writes()
	s.now = s.now.Add(settled)
	require.Equal(t, 1, s.wrote())
	require.Equal(t, before, s.status(mesh.KindServiceEntry, "x"))
}

// TestRights: who may not patch updates; who may do neither is told once for each
// kind, and the API server is left in peace.
func TestRights(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	forbidden := map[string]bool{"patch": true}
	for _, verb := range []string{"patch", "update"} {
		s.api.PrependReactor(verb, "destinationrules", func(a clienttesting.Action) (bool, runtime.Object, error) {
			if a.GetSubresource() == "status" && forbidden[verb] {
				return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "destinationrules"}, "x", nil)
			}
			return false, nil, nil
		})
	}
	for i := range 4 {
		s.put(mesh.KindDestinationRule, fmt.Sprint("r", i), 1, badRule, nil)
	}
	s.problems.Set(ref(mesh.KindDestinationRule, "r0"), "spec.host", "is empty")
	require.Equal(t, 2, s.wrote(), "a patch, then an update")
	require.NotEmpty(t, s.says(mesh.KindDestinationRule, "r0"))
	s.problems.Set(ref(mesh.KindDestinationRule, "r1"), "spec.host", "is empty")
	require.Equal(t, 1, s.wrote(), "an update")

	forbidden["update"] = true
	for _, name := range []string{"r2", "r3"} {
		s.problems.Set(ref(mesh.KindDestinationRule, name), "spec.host", "is empty")
	}
	s.put(mesh.KindEnvoyFilter, "x", 1, `{}`, nil)
	s.problems.SetParts(ref(mesh.KindEnvoyFilter, "x"), 1, []registry.Part{{Field: "spec", Message: "m"}})
	require.Equal(t, 2, s.wrote(), "one is refused, the other not tried; another kind is written")
	require.Equal(t, 1, s.logs.FilterMessageSnippet("allow patch on destinationrules/status").Len())
	s.now = s.now.Add(deniedFor / 2)
	require.Zero(t, s.wrote())
	s.now = s.now.Add(deniedFor / 2)
	require.Equal(t, 1, s.wrote())
	require.Equal(t, 1, s.logs.Len(), "told once")
	forbidden["update"] = false
	s.problems.Clear(ref(mesh.KindDestinationRule, "r0"))
	s.now = s.now.Add(deniedFor)
	s.writes()
	s.now = s.now.Add(deniedFor)
	s.writes()
	require.NotEmpty(t, s.says(mesh.KindDestinationRule, "r2"))
	require.NotEmpty(t, s.says(mesh.KindDestinationRule, "r3"))
	require.Empty(t, s.says(mesh.KindDestinationRule, "r0"), "what could not be taken back is not forgotten")
}

// TestBounds: of thousands of objects so many are written at a time, the new ones
// first; the healthy ones are never read.
func TestBounds(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	const bad = 3*perPass + 1
	for i := range 10 * bad {
		s.put(mesh.KindDestinationRule, fmt.Sprintf("r%03d", i), 1, badRule, nil)
	}
	for i := range bad {
		s.problems.Set(ref(mesh.KindDestinationRule, fmt.Sprintf("r%03d", i)), "spec.host", "is empty")
	}
	total := 0
	for _, want := range []int{perPass, perPass, perPass, 1, 0} {
		written, read := s.writes()
		require.Equal(t, want, written)
		require.LessOrEqual(t, read, perPass)
		total += written
		s.now = s.now.Add(look) // so that what was written first may be looked at again
	}
	require.Equal(t, bad, total)
}

// TestBackOff runs the loop: what somebody else always writes over is said ever
// more seldom, and a server that fails is asked ever more seldom.
func TestBackOff(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]bool{"fight": false, "failure": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newServer(t)
				s.put(mesh.KindDestinationRule, "bad", 1, badRule, nil)
				s.problems.Set(ref(mesh.KindDestinationRule, "bad"), "spec.host", "is empty")
				var tried []time.Time
				s.api.PrependReactor("patch", "destinationrules", func(clienttesting.Action) (bool, runtime.Object, error) {
					tried = append(tried, time.Now())
					if fail {
						return true, nil, errors.New("not now")
					}
					return true, &unstructured.Unstructured{Object: map[string]any{}}, nil // and it is gone again
				})
				core, logs := observer.New(zap.WarnLevel)
				w := s.writer(zap.New(core), time.Now)
				ctx, stop := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- w.Run(ctx) }()
				time.Sleep(2 * time.Hour)
				synctest.Wait()
				stop()
				require.NoError(t, <-done)
				require.Greater(t, len(tried), 10)
				require.Less(t, len(tried), 40)
				var waits []time.Duration
				for i := range len(tried) - 1 {
					waits = append(waits, tried[i+1].Sub(tried[i]))
				}
				require.IsNonDecreasing(t, waits)
				require.Equal(t, retryMax, waits[len(waits)-1])
				if fail {
					require.Equal(t, len(tried), logs.FilterMessageSnippet("trying again").Len())
				} else {
					require.Zero(t, logs.Len())
				}
			})
		})
	}
}

// TestFollows runs the loop: a fault is told, and taken back when it is gone,
// without anybody asking.
func TestFollows(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		s.put(mesh.KindDestinationRule, "x", 1, badRule, nil)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		w := s.writer(nil, nil)
		go func() { done <- w.Run(ctx) }()
		time.Sleep(time.Hour)
		synctest.Wait()
		for _, a := range s.api.Actions() {
			require.True(t, a.GetVerb() == "list" || a.GetVerb() == "create" || a.GetVerb() == "get" && strings.HasPrefix(a.GetResource().Resource, "destinationrules"), "%v", a)
		}
		s.problems.Set(ref(mesh.KindDestinationRule, "x"), "spec.host", "is empty")
		time.Sleep(2 * pause)
		synctest.Wait()
		require.NotEmpty(t, s.says(mesh.KindDestinationRule, "x"))
		s.put(mesh.KindDestinationRule, "x", 2, goodRule, nil)
		s.problems.Clear(ref(mesh.KindDestinationRule, "x"))
		time.Sleep(settled + 3*pause)
		synctest.Wait()
		require.Empty(t, s.says(mesh.KindDestinationRule, "x"))
		stop()
		require.NoError(t, <-done)
	})
}

// TestNewRefuses: what must be set, and the names of locks.
func TestNewRefuses(t *testing.T) {
	t.Parallel()
	_, err := New(Config{})
	require.Error(t, err)
	require.Equal(t, "isthmus-config-status", LeaseName("default"))
	require.Equal(t, "isthmus-config-status-canary", LeaseName("canary"))
}
