package gatewayapi

import (
	"cmp"
	"slices"
	"strings"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Labels and annotations of a Gateway's own routers, which Istio's users know.
const (
	// LabelGateway is on the pods that belong to a Gateway, and on all else that is
	// made for it.
	LabelGateway = "gateway.networking.k8s.io/gateway-name"
	// LabelClass names the class of that Gateway.
	LabelClass = "gateway.networking.k8s.io/gateway-class-name"
	// LabelManaged says which controller made an object.
	LabelManaged = "gateway.istio.io/managed"
	// AnnotationName overrides the name of Service and Deployment of a Gateway.
	AnnotationName = "gateway.istio.io/name-override"
)

// Infrastructure is what is known of the routers that are made for a Gateway.
type Infrastructure struct {
	// Parameters says why its parameters cannot be used, "" if they can.
	Parameters string
	// Reason is a reason of condition Programmed and says with Message why nobody can
	// reach its routers; "" if somebody can, or if nothing is known.
	Reason, Message string
}

// ControllerOf names the controller of a class: that of the GatewayClass, or for
// the names that Istio has, without one, Istio's; "" if nobody knows the class.
func ControllerOf(objects func(mesh.ObjectKind) []*mesh.Object, class string) string {
	for _, o := range objects(mesh.KindGatewayClass) {
		if spec, ok := o.Value.(*gatewayv1.GatewayClassSpec); ok && o.Key.Name == class {
			return string(spec.ControllerName)
		}
	}
	return Classes()[class]
}

// MakesRouters reports whether a Gateway of a class of a controller gets routers
// of its own. One that names host names as its addresses has some already, and
// one whose addresses cannot be asked for gets none.
func MakesRouters(controller string, spec *gatewayv1.GatewaySpec) bool {
	if controller != Controller && controller != ControllerEastWest {
		return false
	}
	return !slices.ContainsFunc(spec.Addresses, func(a gatewayv1.GatewaySpecAddress) bool {
		return deref(a.Type, gatewayv1.IPAddressType) != gatewayv1.IPAddressType
	})
}

// RoutersName is the name of Service and Deployment of a Gateway that does not
// override it: NAME-CLASS, or for gateways between networks NAME.
func RoutersName(gateway, class, controller string) string {
	if controller == ControllerEastWest {
		return gateway
	}
	return gateway + "-" + class
}

// ManagedBy is the value of [LabelManaged] of a controller.
func ManagedBy(controller string) string { return strings.ReplaceAll(controller, "/", "-") }

// ServedPort reports whether routers open the port of a listener: nobody speaks
// HBONE or UDP to them.
func ServedPort(l *gatewayv1.Listener) bool {
	switch l.Protocol {
	case gatewayv1.HTTPProtocolType, gatewayv1.HTTPSProtocolType, gatewayv1.TLSProtocolType, gatewayv1.TCPProtocolType:
		return l.Port > 0 && l.Port <= 65535
	}
	return false
}

// routersName is the name of the Service of a Gateway that names none.
func (g *gateway) routersName() string {
	controller := Controller
	if g.class.eastWest {
		controller = ControllerEastWest
	}
	return cmp.Or(g.object.Annotations[AnnotationName], RoutersName(g.name.Name, string(g.spec.GatewayClassName), controller))
}
