package deploy

import (
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// kind is a kind of object that is made for Gateways.
type kind struct {
	schema.GroupVersionKind
	resource string
	// key is the name of its overlay in parameters.
	key string
	// asked: it is made only if parameters have an overlay for it.
	asked bool
	// empty returns a value of its Go type.
	empty func() any
}

// Keys of parameters, by kind.
const (
	keyAccount    = "serviceAccount"
	keyService    = "service"
	keyDeployment = "deployment"
	keyScaler     = "horizontalPodAutoscaler"
	keyBudget     = "podDisruptionBudget"
)

// kinds lists what is made, in the order in which it is applied.
func kinds() []kind {
	return []kind{
		{GroupVersionKind: corev1.SchemeGroupVersion.WithKind("ServiceAccount"), resource: "serviceaccounts", key: keyAccount, empty: func() any { return &corev1.ServiceAccount{} }},
		{GroupVersionKind: corev1.SchemeGroupVersion.WithKind("Service"), resource: "services", key: keyService, empty: func() any { return &corev1.Service{} }},
		{GroupVersionKind: appsv1.SchemeGroupVersion.WithKind("Deployment"), resource: "deployments", key: keyDeployment, empty: func() any { return &appsv1.Deployment{} }},
		{GroupVersionKind: autoscalingv2.SchemeGroupVersion.WithKind("HorizontalPodAutoscaler"), resource: "horizontalpodautoscalers", key: keyScaler, asked: true,
			empty: func() any { return &autoscalingv2.HorizontalPodAutoscaler{} }},
		{GroupVersionKind: policyv1.SchemeGroupVersion.WithKind("PodDisruptionBudget"), resource: "poddisruptionbudgets", key: keyBudget, asked: true,
			empty: func() any { return &policyv1.PodDisruptionBudget{} }},
	}
}

func (k kind) gvr() schema.GroupVersionResource {
	return k.GroupVersion().WithResource(k.resource)
}
