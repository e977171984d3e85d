package deploy

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/validation"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/isthmus-mesh/isthmus/registry/gatewayapi"
)

// Template is that of injection which makes a proxy of a pod of routers.
const Template = "gateway"

// Labels and annotations that mean something here.
const (
	annotationAccount     = "gateway.istio.io/service-account"
	annotationVersion     = "gateway.istio.io/controller-version"
	annotationServiceType = "networking.istio.io/service-type"
	annotationTemplates   = "inject.istio.io/templates"
	labelInject           = "sidecar.istio.io/inject"
	labelRevision         = "istio.io/rev"
	labelNetwork          = "topology.istio.io/network"
	labelDataplane        = "istio.io/dataplane-mode"
)

// Input is what the objects of a Gateway are made from.
type Input struct {
	// Gateway is as it stands at the API server, with its apiVersion and UID.
	Gateway *gatewayv1.Gateway
	// Controller is that of its class: see [gatewayapi.MakesRouters].
	Controller string
	// Network is that of the cluster, which a gateway between networks is of if it
	// does not say otherwise.
	Network string
	// CopyMetadata puts labels and annotations of the Gateway on what is made for it
	// unless its infrastructure has some.
	CopyMetadata bool
	// Class holds the defaults of its class, Parameters what the Gateway names; nil
	// for none.
	Class, Parameters *corev1.ConfigMap
	// Live returns what is there of a kind under the name that it will have, nil if
	// nothing is; the function may be nil. It is asked for what cannot be changed or
	// is somebody else's to change: the selector of a Deployment, its replicas.
	Live func(kind, name string) *unstructured.Unstructured
}

// Objects are what is made for a Gateway.
type Objects struct {
	// Name is that of all but the account, which is called Account.
	Name, Account string
	// List has them in the order in which they are to be applied, each with no field
	// but those that are ours. It is empty if no listener has a port that routers
	// open.
	List []*unstructured.Unstructured
	// LeftOut names annotations that are not on the pods, with the reason.
	LeftOut []string
}

// maker makes the objects of one Gateway.
type maker struct {
	Input
	out                 *Objects
	ports               []servicePort
	labels, annotations map[string]string
	network             string
}

// Make makes the objects of a Gateway. An error is about what users wrote: the
// Gateway, its parameters or the defaults of its class.
func Make(in Input) (*Objects, error) {
	m := &maker{Input: in, out: &Objects{}}
	if err := m.names(); err != nil {
		return nil, err
	}
	if m.ports = portsOf(in.Gateway); len(m.ports) == 0 {
		return m.out, nil
	}
	m.metadata()
	overlays, err := m.overlays()
	if err != nil {
		return nil, err
	}
	for _, k := range kinds() {
		if k.asked && !overlays.have(k.key) {
			continue
		}
		object, err := m.build(k)
		if err != nil {
			return nil, err
		}
		if object, err = overlays.apply(k, object); err != nil {
			return nil, err
		}
		if k.key == keyDeployment && overlays.have(keyScaler) {
			m.followReplicas(object)
		}
		m.out.List = append(m.out.List, &unstructured.Unstructured{Object: object})
	}
	return m.out, nil
}

// names decides what the objects are called.
func (m *maker) names() error {
	gw := m.Gateway
	name := gatewayapi.RoutersName(gw.Name, string(gw.Spec.GatewayClassName), m.Controller)
	m.out.Name = cmp.Or(gw.Annotations[gatewayapi.AnnotationName], name)
	m.out.Account = cmp.Or(gw.Annotations[annotationAccount], name)
	if problems := validation.IsValidLabelValue(gw.Name); len(problems) > 0 {
		return fmt.Errorf("name %s cannot be the label of its pods: %s; make the Gateway anew under a shorter name", gw.Name, strings.Join(problems, ", "))
	}
	if problems := validation.IsDNS1035Label(m.out.Name); len(problems) > 0 {
		return fmt.Errorf("%q cannot be the name of a Service: %s; name another one in annotation %s", m.out.Name, strings.Join(problems, ", "), gatewayapi.AnnotationName)
	}
	if problems := validation.IsDNS1123Subdomain(m.out.Account); len(problems) > 0 {
		return fmt.Errorf("%q cannot be the name of a ServiceAccount: %s; name another one in annotation %s", m.out.Account, strings.Join(problems, ", "), annotationAccount)
	}
	return nil
}

// metadata works out the labels and annotations of all objects: those of the
// Gateway's infrastructure, else the Gateway's own, and ours over both.
func (m *maker) metadata() {
	gw := m.Gateway
	m.labels, m.annotations = map[string]string{}, map[string]string{}
	if m.CopyMetadata {
		maps.Copy(m.labels, gw.Labels)
		maps.Copy(m.annotations, gw.Annotations)
	}
	if i := gw.Spec.Infrastructure; i != nil && i.Labels != nil {
		m.labels = translated(i.Labels)
	}
	if i := gw.Spec.Infrastructure; i != nil && i.Annotations != nil {
		m.annotations = translated(i.Annotations)
	}
	for _, all := range []map[string]string{m.labels, m.annotations} {
		maps.DeleteFunc(all, func(key, _ string) bool { return ours(key) })
	}
	for _, key := range []string{annotationServiceType, corev1.LastAppliedConfigAnnotation} {
		delete(m.annotations, key)
	}
	m.network = cmp.Or(m.labels[labelNetwork], gw.Labels[labelNetwork])
	if m.network == "" && m.Controller != gatewayapi.Controller {
		m.network = m.Network
	}
	if m.network != "" {
		m.labels[labelNetwork] = m.network
	}
	delete(m.labels, labelInject)
	delete(m.labels, labelRevision)
	if rev, ok := gw.Labels[labelRevision]; ok {
		m.labels[labelRevision] = rev
	}
	m.labels[gatewayapi.LabelGateway] = gw.Name
	m.labels[gatewayapi.LabelClass] = string(gw.Spec.GatewayClassName)
	m.labels[gatewayapi.LabelManaged] = gatewayapi.ManagedBy(m.Controller)
}

func translated[K, V ~string](from map[K]V) map[string]string {
	out := make(map[string]string, len(from))
	for k, v := range from {
		out[string(k)] = string(v)
	}
	return out
}

// ours reports whether a label or annotation is for controllers to set or to read
// at the Gateway alone.
func ours(key string) bool {
	domain, _, _ := strings.Cut(key, "/")
	return domain == "gateway.networking.k8s.io" || domain == "gateway.istio.io"
}

// selector is the label that pods are found by.
func (m *maker) selector() map[string]string {
	return map[string]string{gatewayapi.LabelGateway: m.Gateway.Name}
}

// owner makes the objects go when the Gateway does.
func (m *maker) owner() *metav1ac.OwnerReferenceApplyConfiguration {
	gw := m.Gateway
	return metav1ac.OwnerReference().WithAPIVersion(cmp.Or(gw.APIVersion, gatewayv1.GroupVersion.String())).WithKind("Gateway").WithName(gw.Name).WithUID(gw.UID).WithController(true)
}

// build makes an object of a kind before parameters have a say, as JSON.
func (m *maker) build(k kind) (map[string]any, error) {
	var typed any
	switch k.key {
	case keyAccount:
		typed = m.account()
	case keyService:
		s, err := m.service()
		if err != nil {
			return nil, err
		}
		typed = s
	case keyDeployment:
		typed = m.deployment()
	case keyScaler:
		typed = m.scaler()
	case keyBudget:
		typed = m.budget()
	}
	return asTree(typed)
}

// asTree renders a value as JSON does.
func asTree(v any) (map[string]any, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode object: %w", err)
	}
	out := map[string]any{}
	if err := json.Unmarshal(raw, &out); err != nil {
		return nil, fmt.Errorf("encode object: %w", err)
	}
	return out, nil
}

// servicePort is a port of the Service.
type servicePort struct {
	name, protocol string
	number         int32
}

// statusPort answers the probes of load balancers.
const statusPort = 15021

// portsOf lists the ports that listeners have, each once: the status port, then
// theirs in order; none if routers would open no port.
func portsOf(gw *gatewayv1.Gateway) []servicePort {
	out := []servicePort{{name: "status-port", protocol: "tcp", number: statusPort}}
	for i := range gw.Spec.Listeners {
		l := &gw.Spec.Listeners[i]
		if !gatewayapi.ServedPort(l) || slices.ContainsFunc(out, func(p servicePort) bool { return p.number == l.Port }) {
			continue
		}
		name := portName(string(l.Name))
		if name == "" || slices.ContainsFunc(out, func(p servicePort) bool { return p.name == name }) {
			name = fmt.Sprintf("%s-%d", strings.ToLower(string(l.Protocol)), l.Port)
		}
		out = append(out, servicePort{name: name, protocol: strings.ToLower(string(l.Protocol)), number: l.Port})
	}
	if len(out) == 1 {
		return nil
	}
	return out
}

// portName makes the name of a port of that of a listener, which may be longer
// and have dots.
func portName(listener string) string {
	name := strings.ReplaceAll(listener, ".", "-")
	return strings.Trim(name[:min(len(name), validation.DNS1123LabelMaxLength)], "-")
}
