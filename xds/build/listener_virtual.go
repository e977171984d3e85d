package build

import (
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Names of the virtual listeners' chains.
const (
	chainOutboundBlackHole = "virtualOutbound-blackhole"
	chainOutboundCatchAll  = "virtualOutbound-catchall-tcp"
	chainInboundBlackHole  = "virtualInbound-blackhole"
	chainInboundHTTP       = "virtualInbound-catchall-http"
	chainInboundTCP        = "virtualInbound"
)

// virtualOutbound makes the listener that all intercepted outbound traffic
// arrives at. It hands connections to the listener of their original
// destination; what has none goes on to where it was meant to go, and what was
// meant for the listener itself is dropped, because it would come back for ever.
func virtualOutbound(in Inputs, v View) (*listenerv3.Listener, error) {
	f, err := newFilters(in, v, DirectionOutbound, 0)
	if err != nil {
		return nil, err
	}
	hole, err := f.blackHole()
	if err != nil {
		return nil, err
	}
	rest, err := f.tcp(elsewhere(in, v), mesh.ProtocolTCP)
	if err != nil {
		return nil, err
	}
	port := outboundPort(in.Catalog)
	return &listenerv3.Listener{
		Name:                ListenerVirtualOutbound,
		Address:             socketAddress(wildcard(v), port),
		AdditionalAddresses: secondWildcard(v, port),
		TrafficDirection:    outboundTraffic,
		UseOriginalDst:      boolean(true),
		Transparent:         transparent(v),
		AccessLog:           f.listenerLogs,
		FilterChains: []*listenerv3.FilterChain{
			{Name: chainOutboundBlackHole, FilterChainMatch: toPort(port), Filters: hole},
			{Name: chainOutboundCatchAll, Filters: rest},
		},
		MaxConnectionsToAcceptPerSocketEvent: u32(1),
	}, nil
}

// virtualInbound makes the listener that all intercepted inbound traffic
// arrives at: chains for each port that a service names, and for every other
// port chains that pass traffic on by what it looks like. Mesh peers are told
// by the protocols they offer; until a policy says otherwise, plain text is
// taken too.
func virtualInbound(in Inputs, v View) (*listenerv3.Listener, error) {
	f, err := newFilters(in, v, DirectionInbound, 0)
	if err != nil {
		return nil, err
	}
	port := inboundPort(in.Catalog)
	chains, inspected, err := inboundChains(f, port)
	if err != nil {
		return nil, err
	}
	listenerFilters := []*listenerv3.ListenerFilter{originalDst()}
	if v.Interception == mesh.InterceptTProxy {
		listenerFilters = append(listenerFilters, originalSrc())
	}
	listenerFilters = append(listenerFilters, tlsInspector(onPorts([]uint16{port})), httpInspector(onPorts(inspected)))
	return &listenerv3.Listener{
		Name:                                 ListenerVirtualInbound,
		Address:                              socketAddress(wildcard(v), port),
		AdditionalAddresses:                  secondWildcard(v, port),
		TrafficDirection:                     inboundTraffic,
		Transparent:                          transparent(v),
		AccessLog:                            f.listenerLogs,
		ListenerFilters:                      listenerFilters,
		ListenerFiltersTimeout:               detectionTimeout(in.Catalog),
		ContinueOnListenerFiltersTimeout:     true,
		FilterChains:                         chains,
		MaxConnectionsToAcceptPerSocketEvent: u32(1),
	}, nil
}

// boundInbound makes the listener of one port of the workload that the proxy binds
// itself, as a Sidecar asks for: the chains of that port alone.
func boundInbound(in Inputs, v View, t InboundTarget) (*listenerv3.Listener, error) {
	f, err := newFilters(in, v, DirectionInbound, t.Target)
	if err != nil {
		return nil, err
	}
	chains, err := f.portChains(targetChains(in, v, t))
	if err != nil {
		return nil, err
	}
	l := &listenerv3.Listener{
		Name:                                 listenerName(t.Bind, t.Target),
		Address:                              socketAddress(t.Bind, t.Target),
		TrafficDirection:                     inboundTraffic,
		AccessLog:                            f.listenerLogs,
		ListenerFilters:                      []*listenerv3.ListenerFilter{tlsInspector(notOnPorts([]uint16{t.Target}))},
		ListenerFiltersTimeout:               detectionTimeout(in.Catalog),
		ContinueOnListenerFiltersTimeout:     true,
		FilterChains:                         chains,
		MaxConnectionsToAcceptPerSocketEvent: u32(1),
	}
	if mesh.Protocol(t.Protocol) == mesh.ProtocolAuto {
		l.ListenerFilters = append(l.ListenerFilters, httpInspector(nil))
	}
	return l, nil
}

// transparent lets a listener take connections to foreign addresses, as TPROXY
// delivers them.
func transparent(v View) *wrapperspb.BoolValue {
	if v.Interception != mesh.InterceptTProxy {
		return nil
	}
	return boolean(true)
}

func toPort(port uint16) *listenerv3.FilterChainMatch {
	return &listenerv3.FilterChainMatch{DestinationPort: u32(uint32(port))}
}
