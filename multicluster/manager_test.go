package multicluster

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

func TestClusterJoinsAndLeaves(t *testing.T) { // row 11
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		w.set(secretObject("a", 1, map[string]string{"c2": goodKubeconfig("1"), "c3": goodKubeconfig("1")}))
		require.Equal(t, StatusSyncing, w.status("c2").SyncStatus)
		require.Equal(t, HealthStarting, w.status("c2").Health)
		require.Zero(t, w.endpoints("c2"))

		w.newest("c2").sync(2)
		w.newest("c3").sync(3)
		require.Equal(t, 2, w.endpoints("c2"))
		s := w.status("c2")
		require.Equal(t, StatusSynced, s.SyncStatus)
		require.Equal(t, HealthOK, s.Health, s.Reason)
		require.Equal(t, "istio-system/a", s.SecretName)
		require.Equal(t, "10.1.2.3:6443", s.Server)
		require.NotZero(t, s.Generation)

		w.forget()
		w.set(secretObject("a", 1, map[string]string{"c3": goodKubeconfig("1")}))
		require.Len(t, w.changes, 1, "the removal of a cluster is one change")
		require.Zero(t, w.endpoints("c2"))
		require.Equal(t, 3, w.endpoints("c3"))
		require.Zero(t, w.running("c2"))
		require.Equal(t, 1, w.running("c3"), "the other cluster of the same secret is left alone")
		require.Len(t, w.all("c3"), 1)
		require.Equal(t, []mesh.ClusterID{"c2"}, w.left)
		_, known := w.store.Catalog().Cluster("c2")
		require.False(t, known)
	})
}

func TestPrimaryIsNotClaimable(t *testing.T) { // row 7
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		o := secretObject("a", 1, map[string]string{"primary": goodKubeconfig("1"), "main": goodKubeconfig("1"), "c2": goodKubeconfig("1")})
		w.set(o)
		w.set(o) // told once
		require.Empty(t, w.all("primary"))
		require.Empty(t, w.all("main"))
		require.Equal(t, 1, w.running("c2"))
		require.Len(t, w.events.list, 2)
		for _, e := range w.events.list {
			require.Equal(t, ReasonPrimary, e.reason)
		}
		require.Len(t, w.manager.Clusters(), 2)
	})
}

func TestUnreachableAtStart(t *testing.T) { // row 12
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		synctest.Wait()
		require.False(t, w.manager.HasSynced(), "nothing is known before the first listing")
		start := time.Now()
		w.set(secretObject("a", 1, map[string]string{"c2": goodKubeconfig("1"), "c3": goodKubeconfig("1")}))
		w.newest("c3").sync(1)
		w.newest("c2").say(SourceStatus{Error: "connect: connection refused"})
		require.False(t, w.manager.HasSynced())
		<-w.manager.Ready()
		require.Equal(t, DefaultTimeout, time.Since(start))
		synctest.Wait()
		s := w.status("c2")
		require.Equal(t, StatusTimeout, s.SyncStatus)
		require.Equal(t, HealthUnreachable, s.Health)
		require.Contains(t, s.Reason, "connection refused")
		require.Equal(t, DefaultTimeout, s.StaleFor)
		require.Equal(t, 1, w.running("c2"), "it goes on trying")
		_, known := w.store.Catalog().Cluster("c2")
		require.False(t, known, "unknown is not empty")
		_, ok := w.manager.ClientFor("c2")
		require.False(t, ok)

		w.newest("c2").say(SourceStatus{Reachable: true})
		w.newest("c2").sync(4)
		require.Equal(t, StatusSynced, w.status("c2").SyncStatus)
		require.Equal(t, HealthOK, w.status("c2").Health)
		require.Equal(t, 4, w.endpoints("c2"))
	})
}

func TestReadiness(t *testing.T) {
	tests := []struct {
		name    string
		timeout time.Duration
		steps   func(*world)
		after   time.Duration // time of readiness, from the first listing
	}{
		{"no remotes", 0, func(w *world) { w.set() }, 0},
		{"all synced", 0, func(w *world) {
			w.set(secretObject("a", 1, map[string]string{"c2": goodKubeconfig("1")}))
			time.Sleep(3 * time.Second)
			w.newest("c2").sync(1)
		}, 3 * time.Second},
		{"refused is not waited for", 0, func(w *world) {
			w.set(secretObject("a", 1, map[string]string{"c2": "garbage"}))
		}, 0},
		{"one that left is not waited for", 0, func(w *world) {
			w.set(secretObject("a", 1, map[string]string{"c2": goodKubeconfig("1")}))
			time.Sleep(2 * time.Second)
			w.set()
		}, 2 * time.Second},
		{"rotations do not prolong it", 10 * time.Second, func(w *world) {
			w.set(secretObject("a", 1, map[string]string{"c2": goodKubeconfig("1")}))
			time.Sleep(9 * time.Second)
			w.set(secretObject("a", 1, map[string]string{"c2": goodKubeconfig("2")}))
		}, 10 * time.Second},
		{"one that comes later is not waited for", 10 * time.Second, func(w *world) {
			w.set(secretObject("a", 1, map[string]string{"c2": goodKubeconfig("1")}))
			time.Sleep(2 * time.Second)
			w.set(secretObject("a", 1, map[string]string{"c2": goodKubeconfig("1"), "c3": goodKubeconfig("1")}))
			w.newest("c2").sync(1)
		}, 2 * time.Second},
		{"without a limit", -1, func(w *world) {
			w.set(secretObject("a", 1, map[string]string{"c2": goodKubeconfig("1")}))
			time.Sleep(24 * time.Hour)
			w.newest("c2").sync(1)
		}, 24 * time.Hour},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, func(c *Config) { c.Timeout = tt.timeout })
				defer w.stop()
				time.Sleep(time.Minute) // the listing itself has no deadline: unknown is not empty
				synctest.Wait()
				require.False(t, w.manager.HasSynced())
				var at time.Time
				start, done := time.Now(), make(chan struct{})
				go func() { <-w.manager.Ready(); at = time.Now(); close(done) }()
				tt.steps(w)
				<-done
				require.Equal(t, tt.after, at.Sub(start))
				w.set(secretObject("z", 9, map[string]string{"late": goodKubeconfig("1")}))
				require.True(t, w.manager.HasSynced(), "ready once is ready for ever")
			})
		})
	}
}

func TestSourceThatEndsIsRestarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		w.set(secretObject("a", 1, map[string]string{"c2": goodKubeconfig("1")}))
		w.newest("c2").sync(2)
		w.forget()
		w.newest("c2").fail(errors.New("boom"))
		s := w.status("c2")
		require.Equal(t, HealthDegraded, s.Health)
		require.Equal(t, StatusSynced, s.SyncStatus)
		require.Contains(t, s.Reason, "boom")
		require.Equal(t, "boom", s.LastError)
		_, ok := w.manager.ClientFor("c2")
		require.True(t, ok, "the credential is as good as before")

		// It fails again and again: the pauses grow, nothing is lost.
		var starts []time.Duration
		at := time.Now()
		for n := 2; n < 12; n++ {
			for len(w.all("c2")) < n {
				time.Sleep(100 * time.Millisecond)
				synctest.Wait()
				require.Less(t, time.Since(at), time.Hour, "not restarted")
			}
			starts = append(starts, time.Since(at))
			at = time.Now()
			w.newest("c2").fail(nil)
		}
		require.Equal(t, []time.Duration{1, 2, 4, 8, 16, 32, 60, 60, 60, 60}, seconds(starts))
		require.Equal(t, 2, w.endpoints("c2"))
		require.Empty(t, w.changes)
		require.Contains(t, w.status("c2").LastError, "without an error")
		require.GreaterOrEqual(t, w.status("c2").StaleFor, 4*time.Minute)

		time.Sleep(time.Minute)
		synctest.Wait()
		w.newest("c2").sync(2)
		require.Empty(t, w.changes)
		require.Equal(t, HealthOK, w.status("c2").Health)
		require.Equal(t, 1, w.running("c2"))
		w.newest("c2").apply(7)
		require.Equal(t, 7, w.endpoints("c2"))
	})
}

func seconds(in []time.Duration) []time.Duration {
	out := make([]time.Duration, len(in))
	for i, d := range in {
		out[i] = d / time.Second
	}
	return out
}

func TestSourceThatCannotBeMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		w.broken = errors.New("no plugin for it")
		w.set(secretObject("a", 1, map[string]string{"c2": goodKubeconfig("1")}))
		require.Contains(t, w.status("c2").Reason, "no plugin for it")
		require.NotEqual(t, HealthOK, w.status("c2").Health)
		time.Sleep(40 * time.Second)
		synctest.Wait()
		require.True(t, w.manager.HasSynced())
		require.Equal(t, StatusTimeout, w.status("c2").SyncStatus)
		w.mu.Lock()
		w.broken = nil
		w.mu.Unlock()
		time.Sleep(time.Minute)
		synctest.Wait()
		w.newest("c2").sync(1)
		require.Equal(t, HealthOK, w.status("c2").Health)
	})
}

func TestFailedStartIsRetriedInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		w.broken = errors.New("not now")
		w.set(secretObject("a", 1, map[string]string{"c2": goodKubeconfig("1")}))
		w.mu.Lock()
		w.broken = nil
		w.mu.Unlock()
		time.Sleep(time.Second - time.Nanosecond)
		synctest.Wait()
		require.Empty(t, w.all("c2"))
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		require.Equal(t, 1, w.running("c2"))
	})
}

func TestPartitionAndExpiredTokenKeepData(t *testing.T) { // rows 13, 14, 15
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		w.set(secretObject("a", 1, map[string]string{"c2": goodKubeconfig("1")}))
		src := w.newest("c2")
		src.sync(2)
		w.forget()
		cut := time.Now()

		src.say(SourceStatus{LastEvent: cut.Add(-time.Hour), LastContact: cut, Error: "no route to host"})
		time.Sleep(90 * time.Second)
		synctest.Wait()
		s := w.status("c2")
		require.Equal(t, StatusSynced, s.SyncStatus)
		require.Equal(t, HealthUnreachable, s.Health)
		require.Contains(t, s.Reason, "no route to host")
		require.Equal(t, 90*time.Second, s.StaleFor, "from the last contact, not from the last event of a quiet cluster")
		require.InDelta(t, 90, series(t, w.metrics)[`isthmus_cluster_stale_seconds{cluster="c2"}`], 0.01)
		require.Less(t, s.Since.Sub(cut), 2*lookInterval, "the change was noticed when it happened, not when it was asked for")

		src.say(SourceStatus{Reachable: true, Kinds: []KindStatus{
			{Kind: "Service", Synced: true, LastEvent: time.Now(), Error: "Unauthorized"}, {Kind: "Pod", Synced: true, LastEvent: time.Now()},
		}})
		time.Sleep(30 * time.Second)
		s = w.status("c2")
		require.Equal(t, HealthDegraded, s.Health)
		require.Equal(t, "Service: Unauthorized", s.Reason)
		require.Equal(t, 30*time.Second, s.StaleFor)

		src.say(SourceStatus{Reachable: true, Kinds: []KindStatus{{Kind: "Gateway", Error: "forbidden"}, {Kind: "Pod", Synced: true}}})
		s = w.status("c2")
		require.Equal(t, HealthDegraded, s.Health)
		require.Equal(t, "Gateway: forbidden", s.Reason)
		require.Zero(t, s.StaleFor, "what was never read is missing, not stale")

		src.say(SourceStatus{Reachable: true})
		require.Equal(t, HealthOK, w.status("c2").Health)
		require.Empty(t, w.changes)
		require.Len(t, w.all("c2"), 1, "none of it is a reason to start anew")
	})
}

func TestUnreadableSecretsKeepEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		w.set(secretObject("a", 1, map[string]string{"c2": goodKubeconfig("1")}))
		w.newest("c2").sync(1)
		w.forget()
		w.feed.failures <- "secrets is forbidden"
		w.feed.failures <- "secrets is forbidden"
		synctest.Wait()
		require.Equal(t, "secrets is forbidden", w.manager.Debug().Error)
		require.Equal(t, 1, w.logs.FilterMessageSnippet("cannot read the kubeconfigs").Len(), "said once")
		require.Equal(t, 1, w.endpoints("c2"))
		w.set(secretObject("a", 1, map[string]string{"c2": goodKubeconfig("1")}))
		require.Empty(t, w.manager.Debug().Error)
		require.Empty(t, w.changes)
	})
}

func TestShutdownKeepsData(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.set(secretObject("a", 1, map[string]string{"c2": goodKubeconfig("1"), "c3": goodKubeconfig("1")}))
		w.newest("c2").sync(2)
		w.forget()
		w.stop()
		require.Zero(t, w.running("c2")+w.running("c3"), "Run returns after the sources")
		require.Empty(t, w.changes)
		require.Equal(t, 2, w.endpoints("c2"))
		require.Equal(t, StatusClosed, w.status("c2").SyncStatus)
		require.ErrorContains(t, w.manager.Run(context.Background()), "run before")
	})
}

func TestFeedErrorEndsRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, err := New(Config{Primary: "p", NewSink: registry.NewStore(registry.Config{}).NewSink,
			NewSource: func(mesh.ClusterID, *rest.Config) (registry.Source, error) { return nil, errors.New("unused") }})
		require.NoError(t, err)
		feed := newFakeFeed()
		m.feed = feed
		go func() { feed.end <- errors.New("broken") }()
		require.ErrorContains(t, m.Run(t.Context()), "broken")
	})
}

func TestNewRefuses(t *testing.T) {
	sink := registry.NewStore(registry.Config{}).NewSink
	source := func(mesh.ClusterID, *rest.Config) (registry.Source, error) { return nil, errors.New("unused") }
	for want, c := range map[string]Config{
		"Primary":               {NewSink: sink, NewSource: source},
		"NewSource and NewSink": {Primary: "p", NewSink: sink},
		"Namespace":             {Primary: "p", NewSink: sink, NewSource: source, Client: &fakeClient{}},
	} {
		_, err := New(c)
		require.ErrorContains(t, err, want)
	}
}

func TestClientFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		own := &fakeClient{token: "own"}
		w := newWorld(t, func(c *Config) { c.Client, c.Namespace = own, "istio-system" })
		defer w.stop()
		for _, id := range []mesh.ClusterID{"primary", "main"} {
			c, ok := w.manager.ClientFor(id)
			require.True(t, ok)
			require.Same(t, own, c)
		}
		w.set(secretObject("a", 1, map[string]string{"c2": goodKubeconfig("1")}))
		_, ok := w.manager.ClientFor("c2")
		require.False(t, ok, "not before it was read")
		w.newest("c2").sync(1)
		_, ok = w.manager.ClientFor("c2")
		require.True(t, ok)
		_, ok = w.manager.ClientFor("c9")
		require.False(t, ok)
		w.set()
		_, ok = w.manager.ClientFor("c2")
		require.False(t, ok, "not after it left")
	})
}
