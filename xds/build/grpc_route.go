package build

import (
	"regexp"
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
)

// A gRPC client without a proxy takes less of a route than Envoy does, and refuses
// a whole configuration for some of the rest. What it takes is kept: paths,
// headers, weights, subsets, timeouts, retries, faults and hashes of headers.
// What is the same for every call is decided here: all calls are POST, have no
// query and no claims. What it cannot do is left out: rewrites, changes of
// headers, copies and CORS. A redirect or direct response fails the call.

// grpcRoutes makes the route configuration that a gRPC client's listener names.
// The listener was asked for by host, so every authority is meant for it. Unless
// a rule says otherwise there are no retries but those of gRPC's own.
func grpcRoutes(in Inputs, v View, name string) (*routev3.RouteConfiguration, error) {
	id, ok := ParseUpstreamName(name)
	if !ok || id.Direction != DirectionOutbound || id.Subset != "" {
		return nil, nil
	}
	if _, ok := findServed(in, v, id.Host, id.Port); !ok {
		return nil, nil
	}
	routes, err := grpcRules(in, v, id)
	if err != nil {
		return nil, err
	}
	if routes == nil {
		a := &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: name}}
		if h := destinationHash(in, v, id); h.GetHeader() != nil {
			a.HashPolicy = []*routev3.RouteAction_HashPolicy{h}
		}
		routes = []*routev3.Route{{
			Name:   defaultRoute,
			Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: ""}},
			Action: &routev3.Route_Route{Route: a},
		}}
	}
	return &routev3.RouteConfiguration{
		Name:         name,
		VirtualHosts: []*routev3.VirtualHost{{Name: sniffedRoute(id.Host, id.Port), Domains: []string{"*"}, Routes: routes}},
	}, nil
}

// grpcRules makes the routes of the first VirtualService that says anything about
// a service's port; nil if none does.
func grpcRules(in Inputs, v View, id UpstreamID) ([]*routev3.Route, error) {
	b := newRouteBuilder(in, v, id.Port)
	for _, vs := range b.rules.forHost(in, v, id.Host) {
		list, err := b.rulesOf(vs)
		if err != nil {
			return nil, err
		}
		if len(list) == 0 {
			continue
		}
		out := []*routev3.Route{} // rules that no call matches are rules all the same
		for _, r := range list {
			out = append(out, grpcRoute(r, id)...)
		}
		return out, nil
	}
	return nil, nil
}

// grpcRoute reduces a route to what a gRPC client takes. It comes to none if no
// call matches it, to several where one needs more matches to say the same.
func grpcRoute(r *routev3.Route, id UpstreamID) []*routev3.Route {
	matches := grpcMatches(r.GetMatch(), id)
	out := make([]*routev3.Route, 0, len(matches))
	for _, m := range matches {
		g := &routev3.Route{Name: r.GetName(), Match: m, Metadata: r.GetMetadata(), Action: r.GetAction()}
		if a := r.GetRoute(); a != nil {
			g.Action = &routev3.Route_Route{Route: grpcAction(a)}
		}
		if f, ok := r.GetTypedPerFilterConfig()[faultName]; ok {
			put(&g.TypedPerFilterConfig, faultName, f)
		}
		out = append(out, g)
	}
	return out
}

func grpcAction(a *routev3.RouteAction) *routev3.RouteAction {
	out := &routev3.RouteAction{ClusterSpecifier: a.GetClusterSpecifier(), RetryPolicy: grpcRetries(a.GetRetryPolicy())}
	if w := a.GetWeightedClusters(); w != nil {
		plain := &routev3.WeightedCluster{}
		for _, c := range w.GetClusters() {
			plain.Clusters = append(plain.Clusters, &routev3.WeightedCluster_ClusterWeight{Name: c.GetName(), Weight: c.GetWeight()})
		}
		out.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: plain}
	}
	if t := a.GetTimeout(); positive(t) {
		out.MaxStreamDuration = &routev3.RouteAction_MaxStreamDuration{MaxStreamDuration: t}
	}
	for _, h := range a.GetHashPolicy() {
		if h.GetHeader() != nil {
			out.HashPolicy = append(out.HashPolicy, h)
		}
	}
	return out
}

// grpcRetries keeps the conditions that gRPC knows; nil if there are none.
func grpcRetries(p *routev3.RetryPolicy) *routev3.RetryPolicy {
	var on []string
	for c := range strings.SplitSeq(p.GetRetryOn(), ",") {
		if slices.Contains([]string{"cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable"}, c) {
			on = append(on, c)
		}
	}
	if len(on) == 0 {
		return nil
	}
	out := &routev3.RetryPolicy{RetryOn: strings.Join(on, ","), NumRetries: p.GetNumRetries()}
	if positive(p.GetRetryBackOff().GetBaseInterval()) {
		out.RetryBackOff = p.GetRetryBackOff()
	}
	return out
}

// maxGRPCMatches bounds what one match may come to.
const maxGRPCMatches = 16

// grpcMatches reduces a match to what a gRPC client decides by.
func grpcMatches(m *routev3.RouteMatch, id UpstreamID) []*routev3.RouteMatch {
	if len(m.GetQueryParameters()) > 0 || slices.ContainsFunc(m.GetDynamicMetadata(), func(d *matcherv3.MetadataMatcher) bool { return !d.GetInvert() }) {
		return nil
	}
	variants := [][]*routev3.HeaderMatcher{nil}
	for _, h := range m.GetHeaders() {
		fixed, known := pseudoHeader(h.GetName(), id)
		switch {
		case known && !slices.ContainsFunc(fixed, func(value string) bool { return matchesText(h, value) }):
			return nil
		case known:
		case h.GetTreatMissingHeaderAsEmpty() && len(variants) < maxGRPCMatches:
			// A header that is not there matches nothing in gRPC, not even by not being
			// what it must not be.
			absent := &routev3.HeaderMatcher{Name: h.GetName(), InvertMatch: true,
				HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}}
			other := &routev3.HeaderMatcher{Name: h.GetName(), InvertMatch: true, HeaderMatchSpecifier: h.GetHeaderMatchSpecifier()}
			var both [][]*routev3.HeaderMatcher
			for _, v := range variants {
				both = append(both, append(slices.Clone(v), absent), append(slices.Clone(v), other))
			}
			variants = both
		default:
			for i := range variants {
				variants[i] = append(variants[i], h)
			}
		}
	}
	out := make([]*routev3.RouteMatch, len(variants))
	for i, v := range variants {
		out[i] = &routev3.RouteMatch{PathSpecifier: m.GetPathSpecifier(), CaseSensitive: m.GetCaseSensitive(), Headers: v}
	}
	return out
}

// pseudoHeader lists the values that a pseudo header may have in a call to a
// service's port; false for a header that differs from call to call.
func pseudoHeader(name string, id UpstreamID) ([]string, bool) {
	switch strings.ToLower(name) {
	case headerMethod:
		return []string{"POST"}, true
	case headerScheme:
		return []string{"http", "https"}, true
	case headerAuthority, "host":
		return []string{string(id.Host), sniffedRoute(id.Host, id.Port)}, true
	}
	return nil, false
}

// matchesText decides a condition on a header whose value is known.
func matchesText(h *routev3.HeaderMatcher, value string) bool {
	is := true // present
	switch p := h.GetStringMatch().GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		is = p.Exact == value
	case *matcherv3.StringMatcher_Prefix:
		is = strings.HasPrefix(value, p.Prefix)
	case *matcherv3.StringMatcher_SafeRegex:
		re, err := regexp.Compile("^(?:" + p.SafeRegex.GetRegex() + ")$")
		is = err == nil && re.MatchString(value)
	}
	return is != h.GetInvertMatch()
}
