// Package registry knows what exists: it merges what the sources of all
// clusters report into one catalog of services and one endpoint cell per
// service, and tells listeners what changed.
//
// It owns the [Store], the [Source] and [Sink] contract that clusters are read
// through, the immutable [Catalog] and the change feed. It does not know where
// the states come from: registry/kube reads Kubernetes API servers,
// registry/file folders of YAML, registry/config the users' configuration.
package registry

import (
	"context"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Source reads one cluster and reports it to a sink until the context ends.
//
// A source reports nothing until it has read the cluster completely once; then
// it calls [Sink.Replace] with everything and from there on [Sink.Apply] with
// what changes. A source that loses contact says nothing: what it reported
// stays true until it knows better.
type Source interface {
	Run(ctx context.Context, to Sink) error
}

// Sink takes the states that one source instance reports. Every instance of a
// source has a sink of its own: a sink whose cluster was taken over by a newer
// one (credential rotation) is inert, so a slow old instance cannot overwrite
// what a new one reported. All methods may be called from any goroutine, but
// one source calls them one after the other.
type Sink interface {
	// Replace sets the whole state of the cluster: what is absent is gone. The
	// first Replace of a sink takes the cluster over from any earlier sink.
	Replace(Update)
	// Apply changes what the update names and leaves everything else. It has no
	// effect before the first Replace.
	Apply(Update)
	// Close ends the sink. Keep leaves what was reported in place, Drop removes
	// the cluster if this sink still owns it, also after an earlier Close with
	// Keep.
	Close(Disposition)
}

// Disposition says what becomes of a cluster's state when its sink closes.
type Disposition uint8

// What Close does with the state.
const (
	// Keep: the source stopped or was superseded; its last state stays.
	Keep Disposition = iota
	// Drop: the cluster left the mesh.
	Drop
)

// Update carries states of one cluster. In [Sink.Replace] it is everything, in
// [Sink.Apply] only what changed, each state whole. The Store keeps what is in
// it: nothing may be changed afterwards.
type Update struct {
	Services  []ServiceState
	Workloads []WorkloadState
	Objects   []ObjectState
	// Cluster is nil if it is unchanged or not known; what was known stays.
	Cluster *ClusterState
}

// ServiceState is one service as one cluster sees it, whole. A nil Definition
// removes the service from the cluster. Endpoints need not be sorted; each has a
// Workload, and their Network is set by the Store.
type ServiceState struct {
	Key        mesh.ServiceKey
	Definition *mesh.Definition
	Endpoints  []mesh.Endpoint
}

// WorkloadState is a workload by its key within the cluster ("namespace/name"
// of the pod). A nil Workload removes it.
type WorkloadState struct {
	Key      string
	Workload *mesh.Workload
	// Health is the workload's readiness, for ServiceEntries that select it;
	// endpoints that the source itself reports have their own.
	Health mesh.Health
}

// ObjectState is a configuration object. A nil Object removes it.
type ObjectState struct {
	Key    mesh.ObjectKey
	Object *mesh.Object
}

// ClusterState is what holds for a cluster as a whole.
type ClusterState struct {
	// Network is the label topology.istio.io/network of the system namespace.
	Network mesh.NetworkID
	// TrustDomain is that of the cluster's own mesh configuration, "" if it has none.
	TrustDomain string
	// Gateways are the network gateways found in the cluster (labelled Services
	// and Kubernetes Gateways), with host names not resolved.
	Gateways []mesh.NetworkGateway
}
