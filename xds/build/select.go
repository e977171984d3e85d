package build

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// Selection is what a proxy is sent for one service port, and why.
type Selection struct {
	// Groups are the addresses to dial, ordered by locality.
	Groups []Group
	// Candidates are all endpoints with the decision about each.
	Candidates []Candidate
	// Undrained says that drains were not heeded, because nothing else is ready.
	Undrained bool
}

// Group is what is dialled in one locality. Gateways are in the locality of the
// endpoints that they stand for, not in their own.
type Group struct {
	Locality mesh.Locality
	// Priority is 0 for what gets the traffic, and greater for what gets it when
	// nothing before is healthy.
	Priority uint32
	// Share is the locality's weight if a rule sets it, 0 if it is the sum of the
	// entries' weights.
	Share   uint32
	Entries []Entry
}

// Entry is one address to dial: an endpoint's own or that of a gateway. Exactly
// one of the two is set.
type Entry struct {
	Endpoint *mesh.Endpoint
	Gateway  *mesh.NetworkGateway
	Weight   uint32
	// plain says that mesh mTLS is not spoken although the endpoint could.
	plain bool
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
	return selection(in, v, served{svc, port}, "", false)
}

// selection is [Select] for a subset, "" for the whole service, or for the
// SNI-DNAT upstream of a gateway.
func selection(in Inputs, v View, at served, subset string, sni bool) Selection {
	s := newSelector(in, v, at, subset, sni)
	svc, port := at.service, at.port
	set := in.Endpoints.Endpoints(svc.Key)
	list := set.Port(port.Name)
	out := Selection{Groups: s.plan(list).expand(), Candidates: make([]Candidate, 0, len(list))}
	for i := range list {
		code, r := s.decide(&list[i])
		c := Candidate{Endpoint: list[i], Verdict: Verdict{Code: code}}
		if r != nil {
			c.Verdict.Gateways = r.gateways
		}
		if code.Kept() {
			c.Weight = s.weight(&list[i], r)
		}
		switch code {
		case VerdictSubset:
			c.Verdict.Subset = s.subset
		case VerdictDrained:
			c.Verdict.Weights = s.weights
		}
		out.Candidates = append(out.Candidates, c)
	}
	return Selection{Groups: out.Groups, Undrained: s.undrained, Candidates: append(out.Candidates, misnamed(set, svc, port)...)}
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
	names        bool // endpoints may be names that the proxy looks up
	autoMTLS     bool
	dropPlain    bool
	// subset is what endpoints must belong to, nil if there is no such condition.
	subset *networking.Subset
	// ruled says that a DestinationRule asks for plain text or for TLS that is not
	// the mesh's: then no endpoint is dialled with mesh mTLS.
	ruled bool
	// panics: a rule has proxies dial unhealthy endpoints where too few are healthy.
	panics bool
	scale  uint32
	// weights drain clusters and networks; drained says that something was left out
	// for that, and undrained that it is not to be, because nothing else is ready.
	weights            mesh.Weights
	drained, undrained bool
	// prefer is what the client prefers by where it is.
	prefer preference
	routes []route
	last   int
	// few holds the routes of most selections.
	few [4]route
}

// route is how the endpoints of a cluster on a network are reached.
type route struct {
	network  mesh.NetworkID
	cluster  mesh.ClusterID
	code     VerdictCode
	gateways []mesh.NetworkGateway
	// weight is what is left of the endpoints' weights, in percent.
	weight uint32
}

func newSelector(in Inputs, v View, at served, subset string, sni bool) *selector {
	svc := at.service
	policy, rule := trafficPolicy(in, v, at, subset)
	s := &selector{subset: rule.subset(subset), ruled: tlsDisabled(policy), panics: policy.GetOutlierDetection().GetMinHealthPercent() > 0, prefer: localityPreference(in, at, policy),
		v: v, catalog: in.Catalog, sni: sni, nodeLocal: svc.Lead.NodeLocal, autoMTLS: autoMTLS(in),
		clusterLocal: clusterLocal(in.Catalog.Settings, svc.Key.Hostname), scale: weightScale(in.Catalog), weights: in.Catalog.Settings.Weights}
	s.routes, s.names = s.few[:0], resolves(svc)
	if v.NetworkView != "" {
		s.views = strings.Split(v.NetworkView, ",")
	}
	if v.Dialect == mesh.DialectGRPC {
		forced := policy.GetTls() != nil && !s.ruled
		s.dropPlain = forced || s.autoMTLS && !s.ruled && anyMTLS(in.Endpoints.Endpoints(svc.Key))
	}
	return s
}

// decide is the verdict about one endpoint. The route is set if gateways have a
// part in it. It is on the hot path: no allocation after the first endpoint of
// a cluster and network.
func (s *selector) decide(e *mesh.Endpoint) (VerdictCode, *route) {
	w := e.Workload
	if s.subset != nil && !inSubset(e, s.subset) {
		return VerdictSubset, nil
	}
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
		if code := s.direct(e); code != VerdictDirect || !s.drains(r) {
			return code, r
		}
		return VerdictDrained, nil
	case r.code == VerdictGateway && s.ruled:
		return VerdictGatewayRule, r
	case r.code == VerdictGateway && (!w.MTLS || !s.autoMTLS):
		return VerdictGatewayNotMTLS, r
	case r.code == VerdictGateway && (e.Health == mesh.HealthNotReady || e.Health == mesh.HealthDraining):
		return VerdictGatewayNotReady, r
	case r.code == VerdictGateway && s.drains(r):
		return VerdictDrained, r
	}
	return r.code, r
}

// drains reports whether the endpoints of a route are left out because their
// cluster or network is drained.
func (s *selector) drains(r *route) bool {
	if r.weight != 0 || s.undrained {
		return false
	}
	s.drained = true
	return true
}

// weight is an endpoint's weight in the unit of its assignment.
func (s *selector) weight(e *mesh.Endpoint, r *route) uint32 {
	w := scaled(e.Weight, s.scale)
	if r.weight == 0 || r.weight == mesh.FullWeight {
		return w
	}
	return max(uint32(uint64(w)*uint64(r.weight)/mesh.FullWeight), 1)
}

func (s *selector) direct(e *mesh.Endpoint) VerdictCode {
	switch {
	case !e.Addr.IsValid() && !s.named(e.Workload.Host):
		return VerdictNoAddress
	case e.Addr.IsValid() && !s.speaks(e.Addr):
		return VerdictFamily
	case s.sni && s.ruled:
		return VerdictSNIRule
	case s.sni && !e.Workload.MTLS:
		return VerdictSNINotMTLS
	case s.dropPlain && !e.Workload.MTLS:
		return VerdictMixedTLS
	case s.panics && (e.Health == mesh.HealthNotReady || e.Health == mesh.HealthDraining):
		return VerdictMayPanic
	}
	return VerdictDirect
}

// named reports whether the proxy can dial what has no address: a socket on its
// own machine, or a name that it looks up.
func (s *selector) named(host string) bool {
	if strings.HasPrefix(host, socketPrefix) {
		return s.v.Dialect != mesh.DialectGRPC && !s.names
	}
	return s.names && host != ""
}

// inSubset reports whether an endpoint has the labels of a subset. Where it is
// counts as labels too.
func inSubset(e *mesh.Endpoint, subset *networking.Subset) bool {
	w := e.Workload
	for key, want := range subset.GetLabels() {
		var got string
		switch key {
		case labelRegion:
			got = w.Locality.Region
		case labelZone:
			got = w.Locality.Zone
		case labelSubZone:
			got = w.Locality.SubZone
		case labelNetwork:
			got = string(e.Network)
		case labelCluster:
			got = string(w.Cluster)
		case labelNode:
			got = w.Node
		default:
			if l, ok := w.Labels[key]; !ok || l != want {
				return false
			}
			continue
		}
		if got == "" || got != want {
			return false
		}
	}
	return true
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
	r := route{network: n, cluster: c, weight: s.weights.Of(c, n)}
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
