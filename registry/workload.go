package registry

import (
	"net/netip"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// WorkloadOf returns the workload of a proxy in a cluster: the one of its name
// among those that have one of its addresses. A proxy that is not called as its
// workload gets the one that has an address for itself. Pods on the network of
// their host share an address: of several, none is taken for a name that is not
// theirs, since what the proxy says of itself is nearer to the truth. nil if
// none is known (yet).
func (s *Store) WorkloadOf(id mesh.ClusterID, addrs []netip.Addr, namespace, name string) *mesh.Workload {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range addrs {
		for _, w := range s.byAddr[WorkloadKey{id, a}] {
			if w.Namespace == namespace && w.Name == name {
				return w
			}
		}
	}
	for _, a := range addrs {
		if list := s.byAddr[WorkloadKey{id, a}]; len(list) == 1 || len(list) > 1 && !list[0].HostNetwork {
			return list[0]
		}
	}
	return nil
}
