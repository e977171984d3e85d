package build

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// How a service port is served to a client:
//
//   - an HTTP port by the one listener of its number, WILDCARD_PORT, whose routes
//     tell services apart by host name;
//   - any other port by a listener on each virtual IP, IP_PORT, or for a headless
//     service on each pod's address; with a sniffed HTTP chain if the port's
//     protocol is not declared;
//   - a port of a service that has ranges of addresses, or no address at all, by
//     WILDCARD_PORT too (see wildcard.go).
//
// A host that several namespaces define is that of one of them for each port
// (see findServed). Addresses may clash: service ranges of clusters overlap. The same rule decides
// everywhere (see claim.beats): a service that owns the address in the proxy's
// own cluster before one that has it elsewhere, services before pods, then the
// older service, then the key.

// sees reports whether the view may see the service, and the service is more
// than another name for one.
func sees(in Inputs, v View, s *mesh.Service) bool {
	return s.Lead.Resolution != mesh.ResolutionAlias &&
		s.VisibleTo(v.Namespace, in.Catalog.Settings.Mesh.GetDefaultServiceExportTo()) && admitsAny(in, v, s)
}

// serves returns the port under which the view's proxies know the service at a
// number: not UDP, the first of its number, and of several services with one
// host the one that counts.
func serves(in Inputs, v View, s *mesh.Service, number uint16) (mesh.Port, bool) {
	found, ok := findServed(in, v, s.Key.Hostname, number)
	return found.port, ok && found.service == s
}

// speaks is [serves] for HTTP ports, streams for all others: those that are not
// routed by request.
func speaks(in Inputs, v View, s *mesh.Service, number uint16) bool {
	p, ok := serves(in, v, s, number)
	return ok && p.Protocol.IsHTTP()
}

func streams(in Inputs, v View, s *mesh.Service, number uint16) (mesh.Port, bool) {
	p, ok := serves(in, v, s, number)
	return p, ok && !p.Protocol.IsHTTP()
}

// inPlace is [serves] for what the view's proxies reach where the service itself
// is: not only at an address that an egress listener of their Sidecar binds.
func inPlace(in Inputs, v View, s *mesh.Service, number uint16) (mesh.Port, bool) {
	p, ok := serves(in, v, s, number)
	return p, ok && admit(in, v, s, number)&admitFree != 0
}

// older orders services by age, oldest first, then by key.
func older(a, b *mesh.Service) int {
	if c := a.Lead.Created.Compare(b.Lead.Created); c != 0 {
		return c
	}
	return a.Key.Compare(b.Key)
}

// claim is a service's right to an address.
type claim struct {
	service *mesh.Service
	rank    uint8
}

// Ranks of claims, best first.
const (
	claimVIP       uint8 = iota // a virtual IP in the proxy's own cluster
	claimRemoteVIP              // a virtual IP elsewhere
	claimPod                    // the address of a pod in the proxy's own cluster
	claimRemotePod              // the address of a pod elsewhere
	claimNone
)

func (c claim) beats(o claim) bool {
	if c.service == nil || o.service == nil {
		return o.service == nil && c.service != nil
	}
	if c.rank != o.rank {
		return c.rank < o.rank
	}
	return older(c.service, o.service) < 0
}

// addresses lists the virtual IPs of a service for the view's proxies: the
// service's own, or those that the mesh made up if clients can get to know them.
func addresses(v View, s *mesh.Service) []netip.Addr {
	if a := s.Addresses(v.Cluster); len(a) > 0 || !v.DNSCapture {
		return a
	}
	return s.Lead.AutoAddresses
}

// ownAddresses reports whether a service has virtual IPs that the cluster itself
// gave it. Those of a ServiceEntry are nobody's: they never win over a cluster's.
func ownAddresses(s *mesh.Service, id mesh.ClusterID) []netip.Addr {
	if d := s.In[id]; d != nil && !d.FromEntry() {
		return d.Addresses
	}
	return nil
}

// vipRank says with what right a service has a virtual IP in the view's cluster.
func vipRank(v View, s *mesh.Service, addr netip.Addr) uint8 {
	if !slices.Contains(addresses(v, s), addr) {
		return claimNone
	}
	if slices.Contains(ownAddresses(s, v.Cluster), addr) {
		return claimVIP
	}
	return claimRemoteVIP
}

// headless reports whether clients of the service dial its pods.
func headless(s *mesh.Service, id mesh.ClusterID) bool {
	return s.Lead.Headless() && len(s.Addresses(id)) == 0 && len(s.Lead.Prefixes) == 0 && !anywhere(s)
}

// anywhere reports whether a service stands for whatever its clients dial: a
// ServiceEntry that neither has endpoints nor selects any.
func anywhere(s *mesh.Service) bool {
	return s.Lead.FromEntry() && s.Lead.Headless() && len(s.Lead.Selector) == 0
}

// podRank says with what right a headless service's port has a pod's address.
func podRank(in Inputs, v View, s *mesh.Service, p mesh.Port, addr netip.Addr) uint8 {
	rank := claimNone
	for _, e := range in.Endpoints.Endpoints(s.Key).Port(p.Name) {
		if e.Addr == addr && dials(in, v, s, e) {
			rank = min(rank, endpointRank(v, e))
		}
	}
	return rank
}

func endpointRank(v View, e mesh.Endpoint) uint8 {
	if e.Workload.Cluster == v.Cluster {
		return claimPod
	}
	return claimRemotePod
}

// dials reports whether a proxy can dial a headless service's pod by its
// address. Readiness does not count: a listener that came and went with it
// would cut the connections that it carries.
func dials(in Inputs, v View, s *mesh.Service, e mesh.Endpoint) bool {
	if !e.Addr.IsValid() {
		return false
	}
	if v.Network != "" && e.Network != "" && v.Network != e.Network {
		return false
	}
	if e.Workload.Cluster != v.Cluster && clusterLocal(in.Catalog.Settings, s.Key.Hostname) {
		return false
	}
	return viewed(v, e.Network)
}

// viewed reports whether the view's REQUESTED_NETWORK_VIEW takes a network in.
// Unknown networks are always seen.
func viewed(v View, n mesh.NetworkID) bool {
	if v.NetworkView == "" || n == "" {
		return true
	}
	for id := range strings.SplitSeq(v.NetworkView, ",") {
		if id == string(n) {
			return true
		}
	}
	return false
}

// hasFamily reports whether the proxy has addresses of the address's family. A
// view that says nothing has both.
func hasFamily(v View, a netip.Addr) bool {
	if v.IPv4 == v.IPv6 {
		return true
	}
	return a.Unmap().Is4() == v.IPv4
}

// owner finds whom an address and port belong to, among the services that the
// view sees. The claim's service is nil if there is none.
func owner(in Inputs, v View, at place) claim {
	var best claim
	for _, s := range in.Catalog.OnPort(at.port) {
		c := claim{service: s}
		if headless(s, v.Cluster) {
			p, ok := streams(in, v, s, at.port)
			if !ok {
				continue
			}
			c.rank = podRank(in, v, s, p, at.addr)
		} else {
			c.rank = vipRank(v, s, at.addr)
		}
		if c.rank == claimNone || !c.beats(best) {
			continue
		}
		if _, ok := inPlace(in, v, s, at.port); ok {
			best = c
		}
	}
	return best
}

// place is an address and port.
type place struct {
	addr netip.Addr
	port uint16
}

// claims collects every address and port that a service of the view has, with
// its owner: [owner] for all at once.
func claims(in Inputs, v View) map[place]claim {
	all := map[place]claim{}
	add := func(a netip.Addr, port uint16, c claim) {
		if k := (place{a, port}); c.beats(all[k]) {
			all[k] = c
		}
	}
	for s := range in.Catalog.Services() {
		pods := headless(s, v.Cluster)
		for _, number := range numbers(s) {
			p, ok := inPlace(in, v, s, number)
			switch {
			case !ok:
			case !pods:
				for _, a := range addresses(v, s) {
					add(a, number, claim{s, vipRank(v, s, a)})
				}
			case !p.Protocol.IsHTTP():
				for _, e := range in.Endpoints.Endpoints(s.Key).Port(p.Name) {
					if dials(in, v, s, e) {
						add(e.Addr, number, claim{s, endpointRank(v, e)})
					}
				}
			}
		}
	}
	return all
}

// numbers lists the numbers of a service's ports, each once.
func numbers(s *mesh.Service) []uint16 {
	out := make([]uint16, 0, len(s.Ports))
	for _, p := range s.Ports {
		if !slices.Contains(out, p.Number) {
			out = append(out, p.Number)
		}
	}
	return out
}

// hasNoAddress reports whether a service has nothing that could be listened on.
// An exported Service that no cluster imports is not meant to be: whoever exports
// one must not take over what others send to its port. Without interception
// nothing that is sent to an address comes by.
func hasNoAddress(v View, s *mesh.Service) bool {
	if s.Key.Hostname.InClusterSet() {
		return false
	}
	return v.Interception == mesh.InterceptNone ||
		len(addresses(v, s)) == 0 && len(s.Lead.Prefixes) == 0 && (!s.Lead.Headless() || anywhere(s))
}

// reserved reports whether a port belongs to the proxy itself: a second
// listener on its address would be refused by Envoy together with all others.
func reserved(in Inputs, number uint16) bool {
	return number == outboundPort(in.Catalog) || number == inboundPort(in.Catalog)
}

// outboundPort and inboundPort are where intercepted traffic arrives.
func outboundPort(c *registry.Catalog) uint16 {
	return portOr(c.Settings.Mesh.GetProxyListenPort(), 15001)
}

func inboundPort(c *registry.Catalog) uint16 {
	return portOr(c.Settings.Mesh.GetProxyInboundListenPort(), 15006)
}

func portOr(n int32, otherwise uint16) uint16 {
	if n <= 0 || n > 65535 {
		return otherwise
	}
	return uint16(n)
}

// listenerName is ADDRESS_PORT.
func listenerName(addr string, port uint16) string {
	return addr + "_" + strconv.Itoa(int(port))
}

// parseListenerName reads a name in the form of [listenerName] whose address
// is an IP, written as we write it.
func parseListenerName(name string) (place, bool) {
	i := strings.LastIndexByte(name, '_')
	if i < 0 {
		return place{}, false
	}
	addr, err := netip.ParseAddr(name[:i])
	if err != nil || addr.String() != name[:i] || addr.Zone() != "" {
		return place{}, false
	}
	port, ok := parsePort(name[i+1:])
	return place{addr, port}, ok
}

// parsePort reads a port number without sign or leading zeros.
func parsePort(s string) (uint16, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || s[0] == '0' {
		return 0, false
	}
	return uint16(n), true
}

// wildcard is the address on which the view's proxy hears everything.
func wildcard(v View) string {
	if v.IPv6 && !v.IPv4 {
		return "::"
	}
	return "0.0.0.0"
}
