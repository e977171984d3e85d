package build

import (
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"
	"pgregory.net/rapid"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// nowhere is a host that is never there.
const nowhere = "nowhere.example.com"

// ruleHosts are what random rules are about and lead to.
func labRuleHosts() []string {
	out := []string{nowhere, "*.a.svc.cluster.local", "10.0.0.1"}
	for _, h := range labHosts {
		out = append(out, string(h))
	}
	return out
}

// drawRule changes a random VirtualService.
func drawRule(t *rapid.T) registry.ObjectState {
	k := mesh.ObjectKey{Kind: mesh.KindVirtualService, Namespace: rapid.SampledFrom(labNamespaces).Draw(t, "rule namespace"),
		Name: rapid.SampledFrom([]string{"v1", "v2", "d"}).Draw(t, "rule")}
	if rapid.IntRange(0, 4).Draw(t, "rule gone") == 0 {
		return registry.ObjectState{Key: k}
	}
	vs := &networking.VirtualService{
		ExportTo: rapid.SampledFrom([][]string{nil, nil, {"*"}, {"."}, {"a"}, {"b", "a"}}).Draw(t, "rule exportTo"),
		Gateways: rapid.SampledFrom([][]string{nil, {"mesh"}, {"g1"}, {"a/g1", "mesh"}}).Draw(t, "rule gateways"),
	}
	if k.Name != "d" {
		vs.Hosts = rapid.SliceOfNDistinct(rapid.SampledFrom(labRuleHosts()), 1, 2, rapid.ID[string]).Draw(t, "rule hosts")
	}
	for range rapid.IntRange(0, 3).Draw(t, "http rules") {
		vs.Http = append(vs.Http, drawHTTPRule(t, k.Name != "d"))
	}
	if k.Name != "d" {
		for range rapid.IntRange(0, 2).Draw(t, "tcp rules") {
			vs.Tcp = append(vs.Tcp, &networking.TCPRoute{Match: drawStreamMatches(t), Route: drawStreamTargets(t)})
		}
		for range rapid.IntRange(0, 2).Draw(t, "tls rules") {
			vs.Tls = append(vs.Tls, &networking.TLSRoute{Match: drawTLSMatches(t), Route: drawStreamTargets(t)})
		}
	}
	version := rapid.StringMatching("[a-z]{8}").Draw(t, "rule version")
	return registry.ObjectState{Key: k, Object: &mesh.Object{Key: k, Version: version, Spec: vs}}
}

func drawTarget(t *rapid.T) *networking.Destination {
	d := &networking.Destination{Host: rapid.SampledFrom(labRuleHosts()[3:]).Draw(t, "target host"),
		Subset: rapid.SampledFrom([]string{"", "", "s1"}).Draw(t, "subset")}
	if n := rapid.SampledFrom([]uint32{0, 0, 80, 90}).Draw(t, "target port number"); n != 0 {
		d.Port = &networking.PortSelector{Number: n}
	}
	return d
}

func drawLabels(t *rapid.T) map[string]string {
	return rapid.SampledFrom([]map[string]string{nil, nil, nil, {"app": "x"}, {"version": "v1"}}).Draw(t, "source labels")
}

func drawText(t *rapid.T, label string) *networking.StringMatch {
	switch rapid.IntRange(0, 5).Draw(t, label) {
	case 0:
		return &networking.StringMatch{MatchType: &networking.StringMatch_Exact{Exact: "/x"}}
	case 1:
		return &networking.StringMatch{MatchType: &networking.StringMatch_Prefix{Prefix: "/"}}
	case 2:
		return &networking.StringMatch{MatchType: &networking.StringMatch_Regex{Regex: "/x.*"}}
	case 3:
		return &networking.StringMatch{}
	}
	return nil
}

func drawTexts(t *rapid.T, label string) map[string]*networking.StringMatch {
	if m := drawText(t, label); m != nil {
		return map[string]*networking.StringMatch{rapid.SampledFrom([]string{"x-a", "@request.auth.claims.a"}).Draw(t, label+" name"): m}
	}
	return nil
}

func drawHTTPRule(t *rapid.T, root bool) *networking.HTTPRoute {
	r := &networking.HTTPRoute{Name: rapid.SampledFrom([]string{"", "r"}).Draw(t, "rule name")}
	for range rapid.IntRange(0, 2).Draw(t, "matches") {
		m := &networking.HTTPMatchRequest{
			Uri: drawText(t, "uri"), Method: drawText(t, "method"), Authority: drawText(t, "authority"),
			Headers: drawTexts(t, "headers"), WithoutHeaders: drawTexts(t, "without"), QueryParams: drawTexts(t, "query"),
			Port:            rapid.SampledFrom([]uint32{0, 0, 80}).Draw(t, "match port"),
			SourceLabels:    drawLabels(t),
			SourceNamespace: rapid.SampledFrom([]string{"", "", "a"}).Draw(t, "source namespace"),
			Gateways:        rapid.SampledFrom([][]string{nil, nil, {"mesh"}, {"g1"}}).Draw(t, "match gateways"),
		}
		r.Match = append(r.Match, m)
	}
	switch rapid.IntRange(0, 6).Draw(t, "action") {
	case 0:
		r.Redirect = &networking.HTTPRedirect{Uri: "/there", RedirectCode: 302}
	case 1:
		r.DirectResponse = &networking.HTTPDirectResponse{Status: 404}
	case 2:
		if root {
			r.Delegate = &networking.Delegate{Name: "d", Namespace: rapid.SampledFrom([]string{"", "a"}).Draw(t, "delegate namespace")}
			return r
		}
		fallthrough
	default:
		for range rapid.IntRange(1, 2).Draw(t, "targets") {
			r.Route = append(r.Route, &networking.HTTPRouteDestination{Destination: drawTarget(t), Weight: 50,
				Headers: &networking.Headers{Request: &networking.Headers_HeaderOperations{Set: map[string]string{"x-b": "1", ":authority": "c"}}}})
		}
		r.Mirror = rapid.SampledFrom([]*networking.Destination{nil, nil, drawTarget(t)}).Draw(t, "mirror")
	}
	if rapid.Bool().Draw(t, "extras") {
		r.Retries = &networking.HTTPRetry{Attempts: 3, RetryOn: "unavailable,503", RetryRemoteLocalities: wrapperspb.Bool(true)}
		r.Timeout = durationpb.New(1e9)
		r.Fault = &networking.HTTPFaultInjection{Abort: &networking.HTTPFaultInjection_Abort{
			Percentage: &networking.Percent{Value: 50}, ErrorType: &networking.HTTPFaultInjection_Abort_HttpStatus{HttpStatus: 503}}}
		r.CorsPolicy = &networking.CorsPolicy{AllowMethods: []string{"GET"}}
	}
	return r
}

func drawStreamTargets(t *rapid.T) []*networking.RouteDestination {
	var out []*networking.RouteDestination
	for i := range rapid.IntRange(1, 2).Draw(t, "stream targets") {
		out = append(out, &networking.RouteDestination{Destination: drawTarget(t), Weight: int32(60 - 20*i)})
	}
	return out
}

func drawSubnets(t *rapid.T) []string {
	return rapid.SampledFrom([][]string{nil, nil, {"10.0.0.0/8"}, {"10.0.0.1", "10.1.2.3/8"}}).Draw(t, "subnets")
}

func drawStreamMatches(t *rapid.T) []*networking.L4MatchAttributes {
	var out []*networking.L4MatchAttributes
	for range rapid.IntRange(0, 2).Draw(t, "stream matches") {
		out = append(out, &networking.L4MatchAttributes{DestinationSubnets: drawSubnets(t), SourceLabels: drawLabels(t),
			Port: rapid.SampledFrom([]uint32{0, 80}).Draw(t, "stream port")})
	}
	return out
}

func drawTLSMatches(t *rapid.T) []*networking.TLSMatchAttributes {
	var out []*networking.TLSMatchAttributes
	for range rapid.IntRange(1, 2).Draw(t, "tls matches") {
		out = append(out, &networking.TLSMatchAttributes{DestinationSubnets: drawSubnets(t), SourceLabels: drawLabels(t),
			SniHosts: rapid.SampledFrom([][]string{{"x.example.com"}, {"*.example.com", "x"}, {"*"}}).Draw(t, "sni")})
	}
	return out
}

// drawHashRule changes a random DestinationRule that binds requests to endpoints.
func drawHashRule(t *rapid.T) registry.ObjectState {
	k := mesh.ObjectKey{Kind: mesh.KindDestinationRule, Namespace: rapid.SampledFrom(labNamespaces).Draw(t, "hash namespace"),
		Name: rapid.SampledFrom([]string{"h1", "h2"}).Draw(t, "hash rule")}
	if rapid.IntRange(0, 3).Draw(t, "hash gone") == 0 {
		return registry.ObjectState{Key: k}
	}
	dr := &networking.DestinationRule{Host: rapid.SampledFrom(labRuleHosts()[:6]).Draw(t, "hash host"),
		Subsets: []*networking.Subset{{Name: "s1", Labels: map[string]string{"version": "v1"}}}}
	if rapid.Bool().Draw(t, "hashes") {
		dr.TrafficPolicy = &networking.TrafficPolicy{LoadBalancer: &networking.LoadBalancerSettings{
			LbPolicy: &networking.LoadBalancerSettings_ConsistentHash{ConsistentHash: &networking.LoadBalancerSettings_ConsistentHashLB{
				HashKey: &networking.LoadBalancerSettings_ConsistentHashLB_UseSourceIp{UseSourceIp: true}}}}}
	}
	version := rapid.StringMatching("[a-z]{8}").Draw(t, "hash version")
	return registry.ObjectState{Key: k, Object: &mesh.Object{Key: k, Version: version, Spec: dr}}
}

// ruleUpstreams names every upstream that a rule may lead to without there being one.
func ruleUpstreams(in Inputs) []string {
	var out []string
	for _, o := range in.Catalog.Objects(mesh.KindVirtualService) {
		vs := o.Spec.(*networking.VirtualService)
		eachDestination(vs, func(d *networking.Destination) {
			host := fullHost(d.GetHost(), o.Key.Namespace)
			for _, h := range append(aliasHops(in.Catalog, host), host) {
				for _, n := range append([]uint16{15443}, labNumbers...) {
					out = append(out, UpstreamName(DirectionOutbound, n, d.GetSubset(), h))
				}
			}
		})
	}
	return out
}

// drawSidecar changes a random Sidecar.
func drawSidecar(t *rapid.T) registry.ObjectState {
	k := mesh.ObjectKey{Kind: mesh.KindSidecar, Namespace: rapid.SampledFrom(labNamespaces).Draw(t, "sidecar namespace"), Name: "default"}
	if rapid.IntRange(0, 3).Draw(t, "sidecar gone") == 0 {
		return registry.ObjectState{Key: k}
	}
	s := &networking.Sidecar{}
	for range rapid.IntRange(1, 2).Draw(t, "egress listeners") {
		e := &networking.IstioEgressListener{Hosts: rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"./*", "*/*", "b/x.b.svc.cluster.local", "a/*.a.svc.cluster.local", "~/*", "*/" + nowhere}), 1, 2, rapid.ID[string]).Draw(t, "egress hosts")}
		if rapid.IntRange(0, 2).Draw(t, "with port") == 0 {
			e.Port = &networking.SidecarPort{Number: 80, Protocol: rapid.SampledFrom([]string{"HTTP", "TCP"}).Draw(t, "egress protocol"), Name: "p"}
			e.Bind = rapid.SampledFrom([]string{"", "127.0.0.1"}).Draw(t, "bind")
		}
		s.Egress = append(s.Egress, e)
	}
	version := rapid.StringMatching("[a-z]{8}").Draw(t, "sidecar version")
	return registry.ObjectState{Key: k, Object: &mesh.Object{Key: k, Version: version, Spec: s}}
}
