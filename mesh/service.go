package mesh

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Protocol is what a service port speaks, as far as proxies care.
type Protocol string

// The protocols that change how a port is served. Unsupported stands for a
// declared protocol that is served as opaque TCP; Auto means that nothing was
// declared and the proxy sniffs.
const (
	ProtocolAuto      Protocol = "Auto"
	ProtocolHTTP      Protocol = "HTTP"
	ProtocolHTTPS     Protocol = "HTTPS"
	ProtocolHTTP2     Protocol = "HTTP2"
	ProtocolGRPC      Protocol = "GRPC"
	ProtocolGRPCWeb   Protocol = "GRPC-Web"
	ProtocolHTTPProxy Protocol = "HTTP_PROXY"
	ProtocolHBONE     Protocol = "HBONE"
	ProtocolTCP       Protocol = "TCP"
	ProtocolTLS       Protocol = "TLS"
	ProtocolUDP       Protocol = "UDP"
	ProtocolMongo     Protocol = "Mongo"
	ProtocolRedis     Protocol = "Redis"
	ProtocolMySQL     Protocol = "MySQL"
)

// ParseProtocol reads the name of a protocol as users write it, in any case. ok
// is false for names that are not known.
func ParseProtocol(name string) (p Protocol, ok bool) {
	switch strings.ToLower(name) {
	case "http":
		return ProtocolHTTP, true
	case "http2":
		return ProtocolHTTP2, true
	case "https":
		return ProtocolHTTPS, true
	case "http_proxy":
		return ProtocolHTTPProxy, true
	case "grpc":
		return ProtocolGRPC, true
	case "grpc-web":
		return ProtocolGRPCWeb, true
	case "hbone":
		return ProtocolHBONE, true
	case "tcp":
		return ProtocolTCP, true
	case "tls":
		return ProtocolTLS, true
	case "udp":
		return ProtocolUDP, true
	case "mongo":
		return ProtocolMongo, true
	case "redis":
		return ProtocolRedis, true
	case "mysql":
		return ProtocolMySQL, true
	}
	return "", false
}

// IsHTTP reports whether a proxy can route the port's requests one by one.
func (p Protocol) IsHTTP() bool {
	switch p {
	case ProtocolHTTP, ProtocolHTTP2, ProtocolGRPC, ProtocolGRPCWeb, ProtocolHTTPProxy:
		return true
	}
	return false
}

// IsHTTP2 reports whether the port speaks HTTP/2 from the first byte.
func (p Protocol) IsHTTP2() bool {
	return p == ProtocolHTTP2 || p == ProtocolGRPC || p == ProtocolGRPCWeb
}

// IsTCP reports whether the port is served as a stream of bytes.
func (p Protocol) IsTCP() bool {
	switch p {
	case ProtocolTCP, ProtocolTLS, ProtocolHTTPS, ProtocolMongo, ProtocolRedis, ProtocolMySQL, ProtocolHBONE:
		return true
	}
	return false
}

// Port is one port of a service, in one cluster's definition or merged.
type Port struct {
	// Name is the port's name; ports of one service in several clusters are the
	// same port if their names are equal. An unnamed single port has name "".
	Name string
	// Number is what clients dial.
	Number uint16
	// Protocol is chosen from appProtocol, then from the port's name.
	Protocol Protocol
	// TargetPort is the number on the workload, 0 if TargetName is set or the
	// definition does not say (ServiceEntry without targetPort).
	TargetPort uint16
	// TargetName is the named container port, if the definition uses one.
	TargetName string
}

// Resolution says how a proxy finds the endpoints of a service.
type Resolution uint8

// How endpoints are found.
const (
	// ResolutionStatic: endpoints come from the control plane.
	ResolutionStatic Resolution = iota
	// ResolutionPassthrough: the original destination is dialled (headless Services).
	ResolutionPassthrough
	// ResolutionDNS: the proxy resolves names (strict DNS).
	ResolutionDNS
	// ResolutionDNSRoundRobin: the proxy resolves one name (logical DNS).
	ResolutionDNSRoundRobin
	// ResolutionAlias: the service stands for another one (ExternalName).
	ResolutionAlias
	// ResolutionDynamicDNS: the proxy resolves the name that each request or
	// connection asks for, within the service's wildcard.
	ResolutionDynamicDNS
)

// String names the resolution.
func (r Resolution) String() string {
	return [...]string{"Static", "Passthrough", "DNS", "DNSRoundRobin", "Alias", "DynamicDNS"}[r]
}

// ByName reports whether proxies find the endpoints by names that they resolve,
// so that the endpoints stand in the upstream itself.
func (r Resolution) ByName() bool { return r == ResolutionDNS || r == ResolutionDNSRoundRobin }

// ByRequest reports whether the name that is looked up is the one that each
// request or connection asks for, so that there are no endpoints.
func (r Resolution) ByRequest() bool { return r == ResolutionDynamicDNS }

// NamesHost reports whether what is sent to a port of the protocol tells which
// host it is for: by the Host header, or by the server name of TLS.
func (p Protocol) NamesHost() bool {
	return p.IsHTTP() || p == ProtocolTLS || p == ProtocolHTTPS
}

// Definition is a service as one cluster defines it. It is immutable.
type Definition struct {
	Ports      []Port
	Resolution Resolution
	// Addresses are the service's virtual IPs in this cluster, in the order of
	// spec.clusterIPs; empty for a headless service.
	Addresses []netip.Addr
	// Prefixes are virtual address ranges: clients dial any address in them
	// (ServiceEntry with CIDR addresses).
	Prefixes []netip.Prefix
	// AutoAddresses are virtual IPs that the mesh made up for a host that has none,
	// for proxies that resolve names for their workload (DNS capture) and no others.
	AutoAddresses []netip.Addr
	// External are the addresses under which the service is reachable from outside
	// its cluster: load balancer IPs and host names, then externalIPs.
	External []string
	// AwaitsAddress says that there will be such an address, of a load balancer that
	// has not given any yet.
	AwaitsAddress bool
	// Name is the short name (metadata.name for a Kubernetes Service).
	Name string
	// ExternalName is the target of an alias.
	ExternalName Hostname
	// Selector selects the workloads in this cluster; nil if endpoints are hand-made.
	Selector map[string]string
	Labels   map[string]string
	// ExportTo lists the namespaces that may see the service, with "." for its
	// own, "*" for all and "~" for none; empty means the mesh default.
	ExportTo []string
	// Private lets nobody outside the service's namespace see it, whatever ExportTo
	// says (MeshConfig.serviceEntryVisibility).
	Private bool
	// Identities are accepted in addition to those of the endpoints
	// (annotations alpha.istio.io/kubernetes-serviceaccounts and canonical-serviceaccounts).
	Identities []string
	// NodeLocal is internalTrafficPolicy: Local.
	NodeLocal bool
	// PublishNotReady serves endpoints before they are ready.
	PublishNotReady bool
	// TrafficDistribution is spec.trafficDistribution or its annotation.
	TrafficDistribution string
	// MeshExternal marks hosts outside the mesh (ServiceEntry MESH_EXTERNAL).
	MeshExternal bool
	Created      time.Time
	Origin       ObjectRef
}

// kindServiceEntry is the kind of the objects that define hosts by hand.
const kindServiceEntry = string(KindServiceEntry)

// FromEntry reports whether a ServiceEntry made the definition: then it holds in
// every cluster, whichever it was read from.
func (d *Definition) FromEntry() bool { return d.Origin.Kind == kindServiceEntry }

// Headless reports whether clients dial the endpoints' own addresses.
func (d *Definition) Headless() bool { return d.Resolution == ResolutionPassthrough }

// Equal reports whether two definitions mean the same.
func (d *Definition) Equal(o *Definition) bool {
	if d == o || d == nil || o == nil {
		return d == o
	}
	return d.Resolution == o.Resolution && d.Name == o.Name && d.ExternalName == o.ExternalName &&
		d.NodeLocal == o.NodeLocal && d.PublishNotReady == o.PublishNotReady &&
		d.TrafficDistribution == o.TrafficDistribution && d.MeshExternal == o.MeshExternal && d.AwaitsAddress == o.AwaitsAddress && d.Private == o.Private &&
		d.Created.Equal(o.Created) && d.Origin == o.Origin &&
		slices.Equal(d.Ports, o.Ports) && slices.Equal(d.Addresses, o.Addresses) &&
		slices.Equal(d.Prefixes, o.Prefixes) && slices.Equal(d.AutoAddresses, o.AutoAddresses) &&
		slices.Equal(d.External, o.External) && slices.Equal(d.ExportTo, o.ExportTo) && slices.Equal(d.Identities, o.Identities) &&
		maps.Equal(d.Selector, o.Selector) && maps.Equal(d.Labels, o.Labels)
}

// Service is one service of the mesh: what the clusters that define it agree
// on, merged by rule. It is immutable.
type Service struct {
	Key ServiceKey
	// Lead is the definition that decides everything a service can have only
	// one of: the primary's if it has one, else that of the first cluster ID in
	// alphabetical order.
	Lead *Definition
	// LeadCluster is where Lead comes from.
	LeadCluster ClusterID
	// Ports is the union of all clusters' ports by name, Lead's first; of two
	// clusters that disagree about a name or a number the lead wins and the
	// other is recorded in Conflicts.
	Ports []Port
	// In holds the definition of every cluster that has the service.
	In map[ClusterID]*Definition
	// Clusters lists the keys of In: lead first, then alphabetically.
	Clusters []ClusterID
	// Conflicts tells where clusters disagree.
	Conflicts []Conflict
}

// Conflict is a disagreement between two clusters' definitions of a service.
type Conflict struct {
	Service ServiceKey `json:"service"`
	Field   string     `json:"field"`
	Winner  ClusterID  `json:"winner"`
	Loser   ClusterID  `json:"loser"`
	Detail  string     `json:"detail"`
}

// Port returns the port with the number.
func (s *Service) Port(number uint16) (Port, bool) {
	for _, p := range s.Ports {
		if p.Number == number {
			return p, true
		}
	}
	return Port{}, false
}

// Addresses returns the virtual IPs that a proxy in the cluster uses: those of
// its own cluster if the service exists there, else the lead's.
func (s *Service) Addresses(c ClusterID) []netip.Addr {
	if d := s.In[c]; d != nil && len(d.Addresses) > 0 {
		return d.Addresses
	}
	for _, id := range s.Clusters {
		if a := s.In[id].Addresses; len(a) > 0 {
			return a
		}
	}
	return nil
}

// VisibleTo reports whether proxies of the namespace may see the service.
// meshDefault is MeshConfig.defaultServiceExportTo, used if the service names none.
func (s *Service) VisibleTo(namespace string, meshDefault []string) bool {
	if s.Lead.Private && namespace != s.Key.Namespace {
		return false
	}
	export := s.Lead.ExportTo
	if len(export) == 0 {
		export = meshDefault
	}
	if len(export) == 0 {
		return true
	}
	for _, e := range export {
		switch {
		case e == "*", e == namespace, e == "." && namespace == s.Key.Namespace:
			return true
		}
	}
	return false
}

// ComparePorts orders ports by number, then by name.
func ComparePorts(a, b Port) int {
	return cmp.Or(cmp.Compare(a.Number, b.Number), cmp.Compare(a.Name, b.Name))
}
