package build

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"sync"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// ruleIndex is all DestinationRules by namespace.
type ruleIndex map[string]*ruleSpace

// ruleSpace is the rules of one namespace.
type ruleSpace struct {
	exact map[mesh.Hostname]*ruleHost
	// wild are those for patterns, the most specific first.
	wild []*ruleHost
}

// ruleHost is the rules of one namespace for one host or pattern.
type ruleHost struct {
	host  mesh.Hostname
	rules []*ruleObject // oldest first
	// merged are the rules that several objects come to, by which they are: a
	// string of '0' and '1' -> *destinationRule.
	merged sync.Map
}

// ruleObject is one DestinationRule.
type ruleObject struct {
	object *mesh.Object
	spec   *networking.DestinationRule
	// selector are the labels that it selects its clients by, empty for all. A rule
	// with a selector is for its own namespace only.
	selector map[string]string
	// alone is the rule that the object is by itself.
	alone *destinationRule
}

// destinationRules returns the index of the catalog's rules.
func destinationRules(in Inputs) ruleIndex {
	return registry.Derived(in.Catalog, mesh.KindDestinationRule, indexRules)
}

func indexRules(all []*mesh.Object) ruleIndex {
	x := ruleIndex{}
	for _, o := range all {
		spec, ok := o.Spec.(*networking.DestinationRule)
		if !ok || isBackendTLS(o) {
			continue
		}
		r := &ruleObject{object: o, spec: spec, selector: spec.GetWorkloadSelector().GetMatchLabels()}
		host := fullHost(spec.GetHost(), o.Key.Namespace)
		r.alone = mergeRules(host, []*ruleObject{r})
		x.space(o.Key.Namespace).add(host, r)
	}
	for _, s := range x {
		slices.SortFunc(s.wild, func(a, b *ruleHost) int {
			return cmp.Or(cmp.Compare(len(b.host), len(a.host)), cmp.Compare(a.host, b.host))
		})
	}
	return x
}

func (x ruleIndex) space(ns string) *ruleSpace {
	if x[ns] == nil {
		x[ns] = &ruleSpace{exact: map[mesh.Hostname]*ruleHost{}}
	}
	return x[ns]
}

func (s *ruleSpace) add(host mesh.Hostname, r *ruleObject) {
	h := s.exact[host]
	if h == nil {
		h = &ruleHost{host: host}
		s.exact[host] = h
		if strings.HasPrefix(string(host), "*") {
			s.wild = append(s.wild, h)
		}
	}
	h.rules = append(h.rules, r)
}

// each calls f for the rules about a host, the most specific first.
func (s *ruleSpace) each(host mesh.Hostname, f func(*ruleHost)) {
	if s == nil {
		return
	}
	if h := s.exact[host]; h != nil {
		f(h)
	}
	for _, h := range s.wild {
		if h.host == host {
			continue // a service of that wildcard itself
		}
		if _, ok := hostRank(string(h.host), host); ok {
			f(h)
		}
	}
}

// find returns the namespace's rule about a host for a client. Of a client in
// the root namespace, hidden asks for what no other namespace sees.
func (s *ruleSpace) find(host mesh.Hostname, c *ruleClient, hidden bool) *destinationRule {
	if s == nil {
		return nil
	}
	if h := s.exact[host]; h != nil {
		if r := h.find(c, hidden); r != nil {
			return r
		}
	}
	for _, h := range s.wild {
		if _, ok := hostRank(string(h.host), host); !ok {
			continue
		}
		if r := h.find(c, hidden); r != nil {
			return r
		}
	}
	return nil
}

// find returns the rule that those of the objects make that are for a client.
func (h *ruleHost) find(c *ruleClient, hidden bool) *destinationRule {
	if len(h.rules) == 1 {
		if r := h.rules[0]; c.gets(r, hidden) {
			return r.alone
		}
		return nil
	}
	var got []*ruleObject
	for _, r := range h.rules {
		switch {
		case !c.gets(r, hidden):
		case len(got) == 0, len(got[0].selector) == 0 && len(r.selector) > 0:
			got = append(got[:0], r)
		case maps.Equal(got[0].selector, r.selector):
			got = append(got, r)
		}
	}
	switch len(got) {
	case 0:
		return nil
	case 1:
		return got[0].alone
	}
	return h.merge(got)
}

// merge returns the rule that several objects come to, always the same one for
// the same objects.
func (h *ruleHost) merge(got []*ruleObject) *destinationRule {
	key := make([]byte, len(h.rules))
	for i, r := range h.rules {
		key[i] = '0'
		if slices.Contains(got, r) {
			key[i] = '1'
		}
	}
	if m, ok := h.merged.Load(string(key)); ok {
		return m.(*destinationRule)
	}
	m, _ := h.merged.LoadOrStore(string(key), mergeRules(h.host, got))
	return m.(*destinationRule)
}

// mergeRules makes one rule of objects, oldest first.
func mergeRules(host mesh.Hostname, list []*ruleObject) *destinationRule {
	out := &destinationRule{origin: list[0].object, host: host, selective: len(list[0].selector) > 0}
	names := map[string]struct{}{}
	for _, r := range list {
		if out.policy == nil {
			out.policy = r.spec.GetTrafficPolicy()
		}
		for _, s := range r.spec.GetSubsets() {
			if _, dup := names[s.GetName()]; dup || !nameable(s.GetName()) {
				continue
			}
			names[s.GetName()] = struct{}{}
			out.subsets = append(out.subsets, s)
		}
	}
	return out
}

// nameable reports whether the name of a subset can stand in the names of
// upstreams, in either form. Validation lets no other through.
func nameable(subset string) bool {
	return subset != "" && !strings.Contains(subset, "|") && !strings.Contains(subset, "_.")
}

// ruleClient is who asks for a rule.
type ruleClient struct {
	namespace string
	handle    Labels
	// export is whom rules without exportTo are for.
	export []string
	labels map[string]string // of handle, once it was read
}

func newRuleClient(in Inputs, v View) ruleClient {
	return ruleClient{namespace: v.Namespace, handle: v.Labels, export: in.Catalog.Settings.Mesh.GetDefaultDestinationRuleExportTo()}
}

// gets reports whether a rule is for the client.
func (c *ruleClient) gets(r *ruleObject, hidden bool) bool {
	from := r.object.Key.Namespace
	if len(r.selector) > 0 {
		return from == c.namespace && c.selected(r.selector)
	}
	export := r.spec.GetExportTo()
	if len(export) == 0 {
		export = c.export
	}
	if hidden && (len(export) != 1 || export[0] != "." && export[0] != from) {
		return false
	}
	return exported(export, from, c.namespace)
}

// selected reports whether the client has the labels.
func (c *ruleClient) selected(selector map[string]string) bool {
	if c.labels == nil {
		if c.labels = c.handle.Map(); c.labels == nil {
			return false
		}
	}
	return selects(selector, c.labels)
}

// passingRules says that some rule makes an upstream dial the original destination.
type passingRules bool

// mayPassThrough reports whether a rule of any namespace makes an upstream of a
// host dial the address that the client asked for.
func mayPassThrough(in Inputs, host mesh.Hostname) bool {
	found := false
	if !registry.Derived(in.Catalog, mesh.KindDestinationRule, func(all []*mesh.Object) passingRules {
		return passingRules(slices.ContainsFunc(all, func(o *mesh.Object) bool {
			spec, ok := o.Spec.(*networking.DestinationRule)
			return ok && rulePasses(spec)
		}))
	}) {
		return false // as nearly always
	}
	for _, space := range destinationRules(in) {
		space.each(host, func(h *ruleHost) {
			found = found || slices.ContainsFunc(h.rules, func(r *ruleObject) bool { return rulePasses(r.spec) })
		})
	}
	return found
}

func rulePasses(r *networking.DestinationRule) bool {
	passes := func(p *networking.TrafficPolicy) bool {
		return passesThrough(p) || slices.ContainsFunc(p.GetPortLevelSettings(), func(l *networking.TrafficPolicy_PortTrafficPolicy) bool {
			return l.GetLoadBalancer().GetSimple() == networking.LoadBalancerSettings_PASSTHROUGH
		})
	}
	return passes(r.GetTrafficPolicy()) || slices.ContainsFunc(r.GetSubsets(), func(s *networking.Subset) bool { return passes(s.GetTrafficPolicy()) })
}

// ruleSelectors lists the keys of the labels by which rules of a namespace about
// a host select their clients, sorted.
func ruleSelectors(in Inputs, ns string, host mesh.Hostname) []string {
	k := labelKeys{}
	destinationRules(in)[ns].each(host, func(h *ruleHost) {
		for _, r := range h.rules {
			k.addAll(r.selector)
		}
	})
	return k.sorted()
}
