// Package simulate answers, from the configuration that a proxy was given, where
// a request from it goes. It follows Envoy's documented rules: which listener and
// filter chain take a connection, which virtual host and route take a request,
// and which endpoints the upstream spreads its load over.
//
// It is for tests that state what users' rules mean ("nine of ten requests with
// this header go to v2 in the other region") without a data plane. It is no
// proxy: it opens no connection, and what an upstream answers is not its business.
package simulate

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/isthmus-mesh/isthmus/xds/match"
)

// Proxy is what one proxy was given, by name.
type Proxy struct {
	Listeners   map[string]*listenerv3.Listener
	Routes      map[string]*routev3.RouteConfiguration
	Upstreams   map[string]*clusterv3.Cluster
	Assignments map[string]*endpointv3.ClusterLoadAssignment
}

// NewProxy sorts resources of any of the four types by kind and name.
func NewProxy(resources ...proto.Message) (*Proxy, error) {
	p := &Proxy{Listeners: map[string]*listenerv3.Listener{}, Routes: map[string]*routev3.RouteConfiguration{},
		Upstreams: map[string]*clusterv3.Cluster{}, Assignments: map[string]*endpointv3.ClusterLoadAssignment{}}
	for _, r := range resources {
		switch x := r.(type) {
		case *listenerv3.Listener:
			p.Listeners[x.GetName()] = x
		case *routev3.RouteConfiguration:
			p.Routes[x.GetName()] = x
		case *clusterv3.Cluster:
			p.Upstreams[x.GetName()] = x
		case *endpointv3.ClusterLoadAssignment:
			p.Assignments[x.GetClusterName()] = x
		default:
			return nil, fmt.Errorf("simulate proxy: %T is none of listener, routes, cluster, assignment", r)
		}
	}
	return p, nil
}

// Connection is what arrives at the proxy.
type Connection struct {
	// To is the address and port that the client dialled.
	To netip.AddrPort
	// From is the client's address; the zero value is 127.0.0.1.
	From netip.Addr
	// Inbound says that the connection was intercepted on its way to the workload,
	// rather than from it.
	Inbound bool
	// Direct says that the client dialled the proxy's own socket, as those of a
	// gateway do.
	Direct bool
	// SNI and ALPN are what a TLS client offers. TLS is implied by an SNI.
	TLS  bool
	SNI  string
	ALPN []string
	// Request is the HTTP request on the connection, nil for opaque bytes. With TLS
	// it is what is seen inside, if the proxy terminates TLS.
	Request *Request
}

// Request is one HTTP request.
type Request = match.Request

// Answer is what becomes of a connection or request.
type Answer struct {
	Listener, Chain string
	// TLS is how the connection is opened, nil if it is passed on as it is.
	TLS                *tlsv3.DownstreamTlsContext
	RouteConfiguration string
	VirtualHost, Route string
	// Upstreams share the requests. Empty if the proxy answers itself or drops.
	Upstreams []Share
	// Mirrors get copies.
	Mirrors []Share
	// Status is that of an answer the proxy gives itself, 0 if it gives none.
	Status uint32
	// Location is where a redirect leads.
	Location string
	// Action is the route's, nil for opaque bytes.
	Action *routev3.RouteAction
	// Matched is the route that took the request.
	Matched *routev3.Route
	// Dropped says why nothing takes the connection; "" if something does.
	Dropped string
}

// Share is a part of the load.
type Share struct {
	Name string
	// Percent is 0 to 100.
	Percent float64
}

// Upstream names the only upstream of an answer, "" if there are none or several.
func (a *Answer) Upstream() string {
	if len(a.Upstreams) != 1 {
		return ""
	}
	return a.Upstreams[0].Name
}

// Ask tells what becomes of a connection.
func (p *Proxy) Ask(c Connection) (*Answer, error) {
	l := p.listener(c)
	if l == nil {
		return &Answer{Dropped: "no listener takes " + c.To.String()}, nil
	}
	out := &Answer{Listener: l.GetName()}
	chain := matchChain(l, seen(l, c))
	if chain == nil {
		out.Dropped = "no filter chain of " + l.GetName() + " matches"
		return out, nil
	}
	out.Chain = chain.GetName()
	var err error
	if out.TLS, err = opens(chain); err != nil {
		return nil, err
	}
	for _, f := range chain.GetFilters() {
		switch {
		case f.GetTypedConfig().MessageIs((*tcpproxyv3.TcpProxy)(nil)):
			return out, p.stream(out, f.GetTypedConfig())
		case f.GetTypedConfig().MessageIs((*hcmv3.HttpConnectionManager)(nil)):
			return out, p.requests(out, f.GetTypedConfig(), c)
		}
	}
	out.Dropped = "filter chain " + chain.GetName() + " of " + l.GetName() + " has no terminal filter that is known here"
	return out, nil
}

// Inspects reports whether the listener that takes a connection looks for TLS in
// it before it chooses a filter chain: it then waits for the client's first bytes.
func (p *Proxy) Inspects(c Connection) bool {
	return slices.ContainsFunc(p.listener(c).GetListenerFilters(), func(f *listenerv3.ListenerFilter) bool { return f.GetName() == tlsInspector })
}

// listener finds the listener that takes a connection: one that the client
// dialled itself, or for intercepted traffic the one of its original destination,
// the address before the wildcard, and without any the one that intercepts.
func (p *Proxy) listener(c Connection) *listenerv3.Listener {
	if c.Inbound {
		return p.Listeners["virtualInbound"]
	}
	var wild, exact *listenerv3.Listener
	for _, l := range p.Listeners {
		bound := l.GetBindToPort() == nil || l.GetBindToPort().GetValue()
		if l.GetUseOriginalDst().GetValue() || l.GetApiListener() != nil || c.Direct != bound || l.GetName() == "virtualInbound" {
			continue
		}
		for _, a := range addresses(l) {
			switch {
			case a.Port() != c.To.Port():
			case a.Addr() == c.To.Addr():
				exact = l
			case a.Addr().IsUnspecified():
				wild = l
			}
		}
	}
	switch {
	case exact != nil:
		return exact
	case wild != nil || c.Direct:
		return wild
	}
	return p.Listeners["virtualOutbound"]
}

func addresses(l *listenerv3.Listener) []netip.AddrPort {
	var out []netip.AddrPort
	add := func(addr string, port uint32) {
		if a, err := netip.ParseAddr(addr); err == nil {
			out = append(out, netip.AddrPortFrom(a, uint16(port)))
		}
	}
	s := l.GetAddress().GetSocketAddress()
	add(s.GetAddress(), s.GetPortValue())
	for _, a := range l.GetAdditionalAddresses() {
		s := a.GetAddress().GetSocketAddress()
		add(s.GetAddress(), s.GetPortValue())
	}
	return out
}

func (p *Proxy) stream(out *Answer, config *anypb.Any) error {
	var t tcpproxyv3.TcpProxy
	if err := config.UnmarshalTo(&t); err != nil {
		return fmt.Errorf("decode tcp_proxy of %s: %w", out.Listener, err)
	}
	if w := t.GetWeightedClusters().GetClusters(); len(w) > 0 {
		var total float64
		for _, x := range w {
			total += float64(x.GetWeight())
		}
		for _, x := range w {
			out.Upstreams = append(out.Upstreams, Share{x.GetName(), 100 * float64(x.GetWeight()) / total})
		}
		return nil
	}
	out.Upstreams = []Share{{t.GetCluster(), 100}}
	return nil
}

func (p *Proxy) requests(out *Answer, config *anypb.Any, c Connection) error {
	if c.Request == nil {
		out.Dropped = "bytes that are no HTTP reach an HTTP connection manager"
		return nil
	}
	var h hcmv3.HttpConnectionManager
	if err := config.UnmarshalTo(&h); err != nil {
		return fmt.Errorf("decode http_connection_manager of %s: %w", out.Listener, err)
	}
	routes := h.GetRouteConfig()
	if name := h.GetRds().GetRouteConfigName(); name != "" {
		if routes = p.Routes[name]; routes == nil {
			out.Dropped = "the proxy has no route configuration " + name
			return nil
		}
	}
	return p.Route(out, routes, c.Request)
}

// Route works out what a route configuration does with a request.
func (p *Proxy) Route(out *Answer, routes *routev3.RouteConfiguration, r *Request) error {
	out.RouteConfiguration = routes.GetName()
	vh := match.VirtualHost(routes, r.Host)
	if vh == nil {
		out.Status, out.Dropped = 404, "no virtual host of "+routes.GetName()+" takes "+r.Host
		return nil
	}
	out.VirtualHost = vh.GetName()
	for _, route := range vh.GetRoutes() {
		why, err := match.Route(route.GetMatch(), r)
		if err != nil {
			return fmt.Errorf("match route %s of %s: %w", route.GetName(), vh.GetName(), err)
		}
		if why == "" {
			out.Route, out.Matched = route.GetName(), route
			return act(out, route, r)
		}
	}
	out.Status, out.Dropped = 404, "no route of "+vh.GetName()+" takes "+r.Path
	return nil
}

func act(out *Answer, route *routev3.Route, r *Request) error {
	switch a := route.GetAction().(type) {
	case *routev3.Route_DirectResponse:
		out.Status = a.DirectResponse.GetStatus()
	case *routev3.Route_Redirect:
		out.Status = map[routev3.RedirectAction_RedirectResponseCode]uint32{
			routev3.RedirectAction_MOVED_PERMANENTLY: 301, routev3.RedirectAction_FOUND: 302, routev3.RedirectAction_SEE_OTHER: 303,
			routev3.RedirectAction_TEMPORARY_REDIRECT: 307, routev3.RedirectAction_PERMANENT_REDIRECT: 308,
		}[a.Redirect.GetResponseCode()]
		out.Location = location(a.Redirect, route.GetMatch(), r)
	case *routev3.Route_Route:
		out.Action = a.Route
		out.Upstreams = routedTo(a.Route, r)
		for _, m := range a.Route.GetRequestMirrorPolicies() {
			out.Mirrors = append(out.Mirrors, Share{m.GetCluster(), fraction(m)})
		}
	default:
		return fmt.Errorf("route %s has an action of type %T, which is not known here", route.GetName(), a)
	}
	return nil
}

func routedTo(a *routev3.RouteAction, r *Request) []Share {
	switch s := a.GetClusterSpecifier().(type) {
	case *routev3.RouteAction_Cluster:
		return []Share{{s.Cluster, 100}}
	case *routev3.RouteAction_ClusterHeader:
		return []Share{{r.Headers[strings.ToLower(s.ClusterHeader)], 100}}
	case *routev3.RouteAction_WeightedClusters:
		var total float64
		for _, x := range s.WeightedClusters.GetClusters() {
			total += float64(x.GetWeight().GetValue())
		}
		var out []Share
		for _, x := range s.WeightedClusters.GetClusters() {
			if w := x.GetWeight().GetValue(); w > 0 {
				out = append(out, Share{x.GetName(), 100 * float64(w) / total})
			}
		}
		return out
	}
	return nil
}

func fraction(m *routev3.RouteAction_RequestMirrorPolicy) float64 {
	f := m.GetRuntimeFraction().GetDefaultValue()
	if f == nil {
		return 100
	}
	of := map[int32]float64{0: 100, 1: 10_000, 2: 1_000_000}[int32(f.GetDenominator())]
	return 100 * float64(f.GetNumerator()) / of
}
