package deploy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/isthmus-mesh/isthmus/registry/gatewayapi"
)

// collision says which object of another's is in the way.
func (j *job) collision(objects *Objects) *refusal {
	for _, want := range objects.List {
		k := kindOf(want)
		have := j.live[k.key]
		if have == nil {
			continue
		}
		ref := fmt.Sprintf("%s %s/%s", k.Kind, have.GetNamespace(), have.GetName())
		switch whose, who := j.whose(have); {
		case whose == isOurs:
		case whose == isEarlier:
			return &refusal{gatewayapi.Infrastructure{Reason: string(gatewayv1.GatewayReasonPending),
				Message: ref + " belongs to an earlier Gateway of the name and has not been collected yet"}, "", time.Second}
		case k.key == keyAccount && have.GetLabels()[gatewayapi.LabelGateway] == j.gw.Name:
			j.account = true
		default:
			fix := fmt.Sprintf("choose another name with annotation %s, or delete it", gatewayapi.AnnotationName)
			if k.key == keyAccount {
				fix = fmt.Sprintf("choose another name with annotation %s, or have who owns it label it %s=%s", annotationAccount, gatewayapi.LabelGateway, j.gw.Name)
			}
			return &refusal{gatewayapi.Infrastructure{Reason: string(gatewayv1.GatewayReasonInvalid),
				Message: fmt.Sprintf("%s was made by %s and is left alone: %s", ref, who, fix)}, "NameTaken", look}
		}
	}
	return nil
}

// owner says whose an object is.
type owner uint8

const (
	isTheirs  owner = iota
	isOurs          // made for this Gateway, by us or by who did this before us
	isEarlier       // made for a Gateway of the same name that is no more
)

// whose says whose an object is: one that belongs to the Gateway and that was made
// by a controller of its name is ours, and so is one that has lost its owners.
func (j *job) whose(o *unstructured.Unstructured) (whose owner, who string) {
	labels := o.GetLabels()
	written := slices.ContainsFunc(o.GetManagedFields(), func(m metav1.ManagedFieldsEntry) bool { return m.Manager == FieldManager })
	managed := labels[gatewayapi.LabelManaged] == gatewayapi.ManagedBy(gatewayapi.Controller) || labels[gatewayapi.LabelManaged] == gatewayapi.ManagedBy(gatewayapi.ControllerEastWest)
	owners := o.GetOwnerReferences()
	for _, r := range owners {
		switch {
		case r.UID == j.gw.UID && (managed || written):
			return isOurs, ""
		case r.Kind == "Gateway" && r.Name == j.gw.Name && strings.HasPrefix(r.APIVersion, gatewayv1.GroupName+"/") && (managed || written):
			return isEarlier, ""
		}
	}
	if len(owners) == 0 && (written || managed) && (labels[gatewayapi.LabelGateway] == j.gw.Name || labels[gatewayapi.LabelGateway] == "" && written) {
		return isOurs, ""
	}
	for _, r := range owners {
		if r.UID != j.gw.UID {
			return isTheirs, fmt.Sprintf("%s %s", r.Kind, r.Name)
		}
	}
	for _, m := range o.GetManagedFields() {
		return isTheirs, m.Manager
	}
	return isTheirs, "somebody else"
}

// reached says whether anybody can reach routers: their Service has an address if
// it is to have one, and a pod is there.
func reached(service, deployment *unstructured.Unstructured) gatewayapi.Infrastructure {
	if service == nil || deployment == nil {
		return gatewayapi.Infrastructure{}
	}
	if n, _, _ := unstructured.NestedInt64(deployment.Object, "status", "availableReplicas"); n == 0 {
		message := fmt.Sprintf("Deployment %s/%s has no pod that is available", deployment.GetNamespace(), deployment.GetName())
		return gatewayapi.Infrastructure{Reason: string(gatewayv1.GatewayReasonPending), Message: message + why(deployment)}
	}
	kind, _, _ := unstructured.NestedString(service.Object, "spec", "type")
	given, _, _ := unstructured.NestedSlice(service.Object, "status", "loadBalancer", "ingress")
	fixed, _, _ := unstructured.NestedSlice(service.Object, "spec", "externalIPs")
	if kind == string(corev1.ServiceTypeLoadBalancer) && len(given) == 0 && len(fixed) == 0 {
		return gatewayapi.Infrastructure{Reason: string(gatewayv1.GatewayReasonAddressNotAssigned),
			Message: fmt.Sprintf("Service %s/%s has no address of a load balancer yet; annotation %s: ClusterIP makes one without", service.GetNamespace(), service.GetName(), annotationServiceType)}
	}
	return gatewayapi.Infrastructure{}
}

// why tells what keeps the pods of a Deployment from being made.
func why(deployment *unstructured.Unstructured) string {
	conditions, _, _ := unstructured.NestedSlice(deployment.Object, "status", "conditions")
	for _, x := range conditions {
		if c, ok := x.(map[string]any); ok && c["type"] == "ReplicaFailure" && c["status"] == "True" {
			return fmt.Sprintf(": %v", c["message"])
		}
	}
	return ""
}
