package registry

import (
	"hash/maphash"
	"iter"
	"maps"
	"slices"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// hostShards is the number of parts of a host table. A change copies one part
// and the list of parts, so it costs the least where both are of one size: at
// some ten thousand services.
const hostShards = 256

// hostTable finds services by host name. It is immutable; a table that differs
// by a few services shares all parts but those they are in.
type hostTable struct {
	seed  maphash.Seed
	parts *[hostShards]map[mesh.Hostname][]*mesh.Service
	len   int
}

func newHostTable() hostTable {
	return hostTable{seed: maphash.MakeSeed(), parts: new([hostShards]map[mesh.Hostname][]*mesh.Service)}
}

func (t hostTable) part(h mesh.Hostname) uint64 {
	return maphash.String(t.seed, string(h)) % hostShards
}

func (t hostTable) get(h mesh.Hostname) []*mesh.Service { return t.parts[t.part(h)][h] }

// all yields every service in no particular order.
func (t hostTable) all() iter.Seq[*mesh.Service] {
	return func(yield func(*mesh.Service) bool) {
		for _, part := range t.parts {
			for _, list := range part {
				for _, s := range list {
					if !yield(s) {
						return
					}
				}
			}
		}
	}
}

// with returns a table in which the services are changed; nil removes one.
func (t hostTable) with(changed map[mesh.ServiceKey]*mesh.Service) hostTable {
	parts := *t.parts
	var own [hostShards]bool
	t.parts = &parts
	for k, after := range changed {
		i := t.part(k.Hostname)
		if !own[i] {
			own[i] = true
			if parts[i] = maps.Clone(parts[i]); parts[i] == nil {
				parts[i] = map[mesh.Hostname][]*mesh.Service{}
			}
		}
		t.len += swap(parts[i], k.Hostname, k, after)
	}
	return t
}

// bulk is the number of changed services from which building the other indexes
// anew is cheaper than editing them.
const bulk = 64

// withServices returns a catalog that differs by one batch of services. A small
// batch costs a copy of the lists its services are in, a large one a rebuild of
// the lists by port and namespace.
func (c *Catalog) withServices(changed map[mesh.ServiceKey]*mesh.Service) *Catalog {
	n := *c
	n.hosts = c.hosts.with(changed)
	if len(changed) >= bulk {
		n.index()
		return &n
	}
	n.byPort, n.bySpace, n.scoped = maps.Clone(c.byPort), maps.Clone(c.bySpace), c.scopedWith(n.hosts, changed)
	for k, after := range changed {
		swap(n.bySpace, k.Namespace, k, after)
		for _, p := range portNumbers(c.Service(k), after) {
			onPort := after
			if onPort != nil {
				if _, ok := onPort.Port(p); !ok {
					onPort = nil
				}
			}
			swap(n.byPort, p, k, onPort)
		}
	}
	return &n
}

// index builds the lists by port and namespace from the services alone.
func (c *Catalog) index() {
	c.byPort, c.bySpace, c.scoped = map[uint16][]*mesh.Service{}, map[string][]*mesh.Service{}, map[mesh.Hostname]struct{}{}
	for _, s := range c.SortedServices() {
		c.bySpace[s.Key.Namespace] = append(c.bySpace[s.Key.Namespace], s)
		for _, p := range portNumbers(s) {
			c.byPort[p] = append(c.byPort[p], s)
		}
		if isScoped(c.Host(s.Key.Hostname)) {
			c.scoped[s.Key.Hostname] = struct{}{}
		}
	}
}

// scopedWith returns the scoped hosts of a table that differs by some services.
// The set is copied only if it differs, which it seldom does.
func (c *Catalog) scopedWith(hosts hostTable, changed map[mesh.ServiceKey]*mesh.Service) map[mesh.Hostname]struct{} {
	out, own := c.scoped, false
	for k := range changed {
		is := isScoped(hosts.get(k.Hostname))
		if _, was := out[k.Hostname]; was == is {
			continue
		}
		if !own {
			if out, own = maps.Clone(out), true; out == nil {
				out = map[mesh.Hostname]struct{}{}
			}
		}
		if is {
			out[k.Hostname] = struct{}{}
		} else {
			delete(out, k.Hostname)
		}
	}
	return out
}

// isScoped tells of all services with one host name whether namespaces may
// differ in what they see of them.
func isScoped(list []*mesh.Service) bool {
	if len(list) != 1 {
		return len(list) > 1
	}
	lead := list[0].Lead
	return lead.Private || len(lead.ExportTo) > 0 && !slices.Contains(lead.ExportTo, "*")
}

// swap replaces, adds or (after is nil) removes one service in a list of an
// index that the caller owns, without touching the list itself. It returns by
// how many the list grew.
func swap[K comparable](index map[K][]*mesh.Service, at K, k mesh.ServiceKey, after *mesh.Service) int {
	list := index[at]
	i, found := slices.BinarySearchFunc(list, k, func(s *mesh.Service, k mesh.ServiceKey) int { return s.Key.Compare(k) })
	switch {
	case found && after != nil:
		list = slices.Clone(list)
		list[i] = after
		index[at] = list
		return 0
	case found && len(list) == 1:
		delete(index, at)
		return -1
	case found:
		index[at] = append(append(make([]*mesh.Service, 0, len(list)-1), list[:i]...), list[i+1:]...)
		return -1
	case after != nil:
		index[at] = append(append(append(make([]*mesh.Service, 0, len(list)+1), list[:i]...), after), list[i:]...)
		return 1
	}
	return 0
}

// portNumbers returns every port number of the services once; nil has none.
func portNumbers(services ...*mesh.Service) []uint16 {
	var out []uint16
	for _, s := range services {
		if s == nil {
			continue
		}
		for _, p := range s.Ports {
			if !slices.Contains(out, p.Number) {
				out = append(out, p.Number)
			}
		}
	}
	return out
}
