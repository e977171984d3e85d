package scenario

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/isthmus-mesh/isthmus/multicluster"
	"github.com/isthmus-mesh/isthmus/testenv/recorder"
)

func TestThreeClustersTwoNetworks(t *testing.T) {
	w := NewWorld(t, "east/net-1", "west/net-1", "island/net-2")
	w.Apply("east", Service("web")+Pods("web", true, "10.1.0.1")+Gateway("net-1", "203.0.113.1"))
	w.Apply("west", Service("web")+Pods("web", true, "10.2.0.1"))
	w.Apply("island", Service("web")+Pods("web", true, "10.3.0.1", "10.3.0.2", "10.3.0.3")+Gateway("net-2", "203.0.113.2"))
	w.Serve()
	for _, delta := range []bool{false, true} {
		mainland := w.Proxy("east", "net-1", delta)
		island := w.Proxy("island", "net-2", delta)
		if !delta {
			w.Hears(mainland, Upstream("web"), "10.1.0.1:8080 1")
			w.Join("west")
			w.Join("island")
		}
		w.Hears(mainland, Upstream("web"), "10.1.0.1:8080 1", "10.2.0.1:8080 1", "203.0.113.2:15443 3")
		// One entry of the gateway for each locality that it stands for.
		w.Hears(island, Upstream("web"), "10.3.0.1:8080 1", "10.3.0.2:8080 1", "10.3.0.3:8080 1", "203.0.113.1:15443 1", "203.0.113.1:15443 1")
	}

	// The service goes from the cluster that led its definition, and comes back.
	p := w.Proxy("east", "net-1", true)
	mark := len(p.Pushes())
	w.DeleteService("east", "web")
	w.Hears(p, Upstream("web"), "10.2.0.1:8080 1", "203.0.113.2:15443 3")
	w.Apply("east", Service("web")+Pods("web", true, "10.1.0.1"))
	w.Hears(p, Upstream("web"), "10.1.0.1:8080 1", "10.2.0.1:8080 1", "203.0.113.2:15443 3")
	for _, push := range p.Since(mark) {
		require.NotContains(t, push.Removed, Upstream("web"), "%+v", push)
	}
}

// TestClusterLeavesAndReturns is row 11.
func TestClusterLeavesAndReturns(t *testing.T) {
	w := NewWorld(t, "east", "west")
	w.Apply("east", fence("10.1.9.1", "10.1.9.2")+Service("web")+Pods("web", true, "10.1.0.1"))
	w.Apply("west", Service("web")+Pods("web", true, "10.2.0.1"))
	w.Join("west")
	w.Serve()
	p := w.Proxy("east", "", true)
	w.Hears(p, Upstream("web"), "10.1.0.1:8080 1", "10.2.0.1:8080 1")
	mark := len(p.Pushes())
	w.Leave("west")
	w.Hears(p, Upstream("web"), "10.1.0.1:8080 1")
	w.settle("east", "10.1.9.2", p)
	about := 0
	for _, push := range p.Since(mark) {
		if slices.Contains(push.Names, Upstream("web")) && push.TypeURL == recorder.Assignments {
			about++
		}
	}
	require.Equal(t, 1, about, "one removal is one push: %+v", p.Since(mark))
	require.Empty(t, w.Plane.Status("west"))
	require.Empty(t, w.Plane.Metric(`isthmus_cluster_stale_seconds{cluster="west"}`), "no series is left behind")
	w.Join("west")
	w.Hears(p, Upstream("web"), "10.1.0.1:8080 1", "10.2.0.1:8080 1")
}

// TestRotationLosesNothing is rows 8 to 10.
func TestRotationLosesNothing(t *testing.T) {
	w := NewWorld(t, "east", "west")
	w.Apply("east", fence("10.1.9.1", "10.1.9.2", "10.1.9.3")+Service("web")+Pods("web", true, "10.1.0.1"))
	w.Apply("west", Service("web")+Pods("web", true, "10.2.0.1"))
	w.Join("west")
	w.Serve()
	delta, sotw := w.Proxy("east", "", true), w.Proxy("east", "", false)
	w.Hears(delta, Upstream("web"), "10.1.0.1:8080 1", "10.2.0.1:8080 1")
	before := marks(delta, sotw)
	generation := w.Plane.Status("west").Generation

	w.Join("west") // a fresh token: good credentials
	w.Eventually("the new credentials are in use", func() bool { return w.Plane.Status("west").Generation > generation })
	w.settle("east", "10.1.9.2", delta, sotw)
	onlyAbout(t, delta, before[0], Upstream("fence"))
	onlyAbout(t, sotw, before[1], Upstream("fence"))

	w.Secret(multicluster.SecretPrefix+"west", map[string][]byte{"west": []byte("this is not a kubeconfig")})
	w.Plane.AwaitHealth("west", multicluster.HealthDegraded)
	w.Apply("west", Pods("web", true, "10.2.0.2")) // the old ones still watch
	w.Hears(delta, Upstream("web"), "10.1.0.1:8080 1", "10.2.0.2:8080 1")
	w.Hears(sotw, Upstream("web"), "10.1.0.1:8080 1", "10.2.0.2:8080 1")

	before = marks(delta, sotw)
	w.Join("west")
	w.Plane.AwaitHealth("west", multicluster.HealthOK)
	w.settle("east", "10.1.9.3", delta, sotw)
	onlyAbout(t, delta, before[0], Upstream("fence"))
	onlyAbout(t, sotw, before[1], Upstream("fence"))
}

// TestTokenThatNeverWorkedKeepsOldData is row 9, and what of it 10 needs.
func TestTokenThatNeverWorkedKeepsOldData(t *testing.T) {
	w := NewWorld(t, "east", "west")
	w.Apply("west", Service("web")+Pods("web", true, "10.2.0.1"))
	w.Join("west")
	w.Serve()
	p := w.Proxy("east", "", true)
	w.Hears(p, Upstream("web"), "10.2.0.1:8080 1")
	mark := len(p.Pushes())
	w.Secret(multicluster.SecretPrefix+"west", map[string][]byte{"west": breakToken(w.Reader("west", multicluster.ReaderAccount))})
	w.Plane.AwaitHealth("west", multicluster.HealthDegraded)
	w.Apply("west", Pods("web", true, "10.2.0.7"))
	w.Hears(p, Upstream("web"), "10.2.0.7:8080 1")
	onlyAbout(t, p, mark, Upstream("web"))
}

// TestTwoSecretsOneCluster is rows 6 and 7.
func TestTwoSecretsOneCluster(t *testing.T) {
	w := NewWorld(t, "east", "west", "impostor")
	w.Apply("west", Service("web")+Pods("web", true, "10.2.0.1"))
	w.Apply("impostor", Service("web")+Pods("web", true, "10.6.6.6"))
	w.Join("west")
	w.Serve()
	p := w.Proxy("east", "", true)
	w.Hears(p, Upstream("web"), "10.2.0.1:8080 1")
	mark := len(p.Pushes())
	other := w.Reader("impostor", "reader")
	second := time.Now().Unix()
	w.Eventually("the clock moves on: creation times count seconds", func() bool { return time.Now().Unix() > second })
	w.Secret("another-west", map[string][]byte{"west": other, "east": other})
	w.Eventually("both refusals are said", func() bool { return len(w.Plane.Refusals()) == 2 })
	w.awaitEvent("another-west", `"east"`)
	w.awaitEvent("another-west", `"west"`)
	w.Apply("west", Pods("web", true, "10.2.0.2"))
	w.Hears(p, Upstream("web"), "10.2.0.2:8080 1")
	w.Leave("west")
	w.Hears(p, Upstream("web"), "10.6.6.6:8080 1")
	onlyAbout(t, p, mark, Upstream("web"))
}

func TestSeveralClustersInOneSecret(t *testing.T) {
	w := NewWorld(t, "east", "west", "south")
	data := map[string][]byte{}
	for name, ip := range map[string]string{"west": "10.2.0.1", "south": "10.3.0.1"} {
		w.Apply(name, Service("web")+Pods("web", true, ip))
		data[name] = w.Reader(name, "reader")
	}
	w.Secret("all-of-them", data)
	w.Serve()
	p := w.Proxy("east", "", false)
	w.Hears(p, Upstream("web"), "10.2.0.1:8080 1", "10.3.0.1:8080 1")
	mark := len(p.Pushes())
	delete(data, "south")
	w.Secret("all-of-them", data)
	w.Hears(p, Upstream("web"), "10.2.0.1:8080 1")
	onlyAbout(t, p, mark, Upstream("web"))
}

func TestPodChurn(t *testing.T) {
	w := NewWorld(t, "east", "west")
	w.Apply("east", Service("still")+Pods("still", true, "10.1.0.1"))
	w.Apply("west", Service("web")+Pods("web", true, "10.2.0.1"))
	w.Join("west")
	w.Serve()
	delta, sotw := w.Proxy("east", "", true), w.Proxy("east", "", false)
	before := marks(delta, sotw)
	for i := range 20 {
		addrs := []string{"10.2.0.1"}
		for n := range i % 4 {
			addrs = append(addrs, "10.2.1."+string(rune('1'+n)))
		}
		w.Apply("west", Pods("web", true, addrs...))
	}
	for _, p := range []*recorder.Proxy{delta, sotw} {
		w.Hears(p, Upstream("web"), "10.2.0.1:8080 1", "10.2.1.1:8080 1", "10.2.1.2:8080 1", "10.2.1.3:8080 1")
	}
	onlyAbout(t, delta, before[0], Upstream("web"))
	onlyAbout(t, sotw, before[1], Upstream("web"))
}
