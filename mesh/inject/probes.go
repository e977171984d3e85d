package inject

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// prober is one entry of ISTIO_KUBE_APP_PROBERS: what the agent asks the
// application when the kubelet asks the agent.
type prober struct {
	HTTPGet        *corev1.HTTPGetAction   `json:"httpGet,omitempty"`
	TCPSocket      *corev1.TCPSocketAction `json:"tcpSocket,omitempty"`
	GRPC           *corev1.GRPCAction      `json:"grpc,omitempty"`
	TimeoutSeconds int32                   `json:"timeoutSeconds,omitempty"`
}

// rewriteProbes sends the kubelet's probes to the agent: the kubelet has no
// certificate of the mesh, and its connections must not pass the proxy.
func (j *job) rewriteProbes(pod *corev1.Pod) error {
	proxy := proxyOf(pod)
	if proxy == nil {
		return nil
	}
	port := j.statusPort
	if v, ok := pod.Annotations[annotationStatusPort]; ok {
		port, _ = strconv.Atoi(v) // what is no number is none: there is no agent to ask then
	}
	found := map[string]prober{}
	if port <= 0 || !j.probesWanted(pod) {
		return noteProbers(proxy, found)
	}
	for i := range pod.Spec.Containers {
		j.rewriteContainer(&pod.Spec.Containers[i], port, found)
	}
	// Init containers start before a proxy that is a container: their probes
	// would never succeed. Beside a native proxy they can be answered.
	if proxy != find(pod.Spec.Containers, ProxyContainer) {
		early := j.beforeProxy(pod)
		for i := range pod.Spec.InitContainers {
			if c := &pod.Spec.InitContainers[i]; !slices.Contains(early, c.Name) {
				j.rewriteContainer(c, port, found)
			}
		}
	}
	return noteProbers(proxy, found)
}

func (j *job) probesWanted(pod *corev1.Pod) bool {
	if v, ok := pod.Annotations[annotationRewriteProbes]; ok {
		wanted, _ := strconv.ParseBool(v)
		return wanted
	}
	return j.c.values.flag("sidecarInjectorWebhook", "rewriteAppHTTPProbe")
}

// noted reads the probers that are noted in the proxy.
func noted(proxy *corev1.Container) (map[string]json.RawMessage, error) {
	all := map[string]json.RawMessage{}
	for i := range proxy.Env {
		if e := proxy.Env[i]; e.Name == envProbers && e.Value != "" && json.Unmarshal([]byte(e.Value), &all) != nil {
			return nil, fmt.Errorf("variable %s of container %s: not JSON: remove it, injection writes it", envProbers, ProxyContainer)
		}
	}
	return all, nil
}

// note writes all probers into the proxy, in place if there are some already.
func note(proxy *corev1.Container, all map[string]json.RawMessage) error {
	raw, err := json.Marshal(all)
	if err != nil {
		return fmt.Errorf("write variable %s: %w", envProbers, err)
	}
	setEnvs(proxy, map[string]string{envProbers: string(raw)})
	return nil
}

// noteProbers adds probers to those that are noted in the proxy already.
func noteProbers(proxy *corev1.Container, found map[string]prober) error {
	all, err := noted(proxy)
	if err != nil {
		return err
	}
	for path, p := range found {
		raw, err := json.Marshal(p)
		if err != nil {
			return fmt.Errorf("write probe %s: %w", path, err)
		}
		all[path] = raw
	}
	if len(all) == 0 {
		proxy.Env = slices.DeleteFunc(proxy.Env, func(e corev1.EnvVar) bool { return e.Name == envProbers })
		return nil
	}
	return note(proxy, all)
}

// restoreProbes gives the containers of an injected pod the probes that they
// had before, so that injecting again starts from the same. The note of them
// stays in its place, without what was restored.
func restoreProbes(pod *corev1.Pod) error {
	proxy := proxyOf(pod)
	if proxy == nil {
		return nil
	}
	all, err := noted(proxy)
	if err != nil || len(all) == 0 {
		return err
	}
	for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			for kind, h := range handlers(&list[i]) {
				path := probePath(kind, list[i].Name)
				raw, ok := all[path]
				if !ok || h.HTTPGet == nil || h.HTTPGet.Path != path {
					continue
				}
				var p prober
				if err := json.Unmarshal(raw, &p); err != nil {
					return fmt.Errorf("variable %s of container %s: %s: %w", envProbers, ProxyContainer, path, err)
				}
				h.set(p)
				delete(all, path)
			}
		}
	}
	return note(proxy, all)
}

// probePath is where the agent answers a probe or hook of a container.
func probePath(kind, container string) string {
	if kind == "prestopz" || kind == "poststartz" {
		return "/app-lifecycle/" + container + "/" + kind
	}
	return "/app-health/" + container + "/" + kind
}

// handler is a probe or a hook of a container, with the means to change it.
type handler struct {
	corev1.ProbeHandler
	timeout int32
	set     func(prober)
}

// handlers are the probes and hooks of a container that may pass the agent.
func handlers(c *corev1.Container) map[string]handler {
	out := map[string]handler{}
	for kind, p := range map[string]*corev1.Probe{"readyz": c.ReadinessProbe, "livez": c.LivenessProbe, "startupz": c.StartupProbe} {
		if p != nil {
			out[kind] = handler{p.ProbeHandler, p.TimeoutSeconds, func(to prober) {
				p.ProbeHandler = corev1.ProbeHandler{HTTPGet: to.HTTPGet, TCPSocket: to.TCPSocket, GRPC: to.GRPC}
			}}
		}
	}
	if c.Lifecycle == nil {
		return out
	}
	for kind, l := range map[string]*corev1.LifecycleHandler{"prestopz": c.Lifecycle.PreStop, "poststartz": c.Lifecycle.PostStart} {
		if l != nil && l.Exec == nil && l.Sleep == nil {
			out[kind] = handler{corev1.ProbeHandler{HTTPGet: l.HTTPGet, TCPSocket: l.TCPSocket}, 0, func(to prober) {
				*l = corev1.LifecycleHandler{HTTPGet: to.HTTPGet, TCPSocket: to.TCPSocket}
			}}
		}
	}
	return out
}

// rewriteContainer rewrites the probes of a container and notes the originals.
func (j *job) rewriteContainer(c *corev1.Container, port int, found map[string]prober) {
	if c.Name == ProxyContainer {
		return
	}
	for kind, h := range handlers(c) {
		if kind == "poststartz" && !j.agentRunsFirst() {
			continue // the hook would run before there is an agent, and fail
		}
		original, ok := originalProbe(&h.ProbeHandler, c, port)
		if !ok {
			continue
		}
		path := probePath(kind, c.Name)
		original.TimeoutSeconds = h.timeout
		found[path] = original
		h.set(prober{HTTPGet: agentAction(original.HTTPGet, path, port)})
	}
}

// agentRunsFirst says whether the agent can answer while the user's containers start.
func (j *job) agentRunsFirst() bool { return j.nativeProxy || j.hold() }

// originalProbe is what a probe asks, with its port as a number. It is false for
// probes that need not pass the proxy: commands, hosts other than the pod, ports
// that nobody knows, and probes that were rewritten before.
func originalProbe(h *corev1.ProbeHandler, c *corev1.Container, statusPort int) (prober, bool) {
	switch {
	case h.HTTPGet != nil && h.HTTPGet.Host == "":
		port, ok := numberOf(h.HTTPGet.Port, c)
		if !ok || port == statusPort {
			return prober{}, false
		}
		action := h.HTTPGet.DeepCopy()
		action.Port = intstr.FromInt32(int32(port))
		return prober{HTTPGet: action}, true
	case h.TCPSocket != nil && h.TCPSocket.Host == "":
		port, ok := numberOf(h.TCPSocket.Port, c)
		if !ok || port == statusPort {
			return prober{}, false
		}
		return prober{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(int32(port))}}, true
	case h.GRPC != nil && int(h.GRPC.Port) != statusPort:
		return prober{GRPC: h.GRPC.DeepCopy()}, true
	}
	return prober{}, false
}

func numberOf(p intstr.IntOrString, c *corev1.Container) (int, bool) {
	if p.Type == intstr.Int {
		return int(p.IntVal), p.IntVal > 0 && p.IntVal < 1<<16
	}
	for i := range c.Ports {
		if c.Ports[i].Name != "" && c.Ports[i].Name == p.StrVal {
			return int(c.Ports[i].ContainerPort), true
		}
	}
	n, err := strconv.ParseUint(p.StrVal, 10, 16)
	return int(n), err == nil && n > 0
}

// agentAction is the probe of the agent. Headers stay; the agent speaks HTTP and
// asks the application over HTTPS if that is what the original does.
func agentAction(original *corev1.HTTPGetAction, path string, port int) *corev1.HTTPGetAction {
	a := &corev1.HTTPGetAction{}
	if original != nil {
		a = original.DeepCopy()
	}
	a.Scheme = corev1.URISchemeHTTP // said, so that it reads as the API server would have it
	a.Path, a.Port = path, intstr.FromInt32(int32(port))
	return a
}
