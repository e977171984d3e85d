package build

import (
	"fmt"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Explanation tells what a proxy dials for a host and port, and why: every
// candidate endpoint with the decision about it.
type Explanation struct {
	Proxy ExplainedProxy `json:"proxy"`
	Host  mesh.Hostname  `json:"host"`
	Port  uint16         `json:"port"`
	// Service is nil if the proxy has no such service or port; Notes say why.
	Service *ExplainedService `json:"service,omitempty"`
	// Route tells which rule takes the request that was asked about; nil if the
	// proxy does not route requests there.
	Route *RouteExplanation `json:"route,omitempty"`
	// Upstream is the name of the proxy's upstream.
	Upstream string `json:"upstream,omitempty"`
	// Rule is the DestinationRule in force, NAMESPACE/NAME; "" if there is none.
	Rule       string              `json:"rule,omitempty"`
	Candidates []ExplainedEndpoint `json:"candidates"`
	// Dialled is what the proxy is sent.
	Dialled   []ExplainedAddress `json:"dialled"`
	Conflicts []mesh.Conflict    `json:"conflicts,omitempty"`
	Notes     []string           `json:"notes,omitempty"`
}

// ExplainedProxy is the part of the view that choosing endpoints looks at.
type ExplainedProxy struct {
	Kind        mesh.ProxyKind `json:"kind"`
	Dialect     string         `json:"dialect"`
	Cluster     mesh.ClusterID `json:"cluster"`
	Network     mesh.NetworkID `json:"network"`
	NetworkView string         `json:"networkView,omitempty"`
	Namespace   string         `json:"namespace"`
	Locality    string         `json:"locality,omitempty"`
	Node        string         `json:"node,omitempty"`
	Families    string         `json:"families"`
}

// ExplainedService is the service behind the host.
type ExplainedService struct {
	Namespace  string           `json:"namespace"`
	Clusters   []mesh.ClusterID `json:"clusters"`
	Lead       mesh.ClusterID   `json:"lead"`
	Resolution string           `json:"resolution"`
	PortName   string           `json:"portName"`
	Protocol   mesh.Protocol    `json:"protocol"`
}

// ExplainedEndpoint is one candidate and what became of it.
type ExplainedEndpoint struct {
	Address  string         `json:"address"`
	Cluster  mesh.ClusterID `json:"cluster"`
	Network  mesh.NetworkID `json:"network"`
	Locality string         `json:"locality,omitempty"`
	Workload string         `json:"workload,omitempty"`
	Health   string         `json:"health"`
	MTLS     bool           `json:"mtls"`
	Kept     bool           `json:"kept"`
	Verdict  VerdictCode    `json:"verdict"`
	Reason   string         `json:"reason"`
	// Gateways are the addresses that stand for the endpoint.
	Gateways []string `json:"gateways,omitempty"`
	// Weight is the endpoint's part of the weights of what is dialled.
	Weight uint32 `json:"weight,omitempty"`
}

// ExplainedAddress is one address that the proxy is sent.
type ExplainedAddress struct {
	Address  string `json:"address"`
	Locality string `json:"locality,omitempty"`
	Gateway  bool   `json:"gateway"`
	// Priority is 0 for what gets the traffic while any of it is healthy.
	Priority uint32 `json:"priority"`
	// Health is that of the endpoint; nothing is known of a gateway's.
	Health string `json:"health"`
	Weight uint32 `json:"weight"`
	// Percent is the address's share of new requests by weight, 0 to 100: none
	// goes to what is not ready.
	Percent float64 `json:"percent"`
}

// Explain tells what a proxy with the view dials for a host and port, and why.
func Explain(in Inputs, v View, host mesh.Hostname, port uint16) Explanation {
	return explain(in, v, UpstreamID{Direction: DirectionOutbound, Port: port, Host: host})
}

// ExplainUpstream is [Explain] for an upstream by its name, which may be that
// of an east-west gateway's SNI-DNAT upstream. It reports false if the name is
// not that of an outbound upstream.
func ExplainUpstream(in Inputs, v View, name string) (Explanation, bool) {
	id, ok := outboundName(name)
	if !ok {
		return Explanation{}, false
	}
	return explain(in, v, id), true
}

func explain(in Inputs, v View, id UpstreamID) Explanation {
	host, port := id.Host, id.Port
	x := Explanation{Proxy: explainedProxy(v), Host: host, Port: port, Candidates: []ExplainedEndpoint{}, Dialled: []ExplainedAddress{}}
	at, ok := findServed(in, v, host, port)
	if !ok {
		x.Notes = missing(in, v, host, port)
		return x
	}
	rule := ruleFor(in, v, at.service)
	if rule != nil {
		x.Rule = rule.origin.Key.Namespace + "/" + rule.origin.Key.Name
	}
	if !rule.hasSubset(id.Subset) {
		x.Notes = []string{fmt.Sprintf("no DestinationRule in force for the proxy gives %s a subset %q%s", host, id.Subset, ruleNote(x.Rule))}
		return x
	}
	s := at.service
	x.Service = &ExplainedService{Namespace: s.Key.Namespace, Clusters: s.Clusters, Lead: s.LeadCluster,
		Resolution: s.Lead.Resolution.String(), PortName: at.port.Name, Protocol: at.port.Protocol}
	x.Conflicts = s.Conflicts
	x.Upstream = id.String()
	sel := selection(in, v, at, id.Subset, id.SNI)
	for _, c := range sel.Candidates {
		x.Candidates = append(x.Candidates, explainedEndpoint(c, v))
	}
	x.Dialled = explainedAddresses(sel.Groups)
	if byRequest(s) {
		return explainLookup(x, v, at)
	}
	x.Notes = notes(in, v, s, x)
	x.Notes = append(x.Notes, drainNotes(in, sel)...)
	return x
}

// explainLookup tells of a service whose names are looked up by request.
func explainLookup(x Explanation, v View, at served) Explanation {
	if v.Dialect == mesh.DialectGRPC {
		x.Notes = []string{"gRPC clients do not look up the names of a wildcard (resolution DYNAMIC_DNS): requests fail"}
		return x
	}
	told, held := "server name", "connections without a name within the wildcard are not taken"
	if at.port.Protocol.IsHTTP() {
		told, held = "Host header", "requests for other hosts, or for ports that the service has not, are not taken"
	}
	x.Candidates = []ExplainedEndpoint{{Address: string(at.service.Key.Hostname), Health: mesh.HealthUnknown.String(), Kept: true, Verdict: VerdictByRequest,
		Reason: "the proxy looks up the name in the " + told + " (resolution DYNAMIC_DNS), within the wildcard, and dials what it finds"}}
	x.Notes = []string{held}
	return x
}

func ruleNote(rule string) string {
	if rule == "" {
		return ": none is"
	}
	return ": " + rule + " is"
}

func explainedProxy(v View) ExplainedProxy {
	families := "IPv4 and IPv6"
	if v.IPv4 != v.IPv6 {
		families = family(v.IPv4)
	}
	return ExplainedProxy{Kind: v.Kind, Dialect: v.Dialect.String(), Cluster: v.Cluster, Network: v.Network,
		NetworkView: v.NetworkView, Namespace: v.Namespace, Locality: v.Locality.String(), Node: v.Node, Families: families}
}

func explainedEndpoint(c Candidate, v View) ExplainedEndpoint {
	e, w := c.Endpoint, c.Endpoint.Workload
	out := ExplainedEndpoint{Address: endpointText(e), Cluster: w.Cluster, Network: e.Network,
		Locality: w.Locality.String(), Health: e.Health.String(), MTLS: w.MTLS,
		Kept: c.Verdict.Code.Kept(), Verdict: c.Verdict.Code, Reason: c.Text(v)}
	if w.Name != "" {
		out.Workload = w.Namespace + "/" + w.Name
	}
	if out.Kept {
		out.Weight = c.Weight
	}
	if c.Verdict.Code == VerdictGateway {
		for _, g := range c.Verdict.Gateways {
			out.Gateways = append(out.Gateways, addrPortText(g.Addr, g.Port))
		}
	}
	return out
}

func explainedAddresses(groups []Group) []ExplainedAddress {
	out := []ExplainedAddress{}
	active, found := uint32(0), false
	for _, g := range groups {
		if g.ready() > 0 && (!found || g.Priority < active) {
			active, found = g.Priority, true
		}
	}
	var total float64
	for _, g := range groups {
		if g.Priority == active {
			total += g.pull()
		}
	}
	for _, g := range groups {
		for _, e := range g.Entries {
			x := ExplainedAddress{Address: e.Address().String(), Locality: g.Locality.String(), Priority: g.Priority,
				Gateway: e.Gateway != nil, Health: e.healthText(), Weight: e.Weight}
			if takesRequests(x.Health) && g.Priority == active {
				x.Percent = 100 * g.pull() / total * float64(e.Weight) / g.ready()
			}
			out = append(out, x)
		}
	}
	return out
}

func (e *Entry) healthText() string {
	if e.Endpoint == nil {
		return mesh.HealthUnknown.String()
	}
	return e.Endpoint.Health.String()
}

// ready is the sum of the weights of the entries that take requests.
func (g *Group) ready() float64 {
	var sum float64
	for i := range g.Entries {
		if takesRequests(g.Entries[i].healthText()) {
			sum += float64(g.Entries[i].Weight)
		}
	}
	return sum
}

// pull is the weight of a group among those of its priority.
func (g *Group) pull() float64 {
	if ready := g.ready(); g.Share == 0 || ready == 0 {
		return ready
	}
	return float64(g.Share)
}

// takesRequests reports whether proxies send new requests to endpoints of a health.
func takesRequests(health string) bool {
	return health != mesh.HealthNotReady.String() && health != mesh.HealthDraining.String()
}

// missing says why a proxy has no such service port.
func missing(in Inputs, v View, host mesh.Hostname, port uint16) []string {
	list := in.Catalog.Host(host)
	if len(list) == 0 {
		return []string{fmt.Sprintf("no cluster has a service with the host %s", host)}
	}
	var out []string
	for _, s := range list {
		_, hasPort := servedPort(s, port)
		switch {
		case s.Lead.Resolution == mesh.ResolutionAlias:
			out = append(out, fmt.Sprintf("%s is another name for %s (ExternalName) and has no endpoints of its own", s.Key, s.Lead.ExternalName))
		case !sees(in, v, s):
			out = append(out, fmt.Sprintf("%s is not visible to namespace %s (%s)", s.Key, v.Namespace, exportText(in, s)))
		case !hasPort:
			out = append(out, fmt.Sprintf("%s has no port %d that proxies serve; its ports are %s", s.Key, port, portList(servedPorts(s))))
		}
	}
	return out
}

func exportText(in Inputs, s *mesh.Service) string {
	if s.Lead.Private {
		return "serviceEntryVisibility keeps it within its own"
	}
	export := s.Lead.ExportTo
	if len(export) == 0 {
		export = in.Catalog.Settings.Mesh.GetDefaultServiceExportTo()
	}
	return "exportTo " + strings.Join(export, ", ")
}

// notes tells what is worth knowing beside the verdicts.
func notes(in Inputs, v View, s *mesh.Service, x Explanation) []string {
	var out []string
	if clusterLocal(in.Catalog.Settings, s.Key.Hostname) {
		out = append(out, fmt.Sprintf("the host is cluster-local: only endpoints in %s count", v.Cluster))
	}
	if s.Lead.NodeLocal {
		out = append(out, "the service is node-local (internalTrafficPolicy Local)")
	}
	if dialsOriginal(s) && v.Kind != mesh.ProxyRouter && v.Dialect != mesh.DialectGRPC {
		out = append(out, "the service is headless: a sidecar dials the address that the client asked for, so the list below only tells which would do")
	}
	if !autoMTLS(in) {
		out = append(out, "automatic mTLS is off (MeshConfig.enableAutoMtls): nothing can pass a gateway")
	}
	if v.Network == "" {
		out = append(out, "the proxy's network is not known, so every address counts as reachable")
	}
	switch {
	case len(x.Candidates) == 0:
		out = append(out, "the port has no endpoints in any cluster")
	case len(x.Dialled) == 0:
		out = append(out, "no endpoint is kept: requests fail")
	case !slices.ContainsFunc(x.Candidates, func(e ExplainedEndpoint) bool { return e.Kept && takesRequests(e.Health) }):
		out = append(out, "no endpoint that is kept is ready: requests fail")
	}
	return out
}
