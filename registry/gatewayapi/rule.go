package gatewayapi

import (
	"cmp"
	"slices"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// rule is one match of one rule of a route, as a rule of a VirtualService.
type rule struct {
	route *mesh.Object
	// index is its place in the route.
	index int
	rank  rank
	http  *networking.HTTPRoute
	extra Rule
	// ports are the rule for one port each, once somebody asked.
	ports map[uint32]*rule
}

// requests is a rule for requests, of a route of any kind.
type requests struct {
	name     *gatewayv1.SectionName
	matches  []matching
	filters  []gatewayv1.HTTPRouteFilter
	backends []gatewayv1.HTTPBackendRef
	timeouts *gatewayv1.HTTPRouteTimeouts
	retry    *gatewayv1.HTTPRouteRetry
}

// matching is which requests a rule takes; match is nil if that cannot be said.
type matching struct {
	match *networking.HTTPMatchRequest
	rank  rank
}

// readRule translates a rule: one rule for each of its matches, because each has
// a rank of its own.
func (t *translator) readRule(r *route, i int, in *requests) {
	base := &networking.HTTPRoute{Name: ruleName(r, i, in.name)}
	setTimeouts(r, base, in.timeouts, in.retry)
	to := t.httpDestinations(r, in.backends)
	for _, m := range in.matches {
		if m.match == nil {
			continue
		}
		x := &rule{route: r.object, index: len(r.rules), rank: m.rank, extra: Rule{Origin: r.object.Key},
			http: &networking.HTTPRoute{Name: base.Name, Timeout: base.Timeout, Retries: base.Retries, Match: []*networking.HTTPMatchRequest{m.match}}}
		t.applyFilters(r, x, in.filters)
		to.set(x.http)
		r.rules = append(r.rules, x)
	}
}

// Kinds of path matches, by precedence.
const (
	pathPrefix = iota
	pathRegex
	pathExact
)

// rank is what of a match decides which of several rules goes first.
type rank struct {
	path, length    int
	method          bool
	headers, params int
}

// compareRules puts the rule first that the specification wants first: by path
// (exact, then the longest prefix), method, number of headers, number of query
// parameters; of equals that of the oldest route, then by name, then the first
// one written. Regular expressions, for which there is no rule, go between exact
// paths and prefixes: behind them most would never match.
func compareRules(a, b *rule) int {
	return cmp.Or(
		-cmp.Compare(a.rank.path, b.rank.path),
		-cmp.Compare(a.rank.length, b.rank.length),
		-compareBool(a.rank.method, b.rank.method),
		-cmp.Compare(a.rank.headers, b.rank.headers),
		-cmp.Compare(a.rank.params, b.rank.params),
		a.route.Created.Compare(b.route.Created),
		cmp.Compare(a.route.Key.Namespace, b.route.Key.Namespace),
		cmp.Compare(a.route.Key.Name, b.route.Key.Name),
		cmp.Compare(a.route.Key.Kind, b.route.Key.Kind),
		cmp.Compare(a.index, b.index),
	)
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// onPort limits a rule to a port; 0 for all.
func (r *rule) onPort(port uint32) *rule {
	if port == 0 {
		return r
	}
	if out := r.ports[port]; out != nil {
		return out
	}
	out := *r
	out.http = proto.Clone(r.http).(*networking.HTTPRoute)
	if len(out.http.Match) == 0 {
		out.http.Match = []*networking.HTTPMatchRequest{{}}
	}
	for _, m := range out.http.Match {
		m.Port = port
	}
	if r.ports == nil {
		r.ports = map[uint32]*rule{}
	}
	r.ports[port] = &out
	return &out
}

// hostRules are all rules for one host of a listener, or for one Service.
type hostRules struct {
	service *mesh.Service // of those for a Service
	rules   []*rule
	streams []placed
}

// add adds a rule, once: a route may name a listener in several ways. All rules
// of a route are added before those of the next.
func (h *hostRules) add(r *rule) {
	for _, x := range slices.Backward(h.rules) {
		if x == r {
			return
		}
		if x.route != r.route {
			break
		}
	}
	h.rules = append(h.rules, r)
}

// routes returns the rules in the order in which they are tried, with what a
// VirtualService cannot say.
func (h *hostRules) routes() ([]*networking.HTTPRoute, Rules) {
	list := slices.SortedStableFunc(slices.Values(h.rules), compareRules)
	out, extra := make([]*networking.HTTPRoute, len(list)), make(Rules, len(list))
	for i, r := range list {
		out[i], extra[i] = r.http, r.extra
	}
	return out, extra
}

// oldest returns the oldest route of the rules.
func (h *hostRules) oldest() *mesh.Object {
	var out *mesh.Object
	take := func(o *mesh.Object) {
		if out == nil || mesh.CompareObjects(o, out) < 0 {
			out = o
		}
	}
	for _, r := range h.rules {
		take(r.route)
	}
	for _, s := range h.streams {
		take(s.rule.route)
	}
	return out
}
