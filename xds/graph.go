package xds

import (
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/mem"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/xds/build"
)

// kind is one xDS type that the server serves.
type kind struct {
	index   int
	typeURL string
	short   string // "cds"
	gen     build.Generator
	encoder Encoder // nil if the generator has none
	// completer adds what single proxies may have, nil for nothing.
	completer Completer
	// legacy: a first request without names asks for everything, and a
	// state-of-the-world response holds everything.
	legacy            bool
	heads             [2]mem.Buffer // what all responses share: state of the world, delta
	builds, pushes    prometheus.Counter
	rejects, rejectsX prometheus.Counter // rejectsX is the older name, nil if there is none
	expired           prometheus.Counter
	sizes             prometheus.Observer
}

// graph says who needs what: streams are in groups, groups consist of facets,
// facets of entries; a change goes the way back. It is guarded by one mutex,
// which is never held while anything is sent.
type graph struct {
	kinds     []*kind
	builder   *builder
	snapshot  *snapshot
	derive    func(build.Inputs, *mesh.Proxy, *mesh.Workload) build.View
	concerned func(*mesh.Proxy, *registry.Change) bool
	workload  func(id mesh.ClusterID, addrs []netip.Addr, namespace, name string) *mesh.Workload

	mu          sync.Mutex
	views       map[build.View]*liveView
	groups      []map[groupKey]*group   // by kind
	classes     []map[build.View]*class // by kind
	slots       []map[build.View]*slot  // by kind
	named       []map[string][]*entry   // by kind: the entries of every slot by name
	streams     map[*stream]struct{}
	byNamespace map[string]map[*stream]struct{}
	byAddress   map[registry.WorkloadKey]map[*stream]struct{}
	lists       map[listKey][]string // of the current snapshot

	// State of the pass under way; see update.go.
	pass    uint64
	since   time.Time
	changed []*entry
	probed  []*entry
	touched []*stream
}

func newGraph(b *builder, s *snapshot) *graph {
	return &graph{builder: b, snapshot: s, views: map[build.View]*liveView{}, streams: map[*stream]struct{}{},
		byNamespace: map[string]map[*stream]struct{}{}, byAddress: map[registry.WorkloadKey]map[*stream]struct{}{}, lists: map[listKey][]string{}}
}

// setKinds sets the types, before anything else happens.
func (g *graph) setKinds(list []*kind) {
	g.kinds = list
	for range list {
		g.groups = append(g.groups, map[groupKey]*group{})
		g.classes = append(g.classes, map[build.View]*class{})
		g.slots = append(g.slots, map[build.View]*slot{})
		g.named = append(g.named, map[string][]*entry{})
	}
}

// add makes a stream known, with the view that its proxy has now. Deriving the
// view under the lock means that no later change of it is missed.
func (g *graph) add(s *stream) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	v, err := g.view(s.proxy)
	if err != nil {
		return err
	}
	s.view = g.acquireView(v)
	g.streams[s] = struct{}{}
	addTo(g.byNamespace, s.proxy.Namespace, s)
	for _, a := range s.proxy.Addresses {
		addTo(g.byAddress, registry.WorkloadKey{Cluster: s.proxy.Cluster, Addr: a}, s)
	}
	return nil
}

// remove forgets a stream and everything that only it needed.
func (g *graph) remove(s *stream) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.streams[s]; !ok {
		return
	}
	delete(g.streams, s)
	removeFrom(g.byNamespace, s.proxy.Namespace, s)
	for _, a := range s.proxy.Addresses {
		removeFrom(g.byAddress, registry.WorkloadKey{Cluster: s.proxy.Cluster, Addr: a}, s)
	}
	for i := range s.types {
		s.mu.Lock()
		gr := s.types[i].group
		s.types[i].group, s.types[i].dirty = nil, dirtySet{}
		s.mu.Unlock()
		g.leave(s, gr)
	}
	g.releaseView(s.view)
}

func addTo[K comparable](m map[K]map[*stream]struct{}, k K, s *stream) {
	set := m[k]
	if set == nil {
		set = map[*stream]struct{}{}
		m[k] = set
	}
	set[s] = struct{}{}
}

func removeFrom[K comparable](m map[K]map[*stream]struct{}, k K, s *stream) {
	delete(m[k], s)
	if len(m[k]) == 0 {
		delete(m, k)
	}
}

// view derives a proxy's view from the newest inputs.
func (g *graph) view(p *mesh.Proxy) (v build.View, err error) {
	w := g.workload(p.Cluster, p.Addresses, p.Namespace, strings.TrimSuffix(p.ID, "."+p.Namespace))
	err = g.builder.guard(func() error { v = g.derive(g.builder.inputs(), p, w); return nil })
	return v, err
}

func (g *graph) acquireView(v build.View) *liveView {
	lv := g.views[v]
	if lv == nil {
		lv = &liveView{view: v}
		g.views[v] = lv
	}
	lv.streams++
	return lv
}

func (g *graph) releaseView(lv *liveView) {
	if lv.streams--; lv.streams == 0 {
		delete(g.views, lv.view)
	}
}

// subscribe brings a stream's subscription of a kind in line with a request and
// marks what the proxy is owed for it.
func (g *graph) subscribe(s *stream, k *kind, out outcome) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.streams[s]; !ok {
		return
	}
	t := &s.types[k.index]
	old := t.group
	gr := old
	switch {
	case out.to.empty():
		gr = nil
	case old == nil || out.changed():
		gr = g.join(s, groupKey{s.view, k.index, out.to}, old)
	}
	s.mu.Lock()
	t.group = gr
	t.owe(s.delta, k, out)
	s.mu.Unlock()
	if gr != old {
		g.leave(s, old)
	}
}

// join puts a stream into the group with the key, making it if need be. from is
// the group that the stream was in, nil if none: a selection that differs by a
// few names costs only those.
func (g *graph) join(s *stream, key groupKey, from *group) *group {
	gr := g.groups[key.kind][key]
	if gr == nil {
		gr = &group{key: key, streams: map[*stream]struct{}{}}
		facets, ok := g.edited(key, from)
		if !ok {
			if facets, ok = g.resolve(key, g.builder.inputs()); !ok {
				gr.broken, facets = true, nil
			}
		}
		g.setFacets(gr, facets)
		g.groups[key.kind][key] = gr
		g.classify(gr)
	}
	gr.streams[s] = struct{}{}
	return gr
}

// edited derives the facets of a selection of names from those of another one.
func (g *graph) edited(key groupKey, from *group) ([]*facet, bool) {
	if from == nil || from.broken || key.sel.all || from.key.sel.all || from.key.view != key.view {
		return nil, false
	}
	add, remove := key.sel.names.minus(from.key.sel.names), from.key.sel.names.minus(key.sel.names)
	if len(add)+len(remove) > key.sel.names.Len()/2 {
		return nil, false
	}
	var e edit
	for _, b := range g.partition(g.kinds[key.kind], g.builder.inputs(), key.view.view, add) {
		e.add(g.slot(g.kinds[key.kind], b.view), b.names...)
	}
	facets := *from.facets.Load()
	for _, n := range remove {
		for _, f := range facets {
			if f.find(n) != nil {
				e.remove(f.slot, n)
			}
		}
	}
	return g.applyEdit(facets, &e), true
}

// leave takes a stream out of a group and drops the group with its last stream.
func (g *graph) leave(s *stream, gr *group) {
	if gr == nil {
		return
	}
	delete(gr.streams, s)
	if len(gr.streams) > 0 {
		return
	}
	delete(g.groups[gr.key.kind], gr.key)
	g.declassify(gr)
	for _, f := range *gr.facets.Load() {
		g.release(f, gr)
	}
}

// edit collects changes of membership, by slot.
type edit struct{ slots []slotEdit }

type slotEdit struct {
	slot        *slot
	add, remove []string // sorted once applied
}

func (e *edit) of(s *slot) *slotEdit {
	for i := range e.slots {
		if e.slots[i].slot == s {
			return &e.slots[i]
		}
	}
	e.slots = append(e.slots, slotEdit{slot: s})
	return &e.slots[len(e.slots)-1]
}

func (e *edit) add(s *slot, names ...string) {
	x := e.of(s)
	x.add = append(x.add, names...)
}

func (e *edit) remove(s *slot, name string) {
	x := e.of(s)
	x.remove = append(x.remove, name)
}
