package multicluster

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestGoodRotationChangesNothing(t *testing.T) { // row 8
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		w.set(secretObject("a", 1, map[string]string{"c2": goodKubeconfig("1")}))
		old := w.newest("c2")
		old.sync(2)
		before := w.status("c2").Generation
		w.forget()

		w.set(secretObject("a", 1, map[string]string{"c2": goodKubeconfig("2")}))
		next := w.newest("c2")
		require.NotSame(t, old, next)
		require.Equal(t, secretToken+"2", next.token)
		require.Equal(t, 2, w.running("c2"), "make before break: both run until the new one has reported")
		require.Equal(t, HealthOK, w.status("c2").Health, "a rotation under way is no fault")
		client, ok := w.manager.ClientFor("c2")
		require.True(t, ok)
		require.Equal(t, secretToken+"1", client.(*fakeClient).token)

		next.sync(2)
		require.Empty(t, w.changes, "a good rotation is not seen by anybody")
		require.Equal(t, 1, w.running("c2"))
		require.True(t, old.ended.Load())
		s := w.status("c2")
		require.Greater(t, s.Generation, before)
		require.Zero(t, s.Candidate)
		client, _ = w.manager.ClientFor("c2")
		require.Equal(t, secretToken+"2", client.(*fakeClient).token)

		next.apply(5)
		require.Equal(t, 5, w.endpoints("c2"), "the new source is the one that is listened to")
	})
}

func TestSameContentIsNoOp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		w.set(secretObject("a", 1, map[string]string{"c2": goodKubeconfig("1")}))
		w.newest("c2").sync(1)
		o := secretObject("a", 1, map[string]string{"c2": goodKubeconfig("1")})
		o.version = "relabelled"
		w.set(o)
		w.set(secretObject("b", 1, map[string]string{"c2": goodKubeconfig("1")})) // moved to another secret
		require.Len(t, w.all("c2"), 1)
		require.Equal(t, 1, w.running("c2"))
		require.Equal(t, "istio-system/b", w.status("c2").SecretName)
	})
}

func TestBadRotationKeepsOldThenGoodRecovers(t *testing.T) { // rows 9, 10
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		w.set(secretObject("a", 1, map[string]string{"c2": goodKubeconfig("1")}))
		old := w.newest("c2")
		old.sync(2)
		w.forget()

		w.set(secretObject("a", 1, map[string]string{"c2": goodKubeconfig("bad")}))
		bad := w.newest("c2")
		bad.say(SourceStatus{Reachable: true, Kinds: []KindStatus{{Kind: "Service", Error: "Unauthorized"}}})
		time.Sleep(time.Hour) // within the bubble: far beyond every deadline
		synctest.Wait()
		s := w.status("c2")
		require.Equal(t, StatusSynced, s.SyncStatus)
		require.Equal(t, HealthDegraded, s.Health)
		require.Contains(t, s.Reason, "secret istio-system/a key c2")
		require.Contains(t, s.Reason, "Unauthorized")
		require.NotZero(t, s.Candidate)
		require.Zero(t, s.StaleFor, "the old credential still works")
		require.Equal(t, 2, w.running("c2"))
		old.apply(3)
		require.Equal(t, 3, w.endpoints("c2"), "the old source goes on")

		w.set(secretObject("a", 1, map[string]string{"c2": goodKubeconfig("3")}))
		require.True(t, bad.ended.Load(), "the failing candidate is replaced, not joined")
		require.Equal(t, 2, w.running("c2"))
		w.forget()
		w.newest("c2").sync(3)
		require.Empty(t, w.changes)
		require.Equal(t, 1, w.running("c2"), "one set of informers is left")
		require.Equal(t, HealthOK, w.status("c2").Health)
		require.Len(t, w.all("c2"), 3)
	})
}

func TestRotationTakenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		w.set(secretObject("a", 1, map[string]string{"c2": goodKubeconfig("1")}))
		w.newest("c2").sync(2)
		w.set(secretObject("a", 1, map[string]string{"c2": goodKubeconfig("bad")}))
		w.newest("c2").fail(errors.New("no such user"))
		require.Equal(t, HealthDegraded, w.status("c2").Health)
		w.set(secretObject("a", 1, map[string]string{"c2": goodKubeconfig("1")}))
		require.Equal(t, 1, w.running("c2"))
		require.False(t, w.all("c2")[0].ended.Load(), "the one that never stopped is simply kept")
		require.Equal(t, HealthOK, w.status("c2").Health, w.status("c2").Reason)
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Len(t, w.all("c2"), 2, "the credential that was taken back is not tried again")
	})
}

func TestUnusableKubeconfigNeverEvicts(t *testing.T) { // rows 1 to 4
	for name, raw := range map[string]string{
		"empty":    "",
		"garbage":  "\x00\x01 not: [a kubeconfig",
		"exec":     withUser(`exec: {apiVersion: client.authentication.k8s.io/v1, command: /bin/sh, interactiveMode: Never}`),
		"paths":    withUser(`tokenFile: /var/run/secrets/token`),
		"insecure": withCluster(`{server: "https://10.1.2.3", insecure-skip-tls-verify: true}`),
		"http":     withCluster(`{server: "http://10.1.2.3"}`),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				defer w.stop()
				w.set(secretObject("a", 1, map[string]string{"c2": goodKubeconfig("1")}))
				w.newest("c2").sync(2)
				w.forget()
				w.set(secretObject("a", 1, map[string]string{"c2": raw}), secretObject("b", 2, map[string]string{"c3": raw}))
				require.Empty(t, w.changes)
				require.Equal(t, 1, w.running("c2"))
				s := w.status("c2")
				require.Equal(t, StatusSynced, s.SyncStatus)
				require.Equal(t, HealthDegraded, s.Health)
				require.Contains(t, s.Reason, "secret istio-system/a key c2: read kubeconfig")
				require.Equal(t, HealthRefused, w.status("c3").Health)
				require.Equal(t, StatusClosed, w.status("c3").SyncStatus)
				require.Empty(t, w.all("c3"))
				require.Len(t, w.manager.Refusals(), 2)
				require.Len(t, w.events.list, 2)
				require.Equal(t, ReasonKubeconfig, w.events.list[0].reason)

				w.newest("c2").fail(errors.New("crashed")) // even then it is started again with what is known to be good
				time.Sleep(2 * time.Second)
				synctest.Wait()
				require.Equal(t, 1, w.running("c2"))
				require.Equal(t, 2, w.endpoints("c2"))

				w.set(secretObject("a", 1, map[string]string{"c2": goodKubeconfig("2")}))
				w.newest("c2").sync(2)
				require.Equal(t, HealthOK, w.status("c2").Health)
				require.Equal(t, 1, w.running("c2"))
				require.Empty(t, w.changes)
			})
		})
	}
}

func TestDuplicateClaims(t *testing.T) { // row 6
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		older := secretObject("older", 1, map[string]string{"c2": goodKubeconfig("older")})
		younger := secretObject("a-younger", 2, map[string]string{"c2": goodKubeconfig("younger")})
		w.set(younger) // seen first, as a replica with bad luck does
		w.newest("c2").sync(1)
		w.set(younger, older)
		require.Equal(t, secretToken+"older", w.newest("c2").token)
		w.newest("c2").sync(2)
		require.Equal(t, 1, w.running("c2"))
		require.Equal(t, "istio-system/older", w.status("c2").SecretName)
		require.Len(t, w.events.list, 1)
		require.Equal(t, "Secret istio-system/a-younger uid-a-younger", w.events.list[0].object)
		require.Equal(t, ReasonDuplicate, w.events.list[0].reason)
		require.Contains(t, w.events.list[0].message, "secret istio-system/older key c2")

		w.forget()
		w.set(younger)
		require.Equal(t, secretToken+"younger", w.newest("c2").token, "the loser is promoted")
		require.Equal(t, 2, w.endpoints("c2"), "until it has reported the old data stay")
		require.Empty(t, w.changes)
		w.newest("c2").sync(2)
		require.Empty(t, w.changes)
		require.Equal(t, 1, w.running("c2"))
		require.Empty(t, w.manager.Refusals())
	})
}
