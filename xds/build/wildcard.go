package build

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// The listener of a port for all addresses, WILDCARD_PORT, serves
//
//   - everything that speaks HTTP on the port, told apart by host name;
//   - services that speak TLS and have no address, told apart by server name;
//   - services with ranges of addresses, told apart by the range, and by the
//     server name too if they speak TLS; of two with one range the older has it;
//   - the oldest service that has no address and does not speak TLS: it gets what
//     none of the others take. Without one, that goes where it was meant to go.

// onWildcard reports whether a service's port that does not speak HTTP is served
// by the listener for all addresses.
func onWildcard(v View, s *mesh.Service, p mesh.Port) bool {
	return len(s.Lead.Prefixes) > 0 || hasNoAddress(v, s) && (!speaksTLS(p) || serverNamed(s.Key.Hostname) || s.Key.Hostname == "*")
}

// speaksTLS reports whether connections to a port begin with the name of the
// host that they are for.
func speaksTLS(p mesh.Port) bool {
	return p.Protocol == mesh.ProtocolTLS || p.Protocol == mesh.ProtocolHTTPS
}

// serverNamed reports whether a host can be told by the server name: Envoy takes
// wildcards for whole labels only.
func serverNamed(h mesh.Hostname) bool {
	rest, wild := strings.CutPrefix(string(h), "*")
	return !strings.Contains(rest, "*") && (!wild || strings.HasPrefix(rest, "."))
}

// sharedPort is what the listener of a port for all addresses serves.
type sharedPort struct {
	http bool
	// spoken is the version of HTTP that the oldest of its services speaks, "" for none.
	spoken mesh.Protocol
	// named are told apart by server name, ranged by range; rest gets what nobody
	// else takes, nil if nobody does.
	named, ranged []ranged
	rest          *mesh.Service
}

// ranged is a service's port with the ranges of addresses that are its own.
type ranged struct {
	served
	ranges []netip.Prefix
}

func (p *sharedPort) streams() bool { return len(p.named)+len(p.ranged) > 0 || p.rest != nil }

// sharePort finds what the listener of a port for all addresses serves.
func sharePort(in Inputs, v View, number uint16) sharedPort {
	var out sharedPort
	var list []ranged
	var first *mesh.Service
	for _, s := range in.Catalog.OnPort(number) {
		p, ok := inPlace(in, v, s, number)
		switch {
		case !ok:
		case p.Protocol.IsHTTP():
			out.http = true
			if first == nil || older(s, first) < 0 {
				first, out.spoken = s, p.Protocol
			}
		case v.Interception == mesh.InterceptNone && dialsOriginal(s): // it would dial itself
		case onWildcard(v, s, p):
			list = append(list, ranged{served: served{s, p}})
		}
	}
	slices.SortFunc(list, func(a, b ranged) int { return older(a.service, b.service) })
	taken := map[netip.Prefix]struct{}{}
	for _, r := range list {
		named := speaksTLS(r.port) && r.service.Key.Hostname != "*"
		for _, prefix := range r.service.Lead.Prefixes {
			_, no := taken[prefix]
			if no && !named || !hasFamily(v, prefix.Addr()) || v.Interception == mesh.InterceptNone {
				continue
			}
			if !named {
				taken[prefix] = struct{}{}
			}
			r.ranges = append(r.ranges, prefix)
		}
		switch nowhere := hasNoAddress(v, r.service); {
		case named && serverNamed(r.service.Key.Hostname) && (nowhere || len(r.ranges) > 0):
			out.named = append(out.named, r)
		case !named && len(r.ranges) > 0:
			out.ranged = append(out.ranged, r)
		case !named && nowhere && out.rest == nil:
			out.rest = r.service
		}
	}
	return out
}

// webOnly reports whether the listener serves nothing but HTTP, so that it names
// no service.
func (p *sharedPort) webOnly() bool { return p.http && !p.streams() }

// sameForAll reports whether the listener of a port for all addresses is the same
// for two views because it serves nothing but HTTP, with the same filters.
func sameForAll(in Inputs, a, b View, number uint16) bool {
	x := sharePort(in, a, number)
	if !x.webOnly() {
		return false
	}
	y := sharePort(in, b, number)
	return y.webOnly() && (x.spoken == mesh.ProtocolGRPCWeb) == (y.spoken == mesh.ProtocolGRPCWeb)
}

// autoAddressed reports whether a service on the port has addresses that the
// mesh made up.
func autoAddressed(in Inputs, number uint16) bool {
	return slices.ContainsFunc(in.Catalog.OnPort(number), func(s *mesh.Service) bool { return len(s.Lead.AutoAddresses) > 0 })
}

// wildcardListener makes the listener of a port for all addresses.
func wildcardListener(in Inputs, v View, port uint16) (*listenerv3.Listener, error) {
	shared := sharePort(in, v, port)
	switch {
	case !shared.streams():
		if !shared.http {
			return nil, nil
		}
		return httpListener(in, v, port, shared.spoken)
	case !shared.http && len(shared.named)+len(shared.ranged) == 0:
		l, err := streamListener(in, v, shared.rest, everywhere(v), port)
		if l != nil {
			placeEverywhere(v, l, port)
		}
		return l, err
	}
	b, err := newSharedBuilder(in, v, port)
	if err != nil {
		return nil, err
	}
	return b.build(&shared)
}

// everywhere is the address of the listener for all addresses: without
// interception the loopback address, which clients dial themselves.
func everywhere(v View) string {
	if v.Interception == mesh.InterceptNone {
		return loopback(v)
	}
	return wildcard(v)
}

// placeEverywhere makes a listener one for all addresses.
func placeEverywhere(v View, l *listenerv3.Listener, port uint16) {
	if v.Interception == mesh.InterceptNone {
		l.BindToPort = nil
		return
	}
	l.AdditionalAddresses = secondWildcard(v, port)
}

// sharedBuilder makes the listener of a port that services of several kinds share.
type sharedBuilder struct {
	in      Inputs
	v       View
	port    uint16
	filters *filters
	l       *listenerv3.Listener
	used    chainSet
	sniffs  bool // HTTP
	asks    bool // server names
}

func newSharedBuilder(in Inputs, v View, port uint16) (*sharedBuilder, error) {
	f, err := newFilters(in, v, DirectionOutbound, port)
	if err != nil {
		return nil, err
	}
	l := outboundListener(in, everywhere(v), port)
	placeEverywhere(v, l, port)
	return &sharedBuilder{in: in, v: v, port: port, filters: f, l: l, used: chainSet{}}, nil
}

func (b *sharedBuilder) build(p *sharedPort) (*listenerv3.Listener, error) {
	if p.http {
		if err := b.http(strconv.Itoa(int(b.port)), p.spoken, nil); err != nil {
			return nil, err
		}
	}
	for _, r := range slices.Concat(p.named, p.ranged) {
		if err := b.service(r); err != nil {
			return nil, err
		}
	}
	if err := b.rest(p); err != nil {
		return nil, err
	}
	if b.asks {
		b.l.ListenerFilters = append(b.l.ListenerFilters, tlsInspector(nil))
	}
	if b.sniffs {
		b.l.ListenerFilters = append(b.l.ListenerFilters, httpInspector(nil))
	}
	return b.l, nil
}

// http adds a chain for what turns out to be plain HTTP.
func (b *sharedBuilder) http(route string, p mesh.Protocol, ranges []*corev3.CidrRange) error {
	filters, err := b.filters.http(outboundStat(everywhere(b.v), b.port), byRDS(route), p)
	if err != nil {
		return err
	}
	c := plainHTTPChain(filters)
	c.FilterChainMatch.PrefixRanges = ranges
	b.l.FilterChains, b.sniffs = append(b.l.FilterChains, c), true
	return nil
}

// service adds the chains of a service that is told by its range or name.
func (b *sharedBuilder) service(r ranged) error {
	var names []string
	if speaksTLS(r.port) && r.service.Key.Hostname != "*" {
		names = []string{string(r.service.Key.Hostname)}
	}
	chains, err := b.filters.streamChains(r.served, names, r.ranges, b.used)
	if err != nil {
		return err
	}
	b.l.FilterChains = append(b.l.FilterChains, chains...)
	b.asks = b.asks || named(chains)
	if r.port.Protocol != mesh.ProtocolAuto {
		return nil
	}
	return b.http(sniffedRoute(r.service.Key.Hostname, b.port), mesh.ProtocolAuto, cidrRanges(r.ranges))
}

// rest says what becomes of connections that no chain takes.
func (b *sharedBuilder) rest(p *sharedPort) error {
	if p.rest == nil {
		if b.v.Interception == mesh.InterceptNone {
			return nil // there is no other place that it was meant for
		}
		filters, err := b.filters.tcp(elsewhere(b.in, b.v), mesh.ProtocolTCP)
		b.l.DefaultFilterChain = &listenerv3.FilterChain{Name: passthroughChainName, FilterChainMatch: &listenerv3.FilterChainMatch{}, Filters: filters}
		return err
	}
	at, _ := streams(b.in, b.v, p.rest, b.port)
	chains, err := b.filters.streamChains(served{p.rest, at}, nil, nil, b.used)
	if err != nil {
		return err
	}
	b.asks = b.asks || named(chains)
	if at.Protocol == mesh.ProtocolAuto && !p.http {
		if err := b.http(sniffedRoute(p.rest.Key.Hostname, b.port), mesh.ProtocolAuto, nil); err != nil {
			return err
		}
	}
	for _, c := range chains {
		if c.GetFilterChainMatch() == nil {
			b.l.DefaultFilterChain = c
		} else {
			b.l.FilterChains = append(b.l.FilterChains, c)
		}
	}
	return nil
}

func cidrRanges(list []netip.Prefix) []*corev3.CidrRange {
	var out []*corev3.CidrRange
	for _, p := range list {
		out = append(out, &corev3.CidrRange{AddressPrefix: p.Addr().String(), PrefixLen: u32(uint32(p.Bits()))})
	}
	return out
}
