package build

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// destinations says where the requests of a rule go, to one upstream or to
// several by weight, and whether a hash binds them to endpoints. false if the
// rule has no destination with a weight.
func (s *routeScope) destinations(a *routev3.RouteAction, rule httpRule, out *routev3.Route) (sticky, ok bool) {
	namespace := rule.from.Key.Namespace
	list := rule.GetRoute()
	if len(list) == 1 {
		d := list[0]
		name, hash := s.upstream(d.GetDestination(), namespace)
		a.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: name}
		if hash != nil {
			a.HashPolicy = []*routev3.RouteAction_HashPolicy{hash}
		}
		h := readHeaders(d.GetHeaders())
		out.RequestHeadersToAdd = append(out.RequestHeadersToAdd, h.addRequest...)
		out.RequestHeadersToRemove = append(out.RequestHeadersToRemove, h.removeRequest...)
		out.ResponseHeadersToAdd = append(out.ResponseHeadersToAdd, h.addResponse...)
		out.ResponseHeadersToRemove = append(out.ResponseHeadersToRemove, h.removeResponse...)
		if h.authority != "" && a.HostRewriteSpecifier == nil {
			a.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: h.authority}
		}
		return hash != nil, true
	}
	w := &routev3.WeightedCluster{}
	for _, d := range list {
		if d.GetWeight() <= 0 {
			continue // no weight: no requests
		}
		name, hash := s.upstream(d.GetDestination(), namespace)
		if hash != nil {
			a.HashPolicy = append(a.HashPolicy, hash)
		}
		h := readHeaders(d.GetHeaders())
		c := &routev3.WeightedCluster_ClusterWeight{
			Name: name, Weight: u32(uint32(d.GetWeight())),
			RequestHeadersToAdd: h.addRequest, RequestHeadersToRemove: h.removeRequest,
			ResponseHeadersToAdd: h.addResponse, ResponseHeadersToRemove: h.removeResponse,
		}
		if h.authority != "" && a.HostRewriteSpecifier == nil {
			c.HostRewriteSpecifier = &routev3.WeightedCluster_ClusterWeight_HostRewriteLiteral{HostRewriteLiteral: h.authority}
		}
		w.Clusters = append(w.Clusters, c)
	}
	if len(w.Clusters) == 0 {
		return false, false
	}
	a.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: w}
	return len(a.HashPolicy) > 0, true
}

// mirrors copies the requests of a rule, or some of them, to other upstreams.
func (s *routeScope) mirrors(a *routev3.RouteAction, rule httpRule) {
	add := func(d *networking.Destination, share *typev3.FractionalPercent) {
		if d == nil || share.GetNumerator() == 0 {
			return
		}
		name, _ := s.upstream(d, rule.from.Key.Namespace)
		a.RequestMirrorPolicies = append(a.RequestMirrorPolicies, &routev3.RouteAction_RequestMirrorPolicy{
			Cluster:                       name,
			RuntimeFraction:               &corev3.RuntimeFractionalPercent{DefaultValue: share},
			TraceSampled:                  boolean(false),
			DisableShadowHostSuffixAppend: true, // the copy has the host of the request
		})
	}
	share := percent[uint32](100)
	switch {
	case rule.GetMirrorPercentage() != nil:
		share = millionths(rule.GetMirrorPercentage())
	case rule.GetMirrorPercent() != nil: //nolint:staticcheck // users may still have it
		share = percent(rule.GetMirrorPercent().GetValue()) //nolint:staticcheck // as above
	}
	add(rule.GetMirror(), share)
	for _, m := range rule.GetMirrors() {
		share := percent[uint32](100)
		if m.GetPercentage() != nil {
			share = millionths(m.GetPercentage())
		}
		add(m.GetDestination(), share)
	}
}

// upstream names the upstream of a destination that an object of a namespace
// gives, and the hash that binds requests to its endpoints, nil for none. Nobody
// has an upstream of a host that does not exist: proxies then answer with 503.
func (s *routeScope) upstream(d *networking.Destination, namespace string) (string, *routev3.RouteAction_HashPolicy) {
	to := resolveDestination(s.in, s.v, d, namespace, s.port)
	return to.String(), destinationHash(s.in, s.v, to)
}

// resolveDestination finds the upstream of a destination. Without a port it has
// the one and only port of the service, else the port that the client dialled.
// Another name for a service stands for that service.
func resolveDestination(in Inputs, v View, d *networking.Destination, namespace string, port uint16) UpstreamID {
	id := UpstreamID{Direction: DirectionOutbound, Port: port, Subset: d.GetSubset(), Host: fullHost(d.GetHost(), namespace)}
	service := destinationService(in, v, id.Host)
	if service != nil {
		id.Host = service.Key.Hostname
	}
	if n := d.GetPort().GetNumber(); n > 0 && n <= 65535 {
		id.Port = uint16(n)
	} else if n := onlyPort(service); n != 0 {
		id.Port = n
	}
	return id
}

// destinationService finds the service that a view knows by a host or another
// name for one: of several with one host the one in its own namespace, else the
// first. nil if there is none.
func destinationService(in Inputs, v View, host mesh.Hostname) *mesh.Service {
	if s := knownAs(in, v, host); s != nil {
		return s
	}
	for _, s := range in.Catalog.Host(host) {
		if s.Lead.Resolution != mesh.ResolutionAlias || !s.VisibleTo(v.Namespace, in.Catalog.Settings.Mesh.GetDefaultServiceExportTo()) {
			continue
		}
		if to, ok := aliasTarget(in.Catalog, s); ok {
			return knownAs(in, v, to)
		}
	}
	return nil
}

func knownAs(in Inputs, v View, host mesh.Hostname) *mesh.Service {
	var found *mesh.Service
	for _, s := range in.Catalog.Host(host) {
		if sees(in, v, s) && (found == nil || s.Key.Namespace == v.Namespace) {
			found = s
		}
	}
	return found
}

// onlyPort returns the port of a service that has one; 0 if it has none or several.
func onlyPort(s *mesh.Service) uint16 {
	if s == nil {
		return 0
	}
	var only uint16
	for _, p := range s.Ports {
		switch {
		case p.Protocol == mesh.ProtocolUDP || p.Number == only:
		case only != 0:
			return 0
		default:
			only = p.Number
		}
	}
	return only
}
