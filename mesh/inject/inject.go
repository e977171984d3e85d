package inject

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"strconv"
	"strings"

	meshconfig "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Namespace is what injection knows of a pod's namespace.
type Namespace struct {
	Labels, Annotations map[string]string
}

// Request is one pod to be injected.
type Request struct {
	// Pod is not changed. Only its metadata and specification count.
	Pod *corev1.Pod
	// Namespace is that of the request; it counts where the pod names none.
	Namespace string
	// InNamespace is the namespace's metadata, nil if it is not known.
	InNamespace *Namespace
	// Owner is the workload of the pod, nil to find it in the pod.
	Owner *Owner
	Mesh  *meshconfig.MeshConfig
	// ProxyConfig is decided already, see [EffectiveProxyConfig]; nil is the
	// mesh's default with ProxyConfigs and the pod's annotation.
	ProxyConfig *meshconfig.ProxyConfig
	// ProxyConfigs are the ProxyConfig objects of the mesh, oldest first.
	ProxyConfigs []ProxyConfigResource
	// Env is set in the proxy's container, see [ParsePath].
	Env map[string]string
	// Cluster and Network are where the pod is, as far as that is known; they
	// count where neither Env nor the values say anything.
	Cluster, Network string
	// NativeSidecars says that the nodes of the pod's cluster can run a proxy as
	// an init container that stays. The pod's annotation wins.
	NativeSidecars bool
	// Always skips [Config.Decide].
	Always bool
}

// Result is what became of a pod.
type Result struct {
	Decision
	// Pod is the injected pod, nil if it is not injected.
	Pod *corev1.Pod
	// Patch is the RFC 6902 patch from the pod of the request to Pod, nil if it
	// is not injected and [] if nothing changes.
	Patch []byte
	// Warnings are for the user who made the pod.
	Warnings []string
}

// PodError is an error about one pod.
type PodError struct {
	Namespace, Pod string
	Err            error
}

func (e *PodError) Error() string {
	return fmt.Sprintf("inject pod %s/%s: %v", e.Namespace, e.Pod, e.Err)
}

func (e *PodError) Unwrap() error { return e.Err }

// Inject decides about a pod and injects it. Errors are of type [*PodError] and
// name the pod and the annotation, or the template and its line.
func (c *Config) Inject(r Request) (*Result, error) {
	j, err := c.newJob(r)
	if err != nil {
		return nil, err
	}
	d := Decision{Inject: true, Reason: "asked for"}
	if !r.Always {
		d = c.Decide(r.Pod, j.namespace)
	}
	if !d.Inject {
		return &Result{Decision: d}, nil
	}
	pod, err := j.run()
	if err != nil {
		return nil, j.fail(err)
	}
	if j.previous != nil {
		if pod, err = settle(r.Pod, pod); err != nil {
			return nil, j.fail(err)
		}
	}
	patch, err := createPatch(r.Pod, pod)
	if err != nil {
		return nil, j.fail(err)
	}
	return &Result{Decision: d, Pod: pod, Patch: patch, Warnings: j.warnings()}, nil
}

// job is one injection. original is never changed; base is the same with the
// probes that it had before an earlier injection.
type job struct {
	c           *Config
	r           Request
	namespace   string
	original    *corev1.Pod
	base        *corev1.Pod
	owner       Owner
	mesh        *meshconfig.MeshConfig
	proxy       *meshconfig.ProxyConfig
	env         map[string]string
	previous    *status // nil if the pod was not injected before
	kept        overrides
	statusPort  int
	nativeProxy bool
}

func (c *Config) newJob(r Request) (*job, error) {
	j := &job{c: c, r: r, namespace: r.Namespace, original: r.Pod, mesh: r.Mesh, proxy: r.ProxyConfig, env: maps.Clone(r.Env)}
	if r.Pod == nil {
		return nil, &PodError{Namespace: r.Namespace, Pod: "?", Err: fmt.Errorf("there is no pod in the request")}
	}
	if r.Pod.Namespace != "" {
		j.namespace = r.Pod.Namespace
	}
	if j.env == nil {
		j.env = map[string]string{}
	}
	if j.mesh == nil {
		j.mesh = &meshconfig.MeshConfig{}
	}
	if r.Owner != nil {
		j.owner = *r.Owner
	} else {
		j.owner = OwnerOf(r.Pod, j.namespace)
	}
	return j, nil
}

func (j *job) fail(err error) error {
	return &PodError{Namespace: j.namespace, Pod: nameOf(&j.original.ObjectMeta, j.owner), Err: err}
}

// prepare reads the pod's annotations.
func (j *job) prepare() error {
	annotations := j.original.Annotations
	if err := validateAnnotations(annotations); err != nil {
		return err
	}
	var err error
	if j.proxy == nil {
		if j.proxy, err = EffectiveProxyConfig(j.mesh, j.namespace, &j.original.ObjectMeta, j.r.ProxyConfigs); err != nil {
			return err
		}
	}
	j.previous = parseStatus(annotations)
	if j.kept, err = parseOverrides(annotations[annotationOverrides]); err != nil {
		return fmt.Errorf("annotation %s: %w", annotationOverrides, err)
	}
	j.statusPort = int(j.mesh.GetDefaultConfig().GetStatusPort())
	if j.statusPort == 0 {
		j.statusPort = int(mesh.DefaultProxyConfig().StatusPort)
	}
	j.nativeProxy = j.r.NativeSidecars
	if v, ok := annotations[annotationNativeSidecar]; ok {
		j.nativeProxy, _ = strconv.ParseBool(v) // valid, see above
	}
	j.place()
	j.base = j.original
	if j.previous != nil {
		j.base = j.original.DeepCopy()
		if err := restoreProbes(j.base); err != nil {
			return err
		}
		j.kept, err = j.kept.asIn(j.base, j.env)
		return err
	}
	return nil
}

// place decides cluster and network: the webhook's path, then the values, then
// what is known of the cluster. For the network the pod's label wins over all.
func (j *job) place() {
	j.env[EnvCluster] = cmp.Or(j.env[EnvCluster], j.c.values.text("global", "multiCluster", "clusterName"), j.r.Cluster)
	j.env[EnvNetwork] = cmp.Or(j.env[EnvNetwork], j.c.values.text("global", "network"), j.r.Network)
	if n, ok := j.original.Labels[labelNetwork]; ok {
		j.env[EnvNetwork] = n
	}
	for _, name := range []string{EnvCluster, EnvNetwork} {
		if j.env[name] == "" {
			delete(j.env, name)
		}
	}
}

// run injects.
func (j *job) run() (*corev1.Pod, error) {
	if err := j.prepare(); err != nil {
		return nil, err
	}
	pod, template, err := j.runTemplates()
	if err != nil {
		return nil, err
	}
	if pod, err = j.reapply(pod, template); err != nil {
		return nil, err
	}
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	j.adjustUser(pod)
	j.setEnv(pod)
	if err := j.mergePrometheus(pod); err != nil {
		return nil, err
	}
	if err := j.rewriteProbes(pod); err != nil {
		return nil, err
	}
	if err := j.mark(pod, template); err != nil {
		return nil, err
	}
	j.order(pod)
	return pod, nil
}

// runTemplates merges what every template says into the pod, and into an empty
// one, which tells what templates bring.
func (j *job) runTemplates() (pod, template *corev1.Pod, err error) {
	template = &corev1.Pod{}
	var overlays []map[string]any
	names, data, b := j.c.selectTemplates(j.original.Annotations), j.data(), newBudget(j.c.options.Limits)
	for _, name := range names {
		if err, ok := j.c.broken[name]; ok {
			return nil, nil, err
		}
		t, ok := j.c.templates[name]
		if !ok {
			return nil, nil, fmt.Errorf("there is no template %q (annotation %s, or defaultTemplates of ConfigMap istio-sidecar-injector); there are %s",
				name, annotationTemplates, strings.Join(j.c.Templates(), ", "))
		}
		data.Values = j.values()
		overlay, err := run(t, data, j.c.options.Getenv, b)
		if err != nil {
			return nil, nil, err
		}
		dropVoidSources(overlay, template)
		if template, err = mergeOverlay(template, overlay); err != nil {
			return nil, nil, &TemplateError{Template: name, Err: err}
		}
		overlays = append(overlays, overlay)
	}
	pod = j.base.DeepCopy()
	j.dropStale(pod, template)
	moveUserProxy(pod, template)
	for i, overlay := range overlays {
		if pod, err = mergeOverlay(pod, overlay); err != nil {
			return nil, nil, &TemplateError{Template: names[i], Err: err}
		}
	}
	return pod, template, nil
}

// values are a copy for one template, which may change it, with the place where
// the pod really is.
func (j *job) values() map[string]any {
	tree := j.c.values.Tree()
	global, ok := tree["global"].(map[string]any)
	if !ok {
		return tree
	}
	if v := j.env[EnvNetwork]; v != "" {
		global["network"] = v
	}
	if v := j.env[EnvCluster]; v != "" {
		cluster, ok := global["multiCluster"].(map[string]any)
		if !ok {
			cluster = map[string]any{}
			global["multiCluster"] = cluster
		}
		cluster["clusterName"] = v
	}
	return tree
}

// dropStale takes out containers that were injected before and that the
// templates do not bring any more.
func (j *job) dropStale(pod, template *corev1.Pod) {
	if j.previous == nil {
		return
	}
	for _, name := range j.previous.Containers {
		if find(template.Spec.Containers, name) == nil && find(j.kept.Containers, name) == nil {
			pod.Spec.Containers = without(pod.Spec.Containers, name)
		}
	}
	for _, name := range j.previous.InitContainers {
		if find(template.Spec.InitContainers, name) == nil && (find(j.kept.InitContainers, name) == nil || name == ProxyContainer) {
			pod.Spec.InitContainers = without(pod.Spec.InitContainers, name)
		}
	}
}

// moveUserProxy moves the user's own part of the proxy's container to where the
// template has that container.
func moveUserProxy(pod, template *corev1.Pod) {
	if find(template.Spec.InitContainers, ProxyContainer) == nil {
		return
	}
	if c := find(pod.Spec.Containers, ProxyContainer); c != nil && find(pod.Spec.InitContainers, ProxyContainer) == nil {
		pod.Spec.InitContainers = append(pod.Spec.InitContainers, *c)
	}
	pod.Spec.Containers = without(pod.Spec.Containers, ProxyContainer)
}

// data is what templates see.
func (j *job) data() *Data {
	base := j.before()
	uid, gid := proxyIDs(j.r.InNamespace)
	return &Data{
		TypeMeta:       j.owner.TypeMeta,
		DeploymentMeta: metav1.ObjectMeta{Name: j.owner.Name, Namespace: j.owner.Namespace},
		ObjectMeta:     base.ObjectMeta, Spec: base.Spec, ProxyConfig: j.proxy, MeshConfig: j.mesh,
		Revision: j.c.options.Revision, NativeSidecars: j.nativeProxy,
		ProxyImage: proxyImage(j.c.values, j.proxy, base.Annotations), ProxyUID: uid, ProxyGID: gid,
		InboundTrafficPolicyMode: inboundMode(j.mesh), CompliancePolicy: j.c.options.Compliance,
		EstimatedConcurrency: concurrency(j.proxy, base.Annotations, j.c.values),
	}
}

// warnings tells what the pod's owner should know.
func (j *job) warnings() []string {
	var out []string
	if p := j.original.Spec.DNSPolicy; p != "" && p != corev1.DNSClusterFirst {
		out = append(out, fmt.Sprintf("pod %s/%s: dnsPolicy %s: the proxy may not find the control plane with it; %s always works",
			j.namespace, nameOf(&j.original.ObjectMeta, j.owner), p, corev1.DNSClusterFirst))
	}
	return out
}

// status is annotation sidecar.istio.io/status.
type status struct {
	InitContainers   []string `json:"initContainers"`
	Containers       []string `json:"containers"`
	Volumes          []string `json:"volumes"`
	ImagePullSecrets []string `json:"imagePullSecrets"`
	Revision         string   `json:"revision"`
}

// parseStatus returns nil for a pod that was not injected, or whose status
// nobody can read.
func parseStatus(annotations map[string]string) *status {
	text, ok := annotations[annotationStatus]
	if !ok {
		return nil
	}
	s := &status{}
	if json.Unmarshal([]byte(text), s) != nil {
		return nil
	}
	return s
}

// mark notes in the pod what was injected.
func (j *job) mark(pod, template *corev1.Pod) error {
	if n, ok := j.env[EnvNetwork]; ok {
		pod.Labels[labelNetwork] = n
	}
	s := status{Revision: j.c.options.Revision}
	if s.Revision == "" {
		s.Revision = "default"
	}
	for i := range template.Spec.InitContainers {
		s.InitContainers = append(s.InitContainers, template.Spec.InitContainers[i].Name)
	}
	for i := range template.Spec.Containers {
		s.Containers = append(s.Containers, template.Spec.Containers[i].Name)
	}
	for i := range template.Spec.Volumes {
		s.Volumes = append(s.Volumes, template.Spec.Volumes[i].Name)
	}
	for i := range template.Spec.ImagePullSecrets {
		s.ImagePullSecrets = append(s.ImagePullSecrets, template.Spec.ImagePullSecrets[i].Name)
	}
	raw, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	pod.Annotations[annotationStatus] = string(raw)
	maps.Copy(pod.Annotations, j.c.annotations)
	return nil
}
