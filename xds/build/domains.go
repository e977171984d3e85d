package build

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// hostDomains appends the names under which clients of a namespace call a host:
// the host itself with and without a trailing dot, and for a host of the
// cluster domain the shorter forms that a resolver would complete: NAME.NS.svc
// and NAME.NS from everywhere, NAME from its own namespace.
func hostDomains(out []string, host, namespace, domain string) []string {
	out = append(out, host, host+".")
	name, ns, svc, ok := kubeParts(host, domain)
	if !ok {
		return out
	}
	if ns == namespace {
		out = append(out, name)
	}
	return append(out, svc, svc[:len(svc)-len(".svc")])
}

// kubeParts splits NAME.NS.svc.DOMAIN. svc is the host without its domain. All
// parts share the host's memory.
func kubeParts(host, domain string) (name, ns, svc string, ok bool) {
	svc, ok = strings.CutSuffix(host, domain)
	if !ok || !strings.HasSuffix(svc, ".svc.") {
		return "", "", "", false
	}
	svc = svc[:len(svc)-1]
	rest := svc[:len(svc)-len(".svc")]
	i := strings.LastIndexByte(rest, '.')
	if i <= 0 || i == len(rest)-1 {
		return "", "", "", false
	}
	return rest[:i], rest[i+1:], svc, true
}

// vipDomain writes an address as it stands in a Host header.
func vipDomain(a netip.Addr) string {
	if a = dialled(a); a.Is6() {
		return "[" + a.String() + "]"
	}
	return a.String()
}

// aliases maps hosts to the services that are other names for them (Services of
// type ExternalName), in order of their keys. nil if there are none.
func aliases(in Inputs, v View) map[mesh.Hostname][]*mesh.Service {
	var out map[mesh.Hostname][]*mesh.Service
	for s := range in.Catalog.Services() {
		if s.Lead.Resolution != mesh.ResolutionAlias || !s.VisibleTo(v.Namespace, in.Catalog.Settings.Mesh.GetDefaultServiceExportTo()) {
			continue
		}
		target, ok := aliasTarget(in.Catalog, s)
		if !ok {
			continue
		}
		if out == nil {
			out = map[mesh.Hostname][]*mesh.Service{}
		}
		out[target] = append(out[target], s)
	}
	for _, list := range out {
		slices.SortFunc(list, func(a, b *mesh.Service) int { return a.Key.Compare(b.Key) })
	}
	return out
}

// maxAliasHops bounds how long a chain of aliases is followed.
const maxAliasHops = 8

// aliasTarget follows an alias to the host of a real service of the mesh.
func aliasTarget(c *registry.Catalog, s *mesh.Service) (mesh.Hostname, bool) {
	for range maxAliasHops {
		host := s.Lead.ExternalName
		called := c.Host(host)
		if len(called) == 0 {
			return "", false // outside the mesh: the proxy resolves it
		}
		if slices.ContainsFunc(called, func(t *mesh.Service) bool { return t.Lead.Resolution != mesh.ResolutionAlias }) {
			return host, true
		}
		s = called[0]
	}
	return "", false
}

// domainSet gives each domain of a route configuration to one virtual host:
// Envoy refuses a configuration in which two have the same.
type domainSet map[string]any // a *mesh.Service or a *ruledHost

// take gives a domain to the service or rule unless another has it.
func (d domainSet) take(domain string, s any) {
	if _, taken := d[domain]; !taken {
		d[domain] = s
	}
}
