package install

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/anypb"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/serve"
	"github.com/isthmus-mesh/isthmus/testenv/plane"
	"github.com/isthmus-mesh/isthmus/testenv/recorder"
)

// fleet are proxies that connect to any replica that runs, and go on with what
// they have when it goes.
type fleet struct {
	w      *world
	ctx    context.Context
	wanted []string // addresses that no proxy may lose once it has them

	mu     sync.Mutex
	planes []*plane.Plane // guarded by mu

	complete, connections atomic.Int64
	longest               atomic.Int64 // wait for a whole configuration after a loss, in ns
	lost                  sync.Map     // what a proxy was told that took something from it
}

// pick returns a replica that runs.
func (f *fleet) pick(n int) *plane.Plane {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.planes[n%len(f.planes)]
}

// put says which replicas run.
func (f *fleet) put(planes ...*plane.Plane) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.planes = planes
}

// keep is one proxy for as long as the context lasts.
func (f *fleet) keep(i int) {
	var last *recorder.Proxy
	for turn := 0; f.ctx.Err() == nil; turn++ {
		asked := time.Now()
		x, err := recorder.Dial(f.ctx, f.pick(i+turn).GRPCAddr(), recorder.Node{Name: fmt.Sprint("client-", i), Namespace: "shop", Cluster: "east",
			Network: "network-1", IP: fmt.Sprintf("10.1.%d.%d", 100+i/250, 1+i%250), Labels: map[string]string{"app": "client"}},
			recorder.Options{Delta: i%2 == 0, Resume: last, Check: f.check})
		if err != nil {
			continue // that one has gone meanwhile
		}
		if x.Ready(f.ctx) == nil {
			f.connections.Add(1)
			if last == nil {
				f.complete.Add(1)
			} else if took := int64(time.Since(asked)); took > f.longest.Load() {
				f.longest.Store(took) // a race loses at most a shorter one of the same moment
			}
			<-x.Done()
		}
		for _, push := range x.Pushes() {
			if len(push.Removed) > 0 || push.Nacked != "" {
				f.lost.Store(fmt.Sprintf("proxy %d turn %d", i, turn), push)
			}
		}
		x.Close()
		last = x
	}
}

// check refuses an assignment of web that lacks an address it has had from the
// beginning.
func (f *fleet) check(typeURL string, body *anypb.Any) error {
	var a endpointv3.ClusterLoadAssignment
	if typeURL != recorder.Assignments || body.UnmarshalTo(&a) != nil || a.GetClusterName() != upstream {
		return nil
	}
	var have []string
	for _, l := range a.GetEndpoints() {
		for _, e := range l.GetLbEndpoints() {
			have = append(have, e.GetEndpoint().GetAddress().GetSocketAddress().GetAddress())
		}
	}
	for _, addr := range f.wanted {
		if !slices.Contains(have, addr) {
			return fmt.Errorf("assignment of web has lost %s: %v", addr, have)
		}
	}
	return nil
}

// TestRollingUpgrade: two replicas are replaced one after the other under 500
// proxies, while endpoints are added. No proxy hears that anything is gone, and
// each is whole again after each restart.
func TestRollingUpgrade(t *testing.T) {
	w := newWorld(t)
	east := w.clusters["east"]
	services := []string{"web", "cart", "mail", "users", "pay"}
	for i, name := range services {
		require.NoError(t, east.Apply(w.ctx, []byte(fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %[1]s, namespace: shop}
spec:
  ports: [{name: http, port: 80, targetPort: 8080}]
---
`, name)+slice(name, fmt.Sprintf("10.1.%d.1", i), fmt.Sprintf("10.1.%d.2", i)))))
	}
	t.Cleanup(func() {
		for _, name := range services {
			_ = east.Client().CoreV1().Services("shop").Delete(context.WithoutCancel(w.ctx), name, metav1.DeleteOptions{})
			_ = east.Client().DiscoveryV1().EndpointSlices("shop").Delete(context.WithoutCancel(w.ctx), name+"-1", metav1.DeleteOptions{})
		}
	})
	elsewhere := func(s *serve.Settings) { s.HTTPSAddr = "127.0.0.1:0" }
	replicas := []*plane.Plane{w.start("istiod-0", elsewhere), w.start("istiod-1", elsewhere)}
	const proxies = 500
	ctx, stop := context.WithCancel(w.ctx)
	f := &fleet{w: w, ctx: ctx, wanted: []string{"10.1.0.1", "10.1.0.2"}}
	f.put(replicas...)
	var all sync.WaitGroup
	for i := range proxies {
		all.Go(func() { f.keep(i) })
	}
	defer all.Wait()
	defer stop()
	w.eventually("every proxy has its configuration", func() bool { return f.complete.Load() == proxies })
	for n := range replicas {
		next := w.start(fmt.Sprint("istiod-new-", n), elsewhere) // ready, as a rollout waits for
		before, old := f.connections.Load(), replicas[n]
		on := int64(len(old.Overview().Proxies))
		replicas[n] = next
		f.put(replicas...)
		old.Halt()
		require.NoError(t, east.Apply(w.ctx, []byte(slice("web", "10.1.0.1", "10.1.0.2", fmt.Sprintf("10.1.0.%d", 10+n)))))
		w.eventually("every proxy of the old replica is whole again", func() bool { return f.connections.Load() >= before+on })
		t.Logf("replica %d: %d proxies moved, longest wait so far %s", n, on, time.Duration(f.longest.Load()).Round(time.Millisecond))
		require.Positive(t, on)
	}
	connected := func() int { return len(replicas[0].Overview().Proxies) + len(replicas[1].Overview().Proxies) }
	w.eventually("all are connected", func() bool { return connected() == proxies })
	stop()
	all.Wait()
	f.lost.Range(func(who, push any) bool {
		t.Errorf("%s was told: %+v", who, push)
		return true
	})
}

// slice lists the endpoints of a service.
func slice(name string, addrs ...string) string {
	out := fmt.Sprintf(`
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %[1]s-1, namespace: shop, labels: {kubernetes.io/service-name: %[1]s}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints:
`, name)
	for _, a := range addrs {
		out += fmt.Sprintf("- {addresses: [%q], conditions: {ready: true}}\n", a)
	}
	return out
}
