package build

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// VerdictCode says what became of one candidate endpoint.
type VerdictCode uint8

// What may become of a candidate. The first two and the last keep it, all others
// drop it.
const (
	// VerdictDirect: the endpoint's own address is dialled.
	VerdictDirect VerdictCode = iota
	// VerdictGateway: gateways stand for the endpoint.
	VerdictGateway

	// VerdictClusterLocal: the host is cluster-local and the endpoint in another cluster.
	VerdictClusterLocal
	// VerdictNodeLocal: the service is node-local and the endpoint on another node.
	VerdictNodeLocal
	// VerdictNetworkView: the proxy asked not to see the endpoint's network.
	VerdictNetworkView
	// VerdictFamily: the proxy has no address of the endpoint's family.
	VerdictFamily
	// VerdictNoGateway: the endpoint's network has no gateway.
	VerdictNoGateway
	// VerdictGatewayUnresolved: no gateway of the network has an address and a port yet.
	VerdictGatewayUnresolved
	// VerdictGatewayFamily: no gateway of the network has an address of the proxy's family.
	VerdictGatewayFamily
	// VerdictGatewayNotMTLS: the endpoint takes no mTLS, without which nothing passes a gateway.
	VerdictGatewayNotMTLS
	// VerdictGatewayNotReady: the endpoint takes no new requests, and an endpoint
	// behind a gateway cannot be sent as unhealthy.
	VerdictGatewayNotReady
	// VerdictSNINotMTLS: an SNI-DNAT upstream forwards mTLS as it is, so it leads
	// only to endpoints that terminate it.
	VerdictSNINotMTLS
	// VerdictMixedTLS: a gRPC client speaks mTLS to a whole upstream or to none of
	// it; this endpoint takes none while others do.
	VerdictMixedTLS
	// VerdictPortName: the endpoint's cluster gives the port another name.
	VerdictPortName
	// VerdictNoAddress: the endpoint has no address that the proxy could dial.
	VerdictNoAddress
	// VerdictSubset: the endpoint has not the labels of the subset.
	VerdictSubset
	// VerdictGatewayRule: a DestinationRule takes mesh mTLS off the upstream, without
	// which nothing passes a gateway.
	VerdictGatewayRule
	// VerdictSNIRule: the same for an SNI-DNAT upstream.
	VerdictSNIRule
	// VerdictDrained: the endpoint's cluster or network is drained.
	VerdictDrained
	// VerdictMayPanic: where a rule has proxies dial all endpoints while too few are
	// healthy, one that takes no requests must not be among them.
	VerdictMayPanic

	// VerdictByRequest: not an endpoint but a wildcard; the proxy looks up the name
	// that each request asks for, and dials what it finds.
	VerdictByRequest
)

// String names the code.
func (c VerdictCode) String() string {
	return [...]string{"Direct", "ThroughGateway", "ClusterLocal", "NodeLocal", "NetworkView", "AddressFamily",
		"NoGateway", "GatewayUnresolved", "GatewayAddressFamily", "GatewayNotMTLS", "GatewayNotReady", "SNINotMTLS",
		"MixedTLS", "PortName", "NoAddress", "NotInSubset", "GatewayTLSRule", "SNITLSRule", "Drained", "NotReadyInPanic", "LookedUpByRequest"}[c]
}

// MarshalText renders the code by its name.
func (c VerdictCode) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// Kept reports whether the candidate is among what the proxy is sent.
func (c VerdictCode) Kept() bool { return c <= VerdictGateway || c == VerdictByRequest }

// Verdict is the decision about one candidate: a code and what it refers to.
// It holds no text; [Candidate.Text] renders the reason when somebody asks.
type Verdict struct {
	Code VerdictCode
	// Gateways stand for the endpoint (VerdictGateway), or are those that cannot
	// be used. The slice is shared: it must not be changed.
	Gateways []mesh.NetworkGateway
	// Subset is the one that the endpoint is not in (VerdictSubset).
	Subset *networking.Subset
	// Weights are those in force (VerdictDrained).
	Weights mesh.Weights
}

// Candidate is an endpoint of a service port with the decision about it.
type Candidate struct {
	Endpoint mesh.Endpoint
	Verdict  Verdict
	// Weight is the endpoint's part of the weights of what is dialled, 0 if it is
	// dropped.
	Weight uint32
}

// Text gives the reason for the verdict in a sentence, for a proxy with the view.
func (c Candidate) Text(v View) string {
	e, w := c.Endpoint, c.Endpoint.Workload
	switch c.Verdict.Code {
	case VerdictDirect:
		return directText(v.Network, e.Network)
	case VerdictGateway:
		return fmt.Sprintf("on network %s, reached through %s", e.Network, gatewayList(c.Verdict.Gateways))
	case VerdictClusterLocal:
		return fmt.Sprintf("the host is cluster-local: only endpoints in the proxy's cluster %s count, this one is in %s", v.Cluster, w.Cluster)
	case VerdictNodeLocal:
		return fmt.Sprintf("internalTrafficPolicy is Local: only endpoints on the proxy's node %s count, this one is on %s",
			nodeText(v.Cluster, v.Node), nodeText(w.Cluster, w.Node))
	case VerdictNetworkView:
		return fmt.Sprintf("network %s is not in the proxy's requested network view (%s)", e.Network, v.NetworkView)
	case VerdictFamily:
		return fmt.Sprintf("the proxy has no %s address", family(e.Addr.Unmap().Is4()))
	case VerdictNoGateway:
		return fmt.Sprintf("network %s has no gateway, and the proxy is on network %s", e.Network, v.Network)
	case VerdictGatewayUnresolved:
		return fmt.Sprintf("no gateway of network %s has an address yet: %s", e.Network, gatewayList(c.Verdict.Gateways))
	case VerdictGatewayFamily:
		return fmt.Sprintf("no gateway of network %s has an address of the proxy's family: %s", e.Network, gatewayList(c.Verdict.Gateways))
	default:
		return c.otherText()
	}
}

func (c Candidate) otherText() string {
	e, w := c.Endpoint, c.Endpoint.Workload
	switch c.Verdict.Code {
	case VerdictGatewayNotMTLS:
		return fmt.Sprintf("on network %s behind a gateway, which only mTLS can pass, and the endpoint has no sidecar (label security.istio.io/tlsMode)", e.Network)
	case VerdictGatewayNotReady:
		return fmt.Sprintf("%s, and behind a gateway of network %s, where single endpoints cannot be marked unhealthy", strings.ToLower(e.Health.String()), e.Network)
	case VerdictSNINotMTLS:
		return "a gateway passes mTLS on as it is, and the endpoint has no sidecar (label security.istio.io/tlsMode)"
	case VerdictMixedTLS:
		return "gRPC speaks mTLS to all endpoints of a service or to none; others have mTLS, this one has not"
	case VerdictPortName:
		return fmt.Sprintf("cluster %s calls this port %q, so its endpoints do not serve it", w.Cluster, e.PortName)
	case VerdictNoAddress:
		return noAddressText(w.Host)
	case VerdictSubset:
		return fmt.Sprintf("subset %s is for endpoints with %s", c.Verdict.Subset.GetName(), labelText(c.Verdict.Subset.GetLabels()))
	case VerdictGatewayRule:
		return fmt.Sprintf("on network %s behind a gateway, which only mTLS can pass, and a DestinationRule sets a TLS mode that is not ISTIO_MUTUAL", e.Network)
	case VerdictSNIRule:
		return "a gateway passes mTLS on as it is, and a DestinationRule sets a TLS mode that is not ISTIO_MUTUAL"
	case VerdictMayPanic:
		return strings.ToLower(e.Health.String()) + ", and minHealthPercent has proxies dial all that they know of while too few endpoints are healthy"
	case VerdictDrained:
		return drainedText(c.Verdict.Weights, w.Cluster, e.Network)
	}
	return c.Verdict.Code.String()
}

// drainedText says what drains endpoints of a cluster on a network.
func drainedText(w mesh.Weights, c mesh.ClusterID, n mesh.NetworkID) string {
	if own := w.Cluster(c); own.Percent == 0 {
		return fmt.Sprintf("cluster %s is drained: weight 0 by %s", c, own.From)
	}
	return fmt.Sprintf("network %s is drained: weight 0 by %s", orUnknown(n), w.Network(n).From)
}

func noAddressText(host string) string {
	if host == "" {
		return "the endpoint has no address of its own: it is reached from other networks only, through the gateways of its network"
	}
	return "the proxy does not look up names for this service, and the endpoint " + host + " has no address"
}

// labelText renders labels in order.
func labelText(labels map[string]string) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		parts = append(parts, k+"="+labels[k])
	}
	return strings.Join(parts, ", ")
}

func directText(proxy, endpoint mesh.NetworkID) string {
	switch {
	case endpoint == "":
		return "direct: the endpoint's network is not known, which counts as the same"
	case proxy == "":
		return "direct: the proxy's network is not known, which counts as the same"
	}
	return fmt.Sprintf("direct: same network %s", endpoint)
}

func nodeText(c mesh.ClusterID, node string) string {
	if node == "" {
		node = "(unknown)"
	}
	return node + " in " + string(c)
}

func family(v4 bool) string {
	if v4 {
		return "IPv4"
	}
	return "IPv6"
}

// gatewayList renders gateways as they are dialled, or by host while that is
// not known.
func gatewayList(gateways []mesh.NetworkGateway) string {
	var b strings.Builder
	for i, g := range gateways {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(gatewayText(g))
	}
	return b.String()
}

func gatewayText(g mesh.NetworkGateway) string {
	where := " of meshNetworks"
	if g.Cluster != "" {
		where = " in " + string(g.Cluster)
	}
	if !g.Addr.IsValid() {
		return fmt.Sprintf("gateway %s:%d (not resolved)%s", g.Host, g.Port, where)
	}
	return fmt.Sprintf("gateway %s%s", addrPortText(g.Addr, g.Port), where)
}
