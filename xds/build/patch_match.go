package build

import (
	"slices"
	"strconv"
	"strings"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// sideOfListener is the side that a listener is on.
func sideOfListener(name string) networking.EnvoyFilter_PatchContext {
	if name == ListenerVirtualInbound {
		return networking.EnvoyFilter_SIDECAR_INBOUND
	}
	return networking.EnvoyFilter_SIDECAR_OUTBOUND
}

// sideOfUpstream is the side that an upstream is on.
func sideOfUpstream(name string) networking.EnvoyFilter_PatchContext {
	if id, ok := parseAnyName(name); name == UpstreamInboundPassthrough || ok && id.Direction == DirectionInbound {
		return networking.EnvoyFilter_SIDECAR_INBOUND
	}
	return networking.EnvoyFilter_SIDECAR_OUTBOUND
}

// onListener reports whether a patch is about a listener, by its name and port.
// In the virtual listeners a port is that of a chain, unless the listener itself
// is patched.
func (x *patch) onListener(name string, port uint32) bool {
	m := x.match.GetListener()
	switch {
	case m == nil:
		return true
	case m.GetName() != "" && m.GetName() != name:
		return false
	case x.applyTo != networking.EnvoyFilter_LISTENER && isVirtual(name):
		return true
	}
	return m.GetPortNumber() == 0 || m.GetPortNumber() == port
}

func isVirtual(name string) bool {
	return name == ListenerVirtualInbound || name == ListenerVirtualOutbound
}

// listenerPort is the port of a listener as its name tells.
func listenerPort(in Inputs, name string) uint32 {
	switch name {
	case ListenerVirtualInbound:
		return uint32(inboundPort(in.Catalog))
	case ListenerVirtualOutbound:
		return uint32(outboundPort(in.Catalog))
	}
	at, _ := parseListenerName(name)
	return uint32(at.port)
}

// onChain reports whether a patch is about a filter chain of a listener that it
// is about.
func (x *patch) onChain(listener string, c *listenerv3.FilterChain) bool {
	l := x.match.GetListener()
	m, have := l.GetFilterChain(), c.GetFilterChainMatch()
	if isVirtual(listener) && l.GetPortNumber() != 0 && have.GetDestinationPort().GetValue() != l.GetPortNumber() {
		return false
	}
	switch {
	case m == nil:
		return true
	case m.GetName() != "" && m.GetName() != c.GetName(),
		m.GetSni() != "" && !slices.Contains(have.GetServerNames(), m.GetSni()),
		m.GetTransportProtocol() != "" && m.GetTransportProtocol() != have.GetTransportProtocol(),
		m.GetDestinationPort() != 0 && m.GetDestinationPort() != have.GetDestinationPort().GetValue():
		return false
	}
	if m.GetApplicationProtocols() == "" {
		return true
	}
	for want := range strings.SplitSeq(m.GetApplicationProtocols(), ",") {
		if !slices.Contains(have.GetApplicationProtocols(), strings.TrimSpace(want)) {
			return false
		}
	}
	return true
}

// filterName is the network filter that a patch is about, "" for any.
func (x *patch) filterName() string {
	return x.match.GetListener().GetFilterChain().GetFilter().GetName()
}

// subFilterName is the HTTP filter that a patch is about, "" for any.
func (x *patch) subFilterName() string {
	return x.match.GetListener().GetFilterChain().GetFilter().GetSubFilter().GetName()
}

// sameFilter reports whether a filter has a name, or had it before Envoy gave its
// filters the names of today: envoy.router is envoy.filters.http.router.
func sameFilter(have, want string) bool {
	if have == want {
		return true
	}
	former, ok := strings.CutPrefix(want, "envoy.")
	rest, is := strings.CutPrefix(have, "envoy.filters.")
	if !ok || !is || strings.Contains(former, ".") && !strings.HasPrefix(former, "listener.") {
		return false
	}
	_, name, _ := strings.Cut(rest, ".")
	return name == strings.TrimPrefix(former, "listener.")
}

// onRoutes reports whether a patch is about a route configuration. opened maps a
// gateway's service ports to those that it listens on.
func (x *patch) onRoutes(name string, opened map[uint16]uint16) bool {
	m := x.match.GetRouteConfiguration()
	if m == nil {
		return true
	}
	if m.GetName() != "" && m.GetName() != name {
		return false
	}
	port, portName, gateway, edge := gatewayRoute(name)
	if !edge {
		port = routePort(name)
		return (m.GetPortNumber() == 0 || m.GetPortNumber() == uint32(port)) && m.GetGateway() == "" && m.GetPortName() == ""
	}
	if want := m.GetPortNumber(); want != 0 && want != uint32(port) && (want > 65535 || opened[uint16(want)] != port) {
		return false
	}
	return (m.GetPortName() == "" || m.GetPortName() == portName) && (m.GetGateway() == "" || m.GetGateway() == gateway)
}

// routePort is the port of a sidecar's route configuration; 0 if it is for one host.
func routePort(name string) uint16 {
	if id, ok := ParseUpstreamName(name); ok {
		return id.Port
	}
	port, _ := parsePort(name)
	return port
}

// gatewayRoute reads the name of a gateway's route configuration: http.PORT or
// https.PORT.NAME.GATEWAY.NAMESPACE, with or without the address bound.
func gatewayRoute(name string) (port uint16, portName, gateway string, ok bool) {
	parts := strings.Split(name, ".")
	if len(parts) < 2 || parts[0] != "http" && parts[0] != "https" {
		return 0, "", "", false
	}
	n, err := strconv.ParseUint(parts[1], 10, 16)
	if err != nil {
		return 0, "", "", false
	}
	if parts[0] == "https" && len(parts) >= 5 {
		portName, gateway = parts[2], parts[4]+"/"+parts[3]
	}
	return uint16(n), portName, gateway, true
}

// onHost reports whether a patch is about a virtual host.
func (x *patch) onHost(h *routev3.VirtualHost) bool {
	m := x.match.GetRouteConfiguration().GetVhost()
	if m == nil {
		return true
	}
	return (m.GetName() == "" || m.GetName() == h.GetName()) &&
		(m.GetDomainName() == "" || slices.Contains(h.GetDomains(), m.GetDomainName()))
}

// namesRoute reports whether a patch says which route it is about.
func (x *patch) namesRoute() bool {
	return x.match.GetRouteConfiguration().GetVhost().GetRoute() != nil
}

// onRoute reports whether a patch is about a route.
func (x *patch) onRoute(r *routev3.Route) bool {
	m := x.match.GetRouteConfiguration().GetVhost().GetRoute()
	if m.GetName() != "" && m.GetName() != r.GetName() {
		return false
	}
	switch m.GetAction() {
	case networking.EnvoyFilter_RouteConfigurationMatch_RouteMatch_ROUTE:
		return r.GetRoute() != nil
	case networking.EnvoyFilter_RouteConfigurationMatch_RouteMatch_REDIRECT:
		return r.GetRedirect() != nil
	case networking.EnvoyFilter_RouteConfigurationMatch_RouteMatch_DIRECT_RESPONSE:
		return r.GetDirectResponse() != nil
	}
	return true
}

// onUpstream reports whether a patch is about an upstream. hosts are the services
// behind an inbound one, whose name tells none.
func (x *patch) onUpstream(name string, hosts []string) bool {
	m := x.match.GetCluster()
	if m == nil {
		return true
	}
	if m.GetName() != "" {
		return m.GetName() == name
	}
	id, _ := parseAnyName(name)
	if id.Host != "" {
		hosts = []string{string(id.Host)}
	}
	return (m.GetSubset() == "" || m.GetSubset() == id.Subset) &&
		(m.GetPortNumber() == 0 || m.GetPortNumber() == uint32(id.Port)) &&
		(m.GetService() == "" || slices.Contains(hosts, m.GetService()))
}

// inboundHosts lists the services behind an inbound upstream.
func inboundHosts(v View, name string) []string {
	id, ok := parseAnyName(name)
	if !ok || id.Direction != DirectionInbound || v.Kind == mesh.ProxyRouter {
		return nil
	}
	var out []string
	for _, t := range targetsAt(v, id.Port) {
		out = append(out, t.Hostname)
	}
	return out
}
