package registry

import (
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
	Message string    `json:"message"`
	Since   time.Time `json:"since"`
}

// Problems is the list of quarantined objects of all sources. One object has at
// most one problem: the newest. It is safe for concurrent use.
type Problems struct {
	now func() time.Time

	mu   sync.Mutex
	list map[mesh.ObjectRef]Problem
}

// NewProblems returns an empty list; clock may be nil.
func NewProblems(clock func() time.Time) *Problems {
	if clock == nil {
		clock = time.Now
	}
	return &Problems{now: clock, list: map[mesh.ObjectRef]Problem{}}
}

// Set records a problem and reports whether it is new or reads differently now,
// so that the caller logs it once.
func (p *Problems) Set(ref mesh.ObjectRef, field, message string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	old, had := p.list[ref]
	if had && old.Field == field && old.Message == message {
		return false
	}
	since := p.now()
	if had {
		since = old.Since
	}
	p.list[ref] = Problem{Object: ref, Field: field, Message: message, Since: since}
	return true
}

// Clear removes the problem of an object that is well or gone, and reports
// whether there was one.
func (p *Problems) Clear(ref mesh.ObjectRef) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, had := p.list[ref]
	delete(p.list, ref)
	return had
}

// ClearCluster removes all problems of a cluster that left.
func (p *Problems) ClearCluster(id mesh.ClusterID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for ref := range p.list {
		if ref.Cluster == id {
			delete(p.list, ref)
		}
	}
}

// List returns all problems ordered by object.
func (p *Problems) List() []Problem {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]Problem, 0, len(p.list))
	for _, x := range p.list {
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b Problem) int { return strings.Compare(a.Object.String(), b.Object.String()) })
	return out
}
