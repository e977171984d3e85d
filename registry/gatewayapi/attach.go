package gatewayapi

import (
	"fmt"
	"slices"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// route is a route of any kind.
type route struct {
	object *mesh.Object
	kind   string
	common *gatewayv1.CommonRouteSpec
	hosts  []gatewayv1.Hostname
	// rules are its rules for requests, streams those for connections.
	rules   []*rule
	streams []*streamRule
	// accepted and resolved say what is wrong with it, wherever it is attached.
	accepted, resolved verdict
	// backends are the Services that it leads to.
	backends []Name
	// within is the route as it is for what is sent to Services within the mesh:
	// there a namespace needs nobody's leave to lead to another one's Service.
	within *route
	// denied says that a reference is not permitted.
	denied bool
}

func (r *route) unaccepted(reason gatewayv1.RouteConditionReason, format string, args ...any) {
	if r.accepted.ok() {
		r.accepted = verdict{string(reason), fmt.Sprintf(format, args...)}
	}
}

func (r *route) unresolved(reason gatewayv1.RouteConditionReason, format string, args ...any) {
	if r.resolved.ok() {
		r.resolved = verdict{string(reason), fmt.Sprintf(format, args...)}
	}
}

// readRoute reads a route of any kind.
func (t *translator) readRoute(o *mesh.Object, c *gatewayv1.CommonRouteSpec) *route {
	r := &route{object: o, kind: string(o.Key.Kind), common: c}
	switch spec := o.Value.(type) {
	case *gatewayv1.HTTPRouteSpec:
		t.readHTTPRoute(r, spec)
	case *gatewayv1.GRPCRouteSpec:
		t.readGRPCRoute(r, spec)
	case *gatewayv1.TLSRouteSpec:
		t.readTLSRoute(r, spec)
	case *gatewayv1.TCPRouteSpec:
		t.readTCPRoute(r, spec)
	}
	checkHosts(r)
	for _, x := range r.rules {
		checkRule(r, x.http)
	}
	return r
}

// mine reports whether any parent of a route is ours.
func (t *translator) mine(namespace string, c *gatewayv1.CommonRouteSpec) bool {
	return slices.ContainsFunc(c.ParentRefs, func(ref gatewayv1.ParentReference) bool {
		n := parentName(&ref, namespace)
		switch parentKind(&ref) {
		case kindGateway:
			return t.gateways[n] != nil
		case kindService:
			t.out.Asked[n] = struct{}{}
			return true
		}
		return false
	})
}

func parentName(ref *gatewayv1.ParentReference, namespace string) Name {
	return Name{string(deref(ref.Namespace, gatewayv1.Namespace(namespace))), string(ref.Name)}
}

// parentKind is Gateway or Service, "" for what cannot be a parent.
func parentKind(ref *gatewayv1.ParentReference) string {
	switch group, kind := string(deref(ref.Group, groupGateway)), string(deref(ref.Kind, kindGateway)); {
	case group == groupGateway && kind == kindGateway:
		return kindGateway
	case group == "" && kind == kindService:
		return kindService
	}
	return ""
}

// attach attaches a route to all its parents, and judges each attachment.
func (t *translator) attach(r *route) {
	st := &Status{}
	tell := func(r *route, ref *gatewayv1.ParentReference, v verdict) {
		if !t.in.Silent {
			st.Parents = append(st.Parents, r.parentStatus(ref, v))
		}
	}
	for i := range r.common.ParentRefs {
		ref := &r.common.ParentRefs[i]
		if slices.ContainsFunc(r.common.ParentRefs[:i], func(earlier gatewayv1.ParentReference) bool { return keyOf(&earlier) == keyOf(ref) }) {
			continue
		}
		n := parentName(ref, r.object.Key.Namespace)
		switch parentKind(ref) {
		case kindGateway:
			if g := t.gateways[n]; g != nil {
				tell(r, ref, t.attachGateway(r, g, ref))
			}
		case kindService:
			tell(r.within, ref, t.attachService(r.within, n, ref))
		}
	}
	if len(st.Parents) > 0 {
		t.judge(r.object.Key, func() *Status { return st })
	}
}

// parentKey is a reference by value.
type parentKey struct {
	group, kind, namespace, name, section string
	port                                  int32
}

func keyOf(ref *gatewayv1.ParentReference) parentKey {
	return parentKey{string(deref(ref.Group, groupGateway)), string(deref(ref.Kind, kindGateway)), string(deref(ref.Namespace, "")),
		string(ref.Name), string(deref(ref.SectionName, "")), deref(ref.Port, 0)}
}

// attachGateway attaches a route to the listeners of a Gateway that take it.
func (t *translator) attachGateway(r *route, g *gateway, ref *gatewayv1.ParentReference) verdict {
	picked := g.pick(ref)
	if len(picked) == 0 {
		return verdict{string(gatewayv1.RouteReasonNoMatchingParent), fmt.Sprintf("Gateway %s has no such listener", g.name)}
	}
	var allowed, matched int
	for _, l := range picked {
		if !slices.Contains(l.kinds, r.kind) || !t.admits(l, r.object.Key.Namespace) || !l.accepted.ok() || !l.conflicted.ok() {
			continue
		}
		allowed++
		hosts := l.common(r.hosts)
		if r.kind == kindTCPRoute {
			hosts = []string{l.hostname}
		}
		if len(hosts) == 0 {
			continue
		}
		matched++
		if !r.accepted.ok() {
			continue
		}
		t.take(l, r, hosts)
	}
	switch {
	case allowed == 0:
		return verdict{string(gatewayv1.RouteReasonNotAllowedByListeners), fmt.Sprintf("no listener of Gateway %s that is meant takes a %s of namespace %s", g.name, r.kind, r.object.Key.Namespace)}
	case matched == 0:
		return verdict{string(gatewayv1.RouteReasonNoMatchingListenerHostname), fmt.Sprintf("no hostname is one of those of Gateway %s", g.name)}
	}
	t.leads(g, r)
	return r.accepted
}

// take makes a route count at hosts of a listener.
func (t *translator) take(l *listener, r *route, hosts []string) {
	l.attached++
	a, c := t.attaching, t.changes
	a.listeners = append(a.listeners, l)
	for _, h := range hosts {
		for _, x := range r.rules {
			l.host(h).add(x)
		}
		for _, x := range r.streams {
			l.streams = append(l.streams, placed{rule: x, host: h})
		}
		if len(r.rules) > 0 {
			a.hosts = append(a.hosts, hostOf{l, h})
			if c != nil {
				c.hosts[hostOf{l, h}] = struct{}{}
			}
		}
	}
	if len(r.streams) > 0 && c != nil {
		c.streams[l] = struct{}{}
	}
}

func (l *listener) host(h string) *hostRules {
	if l.hosts[h] == nil {
		l.hosts[h] = &hostRules{}
	}
	return l.hosts[h]
}

// attachService makes a route one for what is sent to a Service within the mesh.
func (t *translator) attachService(r *route, n Name, ref *gatewayv1.ParentReference) verdict {
	s := t.service(n, false)
	if s == nil {
		return verdict{string(gatewayv1.RouteReasonNoMatchingParent), fmt.Sprintf("there is no Service %s", n)}
	}
	port := deref(ref.Port, 0)
	if port != 0 {
		if _, ok := s.Port(uint16(port)); !ok || port < 1 || port > 65535 {
			return verdict{string(gatewayv1.RouteReasonNoMatchingParent), fmt.Sprintf("Service %s has no port %d", n, port)}
		}
	}
	if !r.accepted.ok() {
		return r.accepted
	}
	k := meshKey{r.object.Key.Namespace, n}
	if t.mesh[k] == nil {
		t.mesh[k] = &hostRules{service: s}
	}
	t.attaching.mesh = append(t.attaching.mesh, k)
	if t.changes != nil {
		t.changes.mesh[k] = struct{}{}
	}
	for _, x := range r.rules {
		t.mesh[k].add(x.onPort(uint32(port)))
	}
	for _, x := range r.streams {
		t.mesh[k].streams = append(t.mesh[k].streams, placed{rule: x, port: uint32(port)})
	}
	return verdict{}
}
