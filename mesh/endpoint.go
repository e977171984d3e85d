package mesh

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
)

// Health is the readiness of an endpoint.
type Health uint8

// The states of an endpoint. Unknown is for endpoints whose source reports no
// readiness (WorkloadEntry without health checks); proxies treat it as healthy.
const (
	HealthUnknown Health = iota
	HealthReady
	HealthNotReady
	// HealthDraining: terminating but still serving.
	HealthDraining
)

// String names the state.
func (h Health) String() string { return [...]string{"Unknown", "Ready", "NotReady", "Draining"}[h] }

// Endpoint is one address and port behind a service port. It is a small
// immutable value; what all endpoints of one pod share is in Workload.
type Endpoint struct {
	Addr netip.Addr
	// Port is the number on the workload.
	Port   uint16
	Health Health
	// Weight is relative to the other endpoints of the service port; 0 counts as 1.
	Weight uint32
	// PortName is the name of the service port this endpoint serves.
	PortName string
	// Network is where Addr is routable: resolved by the Store from the pod's
	// label, the cluster's default and meshNetworks. Empty means unknown.
	Network  NetworkID
	Workload *Workload
}

// Equal reports whether two endpoints mean the same.
func (e Endpoint) Equal(o Endpoint) bool {
	return e.Addr == o.Addr && e.Port == o.Port && e.Health == o.Health && e.Weight == o.Weight &&
		e.PortName == o.PortName && e.Network == o.Network && e.Workload.Equal(o.Workload)
}

// Compare orders endpoints by port name, cluster, locality, address and port,
// so that all endpoints of a service port are neighbours. The remaining fields
// make the order of different endpoints a fixed one.
func (e Endpoint) Compare(o Endpoint) int {
	if c := cmp.Compare(e.PortName, o.PortName); c != 0 {
		return c
	}
	if e.Workload != o.Workload {
		if c := cmp.Or(cmp.Compare(e.Workload.Cluster, o.Workload.Cluster), e.Workload.Locality.Compare(o.Workload.Locality)); c != 0 {
			return c
		}
	}
	if c := e.Addr.Compare(o.Addr); c != 0 {
		return c
	}
	if c := cmp.Or(cmp.Compare(e.Port, o.Port), cmp.Compare(e.Health, o.Health), cmp.Compare(e.Weight, o.Weight)); c != 0 {
		return c
	}
	if e.Workload == o.Workload {
		return 0
	}
	return cmp.Or(cmp.Compare(e.Workload.Namespace, o.Workload.Namespace), cmp.Compare(e.Workload.Name, o.Workload.Name),
		cmp.Compare(e.Workload.Kind, o.Workload.Kind), cmp.Compare(e.Workload.Host, o.Workload.Host))
}

// Workload is a running pod or VM: everything about an endpoint that does not
// depend on the service. It is immutable and shared by all its endpoints.
type Workload struct {
	Cluster   ClusterID
	Namespace string
	// Name is the pod's name, or "" for a hand-made endpoint without a pod.
	Name string
	// WorkloadName is the name of the controller behind the pod ("reviews-v1").
	WorkloadName string
	// Kind is the kind of the object behind: "Pod", "WorkloadEntry", "ServiceEntry"
	// for an endpoint written there, or "" for a bare address.
	Kind      string
	Addresses []netip.Addr
	// Host is what is dialled instead of an address: a DNS name that the proxy
	// resolves, or the path of a Unix domain socket with the prefix "unix://".
	// A workload with neither is reached through the gateways of its network only.
	Host string
	// NetworkLabel is the workload's own topology.istio.io/network, before any default.
	NetworkLabel NetworkID
	Locality     Locality
	Identity     Identity
	// MTLS says that the workload terminates mesh mTLS (security.istio.io/tlsMode: istio).
	MTLS   bool
	Labels map[string]string
	Node   string
	// Hostname and Subdomain give a pod of a headless service its DNS name.
	Hostname, Subdomain string
	// ContainerPorts are the named container ports of the pod.
	ContainerPorts map[string]uint16
	HostNetwork    bool
}

// Equal reports whether two workloads mean the same.
func (w *Workload) Equal(o *Workload) bool {
	if w == o || w == nil || o == nil {
		return w == o
	}
	return w.Cluster == o.Cluster && w.Namespace == o.Namespace && w.Name == o.Name &&
		w.WorkloadName == o.WorkloadName && w.Kind == o.Kind && w.NetworkLabel == o.NetworkLabel &&
		w.Locality == o.Locality && w.Identity == o.Identity && w.MTLS == o.MTLS && w.Node == o.Node &&
		w.Hostname == o.Hostname && w.Subdomain == o.Subdomain && w.Host == o.Host && w.HostNetwork == o.HostNetwork &&
		slices.Equal(w.Addresses, o.Addresses) && maps.Equal(w.Labels, o.Labels) &&
		maps.Equal(w.ContainerPorts, o.ContainerPorts)
}

// CanonicalName is the service name that telemetry groups by: the canonical
// label, then app.kubernetes.io/name, then app, then the workload's name.
func CanonicalName(labels map[string]string, workload string) string {
	return firstOf(labels, workload, "service.istio.io/canonical-name", "app.kubernetes.io/name", "app")
}

// CanonicalRevision is the revision that telemetry groups by: the canonical
// label, then app.kubernetes.io/version, then version, then "latest".
func CanonicalRevision(labels map[string]string) string {
	return firstOf(labels, "latest", "service.istio.io/canonical-revision", "app.kubernetes.io/version", "version")
}

// firstOf is the value of the first label that has one. Almost all workloads
// have the first, so the others are looked up only if need be.
func firstOf(labels map[string]string, fallback string, keys ...string) string {
	for _, k := range keys {
		if v := labels[k]; v != "" {
			return v
		}
	}
	return fallback
}

// NetworkGateway is one address under which a network can be entered from
// other networks (an east-west gateway).
type NetworkGateway struct {
	Network NetworkID
	// Cluster is where the gateway runs; empty for one from meshNetworks by address.
	Cluster ClusterID
	// Host is the address as configured: an IP or a DNS name.
	Host string
	// Addr is the address to dial. It is the zero Addr while Host is a name that
	// could not be resolved yet.
	Addr netip.Addr
	Port uint16
	// HBONEPort is the port for HBONE, 0 if the gateway has none.
	HBONEPort uint16
	Origin    ObjectRef
}

// CompareGateways orders gateways by network, address, port, cluster and host;
// of those that are equal in all that, one with an HBONE port comes first.
func CompareGateways(a, b NetworkGateway) int {
	return cmp.Or(cmp.Compare(a.Network, b.Network), a.Addr.Compare(b.Addr), cmp.Compare(a.Port, b.Port),
		cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.Host, b.Host), cmp.Compare(b.HBONEPort, a.HBONEPort),
		cmp.Compare(a.Origin.String(), b.Origin.String()))
}
