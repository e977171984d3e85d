package registry

import (
	"maps"
	"net/netip"
	"slices"

	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry/entry"
)

// networkRules is what meshNetworks says about where endpoints are.
type networkRules struct {
	primary    mesh.ClusterID
	byRegistry map[mesh.ClusterID]mesh.NetworkID
	cidrs      []networkCIDR // longest prefix first
}

type networkCIDR struct {
	prefix  netip.Prefix
	network mesh.NetworkID
}

// parseNetworkRules reads the endpoints entries of meshNetworks. Of two networks
// that claim the same cluster or CIDR the first by name wins. Entries that do
// not parse are left out: registry/config refuses them by name before they get
// here.
func parseNetworkRules(primary mesh.ClusterID, n *meshconfig.MeshNetworks) networkRules {
	r := networkRules{primary: primary, byRegistry: map[mesh.ClusterID]mesh.NetworkID{}}
	for _, name := range slices.Sorted(maps.Keys(n.GetNetworks())) {
		for _, e := range n.Networks[name].GetEndpoints() {
			id := mesh.ClusterID(e.GetFromRegistry())
			if _, taken := r.byRegistry[id]; id != "" && !taken {
				r.byRegistry[id] = mesh.NetworkID(name)
			}
			if p, err := netip.ParsePrefix(e.GetFromCidr()); err == nil {
				r.cidrs = append(r.cidrs, networkCIDR{p.Masked(), mesh.NetworkID(name)})
			}
		}
	}
	slices.SortStableFunc(r.cidrs, func(a, b networkCIDR) int { return b.prefix.Bits() - a.prefix.Bits() })
	return r
}

// of says where an endpoint's address is routable: the workload's label, then
// the cluster's network, then meshNetworks by registry, then by CIDR (pods
// only, as in istiod). The longest matching prefix wins. What the primary says of
// machines is about the whole mesh, so their network is the one they name or
// unknown; a remote cluster's are on its network.
func (r networkRules) of(id mesh.ClusterID, clusterNetwork mesh.NetworkID, e mesh.Endpoint) mesh.NetworkID {
	if n := e.Workload.NetworkLabel; n != "" {
		return n
	}
	if k := e.Workload.Kind; k == entry.KindInline || k == entry.KindMachine && id == r.primary {
		return ""
	}
	if clusterNetwork != "" {
		return clusterNetwork
	}
	if n := r.byRegistry[id]; n != "" {
		return n
	}
	if e.Workload.Kind == entry.KindMachine {
		return ""
	}
	for _, c := range r.cidrs {
		if c.prefix.Contains(e.Addr.Unmap()) {
			return c.network
		}
	}
	return ""
}
