package gatewayapi

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// condition is one that is true as long as nothing is wrong.
func condition[T ~string](kind T, v verdict, good string, generation int64) metav1.Condition {
	out := metav1.Condition{Type: string(kind), Status: metav1.ConditionTrue, Reason: good, ObservedGeneration: generation, Message: "as it should be"}
	if !v.ok() {
		out.Status, out.Reason, out.Message = metav1.ConditionFalse, v.reason, v.message
	}
	return out
}

// parentStatus is what a route hears of its attachment to a parent.
func (r *route) parentStatus(ref *gatewayv1.ParentReference, accepted verdict) gatewayv1.RouteParentStatus {
	return gatewayv1.RouteParentStatus{
		ParentRef: *ref, ControllerName: Controller,
		Conditions: []metav1.Condition{
			condition(gatewayv1.RouteConditionAccepted, accepted, string(gatewayv1.RouteReasonAccepted), r.object.Generation),
			condition(gatewayv1.RouteConditionResolvedRefs, r.resolved, string(gatewayv1.RouteReasonResolvedRefs), r.object.Generation),
		},
	}
}

// status is what a Gateway hears.
func (g *gateway) status() *gatewayv1.GatewayStatus {
	out := &gatewayv1.GatewayStatus{Addresses: g.addresses()}
	accepted, reason := g.accepted()
	programmed := g.programmed()
	a := condition(gatewayv1.GatewayConditionAccepted, accepted, reason, g.object.Generation)
	if reason != string(gatewayv1.GatewayReasonAccepted) {
		a.Message = "some listeners are not valid"
	}
	if !accepted.ok() {
		programmed = verdict{string(gatewayv1.GatewayReasonInvalid), "the Gateway is not accepted"}
	}
	out.Conditions = []metav1.Condition{a, condition(gatewayv1.GatewayConditionProgrammed, programmed, string(gatewayv1.GatewayReasonProgrammed), g.object.Generation)}
	if g.lenient() {
		out.Conditions = append(out.Conditions, metav1.Condition{Type: string(gatewayv1.GatewayConditionInsecureFrontendValidationMode),
			Status: metav1.ConditionTrue, Reason: string(gatewayv1.GatewayReasonConfigurationChanged), ObservedGeneration: g.object.Generation,
			Message: "clients without a good certificate are let in: mode AllowInsecureFallback"})
	}
	for _, l := range g.listeners {
		out.Listeners = append(out.Listeners, l.status())
	}
	return out
}

// accepted judges a Gateway by its listeners and addresses; reason is that of one
// that is accepted.
func (g *gateway) accepted() (v verdict, reason string) {
	if len(g.refused) > 0 {
		return verdict{string(gatewayv1.GatewayReasonUnsupportedAddress), "only addresses of type Hostname, naming a Service, and IPAddress are known, not " + strings.Join(g.refused, ", ")}, string(gatewayv1.GatewayReasonAccepted)
	}
	if why := g.made.Parameters; why != "" {
		return verdict{string(gatewayv1.GatewayReasonInvalidParameters), why}, string(gatewayv1.GatewayReasonAccepted)
	}
	bad := 0
	for _, l := range g.listeners {
		if !l.accepted.ok() || !l.conflicted.ok() {
			bad++
		}
	}
	switch {
	case bad > 0 && bad == len(g.listeners):
		return verdict{string(gatewayv1.GatewayReasonListenersNotValid), "no listener is valid"}, string(gatewayv1.GatewayReasonAccepted)
	case bad > 0:
		return verdict{}, string(gatewayv1.GatewayReasonListenersNotValid)
	}
	return verdict{}, string(gatewayv1.GatewayReasonAccepted)
}

// programmed judges whether anybody can reach the Gateway.
func (g *gateway) programmed() verdict {
	if g.class.remote {
		return verdict{}
	}
	if g.made.Reason != "" {
		return verdict{g.made.Reason, g.made.Message}
	}
	var missing []string
	for _, n := range g.named {
		if !slices.ContainsFunc(g.found, func(s *mesh.Service) bool { return s.Key.Namespace == n.Namespace && s.Lead.Name == n.Name }) {
			missing = append(missing, n.String())
		}
	}
	if len(missing) > 0 {
		reason := gatewayv1.GatewayReasonAddressNotAssigned
		if g.byHand {
			reason = gatewayv1.GatewayReasonAddressNotUsable
		}
		return verdict{string(reason), fmt.Sprintf("there is no Service %s, which routers of this Gateway are reached through", strings.Join(missing, ", "))}
	}
	for _, s := range g.found {
		if s.Lead.AwaitsAddress {
			return verdict{string(gatewayv1.GatewayReasonAddressNotAssigned), fmt.Sprintf("Service %s/%s has no address of its load balancer yet", s.Key.Namespace, s.Lead.Name)}
		}
	}
	for _, l := range g.listeners {
		for _, s := range g.found {
			if _, ok := s.Port(uint16(l.spec.Port)); !ok && l.usable() {
				return verdict{string(gatewayv1.GatewayReasonAddressNotUsable), fmt.Sprintf("Service %s/%s has no port %d, which listener %s is on", s.Key.Namespace, s.Lead.Name, l.spec.Port, l.spec.Name)}
			}
		}
	}
	return verdict{}
}

// addresses are those under which the Gateway is reached: from outside if there
// are any or will be, else within the cluster.
func (g *gateway) addresses() []gatewayv1.GatewayStatusAddress {
	var out []gatewayv1.GatewayStatusAddress
	add := func(value string) {
		kind := gatewayv1.HostnameAddressType
		if _, err := netip.ParseAddr(value); err == nil {
			kind = gatewayv1.IPAddressType
		}
		if !slices.ContainsFunc(out, func(a gatewayv1.GatewayStatusAddress) bool { return a.Value == value }) {
			out = append(out, gatewayv1.GatewayStatusAddress{Type: &kind, Value: value})
		}
	}
	if g.class.remote {
		for _, a := range g.spec.Addresses {
			add(a.Value)
		}
		return out
	}
	for _, s := range g.found {
		for _, a := range s.Lead.External {
			add(a)
		}
	}
	if len(out) == 0 {
		for _, s := range g.found {
			if s.Lead.AwaitsAddress {
				continue // clients outside would take it for the address
			}
			add(string(s.Key.Hostname))
		}
	}
	return out
}

// status is what a listener hears.
func (l *listener) status() gatewayv1.ListenerStatus {
	generation := l.gateway.object.Generation
	programmed := verdict{}
	if !l.usable() {
		programmed = verdict{string(gatewayv1.ListenerReasonInvalid), "the listener is not valid"}
	}
	conflicted := condition(gatewayv1.ListenerConditionConflicted, verdict{string(gatewayv1.ListenerReasonNoConflicts), "as it should be"}, "", generation)
	if !l.conflicted.ok() {
		conflicted.Status, conflicted.Reason, conflicted.Message = metav1.ConditionTrue, l.conflicted.reason, l.conflicted.message
	}
	out := gatewayv1.ListenerStatus{Name: l.spec.Name, AttachedRoutes: l.attached, SupportedKinds: []gatewayv1.RouteGroupKind{},
		Conditions: []metav1.Condition{
			condition(gatewayv1.ListenerConditionAccepted, l.accepted, string(gatewayv1.ListenerReasonAccepted), generation),
			conflicted,
			condition(gatewayv1.ListenerConditionProgrammed, programmed, string(gatewayv1.ListenerReasonProgrammed), generation),
			condition(gatewayv1.ListenerConditionResolvedRefs, l.resolved, string(gatewayv1.ListenerReasonResolvedRefs), generation),
		}}
	for _, k := range l.kinds {
		group := gatewayv1.Group(groupGateway)
		out.SupportedKinds = append(out.SupportedKinds, gatewayv1.RouteGroupKind{Group: &group, Kind: gatewayv1.Kind(k)})
	}
	return out
}
