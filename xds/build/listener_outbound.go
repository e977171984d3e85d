package build

import (
	"net/netip"
	"slices"
	"strconv"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// passthroughChainName is the chain for what an HTTP port's listener does not
// take for HTTP.
const passthroughChainName = "PassthroughFilterChain"

// httpListener makes the listener of an HTTP port, whose oldest service speaks the
// version of HTTP. Traffic of other protocols
// to the port goes where it was meant to go, if the mesh allows that.
func httpListener(in Inputs, v View, port uint16, spoken mesh.Protocol) (*listenerv3.Listener, error) {
	f, err := newFilters(in, v, DirectionOutbound, port)
	if err != nil {
		return nil, err
	}
	captured := v.Interception != mesh.InterceptNone
	addr := wildcard(v)
	if !captured {
		addr = loopback(v)
	}
	routes, err := f.http(outboundStat(addr, port), byRDS(strconv.Itoa(int(port))), spoken)
	if err != nil {
		return nil, err
	}
	other, err := f.tcp(elsewhere(in, v), mesh.ProtocolTCP)
	if err != nil {
		return nil, err
	}
	l := outboundListener(in, addr, port)
	l.FilterChains = []*listenerv3.FilterChain{plainHTTPChain(routes)}
	if captured {
		l.AdditionalAddresses = secondWildcard(v, port)
		l.ListenerFilters = []*listenerv3.ListenerFilter{httpInspector(nil)}
		l.DefaultFilterChain = &listenerv3.FilterChain{Name: passthroughChainName, FilterChainMatch: &listenerv3.FilterChainMatch{}, Filters: other}
		return l, nil
	}
	// A client that dials the proxy itself speaks HTTP; there is no other
	// destination that its bytes could go to.
	l.FilterChains[0].FilterChainMatch = nil
	l.BindToPort = nil
	return l, nil
}

// addressListener makes the listener of one address, a virtual IP or that of a
// headless service's pod; nil if the address belongs to nobody or to a service
// that speaks HTTP on the port.
func addressListener(in Inputs, v View, at place) (*listenerv3.Listener, error) {
	c := owner(in, v, at)
	if c.service == nil {
		return nil, nil
	}
	return streamListener(in, v, c.service, at.addr.String(), at.port)
}

// streamListener makes a listener that passes connections to one service's
// port, request by request where the protocol is to be found out and turns out
// to be HTTP.
func streamListener(in Inputs, v View, s *mesh.Service, addr string, port uint16) (*listenerv3.Listener, error) {
	p, ok := streams(in, v, s, port)
	if !ok {
		return nil, nil
	}
	f, err := newFilters(in, v, DirectionOutbound, port)
	if err != nil {
		return nil, err
	}
	chains, err := f.streamChains(served{s, p}, nil, nil, chainSet{})
	if err != nil {
		return nil, err
	}
	l := outboundListener(in, addr, port)
	if p.Protocol != mesh.ProtocolAuto {
		l.FilterChains = chains
		if named(chains) {
			l.ListenerFilters = []*listenerv3.ListenerFilter{tlsInspector(nil)}
		}
		return l, nil
	}
	routes, err := f.http(outboundStat(addr, port), byRDS(sniffedRoute(s.Key.Hostname, port)), mesh.ProtocolAuto)
	if err != nil {
		return nil, err
	}
	l.ListenerFilters = []*listenerv3.ListenerFilter{httpInspector(nil)}
	last := len(chains) - 1 // takes what the others do not
	l.FilterChains = append([]*listenerv3.FilterChain{plainHTTPChain(routes)}, chains[:last]...)
	l.DefaultFilterChain = chains[last]
	return l, nil
}

// outboundListener is what all outbound listeners have in common. They do not
// bind: the virtual listener hands them connections by original destination.
func outboundListener(in Inputs, addr string, port uint16) *listenerv3.Listener {
	return &listenerv3.Listener{
		Name:                             listenerName(addr, port),
		Address:                          socketAddress(addr, port),
		TrafficDirection:                 outboundTraffic,
		BindToPort:                       boolean(false),
		ListenerFiltersTimeout:           detectionTimeout(in.Catalog),
		ContinueOnListenerFiltersTimeout: true,
	}
}

func plainHTTPChain(filters []*listenerv3.Filter) *listenerv3.FilterChain {
	return &listenerv3.FilterChain{
		FilterChainMatch: &listenerv3.FilterChainMatch{
			TransportProtocol:    transportPlain,
			ApplicationProtocols: plainHTTPProtocols(),
		},
		Filters:                       filters,
		TransportSocketConnectTimeout: duration(connectTimeout),
	}
}

// outboundStat is under what name a listener's requests are counted.
func outboundStat(addr string, port uint16) string {
	return "outbound_" + listenerName(addr, port) + ";"
}

// sniffedRoute is the name of the route configuration for a service port whose
// protocol is found out by sniffing.
func sniffedRoute(h mesh.Hostname, port uint16) string {
	return string(h) + ":" + strconv.Itoa(int(port))
}

// loopback is where a proxy without interception listens.
func loopback(v View) string {
	if v.IPv6 && !v.IPv4 {
		return "::1"
	}
	return "127.0.0.1"
}

// loopbackFree reports whether a proxy without interception may bind a port on
// the loopback address: neither the workload nor the agent, which spec tells of,
// serves it.
func loopbackFree(in Inputs, v View, spec InboundSpec, port uint16) bool {
	if reserved(in, port) || !v.Tuning.binds(port) {
		return false
	}
	if port == spec.StatusPort || port == spec.PrometheusPort {
		return false
	}
	return !slices.ContainsFunc(spec.Targets, func(t InboundTarget) bool { return t.Target == port })
}

// pod is what of an endpoint decides about a headless service's listeners.
type pod struct {
	addr    netip.Addr
	network mesh.NetworkID
	cluster mesh.ClusterID
}

// movedPods lists the addresses of a port's pods that came, went or moved, or
// of all pods.
func movedPods(s registry.ServiceChange, port string, all bool) []netip.Addr {
	before, after := pods(s.EndpointsBefore, port), pods(s.EndpointsAfter, port)
	var out []netip.Addr
	for p := range before {
		if _, stays := after[p]; all || !stays {
			out = append(out, p.addr)
		}
	}
	for p := range after {
		if _, was := before[p]; all || !was {
			out = append(out, p.addr)
		}
	}
	return out
}

func pods(set *registry.EndpointSet, port string) map[pod]struct{} {
	out := map[pod]struct{}{}
	if set == nil {
		return out
	}
	for _, e := range set.Port(port) {
		out[pod{e.Addr, e.Network, e.Workload.Cluster}] = struct{}{}
	}
	return out
}
