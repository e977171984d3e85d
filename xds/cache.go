package xds

import (
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/proto"

	"github.com/isthmus-mesh/isthmus/xds/build"
)

// Encoder is an optional side of a [build.Generator] that gives the encoded
// message directly, appended to dst. It reports false if the view has no
// resource of that name.
type Encoder interface {
	Encode(in build.Inputs, v build.View, name string, dst []byte) ([]byte, bool, error)
}

// AffectedViewer is an optional side of a [build.Generator]: it projects a view
// to the fields that Affected depends on, so that the engine asks once for all
// views that agree in them.
type AffectedViewer interface {
	AffectedView(v build.View) build.View
}

// Wildcarder is an optional side of a [build.Generator] that tells whether a
// first request without names asks for everything. Without it only CDS and LDS do.
type Wildcarder interface {
	Wildcard() bool
}

// slot holds what is alive of one type for one projected view.
type slot struct {
	kind    *kind
	view    build.View
	entries map[string]*entry
	facets  map[uint64]*facet
}

// entry is one resource for one projected view: the unit that is built, cached
// and shared. It lives as long as a facet has it.
type entry struct {
	slot *slot
	name string

	// current is nil before the first build, [absent] if there is no such resource.
	current atomic.Pointer[Resource]

	// Guarded by graph.mu.
	facets []*facet
	pass   uint64    // the pass that refreshed the entry last
	before *Resource // current when that pass began

	mu  sync.Mutex // held while building
	err string     // why the last build failed, "" if it did not
}

// get returns the resource, built if it never was. The result is nil if the
// first build failed: what the resource is, is then not known.
func (e *entry) get(b *builder) *Resource {
	if r := e.current.Load(); r != nil {
		return r
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if r := e.current.Load(); r != nil {
		return r
	}
	e.build(b)
	return e.current.Load()
}

// rebuild builds the resource again if it was ever built, and reports whether
// it changed. Inputs are read under the lock, so of two builds the later one
// never has older inputs.
func (e *entry) rebuild(b *builder) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	old := e.current.Load()
	if old == nil && e.err == "" {
		return false // whoever needs it first builds it from the newest inputs
	}
	e.build(b)
	return !same(old, e.current.Load())
}

func same(a, b *Resource) bool {
	return a == b || a.exists() && b.exists() && a.hash == b.hash
}

func (e *entry) build(b *builder) {
	r, err := b.build(e.slot.kind, e.slot.view, e.name)
	if err != nil {
		if msg := err.Error(); msg != e.err {
			e.err = msg
			b.report(e, err)
		}
		return // the last good one stays
	}
	e.err = ""
	if old := e.current.Load(); old != nil && same(old, r) {
		return
	}
	e.current.Store(r)
}

// failure returns why the resource could not be built from the newest inputs.
func (e *entry) failure() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.err
}

// builder calls generators. A generator that panics costs the one resource it
// was building.
type builder struct {
	inputs  func() build.Inputs
	metrics *metrics
	report  func(e *entry, err error)
	scratch sync.Pool // *[]byte
}

// panicError is a panic of a generator.
type panicError struct {
	value any
	stack []byte
}

func (p *panicError) Error() string { return fmt.Sprintf("internal error: %v", p.value) }

// guard turns a panic of f into an error.
func (b *builder) guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			b.metrics.internalErrors.Inc()
			err = &panicError{p, debug.Stack()}
		}
	}()
	return f()
}

func (b *builder) build(k *kind, v build.View, name string) (r *Resource, err error) {
	k.builds.Inc()
	err = b.guard(func() error {
		in := b.inputs()
		buf, _ := b.scratch.Get().(*[]byte)
		if buf == nil {
			buf = new([]byte)
		}
		defer b.scratch.Put(buf)
		var ok bool
		var err error
		*buf, ok, err = encode(k, in, v, name, (*buf)[:0])
		switch {
		case err != nil:
			return err
		case !ok:
			r = absent
		default:
			r = newResource(k.typeURL, name, in.Catalog.Revision, *buf)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("build %s %q: %w", k.short, name, err)
	}
	return r, nil
}

func encode(k *kind, in build.Inputs, v build.View, name string, dst []byte) ([]byte, bool, error) {
	if k.encoder != nil {
		return k.encoder.Encode(in, v, name, dst)
	}
	m, err := k.gen.Build(in, v, name)
	if err != nil || isNil(m) {
		return dst, false, err
	}
	dst, err = proto.MarshalOptions{Deterministic: true}.MarshalAppend(dst, m)
	return dst, true, err
}

// isNil also recognises a typed nil pointer.
func isNil(m proto.Message) bool { return m == nil || !m.ProtoReflect().IsValid() }

// list, project and affected call the generator's other methods. What cannot be
// told because of a panic is answered on the safe side.

// list reports false if the names cannot be told.
func (b *builder) list(k *kind, in build.Inputs, v build.View) (names []string, ok bool) {
	err := b.guard(func() error { names = k.gen.List(in, v); return nil })
	return names, err == nil
}

func (b *builder) project(k *kind, in build.Inputs, v build.View, name string) (p build.View) {
	if b.guard(func() error { p = k.gen.Project(in, v, name); return nil }) != nil {
		return v // a view always projects to itself, at the cost of sharing
	}
	return p
}
