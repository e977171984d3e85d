package mesh

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	meshconfig "istio.io/api/mesh/v1alpha1"
)

// ObjectKind is the kind of a configuration object written by users.
type ObjectKind string

// Kinds of configuration objects.
const (
	// networking.istio.io
	KindDestinationRule ObjectKind = "DestinationRule"
	KindEnvoyFilter     ObjectKind = "EnvoyFilter"
	KindGateway         ObjectKind = "Gateway"
	KindProxyConfig     ObjectKind = "ProxyConfig"
	KindServiceEntry    ObjectKind = "ServiceEntry"
	KindSidecar         ObjectKind = "Sidecar"
	KindVirtualService  ObjectKind = "VirtualService"
	KindWorkloadEntry   ObjectKind = "WorkloadEntry"
	KindWorkloadGroup   ObjectKind = "WorkloadGroup"
	// security.istio.io
	KindAuthorizationPolicy   ObjectKind = "AuthorizationPolicy"
	KindPeerAuthentication    ObjectKind = "PeerAuthentication"
	KindRequestAuthentication ObjectKind = "RequestAuthentication"
	// telemetry.istio.io
	KindTelemetry ObjectKind = "Telemetry"
	// extensions.istio.io
	KindWasmPlugin ObjectKind = "WasmPlugin"
	// gateway.networking.k8s.io, whose Gateway carries its group: Istio has one too.
	KindBackendTLSPolicy  ObjectKind = "BackendTLSPolicy"
	KindGatewayAPIGateway ObjectKind = "Gateway.gateway.networking.k8s.io"
	KindGatewayClass      ObjectKind = "GatewayClass"
	KindGRPCRoute         ObjectKind = "GRPCRoute"
	KindHTTPRoute         ObjectKind = "HTTPRoute"
	KindReferenceGrant    ObjectKind = "ReferenceGrant"
	KindTCPRoute          ObjectKind = "TCPRoute"
	KindTLSRoute          ObjectKind = "TLSRoute"
	// KindNamespace is a namespace, for its labels.
	KindNamespace ObjectKind = "Namespace"
)

// ObjectKey identifies a configuration object within a cluster.
type ObjectKey struct {
	Kind      ObjectKind
	Namespace string
	Name      string
}

// Object is one configuration object with a decoded, validated spec. It is immutable.
type Object struct {
	Key         ObjectKey
	Origin      ObjectRef
	Labels      map[string]string
	Annotations map[string]string
	Created     time.Time
	// Version changes whenever the object does (resourceVersion or a content hash).
	Version string
	// Generation counts the changes of the specification; 0 where nobody needs it.
	Generation int64
	// Spec is the istio.io/api message of the kind, nil for kinds without one.
	Spec proto.Message
	// Value is the specification of a kind of the Gateway API, as a pointer to its
	// Go struct (*gatewayv1.HTTPRouteSpec). Of an object that was derived from
	// such objects it is what its Spec cannot say.
	Value any
	// Status is what counts of the object's status; nil if nothing does.
	Status *ObjectStatus
}

// ObjectStatus is what is read of the status of configuration objects: little,
// so that writing a status seldom looks like a change. It is immutable.
type ObjectStatus struct {
	// Addresses are the virtual IPs that were allocated to the hosts of a
	// ServiceEntry, in order.
	Addresses []HostAddress
	// Health is the condition Healthy of a WorkloadEntry.
	Health Health
	// Written is the status of an object of the Gateway API as it stands, as JSON
	// with sorted keys.
	Written string
}

// HostAddress is an address of a host.
type HostAddress struct {
	Host    Hostname
	Address netip.Addr
}

// Equal reports whether two statuses mean the same; nil is as the zero value.
func (s *ObjectStatus) Equal(o *ObjectStatus) bool {
	a, b := ObjectStatus{}, ObjectStatus{}
	if s != nil {
		a = *s
	}
	if o != nil {
		b = *o
	}
	return a.Health == b.Health && a.Written == b.Written && slices.Equal(a.Addresses, b.Addresses)
}

// CompareObjects orders objects by age, oldest first, then by name and
// namespace: the order in which Istio lets the first win.
func CompareObjects(a, b *Object) int {
	return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Key.Name, b.Key.Name),
		cmp.Compare(a.Key.Namespace, b.Key.Namespace), cmp.Compare(a.Key.Kind, b.Key.Kind))
}

// Settings are the mesh-wide settings of the users: MeshConfig and
// MeshNetworks, with Istio's defaults filled in. They are immutable.
type Settings struct {
	Mesh     *meshconfig.MeshConfig
	Networks *meshconfig.MeshNetworks
	// FailoverNeedsOutliers restricts failover between localities to services with
	// outlier detection, as Istio does.
	FailoverNeedsOutliers bool
	// Weights drain clusters and networks.
	Weights Weights
	// TraceSampling is the share of requests that are traced, in percent, where no
	// settings and no object say it; nil is 1.
	TraceSampling *float64
}
