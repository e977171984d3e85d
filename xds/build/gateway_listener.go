package build

import (
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	proxyprotocolv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/proxy_protocol/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// routerNames lists the names of a router's listeners.
func routerNames(in Inputs, v View) []string {
	var out []string
	for _, p := range routerPorts(in, v) {
		if v.Tuning.binds(p.listen) && slices.ContainsFunc(p.servers, func(s *gatewayServer) bool { return s.leads(in, v) }) {
			out = append(out, p.name(v))
		}
	}
	slices.Sort(out)
	return out
}

// leads reports whether a server has any filter chain: one that passes bytes on
// has none until a VirtualService says where to.
func (x *gatewayServer) leads(in Inputs, v View) bool {
	switch x.kind {
	case serverHTTP, serverHTTPS:
		return true
	case serverAutoPassthrough:
		return passesAnything(in, v, x.listen)
	case serverPassthrough:
		return len(x.stream(in, v).byName(x.rules(in, v))) > 0
	}
	return len(x.stream(in, v).byAddress(x.rules(in, v))) > 0
}

// rules lists the VirtualServices that bind a host of the server.
func (x *gatewayServer) rules(in Inputs, v View) []*virtualService {
	return slices.DeleteFunc(virtualServicesFor(in, v, x.bound), func(vs *virtualService) bool { return len(x.common(vs)) == 0 })
}

// stream is the scope of the server's rules for connections.
func (x *gatewayServer) stream(in Inputs, v View) *streamScope {
	return &streamScope{routeScope: routeScope{in: in, v: v, gateway: x.bound, port: x.number}}
}

// routerListener makes the listener of one port of a router; nil if it has no
// chain, because Envoy takes no listener without.
func routerListener(in Inputs, v View, name string) (*listenerv3.Listener, error) {
	ports := routerPorts(in, v)
	i := slices.IndexFunc(ports, func(p *gatewayPort) bool { return p.name(v) == name })
	if i < 0 || !v.Tuning.binds(ports[i].listen) {
		return nil, nil
	}
	p := ports[i]
	f, err := newFilters(in, v, DirectionOutbound, p.servers[0].number)
	if err != nil {
		return nil, err
	}
	chains, err := p.chains(f)
	if err != nil || len(chains) == 0 {
		return nil, err
	}
	l := &listenerv3.Listener{
		Name:                                 name,
		Address:                              socketAddress(wildcard(v), p.listen),
		TrafficDirection:                     outboundTraffic,
		AccessLog:                            f.listenerLogs,
		FilterChains:                         chains,
		MaxConnectionsToAcceptPerSocketEvent: u32(1),
	}
	if p.bind != "" {
		l.Address = socketAddress(p.bind, p.listen)
	} else {
		l.AdditionalAddresses = secondWildcard(v, p.listen)
	}
	if f.own.GetGatewayTopology().GetProxyProtocol() != nil {
		l.ListenerFilters = append(l.ListenerFilters, &listenerv3.ListenerFilter{Name: "envoy.filters.listener.proxy_protocol",
			ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: mustAny(&proxyprotocolv3.ProxyProtocol{})}})
	}
	if !p.servers[0].kind.plain() {
		l.ListenerFilters = append(l.ListenerFilters, tlsInspector(nil))
	}
	return l, nil
}

// chains makes the filter chains of all servers of a port.
func (p *gatewayPort) chains(f *filters) ([]*listenerv3.FilterChain, error) {
	var out []*listenerv3.FilterChain
	used := chainSet{}
	auto := false
	for _, s := range p.servers {
		var more []*listenerv3.FilterChain
		var err error
		switch {
		case s.kind == serverHTTP && len(out) > 0:
			continue // all plain HTTP servers share one chain
		case s.kind == serverAutoPassthrough && auto:
			continue // and all that pass mesh mTLS on share theirs
		case s.kind == serverAutoPassthrough:
			auto = true
			more, err = passthroughChains(f, p.listen)
		case s.kind == serverHTTP || s.kind == serverHTTPS:
			more, err = s.httpChain(f, p.name(f.v), used)
		case s.kind == serverPassthrough:
			more, err = s.streamChains(f, s.stream(f.in, f.v).byName(s.rules(f.in, f.v)), used)
		default:
			more, err = s.streamChains(f, s.stream(f.in, f.v).byAddress(s.rules(f.in, f.v)), used)
		}
		if err != nil {
			return nil, err
		}
		out = append(out, more...)
	}
	return out, nil
}

// httpChain makes the chain of a server that routes requests.
func (x *gatewayServer) httpChain(f *filters, listener string, used chainSet) ([]*listenerv3.FilterChain, error) {
	match, ok := used.take(x.names, nil)
	if x.kind == serverHTTP {
		match, ok = nil, true
	}
	if !ok {
		return nil, nil
	}
	http, err := f.http("outbound_"+listener+";", byRDS(x.routeName()), x.protocol())
	if err != nil {
		return nil, err
	}
	c := &listenerv3.FilterChain{FilterChainMatch: match, Filters: http, TransportSocketConnectTimeout: duration(connectTimeout)}
	if x.kind == serverHTTPS {
		if c.TransportSocket, err = serverSocket(f, x); err != nil {
			return nil, err
		}
	}
	return []*listenerv3.FilterChain{c}, nil
}

// streamChains makes the chains of a server that passes bytes on, opened or not.
func (x *gatewayServer) streamChains(f *filters, routes []streamRoute, used chainSet) ([]*listenerv3.FilterChain, error) {
	var socket *corev3.TransportSocket
	if x.kind == serverTLS {
		var err error
		if socket, err = serverSocket(f, x); err != nil {
			return nil, err
		}
	}
	var out []*listenerv3.FilterChain
	for _, r := range routes {
		names := r.names
		if x.kind == serverTLS {
			names = x.names
		}
		if r = f.holdStream(r, names); r.to[0].lookup != nil {
			names = r.names // those within the wildcard
		}
		match, ok := used.take(names, r.ranges)
		if !ok {
			continue
		}
		filters, err := f.stream(&r, x.protocol())
		if err != nil {
			return nil, err
		}
		out = append(out, &listenerv3.FilterChain{FilterChainMatch: match, Filters: filters, TransportSocket: socket,
			TransportSocketConnectTimeout: duration(connectTimeout)})
	}
	return out, nil
}

// atEdge sets what a router's connection manager does other than a sidecar's:
// its clients are not of the mesh, so what they say of themselves is replaced.
func (f *filters) atEdge(h *hcmv3.HttpConnectionManager) {
	h.ServerName = serverHeader
	h.UseRemoteAddress = boolean(true)
	h.HttpProtocolOptions = &corev3.Http1ProtocolOptions{}
	t := f.own.GetGatewayTopology()
	h.XffNumTrustedHops = t.GetNumTrustedProxies()
	h.ForwardClientCertDetails = forwardDetails(t.GetForwardClientCertDetails(), hcmv3.HttpConnectionManager_SANITIZE_SET)
	switch h.ForwardClientCertDetails {
	case hcmv3.HttpConnectionManager_SANITIZE_SET, hcmv3.HttpConnectionManager_APPEND_FORWARD: // only these say anything of the client
		h.SetCurrentClientCertDetails = &hcmv3.HttpConnectionManager_SetCurrentClientCertDetails{
			Subject: wrapperspb.Bool(true), Cert: true, Dns: true, Uri: true,
		}
	}
}

// routerAffected tells which of a router's listeners a change may concern. What
// a Gateway or a VirtualService was before a change does not matter: all are
// looked at.
func routerAffected(in Inputs, v View, c *registry.Change) Affected {
	if aboutRouters(c) {
		return Affected{All: true}
	}
	for _, s := range c.Services {
		if s.Aspects.Has(registry.AspectDefinition) { // of which each passthrough listener holds all
			return Affected{Names: allRouterNames(in, v)}
		}
	}
	return Affected{}
}

// aboutRouters reports whether a change is about any object that routers follow.
func aboutRouters(c *registry.Change) bool {
	for k, o := range c.Objects {
		switch k.Kind {
		case mesh.KindGateway, mesh.KindDestinationRule:
			return true
		case mesh.KindVirtualService:
			if bindsGateways(o.Before) || bindsGateways(o.After) {
				return true
			}
		}
	}
	return false
}

// allRouterNames lists the names of a router's listeners, also of those that
// have no chain.
func allRouterNames(in Inputs, v View) []string {
	var out []string
	for _, p := range routerPorts(in, v) {
		out = append(out, p.name(v))
	}
	slices.Sort(out)
	return out
}

// bindsGateways reports whether a VirtualService is for anything but sidecars,
// or may be a part of one that is.
func bindsGateways(o *mesh.Object) bool {
	if o == nil {
		return false
	}
	vs, ok := o.Spec.(*networking.VirtualService)
	return ok && (len(vs.GetHosts()) == 0 || slices.ContainsFunc(vs.GetGateways(), func(g string) bool { return g != meshGateway }))
}
