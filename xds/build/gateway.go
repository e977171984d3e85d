package build

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry/gatewayapi"
)

// A Gateway object says what a router listens for. All Gateways that select a
// router are one: servers on the same port share a listener. What a port speaks
// is decided by the first server on it, the oldest Gateway's first; a later one
// that does not fit (plain HTTP beside TLS, two for opaque TCP, a TLS host that
// another has) is left out. Hosts are bound to routes by VirtualServices that
// name the Gateway.
//
// Source of the rules: https://istio.io/latest/docs/reference/config/networking/gateway/

// serverKind is what a server does with connections.
type serverKind uint8

const (
	serverHTTP serverKind = iota
	serverHTTPS
	serverTCP
	serverTLS // terminates TLS and passes bytes on
	serverPassthrough
	serverAutoPassthrough
)

// plain reports whether connections are not TLS.
func (k serverKind) plain() bool { return k == serverHTTP || k == serverTCP }

// gatewayServer is one server of a Gateway as a router has it.
type gatewayServer struct {
	kind serverKind
	// gateway names the Gateway, and bound the same as VirtualServices do.
	gateway ObjectName
	bound   string
	spec    *networking.Server
	// number is the server's port, listen where the router's pods hear it.
	number, listen uint16
	// bind is the address to listen on, "" for all.
	bind  string
	hosts []serverHost
	// names are the server names that connections are told by; none means any.
	names []string
	// untrusted lets clients in whose certificates are not good.
	untrusted bool
}

// serverHost is NAMESPACE/HOST: what VirtualServices of a namespace, "" for any,
// may bind.
type serverHost struct {
	namespace string
	host      mesh.Hostname
}

// gatewayPort is all servers that share a listener.
type gatewayPort struct {
	listen  uint16
	bind    string
	servers []*gatewayServer
}

// name is the name of the port's listener.
func (p *gatewayPort) name(v View) string { return listenerName(cmp.Or(p.bind, wildcard(v)), p.listen) }

// routerPorts lists the ports on which a router listens, by number and address.
// Nothing if no Gateway selects it.
func routerPorts(in Inputs, v View) []*gatewayPort {
	var out []*gatewayPort
	for _, x := range routerServers(in, v) {
		out = joinPort(out, x)
	}
	slices.SortFunc(out, func(a, b *gatewayPort) int {
		return cmp.Or(cmp.Compare(a.listen, b.listen), cmp.Compare(a.bind, b.bind))
	})
	return out
}

// routerServers lists the servers of all Gateways that select a router, those of
// the oldest first, before it is decided which of them share a port and which do
// not fit there.
func routerServers(in Inputs, v View) []*gatewayServer {
	if v.Kind != mesh.ProxyRouter || v.Dialect == mesh.DialectGRPC {
		return nil
	}
	gateways := in.Catalog.Objects(mesh.KindGateway)
	if len(gateways) == 0 {
		return nil
	}
	var out []*gatewayServer
	spec := v.Inbound.Spec()
	for _, o := range gateways {
		g, ok := o.Spec.(*networking.Gateway)
		if !ok || !selects(g.GetSelector(), spec.Labels) || !boundTo(o, v) {
			continue
		}
		for _, s := range g.GetServers() {
			if x := newGatewayServer(o, s, spec.Opened); x != nil {
				out = append(out, x)
			}
		}
	}
	return out
}

// newGatewayServer reads a server; nil if it has no port to listen on.
func newGatewayServer(o *mesh.Object, s *networking.Server, opened map[uint16]uint16) *gatewayServer {
	number := s.GetPort().GetNumber()
	kind, ok := kindOfServer(s)
	if number == 0 || number > 65535 || !ok || strings.HasPrefix(s.GetBind(), unixPrefix) {
		return nil
	}
	x := &gatewayServer{kind: kind, gateway: ObjectName{o.Key.Namespace, o.Key.Name}, bound: o.Key.Namespace + "/" + o.Key.Name,
		spec: s, number: uint16(number), listen: uint16(number), bind: s.GetBind()}
	if at, ok := opened[x.number]; ok {
		x.listen = at
	}
	if b, ok := o.Value.(*gatewayapi.Binding); ok {
		x.untrusted = b.Untrusted
	}
	any := false
	for _, h := range s.GetHosts() {
		ns, host, scoped := strings.Cut(strings.ToLower(h), "/")
		switch {
		case !scoped:
			ns, host = "", ns
		case ns == ".":
			ns = o.Key.Namespace
		case ns == "*":
			ns = ""
		}
		x.hosts = append(x.hosts, serverHost{ns, mesh.Hostname(host)})
		if host == "*" {
			any = true
		} else if !slices.Contains(x.names, host) {
			x.names = append(x.names, host)
		}
	}
	if any {
		x.names = nil
	}
	return x
}

func kindOfServer(s *networking.Server) (serverKind, bool) {
	mode := s.GetTls().GetMode()
	switch strings.ToUpper(s.GetPort().GetProtocol()) {
	case "HTTP", "HTTP2", "GRPC", "GRPC-WEB", "HTTP_PROXY":
		return serverHTTP, true
	case "HTTPS", "TLS":
		switch {
		case mode == networking.ServerTLSSettings_AUTO_PASSTHROUGH:
			return serverAutoPassthrough, true
		case s.GetTls() == nil || mode == networking.ServerTLSSettings_PASSTHROUGH:
			return serverPassthrough, true
		case strings.EqualFold(s.GetPort().GetProtocol(), "HTTPS"):
			return serverHTTPS, true
		}
		return serverTLS, true
	case "TCP", "MONGO", "REDIS", "MYSQL":
		return serverTCP, true
	}
	return 0, false
}

// joinPort adds a server to the port that it is on, unless it does not fit there.
func joinPort(ports []*gatewayPort, x *gatewayServer) []*gatewayPort {
	for _, p := range ports {
		if p.listen != x.listen || p.bind != x.bind {
			continue
		}
		if p.takes(x) {
			p.servers = append(p.servers, x)
		}
		return ports
	}
	return append(ports, &gatewayPort{listen: x.listen, bind: x.bind, servers: []*gatewayServer{x}})
}

// takes reports whether a server fits beside those that a port has. Of its TLS
// names those that are taken are cut off; one that is left without is no server.
func (p *gatewayPort) takes(x *gatewayServer) bool {
	first := p.servers[0].kind
	if first.plain() || x.kind.plain() {
		return first == serverHTTP && x.kind == serverHTTP
	}
	if x.kind == serverAutoPassthrough {
		return true // its names are those of services, which begin with outbound_.
	}
	for _, s := range p.servers {
		if s.kind == serverAutoPassthrough {
			continue
		}
		if len(s.names) == 0 && len(x.names) == 0 {
			return false
		}
		if len(x.names) > 0 {
			if x.names = slices.DeleteFunc(x.names, func(n string) bool { return slices.Contains(s.names, n) }); len(x.names) == 0 {
				return false
			}
		}
	}
	return true
}

// protocol is what the server speaks inside of any TLS.
func (x *gatewayServer) protocol() mesh.Protocol {
	p, _ := mesh.ParseProtocol(x.spec.GetPort().GetProtocol())
	return p
}

// redirects reports whether plain HTTP is sent to HTTPS.
func (x *gatewayServer) redirects() bool { return x.spec.GetTls().GetHttpsRedirect() }

// routeName is the name of the server's route configuration: one for all plain
// HTTP servers of a port, one for each server that opens TLS.
func (x *gatewayServer) routeName() string {
	bind := ""
	if x.bind != "" {
		bind = "." + x.bind
	}
	switch x.kind {
	case serverHTTP:
		return "http." + strconv.Itoa(int(x.listen)) + bind
	case serverHTTPS:
		return "https." + strconv.Itoa(int(x.number)) + "." + x.spec.GetPort().GetName() + "." + x.gateway.Name + "." + x.gateway.Namespace + bind
	}
	return ""
}

// common lists the hosts that a VirtualService binds to the server: what its
// hosts and the server's have in common, the narrower of each two.
func (x *gatewayServer) common(vs *virtualService) []mesh.Hostname {
	var out []mesh.Hostname
	add := func(h mesh.Hostname) {
		if !slices.Contains(out, h) {
			out = append(out, h)
		}
	}
	for _, h := range x.hosts {
		if h.namespace != "" && h.namespace != vs.name.Namespace {
			continue
		}
		for _, want := range vs.hosts {
			switch {
			case covers(h.host, want):
				add(want)
			case covers(want, h.host):
				add(h.host)
			}
		}
	}
	return out
}

// covers reports whether a host, which may be a wildcard, takes in another one.
func covers(pattern, host mesh.Hostname) bool {
	_, ok := hostRank(string(pattern), host)
	return ok
}
