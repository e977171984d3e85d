package scenario

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/serve"
	"github.com/isthmus-mesh/isthmus/multicluster"
	"github.com/isthmus-mesh/isthmus/testenv/recorder"
)

// TestAPIServerKilledAndBack is rows 13 and 18, and 16: the watch cache of a
// server that started anew does not go back to where the old watches were.
func TestAPIServerKilledAndBack(t *testing.T) {
	w := NewWorld(t, "east", "west")
	w.Apply("east", fence("10.1.9.1", "10.1.9.2", "10.1.9.3"))
	w.Apply("west", Service("web")+Pods("web", true, "10.2.0.1", "10.2.0.2")+Service("gone")+Pods("gone", true, "10.2.1.1")+
		Service("still")+Pods("still", true, "10.2.3.1"))
	w.Join("west")
	w.Serve()
	p := w.Proxy("east", "", true)
	w.Hears(p, Upstream("web"), "10.2.0.1:8080 1", "10.2.0.2:8080 1")
	mark := len(p.Pushes())
	require.Equal(t, "0", w.Plane.Metric(staleSeries))

	west := w.Clusters["west"]
	west.Kill()
	w.Plane.AwaitHealth("west", multicluster.HealthUnreachable)
	w.settle("east", "10.1.9.2", p)
	onlyAbout(t, p, mark, Upstream("fence")) // unknown is not empty
	stale := w.stale()
	w.Eventually("the age of the data grows", func() bool { return w.stale() > stale })

	// What changes before the control plane has looked again is as if it had
	// changed during the outage.
	require.NoError(t, west.Restart(w.ctx))
	w.Apply("west", Slice("web", "10.2.0.1"))
	w.DeleteService("west", "gone")
	w.Hears(p, Upstream("web"), "10.2.0.1:8080 1")
	w.await(p, "a deleted service to go", func() bool { return p.Resources(recorder.Upstreams)[Upstream("gone")] == nil })
	w.Plane.AwaitHealth("west", multicluster.HealthOK)
	w.Eventually("the data are fresh", func() bool { return w.stale() == 0 })
	w.settle("east", "10.1.9.3", p)
	sent := map[string]int{}
	for _, push := range p.Since(mark) {
		for _, n := range push.Names {
			sent[n]++
		}
		if push.TypeURL == recorder.Upstreams {
			require.Subset(t, []string{Upstream("gone")}, slices.Concat(push.Names, push.Removed), "%+v", push)
		}
	}
	require.Equal(t, 1, sent[Upstream("web")], "no more than what changed: %v", sent)
	require.Zero(t, sent[Upstream("still")], "%v", sent)
}

// TestPrimaryKilledAndBack: without its primary, the control plane goes on with
// the remotes; one that is started then waits.
func TestPrimaryKilledAndBack(t *testing.T) {
	w := NewWorld(t, "east", "west", "south")
	w.Apply("east", Service("own")+Pods("own", true, "10.1.0.1"))
	w.Apply("west", Service("web")+Pods("web", true, "10.2.0.1"))
	w.Apply("south", Service("web")+Pods("web", true, "10.3.0.1"))
	w.Join("west")
	running := w.Serve()
	p := w.Proxy("east", "", true)
	w.Hears(p, Upstream("web"), "10.2.0.1:8080 1")
	mark := len(p.Pushes())

	w.Clusters["east"].Kill()
	w.Plane.AwaitHealth("east", multicluster.HealthUnreachable)
	w.Apply("west", Pods("web", true, "10.2.0.2"))
	w.Hears(p, Upstream("web"), "10.2.0.2:8080 1")
	require.Empty(t, running.NotReady(), "an outage of the primary is no reason to send proxies away")
	late := w.Start()
	onlyAbout(t, p, mark, Upstream("web"))
	require.NotEmpty(t, late.NotReady(), "nothing is known of the primary")

	require.NoError(t, w.Clusters["east"].Restart(w.ctx))
	w.Join("south")
	w.Hears(p, Upstream("web"), "10.2.0.2:8080 1", "10.3.0.1:8080 1")
	w.Eventually("the other one is ready", func() bool { return late.NotReady() == "" })
	q := w.Connect(late, client("east", ""), recorder.Options{Delta: true})
	w.Hears(q, Upstream("web"), "10.2.0.2:8080 1", "10.3.0.1:8080 1")
	w.Hears(q, Upstream("own"), "10.1.0.1:8080 1")
	w.Eventually("both have the same", func() bool { return sameVersions(p, q) })
}

const staleSeries = `isthmus_cluster_stale_seconds{cluster="west"}`

// TestDeleteDuringDisconnect is row 18 proper: the change is made while no
// watch is there to see it, and none will be resumed.
func TestDeleteDuringDisconnect(t *testing.T) {
	w := NewWorld(t, "east", "west")
	w.Apply("west", Service("web")+Pods("web", true, "10.2.0.1", "10.2.0.2")+Service("gone")+Pods("gone", true, "10.2.1.1"))
	w.Join("west")
	w.Serve()
	p := w.Proxy("east", "", true)
	w.Hears(p, Upstream("gone"), "10.2.1.1:8080 1")
	w.Plane.Halt()
	w.Apply("west", Slice("web", "10.2.0.2"))
	w.DeleteService("west", "gone")
	w.Serve()
	again := w.Connect(w.Plane, client("east", ""), recorder.Options{Delta: true, Resume: p})
	w.Hears(again, Upstream("web"), "10.2.0.2:8080 1")
	w.await(again, "a deleted service to go", func() bool { return again.Resources(recorder.Upstreams)[Upstream("gone")] == nil })
	for _, push := range again.Pushes() {
		switch push.TypeURL {
		case recorder.Upstreams:
			require.Empty(t, push.Names, "what is known is not sent again")
			require.Subset(t, []string{Upstream("gone")}, push.Removed)
		case recorder.Assignments:
			require.Subset(t, []string{Upstream("web")}, push.Names)
			require.Subset(t, []string{Upstream("gone")}, push.Removed)
		}
	}
}

// TestEtcdRewind is row 19: a cluster that was restored from a backup is what
// the backup says.
func TestEtcdRewind(t *testing.T) {
	w := NewWorld(t, "east", "west")
	w.Apply("east", fence("10.1.9.1", "10.1.9.2"))
	w.Apply("west", Service("web")+Pods("web", true, "10.2.0.1")+Service("still")+Pods("still", true, "10.2.3.1"))
	w.Join("west")
	west, data := w.Clusters["west"], filepath.Join(w.set.data(1), "etcd")
	backup := filepath.Join(t.TempDir(), "etcd")
	west.Kill()
	require.NoError(t, os.CopyFS(backup, os.DirFS(data)))
	require.NoError(t, west.Restart(w.ctx))
	w.Serve()
	p := w.Proxy("east", "", true)
	w.Hears(p, Upstream("web"), "10.2.0.1:8080 1")
	for i := range 20 { // the restored server is to be behind by more than one
		w.Apply("west", Pods("web", true, fmt.Sprintf("10.2.0.%d", 10+i)))
	}
	w.Apply("west", Service("later")+Pods("later", true, "10.2.2.1"))
	w.Hears(p, Upstream("web"), "10.2.0.29:8080 1")
	w.Hears(p, Upstream("later"), "10.2.2.1:8080 1")
	mark := len(p.Pushes())

	west.Kill()
	w.Plane.AwaitHealth("west", multicluster.HealthUnreachable)
	require.NoError(t, os.RemoveAll(data))
	require.NoError(t, os.CopyFS(data, os.DirFS(backup)))
	require.NoError(t, west.Restart(w.ctx))
	w.Hears(p, Upstream("web"), "10.2.0.1:8080 1")
	w.await(p, "what came after the backup to go", func() bool { return p.Resources(recorder.Upstreams)[Upstream("later")] == nil })
	w.Apply("west", Pods("web", true, "10.2.0.2"))
	w.Hears(p, Upstream("web"), "10.2.0.2:8080 1")
	w.settle("east", "10.1.9.2", p)
	for _, push := range p.Since(mark) {
		require.NotContains(t, push.Names, Upstream("still"), "%+v", push)
	}
}

// TestPartialRights is row 14: what the account may not read is named, and
// everything else is served.
func TestPartialRights(t *testing.T) {
	const account = "partial"
	w := NewWorld(t, "east", "west")
	w.Apply("west", Service("web")+Pods("web", true, "10.2.0.1"))
	kubeconfig := w.Reader("west", account)
	t.Cleanup(func() { _ = w.Clusters["west"].RevokeReader(context.WithoutCancel(w.ctx), account) })
	w.grant("west", account, "nodes", false)
	w.Secret(multicluster.SecretPrefix+"west", map[string][]byte{"west": kubeconfig})
	w.Serve()
	p := w.Proxy("east", "", true)
	w.Hears(p, Upstream("web"), "10.2.0.1:8080 1")
	w.Plane.AwaitHealth("west", multicluster.HealthDegraded)
	require.Contains(t, w.Plane.Status("west").Reason, "nodes")
	require.Contains(t, w.Plane.Status("west").Reason, "forbidden")
	require.Equal(t, []string{"Resource nodes"}, w.problems("west"))
	require.Empty(t, region(t, p, Upstream("web")))

	w.grant("west", account, "nodes", true)
	w.await(p, "the locality", func() bool { return region(t, p, Upstream("web")) == "west" })
	w.Plane.AwaitHealth("west", multicluster.HealthOK)
	require.Empty(t, w.problems("west"))
}

// TestCredentialsRevoked is row 15: a token that is refused takes nothing away.
func TestCredentialsRevoked(t *testing.T) {
	const account = "revoked"
	w := NewWorld(t, "east", "west")
	w.Apply("east", fence("10.1.9.1", "10.1.9.2"))
	w.Apply("west", Service("web")+Pods("web", true, "10.2.0.1"))
	w.Secret(multicluster.SecretPrefix+"west", map[string][]byte{"west": w.Reader("west", account)})
	w.Serve()
	p := w.Proxy("east", "", true)
	w.Hears(p, Upstream("web"), "10.2.0.1:8080 1")
	mark := len(p.Pushes())
	west := w.Clusters["west"]
	require.NoError(t, west.RevokeReader(w.ctx, account))
	require.NoError(t, west.Restart(w.ctx)) // watches that are open would go on
	w.awaitReason("west", "Unauthorized")
	require.Equal(t, multicluster.HealthDegraded, w.Plane.Status("west").Health)
	w.settle("east", "10.1.9.2", p)
	onlyAbout(t, p, mark, Upstream("fence"))
	w.Eventually("the age of the data grows", func() bool { return w.stale() > 0 })

	mark = len(p.Pushes())
	w.Apply("west", Pods("web", true, "10.2.0.2"))
	w.Secret(multicluster.SecretPrefix+"west", map[string][]byte{"west": w.Reader("west", account)})
	w.Hears(p, Upstream("web"), "10.2.0.2:8080 1")
	w.Plane.AwaitHealth("west", multicluster.HealthOK)
	onlyAbout(t, p, mark, Upstream("web"))
}

// TestRemoteUnreachableAtStart is row 12, with a server that refuses and one
// that takes connections and says nothing.
func TestRemoteUnreachableAtStart(t *testing.T) {
	w := NewWorld(t, "east", "west", "south")
	w.Apply("east", Service("web")+Pods("web", true, "10.1.0.1"))
	w.Apply("west", Service("web")+Pods("web", true, "10.2.0.1"))
	w.Apply("south", Service("web")+Pods("web", true, "10.3.0.1"))
	w.Join("west")
	w.Join("south")
	w.Clusters["west"].Kill()
	w.Clusters["south"].Pause()
	w.Serve(func(s *serve.Settings) { s.RemoteTimeout = 2 * time.Second })
	require.Equal(t, multicluster.StatusTimeout, w.Plane.Status("west").SyncStatus)
	require.Equal(t, multicluster.StatusTimeout, w.Plane.Status("south").SyncStatus)
	p := w.Proxy("east", "", true)
	w.Hears(p, Upstream("web"), "10.1.0.1:8080 1")
	w.Clusters["south"].Resume()
	w.Hears(p, Upstream("web"), "10.1.0.1:8080 1", "10.3.0.1:8080 1")
	require.NoError(t, w.Clusters["west"].Restart(w.ctx))
	w.Hears(p, Upstream("web"), "10.1.0.1:8080 1", "10.2.0.1:8080 1", "10.3.0.1:8080 1")
}

// TestLeavingWhileDown: removal does not need the cluster that is removed, nor
// does the end of the control plane need any.
func TestLeavingWhileDown(t *testing.T) {
	w := NewWorld(t, "east", "west", "south")
	w.Apply("east", Service("web")+Pods("web", true, "10.1.0.1"))
	w.Apply("west", Service("web")+Pods("web", true, "10.2.0.1"))
	w.Apply("south", Service("web")+Pods("web", true, "10.3.0.1"))
	w.Join("west")
	w.Join("south")
	running := w.Serve()
	p := w.Proxy("east", "", true)
	w.Hears(p, Upstream("web"), "10.1.0.1:8080 1", "10.2.0.1:8080 1", "10.3.0.1:8080 1")
	mark := len(p.Pushes())
	w.Clusters["west"].Kill()
	w.Plane.AwaitHealth("west", multicluster.HealthUnreachable)
	w.Leave("west")
	w.Hears(p, Upstream("web"), "10.1.0.1:8080 1", "10.3.0.1:8080 1")
	w.Clusters["south"].Pause()
	w.Leave("south")
	w.Hears(p, Upstream("web"), "10.1.0.1:8080 1")
	onlyAbout(t, p, mark, Upstream("web"))
	w.Eventually("only the primary is left", func() bool { return len(running.Clusters()) == 1 })
	w.Clusters["east"].Pause()
	running.Halt()
	<-p.Done()
}

// TestHalfOpenWatchIsNoticed is row 17: an API server that keeps its connections
// and says nothing. All that reads it notices, what is served stays, the source
// is the same afterwards, and one change is one push.
func TestHalfOpenWatchIsNoticed(t *testing.T) {
	w := NewWorld(t, "east", "west")
	w.Apply("west", Service("web")+Pods("web", true, "10.2.0.1")+Pod("web", "10.2.0.2", true))
	w.Join("west")
	w.Serve()
	p := w.Proxy("east", "", true)
	w.Hears(p, Upstream("web"), "10.2.0.1:8080 1")
	before := w.Plane.Status("west")
	require.Equal(t, multicluster.HealthOK, before.Health)
	require.NotEmpty(t, before.Kinds)
	mark := len(p.Pushes())
	west := w.Clusters["west"]
	west.Pause()
	defer west.Resume()
	w.Plane.AwaitHealth("west", multicluster.HealthUnreachable)
	w.Eventually("every kind is known not to be read", func() bool {
		return failing(w.Plane.Status("west")) == len(before.Kinds)
	})
	w.Eventually("the age of the data grows", func() bool { return w.stale() > 0 })
	require.Len(t, p.Pushes(), mark, "nothing changed for proxies")
	west.Resume()
	w.Plane.AwaitHealth("west", multicluster.HealthOK)
	after := w.Plane.Status("west")
	require.Equal(t, before.Generation, after.Generation, "the same source goes on")
	require.Zero(t, failing(after))
	require.Len(t, p.Pushes(), mark, "that it is back is no change")
	w.Apply("west", Slice("web", "10.2.0.2"))
	w.Hears(p, Upstream("web"), "10.2.0.2:8080 1")
	require.Len(t, p.Pushes(), mark+1)
	onlyAbout(t, p, mark, Upstream("web"))
}

// failing counts the kinds of a cluster that cannot be read.
func failing(s multicluster.Status) (n int) {
	for _, k := range s.Kinds {
		if k.Error != "" {
			n++
		}
	}
	return n
}
