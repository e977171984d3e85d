package build

import (
	"net/netip"
	"slices"
	"strconv"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/registry/gatewayapi"
)

// Connections to a service's port that are not taken apart into requests go
// where the rules of VirtualServices send them: for a port that speaks TLS by the
// server name, for others by nothing but the address. All VirtualServices about
// the service have a say, the nearest first. Where rules for TLS name servers,
// connections to others are refused; where no rule holds, everything goes to the
// service itself.

// streamRoute is where some of the connections to a service's port go.
type streamRoute struct {
	// rule is nil for what goes to the service itself.
	rule *virtualService
	// names are the server names that connections are told by, ranges the addresses
	// that the client dialled; none means any.
	names  []string
	ranges []netip.Prefix
	to     []streamTarget
}

// streamTarget is an upstream with its share of connections.
type streamTarget struct {
	upstream UpstreamID
	weight   uint32
	// lookup is the service port whose names are looked up, nil as a rule; dropped
	// says that they cannot be (see holdStream).
	lookup  *served
	dropped bool
}

// name is the upstream's; what cannot be used drops its share of connections.
func (t streamTarget) name() string {
	if t.dropped || t.upstream.Host == gatewayapi.Unresolved {
		return UpstreamBlackHole
	}
	return t.upstream.String()
}

// streamScope says where rules for connections are to be in force.
type streamScope struct {
	routeScope
	at served
}

func newStreamScope(in Inputs, v View, at served) *streamScope {
	return &streamScope{at: at, routeScope: routeScope{in: in, v: v, gateway: meshGateway, port: at.port.Number}}
}

// routes lists where connections to the service's port go. Those with names or
// ranges are told apart by them; one without either, if there is one, is last
// and gets the rest.
func (s *streamScope) routes() []streamRoute {
	rules := ruleTables(s.in).bound[meshGateway].overlapping(s.in, s.v, s.at.service.Key.Hostname)
	if speaksTLS(s.at.port) {
		if out := s.byName(rules); len(out) > 0 {
			return out
		}
		return []streamRoute{s.straight()}
	}
	out := s.byAddress(rules)
	if n := len(out); n > 0 && len(out[n-1].ranges) == 0 {
		return out
	}
	return append(out, s.straight())
}

func (s *streamScope) straight() streamRoute {
	return streamRoute{to: []streamTarget{{upstream: UpstreamID{Direction: DirectionOutbound, Port: s.port, Host: s.at.service.Key.Hostname}, weight: 1}}}
}

// byName lists the routes of rules for TLS.
func (s *streamScope) byName(rules []*virtualService) []streamRoute {
	var out []streamRoute
	for _, vs := range rules {
		for _, r := range vs.tls {
			to := s.targets(r.GetRoute(), vs.name.Namespace)
			if len(to) == 0 {
				continue
			}
			for _, m := range r.GetMatch() {
				if !s.holds(vs, m.GetGateways(), m.GetPort(), m.GetSourceNamespace(), m.GetSourceLabels()) {
					continue
				}
				names, any := serverNames(m.GetSniHosts())
				if len(names) > 0 || any {
					out = append(out, streamRoute{rule: vs, names: names, ranges: subnets(m.GetDestinationSubnets()), to: to})
				}
			}
		}
	}
	return out
}

// byAddress lists the routes of rules for TCP up to the first that takes all.
func (s *streamScope) byAddress(rules []*virtualService) []streamRoute {
	var out []streamRoute
	for _, vs := range rules {
		for _, r := range vs.tcp {
			to := s.targets(r.GetRoute(), vs.name.Namespace)
			if len(to) == 0 {
				continue
			}
			matches := r.GetMatch()
			if len(matches) == 0 {
				matches = []*networking.L4MatchAttributes{{}}
			}
			var ranges []netip.Prefix
			for _, m := range matches {
				if !s.holds(vs, m.GetGateways(), m.GetPort(), m.GetSourceNamespace(), m.GetSourceLabels()) {
					continue
				}
				if len(m.GetDestinationSubnets()) == 0 {
					return append(out, streamRoute{rule: vs, to: to})
				}
				ranges = append(ranges, subnets(m.GetDestinationSubnets())...)
			}
			if len(ranges) > 0 {
				out = append(out, streamRoute{rule: vs, ranges: ranges, to: to})
			}
		}
	}
	return out
}

// holds decides what of a match is known before any connection.
func (s *streamScope) holds(vs *virtualService, gateways []string, port uint32, namespace string, labels map[string]string) bool {
	return (len(gateways) == 0 || slices.ContainsFunc(gateways, func(g string) bool { return fullGateway(g, vs.name.Namespace) == s.gateway })) &&
		(port == 0 || port == uint32(s.port)) && (namespace == "" || namespace == s.v.Namespace) && s.selected(labels)
}

// targets resolves the destinations of a rule. One alone needs no weight.
func (s *streamScope) targets(list []*networking.RouteDestination, namespace string) []streamTarget {
	var out []streamTarget
	for _, d := range list {
		if d.GetWeight() > 0 || len(list) == 1 {
			to := resolveDestination(s.in, s.v, d.GetDestination(), namespace, s.port)
			out = append(out, streamTarget{upstream: to, weight: uint32(max(d.GetWeight(), 1))})
		}
	}
	return out
}

// serverNames keeps the names that Envoy can tell connections by. "*" stands for
// any name or none.
func serverNames(hosts []string) (names []string, any bool) {
	for _, h := range hosts {
		if h == "*" {
			return nil, true
		}
		if n := fullHost(h, ""); serverNamed(n) && !slices.Contains(names, string(n)) {
			names = append(names, string(n))
		}
	}
	return names, false
}

// subnets reads addresses and ranges of addresses.
func subnets(list []string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if a, wrong := netip.ParseAddr(s); wrong == nil {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err == nil && !slices.Contains(out, p.Masked()) {
			out = append(out, p.Masked())
		}
	}
	return out
}

// streamChains makes the chains for connections to a service's port. names and
// ranges tell it apart from other services at the same address, where there are
// any; used holds what chains of the same listener are told by already.
func (f *filters) streamChains(at served, names []string, ranges []netip.Prefix, used chainSet) ([]*listenerv3.FilterChain, error) {
	var out []*listenerv3.FilterChain
	for _, r := range newStreamScope(f.in, f.v, at).routes() {
		if len(r.ranges) == 0 {
			r.ranges = ranges
		}
		if r.rule == nil {
			r.names = names
			if byRequest(at.service) && len(names) == 0 {
				r.names = []string{string(at.service.Key.Hostname)}
			}
		}
		r = f.holdStream(r, r.names)
		match, ok := used.take(r.names, r.ranges)
		if !ok {
			continue
		}
		filters, err := f.stream(&r, at.port.Protocol)
		if err != nil {
			return nil, err
		}
		c := &listenerv3.FilterChain{FilterChainMatch: match, Filters: filters, TransportSocketConnectTimeout: duration(connectTimeout)}
		if r.rule != nil {
			c.Metadata = originMetadata(mesh.KindVirtualService, r.rule.name)
		}
		out = append(out, c)
	}
	return out, nil
}

// chainSet holds what the chains of a listener are told by, each pair of a range
// and a name once: Envoy refuses a listener with two chains for one.
type chainSet map[string]struct{}

// take makes the match of a chain of what is still free; false if nothing is. A
// match of no names and no ranges is nil.
func (u chainSet) take(names []string, ranges []netip.Prefix) (*listenerv3.FilterChainMatch, bool) {
	anyName, anywhere := []string{""}, []netip.Prefix{{}}
	free := func(name string, p netip.Prefix) bool {
		_, taken := u[p.String()+" "+name]
		return !taken
	}
	var ownNames []string
	for _, n := range cmpOr(names, anyName) {
		// A name is free if it is so in all of the ranges; without names the ranges
		// are looked at one by one.
		if len(names) == 0 || !slices.ContainsFunc(cmpOr(ranges, anywhere), func(p netip.Prefix) bool { return !free(n, p) }) {
			ownNames = append(ownNames, n)
		}
	}
	var own []netip.Prefix
	for _, p := range cmpOr(ranges, anywhere) {
		if !slices.Contains(own, p) && (len(names) > 0 || free("", p)) {
			own = append(own, p)
		}
	}
	if len(ownNames) == 0 || len(own) == 0 {
		return nil, false
	}
	for _, n := range ownNames {
		for _, p := range own {
			u[p.String()+" "+n] = struct{}{}
		}
	}
	switch {
	case len(names)+len(ranges) == 0:
		return nil, true
	case len(names) == 0:
		ownNames = nil
	case len(ranges) == 0:
		own = nil
	}
	return &listenerv3.FilterChainMatch{ServerNames: ownNames, PrefixRanges: cidrRanges(own)}, true
}

func cmpOr[T any](list, otherwise []T) []T {
	if len(list) > 0 {
		return list
	}
	return otherwise
}

// named reports whether any of the chains is told by server names, so that the
// listener has to read them.
func named(chains []*listenerv3.FilterChain) bool {
	return slices.ContainsFunc(chains, func(c *listenerv3.FilterChain) bool { return len(c.GetFilterChainMatch().GetServerNames()) > 0 })
}

// stream makes the filters of a chain that passes bytes to the upstreams of a
// route. What the DestinationRule of the first says of connections holds.
func (f *filters) stream(r *streamRoute, p mesh.Protocol) ([]*listenerv3.Filter, error) {
	t := &tcpproxyv3.TcpProxy{StatPrefix: f.streamStat(r.to[0].upstream), AccessLog: f.logs, IdleTimeout: f.idle()}
	if len(r.to) == 1 {
		t.ClusterSpecifier = &tcpproxyv3.TcpProxy_Cluster{Cluster: r.to[0].name()}
	} else {
		t.StatPrefix = r.rule.name.Name + "." + r.rule.name.Namespace
		w := &tcpproxyv3.TcpProxy_WeightedCluster{}
		for _, to := range r.to {
			w.Clusters = append(w.Clusters, &tcpproxyv3.TcpProxy_WeightedCluster_ClusterWeight{Name: to.name(), Weight: to.weight})
		}
		t.ClusterSpecifier = &tcpproxyv3.TcpProxy_WeightedClusters{WeightedClusters: w}
	}
	f.limitStream(t, r.to[0].upstream)
	lookups, err := r.to[0].lookupFilters(f.in, f.v)
	if err != nil {
		return nil, err
	}
	return f.tcpFilters(t, p, lookups...)
}

// streamStat is the name under which the connections to an upstream are counted.
func (f *filters) streamStat(to UpstreamID) string {
	name := to.String()
	if f.in.Catalog.Settings.Mesh.GetOutboundClusterStatName() == "" {
		return name
	}
	if at, ok := findServed(f.in, f.v, to.Host, to.Port); ok {
		return upstreamStat(f.in, at, to, name)
	}
	return name
}

// limitStream applies what a DestinationRule says of the connections to an
// upstream: how long they last, whether the client's address decides which
// endpoint they go to, and whether they are tunnelled.
func (f *filters) limitStream(t *tcpproxyv3.TcpProxy, to UpstreamID) {
	if len(destinationRules(f.in)) == 0 {
		return
	}
	found, ok := findServed(f.in, f.v, to.Host, to.Port)
	if !ok {
		return
	}
	policy, _ := trafficPolicy(f.in, f.v, found, to.Subset)
	tcp := policy.GetConnectionPool().GetTcp()
	if measurable(tcp.GetIdleTimeout()) {
		t.IdleTimeout = tcp.GetIdleTimeout()
	}
	if positive(tcp.GetMaxConnectionDuration()) {
		t.MaxDownstreamConnectionDuration = tcp.GetMaxConnectionDuration()
	}
	if policy.GetLoadBalancer().GetConsistentHash().GetUseSourceIp() {
		t.HashPolicy = []*typev3.HashPolicy{{PolicySpecifier: &typev3.HashPolicy_SourceIp_{SourceIp: &typev3.HashPolicy_SourceIp{}}}}
	}
	if tunnel := policy.GetTunnel(); tunnel.GetTargetHost() != "" {
		host := tunnel.GetTargetHost()
		if a, err := netip.ParseAddr(host); err == nil {
			host = vipDomain(a)
		}
		t.TunnelingConfig = &tcpproxyv3.TcpProxy_TunnelingConfig{
			Hostname: host + ":" + strconv.Itoa(int(tunnel.GetTargetPort())),
			UsePost:  tunnel.GetProtocol() == "POST",
		}
	}
}

// streamLabels lists the keys of the labels that the listeners of a port depend
// on: those of the source labels of rules about connections to its services, and
// those by which rules of the view's namespace select their clients.
func streamLabels(in Inputs, v View, port uint16) []string {
	var keys []string
	if b := ruleTables(in).bound[meshGateway]; b != nil {
		about := aboutPort(in, port, false)
		for _, vs := range visibleRules(in, v, b.sourced) {
			if len(vs.streamKeys) > 0 && about(vs) {
				keys = append(keys, vs.streamKeys...)
			}
		}
	}
	keys = append(keys, selectorKeys(in, v.Namespace)...)
	slices.Sort(keys)
	return slices.Compact(keys)
}

// streamsChanged adds to the changed services those whose connections changed
// rules are about, or rules that lead to changed services, so that their
// listeners count as changed.
func streamsChanged(in Inputs, c *registry.Change) *registry.Change {
	about := map[mesh.ServiceKey]*mesh.Service{}
	add := func(host mesh.Hostname) {
		for s := range servicesOf(in, host) {
			about[s.Key] = s
		}
	}
	rules := func(list []*virtualService) {
		for _, vs := range list {
			if len(vs.tcp)+len(vs.tls) == 0 || !slices.Contains(vs.gateways, meshGateway) {
				continue
			}
			for _, h := range vs.hosts {
				add(h)
			}
		}
	}
	for k, o := range c.Objects {
		switch k.Kind {
		case mesh.KindVirtualService:
			rules(changedRules(in, o))
		case mesh.KindDestinationRule:
			for _, x := range []*mesh.Object{o.Before, o.After} {
				if r, ok := specOf[*networking.DestinationRule](x); ok {
					host := fullHost(r.GetHost(), k.Namespace)
					add(host)
					for s := range servicesOf(in, host) {
						rules(ruleTables(in).leading[s.Key.Hostname])
					}
				}
			}
		}
	}
	leadingToChanged(in, c, func(vs *virtualService) { rules([]*virtualService{vs}) })
	return withServices(in, c, about)
}

// specOf reads the specification of an object that may not be there.
func specOf[M any](o *mesh.Object) (m M, ok bool) {
	if o != nil {
		m, ok = o.Spec.(M)
	}
	return m, ok
}

// withServices adds services to a change as if they were defined anew.
func withServices(in Inputs, c *registry.Change, list map[mesh.ServiceKey]*mesh.Service) *registry.Change {
	if len(list) == 0 {
		return c
	}
	wider := *c
	wider.Services = make(map[mesh.ServiceKey]registry.ServiceChange, len(c.Services)+len(list))
	for k, s := range c.Services {
		wider.Services[k] = s
	}
	for k, s := range list {
		x, ok := wider.Services[k]
		if !ok {
			set := in.Endpoints.Endpoints(k)
			x = registry.ServiceChange{Before: s, After: s, EndpointsBefore: set, EndpointsAfter: set}
		}
		x.Aspects |= registry.AspectDefinition
		wider.Services[k] = x
	}
	return &wider
}
