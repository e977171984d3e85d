package gatewayapi

import (
	"slices"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Most changes are of routes. As long as nothing else is different, those that
// changed are taken out of where they counted and put in anew, and what is
// derived there is derived anew; all else is left alone.

// Delta is what an update changed.
type Delta struct {
	// Objects are the derived objects that are new or not the same as before; nil
	// ones are gone.
	Objects map[mesh.ObjectKey]*mesh.Object
	// Asked are the Services that everything derived depends on, and perhaps some
	// that it did a while ago.
	Asked map[Name]struct{}
}

// Update goes on from the last translation: afterwards all changes together have
// led to the objects that [Translate] gives. in.Objects gives the same slice for
// as long as nothing of a kind has changed, and none that was changed in place;
// what else it gives is compared.
func (m *Translator) Update(in Input) *Delta {
	in.Silent = true
	if m.last != nil && m.last.goesOn(in) {
		return m.last.advance(in)
	}
	before := map[mesh.ObjectKey]*mesh.Object{}
	if m.last != nil {
		before = m.last.objects
	}
	out := &Delta{Objects: map[mesh.ObjectKey]*mesh.Object{}, Asked: m.Translate(in).Asked}
	for k, o := range m.last.objects {
		if before[k] != o {
			out.Objects[k] = o
		}
	}
	for k := range before {
		if m.last.objects[k] == nil {
			out.Objects[k] = nil
		}
	}
	return out
}

// attachment is where a route counts.
type attachment struct {
	object    *mesh.Object
	route     *route // nil if it is none of ours
	listeners []*listener
	hosts     []hostOf
	mesh      []meshKey
	led       []*gateway
}

// hostOf is a host of a listener.
type hostOf struct {
	listener *listener
	host     string
}

// changes is what an update has to derive anew, and what came of it.
type changes struct {
	hosts    map[hostOf]struct{}
	streams  map[*listener]struct{}
	mesh     map[meshKey]struct{}
	policies map[Name]struct{}
	objects  map[mesh.ObjectKey]*mesh.Object
}

// mostStale is how many Services may be asked for in vain before everything is
// translated again, beside as many as there are.
const mostStale = 1000

// goesOn reports whether nothing but routes may be different in an input.
func (t *translator) goesOn(in Input) bool {
	if !in.plain() || !t.in.plain() || len(t.services) > 2*t.fresh+mostStale {
		return false
	}
	for kind, list := range t.lists {
		if now := in.Objects(kind); len(now) != len(list) || len(now) > 0 && &now[0] != &list[0] {
			return false
		}
	}
	for ref, s := range t.services {
		if in.Service(ref.Name, ref.imported) != s {
			return false
		}
	}
	return true
}

// plain reports whether nothing is asked for but what is derived, and everything
// that it is derived from can be compared.
func (in Input) plain() bool { return in.Credential == nil && in.Infrastructure == nil && in.Silent }

// advance translates the routes that are different.
func (t *translator) advance(in Input) *Delta {
	t.in = in
	t.changes = &changes{hosts: map[hostOf]struct{}{}, streams: map[*listener]struct{}{}, mesh: map[meshKey]struct{}{},
		policies: map[Name]struct{}{}, objects: map[mesh.ObjectKey]*mesh.Object{}}
	there := 0
	t.eachRoute(func(o *mesh.Object) {
		there++
		if a := t.routes[o.Key]; a == nil || a.object != o {
			t.detach(a)
			t.follow(o)
		}
	})
	if there < len(t.routes) {
		t.forget()
	}
	t.finishChanges()
	out := &Delta{Objects: t.changes.objects, Asked: t.out.Asked}
	t.changes = nil
	return out
}

// forget detaches the routes that are gone.
func (t *translator) forget() {
	there := make(map[mesh.ObjectKey]struct{}, len(t.routes))
	t.eachRoute(func(o *mesh.Object) { there[o.Key] = struct{}{} })
	for k, a := range t.routes {
		if _, ok := there[k]; !ok {
			t.detach(a)
			delete(t.routes, k)
			delete(t.readings, k)
		}
	}
}

// detach takes a route out of where it counts; nil is none.
func (t *translator) detach(a *attachment) {
	if a == nil || a.route == nil {
		return
	}
	of := a.route.object
	for _, l := range a.listeners {
		l.attached--
		if len(a.route.streams) > 0 {
			l.streams = withoutStreams(l.streams, of)
			t.changes.streams[l] = struct{}{}
		}
	}
	for _, x := range a.hosts {
		h := x.listener.hosts[x.host]
		h.rules = without(h.rules, of)
		t.changes.hosts[x] = struct{}{}
	}
	for _, k := range a.mesh {
		h := t.mesh[k]
		h.rules, h.streams = without(h.rules, of), withoutStreams(h.streams, of)
		t.changes.mesh[k] = struct{}{}
	}
	for _, g := range a.led {
		for _, n := range a.route.backends {
			t.lead(n, g, -1)
		}
	}
}

// without is a list without the rules of a route. The list itself stays as it is:
// something may have been derived from it.
func without(list []*rule, route *mesh.Object) []*rule {
	return slices.DeleteFunc(slices.Clone(list), func(x *rule) bool { return x.route == route })
}

func withoutStreams(list []placed, route *mesh.Object) []placed {
	return slices.DeleteFunc(slices.Clone(list), func(x placed) bool { return x.rule.route == route })
}

// lead counts that a route leads from a Gateway to a Service, or no longer does.
func (t *translator) lead(n Name, g *gateway, by int) {
	if t.led[n] == nil {
		t.led[n] = map[*gateway]int{}
	}
	before := t.led[n][g]
	if t.led[n][g] = before + by; before+by == 0 {
		delete(t.led[n], g)
	}
	if t.changes != nil && len(t.policies[n]) > 0 && (before == 0 || before+by == 0) {
		t.changes.policies[n] = struct{}{}
	}
}

// finishChanges derives anew what changed.
func (t *translator) finishChanges() {
	for x := range t.changes.hosts {
		l := x.listener
		if len(l.names) == 0 {
			continue
		}
		if len(l.hosts[x.host].rules) == 0 {
			delete(l.hosts, x.host)
			delete(t.derived, l.hostKey(x.host))
			t.drop(l.hostKey(x.host))
			continue
		}
		t.finishHost(l, x.host)
	}
	for l := range t.changes.streams {
		if len(l.names) == 0 {
			continue
		}
		if len(l.streams) == 0 {
			delete(t.derived, l.streamsKey())
			t.drop(l.streamsKey())
			continue
		}
		t.finishStreams(l)
	}
	for k := range t.changes.mesh {
		if h := t.mesh[k]; len(h.rules)+len(h.streams) == 0 {
			delete(t.mesh, k)
			delete(t.derived, k.object())
			t.drop(k.object())
			continue
		}
		t.finishMesh(k)
	}
	for n := range t.changes.policies {
		t.finishPolicy(n)
	}
}

// inOrder puts the rules for connections in the order of their routes: that of
// the oldest goes first.
func inOrder(list []placed) []placed {
	return slices.SortedStableFunc(slices.Values(list), func(a, b placed) int {
		x, y := a.rule.route, b.rule.route
		if x.Key.Kind != y.Key.Kind {
			return slices.Index(routeKinds(), x.Key.Kind) - slices.Index(routeKinds(), y.Key.Kind)
		}
		return mesh.CompareObjects(x, y)
	})
}
