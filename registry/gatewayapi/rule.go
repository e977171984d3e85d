package gatewayapi

import (
	"cmp"
	"slices"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"

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
	out := *r
	out.http = proto.Clone(r.http).(*networking.HTTPRoute)
	if len(out.http.Match) == 0 {
		out.http.Match = []*networking.HTTPMatchRequest{{}}
	}
	for _, m := range out.http.Match {
		m.Port = port
	}
	return &out
}

// hostRules are all rules for one host of a listener, or for one Service.
type hostRules struct {
	service *mesh.Service // of those for a Service
	rules   []*rule
	streams []*streamRule
}

// add adds a rule, once: a route may name a listener in several ways.
func (h *hostRules) add(r *rule) {
	if !slices.Contains(h.rules, r) {
		h.rules = append(h.rules, r)
	}
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
		take(s.route)
	}
	return out
}
