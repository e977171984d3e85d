package gatewayapi

import (
	"fmt"
	"slices"
	"strings"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// gateway is a Gateway that is ours to serve.
type gateway struct {
	object    *mesh.Object
	name      Name
	spec      *gatewayv1.GatewaySpec
	class     *class
	listeners []*listener
	// named are the Services through which its routers are reached; found are those
	// that exist, in the same order.
	named []Name
	found []*mesh.Service
	// byHand says that the Gateway names its Services; else there is one by the
	// Gateway's own name.
	byHand bool
	// refused lists addresses that cannot be asked for.
	refused []string
	// made is what is known of routers that are made for it.
	made Infrastructure
}

// readGateways reads all Gateways of our classes, and the fitness of their
// listeners.
func (t *translator) readGateways() {
	for _, o := range t.list(mesh.KindGatewayAPIGateway) {
		spec, ok := o.Value.(*gatewayv1.GatewaySpec)
		if !ok {
			continue
		}
		c := t.classes[string(spec.GatewayClassName)]
		if c == nil {
			continue
		}
		g := &gateway{object: o, name: Name{o.Key.Namespace, o.Key.Name}, spec: spec, class: c}
		if t.in.Infrastructure != nil {
			g.made = t.in.Infrastructure(g.name)
		}
		t.findServices(g)
		for i := range spec.Listeners {
			g.listeners = append(g.listeners, t.readListener(g, &spec.Listeners[i]))
		}
		g.findConflicts()
		t.gateways[g.name] = g
	}
}

// findServices finds the Services of a Gateway: those that it names as
// addresses, else the one that is made for it.
func (t *translator) findServices(g *gateway) {
	if g.class.remote {
		return
	}
	for _, a := range g.spec.Addresses {
		switch kind := deref(a.Type, gatewayv1.IPAddressType); kind {
		case gatewayv1.HostnameAddressType:
			g.byHand = true
			g.named = append(g.named, serviceName(a.Value, g.name.Namespace))
		case gatewayv1.IPAddressType: // for whoever makes the Service to ask for
		default:
			g.refused = append(g.refused, fmt.Sprintf("%s %q", kind, a.Value))
		}
	}
	if !g.byHand {
		g.named = []Name{{g.name.Namespace, g.routersName()}}
	}
	for _, n := range g.named {
		if s := t.service(n, false); s != nil {
			g.found = append(g.found, s)
		}
	}
}

// serviceName reads the host name of a Service: NAME, or NAME.NAMESPACE with
// whatever follows.
func serviceName(host, namespace string) Name {
	name, rest, dotted := strings.Cut(strings.ToLower(host), ".")
	if !dotted {
		return Name{namespace, name}
	}
	ns, _, _ := strings.Cut(rest, ".")
	return Name{ns, name}
}

// bindings says which routers serve the Gateway: those that its Services select.
func (g *gateway) bindings() []routers {
	if g.class.remote {
		return nil
	}
	var out []routers
	for _, s := range g.found {
		if len(s.Lead.Selector) > 0 {
			out = append(out, routers{s.Key.Namespace, s.Lead.Selector})
		}
	}
	if len(out) == 0 && !g.byHand {
		out = []routers{{g.name.Namespace, map[string]string{LabelGateway: g.name.Name}}}
	}
	return out
}

// routers are the proxies of a namespace with the labels.
type routers struct {
	namespace string
	labels    map[string]string
}

// listenerGroup tells which protocols may share a port.
func listenerGroup(p gatewayv1.ProtocolType) string {
	switch p {
	case gatewayv1.HTTPSProtocolType, gatewayv1.TLSProtocolType:
		return "TLS"
	}
	return string(p)
}

// findConflicts marks listeners of a port that cannot be there together: the
// oldest in the list does not win, as nobody could tell which was meant.
func (g *gateway) findConflicts() {
	for i, a := range g.listeners {
		for _, b := range g.listeners[i+1:] {
			if a.spec.Port != b.spec.Port || a.unsupported() || b.unsupported() {
				continue
			}
			switch {
			case listenerGroup(a.spec.Protocol) != listenerGroup(b.spec.Protocol):
				reason := gatewayv1.ListenerReasonProtocolConflict
				a.conflicts(reason, b)
				b.conflicts(reason, a)
			case a.hostname == b.hostname:
				reason := gatewayv1.ListenerReasonHostnameConflict
				a.conflicts(reason, b)
				b.conflicts(reason, a)
			}
		}
	}
}

// pick lists the listeners that a reference to the Gateway means.
func (g *gateway) pick(ref *gatewayv1.ParentReference) []*listener {
	return slices.DeleteFunc(slices.Clone(g.listeners), func(l *listener) bool {
		return ref.SectionName != nil && *ref.SectionName != l.spec.Name || ref.Port != nil && *ref.Port != l.spec.Port
	})
}
