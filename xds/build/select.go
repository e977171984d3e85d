package build

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// Selection is what a proxy is sent for one service port, and why.
type Selection struct {
	// Groups are the addresses to dial, ordered by locality.
	Groups []Group
	// Candidates are all endpoints with the decision about each.
	Candidates []Candidate
}

// Group is what is dialled in one locality. Gateways are in the locality of the
// endpoints that they stand for, not in their own.
type Group struct {
	Locality mesh.Locality
	Entries  []Entry
}

// Entry is one address to dial: an endpoint's own or that of a gateway. Exactly
// one of the two is set.
type Entry struct {
	Endpoint *mesh.Endpoint
	Gateway  *mesh.NetworkGateway
	Weight   uint32
}

// Address is what is dialled.
func (e *Entry) Address() netip.AddrPort {
	if e.Gateway != nil {
		return netip.AddrPortFrom(dialled(e.Gateway.Addr), e.Gateway.Port)
	}
	return netip.AddrPortFrom(dialled(e.Endpoint.Addr), e.Endpoint.Port)
}

// dialled is an address as it is written: IPv4 in IPv6 as IPv4, and without a
// zone, which means nothing on another host.
func dialled(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

func addrPortText(a netip.Addr, port uint16) string {
	return netip.AddrPortFrom(dialled(a), port).String()
}

// Select chooses what a proxy with the view dials for a service port:
//
//   - the endpoint's own address if it is on the proxy's network or one of the
//     two networks is not known;
//   - else the gateways of the endpoint's network, those in its own cluster if
//     there are any: one entry per gateway address and locality, which carries
//     the weight of all endpoints it stands for;
//   - else nothing. An address that cannot be routed is never sent.
func Select(in Inputs, v View, svc *mesh.Service, port mesh.Port) Selection {
	return selection(in, v, svc, port, false)
}

// selection is [Select], or the same for the SNI-DNAT upstream of a gateway.
func selection(in Inputs, v View, svc *mesh.Service, port mesh.Port, sni bool) Selection {
	s := newSelector(in, v, svc, sni)
	set := in.Endpoints.Endpoints(svc.Key)
	list := set.Port(port.Name)
	out := Selection{Groups: s.plan(list).expand(), Candidates: make([]Candidate, 0, len(list))}
	for i := range list {
		code, r := s.decide(&list[i])
		c := Candidate{Endpoint: list[i], Verdict: Verdict{Code: code}}
		if r != nil {
			c.Verdict.Gateways = r.gateways
		}
		out.Candidates = append(out.Candidates, c)
	}
	return Selection{Groups: out.Groups, Candidates: append(out.Candidates, misnamed(set, svc, port)...)}
}

// misnamed lists the endpoints of clusters that give the port's number another
// name: they do not serve the port as the mesh knows it.
func misnamed(set *registry.EndpointSet, svc *mesh.Service, port mesh.Port) []Candidate {
	var out []Candidate
	for _, id := range svc.Clusters {
		p, ok := portByNumber(svc.In[id].Ports, port.Number)
		if !ok || p.Name == port.Name || hasPortName(svc.In[id].Ports, port.Name) {
			continue
		}
		for _, e := range set.Port(p.Name) {
			if e.Workload.Cluster == id {
				out = append(out, Candidate{Endpoint: e, Verdict: Verdict{Code: VerdictPortName}})
			}
		}
	}
	return out
}

// selector decides about the endpoints of one service for one view.
type selector struct {
	v            View
	catalog      *registry.Catalog
	views        []string
	clusterLocal bool
	nodeLocal    bool
	sni          bool
	autoMTLS     bool
	dropPlain    bool
	scale        uint32
	routes       []route
	last         int
	// few holds the routes of most selections.
	few [4]route
}

// route is how the endpoints of a cluster on a network are reached.
type route struct {
	network  mesh.NetworkID
	cluster  mesh.ClusterID
	code     VerdictCode
	gateways []mesh.NetworkGateway
}

func newSelector(in Inputs, v View, svc *mesh.Service, sni bool) *selector {
	s := &selector{v: v, catalog: in.Catalog, sni: sni, nodeLocal: svc.Lead.NodeLocal, autoMTLS: autoMTLS(in),
		clusterLocal: clusterLocal(in.Catalog.Settings, svc.Key.Hostname), scale: in.Catalog.WeightScale()}
	s.routes = s.few[:0]
	if v.NetworkView != "" {
		s.views = strings.Split(v.NetworkView, ",")
	}
	if v.Dialect == mesh.DialectGRPC {
		s.dropPlain = s.autoMTLS && anyMTLS(in.Endpoints.Endpoints(svc.Key))
	}
	return s
}

// decide is the verdict about one endpoint. The route is set if gateways have a
// part in it. It is on the hot path: no allocation after the first endpoint of
// a cluster and network.
func (s *selector) decide(e *mesh.Endpoint) (VerdictCode, *route) {
	w := e.Workload
	if s.clusterLocal && w.Cluster != s.v.Cluster {
		return VerdictClusterLocal, nil
	}
	if s.nodeLocal && (w.Cluster != s.v.Cluster || w.Node != s.v.Node) {
		return VerdictNodeLocal, nil
	}
	r := s.route(e.Network, w.Cluster)
	switch {
	case r.code == VerdictNetworkView:
		return VerdictNetworkView, nil
	case r.code == VerdictDirect:
		return s.direct(e), nil
	case r.code == VerdictGateway && (!w.MTLS || !s.autoMTLS):
		return VerdictGatewayNotMTLS, r
	case r.code == VerdictGateway && (e.Health == mesh.HealthNotReady || e.Health == mesh.HealthDraining):
		return VerdictGatewayNotReady, r
	}
	return r.code, r
}

func (s *selector) direct(e *mesh.Endpoint) VerdictCode {
	switch {
	case !s.speaks(e.Addr):
		return VerdictFamily
	case s.sni && !e.Workload.MTLS:
		return VerdictSNINotMTLS
	case s.dropPlain && !e.Workload.MTLS:
		return VerdictMixedTLS
	}
	return VerdictDirect
}

// speaks reports whether the proxy has an address of the family; one that names
// no family has both.
func (s *selector) speaks(a netip.Addr) bool {
	if s.v.IPv4 == s.v.IPv6 {
		return true
	}
	return s.v.IPv4 == (a.Is4() || a.Is4In6())
}

// route finds the way to a cluster's endpoints on a network, which is the same
// for all of them.
func (s *selector) route(n mesh.NetworkID, c mesh.ClusterID) *route {
	if s.last < len(s.routes) {
		if r := &s.routes[s.last]; r.network == n && r.cluster == c {
			return r
		}
	}
	for i := range s.routes {
		if r := &s.routes[i]; r.network == n && r.cluster == c {
			s.last = i
			return r
		}
	}
	s.routes = append(s.routes, s.newRoute(n, c))
	s.last = len(s.routes) - 1
	return &s.routes[s.last]
}

func (s *selector) newRoute(n mesh.NetworkID, c mesh.ClusterID) route {
	r := route{network: n, cluster: c}
	if n != "" && len(s.views) > 0 && !slices.Contains(s.views, string(n)) {
		r.code = VerdictNetworkView
		return r
	}
	if n == "" || s.v.Network == "" || n == s.v.Network {
		return r
	}
	all := s.catalog.Gateways(n)
	if len(all) == 0 {
		r.code = VerdictNoGateway
		return r
	}
	dialable := s.catalog.GatewaysFor(n, c)
	if r.gateways = s.ofFamily(dialable); len(r.gateways) == 0 {
		// The cluster's own are of another family: others of the network lead there too.
		r.gateways = s.ofFamily(s.catalog.GatewaysFor(n, ""))
	}
	switch {
	case len(r.gateways) > 0:
		r.code = VerdictGateway
	case len(dialable) > 0:
		r.code, r.gateways = VerdictGatewayFamily, all
	default:
		r.code, r.gateways = VerdictGatewayUnresolved, all
	}
	return r
}

// ofFamily returns the gateways that the proxy can dial.
func (s *selector) ofFamily(gateways []mesh.NetworkGateway) []mesh.NetworkGateway {
	other := func(g mesh.NetworkGateway) bool { return !s.speaks(g.Addr) }
	if !slices.ContainsFunc(gateways, other) {
		return gateways // as nearly always: not to be copied
	}
	return slices.DeleteFunc(slices.Clone(gateways), other)
}

// anyMTLS reports whether any endpoint of a service terminates mTLS.
func anyMTLS(set *registry.EndpointSet) bool {
	for e := range set.All() {
		if e.Workload.MTLS {
			return true
		}
	}
	return false
}

// allMTLS reports whether there are endpoints of the port and all terminate mTLS.
func allMTLS(set *registry.EndpointSet, port string) bool {
	list := set.Port(port)
	return len(list) > 0 && !slices.ContainsFunc(list, func(e mesh.Endpoint) bool { return !e.Workload.MTLS })
}

// autoMTLS is MeshConfig.enableAutoMtls, which is on unless it is switched off.
func autoMTLS(in Inputs) bool {
	m := in.Catalog.Settings.Mesh.GetEnableAutoMtls()
	return m == nil || m.GetValue()
}

// servedPort finds the port of a service that proxies serve under a number. UDP
// ports are not served: a TCP port of the same number is meant.
func servedPort(svc *mesh.Service, number uint16) (mesh.Port, bool) {
	return portByNumber(svc.Ports, number)
}

func portByNumber(ports []mesh.Port, number uint16) (mesh.Port, bool) {
	for _, p := range ports {
		if p.Number == number && p.Protocol != mesh.ProtocolUDP {
			return p, true
		}
	}
	return mesh.Port{}, false
}

func hasPortName(ports []mesh.Port, name string) bool {
	return slices.ContainsFunc(ports, func(p mesh.Port) bool { return p.Name == name })
}

// servedPorts lists the ports of a service that proxies serve, by number.
func servedPorts(svc *mesh.Service) []mesh.Port {
	var out []mesh.Port
	for _, p := range svc.Ports {
		if q, ok := servedPort(svc, p.Number); ok && q == p {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, mesh.ComparePorts)
	return out
}

func portList(ports []mesh.Port) string {
	var names []string
	for _, p := range ports {
		names = append(names, strings.TrimSuffix(strconv.Itoa(int(p.Number))+" "+p.Name, " "))
	}
	return cmp.Or(strings.Join(names, ", "), "none")
}
