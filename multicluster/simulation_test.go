package multicluster

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"
	"pgregory.net/rapid"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// step is one thing that happens to a manager in a simulation.
type step struct {
	do      string
	secret  string
	cluster mesh.ClusterID
	content string
}

func drawStep(t *rapid.T) step {
	return step{
		do:      rapid.SampledFrom([]string{"set", "set", "delete", "sync", "sync", "end", "wait"}).Draw(t, "do"),
		secret:  rapid.SampledFrom([]string{"s1", "s2"}).Draw(t, "secret"),
		cluster: rapid.SampledFrom([]mesh.ClusterID{"c1", "c2"}).Draw(t, "cluster"),
		content: rapid.SampledFrom([]string{"A", "B", "broken"}).Draw(t, "content"),
	}
}

// TestSimulation drives real managers with real sinks through random histories,
// without a pause between the steps. Whatever happened, nothing that was read is
// lost while somebody claims its cluster, and in the end exactly one source per
// claimed cluster runs, with the kubeconfig that a manager without a history
// would have chosen.
func TestSimulation(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		steps := rapid.SliceOfN(rapid.Custom(drawStep), 1, 30).Draw(rt, "steps")
		defer func() {
			if t.Failed() {
				rt.Logf("history: %+v", steps)
			}
		}()
		synctest.Test(t, func(t *testing.T) { simulate(t, steps) })
	})
}

func simulate(t *testing.T, steps []step) {
	w := newWorld(t)
	defer w.stop()
	secrets := map[string]map[string]string{"s1": {}, "s2": {}}
	snapshotNow := func() (out []object) {
		for i, name := range []string{"s1", "s2"} {
			out = append(out, secretObject(name, i, secrets[name]))
		}
		return out
	}
	for _, s := range steps {
		switch s.do {
		case "set":
			if secrets[s.secret][string(s.cluster)] = goodKubeconfig(s.content); s.content == "broken" {
				secrets[s.secret][string(s.cluster)] = "broken"
			}
			w.feed.snapshots <- snapshot{snapshotNow()} // the manager may still be at work
		case "delete":
			delete(secrets[s.secret], string(s.cluster))
			w.feed.snapshots <- snapshot{snapshotNow()}
		case "sync", "end":
			synctest.Wait()
			w.stir(s)
		case "wait":
			time.Sleep(700 * time.Millisecond)
		}
		synctest.Wait()
		for _, id := range []mesh.ClusterID{"c1", "c2"} {
			_, a := secrets["s1"][string(id)]
			_, b := secrets["s2"][string(id)]
			_, known := w.store.Catalog().Cluster(id)
			require.False(t, known && !a && !b, "%s left", id)
			require.LessOrEqual(t, w.running(id), 2)
			if s := w.status(idOr(w, id)); s.SyncStatus == StatusSynced && !s.Primary {
				require.True(t, known, "%s is served", id)
			}
		}
	}
	w.settle()
	var claims []claim
	for _, o := range snapshotNow() {
		for _, e := range o.entries {
			c := claim{id: e.id, origin: o.origin, content: e.content}
			if string(e.raw) == "broken" {
				c.problem = "broken"
			}
			claims = append(claims, c)
		}
	}
	owners := decide(claims).owners
	require.Len(t, w.manager.Clusters(), len(owners)+1)
	for id, owner := range owners {
		if owner.problem != "" {
			continue
		}
		s := w.status(id)
		require.Equal(t, HealthOK, s.Health, s.Reason)
		require.Equal(t, 1, w.running(id))
		r := w.manager.view.Load().find(id)
		require.Equal(t, owner.content, r.serving.content)
		for _, src := range w.all(id) { // not always the newest: a rotation may have been taken back
			if !src.ended.Load() {
				src.apply(9)
			}
		}
		require.Equal(t, 9, w.endpoints(id), "the one that serves is the one that is listened to")
	}
}

// stir makes a random-looking but repeatable one of the cluster's sources report or end.
func (w *world) stir(s step) {
	for i, src := range w.all(s.cluster) {
		if src.ended.Load() || (len(s.content)+i)%3 == 0 {
			continue
		}
		if s.do == "sync" {
			src.sync(i%4 + 1)
		} else {
			src.fail(errors.New("ended"))
		}
		return
	}
}

// settle lets every source that still runs report until nothing happens.
func (w *world) settle() {
	for range 10 {
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		for _, id := range []mesh.ClusterID{"c1", "c2"} {
			for _, src := range w.all(id) {
				if !src.ended.Load() {
					src.sync(3)
				}
			}
		}
	}
}

// idOr returns id if the manager has it, else the primary.
func idOr(w *world, id mesh.ClusterID) mesh.ClusterID {
	for _, s := range w.manager.Clusters() {
		if s.ID == id {
			return id
		}
	}
	return "primary"
}

// TestCandidateReportsWhileItIsAbandoned: the plan was made before the candidate
// reported. It owns the cluster now, so it must be promoted first; otherwise the
// old source, superseded in the Store, would be listened to in vain.
func TestCandidateReportsWhileItIsAbandoned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		w.set(secretObject("a", 1, map[string]string{"c2": goodKubeconfig("1")}))
		w.newest("c2").sync(1)
		w.set(secretObject("a", 1, map[string]string{"c2": goodKubeconfig("2")}))
		m := w.manager
		candidate := m.loop.remotes["c2"].candidate // the loop is asleep
		sync := w.newest("c2")
		candidate.gate.notify = func() {} // the news is late
		sync.sync(2)
		require.False(t, m.act(t.Context(), action{verb: verbAbandon, id: "c2", generation: candidate.generation}, time.Now()))
		require.False(t, sync.ended.Load())
		w.set(secretObject("a", 1, map[string]string{"c2": goodKubeconfig("1")})) // meanwhile taken back
		w.newest("c2").sync(3)
		require.Equal(t, 3, w.endpoints("c2"))
		require.Equal(t, 1, w.running("c2"))
		require.Equal(t, secretToken+"1", w.newest("c2").token)
	})
}

// TestManyRotationsLeaveNothing: memory and goroutines do not grow with the
// number of rotations (goleak watches the goroutines).
func TestManyRotationsLeaveNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var made int
		w := newWorld(t, func(c *Config) {
			source := c.NewSource
			c.NewSource = func(id mesh.ClusterID, cfg *rest.Config) (registry.Source, error) { made++; return source(id, cfg) }
		})
		defer w.stop()
		for i := range 200 {
			w.set(secretObject("a", 1, map[string]string{"c2": goodKubeconfig(fmt.Sprint(i))}))
			if i%3 > 0 { // every third is never read
				w.newest("c2").sync(2)
			}
		}
		w.set(secretObject("a", 1, map[string]string{"c2": goodKubeconfig("last")}))
		w.newest("c2").sync(2)
		require.Equal(t, 201, made)
		require.Equal(t, 1, w.running("c2"))
		w.set(secretObject("a", 1, map[string]string{"c2": goodKubeconfig("last")}))
		require.Len(t, w.manager.loop.parsed, 1)
		w.set()
		w.set()
		require.Empty(t, w.manager.loop.parsed)
		require.Empty(t, w.manager.loop.remotes)
	})
}

func TestRunEndsWithItsContextBeforeAnything(t *testing.T) {
	m, err := New(Config{Primary: "p", NewSink: newWorldlessSink, NewSource: unusedSource})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- m.Run(ctx) }()
	<-m.Ready() // without secrets or directory there is nothing to wait for
	cancel()
	require.NoError(t, <-done)
}
