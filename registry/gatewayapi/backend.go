package gatewayapi

import (
	networking "istio.io/api/networking/v1alpha3"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

const (
	// maxWeight bounds weights, as the resource definition does.
	maxWeight = 1_000_000
	// groupHostname and kindHostname name a host of the mesh that is no Service.
	groupHostname = "networking.istio.io"
	kindHostname  = "Hostname"
)

// destinations is where the requests of a rule go.
type destinations struct {
	list []*networking.HTTPRouteDestination
	// any says that one of them can be used.
	any bool
}

// set gives a rule its destinations. A rule without any that can be used fails,
// unless it answers by itself.
func (d destinations) set(out *networking.HTTPRoute) {
	if out.Redirect != nil || out.DirectResponse != nil {
		return
	}
	if !d.any {
		fails(out)
		return
	}
	out.Route = d.list
}

// backend resolves a reference to a backend. One that cannot be used leads to
// [Unresolved], and why is noted with the route. ok tells which.
func (t *translator) backend(r *route, ref *gatewayv1.BackendObjectReference) (d *networking.Destination, ok bool) {
	bad := func(reason gatewayv1.RouteConditionReason, format string, args ...any) (*networking.Destination, bool) {
		r.unresolved(reason, format, args...)
		return &networking.Destination{Host: Unresolved, Port: &networking.PortSelector{Number: 1}}, false
	}
	group, kind := string(deref(ref.Group, "")), string(deref(ref.Kind, kindService))
	n := Name{string(deref(ref.Namespace, gatewayv1.Namespace(r.object.Key.Namespace))), string(ref.Name)}
	imported := group == groupClusterSet && kind == kindServiceImport
	hostname := group == groupHostname && kind == kindHostname
	if !imported && !hostname && (group != "" || kind != kindService) {
		return bad(gatewayv1.RouteReasonInvalidKind, "backend %s is a %s; only Services and ServiceImports can be used", n, kind)
	}
	if !hostname && !t.unguarded && !t.permitted(r.kind, r.object.Key.Namespace, group, kind, n) {
		r.denied = true
		return bad(gatewayv1.RouteReasonRefNotPermitted, "%s %s is in another namespace, and no ReferenceGrant there allows it", kind, n)
	}
	port := deref(ref.Port, 0)
	if port < 1 || port > 65535 {
		return bad(gatewayv1.RouteReasonUnsupportedValue, "backend %s has no port", n)
	}
	to := &networking.Destination{Host: n.Name, Port: &networking.PortSelector{Number: uint32(port)}}
	if hostname {
		return to, true
	}
	s := t.service(n, imported)
	if s == nil {
		return bad(gatewayv1.RouteReasonBackendNotFound, "there is no %s %s", kind, n)
	}
	if _, has := s.Port(uint16(port)); !has {
		return bad(gatewayv1.RouteReasonBackendNotFound, "%s %s has no port %d", kind, n, port)
	}
	to.Host = string(s.Key.Hostname)
	r.backends = append(r.backends, n)
	return to, true
}

func (t *translator) httpDestinations(r *route, refs []gatewayv1.HTTPBackendRef) destinations {
	var out destinations
	for i := range refs {
		ref := &refs[i]
		w := weight(ref.Weight)
		d, ok := t.backend(r, &ref.BackendObjectReference)
		out.any = out.any || ok && w > 0
		out.list = append(out.list, &networking.HTTPRouteDestination{Destination: d, Weight: w, Headers: backendHeaders(r, ref.Filters)})
	}
	out.tidy()
	return out
}

// tidy makes one destination that gets everything one without a weight.
func (d *destinations) tidy() {
	if len(d.list) == 1 && d.list[0].Weight > 0 {
		d.list[0].Weight = 0
	}
}

func weight(w *int32) int32 { return max(0, min(deref(w, 1), maxWeight)) }

// streamDestinations is the same for connections. Those that cannot be used get
// their share all the same: it is refused.
func (t *translator) streamDestinations(r *route, refs []gatewayv1.BackendRef) []*networking.RouteDestination {
	var out []*networking.RouteDestination
	for i := range refs {
		d, _ := t.backend(r, &refs[i].BackendObjectReference)
		if w := weight(refs[i].Weight); w > 0 {
			out = append(out, &networking.RouteDestination{Destination: d, Weight: w})
		}
	}
	if len(out) == 0 {
		out = []*networking.RouteDestination{{Destination: &networking.Destination{Host: Unresolved, Port: &networking.PortSelector{Number: 1}}}}
	}
	if len(out) == 1 {
		out[0].Weight = 0
	}
	return out
}
