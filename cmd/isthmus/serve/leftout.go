package serve

import (
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// leftOut keeps what resources are made without: parts of objects that cannot be
// served as written. The list of problems names each object with all its parts;
// each part is logged once for each version of its object.
type leftOut struct {
	problems *registry.Problems
	log      *zap.Logger

	mu   sync.Mutex
	list map[mesh.ObjectKey]*leftOutOf
}

// leftOutOf is what is left out of one version of an object, by field.
type leftOutOf struct {
	version string
	fields  map[string]string
}

func newLeftOut(p *registry.Problems, log *zap.Logger, metrics prometheus.Registerer) *leftOut {
	l := &leftOut{problems: p, log: log, list: map[mesh.ObjectKey]*leftOutOf{}}
	metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "isthmus_parts_left_out",
		Help: "Parts of objects that resources are made without, patches of EnvoyFilters that fit nowhere above all."},
		func() float64 { return float64(l.count()) }))
	return l
}

func (l *leftOut) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, p := range l.problems.List() { // of objects that are still there
		if o := l.list[mesh.ObjectKey{Kind: mesh.ObjectKind(p.Object.Kind), Namespace: p.Object.Namespace, Name: p.Object.Name}]; o != nil {
			n += len(o.fields)
		}
	}
	return n
}

// note takes a part that was left out. Builds repeat themselves: only the first
// word about a part counts.
func (l *leftOut) note(o *mesh.Object, field, message string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.list[o.Key]
	if x == nil || x.version != o.Version {
		x = &leftOutOf{version: o.Version, fields: map[string]string{}}
		l.list[o.Key] = x
	}
	if _, known := x.fields[field]; known {
		return
	}
	x.fields[field] = message
	l.log.Warn("a part of an object is left out", zap.Stringer("object", o.Origin), zap.String("field", field), zap.String("because", message))
	l.tell(o, x)
}

// settle takes a word about a part back, if there was one: what it said is so no
// more, though the object is the same.
func (l *leftOut) settle(o *mesh.Object, field string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.list[o.Key]
	if x == nil || x.version != o.Version || x.fields[field] == "" {
		return
	}
	delete(x.fields, field)
	if len(x.fields) == 0 {
		l.problems.Clear(o.Origin)
		return
	}
	l.tell(o, x)
}

// tell writes what is left out of an object into the list of problems. mu is held.
func (l *leftOut) tell(o *mesh.Object, x *leftOutOf) {
	fields := slices.Sorted(maps.Keys(x.fields))
	if len(fields) == 1 {
		l.problems.Set(o.Origin, fields[0], x.fields[fields[0]])
		return
	}
	var all []string
	for _, f := range fields {
		all = append(all, f+" "+x.fields[f])
	}
	l.problems.Set(o.Origin, "", strings.Join(all, "; "))
}
