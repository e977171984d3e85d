package mesh

import "net/netip"

// ProxyKind is the role in which a proxy connects (first part of its node ID).
type ProxyKind string

// Roles of proxies.
const (
	ProxySidecar ProxyKind = "sidecar"
	ProxyRouter  ProxyKind = "router"
)

// Dialect is which configuration a proxy understands.
type Dialect uint8

// Dialects.
const (
	// DialectIstio is an Istio proxy: Envoy with Istio's filters.
	DialectIstio Dialect = iota
	// DialectEnvoy is a plain upstream Envoy (no ISTIO_VERSION in its metadata).
	DialectEnvoy
	// DialectGRPC is a proxyless gRPC client or server (GENERATOR: grpc).
	DialectGRPC
)

// String names the dialect.
func (d Dialect) String() string { return [...]string{"istio", "envoy", "grpc"}[d] }

// Interception is how traffic is brought to a sidecar.
type Interception string

// Interception modes (metadata INTERCEPTION_MODE).
const (
	InterceptRedirect Interception = "REDIRECT"
	InterceptTProxy   Interception = "TPROXY"
	InterceptNone     Interception = "NONE"
)

// Proxy is a connected proxy as it describes itself, after bounds were checked.
// It is a claim, not an identity: what a credential proves is kept apart.
type Proxy struct {
	// ID is POD.NAMESPACE, the third part of the node ID.
	ID   string
	Kind ProxyKind
	// Addresses are INSTANCE_IPS, else the second part of the node ID; at least one.
	Addresses []netip.Addr
	// DNSDomain is the fourth part of the node ID, e.g. "shop.svc.cluster.local".
	DNSDomain string
	Dialect   Dialect
	Cluster   ClusterID
	Network   NetworkID
	// NetworkView limits the networks a gateway serves (REQUESTED_NETWORK_VIEW);
	// nil means all.
	NetworkView    []NetworkID
	Namespace      string
	ServiceAccount string
	WorkloadName   string
	// Labels are the workload's labels as the proxy sends them.
	Labels       map[string]string
	Annotations  map[string]string
	Locality     Locality
	NodeName     string
	Interception Interception
	IstioVersion string
	MeshID       string
	// ContainerPorts are the named ports of POD_PORTS.
	ContainerPorts map[string]uint16
	// DNSCapture: the agent asks for a name table.
	DNSCapture bool
	// ProxyConfig is the metadata PROXY_CONFIG as received, nil if absent.
	ProxyConfig map[string]any
	// Metadata is the remaining metadata, for debug output.
	Metadata map[string]any
}
