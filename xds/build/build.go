// Package build turns what exists into what one kind of proxy hears: pure
// functions from (catalog, endpoints, view) to xDS resources.
//
// A builder never sees a proxy. It sees a [View], a small comparable value that
// holds everything about a proxy that may change an answer. The view, projected
// to what a resource really depends on, is the key under which the engine
// (package xds) caches and shares the encoded bytes, so a key can never miss an
// input. The package does no I/O, keeps no state and knows nothing of streams.
package build

import (
	"google.golang.org/protobuf/proto"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// Endpoints reads the newest endpoint set of a service; [registry.Store]
// implements it.
type Endpoints interface {
	Endpoints(mesh.ServiceKey) *registry.EndpointSet
}

// Inputs is everything a builder may read besides the view.
type Inputs struct {
	Catalog   *registry.Catalog
	Endpoints Endpoints
	// Report takes note of a part of an object that cannot be served as written,
	// while everything else is: a patch that does not fit, for example. It may be
	// nil, is called from several goroutines, and again at every build. No result
	// depends on it.
	Report func(object *mesh.Object, field, message string)
}

// View is all that a builder may know of a proxy. It is comparable: equal views
// get equal resources. A generator's Project method reduces it to the fields
// that one resource depends on, by setting the others to their zero value.
type View struct {
	Kind    mesh.ProxyKind
	Dialect mesh.Dialect
	Cluster mesh.ClusterID
	Network mesh.NetworkID
	// NetworkView is the sorted, comma-separated list of networks that the proxy
	// wants to see; "" means all.
	NetworkView string
	// Namespace and Domain decide visibility and short host names. Domain is the
	// cluster domain, for example "cluster.local".
	Namespace string
	Domain    string
	Locality  mesh.Locality
	// Node is the Kubernetes node, for node-local services.
	Node string
	// IPv4 and IPv6 say which address families the proxy has.
	IPv4, IPv6   bool
	Interception mesh.Interception
	// DNSCapture: names are resolved for the workload, so that hosts without an
	// address are reached by one that the mesh made up.
	DNSCapture bool
	// Tracer is the tracing section of the proxy's own configuration (PROXY_CONFIG),
	// the zero value if it has none.
	Tracer Tracer
	// Tuning is what else the proxy's own settings say, see [Tuning].
	Tuning Tuning
	// Sidecar is the Sidecar object that says what the proxy sees and serves, the
	// zero value if none does.
	Sidecar ObjectName
	// Labels are those of the workload's labels that some policy looks at. Project
	// reduces them further, to those that the policies about one resource look at.
	Labels Labels
	// Patches are the patches of EnvoyFilters that are about the proxy, in the
	// order in which they apply.
	Patches PatchSet
	// Plugins are the WasmPlugins that select the proxy, in the order in which
	// requests pass those of one phase; Telemetry are the Telemetries in force, each
	// overriding the ones before it.
	Plugins, Telemetry ObjectNames
	// Inbound is what the proxy's own workload serves and is called.
	Inbound Inbound
}

// Generator makes the resources of one xDS type. Implementations are stateless
// values; all methods are pure functions of their arguments and safe for
// concurrent use.
type Generator interface {
	// TypeURL is the xDS type of the resources.
	TypeURL() string
	// List names every resource that a proxy with the view has, sorted. It
	// answers wildcard subscriptions (CDS, LDS); types that are only asked for by
	// name return nil.
	List(in Inputs, v View) []string
	// ListView projects a view to the fields that List depends on.
	ListView(v View) View
	// Project reduces a view to the fields that the named resource depends on.
	// Build(in, v, name) and Build(in, Project(in, v, name), name) are equal.
	// It depends on definitions only, never on endpoints: the engine projects anew
	// when definitions change.
	Project(in Inputs, v View, name string) View
	// Build makes one resource, or returns nil if the view has none of that
	// name. An error names the object, cluster and field at fault; the engine
	// then keeps what it sent last.
	Build(in Inputs, v View, name string) (proto.Message, error)
	// Affected tells which resources of a view a change may concern.
	Affected(in Inputs, v View, c *registry.Change) Affected
}

// Affected is an upper bound of the resources that a change concerns.
type Affected struct {
	// All means that any resource of the type may have changed.
	All bool
	// Names are the resources that may have changed, appeared or gone. A name may
	// be there that never existed.
	Names []string
}
