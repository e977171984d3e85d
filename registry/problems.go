package registry

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Problem is an object that is not served as written, and why.
type Problem struct {
	Object mesh.ObjectRef `json:"object"`
	// Field is the path of the field at fault, "" if it is the whole object.
	Field string `json:"field,omitempty"`
	// Message says what is wrong and how to put it right.
	Message string `json:"message"`
	// Parts are what is left out of an object that is served otherwise, by field.
	// Without any the object is refused: what was known of it before stays.
	Parts []Part `json:"parts,omitempty"`
	// Generation is that of the object whose parts are left out, 0 if it has none.
	Generation int64     `json:"generation,omitempty"`
	Since      time.Time `json:"since"`
}

// Part is a part of an object that is left out, and why.
type Part struct {
	Field   string `json:"field,omitempty"`
	Message string `json:"message"`
}

// Problems is the list of quarantined objects of all sources. Of one object it has
// at most one refusal, the newest, and the parts that are left out of what is
// served of it; a refusal is told before parts. It is safe for concurrent use.
type Problems struct {
	now func() time.Time

	mu        sync.Mutex
	list      map[mesh.ObjectRef]Problem
	parts     map[mesh.ObjectRef]Problem
	listeners map[int]func()
	lastID    int
}

// NewProblems returns an empty list; clock may be nil.
func NewProblems(clock func() time.Time) *Problems {
	if clock == nil {
		clock = time.Now
	}
	return &Problems{now: clock, list: map[mesh.ObjectRef]Problem{}, parts: map[mesh.ObjectRef]Problem{}, listeners: map[int]func(){}}
}

// OnChange calls f whenever the list may read differently, until cancel is called.
// f may run on any goroutine, beside itself, and must return at once.
func (p *Problems) OnChange(f func()) (cancel func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lastID++
	id := p.lastID
	p.listeners[id] = f
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.listeners, id)
	}
}

// change changes the list, and tells the listeners if anything is different.
func (p *Problems) change(f func() bool) bool {
	p.mu.Lock()
	changed := f()
	var tell []func()
	if changed {
		tell = slices.Collect(maps.Values(p.listeners))
	}
	p.mu.Unlock()
	for _, listener := range tell {
		listener()
	}
	return changed
}

// Set records a problem and reports whether it is new or reads differently now,
// so that the caller logs it once.
func (p *Problems) Set(ref mesh.ObjectRef, field, message string) bool {
	return p.change(func() bool { return p.put(p.list, Problem{Object: ref, Field: field, Message: message}) })
}

// SetParts records the parts of an object that are left out, which replace those
// of before; without any there is nothing left out. A single part is the problem,
// of several the message tells all.
func (p *Problems) SetParts(ref mesh.ObjectRef, generation int64, parts []Part) {
	x := Problem{Object: ref, Generation: generation, Parts: parts}
	if len(parts) == 1 {
		x.Field, x.Message = parts[0].Field, parts[0].Message
	} else {
		all := make([]string, len(parts))
		for i, part := range parts {
			all[i] = part.Field + " " + part.Message
		}
		x.Message = strings.Join(all, "; ")
	}
	p.change(func() bool {
		if len(parts) == 0 {
			return remove(p.parts, ref)
		}
		return p.put(p.parts, x)
	})
}

// put puts a problem into a list and reports whether it reads differently. mu is
// held.
func (p *Problems) put(list map[mesh.ObjectRef]Problem, x Problem) bool {
	old, had := list[x.Object]
	if had && old.Field == x.Field && old.Message == x.Message && old.Generation == x.Generation && slices.Equal(old.Parts, x.Parts) {
		return false
	}
	if x.Since = p.now(); had {
		x.Since = old.Since
	}
	list[x.Object] = x
	return true
}

func remove(list map[mesh.ObjectRef]Problem, ref mesh.ObjectRef) bool {
	_, had := list[ref]
	delete(list, ref)
	return had
}

// Clear removes the refusal of an object that is well or gone, and reports
// whether there was one.
func (p *Problems) Clear(ref mesh.ObjectRef) bool {
	return p.change(func() bool { return remove(p.list, ref) })
}

// ClearCluster removes all problems of a cluster that left.
func (p *Problems) ClearCluster(id mesh.ClusterID) {
	p.change(func() bool {
		changed := false
		for _, list := range []map[mesh.ObjectRef]Problem{p.list, p.parts} {
			for ref := range list {
				if ref.Cluster == id {
					delete(list, ref)
					changed = true
				}
			}
		}
		return changed
	})
}

// List returns all problems ordered by object.
func (p *Problems) List() []Problem {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]Problem, 0, len(p.list)+len(p.parts))
	for _, x := range p.list {
		out = append(out, x)
	}
	for ref, x := range p.parts {
		if _, refused := p.list[ref]; !refused {
			out = append(out, x)
		}
	}
	slices.SortFunc(out, func(a, b Problem) int { return strings.Compare(a.Object.String(), b.Object.String()) })
	return out
}
