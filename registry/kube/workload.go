package kube

import (
	"cmp"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// pod is what is read of a Pod that has not finished.
type pod struct {
	key types.NamespacedName
	// workload is replaced, never changed: it is shared with every reader.
	workload *mesh.Workload
	// ownLocality: the locality is from the pod's label, not from its node.
	ownLocality bool
	created     int64
	// health is the readiness, for endpoints that are derived from pods.
	health mesh.Health
	// gone: terminating and no longer ready.
	gone bool
}

func (t *Translator) setPod(o *corev1.Pod) {
	k := types.NamespacedName{Namespace: o.Namespace, Name: o.Name}
	p, f := t.readPod(o)
	t.problems.report(KindPod, o.Namespace, o.Name, f)
	if p == nil {
		t.deletePod(k)
		return
	}
	old := t.pods[k]
	if old != nil {
		if old.workload.Equal(p.workload) {
			p.workload = old.workload
		}
		t.unindexPod(old)
	}
	t.pods[k] = p
	t.indexPod(p)
	if old == nil || old.workload != p.workload || old.created != p.created {
		t.podChanged(k, old, p)
	} else if old.health != p.health || old.gone != p.gone {
		t.dirty.workloads[k] = struct{}{}
		if t.cfg.DeriveEndpoints {
			t.touchSelecting(k.Namespace)
		}
	}
}

func (t *Translator) deletePod(k types.NamespacedName) {
	old := t.pods[k]
	if old == nil {
		return
	}
	t.unindexPod(old)
	delete(t.pods, k)
	t.podChanged(k, old, nil)
}

// ownAddresses are the addresses that a pod has for itself. Those of its node it
// shares with other pods, so it cannot be found by them.
func (p *pod) ownAddresses() []netip.Addr {
	if p.workload.HostNetwork {
		return nil
	}
	return p.workload.Addresses
}

func (t *Translator) indexPod(p *pod) {
	for _, a := range p.ownAddresses() {
		list := append(t.index.podsByAddr[a], p)
		slices.SortFunc(list, comparePods)
		t.index.podsByAddr[a] = list
	}
	if p.workload.Node != "" {
		addTo(t.index.podsByNode, p.workload.Node, p.key, p)
	}
	if t.cfg.DeriveEndpoints {
		addTo(t.index.podsIn, p.key.Namespace, p.key, p)
	}
}

func (t *Translator) unindexPod(p *pod) {
	for _, a := range p.ownAddresses() {
		list := slices.DeleteFunc(t.index.podsByAddr[a], func(x *pod) bool { return x == p })
		if len(list) == 0 {
			delete(t.index.podsByAddr, a)
		} else {
			t.index.podsByAddr[a] = list
		}
	}
	removeFrom(t.index.podsByNode, p.workload.Node, p.key)
	removeFrom(t.index.podsIn, p.key.Namespace, p.key)
}

// comparePods puts the pod that has an address now before one that had it
// earlier and is not gone yet: the youngest first.
func comparePods(a, b *pod) int {
	return cmp.Or(cmp.Compare(b.created, a.created), compareNames(a.key, b.key))
}

// podChanged marks everything that a pod has a part in.
func (t *Translator) podChanged(k types.NamespacedName, sides ...*pod) {
	t.dirty.workloads[k] = struct{}{}
	for _, s := range t.index.slicesByPod[k] {
		t.touch(s.service)
	}
	for _, p := range sides {
		if p == nil {
			continue
		}
		for _, a := range p.ownAddresses() {
			for _, s := range t.index.slicesByAddr[a] {
				t.touch(s.service)
			}
		}
	}
	t.touchSelecting(k.Namespace)
}

// touchSelecting marks the services of a namespace whose endpoints may be
// derived from pods.
func (t *Translator) touchSelecting(namespace string) {
	for k := range t.index.selecting[namespace] {
		if len(t.index.slicesOf[k]) == 0 {
			t.touch(k)
		}
	}
}

// refreshPod renews what a pod has from its node and from the trust domain.
func (t *Translator) refreshPod(p *pod) {
	w := *p.workload
	w.Identity.TrustDomain = t.trustDomain
	if !p.ownLocality {
		w.Locality = t.localityOf(w.Node)
	}
	if w.Equal(p.workload) {
		return
	}
	p.workload = &w
	t.podChanged(p.key, p)
}

func (t *Translator) localityOf(name string) mesh.Locality {
	if n := t.nodes[name]; n != nil {
		return n.locality
	}
	return mesh.Locality{}
}

// readPod reads a Pod. It returns nil without faults for one that has finished.
func (t *Translator) readPod(o *corev1.Pod) (*pod, faults) {
	var f faults
	if o.Status.Phase == corev1.PodFailed || o.Status.Phase == corev1.PodSucceeded {
		return nil, nil
	}
	account := cmp.Or(o.Spec.ServiceAccountName, "default")
	switch {
	case !isDNSName(o.Name) || !isDNSLabel(o.Namespace):
		f.add("metadata.name", "name and namespace must be DNS names; the pod is not served")
	case !isDNSName(account):
		f.add("spec.serviceAccountName", "is not a DNS name; the pod is not served")
	case !cleanMap(o.Labels):
		f.add("metadata.labels", "are not valid text; the pod is not served")
	case !clean(o.Spec.NodeName, o.Spec.Hostname, o.Spec.Subdomain):
		f.add("spec", "nodeName, hostname or subdomain is not valid text; the pod is not served")
	}
	if len(f) > 0 {
		return nil, f
	}
	p := &pod{
		key:     types.NamespacedName{Namespace: o.Namespace, Name: o.Name},
		created: o.CreationTimestamp.Unix(),
		workload: &mesh.Workload{
			Cluster:        t.cfg.Cluster,
			Namespace:      o.Namespace,
			Name:           o.Name,
			WorkloadName:   workloadName(o),
			Addresses:      podAddresses(o, &f),
			Kind:           string(KindPod),
			NetworkLabel:   mesh.NetworkID(o.Labels[labelNetwork]),
			Identity:       mesh.Identity{TrustDomain: t.trustDomain, Namespace: o.Namespace, ServiceAccount: account},
			MTLS:           o.Labels[labelTLSMode] == "istio",
			Labels:         o.Labels,
			Node:           o.Spec.NodeName,
			Hostname:       o.Spec.Hostname,
			Subdomain:      o.Spec.Subdomain,
			ContainerPorts: containerPorts(o),
			HostNetwork:    o.Spec.HostNetwork,
		},
	}
	if p.workload.Locality, p.ownLocality = labelledLocality(o.Labels); !p.ownLocality {
		p.workload.Locality = t.localityOf(o.Spec.NodeName)
	}
	p.health, p.gone = podHealth(o)
	return p, f
}

func podAddresses(o *corev1.Pod, f *faults) []netip.Addr {
	var out []netip.Addr
	add := func(field, ip string) {
		if ip == "" {
			return
		}
		addr, err := netip.ParseAddr(ip)
		if err != nil || addr.Zone() != "" || addr.IsUnspecified() {
			f.add(field, "is not an IP address and is left out")
			return
		}
		if addr = addr.Unmap(); !slices.Contains(out, addr) {
			out = append(out, addr)
		}
	}
	add("status.podIP", o.Status.PodIP)
	for _, ip := range o.Status.PodIPs {
		add("status.podIPs", ip.IP)
	}
	return out
}

// labelledLocality reads the locality that a pod's label gives it. Labels cannot
// hold slashes, so dots stand for them.
func labelledLocality(labels map[string]string) (mesh.Locality, bool) {
	s := firstLabel(labels, labelLocality, labelLocalityOld)
	if s == "" {
		return mesh.Locality{}, false
	}
	if !strings.Contains(s, "/") {
		s = strings.ReplaceAll(s, ".", "/")
	}
	return mesh.ParseLocality(s), true
}

// cronJob matches the name of a Job that a CronJob made: a dash and the time.
var cronJob = regexp.MustCompile(`^(.+)-\d{8,10}$`)

// workloadName names the controller behind a pod by Istio's rules. Only a pod
// with a generated name has one that counts; a ReplicaSet stands for its
// Deployment if its name ends in the pod-template-hash, a Job for its CronJob if
// it ends in a time.
func workloadName(o *corev1.Pod) string {
	if name := o.Labels[labelWorkloadName]; name != "" {
		return name
	}
	owner := metav1.GetControllerOfNoCopy(o)
	if o.GenerateName == "" || owner == nil || !isDNSName(owner.Name) {
		return o.Name
	}
	switch hash := o.Labels[labelPodTemplateHash]; {
	case owner.Kind == "ReplicaSet" && hash != "" && strings.HasSuffix(owner.Name, hash):
		return cmp.Or(strings.TrimSuffix(owner.Name, "-"+hash), o.Name)
	case owner.Kind == "ReplicationController" && o.Labels["deploymentconfig"] != "":
		return o.Labels["deploymentconfig"]
	case owner.Kind == "Job":
		if m := cronJob.FindStringSubmatch(owner.Name); m != nil {
			return m[1]
		}
	}
	return owner.Name
}

// containerPorts lists the named ports of the pod's containers and native
// sidecars; of two with one name the first counts.
func containerPorts(o *corev1.Pod) map[string]uint16 {
	var out map[string]uint16
	add := func(c *corev1.Container) {
		for _, p := range c.Ports {
			n, ok := portNumber(p.ContainerPort)
			if _, twice := out[p.Name]; !ok || twice || p.Name == "" || !clean(p.Name) {
				continue
			}
			if out == nil {
				out = map[string]uint16{}
			}
			out[p.Name] = n
		}
	}
	for i := range o.Spec.Containers {
		add(&o.Spec.Containers[i])
	}
	for i := range o.Spec.InitContainers {
		if c := &o.Spec.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			add(c)
		}
	}
	return out
}

// podHealth reads a pod's readiness. A pod without the condition counts as
// ready: hand-written ones seldom have it.
func podHealth(o *corev1.Pod) (h mesh.Health, gone bool) {
	ready := true
	for _, c := range o.Status.Conditions {
		if c.Type == corev1.PodReady {
			ready = c.Status == corev1.ConditionTrue
		}
	}
	switch {
	case o.DeletionTimestamp != nil && ready:
		return mesh.HealthDraining, false
	case o.DeletionTimestamp != nil:
		return mesh.HealthNotReady, true
	case ready:
		return mesh.HealthReady, false
	}
	return mesh.HealthNotReady, false
}
