package scenario

import (
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/anypb"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"

	"github.com/isthmus-mesh/isthmus/multicluster"
	"github.com/isthmus-mesh/isthmus/testenv/plane"
	"github.com/isthmus-mesh/isthmus/testenv/recorder"
	"github.com/isthmus-mesh/isthmus/testenv/validate"
)

// TestReplicasAgree: replicas do not talk to one another, and a proxy cannot
// tell which one it is connected to, by content or by version.
func TestReplicasAgree(t *testing.T) {
	w := NewWorld(t, "east/net-1", "west/net-2", "impostor/net-2")
	w.Apply("east", Service("web")+Pods("web", true, "10.1.0.1")+Service("own")+Pods("own", false, "10.1.1.1"))
	w.Apply("west", Service("web")+Pods("web", true, "10.2.0.1", "10.2.0.2")+Gateway("net-2", "203.0.113.1", "203.0.113.2"))
	w.Apply("impostor", Service("web")+Pods("web", true, "10.6.0.1", "10.6.0.2", "10.6.0.3")+Gateway("net-2", "203.0.113.6"))
	w.Join("west")
	first := w.Serve()
	second := w.Serve()
	var pairs [][2]*recorder.Proxy
	for _, n := range []recorder.Node{client("east", "net-1"), client("west", "net-2")} {
		pairs = append(pairs, [2]*recorder.Proxy{
			w.Connect(first, n, recorder.Options{Delta: true}), w.Connect(second, n, recorder.Options{Delta: true})})
	}
	agree := func(east string, others ...string) {
		t.Helper()
		for _, p := range pairs[0] {
			w.Hears(p, Upstream("web"), append([]string{east}, others...)...)
		}
		for _, pair := range pairs {
			w.Eventually("both have the same", func() bool { return sameVersions(pair[0], pair[1]) })
		}
	}
	agree("10.1.0.1:8080 2", "203.0.113.1:15443 2", "203.0.113.2:15443 2")

	generation := func(p *plane.Plane) uint64 { return p.Clusters()[1].Generation }
	old := []uint64{generation(first), generation(second)}
	w.Join("west") // rotation
	w.Eventually("both use the new credentials", func() bool { return generation(first) > old[0] && generation(second) > old[1] })
	agree("10.1.0.1:8080 2", "203.0.113.1:15443 2", "203.0.113.2:15443 2")

	second0 := time.Now().Unix()
	w.Eventually("the clock moves on: creation times count seconds", func() bool { return time.Now().Unix() > second0 })
	w.Secret("another-west", map[string][]byte{"west": w.Reader("impostor", "reader")})
	w.Eventually("both refuse", func() bool { return len(first.Refusals()) == 1 && len(second.Refusals()) == 1 })
	require.Equal(t, first.Refusals(), second.Refusals())
	require.Equal(t, first.Refusals()[0].Debug(), first.Overview().Refused[0], "the page and isthmus status tell too")
	w.awaitEvent("another-west", first.Refusals()[0].Message)
	w.Apply("east", Pods("web", true, "10.1.0.2"))
	agree("10.1.0.2:8080 2", "203.0.113.1:15443 2", "203.0.113.2:15443 2")

	// One that starts when both secrets are there decides as the others did.
	third := w.Serve()
	require.Equal(t, first.Refusals(), third.Refusals())
	pairs = append(pairs, [2]*recorder.Proxy{pairs[0][0], w.Connect(third, client("east", "net-1"), recorder.Options{Delta: true})})
	agree("10.1.0.2:8080 2", "203.0.113.1:15443 2", "203.0.113.2:15443 2")
	require.Len(t, w.events("another-west"), 1, "three replicas refuse, and one Event says so")
	w.Leave("west")
	agree("10.1.0.2:8080 1", "203.0.113.6:15443 3")
	require.Len(t, w.events("another-west"), 1)
}

func sameVersions(a, b *recorder.Proxy) bool {
	va, vb := a.Versions(), b.Versions()
	if len(va) != len(vb) {
		return false
	}
	for t, names := range va {
		if len(names) != len(vb[t]) {
			return false
		}
		for n, v := range names {
			if vb[t][n] != v {
				return false
			}
		}
	}
	return true
}

// TestControlPlaneGoesMidPush is row 45: a control plane goes while a push is
// on its way and more wait behind it; proxies that come back with what they
// have lose nothing and are sent only what differs.
func TestControlPlaneGoesMidPush(t *testing.T) {
	w := NewWorld(t, "east", "west")
	w.Apply("east", fence("10.1.9.1", "10.1.9.2"))
	w.Apply("west", Service("web")+Pods("web", true, "10.2.0.1")+Service("still")+Pods("still", true, "10.2.3.1"))
	w.Join("west")
	w.Serve()
	arrived, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	halt := func(typeURL string, body *anypb.Any) error {
		var a endpointv3.ClusterLoadAssignment
		if typeURL == recorder.Assignments && body.UnmarshalTo(&a) == nil && len(a.GetEndpoints()) > 0 &&
			a.GetEndpoints()[0].GetLbEndpoints()[0].GetEndpoint().GetAddress().GetSocketAddress().GetAddress() == "10.2.0.2" {
			once.Do(func() {
				close(arrived)
				<-goOn
			})
		}
		return validate.Resource(typeURL, body)
	}
	delta := w.Connect(w.Plane, client("east", ""), recorder.Options{Delta: true, Check: halt})
	sotw := w.Proxy("east", "", false)
	w.Apply("west", Pods("web", true, "10.2.0.2"))
	<-arrived // received and not acknowledged
	w.Apply("west", Pods("web", true, "10.2.0.3"))
	w.Apply("west", Service("new")+Pods("new", true, "10.2.4.1"))
	w.Plane.Halt()
	close(goOn)
	<-delta.Done()
	<-sotw.Done()
	w.Apply("west", Pods("web", true, "10.2.0.4"))

	w.Serve()
	again := w.Connect(w.Plane, client("east", ""), recorder.Options{Delta: true, Resume: delta})
	sotw = w.Connect(w.Plane, client("east", ""), recorder.Options{Resume: sotw})
	for _, p := range []*recorder.Proxy{again, sotw} {
		w.Hears(p, Upstream("web"), "10.2.0.4:8080 1")
		w.Hears(p, Upstream("new"), "10.2.4.1:8080 1")
		w.settle("east", map[bool]string{true: "10.1.9.2", false: "10.1.9.1"}[p == again], p)
	}
	for _, push := range again.Pushes() {
		require.Empty(t, push.Removed, "%+v", push)
		for _, known := range []string{Upstream("still"), "PassthroughCluster", "virtualInbound"} {
			require.NotContains(t, push.Names, known, "%+v", push)
		}
	}
	require.Equal(t, multicluster.HealthOK, w.Plane.Status("west").Health)
}
