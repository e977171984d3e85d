package deploy

import (
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	appsv1ac "k8s.io/client-go/applyconfigurations/apps/v1"
	autoscalingv2ac "k8s.io/client-go/applyconfigurations/autoscaling/v2"
	corev1ac "k8s.io/client-go/applyconfigurations/core/v1"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"
	policyv1ac "k8s.io/client-go/applyconfigurations/policy/v1"

	"github.com/isthmus-mesh/isthmus/registry/gatewayapi"
)

// Names in the pods of routers.
const (
	proxyContainer = "istio-proxy"
	// proxyImage stands where injection puts the image of the proxy.
	proxyImage = "auto"
	// envNetworkView has a router of a network hear of that network only.
	envNetworkView = "ISTIO_META_REQUESTED_NETWORK_VIEW"
)

func (m *maker) account() *corev1ac.ServiceAccountApplyConfiguration {
	return corev1ac.ServiceAccount(m.out.Account, m.Gateway.Namespace).WithLabels(m.labels).WithAnnotations(m.annotations).WithOwnerReferences(m.owner())
}

func (m *maker) service() (*corev1ac.ServiceApplyConfiguration, error) {
	kind := corev1.ServiceTypeLoadBalancer
	if t, ok := m.Gateway.Annotations[annotationServiceType]; ok {
		kind = corev1.ServiceType(t)
		if !slices.Contains(serviceTypes(), t) {
			return nil, fmt.Errorf("annotation %s is %q: want one of %v", annotationServiceType, t, serviceTypes())
		}
	}
	spec := corev1ac.ServiceSpec().WithType(kind).WithIPFamilyPolicy(corev1.IPFamilyPolicyPreferDualStack).WithSelector(m.selector())
	for _, p := range m.ports {
		spec.WithPorts(corev1ac.ServicePort().WithName(p.name).WithPort(p.number).WithProtocol(corev1.ProtocolTCP).WithAppProtocol(p.protocol))
	}
	if len(m.Gateway.Spec.Addresses) > 0 && kind == corev1.ServiceTypeLoadBalancer {
		if ip := m.Gateway.Spec.Addresses[0].Value; ip != "" {
			spec.WithLoadBalancerIP(ip)
		}
	}
	return corev1ac.Service(m.out.Name, m.Gateway.Namespace).WithLabels(m.labels).WithAnnotations(m.annotations).WithOwnerReferences(m.owner()).WithSpec(spec), nil
}

// serviceTypes are those that lead to pods.
func serviceTypes() []string {
	return []string{string(corev1.ServiceTypeLoadBalancer), string(corev1.ServiceTypeClusterIP), string(corev1.ServiceTypeNodePort)}
}

// deployment has one container, which is the proxy: injection fills it in.
func (m *maker) deployment() *appsv1ac.DeploymentApplyConfiguration {
	selector, labels := m.deploymentSelector(), map[string]string{labelDataplane: "none"}
	maps.Copy(labels, m.labels)
	maps.Copy(labels, selector)
	labels[labelInject] = "true"
	proxy := corev1ac.Container().WithName(proxyContainer).WithImage(proxyImage).WithPorts(
		containerPort("metrics", 15020), containerPort("status-port", statusPort), containerPort("http-envoy-prom", 15090))
	if m.network != "" {
		proxy.WithEnv(corev1ac.EnvVar().WithName(envNetworkView).WithValue(m.network))
	}
	pod := corev1ac.PodTemplateSpec().WithLabels(labels).WithAnnotations(m.podAnnotations()).
		WithSpec(corev1ac.PodSpec().WithServiceAccountName(m.out.Account).WithContainers(proxy))
	return appsv1ac.Deployment(m.out.Name, m.Gateway.Namespace).WithLabels(m.labels).WithAnnotations(m.annotations).WithOwnerReferences(m.owner()).
		WithSpec(appsv1ac.DeploymentSpec().WithSelector(metav1ac.LabelSelector().WithMatchLabels(selector)).WithTemplate(pod))
}

func containerPort(name string, number int32) *corev1ac.ContainerPortApplyConfiguration {
	return corev1ac.ContainerPort().WithName(name).WithContainerPort(number).WithProtocol(corev1.ProtocolTCP)
}

// deploymentSelector is that of the Deployment that is there, if there is one that
// selects our pods: older releases of Istio had a further label in it, and it
// cannot be changed.
func (m *maker) deploymentSelector() map[string]string {
	want := m.selector()
	if live := m.live(keyDeployment); live != nil {
		have, _, err := unstructured.NestedStringMap(live.Object, "spec", "selector", "matchLabels")
		if err == nil && have[gatewayapi.LabelGateway] == m.Gateway.Name {
			return have
		}
	}
	return want
}

func (m *maker) live(key string) *unstructured.Unstructured {
	if m.Live == nil {
		return nil
	}
	return m.Live(key, m.out.Name)
}

// followReplicas leaves the number of pods to an autoscaler: what it set last is
// what we say, as saying nothing would set it back to one.
func (m *maker) followReplicas(deployment map[string]any) {
	unstructured.RemoveNestedField(deployment, "spec", "replicas")
	live := m.live(keyDeployment)
	if live == nil {
		return
	}
	if n, ok, err := unstructured.NestedInt64(live.Object, "spec", "replicas"); ok && err == nil {
		if spec, ok := deployment["spec"].(map[string]any); ok {
			spec["replicas"] = n
		}
	}
}

// podAnnotations are those of the pods. What would steer injection is left off.
func (m *maker) podAnnotations() map[string]string {
	out := map[string]string{}
	for _, key := range slices.Sorted(maps.Keys(m.annotations)) {
		if err := podAnnotation(key, m.annotations[key]); err != nil {
			m.out.LeftOut = append(m.out.LeftOut, fmt.Sprintf("annotation %s is not on the pods: %v", key, err))
			continue
		}
		out[key] = m.annotations[key]
	}
	for key, value := range map[string]string{"prometheus.io/scrape": "true", "prometheus.io/port": "15020", "prometheus.io/path": "/stats/prometheus"} {
		if _, ok := out[key]; !ok {
			out[key] = value
		}
	}
	out[annotationTemplates] = Template
	return out
}

// scaler has one pod at most until parameters say otherwise.
func (m *maker) scaler() *autoscalingv2ac.HorizontalPodAutoscalerApplyConfiguration {
	target := autoscalingv2ac.CrossVersionObjectReference().WithAPIVersion("apps/v1").WithKind("Deployment").WithName(m.out.Name)
	return autoscalingv2ac.HorizontalPodAutoscaler(m.out.Name, m.Gateway.Namespace).WithLabels(m.labels).WithAnnotations(m.annotations).WithOwnerReferences(m.owner()).
		WithSpec(autoscalingv2ac.HorizontalPodAutoscalerSpec().WithScaleTargetRef(target).WithMaxReplicas(1))
}

func (m *maker) budget() *policyv1ac.PodDisruptionBudgetApplyConfiguration {
	return policyv1ac.PodDisruptionBudget(m.out.Name, m.Gateway.Namespace).WithLabels(m.labels).WithAnnotations(m.annotations).WithOwnerReferences(m.owner()).
		WithSpec(policyv1ac.PodDisruptionBudgetSpec().WithSelector(metav1ac.LabelSelector().WithMatchLabels(m.selector())))
}
