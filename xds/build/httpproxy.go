package build

import (
	"maps"
	"slices"
	"strconv"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// A sidecar may be an HTTP proxy to its workload, which then asks it for whole
// URLs (http://HOST:PORT/PATH), as programs do that are told so by http_proxy in
// their environment: MeshConfig.proxyHttpPort or the metadata HTTP_PROXY_PORT
// bind a port of the loopback address. The one route configuration behind it has
// the services of all ports: host and port of the URL tell them apart, and a URL
// without a port means port 80.

// routeHTTPProxy is the name of the route configuration of the HTTP proxy.
const routeHTTPProxy = "http_proxy"

// metadataHTTPProxy is the port of the HTTP proxy, before that of the mesh; 0
// for none.
const metadataHTTPProxy = "HTTP_PROXY_PORT"

// httpProxyPort is where a proxy is an HTTP proxy to its workload; 0 for nowhere.
// A port that the proxy itself, its agent or the workload serves is left to them.
func httpProxyPort(in Inputs, p *mesh.Proxy, v View) uint16 {
	if v.Kind != mesh.ProxySidecar || v.Dialect == mesh.DialectGRPC {
		return 0
	}
	port := portOr(in.Catalog.Settings.Mesh.GetProxyHttpPort(), 0)
	if n, err := strconv.ParseUint(metadataScalar(p.Metadata, metadataHTTPProxy), 10, 16); err == nil {
		port = uint16(n)
	}
	if port == 0 || !loopbackFree(in, v, v.Inbound.Spec(), port) {
		return 0
	}
	return port
}

// httpProxyName is the name of the listener of the HTTP proxy; "" if there is none.
func httpProxyName(v View) string {
	if v.Tuning.httpProxy == 0 {
		return ""
	}
	return listenerName(loopback(v), v.Tuning.httpProxy)
}

// isHTTPProxy reports whether a name is that of the listener of the HTTP proxy.
func isHTTPProxy(v View, name string) bool { return name != "" && name == httpProxyName(v) }

// httpProxyListener makes the listener of the HTTP proxy.
func httpProxyListener(in Inputs, v View) (*listenerv3.Listener, error) {
	port := v.Tuning.httpProxy
	f, err := newFilters(in, v, DirectionOutbound, 0)
	if err != nil {
		return nil, err
	}
	routes, err := f.http(outboundStat(loopback(v), port), byRDS(routeHTTPProxy), mesh.ProtocolHTTPProxy)
	if err != nil {
		return nil, err
	}
	l := outboundListener(in, loopback(v), port)
	l.BindToPort = nil
	l.FilterChains = []*listenerv3.FilterChain{{Filters: routes, TransportSocketConnectTimeout: duration(connectTimeout)}}
	return l, nil
}

// httpProxyRoutes makes the route configuration of the HTTP proxy.
func httpProxyRoutes(in Inputs, v View) (*routev3.RouteConfiguration, error) {
	var out []*routev3.VirtualHost
	also, all := aliases(in, v), false
	for _, port := range httpProxyPorts(in) {
		hosts, taken, err := newRouteBuilder(in, v, port).hosts(httpProxyServices(in, v, port), also)
		if err != nil {
			return nil, err
		}
		for _, h := range hosts {
			h.Domains = portDomains(h.Domains, port)
		}
		if _, ok := taken["*"]; ok && port == plainPort {
			all = true
		}
		out = append(out, hosts...)
	}
	if !all {
		out = append(out, catchAll(in, v))
	}
	r := routeConfiguration(routeHTTPProxy, out)
	r.IgnorePortInHostMatching = false
	return r, nil
}

// httpProxyPorts lists the ports that URLs may name: those of services, and the
// one that rules for other hosts are at.
func httpProxyPorts(in Inputs) []uint16 {
	ports := map[uint16]struct{}{plainPort: {}}
	for s := range in.Catalog.Services() {
		for _, p := range s.Ports {
			ports[p.Number] = struct{}{}
		}
	}
	return slices.Sorted(maps.Keys(ports))
}

// httpProxyServices lists the services that may be asked for on a port, by key:
// those that speak HTTP, and those that nobody says do not. What a Sidecar has at
// an address of its own alone is not among them.
func httpProxyServices(in Inputs, v View, port uint16) []*mesh.Service {
	var out []*mesh.Service
	for _, s := range in.Catalog.OnPort(port) {
		p, ok := inPlace(in, v, s, port)
		if ok && (p.Protocol.IsHTTP() || p.Protocol == mesh.ProtocolAuto) {
			out = append(out, s)
		}
	}
	return out
}

// portDomains lists the Host headers that ask for domains on a port, which need
// not be named if it is that of plain HTTP.
func portDomains(domains []string, port uint16) []string {
	out := make([]string, 0, 2*len(domains))
	for _, d := range domains {
		if port == plainPort {
			out = append(out, d)
		}
		out = append(out, d+":"+strconv.Itoa(int(port)))
	}
	return out
}

// projectHTTPProxy keeps what the route configuration of the HTTP proxy depends on.
func projectHTTPProxy(in Inputs, v View, p *View) {
	p.Domain, p.Cluster = v.Domain, v.Cluster
	p.DNSCapture = v.DNSCapture
	p.Labels = v.Labels.Only(routeLabels(in, v, func(*virtualService) bool { return true }))
}

// lookupNamesAnywhere lists, sorted, the wildcards whose names requests to the
// HTTP proxy may ask for.
func lookupNamesAnywhere(in Inputs, v View) []string {
	out := ledLookups(in, v)
	for s := range in.Catalog.Services() {
		if byRequest(s) && slices.ContainsFunc(s.Ports, func(p mesh.Port) bool { return speaks(in, v, s, p.Number) }) {
			out = append(out, string(s.Key.Hostname))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// wildcardsChanged reports whether a change is about wildcards whose names are
// looked up, or about others that define them.
func wildcardsChanged(in Inputs, c *registry.Change) bool {
	for k, s := range c.Services {
		if s.Aspects.Has(registry.AspectDefinition) && (byRequest(s.Before) || slices.ContainsFunc(in.Catalog.Host(k.Hostname), byRequest)) {
			return true
		}
	}
	return false
}
