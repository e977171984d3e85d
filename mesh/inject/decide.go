package inject

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// ignoredNamespaces are never injected: what runs in them has to start before
// any mesh does.
func ignoredNamespaces() []string {
	return []string{"kube-system", "kube-public", "kube-node-lease", "local-path-storage"}
}

// Decision says whether a pod is to be injected, and why.
type Decision struct {
	Inject bool
	Reason string
}

// Decide says what the configuration makes of a pod: host network and system
// namespaces, label or annotation sidecar.istio.io/inject, neverInjectSelector,
// alwaysInjectSelector, policy, in that order. The labels of the namespace are
// not its business but that of the webhook's selectors: see [Selected].
func (c *Config) Decide(pod *corev1.Pod, namespace string) Decision {
	if pod.Spec.HostNetwork {
		return Decision{Reason: "the pod uses the network of its node, whose traffic must not be redirected"}
	}
	if slices.Contains(ignoredNamespaces(), namespace) {
		return Decision{Reason: fmt.Sprintf("nothing is injected in namespace %s", namespace)}
	}
	if v, ok := pod.Labels[labelInject]; ok && v != "" {
		return Decision{truthy(v), fmt.Sprintf("label %s=%s of the pod", labelInject, v)}
	} else if v := pod.Annotations[annotationInject]; !ok && v != "" {
		return Decision{truthy(v), fmt.Sprintf("annotation %s=%s of the pod", annotationInject, v)}
	}
	for _, s := range c.never {
		if s.Matches(labels.Set(pod.Labels)) {
			return Decision{false, fmt.Sprintf("neverInjectSelector %s matches the pod's labels", s)}
		}
	}
	for _, s := range c.always {
		if s.Matches(labels.Set(pod.Labels)) {
			return Decision{true, fmt.Sprintf("alwaysInjectSelector %s matches the pod's labels", s)}
		}
	}
	return Decision{c.policy == PolicyEnabled, "policy " + c.policy}
}

// Selected says whether the webhooks of a revision and its tags, with the
// selectors of Istio's chart, would be asked about a pod: what the API server
// decides before [Config.Decide] has a say. The revision "" is the default one.
func Selected(namespaceLabels, podLabels map[string]string, revision string, tags ...string) Decision {
	names := append([]string{revision}, tags...)
	if revision == "" {
		names[0] = "default"
	}
	isDefault := slices.Contains(names, "default")
	if podLabels[labelInject] == "false" {
		return Decision{false, fmt.Sprintf("label %s=false of the pod", labelInject)}
	}
	injection, hasInjection := namespaceLabels[labelInjection]
	rev, hasRev := namespaceLabels[labelRevision]
	podRev, hasPodRev := podLabels[labelRevision]
	switch {
	case hasInjection && injection == "enabled":
		return Decision{isDefault, fmt.Sprintf("label %s=enabled of the namespace asks for the default revision", labelInjection)}
	case hasInjection:
		return Decision{false, fmt.Sprintf("label %s=%s of the namespace", labelInjection, injection)}
	case hasRev:
		return Decision{slices.Contains(names, rev), fmt.Sprintf("label %s=%s of the namespace", labelRevision, rev)}
	case hasPodRev:
		return Decision{slices.Contains(names, podRev), fmt.Sprintf("label %s=%s of the pod", labelRevision, podRev)}
	case podLabels[labelInject] == "true":
		return Decision{isDefault, fmt.Sprintf("label %s=true of the pod asks for the default revision", labelInject)}
	}
	return Decision{false, fmt.Sprintf("neither the namespace (%s, %s) nor the pod (%s) asks for a proxy", labelInjection, labelRevision, labelInject)}
}
