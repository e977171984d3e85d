package xds

import (
	"slices"
	"strings"
	"sync/atomic"

	"github.com/isthmus-mesh/isthmus/xds/build"
)

// facet is an immutable list of entries of one slot. What a subscription
// resolves to is one facet for each projected view that its names have, mostly
// one or two: a thousand proxies that see the same upstreams and differ in their
// own inbound ones share the first facet and have a small second one each.
type facet struct {
	slot    *slot
	entries []*entry // sorted by name
	hash    uint64   // of the names
	groups  map[*group]struct{}

	// memo is the result of the last edit: when a service appears, every group
	// makes the same edit.
	memo struct {
		add, remove []string
		to          *facet
	}
}

func (f *facet) find(name string) *entry {
	i, ok := slices.BinarySearchFunc(f.entries, name, compareEntry)
	if !ok {
		return nil
	}
	return f.entries[i]
}

func compareEntry(e *entry, name string) int { return strings.Compare(e.name, name) }

func (f *facet) named(names []string) bool {
	return slices.EqualFunc(f.entries, names, func(e *entry, n string) bool { return e.name == n })
}

// groupKey says what a group's streams have in common.
type groupKey struct {
	view *liveView
	kind int
	sel  selection
}

// group is all streams with the same view and the same selection of a type. A
// change is worked out once for the group, then marked in its streams.
type group struct {
	key     groupKey
	facets  atomic.Pointer[[]*facet] // ordered by first use; replaced as a whole
	streams map[*stream]struct{}     // guarded by graph.mu
	class   *class
	// broken: the names could not be told; every pass tries again. Guarded by graph.mu.
	broken bool
}

// class is all groups of a kind for which a change has the same effect: those
// whose views agree in what the generator's Affected depends on.
type class struct {
	view   build.View
	groups map[*group]struct{}
}

// classify puts a new group into its class.
func (g *graph) classify(gr *group) {
	k := g.kinds[gr.key.kind]
	v := gr.key.view.view
	if p, ok := k.gen.(AffectedViewer); ok {
		if g.builder.guard(func() error { v = p.AffectedView(gr.key.view.view); return nil }) != nil {
			v = gr.key.view.view
		}
	}
	c := g.classes[k.index][v]
	if c == nil {
		c = &class{view: v, groups: map[*group]struct{}{}}
		g.classes[k.index][v] = c
	}
	c.groups[gr] = struct{}{}
	gr.class = c
}

func (g *graph) declassify(gr *group) {
	c := gr.class
	if delete(c.groups, gr); len(c.groups) == 0 {
		delete(g.classes[gr.key.kind], c.view)
	}
}

func (gr *group) find(name string) *entry { return findIn(*gr.facets.Load(), name) }

func findIn(facets []*facet, name string) *entry {
	for _, f := range facets {
		if e := f.find(name); e != nil {
			return e
		}
	}
	return nil
}

// liveView is a view that some connected proxy has.
type liveView struct {
	view    build.View
	streams int // guarded by graph.mu
}

// bucket collects the names of one facet to be.
type bucket struct {
	view  build.View
	names []string
}

// partition sorts names by the views they project to.
func (g *graph) partition(k *kind, in build.Inputs, v build.View, names []string) []bucket {
	var out []bucket
	last := -1
	for _, n := range names {
		p := g.builder.project(k, in, v, n)
		if last < 0 || out[last].view != p {
			last = slices.IndexFunc(out, func(b bucket) bool { return b.view == p })
			if last < 0 {
				last = len(out)
				out = append(out, bucket{view: p})
			}
		}
		out[last].names = append(out[last].names, n)
	}
	return out
}

// resolve works out the facets of a selection. It reports false if the names
// cannot be told.
func (g *graph) resolve(key groupKey, in build.Inputs) ([]*facet, bool) {
	k := g.kinds[key.kind]
	names := key.sel.names.Names()
	if key.sel.all {
		all, ok := g.list(k, in, key.view.view)
		if !ok {
			return nil, false
		}
		names = sortedUnion(all, names)
	}
	buckets := g.partition(k, in, key.view.view, names)
	facets := make([]*facet, len(buckets))
	for i, b := range buckets {
		facets[i] = g.facet(g.slot(k, b.view), b.names)
	}
	return facets, true
}

// list asks for all names of a view, once per snapshot for views that agree in what
// the list depends on.
func (g *graph) list(k *kind, in build.Inputs, v build.View) ([]string, bool) {
	lv := v
	if g.builder.guard(func() error { lv = k.gen.ListView(v); return nil }) != nil {
		lv = v
	}
	key := listKey{k.index, lv}
	if names, ok := g.lists[key]; ok {
		return names, true
	}
	names, ok := g.builder.list(k, in, v)
	if !ok {
		return nil, false
	}
	if !slices.IsSorted(names) {
		names = slices.Sorted(slices.Values(names))
	}
	names = slices.Compact(names)
	if len(g.lists) >= maxLists {
		clear(g.lists)
	}
	g.lists[key] = names
	return names, true
}

// maxLists bounds the remembered lists of names.
const maxLists = 16

type listKey struct {
	kind int
	view build.View
}

func (g *graph) slot(k *kind, v build.View) *slot {
	s := g.slots[k.index][v]
	if s == nil {
		s = &slot{kind: k, view: v, entries: map[string]*entry{}, facets: map[uint64]*facet{}}
		g.slots[k.index][v] = s
	}
	return s
}

// facet returns the facet of a slot with exactly the names, which are sorted.
func (g *graph) facet(s *slot, names []string) *facet {
	hash := hashNames(names)
	if f := s.facets[hash]; f != nil && f.named(names) {
		return f
	}
	f := &facet{slot: s, hash: hash, groups: map[*group]struct{}{}, entries: make([]*entry, len(names))}
	for i, n := range names {
		f.entries[i] = g.entry(s, n)
	}
	g.intern(f)
	return f
}

// intern makes a new facet known to its slot and its entries.
func (g *graph) intern(f *facet) {
	f.slot.facets[f.hash] = f
	for _, e := range f.entries {
		e.facets = append(e.facets, f)
	}
}

func (g *graph) entry(s *slot, name string) *entry {
	e := s.entries[name]
	if e == nil {
		e = &entry{slot: s, name: name}
		s.entries[name] = e
		g.named[s.kind.index][name] = append(g.named[s.kind.index][name], e)
	}
	return e
}

// edit returns the facet with some names added and others removed, nil if
// nothing is left. Both lists are sorted.
func (g *graph) edit(f *facet, add, remove []string) *facet {
	if to := f.memo.to; to != nil && f.slot.facets[to.hash] == to && slices.Equal(f.memo.add, add) && slices.Equal(f.memo.remove, remove) {
		return to
	}
	names := make([]string, 0, len(f.entries)+len(add))
	for _, e := range f.entries {
		if _, gone := slices.BinarySearch(remove, e.name); !gone {
			names = append(names, e.name)
		}
	}
	names = sortedUnion(names, add)
	if len(names) == 0 {
		return nil
	}
	to := g.facet(f.slot, names)
	if to != f {
		f.memo.add, f.memo.remove, f.memo.to = slices.Clone(add), slices.Clone(remove), to
	}
	return to
}

// setFacets makes a group consist of other facets.
func (g *graph) setFacets(gr *group, facets []*facet) {
	old := gr.facets.Load()
	for _, f := range facets {
		f.groups[gr] = struct{}{}
	}
	gr.facets.Store(&facets)
	if old == nil {
		return
	}
	for _, f := range *old {
		if !slices.Contains(facets, f) {
			g.release(f, gr)
		}
	}
}

// release takes a group off a facet and drops what nothing uses any more.
func (g *graph) release(f *facet, gr *group) {
	delete(f.groups, gr)
	if len(f.groups) == 0 {
		g.drop(f)
	}
}

func (g *graph) drop(f *facet) {
	f.memo.to = nil // else a chain of edits would stay in memory
	s := f.slot
	if s.facets[f.hash] == f {
		delete(s.facets, f.hash)
	}
	for _, e := range f.entries {
		e.facets = slices.DeleteFunc(e.facets, func(o *facet) bool { return o == f })
		g.dropEntry(e)
	}
}

// dropEntry forgets an entry that no facet has.
func (g *graph) dropEntry(e *entry) {
	s := e.slot
	if len(e.facets) > 0 || s.entries[e.name] != e {
		return
	}
	delete(s.entries, e.name)
	named := g.named[s.kind.index]
	if left := slices.DeleteFunc(named[e.name], func(o *entry) bool { return o == e }); len(left) > 0 {
		named[e.name] = left
	} else {
		delete(named, e.name)
	}
	if len(s.entries) == 0 {
		delete(g.slots[s.kind.index], s.view)
	}
}
