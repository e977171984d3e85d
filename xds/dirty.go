package xds

import "maps"

// dirtySet is what a stream still has to be told about one type. It is a set,
// not a queue: it never holds more than the proxy is subscribed to, and a slow
// proxy skips to the newest state.
type dirtySet struct {
	// all: everything selected.
	all bool
	// answer: a response is owed even if there is nothing to put into it.
	answer bool
	// few holds the names while they are few, many once they are not. Explicit
	// names were asked for by the proxy.
	few  []dirtyName
	many map[string]bool
}

type dirtyName struct {
	name     string
	explicit bool
}

// maxFew is how many names a list holds before it becomes a map.
const maxFew = 8

func (d *dirtySet) empty() bool {
	return !d.all && !d.answer && len(d.few) == 0 && len(d.many) == 0
}

func (d *dirtySet) add(name string, explicit bool) {
	if d.many != nil {
		d.many[name] = d.many[name] || explicit
		return
	}
	for i := range d.few {
		if d.few[i].name == name {
			d.few[i].explicit = d.few[i].explicit || explicit
			return
		}
	}
	if len(d.few) < maxFew {
		d.few = append(d.few, dirtyName{name, explicit})
		return
	}
	d.many = make(map[string]bool, 4*maxFew)
	for _, n := range d.few {
		d.many[n.name] = n.explicit
	}
	d.many[name] = explicit
	d.few = nil
}

func (d *dirtySet) has(name string) bool {
	if d.many != nil {
		_, ok := d.many[name]
		return ok
	}
	for i := range d.few {
		if d.few[i].name == name {
			return true
		}
	}
	return false
}

// each yields the names in no particular order.
func (d *dirtySet) each(yield func(name string, explicit bool) bool) {
	if d.many != nil {
		maps.All(d.many)(yield)
		return
	}
	for _, n := range d.few {
		if !yield(n.name, n.explicit) {
			return
		}
	}
}

func (d *dirtySet) len() int { return len(d.few) + len(d.many) }
