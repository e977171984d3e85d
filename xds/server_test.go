package xds

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// settle lets everything happen that is going to, clients' answers included.
func settle(clients ...*client) {
	for {
		time.Sleep(2 * time.Second)
		synctest.Wait()
		again := false
		for _, c := range clients {
			again = c.pump() || again
		}
		if !again {
			return
		}
	}
}

func bothProtocols(t *testing.T, f func(t *testing.T, delta bool)) {
	for name, delta := range map[string]bool{"state of the world": false, "delta": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(t, delta) })
		})
	}
}

func TestOneProxyHearsTheMesh(t *testing.T) {
	bothProtocols(t, func(t *testing.T, delta bool) {
		w := newWorld(t, nil)
		defer w.stop()
		w.put("east", "cart", svc{pods: []string{"10.0.0.1", "10.0.0.2"}})
		settle()
		c := w.client(delta, labNode("10.9.9.9", "east", "net-east", "shop", nil))
		defer c.close()
		c.subscribe(TypeCDS, true, nil, nil)
		settle(c)
		c.subscribe(TypeEDS, false, []string{"outbound|80||cart.shop.svc.cluster.local"}, nil)
		c.subscribe(TypeLDS, true, nil, nil)
		settle(c)
		c.subscribe(TypeRDS, false, []string{"80"}, nil)
		settle(c)
		require.Equal(t, []string{
			"cds BlackHoleCluster,outbound|80||cart.shop.svc.cluster.local",
			"eds outbound|80||cart.shop.svc.cluster.local",
			"lds svc_cart.shop.svc.cluster.local,virtualInbound",
			"rds 80",
		}, c.log)
		c.log = nil
		w.put("east", "cart", svc{pods: []string{"10.0.0.1"}})
		settle(c)
		require.Equal(t, []string{"eds outbound|80||cart.shop.svc.cluster.local"}, c.log)
	})
}

func assignment(name string) string { return "outbound|80||" + name + ".shop.svc.cluster.local" }

// connected returns a proxy that has everything of a mesh with services a and b.
func connected(t *testing.T, w *world, delta bool) *client {
	settle()
	c := w.client(delta, labNode("10.9.9.9", "east", "net-east", "shop", map[string]any{"NODE_NAME": "node0"}))
	c.subscribe(TypeCDS, true, nil, nil)
	settle(c)
	c.subscribe(TypeEDS, false, []string{assignment("a"), assignment("b")}, nil)
	c.subscribe(TypeLDS, true, nil, nil)
	settle(c)
	c.subscribe(TypeRDS, false, []string{"80"}, nil)
	settle(c)
	c.log = nil
	return c
}

func twoServices(t *testing.T, tune func(*Config)) *world {
	w := newWorld(t, tune)
	w.put("east", "a", svc{pods: []string{"10.0.0.1/x"}})
	w.put("east", "b", svc{pods: []string{"10.0.0.2/x"}})
	return w
}

// TestOrderOfOneChange: make before break, and the assignment of an upstream
// that changed follows it, for the Envoy that warms it.
func TestOrderOfOneChange(t *testing.T) {
	bothProtocols(t, func(t *testing.T, delta bool) {
		w := twoServices(t, nil)
		defer w.stop()
		c := connected(t, w, delta)
		defer c.close()
		w.put("east", "a", svc{labels: map[string]string{"v": "2"}, ports: []uint16{80}, pods: []string{"10.0.0.1/x"}})
		settle(c)
		cds, lds := "cds outbound|80||a.shop.svc.cluster.local", "lds svc_a.shop.svc.cluster.local"
		if !delta {
			cds = "cds BlackHoleCluster,outbound|80||a.shop.svc.cluster.local,outbound|80||b.shop.svc.cluster.local"
			lds = "lds svc_a.shop.svc.cluster.local,svc_b.shop.svc.cluster.local,virtualInbound"
		}
		require.Equal(t, []string{cds, "eds " + assignment("a"), lds}, c.log, "a route that did not change is not sent")
	})
}

// TestNothingIsSentForNothing: changes without an effect on a proxy are silent.
func TestNothingIsSentForNothing(t *testing.T) {
	bothProtocols(t, func(t *testing.T, delta bool) {
		w := twoServices(t, nil)
		defer w.stop()
		c := connected(t, w, delta)
		defer c.close()
		w.put("west", "a", svc{pods: []string{"10.7.0.1/x"}}) // another network, same identity
		w.workload("west", "10.7.0.1", "x")
		w.put("east", "secret", svc{ports: []uint16{9}, exportTo: []string{"other"}})
		settle(c)
		w.drop("east", "secret")
		settle(c)
		require.Empty(t, c.log)
	})
}

// TestRejected is row 42 of the fault table: one send per change, and the
// object is named.
func TestRejected(t *testing.T) {
	bothProtocols(t, func(t *testing.T, delta bool) {
		w := twoServices(t, nil)
		defer w.stop()
		c := connected(t, w, delta)
		defer c.close()
		c.reject = func(url string, got map[string]string, _ []string) string {
			if _, ok := got[assignment("a")]; ok && url == TypeEDS {
				return "Error updating " + assignment("a") + ": no"
			}
			return ""
		}
		for i, ip := range []string{"10.0.1.1/x", "10.0.1.2/x", "10.0.1.3/x"} {
			w.put("east", "a", svc{pods: []string{ip}})
			settle(c)
			require.Len(t, c.log, i+1, "one response per change")
		}
		s := w.srv.Proxies()[0].Types[1]
		require.Equal(t, StatusError, s.Status)
		require.Equal(t, []string{assignment("a")}, s.Rejected)
		require.Contains(t, s.Error, assignment("a"))

		// Others of the type go on.
		c.log = nil
		w.put("east", "b", svc{pods: []string{"10.0.2.1/x"}})
		settle(c)
		require.Equal(t, []string{"eds " + assignment("b")}, c.log)
		// The same content comes again when the proxy asks for it, and is taken now.
		c.log, c.reject = nil, nil
		if delta {
			c.subscribe(TypeEDS, false, []string{assignment("a")}, nil)
			settle(c)
			require.Equal(t, []string{"eds " + assignment("a")}, c.log)
			require.Equal(t, StatusSynced, w.srv.Proxies()[0].Types[1].Status)
		}
	})
}

// TestPoison: what cannot be built keeps its last good content, and everything
// else is served, to those who come later, too.
func TestPoison(t *testing.T) {
	for _, fault := range []string{"error", "panic"} {
		bothProtocols(t, func(t *testing.T, delta bool) {
			w := twoServices(t, nil)
			defer w.stop()
			c := connected(t, w, delta)
			defer c.close()
			good := c.of(TypeCDS).have[assignment("a")]
			w.put("east", "a", svc{labels: map[string]string{"fault": fault}, pods: []string{"10.0.0.1/x"}})
			w.put("east", "b", svc{labels: map[string]string{"v": "2"}, pods: []string{"10.0.0.2/x"}})
			settle(c)
			require.Equal(t, good, c.of(TypeCDS).have[assignment("a")], "the last good one stays")
			require.Contains(t, c.of(TypeCDS).have[assignment("b")], "2")

			late := w.client(delta, labNode("10.9.9.8", "east", "net-east", "shop", nil))
			defer late.close()
			late.subscribe(TypeCDS, true, nil, nil)
			settle(late)
			require.Equal(t, c.of(TypeCDS).have, late.of(TypeCDS).have)

			w.put("east", "a", svc{labels: map[string]string{"v": "3"}, pods: []string{"10.0.0.1/x"}})
			settle(c, late)
			require.Contains(t, late.of(TypeCDS).have[assignment("a")], "3")
		})
	}
}

// TestKilledAndReconnected is row 45: a proxy that loses its stream in the
// middle of an update comes back and loses nothing; in the delta protocol it
// gets what differs and nothing else.
func TestKilledAndReconnected(t *testing.T) {
	bothProtocols(t, func(t *testing.T, delta bool) {
		w := twoServices(t, nil)
		defer w.stop()
		c := connected(t, w, delta)
		w.put("east", "a", svc{labels: map[string]string{"v": "2"}, pods: []string{"10.0.0.3/x"}})
		settle() // sent, but neither read nor answered
		c.close()
		w.put("east", "b", svc{pods: []string{"10.0.0.4/x"}})
		w.put("east", "n", svc{pods: []string{"10.0.0.5/x"}})
		settle()
		c.log = nil
		c.resume(w)
		defer c.close()
		settle(c)
		for _, url := range []string{TypeCDS, TypeEDS, TypeLDS, TypeRDS} {
			require.Equal(t, w.oracle(c, url), c.of(url).have, url)
		}
		if delta {
			require.Equal(t, []string{
				"cds outbound|80||a.shop.svc.cluster.local,outbound|80||n.shop.svc.cluster.local",
				"eds outbound|80||a.shop.svc.cluster.local,outbound|80||b.shop.svc.cluster.local",
				"lds svc_a.shop.svc.cluster.local,svc_n.shop.svc.cluster.local", "rds 80",
			}, c.log)
		}
		c.log = nil
		c.close()
		w.drop("east", "n")
		settle()
		c.resume(w)
		settle(c)
		if delta {
			require.Equal(t, []string{"cds  -outbound|80||n.shop.svc.cluster.local", "lds  -svc_n.shop.svc.cluster.local", "rds 80"}, c.log)
		}
		c.log = nil
		c.close()
		c.resume(w)
		settle(c)
		if delta {
			require.Empty(t, c.log, "a proxy that has everything is told nothing")
			require.Equal(t, StatusSynced, w.srv.Proxies()[0].Types[0].Status)
		}
	})
}

// TestReconnectWarmsUpstreams: an upstream that changed while the proxy was
// away needs its assignment, although the proxy says that it has it.
func TestReconnectWarmsUpstreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := twoServices(t, nil)
		defer w.stop()
		c := connected(t, w, true)
		c.close()
		w.put("east", "a", svc{labels: map[string]string{"v": "2"}, pods: []string{"10.0.0.1/x"}})
		settle()
		c.resume(w)
		defer c.close()
		settle(c)
		require.Contains(t, c.log, "eds "+assignment("a"))
	})
}

// TestChangedView: when the registry learns more of a proxy's workload, the
// proxy gets what differs for it, and others nothing.
func TestChangedView(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := twoServices(t, nil)
		defer w.stop()
		w.put("east", "s", svc{labels: map[string]string{"split": "x"}})
		c := connected(t, w, true)
		defer c.close()
		other := w.client(true, labNode("10.9.9.7", "east", "net-east", "shop", nil))
		defer other.close()
		other.subscribe(TypeCDS, true, nil, nil)
		settle(c, other)
		c.log, other.log = nil, nil
		w.workload("east", "10.9.9.9", "web")
		settle(c, other)
		require.Equal(t, []string{"cds inbound|8080||", "lds virtualInbound"}, c.log)
		require.Empty(t, other.log)
		require.Equal(t, 2, w.srv.graph.counts().views)
	})
}

// TestSharing: proxies with the same view cost one build and one copy of
// everything; an own inbound side costs that alone.
func TestSharing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := twoServices(t, nil)
		defer w.stop()
		for i, ip := range []string{"10.9.1.1", "10.9.1.2", "10.9.1.3", "10.9.1.4"} {
			w.workload("east", ip, []string{"x", "y"}[i%2])
		}
		settle()
		var all []*client
		for _, ip := range []string{"10.9.1.1", "10.9.1.2", "10.9.1.3", "10.9.1.4"} {
			c := w.client(true, labNode(ip, "east", "net-east", "shop", nil))
			defer c.close()
			c.subscribe(TypeCDS, true, nil, nil)
			c.subscribe(TypeEDS, false, []string{assignment("a"), assignment("b")}, nil)
			all = append(all, c)
		}
		settle(all...)
		n := w.srv.graph.counts()
		require.Equal(t, counts{views: 2, groups: 4, facets: 4, resources: 3 + 2 + 2, bytes: n.bytes}, n)
		before := w.builds()
		w.put("east", "a", svc{pods: []string{"10.0.3.1/x"}})
		settle(all...)
		require.InDelta(t, 1, w.builds()-before, 0, "one build for all")
		for _, c := range all {
			require.Equal(t, "eds "+assignment("a"), c.log[len(c.log)-1])
		}
	})
}

func (w *world) builds() float64 {
	families, err := w.metrics.Gather()
	require.NoError(w.t, err)
	sum := 0.0
	for _, f := range families {
		if f.GetName() == "isthmus_xds_builds_total" {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

// TestBoundedWhileUnanswered: whatever happens while a proxy does not answer
// costs it one response of the newest state.
func TestBoundedWhileUnanswered(t *testing.T) {
	bothProtocols(t, func(t *testing.T, delta bool) {
		w := twoServices(t, nil)
		defer w.stop()
		c := connected(t, w, delta)
		defer c.close()
		c.hold = true
		for i := range 1000 {
			w.put("east", "a", svc{pods: []string{fmt.Sprintf("10.4.%d.%d/x", i/250, i%250)}})
			time.Sleep(20 * time.Millisecond)
		}
		settle(c)
		require.Len(t, c.log, 1, "one response, and then the proxy's turn")
		s := w.srv.all()[0]
		require.Equal(t, 1, s.types[1].dirty.len())
		c.release()
		settle(c)
		require.Len(t, c.log, 2)
		require.Equal(t, w.oracle(c, TypeEDS), c.of(TypeEDS).have)
	})
}

// TestPace: endpoints go at once, definitions when they have been quiet, and
// under a storm within a second; endpoints do not wait for definitions.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := twoServices(t, nil)
		defer w.stop()
		c := connected(t, w, true)
		defer c.close()
		wait := func(prefix string) time.Duration {
			start := time.Now()
			for {
				synctest.Wait()
				c.pump()
				for _, l := range c.log {
					if strings.HasPrefix(l, prefix) {
						return time.Since(start)
					}
				}
				time.Sleep(100 * time.Microsecond)
			}
		}
		w.put("east", "a", svc{pods: []string{"10.0.5.1/x"}})
		require.LessOrEqual(t, wait("eds "), 100*time.Microsecond)

		settle(c)
		c.log = nil
		w.put("east", "new", svc{ports: []uint16{81}})
		require.InDelta(t, 10*time.Millisecond, wait("cds "), float64(200*time.Microsecond))

		// A storm of definitions with endpoints in it.
		settle(c)
		c.log = nil
		stop := make(chan struct{})
		done := make(chan struct{})
		go func() {
			defer close(done)
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(2 * time.Millisecond):
					w.put("east", "new", svc{ports: []uint16{81}, labels: map[string]string{"v": fmt.Sprint(i)}})
				}
			}
		}()
		time.Sleep(3 * time.Millisecond)
		w.put("east", "a", svc{pods: []string{"10.0.5.2/x"}})
		require.LessOrEqual(t, wait("eds "), 2*time.Millisecond)
		require.LessOrEqual(t, wait("cds "), time.Second+5*time.Millisecond)
		c.log = nil
		require.LessOrEqual(t, wait("cds "), time.Second+5*time.Millisecond)
		close(stop)
		<-done
		settle(c)
		require.Equal(t, w.oracle(c, TypeCDS), c.of(TypeCDS).have)
	})
}

// TestReadyMeansComplete: a proxy that connects the moment the Store is
// complete hears all of it, although definitions are still being collected.
func TestReadyMeansComplete(t *testing.T) {
	bothProtocols(t, func(t *testing.T, delta bool) {
		w := newWorld(t, nil)
		defer w.stop()
		for i := range 5 {
			w.put("east", fmt.Sprint("s", i), svc{})
		}
		c := w.client(delta, labNode("10.9.9.9", "east", "net-east", "shop", nil))
		defer c.close()
		c.subscribe(TypeCDS, true, nil, nil)
		settle(c)
		require.Len(t, c.log, 1)
		require.Len(t, c.of(TypeCDS).have, 6)
	})
}

// TestStuckProxyIsClosed: a response that stays unanswered while more waits.
func TestStuckProxyIsClosed(t *testing.T) {
	bothProtocols(t, func(t *testing.T, delta bool) {
		w := twoServices(t, nil)
		defer w.stop()
		c := connected(t, w, delta)
		idle := connected(t, w, delta)
		defer idle.close()
		c.hold = true
		w.put("east", "a", svc{pods: []string{"10.0.6.1/x"}})
		settle(c, idle)
		time.Sleep(time.Hour)
		require.Len(t, w.srv.all(), 2, "unanswered, but nothing waits")
		w.put("east", "a", svc{pods: []string{"10.0.6.2/x"}})
		settle(c, idle)
		time.Sleep(6 * time.Minute)
		require.Equal(t, codes.DeadlineExceeded, status.Code(<-c.done))
		require.Len(t, w.srv.all(), 1)
	})
}

// TestUnknownTypes: proxies ask for more than there is; that is no error.
func TestUnknownTypes(t *testing.T) {
	bothProtocols(t, func(t *testing.T, delta bool) {
		w := twoServices(t, func(c *Config) { c.PerProxy = map[string]PerProxy{"istio.io/debug/": echo{}} })
		defer w.stop()
		c := connected(t, w, delta)
		defer c.close()
		c.subscribe("type.googleapis.com/who.knows", false, []string{"x"}, nil)
		settle(c)
		require.Empty(t, c.log)
		if delta {
			c.sendDelta(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: "istio.io/debug/syncz", ResourceNamesSubscribe: []string{"q"}})
		} else {
			c.sendSotW(&discoveryv3.DiscoveryRequest{TypeUrl: "istio.io/debug/syncz", ResourceNames: []string{"q"}})
		}
		synctest.Wait()
		require.Contains(t, string(c.p.take()), "pod-10.9.9.9.shop istio.io/debug/syncz [q]")
	})
}

type echo struct{}

func (echo) Respond(_ context.Context, p *mesh.Proxy, url string, names []string) ([]NamedAny, error) {
	return []NamedAny{{Any: &anypb.Any{TypeUrl: url, Value: []byte(fmt.Sprint(p.ID, " ", url, " ", names))}}}, nil
}
