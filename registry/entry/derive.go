package entry

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// ConflictField is what conflicts about ServiceEntries are filed under.
const ConflictField = "ServiceEntry"

// Derived is what ServiceEntries say of one host. It is immutable.
type Derived struct {
	// Definition is never nil.
	Definition *mesh.Definition
	// Endpoints are in the order of [mesh.Endpoint.Compare], without networks.
	Endpoints []mesh.Endpoint
	// Conflicts tell where the entries disagree.
	Conflicts []mesh.Conflict
}

// derive unites the entries of one namespace that define a host, oldest first.
// The oldest decides everything that there can be only one of; the others add
// ports, addresses and endpoints, unless they mean something else by the host:
// another way to find endpoints, or another side of the mesh's border.
func derive(k mesh.ServiceKey, list []*Entry, vips []netip.Addr, selected func(*Entry) []*Member) *Derived {
	u := union{key: k, lead: list[0], def: list[0].definition(k.Hostname)}
	u.def.Ports = slices.Clone(u.def.Ports)
	for _, e := range list {
		if e != u.lead && !u.add(e) {
			continue
		}
		members := slices.Concat(e.written(k.Hostname), selected(e))
		for _, m := range members {
			if reachable(u.def.Resolution, m) {
				u.endpoints = m.Endpoints(u.endpoints, u.ports(e))
			}
		}
	}
	if len(u.def.Addresses)+len(u.def.Prefixes) == 0 {
		u.def.AutoAddresses = vips
	}
	slices.SortFunc(u.endpoints, mesh.Endpoint.Compare)
	return &Derived{Definition: u.def, Conflicts: u.conflicts, Endpoints: slices.CompactFunc(u.endpoints, mesh.Endpoint.Equal)}
}

// union is one host as several entries define it.
type union struct {
	key       mesh.ServiceKey
	lead      *Entry
	def       *mesh.Definition
	endpoints []mesh.Endpoint
	conflicts []mesh.Conflict
}

// add takes in another entry, and reports false if it does not count.
func (u *union) add(e *Entry) bool {
	switch {
	case e.base.Resolution != u.def.Resolution:
		u.conflict(e, fmt.Sprintf("resolution %s counts, %s is left out", u.def.Resolution, e.base.Resolution))
		return false
	case e.base.MeshExternal != u.def.MeshExternal:
		u.conflict(e, "one is in the mesh, the other is not; the older counts")
		return false
	}
	for _, p := range e.base.Ports {
		at := slices.IndexFunc(u.def.Ports, func(have mesh.Port) bool { return have.Number == p.Number || have.Name == p.Name })
		switch {
		case at < 0:
			u.def.Ports = append(u.def.Ports, p)
		case u.def.Ports[at] != p:
			have := u.def.Ports[at]
			u.conflict(e, fmt.Sprintf("port %d (%s, %s) counts, %d (%s, %s) is left out", have.Number, have.Name, have.Protocol, p.Number, p.Name, p.Protocol))
		}
	}
	if !slices.Equal(e.base.ExportTo, u.lead.base.ExportTo) {
		u.conflict(e, fmt.Sprintf("exportTo %v counts, %v is left out", u.lead.base.ExportTo, e.base.ExportTo))
	}
	u.def.Addresses = unite(u.def.Addresses, e.base.Addresses)
	u.def.Prefixes = unite(u.def.Prefixes, e.base.Prefixes)
	u.def.Identities = unite(u.def.Identities, e.base.Identities)
	if !maps.Equal(u.def.Selector, e.Selector) {
		u.def.Selector = nil // the endpoints tell who is behind the host
	}
	return true
}

// unite appends what a list lacks; the first list is left alone.
func unite[T comparable](list, more []T) []T {
	list = slices.Clip(list)
	for _, x := range more {
		if !slices.Contains(list, x) {
			list = append(list, x)
		}
	}
	return list
}

// ports lists those ports of an entry that the host has.
func (u *union) ports(e *Entry) []mesh.Port {
	var out []mesh.Port
	for _, p := range e.base.Ports {
		if slices.ContainsFunc(u.def.Ports, func(have mesh.Port) bool { return have.Number == p.Number && have.Name == p.Name }) {
			out = append(out, p)
		}
	}
	return out
}

func (u *union) conflict(e *Entry, detail string) {
	u.conflicts = append(u.conflicts, mesh.Conflict{Service: u.key, Field: ConflictField,
		Winner: u.lead.Object.Origin.Cluster, Loser: e.Object.Origin.Cluster,
		Detail: fmt.Sprintf("%s and %s: %s", u.lead.Object.Origin, e.Object.Origin, detail)})
}
