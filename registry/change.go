package registry

import (
	"maps"
	"net/netip"
	"time"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Aspect says which side of a service changed.
type Aspect uint8

// Aspects of a service.
const (
	// AspectDefinition: ports, addresses, visibility; added or removed.
	AspectDefinition Aspect = 1 << iota
	// AspectEndpoints: anything about the endpoints.
	AspectEndpoints
	// AspectIdentities: the set of identities behind the service.
	AspectIdentities
)

// Has reports whether a includes any of b.
func (a Aspect) Has(b Aspect) bool { return a&b != 0 }

// Scope says what changed beyond single services.
type Scope uint8

// Scopes that may concern every resource.
const (
	// ScopeSettings: MeshConfig or MeshNetworks.
	ScopeSettings Scope = 1 << iota
	// ScopeNetworks: a cluster's network, a gateway or its address.
	ScopeNetworks
	// ScopeClusters: a cluster joined or left, or changed its trust domain.
	ScopeClusters
	// ScopeWeights: a cluster or network is drained, or no longer.
	ScopeWeights
)

// Has reports whether s includes any of o.
func (s Scope) Has(o Scope) bool { return s&o != 0 }

// WorkloadKey finds the workload of a proxy: its cluster and one of its addresses.
type WorkloadKey struct {
	Cluster mesh.ClusterID
	Addr    netip.Addr
}

// ServiceChange is one service before and after. Either side may be nil.
type ServiceChange struct {
	Aspects       Aspect
	Before, After *mesh.Service
	// Endpoints before and after; never nil.
	EndpointsBefore, EndpointsAfter *EndpointSet
}

// ObjectChange is one configuration object before and after. Either side may be
// nil.
type ObjectChange struct{ Before, After *mesh.Object }

// Change is what happened to the Store from one revision to a later one.
type Change struct {
	// Revision is the Store's revision after the change.
	Revision uint64
	// Since is when the oldest update in the change reached the Store.
	Since     time.Time
	Scope     Scope
	Services  map[mesh.ServiceKey]ServiceChange
	Objects   map[mesh.ObjectKey]ObjectChange
	Workloads map[WorkloadKey]struct{}
}

// Empty reports whether nothing changed.
func (c *Change) Empty() bool {
	return c.Scope == 0 && len(c.Services) == 0 && len(c.Objects) == 0 && len(c.Workloads) == 0
}

// Definitions reports whether anything but endpoints changed.
func (c *Change) Definitions() bool {
	if c.Scope != 0 || len(c.Objects) > 0 || len(c.Workloads) > 0 {
		return true
	}
	for _, s := range c.Services {
		if s.Aspects != AspectEndpoints {
			return true
		}
	}
	return false
}

// Merge adds a later change: it keeps the oldest before and the newest after. c
// must be the caller's own: the zero value, or one that was only merged into.
func (c *Change) Merge(later Change) {
	if c.Empty() {
		*c = later.clone()
		return
	}
	c.Revision = max(c.Revision, later.Revision)
	c.Scope |= later.Scope
	for k, s := range later.Services {
		if old, ok := c.Services[k]; ok {
			s.Before, s.EndpointsBefore = old.Before, old.EndpointsBefore
			s.Aspects |= old.Aspects
		}
		if c.Services == nil {
			c.Services = map[mesh.ServiceKey]ServiceChange{}
		}
		c.Services[k] = s
	}
	for k, o := range later.Objects {
		if old, ok := c.Objects[k]; ok {
			o.Before = old.Before
		}
		if c.Objects == nil {
			c.Objects = map[mesh.ObjectKey]ObjectChange{}
		}
		c.Objects[k] = o
	}
	c.Workloads = union(c.Workloads, later.Workloads)
}

func (c Change) clone() Change {
	c.Services = maps.Clone(c.Services)
	c.Objects = maps.Clone(c.Objects)
	c.Workloads = maps.Clone(c.Workloads)
	return c
}

func union[K comparable](a, b map[K]struct{}) map[K]struct{} {
	if len(a) == 0 {
		return maps.Clone(b)
	}
	maps.Copy(a, b)
	return a
}
