package build

import (
	"cmp"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// inboundTo is where the chains of one inbound port lead.
type inboundTo struct {
	// port is matched by the chains; 0 for all ports without chains of their own.
	port     uint16
	protocol mesh.Protocol
	upstream string
	// httpName and tcpName are the names of the chains.
	httpName, tcpName string
	// stat and tcpStat are under what names requests and connections are counted.
	stat, tcpStat string
	// host and servicePort are named in spans and virtual hosts.
	host        string
	servicePort uint16
	// sidecar names the Sidecar that declares the port, if one does.
	sidecar string
}

// inboundChains makes the chains of the virtual inbound listener, and lists the
// ports on which the HTTP inspector has nothing to find out. listen is the
// listener's own port.
func inboundChains(f *filters, listen uint16) ([]*listenerv3.FilterChain, []uint16, error) {
	hole, err := f.blackHole()
	if err != nil {
		return nil, nil, err
	}
	chains := []*listenerv3.FilterChain{{Name: chainInboundBlackHole, FilterChainMatch: toPort(listen), Filters: hole}}
	known := []uint16{listen}
	tos := []inboundTo{{
		protocol: mesh.ProtocolAuto, upstream: UpstreamInboundPassthrough, httpName: chainInboundHTTP,
		tcpName: chainInboundTCP, stat: UpstreamInboundPassthrough + ";", tcpStat: UpstreamInboundPassthrough,
	}}
	last := listen
	for _, t := range f.v.Inbound.Spec().Targets {
		if t.Bind != "" || t.Target == last || t.Target == listen { // the oldest service of a port decides
			continue
		}
		last = t.Target
		tos = append(tos, targetChains(f.in, f.v, t))
		if mesh.Protocol(t.Protocol) != mesh.ProtocolAuto {
			known = append(known, t.Target)
		}
	}
	for _, to := range tos {
		more, err := f.portChains(to)
		if err != nil {
			return nil, nil, err
		}
		chains = append(chains, more...)
	}
	return chains, known, nil
}

func targetChains(in Inputs, v View, t InboundTarget) inboundTo {
	name := listenerName(cmp.Or(t.Bind, wildcard(v)), t.Target)
	return inboundTo{
		port: t.Target, protocol: mesh.Protocol(t.Protocol), upstream: UpstreamName(DirectionInbound, t.Target, "", ""),
		httpName: name, tcpName: name, stat: "inbound_" + name + ";", tcpStat: inboundStat(in, t), host: t.Hostname, servicePort: t.Port, sidecar: t.Sidecar,
	}
}

// portChains makes the chains of one port. Which there are depends on what is
// known of its protocol:
//
//	            HTTP              TCP                 to be found out
//	mesh TLS    all offers: HTTP  all offers: TCP     HTTP offers: HTTP, others: TCP
//	plain text  HTTP              TCP                 by inspection
//	other TLS   (none)            TCP                 TCP
func (f *filters) portChains(to inboundTo) ([]*listenerv3.FilterChain, error) {
	f.port = to.port
	tcp, err := f.tcpCounted(to.upstream, to.tcpStat, to.protocol)
	if err != nil {
		return nil, err
	}
	http, err := f.http(to.stat, inline(inboundRoutes(to)), to.protocol)
	if err != nil {
		return nil, err
	}
	httpTLS, err := meshTLS(f.in.Catalog, f.v.Dialect, false)
	if err != nil {
		return nil, err
	}
	tcpTLS, err := meshTLS(f.in.Catalog, f.v.Dialect, true)
	if err != nil {
		return nil, err
	}
	switch {
	case to.protocol.IsHTTP():
		return []*listenerv3.FilterChain{
			to.chain(to.httpName, transportTLS, meshProtocols(), http, httpTLS),
			to.chain(to.httpName, transportPlain, nil, http, nil),
		}, nil
	case to.protocol == mesh.ProtocolAuto:
		return []*listenerv3.FilterChain{
			to.chain(to.httpName, transportTLS, meshHTTPProtocols(), http, httpTLS),
			to.chain(to.httpName, transportPlain, plainHTTPProtocols(), http, nil),
			to.chain(to.tcpName, transportTLS, meshTCPProtocols(), tcp, tcpTLS),
			to.chain(to.tcpName, transportPlain, nil, tcp, nil),
			to.chain(to.tcpName, transportTLS, nil, tcp, nil),
		}, nil
	}
	return []*listenerv3.FilterChain{
		to.chain(to.tcpName, transportTLS, meshProtocols(), tcp, tcpTLS),
		to.chain(to.tcpName, transportTLS, nil, tcp, nil),
		to.chain(to.tcpName, transportPlain, nil, tcp, nil),
	}, nil
}

func (to inboundTo) chain(name, transport string, alpn []string, filters []*listenerv3.Filter, socket *corev3.TransportSocket) *listenerv3.FilterChain {
	m := &listenerv3.FilterChainMatch{TransportProtocol: transport, ApplicationProtocols: alpn}
	if to.port != 0 {
		m.DestinationPort = u32(uint32(to.port))
	}
	c := &listenerv3.FilterChain{Name: name, FilterChainMatch: m, Filters: filters, TransportSocket: socket}
	if ns, name, ok := strings.Cut(to.sidecar, "/"); ok {
		c.Metadata = originMetadata(mesh.KindSidecar, ObjectName{ns, name})
	}
	return c
}

// inboundRoutes is the route configuration of an inbound HTTP port: everything
// goes to the workload.
func inboundRoutes(to inboundTo) *routev3.RouteConfiguration {
	port := strconv.Itoa(int(to.servicePort))
	return &routev3.RouteConfiguration{
		Name:             to.upstream,
		ValidateClusters: boolean(false),
		VirtualHosts: []*routev3.VirtualHost{{
			Name:    "inbound|http|" + port,
			Domains: []string{"*"},
			Routes: []*routev3.Route{{
				Name:      "default",
				Match:     &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
				Decorator: &routev3.Decorator{Operation: to.host + ":" + port + "/*"},
				Action: &routev3.Route_Route{Route: &routev3.RouteAction{
					ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: to.upstream},
					Timeout:          duration(0),
					MaxStreamDuration: &routev3.RouteAction_MaxStreamDuration{
						MaxStreamDuration:    duration(0),
						GrpcTimeoutHeaderMax: duration(0),
					},
					// The workload may have closed an idle connection that the
					// proxy still holds: nothing was sent, so once more is safe.
					RetryPolicy: &routev3.RetryPolicy{RetryOn: "reset-before-request", NumRetries: u32(2)},
				}},
			}},
		}},
	}
}
