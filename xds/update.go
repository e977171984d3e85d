package xds

import (
	"slices"

	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/xds/build"
)

// apply works a batch into the graph: views that changed move their streams,
// memberships are adjusted, affected entries are built again, and every name
// that now differs for a stream is marked in it. It returns the streams to poke.
//
// The invariant that all of this keeps: for every stream and name, either the
// name is marked, or what the proxy was sent last is the entry's current content.
func (g *graph) apply(b *batch) []*stream {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pass++
	g.since, g.touched, g.changed = b.since, nil, g.changed[:0]
	c := g.snapshot.advance(b)
	in := g.snapshot.inputs()
	clear(g.lists)
	g.deriveViews(c)
	for _, k := range g.kinds {
		g.update(k, in, c, b.definitions)
	}
	for _, e := range g.probed {
		g.dropEntry(e)
	}
	g.probed = g.probed[:0]
	touched := g.touched
	g.touched = nil
	return touched
}

// deriveViews asks for the views of the proxies that a change may concern.
func (g *graph) deriveViews(c *registry.Change) {
	if c.Scope != 0 || len(c.Objects) > 0 {
		for s := range g.streams { // an object may select any proxy
			if g.concerned == nil || g.concerned(s.proxy, c) {
				g.deriveView(s)
			}
		}
		return
	}
	seen := map[*stream]struct{}{}
	visit := func(set map[*stream]struct{}) {
		for s := range set {
			if _, ok := seen[s]; ok {
				continue
			}
			seen[s] = struct{}{}
			if g.concerned == nil || g.concerned(s.proxy, c) {
				g.deriveView(s)
			}
		}
	}
	for k := range c.Workloads {
		visit(g.byAddress[k])
	}
	namespaces := map[string]struct{}{}
	for k := range c.Services {
		if _, ok := namespaces[k.Namespace]; !ok {
			namespaces[k.Namespace] = struct{}{}
			visit(g.byNamespace[k.Namespace])
		}
	}
}

// deriveView moves a stream to the groups of its new view, if it has a new one,
// and marks exactly what differs.
func (g *graph) deriveView(s *stream) {
	v, err := g.view(s.proxy)
	if err != nil || v == s.view.view {
		return // an error leaves the view as it is
	}
	old := s.view
	lv := g.acquireView(v)
	s.view = lv
	for i, k := range g.kinds {
		from := s.types[i].group
		if from == nil {
			continue
		}
		to := g.join(s, groupKey{lv, i, from.key.sel}, nil)
		var names []string
		if !to.broken {
			names = g.diff(*from.facets.Load(), *to.facets.Load())
		}
		s.mu.Lock()
		s.types[i].group = to
		s.mu.Unlock()
		for _, n := range names {
			g.mark(s, k, n)
		}
		g.leave(s, from)
	}
	g.releaseView(old)
}

// update works a change into one kind.
func (g *graph) update(k *kind, in build.Inputs, c *registry.Change, definitions bool) {
	names := map[string][]*class{}
	for _, cl := range g.classes[k.index] {
		aff := build.Affected{All: true} // if it cannot be told
		_ = g.builder.guard(func() error { aff = k.gen.Affected(in, cl.view, c); return nil })
		for _, n := range aff.Names {
			names[n] = append(names[n], cl)
		}
		for gr := range cl.groups {
			switch {
			case aff.All || gr.broken:
				g.renew(gr, in)
			case len(aff.Names) > 0 && (gr.key.sel.all || definitions):
				g.adjust(gr, k, in, aff.Names)
			default:
				// Of names that were asked for nothing but the content can change: which
				// view a name projects to depends on definitions only.
			}
		}
	}
	for n, classes := range names {
		for _, e := range g.named[k.index][n] {
			if len(classes) == len(g.classes[k.index]) || e.isOf(classes) {
				g.refresh(e)
			}
		}
	}
	for _, e := range g.changed {
		for _, f := range e.facets {
			for gr := range f.groups {
				g.markAll(gr, e.slot.kind, e.name)
			}
		}
	}
	g.changed = g.changed[:0]
}

// isOf reports whether a group of any of the classes has the entry, or nobody has
// it yet. What only others have is as it was: that is what their class says.
func (e *entry) isOf(classes []*class) bool {
	for _, f := range e.facets {
		for gr := range f.groups {
			if slices.Contains(classes, gr.class) {
				return true
			}
		}
	}
	return len(e.facets) == 0
}

// renew works a group out from nothing, and its entries with it.
func (g *graph) renew(gr *group, in build.Inputs) {
	g.reresolve(gr, in)
	for _, f := range *gr.facets.Load() {
		for _, e := range f.entries {
			g.refresh(e)
		}
	}
}

// refresh builds an entry again, once per pass.
func (g *graph) refresh(e *entry) {
	if e.pass == g.pass {
		return
	}
	e.pass, e.before = g.pass, e.current.Load()
	if e.rebuild(g.builder) {
		g.changed = append(g.changed, e)
	}
}

// was returns what proxies were sent of an entry before the pass, unless it was
// never built.
func (g *graph) was(e *entry) *Resource {
	if e.pass == g.pass {
		return e.before
	}
	return e.current.Load()
}

// differs reports whether a proxy that had one entry has to be told about the
// other in its place.
func (g *graph) differs(old, now *entry) bool {
	g.refresh(now)
	n := now.get(g.builder)
	if n == nil {
		return false // not known: the proxy keeps what it has
	}
	// A sender may have read the old entry before or after the pass refreshed it.
	return !same(g.was(old), n) || !same(old.current.Load(), n)
}

// diff lists the names that differ for a proxy that moves from some facets to others.
func (g *graph) diff(from, to []*facet) []string {
	old := map[string]*entry{}
	for _, f := range from {
		if !slices.Contains(to, f) {
			for _, e := range f.entries {
				old[e.name] = e
			}
		}
	}
	var names []string
	for _, f := range to {
		if slices.Contains(from, f) {
			continue
		}
		for _, e := range f.entries {
			o := old[e.name]
			delete(old, e.name)
			if o == e {
				continue
			}
			if o == nil {
				if e.get(g.builder).exists() {
					names = append(names, e.name)
				}
			} else if g.differs(o, e) {
				names = append(names, e.name)
			}
		}
	}
	for n, e := range old {
		if g.was(e) != absent {
			names = append(names, n)
		}
	}
	return names
}

// reresolve works out a group's facets from nothing.
func (g *graph) reresolve(gr *group, in build.Inputs) {
	facets, ok := g.resolve(gr.key, in)
	if !ok {
		gr.broken = true
		return // the group keeps what it has
	}
	k := g.kinds[gr.key.kind]
	old := *gr.facets.Load()
	names := g.diff(old, facets)
	gr.broken = false
	g.setFacets(gr, facets)
	for _, n := range names {
		g.markAll(gr, k, n)
	}
}

// adjust brings a group's membership up to date for some names.
func (g *graph) adjust(gr *group, k *kind, in build.Inputs, names []string) {
	var e edit
	var marks []string
	for _, n := range names {
		asked := gr.key.sel.names.Has(n)
		if !asked && !gr.key.sel.all {
			continue
		}
		old := gr.find(n)
		now := g.candidate(k, in, gr.key.view.view, n, old)
		r := now.get(g.builder)
		switch {
		case r == nil && (old != nil || !asked):
			// Cannot be told: stays as it is.
		case old == nil && (asked || r.exists()):
			e.add(now.slot, n)
			marks = append(marks, n)
		case old != nil && !asked && !r.exists():
			e.remove(old.slot, n)
			if g.was(old) != absent {
				marks = append(marks, n)
			}
		case old != nil && now != old:
			e.remove(old.slot, n)
			e.add(now.slot, n)
			if g.differs(old, now) {
				marks = append(marks, n)
			}
		}
	}
	if len(e.slots) > 0 {
		g.setFacets(gr, g.applyEdit(*gr.facets.Load(), &e))
	}
	for _, n := range marks {
		g.markAll(gr, k, n)
	}
}

// candidate returns the entry that a name resolves to now, refreshed.
func (g *graph) candidate(k *kind, in build.Inputs, v build.View, name string, old *entry) *entry {
	p := g.builder.project(k, in, v, name)
	if old != nil && old.slot.view == p {
		g.refresh(old)
		return old
	}
	e := g.entry(g.slot(k, p), name)
	if len(e.facets) == 0 {
		g.probed = append(g.probed, e)
	}
	g.refresh(e)
	return e
}

// applyEdit returns the facets with an edit applied.
func (g *graph) applyEdit(facets []*facet, e *edit) []*facet {
	out := make([]*facet, 0, len(facets)+1)
	done := make([]bool, len(e.slots))
	for i := range e.slots {
		slices.Sort(e.slots[i].add)
		slices.Sort(e.slots[i].remove)
	}
	for _, f := range facets {
		to := f
		for i, x := range e.slots {
			if x.slot == f.slot {
				to, done[i] = g.edit(f, slices.Compact(x.add), x.remove), true
			}
		}
		if to != nil {
			out = append(out, to)
		}
	}
	for i, x := range e.slots {
		if !done[i] && len(x.add) > 0 {
			out = append(out, g.facet(x.slot, slices.Compact(x.add)))
		}
	}
	return out
}

func (g *graph) markAll(gr *group, k *kind, name string) {
	for s := range gr.streams {
		g.mark(s, k, name)
	}
}

func (g *graph) mark(s *stream, k *kind, name string) {
	s.mark(k, name, g.since)
	if !s.queued.Swap(true) {
		g.touched = append(g.touched, s)
	}
}
