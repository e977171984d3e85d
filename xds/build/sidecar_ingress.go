package build

import (
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// A Sidecar that names ingress listeners says all that its workloads serve: the
// ports of Services count only as far as an ingress listener has them, and give
// it its name in telemetry.

// ingressTargets replaces what a workload serves by what its Sidecar says.
func ingressTargets(scope *sidecarScope, v View, p *mesh.Proxy, served []InboundTarget) []InboundTarget {
	var out []InboundTarget
	for _, l := range scope.spec.GetIngress() {
		number := l.GetPort().GetNumber()
		if number == 0 || number > 65535 {
			continue
		}
		t := InboundTarget{
			Hostname: scope.object.Key.Name + "." + scope.object.Key.Namespace,
			Name:     scope.object.Key.Name, Namespace: scope.object.Key.Namespace,
			PortName: l.GetPort().GetName(), Port: uint16(number),
		}
		if i := slices.IndexFunc(served, func(s InboundTarget) bool { return s.Target == uint16(number) }); i >= 0 {
			t = served[i]
		}
		t.Target, t.Protocol = uint16(number), string(ingressProtocol(l.GetPort()))
		t.Endpoint, t.Sidecar = ingressEndpoint(l.GetDefaultEndpoint(), p), scope.object.Key.Namespace+"/"+scope.object.Key.Name
		t.Bind = ingressBind(l, v, p)
		out = append(out, t)
	}
	slices.SortStableFunc(out, func(a, b InboundTarget) int { return int(a.Target) - int(b.Target) })
	return out
}

// ingressBind is where an ingress listener is bound to its port, "" for one that
// is served by interception: what its captureMode says, else what holds for the
// proxy. Without an address it is the workload's own.
func ingressBind(l *networking.IstioIngressListener, v View, p *mesh.Proxy) string {
	switch l.GetCaptureMode() {
	case networking.CaptureMode_NONE:
	case networking.CaptureMode_DEFAULT:
		if v.Interception != mesh.InterceptNone {
			return ""
		}
	default:
		return ""
	}
	if a, err := netip.ParseAddr(l.GetBind()); err == nil {
		return a.String()
	}
	for _, a := range p.Addresses {
		if a.IsGlobalUnicast() {
			return a.Unmap().String()
		}
	}
	return wildcard(v)
}

// ingressListener finds the port that is bound at an address; false if none is.
func ingressListener(v View, at place) (t InboundTarget, ok bool) {
	if v.Kind != mesh.ProxySidecar || !v.Inbound.binds() {
		return t, false
	}
	for _, t := range v.Inbound.Spec().Targets {
		if t.Bind != "" && t.Target == at.port && t.Bind == at.addr.String() {
			return t, v.Tuning.binds(t.Target)
		}
	}
	return t, false
}

// ingressListeners lists the names of the listeners of ports that are bound.
func ingressListeners(v View) []string {
	if !v.Inbound.binds() {
		return nil
	}
	var out []string
	for _, t := range v.Inbound.Spec().Targets {
		if t.Bind != "" && v.Tuning.binds(t.Target) {
			out = append(out, listenerName(t.Bind, t.Target))
		}
	}
	return out
}

// ingressProtocol reads the protocol of a port that a Sidecar declares.
func ingressProtocol(p *networking.SidecarPort) mesh.Protocol {
	switch strings.ToUpper(p.GetProtocol()) {
	case "HTTP":
		return mesh.ProtocolHTTP
	case "HTTP2":
		return mesh.ProtocolHTTP2
	case "GRPC":
		return mesh.ProtocolGRPC
	case "GRPC-WEB":
		return mesh.ProtocolGRPCWeb
	case "":
		return mesh.ProtocolAuto
	}
	return mesh.ProtocolTCP
}

// ingressEndpoint completes a defaultEndpoint: 0.0.0.0 and [::] stand for the
// workload's own address of that family. "" leaves the original destination.
func ingressEndpoint(at string, p *mesh.Proxy) string {
	host, port, err := net.SplitHostPort(at)
	addr, perr := netip.ParseAddr(host)
	if strings.HasPrefix(at, unixPrefix) || err != nil || perr != nil || !addr.IsUnspecified() {
		return at
	}
	for _, a := range p.Addresses {
		if a = a.Unmap(); a.Is4() == addr.Is4() {
			return net.JoinHostPort(a.String(), port)
		}
	}
	if addr.Is4() {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return net.JoinHostPort("::1", port)
}

const unixPrefix = "unix://"

// toEndpoint makes an inbound upstream dial one fixed endpoint.
func toEndpoint(u *clusterv3.Cluster, at string) {
	var addr *corev3.Address
	if path, ok := strings.CutPrefix(at, unixPrefix); ok {
		addr = &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: path}}}
	} else {
		host, port, err := net.SplitHostPort(at)
		n, perr := strconv.ParseUint(port, 10, 16)
		if err != nil || perr != nil {
			return // validation lets nothing else through
		}
		addr = socketAddress(host, uint16(n))
	}
	u.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
	u.LbPolicy, u.CleanupInterval, u.UpstreamBindConfig = clusterv3.Cluster_ROUND_ROBIN, nil, nil
	u.LoadAssignment = &endpointv3.ClusterLoadAssignment{
		ClusterName: u.Name,
		Endpoints: []*endpointv3.LocalityLbEndpoints{{
			LoadBalancingWeight: u32(1),
			LbEndpoints: []*endpointv3.LbEndpoint{{
				LoadBalancingWeight: u32(1),
				HostIdentifier:      &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: addr}},
			}},
		}},
	}
}

// ingressPool is the connection pool that the view's Sidecar sets for a port of
// the workload, nil if it sets none.
func ingressPool(in Inputs, v View, port uint16) *networking.ConnectionPoolSettings {
	scope := sidecarOf(in, v)
	if scope == nil {
		return nil
	}
	for _, l := range scope.spec.GetIngress() {
		if l.GetPort().GetNumber() == uint32(port) && l.GetConnectionPool() != nil {
			return l.GetConnectionPool()
		}
	}
	return scope.spec.GetInboundConnectionPool()
}
