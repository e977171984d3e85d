package inject

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	meshconfig "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
)

// before is the pod as it was before any injection, as far as templates can
// see it: without containers that were injected, with the user's own of the same
// names, without scrape annotations of ours. The proxy comes last: where it
// stands must not make a difference to templates.
func (j *job) before() *corev1.Pod {
	pod := j.base.DeepCopy()
	pod.Namespace = j.namespace
	if j.previous != nil {
		pod.Spec.Containers = restore(pod.Spec.Containers, j.previous.Containers, j.kept.Containers)
		pod.Spec.InitContainers = restore(pod.Spec.InitContainers, j.previous.InitContainers, nil)
		// A native proxy was in containers before, else it was no part of the pod.
		for i := range j.kept.InitContainers {
			c := j.kept.InitContainers[i]
			if c.Name == ProxyContainer {
				pod.Spec.Containers = append(pod.Spec.Containers, c)
			} else if find(pod.Spec.InitContainers, c.Name) == nil {
				pod.Spec.InitContainers = append(pod.Spec.InitContainers, c)
			}
		}
		pod.Spec.Volumes = slices.DeleteFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return slices.Contains(j.previous.Volumes, v.Name) })
		pod.Spec.ImagePullSecrets = slices.DeleteFunc(pod.Spec.ImagePullSecrets, func(s corev1.LocalObjectReference) bool {
			return slices.Contains(j.previous.ImagePullSecrets, s.Name)
		})
		if port, ok := scrapeAnnotation(pod.Annotations, "port"); ok && port == strconv.Itoa(j.statusPort) {
			clearScrapeAnnotations(pod.Annotations)
		}
		delete(pod.Annotations, annotationStatus)
		delete(pod.Annotations, annotationOverrides)
	}
	if c := find(pod.Spec.InitContainers, ProxyContainer); c != nil && j.previous == nil {
		proxy := *c
		pod.Spec.InitContainers = without(pod.Spec.InitContainers, ProxyContainer)
		pod.Spec.Containers = append(pod.Spec.Containers, proxy)
	}
	pod.Spec.Containers = moveLast(pod.Spec.Containers, ProxyContainer)
	return pod
}

// restore takes injected containers out of a list, or puts the user's own in
// their place.
func restore(list []corev1.Container, injected []string, own []corev1.Container) []corev1.Container {
	var out []corev1.Container
	for i := range list {
		if !slices.Contains(injected, list[i].Name) {
			out = append(out, list[i])
		} else if c := find(own, list[i].Name); c != nil {
			out = append(out, *c)
		}
	}
	return out
}

// mergeOverlay merges a part of a pod into a pod, as a strategic merge patch
// does. What was there before keeps its order, and what is new comes after it:
// so merging the same again changes nothing, and the user's first container,
// which kubectl logs and kubectl exec choose, stays the first.
func mergeOverlay(pod *corev1.Pod, overlay map[string]any) (*corev1.Pod, error) {
	raw, err := json.Marshal(pod)
	if err != nil {
		return nil, fmt.Errorf("encode pod: %w", err)
	}
	current := map[string]any{}
	if err := json.Unmarshal(raw, &current); err != nil {
		return nil, fmt.Errorf("decode pod: %w", err)
	}
	schema, err := strategicpatch.NewPatchMetaFromStruct(corev1.Pod{})
	if err != nil {
		return nil, fmt.Errorf("learn how to merge pods: %w", err)
	}
	patch := copyJSON(overlay)
	merged, err := strategicpatch.StrategicMergeMapPatchUsingLookupPatchMeta(current, patch, schema)
	if err != nil {
		return nil, fmt.Errorf("merge into pod: %w", err)
	}
	if raw, err = json.Marshal(merged); err != nil {
		return nil, fmt.Errorf("encode pod: %w", err)
	}
	out := &corev1.Pod{}
	if err := json.Unmarshal(raw, out); err != nil {
		return nil, fmt.Errorf("the merged pod is none: %w", err)
	}
	var part corev1.Pod
	if convert(overlay, &part) == nil {
		keepPorts(pod, &part, out)
	}
	keepOrders(pod, out)
	return out, nil
}

// keepPorts puts right what a strategic merge does to ports: it knows a port by
// its number alone, so that of TCP and UDP on one number one would be lost.
func keepPorts(was, part, is *corev1.Pod) {
	for _, list := range [][3][]corev1.Container{
		{was.Spec.Containers, part.Spec.Containers, is.Spec.Containers}, {was.Spec.InitContainers, part.Spec.InitContainers, is.Spec.InitContainers},
	} {
		for i := range list[2] {
			c := &list[2][i]
			old, more := find(list[0], c.Name), find(list[1], c.Name)
			if old != nil && more != nil && len(old.Ports) > 0 && len(more.Ports) > 0 {
				c.Ports = mergePorts(old.Ports, more.Ports, c.Ports)
			}
		}
	}
}

// mergePorts adds ports to others. Directives of a patch, which look like a port
// without a number, leave the ports as they were merged.
func mergePorts(was, more, merged []corev1.ContainerPort) []corev1.ContainerPort {
	protocol := func(p *corev1.ContainerPort) corev1.Protocol { return cmp.Or(p.Protocol, corev1.ProtocolTCP) }
	out := slices.Clone(was)
	for i := range more {
		m := &more[i]
		if m.ContainerPort == 0 {
			return merged
		}
		at := slices.IndexFunc(out, func(p corev1.ContainerPort) bool {
			return p.ContainerPort == m.ContainerPort && protocol(&p) == protocol(m)
		})
		if at < 0 {
			out = append(out, *m)
			continue
		}
		p := &out[at]
		p.Name, p.HostIP, p.HostPort = cmp.Or(m.Name, p.Name), cmp.Or(m.HostIP, p.HostIP), cmp.Or(m.HostPort, p.HostPort)
		p.Protocol = cmp.Or(p.Protocol, m.Protocol)
	}
	return out
}

// copyJSON copies what merging may change. Numbers and texts are values.
func copyJSON(m map[string]any) map[string]any {
	out := make(map[string]any, len(m))
	for k, v := range m {
		out[k] = copyValue(v)
	}
	return out
}

func copyValue(v any) any {
	switch v := v.(type) {
	case map[string]any:
		return copyJSON(v)
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = copyValue(v[i])
		}
		return out
	}
	return v
}

func keepOrders(was, is *corev1.Pod) {
	name := func(c corev1.Container) string { return c.Name }
	keepOrder(was.Spec.Containers, is.Spec.Containers, name)
	keepOrder(was.Spec.InitContainers, is.Spec.InitContainers, name)
	keepOrder(was.Spec.Volumes, is.Spec.Volumes, func(v corev1.Volume) string { return v.Name })
	keepOrder(was.Spec.ImagePullSecrets, is.Spec.ImagePullSecrets, func(s corev1.LocalObjectReference) string { return s.Name })
	for _, list := range [][2][]corev1.Container{{was.Spec.Containers, is.Spec.Containers}, {was.Spec.InitContainers, is.Spec.InitContainers}} {
		for i := range list[1] {
			c := &list[1][i]
			old := find(list[0], c.Name)
			if old == nil {
				continue
			}
			keepOrder(old.Env, c.Env, func(e corev1.EnvVar) string { return e.Name })
			keepOrder(old.VolumeMounts, c.VolumeMounts, func(m corev1.VolumeMount) string { return m.MountPath })
			keepOrder(old.Ports, c.Ports, func(p corev1.ContainerPort) string {
				return strconv.Itoa(int(p.ContainerPort)) + "/" + string(p.Protocol)
			})
		}
	}
}

// keepOrder sorts a list: elements that were there before in their order, then
// the others in theirs.
func keepOrder[T any](was, is []T, key func(T) string) {
	at := make(map[string]int, len(was))
	for i, x := range was {
		if _, twice := at[key(x)]; !twice {
			at[key(x)] = i
		}
	}
	position := func(x T) int {
		if i, ok := at[key(x)]; ok {
			return i
		}
		return len(was)
	}
	slices.SortStableFunc(is, func(a, b T) int { return position(a) - position(b) })
}

// reapply lets the user's own settings of a container win over the template's.
// Which these are is noted in an annotation for the next time.
func (j *job) reapply(pod, template *corev1.Pod) (*corev1.Pod, error) {
	var found overrides
	for i := range template.Spec.Containers {
		name := template.Spec.Containers[i].Name
		own := j.ownContainer(name, false)
		if own == nil {
			continue
		}
		found.Containers = append(found.Containers, *own)
		var err error
		if pod, err = mergeContainer(pod, own, "containers"); err != nil {
			return nil, err
		}
	}
	for i := range template.Spec.InitContainers {
		name := template.Spec.InitContainers[i].Name
		own := j.ownContainer(name, true)
		if own == nil {
			continue
		}
		found.InitContainers = append(found.InitContainers, *own)
		var err error
		if pod, err = mergeContainer(pod, own, "initContainers"); err != nil {
			return nil, err
		}
	}
	if len(found.Containers)+len(found.InitContainers) == 0 {
		return pod, nil
	}
	raw, err := json.Marshal(found)
	if err != nil {
		return nil, fmt.Errorf("write annotation %s: %w", annotationOverrides, err)
	}
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	pod.Annotations[annotationOverrides] = string(raw)
	return pod, nil
}

// ownContainer is the user's container of a name that the template has too: as
// it was noted, else as it is in the pod unless it was injected.
func (j *job) ownContainer(name string, native bool) *corev1.Container {
	own := find(j.kept.Containers, name)
	if c := find(j.kept.InitContainers, name); own == nil {
		own = c
	}
	if own == nil && !j.wasInjected(name) {
		if native {
			own = find(j.base.Spec.InitContainers, name)
		}
		if own == nil && (!native || name == ProxyContainer) {
			own = find(j.base.Spec.Containers, name)
		}
	}
	if own == nil {
		return nil
	}
	own = own.DeepCopy()
	if own.Image == autoImage {
		own.Image = ""
	}
	if sc := own.SecurityContext; name == ProxyContainer && sc != nil && j.userOfNamespace(sc.RunAsUser) {
		sc.RunAsUser, sc.RunAsGroup = nil, nil
	}
	return own
}

// userOfNamespace reports whether a user is one that OpenShift has given to
// every container of the pod, and that nobody has chosen for the proxy: with
// the user of the application its traffic could not be told apart.
func (j *job) userOfNamespace(user *int64) bool {
	if user == nil || j.r.InNamespace == nil || j.r.InNamespace.Annotations[annotationUIDRange] == "" {
		return false
	}
	return slices.ContainsFunc(j.base.Spec.Containers, func(c corev1.Container) bool {
		return c.Name != ProxyContainer && c.SecurityContext != nil && c.SecurityContext.RunAsUser != nil && *c.SecurityContext.RunAsUser == *user
	})
}

func (j *job) wasInjected(name string) bool {
	return j.previous != nil && (slices.Contains(j.previous.Containers, name) || slices.Contains(j.previous.InitContainers, name))
}

func mergeContainer(pod *corev1.Pod, c *corev1.Container, list string) (*corev1.Pod, error) {
	raw, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode container %s: %w", c.Name, err)
	}
	m := map[string]any{}
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("decode container %s: %w", c.Name, err)
	}
	out, err := mergeOverlay(pod, map[string]any{"spec": map[string]any{list: []any{m}}})
	if err != nil {
		return nil, fmt.Errorf("keep settings of container %s: %w", c.Name, err)
	}
	return out, nil
}

// adjustUser makes the redirection agree with the user that the pod's owner
// wants the proxy to run as.
func (j *job) adjustUser(pod *corev1.Pod) {
	own := j.ownContainer(ProxyContainer, true)
	if own == nil || own.SecurityContext == nil {
		return
	}
	sc := own.SecurityContext
	setup := find(pod.Spec.InitContainers, InitContainer)
	if setup == nil {
		setup = find(pod.Spec.InitContainers, ValidationContainer)
	}
	if setup == nil || sc.RunAsUser == nil && sc.RunAsGroup == nil {
		return
	}
	tproxy := j.proxy.GetInterceptionMode() == meshconfig.ProxyConfig_TPROXY
	if mode, ok := j.original.Annotations[annotationInterception]; ok {
		tproxy = mode == meshconfig.ProxyConfig_TPROXY.String()
	}
	switch {
	case tproxy:
		// Transparent proxying needs root, whatever the user wants.
		if p := proxyOf(pod); p != nil && p.SecurityContext != nil && sc.RunAsUser != nil {
			root := int64(0)
			p.SecurityContext.RunAsUser = &root
		}
	case setup.Name == ValidationContainer:
		if setup.SecurityContext == nil {
			setup.SecurityContext = &corev1.SecurityContext{}
		}
		if sc.RunAsUser != nil {
			setup.SecurityContext.RunAsUser = sc.RunAsUser
		}
		if sc.RunAsGroup != nil {
			setup.SecurityContext.RunAsGroup = sc.RunAsGroup
		}
	}
	if sc.RunAsUser == nil || *sc.RunAsUser == 0 {
		return
	}
	for i := range len(setup.Args) - 1 {
		if setup.Args[i] == "-u" {
			setup.Args[i+1] = strconv.FormatInt(*sc.RunAsUser, 10)
			return
		}
	}
}

// setEnv sets cluster, network and what else the webhook's path says in the
// proxy: in place, where the variable is there.
func (j *job) setEnv(pod *corev1.Pod) {
	if c := proxyOf(pod); c != nil {
		setEnvs(c, j.env)
	}
}

func find(list []corev1.Container, name string) *corev1.Container {
	for i := range list {
		if list[i].Name == name {
			return &list[i]
		}
	}
	return nil
}

func without(list []corev1.Container, name string) []corev1.Container {
	return slices.DeleteFunc(slices.Clone(list), func(c corev1.Container) bool { return c.Name == name })
}

// proxyOf finds the proxy of a pod, wherever it is.
func proxyOf(pod *corev1.Pod) *corev1.Container {
	if c := find(pod.Spec.Containers, ProxyContainer); c != nil {
		return c
	}
	return find(pod.Spec.InitContainers, ProxyContainer)
}

// lastOfRange reads FIRST/COUNT and FIRST-LAST.
func lastOfRange(s string) (int64, bool) {
	s = strings.TrimSpace(s)
	if first, count, ok := strings.Cut(s, "/"); ok {
		a, err1 := strconv.ParseInt(first, 10, 64)
		n, err2 := strconv.ParseInt(count, 10, 64)
		return a + n - 1, err1 == nil && err2 == nil && a >= 0 && n > 0 && a+n > 0
	}
	_, last, ok := strings.Cut(s, "-")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseInt(last, 10, 64)
	return n, err == nil && n > 0
}
