package registry

import (
	"maps"
	"slices"
	"sync"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// objectTable holds the users' configuration objects of one reading, by kind.
// It is immutable; a table that differs by a few objects shares the lists of all
// kinds that they are not of, and everything derived from those.
type objectTable map[mesh.ObjectKind]*objectList

// objectList is all objects of one kind.
type objectList struct {
	oldestFirst []*mesh.Object
	byKey       map[mesh.ObjectKey]*mesh.Object
	derived     sync.Map // a nil *T -> *once[T]
}

// once is a value that is made when it is first asked for.
type once[T any] struct {
	sync.Once
	value T
}

// Objects returns the primary's configuration objects of a kind, oldest first.
// The slice is shared: it must not be changed.
func (c *Catalog) Objects(kind mesh.ObjectKind) []*mesh.Object {
	if l := c.objects[kind]; l != nil {
		return l.oldestFirst
	}
	return nil
}

// Object returns the primary's configuration object with the key, or nil.
func (c *Catalog) Object(k mesh.ObjectKey) *mesh.Object {
	if l := c.objects[k.Kind]; l != nil {
		return l.byKey[k]
	}
	return nil
}

// Derived returns what derive makes of the catalog's objects of a kind, oldest
// first. It is made once and kept for as long as no object of the kind changes,
// whatever else does, so derive must depend on nothing but its argument. T says
// which of several derived values of a kind is meant: each needs a type of its
// own.
func Derived[T any](c *Catalog, kind mesh.ObjectKind, derive func([]*mesh.Object) T) T {
	l := c.objects[kind]
	if l == nil {
		if l = c.noObjects; l == nil { // no Store made the catalog
			return derive(nil)
		}
	}
	cell, ok := l.derived.Load((*T)(nil))
	if !ok {
		cell, _ = l.derived.LoadOrStore((*T)(nil), &once[T]{})
	}
	o := cell.(*once[T])
	o.Do(func() { o.value = derive(l.oldestFirst) })
	return o.value
}

// with returns a table in which some objects are changed; nil removes one.
func (t objectTable) with(changed map[mesh.ObjectKey]*mesh.Object) objectTable {
	out := maps.Clone(t)
	if out == nil {
		out = objectTable{}
	}
	own := map[mesh.ObjectKind]*objectList{}
	for k, after := range changed {
		l := own[k.Kind]
		if l == nil {
			l = &objectList{byKey: map[mesh.ObjectKey]*mesh.Object{}}
			if old := t[k.Kind]; old != nil {
				l.oldestFirst, l.byKey = slices.Clone(old.oldestFirst), maps.Clone(old.byKey)
			}
			own[k.Kind], out[k.Kind] = l, l
		}
		l.set(k, after)
	}
	return out
}

// set replaces, adds or removes one object of a list that nobody else has yet.
func (l *objectList) set(k mesh.ObjectKey, after *mesh.Object) {
	if before := l.byKey[k]; before != nil {
		if i, ok := slices.BinarySearchFunc(l.oldestFirst, before, mesh.CompareObjects); ok {
			l.oldestFirst = slices.Delete(l.oldestFirst, i, i+1)
		}
		delete(l.byKey, k)
	}
	if after != nil {
		i, _ := slices.BinarySearchFunc(l.oldestFirst, after, mesh.CompareObjects)
		l.oldestFirst = slices.Insert(l.oldestFirst, i, after)
		l.byKey[k] = after
	}
}
