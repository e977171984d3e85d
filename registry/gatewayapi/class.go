package gatewayapi

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// class is a GatewayClass that is ours.
type class struct {
	name string
	// remote: its Gateways describe routers that run where nobody reads.
	remote bool
	// eastWest: its Gateways lead to a network.
	eastWest bool
}

func newClass(name, controller string) *class {
	switch controller {
	case Controller:
		return &class{name: name}
	case controllerRemote:
		return &class{name: name, remote: true}
	case ControllerEastWest:
		return &class{name: name, eastWest: true}
	}
	return nil
}

// readClasses finds out which classes are ours. An object decides about its name;
// without one, the names that Istio has do.
func (t *translator) readClasses() {
	t.classes = map[string]*class{}
	for name, controller := range Classes() {
		t.classes[name] = newClass(name, controller)
	}
	for _, o := range t.list(mesh.KindGatewayClass) {
		spec, ok := o.Value.(*gatewayv1.GatewayClassSpec)
		if !ok {
			continue
		}
		delete(t.classes, o.Key.Name)
		c := newClass(o.Key.Name, string(spec.ControllerName))
		if c == nil {
			continue
		}
		t.classes[o.Key.Name] = c
		accepted := metav1.Condition{Type: string(gatewayv1.GatewayClassConditionStatusAccepted), Status: metav1.ConditionTrue,
			Reason: string(gatewayv1.GatewayClassReasonAccepted), Message: "Gateways of this class are served", ObservedGeneration: o.Generation}
		t.judge(o.Key, func() *Status {
			return &Status{Class: &gatewayv1.GatewayClassStatus{Conditions: []metav1.Condition{accepted}}}
		})
	}
}
