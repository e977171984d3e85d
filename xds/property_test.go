package xds

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/xds/build"
)

// oracle builds what a client should have, from nothing and without the engine.
func (w *world) oracle(c *client, url string) map[string]string {
	in := build.Inputs{Catalog: w.store.Catalog(), Endpoints: w.store}
	p, err := ParseNode(c.node, "east")
	require.NoError(w.t, err)
	v := labView(in, p, w.store.Workload(registry.WorkloadKey{Cluster: p.Cluster, Addr: p.Addresses[0]}))
	var gen build.Generator
	for _, g := range labGenerators() {
		if g.TypeURL() == url {
			gen = g
		}
	}
	t := c.of(url)
	names := t.list()
	if t.wild {
		names = append(names, gen.List(in, v)...)
	}
	out := map[string]string{}
	for _, n := range names {
		m, err := gen.Build(in, v, n)
		require.NoError(w.t, err)
		if m != nil && !isNil(m) {
			b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
			require.NoError(w.t, err)
			out[n] = string(b)
		}
	}
	return out
}

// check compares what a client has with what it should have. A content that
// the client refused may be missing; a state-of-the-world client cannot be told
// that an assignment or route is gone.
func (w *world) check(c *client) {
	for _, url := range []string{TypeCDS, TypeEDS, TypeLDS, TypeRDS} {
		t, ok := c.types[url]
		if !ok {
			continue
		}
		want := w.oracle(c, url)
		for n, b := range want {
			if t.have[n] != b && !t.refused[n][b] && !t.refusedWhole(c, url) {
				w.t.Fatalf("delta=%v: %s %q differs from a rebuild: have %q, want %q\n%s", c.delta, url, n, t.have[n], b, strings.Join(c.log, "\n"))
			}
		}
		for n := range t.have {
			if _, ok := want[n]; !ok && !t.refused[n][""] && (c.delta || url == TypeCDS || url == TypeLDS) && !t.refusedWhole(c, url) {
				w.t.Fatalf("delta=%v: %s has %q, which does not exist\n%s", c.delta, url, n, strings.Join(c.log, "\n"))
			}
		}
	}
}

// refusedWhole: a state-of-the-world response of everything was refused, and
// with it the content of this moment.
func (t *clientType) refusedWhole(c *client, url string) bool {
	return !c.delta && (url == TypeCDS || url == TypeLDS) && len(t.refused) > 0
}

var (
	labNames = []string{"a", "b", "c", "d"}
	labPorts = []uint16{80, 81}
)

func drawService(t *rapid.T) svc {
	s := svc{ports: rapid.SliceOfNDistinct(rapid.SampledFrom(labPorts), 1, 2, rapid.ID).Draw(t, "ports"), labels: map[string]string{}}
	slices.Sort(s.ports)
	if rapid.Bool().Draw(t, "split") {
		s.labels["split"] = "x"
	}
	s.labels["v"] = rapid.SampledFrom([]string{"1", "2"}).Draw(t, "v")
	s.headless = rapid.IntRange(0, 3).Draw(t, "headless") == 0
	s.nodeLocal = rapid.IntRange(0, 3).Draw(t, "nodeLocal") == 0
	s.exportTo = rapid.SampledFrom([][]string{nil, nil, {"shop"}, {"other"}}).Draw(t, "exportTo")
	for _, i := range rapid.SliceOfNDistinct(rapid.IntRange(1, 4), 0, 3, rapid.ID).Draw(t, "pods") {
		s.pods = append(s.pods, fmt.Sprintf("10.0.0.%d/sa%d/node%d", i, i%2, i%2))
	}
	return s
}

// TestClientsAgreeWithARebuild holds rule 4: whatever happens in whatever
// order, what every client of either protocol has accepted equals what is built
// from nothing.
func TestClientsAgreeWithARebuild(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// Without its Deadline method, which a bubble does not allow to be asked.
		rapid.Check(struct{ rapid.TB }{t}, func(rt *rapid.T) {
			w := newWorld(rt, nil)
			defer w.stop()
			m := &machine{w: w, t: rt}
			m.open()
			rt.Repeat(map[string]func(*rapid.T){
				"service":   m.service,
				"gone":      func(t *rapid.T) { w.drop(m.cluster(t), rapid.SampledFrom(labNames).Draw(t, "name")) },
				"resync":    m.resync,
				"workload":  m.workload,
				"settings":  m.settings,
				"subscribe": m.subscribe,
				"again":     m.again,
				"reject":    func(t *rapid.T) { m.client(t).rejecting(t) },
				"hold":      func(t *rapid.T) { m.client(t).hold = true },
				"release":   func(t *rapid.T) { m.client(t).release() },
				"reconnect": func(t *rapid.T) { c := m.client(t); c.close(); c.hold = false; c.resume(w) },
				"pump":      func(t *rapid.T) { synctest.Wait(); m.client(t).pump() },
				"settle":    func(t *rapid.T) { m.settle() },
			})
			m.settle()
			for _, c := range m.clients {
				c.close()
			}
			require.Empty(rt, w.srv.all())
			require.Equal(rt, counts{}, w.srv.graph.counts(), "nothing stays in memory after the last stream")
			for i := range w.srv.graph.kinds {
				require.Empty(rt, w.srv.graph.named[i])
			}
		})
	})
}

type machine struct {
	w       *world
	t       *rapid.T
	clients []*client
}

func (m *machine) open() {
	for i, delta := range []bool{false, true, true, false} {
		node := labNode(fmt.Sprintf("10.9.0.%d", i+1), "east", []string{"net-east", "net-west"}[i/2], []string{"shop", "other"}[i%2],
			map[string]any{"NODE_NAME": fmt.Sprint("node", i%2)})
		c := m.w.client(delta, node)
		c.subscribe(TypeCDS, true, nil, nil)
		c.subscribe(TypeLDS, true, nil, nil)
		m.clients = append(m.clients, c)
	}
}

func (m *machine) cluster(t *rapid.T) mesh.ClusterID {
	return rapid.SampledFrom([]mesh.ClusterID{"east", "west"}).Draw(t, "cluster")
}

func (m *machine) client(t *rapid.T) *client { return rapid.SampledFrom(m.clients).Draw(t, "client") }

func (m *machine) service(t *rapid.T) {
	m.w.put(m.cluster(t), rapid.SampledFrom(labNames).Draw(t, "name"), drawService(t))
}

func (m *machine) resync(t *rapid.T) {
	c := m.cluster(t)
	u := registry.Update{Cluster: &registry.ClusterState{Network: mesh.NetworkID("net-" + c)}}
	for _, n := range rapid.SliceOfDistinct(rapid.SampledFrom(labNames), rapid.ID).Draw(t, "names") {
		u.Services = append(u.Services, serviceState(c, n, drawService(t)))
	}
	m.w.sinks[c].Replace(u)
}

func (m *machine) workload(t *rapid.T) {
	m.w.workload("east", fmt.Sprintf("10.9.0.%d", rapid.IntRange(1, 4).Draw(t, "proxy")), rapid.SampledFrom([]string{"x", "y"}).Draw(t, "app"))
}

func (m *machine) settings(t *rapid.T) {
	n := map[string]*meshconfig.Network{}
	for i := range rapid.IntRange(0, 2).Draw(t, "networks") {
		n[fmt.Sprint("n", i)] = &meshconfig.Network{}
	}
	m.w.store.SetSettings(mesh.Settings{Networks: &meshconfig.MeshNetworks{Networks: n}})
}

func (m *machine) names(url string, t *rapid.T) []string {
	var all []string
	switch url {
	case TypeRDS:
		all = []string{"80", "81", "none"}
	default:
		for _, n := range labNames {
			for _, p := range labPorts {
				all = append(all, fmt.Sprintf("outbound|%d||%s", p, svcKey(n).Hostname))
			}
		}
	}
	return rapid.SliceOfNDistinct(rapid.SampledFrom(all), 0, 4, rapid.ID).Draw(t, "names")
}

// subscribe changes the names wanted, as a proxy does: it never asks for what
// it has or gives up what it has not.
func (m *machine) subscribe(t *rapid.T) {
	c, url := m.client(t), rapid.SampledFrom([]string{TypeEDS, TypeRDS}).Draw(t, "type")
	have := c.of(url)
	var add, remove []string
	for _, n := range m.names(url, t) {
		if have.names[n] {
			remove = append(remove, n)
		} else {
			add = append(add, n)
		}
	}
	if len(add)+len(remove) > 0 {
		c.subscribe(url, false, add, remove)
	}
}

// again asks once more for what the client has.
func (m *machine) again(t *rapid.T) {
	c := m.client(t)
	names := c.of(TypeEDS).list()
	if c.delta && len(names) > 0 {
		c.subscribe(TypeEDS, false, names[:1], nil)
	}
}

// rejecting makes a client refuse the next response.
func (c *client) rejecting(t *rapid.T) {
	named := rapid.Bool().Draw(t, "named")
	c.reject = func(_ string, got map[string]string, _ []string) string {
		c.reject = nil
		if named && len(got) > 0 {
			return "Error adding/updating " + slices.Sorted(maps.Keys(got))[0] + ": no"
		}
		return "no"
	}
}

func (m *machine) settle() {
	for _, c := range m.clients {
		c.release()
	}
	settle(m.clients...)
	for _, c := range m.clients {
		m.w.check(c)
	}
}
