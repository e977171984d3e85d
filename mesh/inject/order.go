package inject

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// order puts containers where they have to be. The proxy is the last of the
// containers, so that kubectl chooses one of the user's, or the first if the
// others wait for it. Of the init containers, redirection is the last, so that
// the user's still reach the network; but where the proxy is one of them too,
// redirection and the proxy come first, and the user's reach the network through
// the proxy. The check of a CNI plugin's redirection is always the first.
func (j *job) order(pod *corev1.Pod) {
	if j.hold() {
		pod.Spec.Containers = moveFirst(pod.Spec.Containers, ProxyContainer)
	} else {
		pod.Spec.Containers = moveLast(pod.Spec.Containers, ProxyContainer)
	}
	init := pod.Spec.InitContainers
	if find(init, ProxyContainer) == nil {
		init = moveFirst(init, ValidationContainer)
		init = moveLast(init, InitContainer)
		pod.Spec.InitContainers = moveLast(init, coreDumpContainer)
		return
	}
	init = moveFirst(init, coreDumpContainer)
	init = moveFirst(init, ProxyContainer)
	for _, name := range slices.Backward(j.beforeProxy(pod)) {
		init = moveFirst(init, name)
	}
	init = moveFirst(init, ValidationContainer)
	pod.Spec.InitContainers = moveFirst(init, InitContainer)
}

// hold says whether the user's containers wait for the proxy.
func (j *job) hold() bool {
	return j.proxy.GetHoldApplicationUntilProxyStarts().GetValue() ||
		j.c.values.flag("global", "proxy", "holdApplicationUntilProxyStarts")
}

// beforeProxy names init containers that start before a native proxy.
func (j *job) beforeProxy(pod *corev1.Pod) []string {
	names := slices.Clone(j.c.options.InitBeforeProxy)
	for _, name := range strings.Split(pod.Annotations[annotationInitBeforeProxy], ",") {
		if name = strings.TrimSpace(name); name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

func moveFirst(list []corev1.Container, name string) []corev1.Container {
	if c := find(list, name); c != nil {
		return append([]corev1.Container{*c}, without(list, name)...)
	}
	return list
}

func moveLast(list []corev1.Container, name string) []corev1.Container {
	if c := find(list, name); c != nil {
		return append(without(list, name), *c)
	}
	return list
}
