package serve

import (
	"maps"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// leftOut keeps what resources are made without: parts of objects that cannot be
// served as written. The list of problems names each object with all its parts;
// each part is logged once for each reading of its object. What was said of an
// object is over when it reads differently, or is gone.
type leftOut struct {
	problems *registry.Problems
	// object is the newest reading of an object, nil if there is none.
	object func(mesh.ObjectKey) *mesh.Object
	log    *zap.Logger

	mu   sync.Mutex
	list map[mesh.ObjectKey]*leftOutOf
}

// leftOutOf is what is left out of one reading of an object, by field.
type leftOutOf struct {
	object *mesh.Object
	fields map[string]string
}

func newLeftOut(p *registry.Problems, object func(mesh.ObjectKey) *mesh.Object, log *zap.Logger, metrics prometheus.Registerer) *leftOut {
	l := &leftOut{problems: p, object: object, log: log, list: map[mesh.ObjectKey]*leftOutOf{}}
	metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "isthmus_parts_left_out",
		Help: "Parts of objects that resources are made without, patches of EnvoyFilters that fit nowhere above all."},
		func() float64 { return float64(l.count()) }))
	return l
}

// readsAs reports whether two readings of an object say the same to those who make
// resources of it: a status that was written is no reason to forget what is wrong.
func readsAs(a, b *mesh.Object) bool {
	return a == b || a.Origin == b.Origin && a.Created.Equal(b.Created) && maps.Equal(a.Labels, b.Labels) &&
		maps.Equal(a.Annotations, b.Annotations) && proto.Equal(a.Spec, b.Spec)
}

func (l *leftOut) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, x := range l.list {
		n += len(x.fields)
	}
	return n
}

// note takes a part that was left out. Builds repeat themselves: only the first
// word about a part counts. One about a reading that is old says nothing.
func (l *leftOut) note(o *mesh.Object, field, message string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := l.object(o.Key); now == nil || !readsAs(now, o) {
		return
	}
	x := l.list[o.Key]
	if x == nil || !readsAs(x.object, o) {
		x = &leftOutOf{object: o, fields: map[string]string{}}
		l.list[o.Key] = x
	}
	if _, known := x.fields[field]; known {
		return
	}
	x.fields[field] = message
	l.log.Warn("a part of an object is left out", zap.Stringer("object", o.Origin), zap.String("field", field), zap.String("because", message))
	l.tell(x)
}

// settle takes a word about a part back, if there was one: what it said is so no
// more, though the object is the same.
func (l *leftOut) settle(o *mesh.Object, field string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.list[o.Key]
	if x == nil || x.fields[field] == "" {
		return
	}
	delete(x.fields, field)
	l.tell(x)
	if len(x.fields) == 0 {
		delete(l.list, o.Key)
	}
}

// changed forgets what was left out of objects that read differently now. It runs
// before anybody makes resources of them.
func (l *leftOut) changed(c registry.Change) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.list) == 0 {
		return
	}
	for k := range c.Objects {
		x := l.list[k]
		if x == nil {
			continue
		}
		if now := l.object(k); now == nil || !readsAs(now, x.object) {
			l.problems.SetParts(x.object.Origin, 0, nil)
			delete(l.list, k)
		}
	}
}

// tell writes what is left out of an object into the list of problems. mu is held.
func (l *leftOut) tell(x *leftOutOf) {
	var parts []registry.Part
	for _, f := range slices.Sorted(maps.Keys(x.fields)) {
		parts = append(parts, registry.Part{Field: f, Message: x.fields[f]})
	}
	l.problems.SetParts(x.object.Origin, x.object.Generation, parts)
}
