package scenario

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/serve"
	"github.com/isthmus-mesh/isthmus/multicluster"
	"github.com/isthmus-mesh/isthmus/testenv/recorder"
)

// marks notes how many pushes each proxy has had.
func marks(proxies ...*recorder.Proxy) []int {
	out := make([]int, len(proxies))
	for i, p := range proxies {
		out[i] = len(p.Pushes())
	}
	return out
}

// onlyAbout asserts that every push since a mark concerns assignments of the
// given upstreams only.
func onlyAbout(t *testing.T, p *recorder.Proxy, mark int, upstreams ...string) {
	t.Helper()
	for _, push := range p.Since(mark) {
		require.Equal(t, recorder.Assignments, push.TypeURL, "unexpected push %+v", push)
		for _, n := range slices.Concat(push.Names, push.Removed) {
			require.Contains(t, upstreams, n, "unexpected push %+v", push)
		}
	}
}

// settle makes a change that every proxy must hear and waits for it: whatever
// was on its way before has arrived then.
func (w *World) settle(cluster, addr string, proxies ...*recorder.Proxy) {
	w.t.Helper()
	w.Apply(cluster, Slice("fence", addr))
	for _, p := range proxies {
		w.Eventually("fence arrives", func() bool {
			return slices.ContainsFunc(p.Endpoints(Upstream("fence")), func(s string) bool { return s == addr+":8080 1" })
		})
	}
}

// fence is a service whose changes show that everything before has arrived.
func fence(addrs ...string) string {
	s := Service("fence")
	for _, a := range addrs {
		s += Pod("fence", a, false)
	}
	return s + Slice("fence", addrs[0])
}

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
		w.Hears(island, Upstream("web"), "10.3.0.1:8080 1", "10.3.0.2:8080 1", "10.3.0.3:8080 1", "203.0.113.1:15443 2")
	}
}

func TestClusterLeavesAndReturns(t *testing.T) {
	w := NewWorld(t, "east", "west")
	w.Apply("east", Service("web")+Pods("web", true, "10.1.0.1"))
	w.Apply("west", Service("web")+Pods("web", true, "10.2.0.1"))
	w.Join("west")
	w.Serve()
	p := w.Proxy("east", "", true)
	w.Hears(p, Upstream("web"), "10.1.0.1:8080 1", "10.2.0.1:8080 1")
	mark := len(p.Pushes())
	w.Leave("west")
	w.Hears(p, Upstream("web"), "10.1.0.1:8080 1")
	var about int
	for _, push := range p.Since(mark) {
		if slices.Contains(push.Names, Upstream("web")) && push.TypeURL == recorder.Assignments {
			about++
		}
	}
	require.Equal(t, 1, about, "one removal is one push: %+v", p.Since(mark))
	w.Join("west")
	w.Hears(p, Upstream("web"), "10.1.0.1:8080 1", "10.2.0.1:8080 1")
}

func TestRotationLosesNothing(t *testing.T) {
	w := NewWorld(t, "east", "west")
	w.Apply("east", fence("10.1.9.1", "10.1.9.2", "10.1.9.3")+Service("web")+Pods("web", true, "10.1.0.1"))
	w.Apply("west", Service("web")+Pods("web", true, "10.2.0.1"))
	w.Join("west")
	w.Serve()
	delta, sotw := w.Proxy("east", "", true), w.Proxy("east", "", false)
	w.Hears(delta, Upstream("web"), "10.1.0.1:8080 1", "10.2.0.1:8080 1")
	before := marks(delta, sotw)
	generation := w.status("west").Generation

	w.Join("west") // a fresh token: good credentials
	w.Eventually("the new credentials are in use", func() bool { return w.status("west").Generation > generation })
	w.settle("east", "10.1.9.2", delta, sotw)
	onlyAbout(t, delta, before[0], Upstream("fence"))
	onlyAbout(t, sotw, before[1], Upstream("fence"))

	bad := []byte("this is not a kubeconfig")
	w.Secret("istio-remote-secret-west", map[string][]byte{"west": bad})
	w.Eventually("the bad credentials are noticed", func() bool { return w.status("west").Health == multicluster.HealthDegraded })
	w.Apply("west", Pods("web", true, "10.2.0.2")) // the old ones still watch
	w.Hears(delta, Upstream("web"), "10.1.0.1:8080 1", "10.2.0.2:8080 1")

	w.Join("west")
	w.Eventually("good credentials heal", func() bool { return w.status("west").Health == multicluster.HealthOK })
	before = marks(delta, sotw)
	w.settle("east", "10.1.9.3", delta, sotw)
	onlyAbout(t, delta, before[0], Upstream("fence"))
}

// status finds a cluster's status.
func (w *World) status(cluster string) multicluster.Status {
	for _, s := range w.Control.Clusters() {
		if string(s.ID) == cluster {
			return s
		}
	}
	return multicluster.Status{}
}

func TestTokenThatNeverWorkedKeepsOldData(t *testing.T) {
	w := NewWorld(t, "east", "west")
	w.Apply("west", Service("web")+Pods("web", true, "10.2.0.1"))
	w.Join("west")
	w.Serve()
	p := w.Proxy("east", "", true)
	w.Hears(p, Upstream("web"), "10.2.0.1:8080 1")
	kubeconfig, err := w.Clusters["west"].ReaderKubeconfig(w.ctx, "istio-reader-service-account")
	require.NoError(t, err)
	w.Secret("istio-remote-secret-west", map[string][]byte{"west": breakToken(kubeconfig)})
	w.Eventually("the rotation fails and is said", func() bool { return w.status("west").Health == multicluster.HealthDegraded })
	w.Apply("west", Pods("web", true, "10.2.0.7"))
	w.Hears(p, Upstream("web"), "10.2.0.7:8080 1")
}

func TestAPIServerKilledAndBack(t *testing.T) {
	w := NewWorld(t, "east", "west")
	w.Apply("east", fence("10.1.9.1", "10.1.9.2"))
	w.Apply("west", Service("web")+Pods("web", true, "10.2.0.1", "10.2.0.2")+Service("gone")+Pods("gone", true, "10.2.1.1"))
	w.Join("west")
	w.Serve()
	p := w.Proxy("east", "", true)
	w.Hears(p, Upstream("web"), "10.2.0.1:8080 1", "10.2.0.2:8080 1")
	before := marks(p)

	west := w.Clusters["west"]
	west.Kill()
	w.Eventually("the outage is seen", func() bool { return w.status("west").Health == multicluster.HealthUnreachable })
	w.settle("east", "10.1.9.2", p)
	onlyAbout(t, p, before[0], Upstream("fence")) // unknown is not empty

	require.NoError(t, west.Restart(w.ctx))
	w.Apply("west", Slice("web", "10.2.0.1"))
	require.NoError(t, west.Client().CoreV1().Services("shop").Delete(w.ctx, "gone", metav1.DeleteOptions{}))
	w.Hears(p, Upstream("web"), "10.2.0.1:8080 1")
	w.Eventually("a service deleted after the outage goes", func() bool { return p.Resources(recorder.Upstreams)[Upstream("gone")] == nil })
	w.Eventually("health returns", func() bool { return w.status("west").Health == multicluster.HealthOK })
}

func TestRemoteUnreachableAtStart(t *testing.T) {
	w := NewWorld(t, "east", "west")
	w.Apply("east", Service("web")+Pods("web", true, "10.1.0.1"))
	w.Apply("west", Service("web")+Pods("web", true, "10.2.0.1"))
	w.Join("west")
	w.Clusters["west"].Kill()
	w.ServeUnready(func(s *serve.Settings) { s.RemoteTimeout = 2 * time.Second })
	w.Eventually("ready without the remote", func() bool { return w.Control.NotReady() == "" })
	require.Equal(t, multicluster.StatusTimeout, w.status("west").SyncStatus)
	p := w.Proxy("east", "", true)
	w.Hears(p, Upstream("web"), "10.1.0.1:8080 1")
	require.NoError(t, w.Clusters["west"].Restart(w.ctx))
	w.Hears(p, Upstream("web"), "10.1.0.1:8080 1", "10.2.0.1:8080 1")
}

func TestHalfOpenWatchIsNoticed(t *testing.T) {
	w := NewWorld(t, "east", "west")
	w.Apply("west", Service("web")+Pods("web", true, "10.2.0.1"))
	w.Join("west")
	w.Serve()
	p := w.Proxy("east", "", true)
	w.Hears(p, Upstream("web"), "10.2.0.1:8080 1")
	west := w.Clusters["west"]
	west.Pause()
	defer west.Resume()
	w.Eventually("a server that says nothing is found out", func() bool { return w.status("west").Health == multicluster.HealthUnreachable })
	w.Hears(p, Upstream("web"), "10.2.0.1:8080 1")
	west.Resume()
	w.Apply("west", Pods("web", true, "10.2.0.2"))
	w.Hears(p, Upstream("web"), "10.2.0.2:8080 1")
}

func TestTwoSecretsOneCluster(t *testing.T) {
	w := NewWorld(t, "east", "west", "impostor")
	w.Apply("west", Service("web")+Pods("web", true, "10.2.0.1"))
	w.Apply("impostor", Service("web")+Pods("web", true, "10.6.6.6"))
	w.Join("west")
	w.Serve()
	p := w.Proxy("east", "", true)
	w.Hears(p, Upstream("web"), "10.2.0.1:8080 1")
	other, err := w.Clusters["impostor"].ReaderKubeconfig(w.ctx, "reader")
	require.NoError(t, err)
	second := time.Now().Unix()
	w.Eventually("the clock moves on: creation times count seconds", func() bool { return time.Now().Unix() > second })
	w.Secret("another-west", map[string][]byte{"west": other, "east": other})
	w.Eventually("both refusals are said", func() bool { return len(w.Control.Refusals()) == 2 })
	w.Hears(p, Upstream("web"), "10.2.0.1:8080 1")
	w.Leave("west")
	w.Hears(p, Upstream("web"), "10.6.6.6:8080 1")
}

func TestSeveralClustersInOneSecret(t *testing.T) {
	w := NewWorld(t, "east", "west", "south")
	data := map[string][]byte{}
	for name, ip := range map[string]string{"west": "10.2.0.1", "south": "10.3.0.1"} {
		w.Apply(name, Service("web")+Pods("web", true, ip))
		kubeconfig, err := w.Clusters[name].ReaderKubeconfig(w.ctx, "reader")
		require.NoError(t, err)
		data[name] = kubeconfig
	}
	w.Secret("all-of-them", data)
	w.Serve()
	p := w.Proxy("east", "", false)
	w.Hears(p, Upstream("web"), "10.2.0.1:8080 1", "10.3.0.1:8080 1")
	delete(data, "south")
	w.Secret("all-of-them", data)
	w.Hears(p, Upstream("web"), "10.2.0.1:8080 1")
}

func TestGatewayAppearsMovesDisappears(t *testing.T) {
	w := NewWorld(t, "east/net-1", "west/net-2")
	w.Apply("west", Service("web")+Pods("web", true, "10.2.0.1", "10.2.0.2"))
	w.Join("west")
	w.Serve()
	p := w.Proxy("east", "net-1", true)
	w.Hears(p, Upstream("web")) // no gateway: nothing, and never a pod address
	w.Apply("west", Gateway("net-2", "203.0.113.1"))
	w.Hears(p, Upstream("web"), "203.0.113.1:15443 2")
	w.Apply("west", Gateway("net-2", "203.0.113.7", "203.0.113.8"))
	w.Eventually("the gateway moves", func() bool { return len(p.Endpoints(Upstream("web"))) == 2 })
	ctx, cancel := context.WithTimeout(w.ctx, patience)
	defer cancel()
	require.NoError(t, w.Clusters["west"].Client().CoreV1().Services("istio-system").Delete(ctx, "eastwestgateway", metav1.DeleteOptions{}))
	w.Hears(p, Upstream("web"))
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
