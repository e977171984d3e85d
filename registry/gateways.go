package registry

import (
	"maps"
	"net/netip"
	"slices"

	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// maxWeightScale bounds the common multiple that weights are scaled by. Beyond
// it weights are scaled by the bound itself, and a split may be off by less
// than one part in it.
const maxWeightScale = 5040

// gatewaySet is every network gateway of the mesh, immutable, with the lists
// that choosing endpoints asks for once per endpoint.
type gatewaySet struct {
	all map[mesh.NetworkID][]mesh.NetworkGateway
	// dialable are those of all with an address and a port, each address once;
	// own are the same by the cluster that the gateway runs in.
	dialable map[mesh.NetworkID][]mesh.NetworkGateway
	own      map[networkCluster][]mesh.NetworkGateway
	scale    uint32
}

type networkCluster struct {
	network mesh.NetworkID
	cluster mesh.ClusterID
}

// newGatewaySet sorts the gateways and removes repetitions: the result does not
// depend on the order of the list.
func newGatewaySet(list []mesh.NetworkGateway) *gatewaySet {
	slices.SortFunc(list, mesh.CompareGateways)
	list = slices.CompactFunc(list, sameGateway)
	s := &gatewaySet{all: map[mesh.NetworkID][]mesh.NetworkGateway{}, dialable: map[mesh.NetworkID][]mesh.NetworkGateway{},
		own: map[networkCluster][]mesh.NetworkGateway{}, scale: 1}
	for _, g := range list {
		s.all[g.Network] = append(s.all[g.Network], g)
		if !g.Addr.IsValid() || g.Port == 0 {
			continue
		}
		// Sorted by address and port first, so what is dialled alike are neighbours.
		s.dialable[g.Network] = appendAddress(s.dialable[g.Network], g)
		if g.Cluster != "" {
			k := networkCluster{g.Network, g.Cluster}
			s.own[k] = appendAddress(s.own[k], g)
		}
	}
	for _, l := range s.dialable {
		s.scale = scaleFor(s.scale, l)
	}
	for _, l := range s.own {
		s.scale = scaleFor(s.scale, l)
	}
	s.scale = min(s.scale, maxWeightScale)
	return s
}

// appendAddress adds a gateway unless the last one is dialled alike.
func appendAddress(list []mesh.NetworkGateway, g mesh.NetworkGateway) []mesh.NetworkGateway {
	if n := len(list); n > 0 && list[n-1].Addr == g.Addr && list[n-1].Port == g.Port {
		return list
	}
	return append(list, g)
}

func (s *gatewaySet) equal(o *gatewaySet) bool {
	return maps.EqualFunc(s.all, o.all, slices.Equal[[]mesh.NetworkGateway])
}

// sameGateway reports whether two gateways are dialled alike and stand for the
// same endpoints; which object they came from does not matter.
func sameGateway(a, b mesh.NetworkGateway) bool {
	return a.Network == b.Network && a.Cluster == b.Cluster && a.Addr == b.Addr && a.Port == b.Port && a.Host == b.Host
}

// scaleFor extends a common multiple by the numbers of gateways that may stand
// for one endpoint: all of a list, or those of one address family.
func scaleFor(scale uint32, list []mesh.NetworkGateway) uint32 {
	var v4 uint32
	for _, g := range list {
		if g.Addr.Is4() {
			v4++
		}
	}
	n := uint32(len(list))
	return lcm(lcm(lcm(scale, n), v4), n-v4)
}

func lcm(a, b uint32) uint32 {
	if b == 0 || a > maxWeightScale {
		return a
	}
	x, y := a, b
	for y != 0 {
		x, y = y, x%y
	}
	return a / x * b
}

// gatewayServices reports whether a touched service is one that meshNetworks
// names as a gateway.
func (b *batch) gatewayServices() bool {
	for _, n := range b.store.settings.Networks.GetNetworks() {
		for _, g := range n.GetGateways() {
			host := mesh.Hostname(g.GetRegistryServiceName())
			if host == "" {
				continue
			}
			for k := range b.services {
				if k.Hostname == host {
					return true
				}
			}
		}
	}
	return false
}

// mergeGateways unites the gateways that clusters report with those that
// meshNetworks names. The catalog's services must be up to date.
func (s *Store) mergeGateways(c *Catalog) *gatewaySet {
	var all []mesh.NetworkGateway
	for _, sh := range s.shards {
		for _, g := range sh.state.Gateways {
			all = append(all, s.resolve(g)...)
		}
	}
	for name, n := range s.settings.Networks.GetNetworks() {
		for _, g := range s.configured(c, mesh.NetworkID(name), n) {
			all = append(all, s.resolve(g)...)
		}
	}
	return newGatewaySet(all)
}

// configured lists the gateways that meshNetworks names for a network: fixed
// addresses, and the external addresses of a Service (registryServiceName) in
// the clusters that fromRegistry names.
func (s *Store) configured(c *Catalog, id mesh.NetworkID, n *meshconfig.Network) []mesh.NetworkGateway {
	var out []mesh.NetworkGateway
	for _, g := range n.GetGateways() {
		port := uint16(g.GetPort())
		if addr := g.GetAddress(); addr != "" {
			out = append(out, mesh.NetworkGateway{Network: id, Host: addr, Port: port,
				Origin: mesh.ObjectRef{Cluster: s.primary, Kind: "MeshNetworks", Name: string(id)}})
			continue
		}
		for _, svc := range c.Host(mesh.Hostname(g.GetRegistryServiceName())) {
			for _, e := range n.GetEndpoints() {
				out = append(out, externalGateways(id, mesh.ClusterID(e.GetFromRegistry()), svc, port)...)
			}
		}
	}
	return out
}

// externalGateways makes a gateway of every external address that a service has
// in a cluster.
func externalGateways(network mesh.NetworkID, id mesh.ClusterID, svc *mesh.Service, port uint16) []mesh.NetworkGateway {
	d := svc.In[id]
	if d == nil {
		return nil
	}
	out := make([]mesh.NetworkGateway, len(d.External))
	for i, addr := range d.External {
		out[i] = mesh.NetworkGateway{Network: network, Cluster: id, Host: addr, Port: port, Origin: d.Origin}
	}
	return out
}

// resolve gives a gateway its addresses: one entry per address of its host, or
// one entry without an address while the host is not resolved.
func (s *Store) resolve(g mesh.NetworkGateway) []mesh.NetworkGateway {
	if a, err := netip.ParseAddr(g.Host); err == nil {
		g.Addr = a.Unmap()
		return []mesh.NetworkGateway{g}
	}
	addrs := s.resolved[g.Host]
	if len(addrs) == 0 {
		return []mesh.NetworkGateway{g}
	}
	out := make([]mesh.NetworkGateway, len(addrs))
	for i, a := range addrs {
		out[i] = g
		out[i].Addr = a
	}
	return out
}
