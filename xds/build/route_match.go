package build

import (
	"maps"
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	networking "istio.io/api/networking/v1alpha3"
)

// Pseudo headers that requests are matched by.
const (
	headerMethod    = ":method"
	headerAuthority = ":authority"
	headerScheme    = ":scheme"
)

// everyRequest matches all requests.
func everyRequest() *routev3.RouteMatch {
	return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}
}

// routeMatch translates what of a match a proxy decides for each request; nil
// matches all.
func routeMatch(m *networking.HTTPMatchRequest) *routev3.RouteMatch {
	out := everyRequest()
	if m == nil {
		return out
	}
	out.CaseSensitive = boolean(!m.GetIgnoreUriCase())
	switch u := m.GetUri().GetMatchType().(type) {
	case *networking.StringMatch_Exact:
		out.PathSpecifier = &routev3.RouteMatch_Path{Path: u.Exact}
	case *networking.StringMatch_Prefix:
		out.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: u.Prefix}
	case *networking.StringMatch_Regex:
		out.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: regexMatcher(u.Regex)}
	}
	for _, name := range slices.Sorted(maps.Keys(m.GetHeaders())) {
		matchHeader(out, name, m.GetHeaders()[name], false)
	}
	for _, name := range slices.Sorted(maps.Keys(m.GetWithoutHeaders())) {
		matchHeader(out, name, m.GetWithoutHeaders()[name], true)
	}
	slices.SortStableFunc(out.Headers, func(a, b *routev3.HeaderMatcher) int { return strings.Compare(a.GetName(), b.GetName()) })
	for _, h := range []struct {
		name string
		is   *networking.StringMatch
	}{{headerMethod, m.GetMethod()}, {headerAuthority, m.GetAuthority()}, {headerScheme, m.GetScheme()}} {
		if h.is != nil {
			out.Headers = append(out.Headers, headerMatcher(h.name, h.is))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(m.GetQueryParams())) {
		out.QueryParameters = append(out.QueryParameters, queryMatcher(name, m.GetQueryParams()[name]))
	}
	return out
}

// matchHeader adds a condition on a header, or on a claim of the request's token
// that is written like one.
func matchHeader(out *routev3.RouteMatch, name string, is *networking.StringMatch, without bool) {
	if claim := claimPath(name); claim != nil {
		m := claimMatcher(claim, is)
		m.Invert = without
		out.DynamicMetadata = append(out.DynamicMetadata, m)
		return
	}
	m := headerMatcher(name, is)
	if without {
		m.InvertMatch = true
		m.TreatMissingHeaderAsEmpty = !matchesPresence(is) // who does not have the header is without the value
	}
	out.Headers = append(out.Headers, m)
}

func headerMatcher(name string, is *networking.StringMatch) *routev3.HeaderMatcher {
	out := &routev3.HeaderMatcher{Name: name}
	if matchesPresence(is) {
		out.HeaderMatchSpecifier = &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}
	} else {
		out.HeaderMatchSpecifier = &routev3.HeaderMatcher_StringMatch{StringMatch: stringMatcher(is)}
	}
	return out
}

func queryMatcher(name string, is *networking.StringMatch) *routev3.QueryParameterMatcher {
	out := &routev3.QueryParameterMatcher{Name: name}
	if matchesPresence(is) {
		out.QueryParameterMatchSpecifier = &routev3.QueryParameterMatcher_PresentMatch{PresentMatch: true}
	} else {
		out.QueryParameterMatchSpecifier = &routev3.QueryParameterMatcher_StringMatch{StringMatch: stringMatcher(is)}
	}
	return out
}

// matchesPresence reports whether any value will do. "*" is no regular
// expression, but what users write for that.
func matchesPresence(is *networking.StringMatch) bool {
	return is.GetMatchType() == nil || is.GetRegex() == "*" || is.GetPrefix() == "" && is.GetExact() == "" && is.GetRegex() == "" && !isExact(is)
}

func isExact(is *networking.StringMatch) bool {
	_, ok := is.GetMatchType().(*networking.StringMatch_Exact)
	return ok
}

// stringMatcher translates a match that is more than of presence.
func stringMatcher(is *networking.StringMatch) *matcherv3.StringMatcher {
	switch x := is.GetMatchType().(type) {
	case *networking.StringMatch_Prefix:
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: x.Prefix}}
	case *networking.StringMatch_Regex:
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: regexMatcher(x.Regex)}}
	}
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: is.GetExact()}}
}

// regexMatcher matches by RE2. The length of expressions is bounded where they
// are read.
func regexMatcher(re string) *matcherv3.RegexMatcher { return &matcherv3.RegexMatcher{Regex: re} }

const (
	claimPrefix = "@request.auth.claims"
	jwtFilter   = "envoy.filters.http.jwt_authn"
	jwtPayload  = "payload"
)

// claimPath reads the name of a claim, "@request.auth.claims.a.b" or
// "@request.auth.claims[a][b]"; nil if the name is that of a header.
func claimPath(name string) []string {
	if len(name) < len(claimPrefix) || !strings.EqualFold(name[:len(claimPrefix)], claimPrefix) {
		return nil
	}
	rest := name[len(claimPrefix):]
	if dotted, ok := strings.CutPrefix(rest, "."); ok && dotted != "" {
		return strings.Split(dotted, ".")
	}
	if strings.HasPrefix(rest, "[") && strings.HasSuffix(rest, "]") && len(rest) > 2 {
		return strings.Split(rest[1:len(rest)-1], "][")
	}
	return nil
}

// claimMatcher matches a claim that is a text, or a list with such a text.
func claimMatcher(path []string, is *networking.StringMatch) *matcherv3.MetadataMatcher {
	out := &matcherv3.MetadataMatcher{Filter: jwtFilter}
	for _, key := range append([]string{jwtPayload}, path...) {
		out.Path = append(out.Path, &matcherv3.MetadataMatcher_PathSegment{Segment: &matcherv3.MetadataMatcher_PathSegment_Key{Key: key}})
	}
	text := stringMatcher(is)
	if matchesPresence(is) {
		text = &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: regexMatcher(".+")}}
	}
	value := func() *matcherv3.ValueMatcher {
		return &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_StringMatch{StringMatch: text}}
	}
	out.Value = &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_OrMatch{OrMatch: &matcherv3.OrMatcher{
		ValueMatchers: []*matcherv3.ValueMatcher{
			{MatchPattern: &matcherv3.ValueMatcher_ListMatch{ListMatch: &matcherv3.ListMatcher{
				MatchPattern: &matcherv3.ListMatcher_OneOf{OneOf: value()},
			}}},
			value(),
		},
	}}}
	return out
}

// catchesAll reports whether no request gets past a route.
func catchesAll(r *routev3.Route) bool {
	m := r.GetMatch()
	return m.GetPrefix() == "/" && len(m.GetHeaders())+len(m.GetQueryParameters())+len(m.GetDynamicMetadata()) == 0
}
