package build

import (
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// Hosts of VirtualServices need not be hosts of services: rules for other hosts
// have virtual hosts of their own on the ports of the services that the same
// VirtualService is about, and all have them on port 80. So have rules for other
// names of services, which then are no longer mere names.

// plainPort is the port on which all hosts of VirtualServices are served.
const plainPort = 80

// ruledHost is a virtual host that is there because of a rule alone.
type ruledHost struct {
	host    mesh.Hostname
	domains []string
	routes  []*routev3.Route
}

// virtualHost has the routes for the domains that the host was allotted; nil if
// there are none.
func (r *ruledHost) virtualHost(v View, port uint16, taken domainSet) *routev3.VirtualHost {
	domains := slices.DeleteFunc(r.domains, func(d string) bool {
		mine := taken[d] == any(r)
		if mine {
			taken[d] = nil // given once
		}
		return !mine
	})
	if len(domains) == 0 {
		return nil
	}
	return routedHost(v, r.host, port, domains, r.routes)
}

// ruledHosts lists the virtual hosts of a port that are no services', in the
// order in which their rules win.
func (b *routeBuilder) ruledHosts(services []*mesh.Service, also map[mesh.Hostname][]*mesh.Service) ([]ruledHost, error) {
	if b.rules == nil {
		return nil, nil
	}
	var out []ruledHost
	seen := map[mesh.Hostname]struct{}{}
	add := func(vs *virtualService, h mesh.Hostname, domains ...string) error {
		if _, ok := seen[h]; ok {
			return nil
		}
		routes, err := b.rulesOf(vs)
		if len(routes) > 0 {
			seen[h] = struct{}{}
			out = append(out, ruledHost{h, domains, routes})
		}
		return err
	}
	for _, s := range services {
		for _, a := range also[s.Key.Hostname] {
			if b.serves(services, a.Key.Hostname) {
				continue // elsewhere the name is a service's own
			}
			for _, vs := range visibleRules(b.in, b.v, b.rules.exact[a.Key.Hostname]) {
				if err := add(vs, a.Key.Hostname, hostDomains(nil, string(a.Key.Hostname), b.v.Namespace, b.v.Domain)...); err != nil {
					return nil, err
				}
			}
		}
	}
	for _, vs := range b.rulesAt(services) {
		for _, h := range vs.hosts {
			if b.serves(services, h) {
				continue
			}
			if err := add(vs, h, hostDomain(h)); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// rulesAt lists the VirtualServices whose hosts are served on the port.
func (b *routeBuilder) rulesAt(services []*mesh.Service) []*virtualService {
	all := visibleRules(b.in, b.v, b.rules.all)
	if b.port == plainPort {
		return all
	}
	about := map[*virtualService]struct{}{}
	for _, s := range services {
		for _, vs := range b.rules.forHost(b.in, b.v, s.Key.Hostname) {
			about[vs] = struct{}{}
		}
	}
	return slices.DeleteFunc(all, func(vs *virtualService) bool {
		_, ok := about[vs]
		return !ok
	})
}

// serves reports whether a host of a rule stands for services on the port.
func (b *routeBuilder) serves(services []*mesh.Service, h mesh.Hostname) bool {
	if isWild(h) {
		return slices.ContainsFunc(services, func(s *mesh.Service) bool { return hostsOverlap(s.Key.Hostname, h) })
	}
	_, ok := findServed(b.in, b.v, h, b.port)
	return ok
}

// hostDomain writes a host, which may be an address, as it stands in a Host header.
func hostDomain(h mesh.Hostname) string {
	if a, err := netip.ParseAddr(string(h)); err == nil {
		return vipDomain(a)
	}
	return string(h)
}

// routeLabels lists the keys of the labels that a route configuration depends
// on: those of the source labels of rules that may be in it, as about tells, and
// those by which rules of the view's namespace, which may hash requests, select
// their clients.
func routeLabels(in Inputs, v View, about func(*virtualService) bool) []string {
	var keys []string
	if b := ruleTables(in).bound[meshGateway]; b != nil {
		for _, vs := range visibleRules(in, v, b.sourced) {
			if about(vs) {
				keys = append(keys, vs.httpKeys...)
			}
		}
	}
	keys = append(keys, selectorKeys(in, v.Namespace)...)
	slices.Sort(keys)
	return slices.Compact(keys)
}

// selectorKeys lists the keys of the labels by which DestinationRules of a
// namespace select their clients.
func selectorKeys(in Inputs, namespace string) []string {
	var keys []string
	if space := destinationRules(in)[namespace]; space != nil {
		for _, h := range space.exact { // patterns are in it too
			for _, r := range h.rules {
				keys = slices.AppendSeq(keys, maps.Keys(r.selector))
			}
		}
	}
	return keys
}

// aboutPort tells of rules whether they may be about services on a port, or with
// requests about other hosts that are served there.
func aboutPort(in Inputs, port uint16, requests bool) func(*virtualService) bool {
	return func(vs *virtualService) bool {
		return requests && port == plainPort || slices.ContainsFunc(vs.hosts, func(h mesh.Hostname) bool {
			return slices.ContainsFunc(in.Catalog.OnPort(port), func(s *mesh.Service) bool { return hostsOverlap(s.Key.Hostname, h) })
		})
	}
}

// aboutHost tells of rules whether they may be about a host.
func aboutHost(host mesh.Hostname) func(*virtualService) bool {
	return func(vs *virtualService) bool {
		return slices.ContainsFunc(vs.hosts, func(h mesh.Hostname) bool { return hostsOverlap(host, h) })
	}
}

// rulesChanged collects the names of the route configurations that a changed
// VirtualService may alter: those of the services that its hosts stand for, and
// that of port 80.
func rulesChanged(in Inputs, v View, c *registry.Change, names map[string]struct{}) {
	for k, o := range c.Objects {
		switch k.Kind {
		case mesh.KindVirtualService:
			for _, vs := range changedRules(in, o) {
				routesOfRules(in, v, vs, names)
			}
		case mesh.KindDestinationRule:
			for _, x := range []*mesh.Object{o.Before, o.After} {
				if r, ok := specOf[*networking.DestinationRule](x); ok {
					hashChanged(in, v, r, fullHost(r.GetHost(), k.Namespace), names)
				}
			}
		}
	}
}

// changedRules lists what a changed object was and is: itself, or for a delegate
// those that delegate to it.
func changedRules(in Inputs, o registry.ObjectChange) []*virtualService {
	x := ruleTables(in)
	var out []*virtualService
	for _, obj := range []*mesh.Object{o.Before, o.After} {
		if obj == nil {
			continue
		}
		name := ObjectName{obj.Key.Namespace, obj.Key.Name}
		if spec, ok := obj.Spec.(*networking.VirtualService); ok && len(spec.GetHosts()) > 0 {
			vs, _ := readVirtualService(obj, spec, nil)
			out = append(out, vs)
			continue
		}
		for _, root := range x.roots[name] {
			if vs := x.byName[root]; vs != nil {
				out = append(out, vs)
			}
		}
	}
	return out
}

// routesOfRules collects the names of the route configurations in which a
// VirtualService may have a part.
func routesOfRules(in Inputs, v View, vs *virtualService, names map[string]struct{}) {
	if !slices.Contains(vs.gateways, meshGateway) || exportRank(in, v.Namespace, vs) == ruleHidden {
		return
	}
	if v.Dialect != mesh.DialectGRPC {
		names[strconv.Itoa(plainPort)] = struct{}{}
	}
	for _, h := range vs.hosts {
		for s := range servicesOf(in, h) {
			routesOf(in, v, s, names)
		}
	}
}

// servicesOf yields the services that a host of a rule has names in common with.
func servicesOf(in Inputs, h mesh.Hostname) iter.Seq[*mesh.Service] {
	return func(yield func(*mesh.Service) bool) {
		if !isWild(h) {
			called := []mesh.Hostname{h}
			for i := range len(h) + 1 {
				called = append(called, "*"+h[i:])
			}
			for _, name := range called {
				for _, s := range in.Catalog.Host(name) {
					if !yield(s) {
						return
					}
				}
			}
			return
		}
		for s := range in.Catalog.Services() {
			if hostsOverlap(s.Key.Hostname, h) && !yield(s) {
				return
			}
		}
	}
}

// unruledPorts collects the names of the route configurations of a service's
// ports if rules name its host: on a port where it is served, whatever it speaks,
// they have no virtual host of their own for it.
func unruledPorts(in Inputs, v View, s *mesh.Service, names map[string]struct{}) {
	if v.Dialect == mesh.DialectGRPC || len(ruleTables(in).bound[meshGateway].overlapping(in, v, s.Key.Hostname)) == 0 {
		return
	}
	for _, n := range numbers(s) {
		names[strconv.Itoa(int(n))] = struct{}{}
	}
}

// hashChanged collects the route configurations that lead to the host of a
// changed DestinationRule, if what is hashed may have changed with it.
func hashChanged(in Inputs, v View, r *networking.DestinationRule, host mesh.Hostname, names map[string]struct{}) {
	for s := range servicesOf(in, host) {
		if hashes(r) || hashesOf(in, s.Key.Hostname) {
			routesOf(in, v, s, names)
			routesTo(in, v, s.Key.Hostname, names)
		}
	}
}

// routesTo collects the names of the route configurations with rules that lead
// to a host.
func routesTo(in Inputs, v View, host mesh.Hostname, names map[string]struct{}) {
	for _, vs := range ruleTables(in).leading[host] {
		routesOfRules(in, v, vs, names)
	}
}

// leadingToChanged calls f for the rules that lead to changed services, be it by
// other names of them.
func leadingToChanged(in Inputs, c *registry.Change, f func(*virtualService)) {
	changed := map[mesh.Hostname]struct{}{}
	for k, s := range c.Services {
		if s.Aspects.Has(registry.AspectDefinition) {
			changed[k.Hostname] = struct{}{}
		}
	}
	if len(changed) == 0 {
		return
	}
	for host, rules := range ruleTables(in).leading {
		if _, ok := changed[host]; ok || slices.ContainsFunc(aliasHops(in.Catalog, host), func(h mesh.Hostname) bool {
			_, ok := changed[h]
			return ok
		}) {
			for _, vs := range rules {
				f(vs)
			}
		}
	}
}

// aliasHops lists the hosts that a host is another name for, directly or not.
func aliasHops(c *registry.Catalog, host mesh.Hostname) []mesh.Hostname {
	if !slices.ContainsFunc(c.Host(host), func(s *mesh.Service) bool { return s.Lead.Resolution == mesh.ResolutionAlias }) {
		return nil // as a rule
	}
	var out []mesh.Hostname
	for next := []mesh.Hostname{host}; len(next) > 0; {
		var found []mesh.Hostname
		for _, h := range next {
			for _, s := range c.Host(h) {
				if to := s.Lead.ExternalName; s.Lead.Resolution == mesh.ResolutionAlias && !slices.Contains(out, to) {
					out, found = append(out, to), append(found, to)
				}
			}
		}
		next = found
	}
	return out
}
