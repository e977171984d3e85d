package validate

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
)

const (
	tlsInspectorURL  = "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"
	httpInspectorURL = "type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector"
)

func (c *check) listener(path string, l *listenerv3.Listener) {
	if l.GetApiListener() != nil {
		return // has nothing but its HTTP connection manager
	}
	if l.GetAddress() == nil {
		c.add(path, "no address")
	}
	chains := l.GetFilterChains()
	if len(chains) == 0 && l.GetDefaultFilterChain() == nil {
		c.add(path, "no filter chains")
	}
	c.chainMatches(path, chains)
	c.inspectors(path, l)
	all := chains
	if d := l.GetDefaultFilterChain(); d != nil {
		all = append(slices.Clip(all), d)
	}
	for _, f := range all {
		c.networkFilters(path, f)
	}
	if c.options.GRPC && (len(l.GetListenerFilters()) > 0 || l.GetUseOriginalDst().GetValue()) {
		c.add(path, "listener_filters or use_original_dst, which gRPC refuses")
	}
}

// chainMatches checks that no connection is claimed by two filter chains on the
// same grounds. A chain that lists several values of a kind claims each of them.
func (c *check) chainMatches(path string, chains []*listenerv3.FilterChain) {
	claimed := map[string]int{}
	for i, f := range chains {
		m := f.GetFilterChainMatch()
		if m.GetAddressSuffix() != "" || m.GetSuffixLen() != nil {
			c.add(path, "filter chain %d (%s) matches by address suffix, which Envoy does not implement", i, f.GetName())
		}
		for _, name := range m.GetServerNames() {
			if rest := strings.TrimPrefix(name, "*."); strings.Contains(rest, "*") || name == "" {
				c.add(path, "filter chain %d (%s): server name %q: only a leading \"*.\" is a wildcard", i, f.GetName(), name)
			}
		}
		for _, key := range claims(m) {
			if other, ok := claimed[key]; ok && other != i {
				c.add(path, "filter chains %d (%s) and %d (%s) match the same: %s", other, chains[other].GetName(), i, f.GetName(), key)
			} else if ok {
				c.add(path, "filter chain %d (%s) matches the same twice: %s", i, f.GetName(), key)
			}
			claimed[key] = i
		}
	}
}

// claims lists every combination of values that a match claims.
func claims(m *listenerv3.FilterChainMatch) []string {
	keys := []string{fmt.Sprintf("port %d, source %s, transport %q", m.GetDestinationPort().GetValue(), m.GetSourceType(), m.GetTransportProtocol())}
	ports := make([]string, 0, len(m.GetSourcePorts()))
	for _, p := range m.GetSourcePorts() {
		ports = append(ports, strconv.Itoa(int(p)))
	}
	keys = cross(keys, "to", ranges(m.GetPrefixRanges()))
	keys = cross(keys, "server name", m.GetServerNames())
	keys = cross(keys, "protocol", m.GetApplicationProtocols())
	keys = cross(keys, "directly from", ranges(m.GetDirectSourcePrefixRanges()))
	keys = cross(keys, "from", ranges(m.GetSourcePrefixRanges()))
	return cross(keys, "from port", ports)
}

func cross(keys []string, kind string, values []string) []string {
	if len(values) == 0 {
		return keys
	}
	out := make([]string, 0, len(keys)*len(values))
	for _, k := range keys {
		for _, v := range values {
			out = append(out, k+", "+kind+" "+v)
		}
	}
	return out
}

func ranges(list []*corev3.CidrRange) []string {
	out := make([]string, 0, len(list))
	for _, r := range list {
		out = append(out, r.GetAddressPrefix()+"/"+strconv.Itoa(int(r.GetPrefixLen().GetValue())))
	}
	return out
}

// inspectors checks that somebody finds out what the chains are told apart by.
func (c *check) inspectors(path string, l *listenerv3.Listener) {
	var needTLS, needHTTP, haveTLS, haveHTTP bool
	for _, f := range l.GetFilterChains() {
		m := f.GetFilterChainMatch()
		plain := m.GetTransportProtocol() == "raw_buffer"
		needTLS = needTLS || len(m.GetServerNames()) > 0 || m.GetTransportProtocol() == "tls" || !plain && len(m.GetApplicationProtocols()) > 0
		needHTTP = needHTTP || plain && len(m.GetApplicationProtocols()) > 0
	}
	for _, f := range l.GetListenerFilters() {
		haveTLS = haveTLS || f.GetTypedConfig().GetTypeUrl() == tlsInspectorURL
		haveHTTP = haveHTTP || f.GetTypedConfig().GetTypeUrl() == httpInspectorURL
	}
	if needTLS && !haveTLS {
		c.add(path, "filter chains match by server name, TLS or its protocols, but there is no tls_inspector")
	}
	if needHTTP && !haveHTTP {
		c.add(path, "filter chains match plain text by protocol, but there is no http_inspector")
	}
}

// networkFilters checks that connections end at a filter that takes them, and
// at no other before.
func (c *check) networkFilters(path string, f *listenerv3.FilterChain) {
	list := f.GetFilters()
	if len(list) == 0 {
		c.add(path, "filter chain %s has no filters: connections are closed at once", f.GetName())
	}
	for i, x := range list {
		url := x.GetTypedConfig().GetTypeUrl()
		if last := i == len(list)-1; last != (url == hcmURL || url == tcpProxyURL) {
			c.add(path, "filter chain %s: filter %q at place %d of %d: the HTTP connection manager or the TCP proxy is last",
				f.GetName(), x.GetName(), i+1, len(list))
		}
	}
}

// addressText renders an address for people.
func addressText(a *corev3.Address) string {
	if s := a.GetSocketAddress(); s != nil {
		return s.GetAddress() + ":" + strconv.Itoa(int(s.GetPortValue()))
	}
	return a.String()
}
