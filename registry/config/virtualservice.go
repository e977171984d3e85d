package config

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

func virtualServiceKind() descriptor {
	kind, versions := networkingKind(mesh.KindVirtualService, "virtualservices")
	return descriptor{
		Kind: kind, versions: versions,
		newSpec:  func() proto.Message { return &networking.VirtualService{} },
		typed:    typedAs(func(o *networkingv1.VirtualService) proto.Message { return &o.Spec }),
		validate: checks(validateVirtualService),
	}
}

// meshGateway is the name that stands for all sidecars in a list of gateways.
const meshGateway = "mesh"

func validateVirtualService(c *checker, v *networking.VirtualService) {
	delegate := len(v.GetHosts()) == 0
	if delegate {
		validateDelegate(c, v)
	}
	c.at("gateways").gatewayNames(v.GetGateways())
	validateVirtualHosts(c.at("hosts"), v)
	if len(v.GetHttp()) == 0 && len(v.GetTcp()) == 0 && len(v.GetTls()) == 0 {
		c.failf("has no routes; give http, tls or tcp")
	}
	claims := boundToGateways(v)
	for i, r := range v.GetHttp() {
		at := c.index("http", i)
		validateHTTPRoute(at, r, delegate)
		if !claims {
			validateNoClaims(at, r)
		}
	}
	hosts := newHostSet(v.GetHosts())
	hosts.forwarded = !slices.Contains(v.GetGateways(), meshGateway)
	for i, r := range v.GetTls() {
		validateTLSRoute(c.index("tls", i), r, hosts)
	}
	for i, r := range v.GetTcp() {
		validateTCPRoute(c.index("tcp", i), r)
	}
	c.at("exportTo").exportedTo(v.GetExportTo(), false)
	warnUnreachable(c, v)
}

// validateDelegate checks a virtual service without hosts: others hand requests
// to it.
func validateDelegate(c *checker, v *networking.VirtualService) {
	for _, f := range []struct {
		field string
		set   bool
	}{{"gateways", len(v.GetGateways()) > 0}, {"tls", len(v.GetTls()) > 0}, {"tcp", len(v.GetTcp()) > 0}} {
		if f.set {
			c.at(f.field).failf("is set, but without hosts only http routes can be delegated to; add hosts or remove it")
		}
	}
}

// boundToGateways reports whether a virtual service is for gateways only.
func boundToGateways(v *networking.VirtualService) bool {
	return len(v.GetGateways()) > 0 && !slices.Contains(v.GetGateways(), meshGateway)
}

func validateVirtualHosts(c *checker, v *networking.VirtualService) {
	gateways := boundToGateways(v)
	sni := slices.ContainsFunc(v.GetTls(), func(r *networking.TLSRoute) bool {
		return slices.ContainsFunc(r.GetMatch(), func(m *networking.TLSMatchAttributes) bool { return len(m.GetSniHosts()) > 0 })
	})
	valid := true
	for i, h := range v.GetHosts() {
		at := c.element(i)
		switch {
		case isAddress(h) || gateways && sni && isUpstreamSNI(h):
		case h == "*" && !gateways:
			at.failf(`"*" would take all traffic of all sidecars; name the hosts, or name gateways without "mesh"`)
			valid = false
		case badHost(h, true) != "":
			at.host(h, true)
			valid = false
		}
	}
	if !valid {
		return
	}
	of := newHostSet(v.GetHosts())
	for i, h := range v.GetHosts() {
		if j, ok := of.around(h, i); ok {
			c.element(i).failf("%q is within %q; keep one", clip(h), clip(v.GetHosts()[j]))
		}
	}
}

// isUpstreamSNI reports whether a name is one that sidecars send to gateways
// which route on the server name: outbound_.PORT_.SUBSET_.HOST.
func isUpstreamSNI(h string) bool {
	if !strings.HasPrefix(h, "outbound_") || len(h) > maxHost {
		return false
	}
	parts := strings.SplitN(h, "_", 5)
	return len(parts) > 3 && strings.ContainsAny(strings.Trim(parts[1], "."), "0123456789") &&
		strings.ContainsFunc(parts[3], func(r rune) bool { return isAlphanumeric(r) && r > '9' })
}

// hostSet is a list of hosts, of which some are wildcards, by what they match.
type hostSet struct {
	exact map[string]int // by name
	wild  map[string]int // by what is behind the *
	// forwarded says that server names which sidecars send to gateways pass.
	forwarded bool
}

func newHostSet(hosts []string) hostSet {
	s := hostSet{exact: map[string]int{}, wild: map[string]int{}}
	for i, h := range hosts {
		m := s.exact
		if rest, ok := strings.CutPrefix(h, "*"); ok {
			m, h = s.wild, rest
		}
		if _, there := m[h]; !there {
			m[h] = i
		}
	}
	return s
}

// around finds a host that matches everything that h matches, other than the one
// at index self (-1 for none). It costs as much as h is long.
func (s hostSet) around(h string, self int) (int, bool) {
	rest, wild := strings.CutPrefix(h, "*")
	if i, ok := s.exact[h]; ok && i != self {
		return i, true
	}
	from := 0
	if wild {
		h = rest
	}
	for ; from <= len(h); from++ {
		if i, ok := s.wild[h[from:]]; ok && i != self {
			return i, true
		}
	}
	return 0, false
}

// validateNoClaims refuses matches on token claims where no gateway has put them.
func validateNoClaims(c *checker, r *networking.HTTPRoute) {
	for i, m := range r.GetMatch() {
		c.index("match", i).noClaims("headers", m.GetHeaders())
		c.index("match", i).noClaims("withoutHeaders", m.GetWithoutHeaders())
	}
}

func (c *checker) noClaims(field string, headers map[string]*networking.StringMatch) {
	for _, k := range sortedKeys(headers) {
		if isClaim(k) {
			c.key(field, k).failf(`matches on a claim, which works on gateways only; name gateways without "mesh"`)
		}
	}
}
