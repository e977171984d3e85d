package simulate

import (
	"net/netip"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
)

// Names of the listener filters that find out what a connection is.
const (
	tlsInspector  = "envoy.filters.listener.tls_inspector"
	httpInspector = "envoy.filters.listener.http_inspector"
)

// sight is what a listener knows of a connection when it chooses a filter chain.
type sight struct {
	to        netip.AddrPort
	from      netip.Addr
	sni       string
	transport string
	alpn      []string
}

// seen is what the filters of a listener find out.
func seen(l *listenerv3.Listener, c Connection) sight {
	s := sight{to: c.To, from: c.From, transport: "raw_buffer"}
	if !s.from.IsValid() {
		s.from = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	tls := c.TLS || c.SNI != ""
	for _, f := range l.GetListenerFilters() {
		if off := f.GetFilterDisabled(); off != nil && disabled(off, c) {
			continue
		}
		switch {
		case f.GetName() == tlsInspector && tls:
			s.transport, s.sni, s.alpn = "tls", strings.ToLower(c.SNI), c.ALPN
		case f.GetName() == httpInspector && !tls && c.Request != nil && c.Request.HTTP2:
			s.alpn = []string{"h2c"}
		case f.GetName() == httpInspector && !tls && c.Request != nil:
			s.alpn = []string{"http/1.1"}
		}
	}
	return s
}

// disabled evaluates the predicate by which a listener filter is skipped.
func disabled(p *listenerv3.ListenerFilterChainMatchPredicate, c Connection) bool {
	switch r := p.GetRule().(type) {
	case *listenerv3.ListenerFilterChainMatchPredicate_AnyMatch:
		return true
	case *listenerv3.ListenerFilterChainMatchPredicate_NotMatch:
		return !disabled(r.NotMatch, c)
	case *listenerv3.ListenerFilterChainMatchPredicate_OrMatch:
		return slices.ContainsFunc(r.OrMatch.GetRules(), func(x *listenerv3.ListenerFilterChainMatchPredicate) bool { return disabled(x, c) })
	case *listenerv3.ListenerFilterChainMatchPredicate_AndMatch:
		return !slices.ContainsFunc(r.AndMatch.GetRules(), func(x *listenerv3.ListenerFilterChainMatchPredicate) bool { return !disabled(x, c) })
	case *listenerv3.ListenerFilterChainMatchPredicate_DestinationPortRange:
		port := int32(c.To.Port())
		return port >= r.DestinationPortRange.GetStart() && port < r.DestinationPortRange.GetEnd()
	}
	return false
}

// matchChain chooses a filter chain as Envoy does: criterion by criterion the
// most specific value that matches wins, and chains that lost at one criterion
// do not come back at a later one.
//
// Source: the message FilterChainMatch in Envoy's documentation.
func matchChain(l *listenerv3.Listener, s sight) *listenerv3.FilterChain {
	left := slices.Clone(l.GetFilterChains())
	for _, criterion := range []func(*listenerv3.FilterChainMatch) int{
		s.port, s.address, s.server, s.protocol, s.application, s.sourceType, s.source,
	} {
		left = best(left, criterion)
	}
	if len(left) > 0 {
		return left[0]
	}
	return l.GetDefaultFilterChain()
}

// best keeps the chains with the highest rank; those with a negative one do not match.
func best(chains []*listenerv3.FilterChain, rank func(*listenerv3.FilterChainMatch) int) []*listenerv3.FilterChain {
	top := 0
	for _, c := range chains {
		top = max(top, rank(c.GetFilterChainMatch()))
	}
	return slices.DeleteFunc(chains, func(c *listenerv3.FilterChain) bool { return rank(c.GetFilterChainMatch()) != top })
}

const noMatch = -1

func (s sight) port(m *listenerv3.FilterChainMatch) int {
	switch {
	case m.GetDestinationPort() == nil:
		return 0
	case m.GetDestinationPort().GetValue() == uint32(s.to.Port()):
		return 1
	}
	return noMatch
}

func (s sight) address(m *listenerv3.FilterChainMatch) int {
	return inRanges(m.GetPrefixRanges(), s.to.Addr())
}
func (s sight) source(m *listenerv3.FilterChainMatch) int {
	return inRanges(m.GetSourcePrefixRanges(), s.from)
}

// inRanges ranks by the longest prefix that holds the address.
func inRanges(ranges []*corev3.CidrRange, a netip.Addr) int {
	if len(ranges) == 0 {
		return 0
	}
	rank := noMatch
	for _, r := range ranges {
		addr, err := netip.ParseAddr(r.GetAddressPrefix())
		if err != nil {
			continue
		}
		if p, err := addr.Prefix(int(r.GetPrefixLen().GetValue())); err == nil && p.Contains(a.Unmap()) {
			rank = max(rank, p.Bits()+1)
		}
	}
	return rank
}

func (s sight) server(m *listenerv3.FilterChainMatch) int {
	if len(m.GetServerNames()) == 0 {
		return 0
	}
	rank := noMatch
	for _, n := range m.GetServerNames() {
		n = strings.ToLower(n)
		suffix, wild := strings.CutPrefix(n, "*")
		switch {
		case s.sni == "":
		case n == s.sni:
			rank = max(rank, 1<<16)
		case wild && strings.HasSuffix(s.sni, suffix):
			rank = max(rank, 1+len(suffix))
		}
	}
	return rank
}

func (s sight) protocol(m *listenerv3.FilterChainMatch) int {
	switch m.GetTransportProtocol() {
	case "":
		return 0
	case s.transport:
		return 1
	}
	return noMatch
}

func (s sight) application(m *listenerv3.FilterChainMatch) int {
	if len(m.GetApplicationProtocols()) == 0 {
		return 0
	}
	for i, a := range s.alpn { // what the client names first counts first
		if slices.Contains(m.GetApplicationProtocols(), a) {
			return len(s.alpn) - i
		}
	}
	return noMatch
}

func (s sight) sourceType(m *listenerv3.FilterChainMatch) int {
	local := s.from.IsLoopback() || s.from == s.to.Addr()
	switch m.GetSourceType() {
	case listenerv3.FilterChainMatch_SAME_IP_OR_LOOPBACK:
		if !local {
			return noMatch
		}
		return 1
	case listenerv3.FilterChainMatch_EXTERNAL:
		if local {
			return noMatch
		}
		return 1
	}
	return 0
}
