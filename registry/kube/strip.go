package kube

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Strip takes everything off an object that nothing here reads, as soon as it
// is decoded, so that a list of ten thousand pods never exists whole. It may be
// applied twice. It has the form of a client-go transform function and never
// fails.
func Strip(obj any) (any, error) {
	switch o := obj.(type) {
	case *corev1.Pod:
		stripPod(o)
	case *corev1.Service:
		stripMeta(&o.ObjectMeta)
		o.Status.Conditions = nil
	case *discoveryv1.EndpointSlice:
		stripMeta(&o.ObjectMeta)
		o.Annotations, o.OwnerReferences = nil, nil
		for i := range o.Endpoints {
			o.Endpoints[i].Hints, o.Endpoints[i].DeprecatedTopology, o.Endpoints[i].Zone = nil, nil, nil
		}
	case *corev1.Node:
		stripMeta(&o.ObjectMeta)
		o.Annotations, o.Spec = nil, corev1.NodeSpec{}
		o.Status = corev1.NodeStatus{Addresses: o.Status.Addresses}
	case *corev1.Namespace:
		stripMeta(&o.ObjectMeta)
		o.Annotations = nil
	case *corev1.ConfigMap:
		stripMeta(&o.ObjectMeta)
		o.BinaryData, o.Annotations = nil, nil
	case *unstructured.Unstructured:
		o.SetManagedFields(nil)
	}
	return obj, nil
}

func stripMeta(m *metav1.ObjectMeta) {
	m.ManagedFields, m.Finalizers = nil, nil
	delete(m.Annotations, corev1.LastAppliedConfigAnnotation)
}

func stripPod(o *corev1.Pod) {
	stripMeta(&o.ObjectMeta)
	o.Annotations = nil
	o.Spec = corev1.PodSpec{
		ServiceAccountName: o.Spec.ServiceAccountName,
		NodeName:           o.Spec.NodeName,
		HostNetwork:        o.Spec.HostNetwork,
		Hostname:           o.Spec.Hostname,
		Subdomain:          o.Spec.Subdomain,
		Containers:         stripContainers(o.Spec.Containers),
		InitContainers:     stripContainers(o.Spec.InitContainers),
	}
	o.Status = corev1.PodStatus{
		Phase:      o.Status.Phase,
		PodIP:      o.Status.PodIP,
		PodIPs:     o.Status.PodIPs,
		Conditions: readyCondition(o.Status.Conditions),
	}
}

func stripContainers(in []corev1.Container) []corev1.Container {
	var out []corev1.Container
	for i := range in {
		if c := &in[i]; len(c.Ports) > 0 {
			out = append(out, corev1.Container{Ports: c.Ports, RestartPolicy: c.RestartPolicy})
		}
	}
	return out
}

func readyCondition(in []corev1.PodCondition) []corev1.PodCondition {
	for _, c := range in {
		if c.Type == corev1.PodReady {
			return []corev1.PodCondition{{Type: c.Type, Status: c.Status}}
		}
	}
	return nil
}
