package registry

import (
	"cmp"
	"iter"
	"slices"
	"sort"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// EndpointSet holds the endpoints of one service in all clusters, sorted. It is
// immutable.
type EndpointSet struct {
	// Revision is the Store's revision at which the set was published.
	Revision   uint64
	all        []mesh.Endpoint
	identities []mesh.Identity
}

// newEndpointSet takes ownership of all, which is sorted.
func newEndpointSet(revision uint64, all []mesh.Endpoint) *EndpointSet {
	var ids []mesh.Identity // few: usually one per service
	var last mesh.Identity
	for i := range all {
		id := all[i].Workload.Identity
		if id == last || id.IsZero() {
			continue
		}
		last = id
		if at, there := slices.BinarySearchFunc(ids, id, compareIdentities); !there {
			ids = slices.Insert(ids, at, id)
		}
	}
	return &EndpointSet{Revision: revision, all: all, identities: ids}
}

func compareIdentities(a, b mesh.Identity) int {
	return cmp.Or(cmp.Compare(a.TrustDomain, b.TrustDomain), cmp.Compare(a.Namespace, b.Namespace),
		cmp.Compare(a.ServiceAccount, b.ServiceAccount))
}

// Len is the number of endpoints over all ports.
func (s *EndpointSet) Len() int { return len(s.all) }

// All yields every endpoint, ordered by [mesh.Endpoint.Compare].
func (s *EndpointSet) All() iter.Seq[mesh.Endpoint] { return slices.Values(s.all) }

// Port returns the endpoints of one service port by its name. The slice is
// shared: it must not be changed.
func (s *EndpointSet) Port(name string) []mesh.Endpoint {
	lo := sort.Search(len(s.all), func(i int) bool { return s.all[i].PortName >= name })
	hi := lo + sort.Search(len(s.all)-lo, func(i int) bool { return s.all[lo+i].PortName > name })
	return s.all[lo:hi:hi]
}

// Identities lists who is behind the service, sorted and without duplicates.
// The slice is shared: it must not be changed.
func (s *EndpointSet) Identities() []mesh.Identity { return s.identities }

func (s *EndpointSet) equal(o *EndpointSet) bool {
	return slices.EqualFunc(s.all, o.all, mesh.Endpoint.Equal)
}
