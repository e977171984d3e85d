package registry

import (
	"iter"
	"maps"
	"slices"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Cluster is what the catalog knows of a Kubernetes cluster of the mesh.
type Cluster struct {
	ID      mesh.ClusterID
	Network mesh.NetworkID
	// TrustDomain is the cluster's own, "" if it names none.
	TrustDomain string
}

// Catalog is one immutable reading of everything in the mesh except endpoints:
// services, clusters, networks, settings and the users' configuration objects.
type Catalog struct {
	// Revision is the Store's revision of this reading.
	Revision uint64
	// Primary is the cluster whose configuration counts.
	Primary  mesh.ClusterID
	Settings mesh.Settings

	hosts    hostTable
	byPort   map[uint16][]*mesh.Service
	bySpace  map[string][]*mesh.Service
	scoped   map[mesh.Hostname]struct{}
	clusters map[mesh.ClusterID]Cluster
	gateways *gatewaySet
	objects  objectTable
	// noObjects keeps what is derived of kinds that have none.
	noObjects *objectList
}

// Service returns the service with the key, or nil.
func (c *Catalog) Service(k mesh.ServiceKey) *mesh.Service {
	for _, s := range c.hosts.get(k.Hostname) {
		if s.Key.Namespace == k.Namespace {
			return s
		}
	}
	return nil
}

// Host returns the services with the host name, ordered by namespace. The slice
// is shared, as are those of OnPort and InNamespace: they must not be changed.
func (c *Catalog) Host(h mesh.Hostname) []*mesh.Service { return c.hosts.get(h) }

// OnPort returns the services that have a port with the number, ordered by key.
func (c *Catalog) OnPort(number uint16) []*mesh.Service { return c.byPort[number] }

// InNamespace returns the services of a namespace, ordered by key.
func (c *Catalog) InNamespace(ns string) []*mesh.Service { return c.bySpace[ns] }

// ScopedHosts yields, in no particular order, the host names that do not mean the
// same to every namespace whatever MeshConfig says: those of services that name
// whom they are exported to, unless that is all, and those that several
// namespaces define.
func (c *Catalog) ScopedHosts() iter.Seq[mesh.Hostname] { return maps.Keys(c.scoped) }

// Scoped reports whether a host name is one of [Catalog.ScopedHosts].
func (c *Catalog) Scoped(h mesh.Hostname) bool {
	_, ok := c.scoped[h]
	return ok
}

// Services yields all services in no particular order.
func (c *Catalog) Services() iter.Seq[*mesh.Service] { return c.hosts.all() }

// SortedServices returns all services ordered by key. It costs a sort: use it
// for debug output and first builds, not per change.
func (c *Catalog) SortedServices() []*mesh.Service {
	return slices.SortedFunc(c.Services(), compareServices)
}

// Len is the number of services.
func (c *Catalog) Len() int { return c.hosts.len }

// Cluster returns what is known of a cluster.
func (c *Catalog) Cluster(id mesh.ClusterID) (Cluster, bool) {
	k, ok := c.clusters[id]
	return k, ok
}

// Clusters returns all clusters that have reported: the primary first, then by ID.
func (c *Catalog) Clusters() []Cluster {
	out := slices.Collect(maps.Values(c.clusters))
	slices.SortFunc(out, func(a, b Cluster) int { return mesh.CompareClusters(c.Primary, a.ID, b.ID) })
	return out
}

// Networks returns the networks that have a gateway, sorted.
func (c *Catalog) Networks() []mesh.NetworkID { return slices.Sorted(maps.Keys(c.gateways.all)) }

// Gateways returns all gateways of a network, also those whose host name has no
// address yet (Addr is then the zero value), in a fixed order. The slice is
// shared: it must not be changed.
func (c *Catalog) Gateways(n mesh.NetworkID) []mesh.NetworkGateway { return c.gateways.all[n] }

// GatewaysFor returns the gateways through which endpoints of a cluster on a
// network are reached: the cluster's own on that network if it has any, else
// all of the network. Only gateways that can be dialled are in it, each address
// once: one whose name is not resolved yet does not stand in the way of the
// others. The slice is shared: it must not be changed.
func (c *Catalog) GatewaysFor(n mesh.NetworkID, id mesh.ClusterID) []mesh.NetworkGateway {
	if own := c.gateways.own[networkCluster{n, id}]; len(own) > 0 {
		return own
	}
	return c.gateways.dialable[n]
}

// WeightScale is the number that endpoint weights are multiplied by, so that
// any weight divides evenly over the gateways that stand for the endpoint: the
// least common multiple of the gateway counts of all networks and clusters, in
// all and by address family.
func (c *Catalog) WeightScale() uint32 { return c.gateways.scale }

// RootNamespace is the namespace of mesh-wide configuration.
func (c *Catalog) RootNamespace() string { return c.Settings.Mesh.GetRootNamespace() }

// TrustDomain is the trust domain of the mesh.
func (c *Catalog) TrustDomain() string { return c.Settings.Mesh.GetTrustDomain() }

// Conflicts lists every disagreement between clusters, ordered by service.
func (c *Catalog) Conflicts() []mesh.Conflict {
	var out []mesh.Conflict
	for _, s := range c.SortedServices() {
		out = append(out, s.Conflicts...)
	}
	return out
}

func compareServices(a, b *mesh.Service) int { return a.Key.Compare(b.Key) }
