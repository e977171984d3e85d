package kube

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/registry/config"
)

// Labels and annotations of Istio and Kubernetes that are read.
const (
	labelNetwork         = "topology.istio.io/network"
	labelSubZone         = "topology.istio.io/subzone"
	labelLocality        = "topology.istio.io/locality"
	labelLocalityOld     = "istio-locality"
	labelGatewayPort     = "networking.istio.io/gatewayPort"
	labelTLSMode         = "security.istio.io/tlsMode"
	labelWorkloadName    = "service.istio.io/workload-name"
	labelPodTemplateHash = "pod-template-hash"
	labelRegion          = "topology.kubernetes.io/region"
	labelRegionOld       = "failure-domain.beta.kubernetes.io/region"
	labelZone            = "topology.kubernetes.io/zone"
	labelZoneOld         = "failure-domain.beta.kubernetes.io/zone"

	annotationExportTo            = "networking.istio.io/exportTo"
	annotationAccounts            = "alpha.istio.io/kubernetes-serviceaccounts"
	annotationIdentities          = "alpha.istio.io/canonical-serviceaccounts"
	annotationTrafficDistribution = "networking.istio.io/traffic-distribution"
	annotationNodeSelector        = "traffic.istio.io/nodeSelector"
)

// clusterState collects what holds for the cluster as a whole.
func (t *Translator) clusterState() registry.ClusterState {
	return registry.ClusterState{Network: t.network, TrustDomain: t.trustDomain, Gateways: t.networkGateways()}
}

// setNamespace takes the network of the cluster from the system namespace.
func (t *Translator) setNamespace(o *corev1.Namespace) {
	t.setObject(namespaceObject(t.cfg.Cluster, o))
	if o.Name != t.cfg.Namespace {
		return
	}
	network := o.Labels[labelNetwork]
	var f faults
	if !clean(network) {
		f.add("metadata.labels["+labelNetwork+"]", "is not a valid label; the network counts as unknown")
		network = ""
	}
	t.problems.report(KindNamespace, "", o.Name, f)
	t.setNetwork(mesh.NetworkID(network))
}

// namespaceObject is a namespace as discovery selectors and objects of the Gateway
// API select it, by its labels.
func namespaceObject(cluster mesh.ClusterID, o *corev1.Namespace) *mesh.Object {
	return &mesh.Object{
		Key:    mesh.ObjectKey{Kind: mesh.KindNamespace, Name: o.Name},
		Origin: mesh.ObjectRef{Cluster: cluster, Kind: string(mesh.KindNamespace), Name: o.Name},
		Labels: o.Labels, Created: o.CreationTimestamp.Time, Version: o.ResourceVersion,
	}
}

func (t *Translator) deleteNamespace(name string) {
	t.DeleteObject(mesh.ObjectKey{Kind: mesh.KindNamespace, Name: name})
	if name == t.cfg.Namespace {
		t.setNetwork("")
	}
}

func (t *Translator) setNetwork(n mesh.NetworkID) {
	if t.network != n {
		t.network = n
		t.dirty.cluster = true
	}
}

// setConfigMap takes the trust domain from the cluster's mesh configuration. A
// configuration that cannot be read leaves the trust domain as it was.
func (t *Translator) setConfigMap(o *corev1.ConfigMap) {
	if o.Namespace != t.cfg.Namespace || o.Name != config.MeshConfigMap(t.cfg.Revision) {
		return
	}
	var doc struct {
		TrustDomain string `json:"trustDomain"`
	}
	var f faults
	if err := yaml.Unmarshal([]byte(o.Data["mesh"]), &doc); err != nil {
		f.add("data[mesh].trustDomain", "cannot be read, the last good one stays: "+printable(err.Error()))
	} else if doc.TrustDomain != "" && !isTrustDomain(doc.TrustDomain) {
		f.add("data[mesh].trustDomain", "is not a trust domain, the last good one stays; use letters, digits, '.', '-' and '_'")
	}
	t.problems.report(KindConfigMap, o.Namespace, o.Name, f)
	if len(f) == 0 {
		t.setTrustDomain(doc.TrustDomain)
	}
}

func (t *Translator) deleteConfigMap(k types.NamespacedName) {
	if k.Namespace == t.cfg.Namespace && k.Name == config.MeshConfigMap(t.cfg.Revision) {
		t.setTrustDomain("")
	}
}

func (t *Translator) chooseTrustDomain(configured string) string {
	switch {
	case t.cfg.TrustDomain != "":
		return t.cfg.TrustDomain
	case configured != "":
		return configured
	}
	return mesh.DefaultTrustDomain
}

func (t *Translator) setTrustDomain(configured string) {
	t.configured = configured
	td := t.chooseTrustDomain(configured)
	if td == t.trustDomain {
		return
	}
	t.trustDomain = td
	t.dirty.cluster = true
	for _, p := range t.pods {
		t.refreshPod(p)
	}
	for k, svc := range t.services {
		if len(svc.accounts) > 0 {
			svc.def = nil
			t.touch(k)
		}
	}
}

func isTrustDomain(s string) bool {
	return len(s) <= 255 && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '.' && r != '-' && r != '_'
	})
}

// node is what is read of a Node.
type node struct {
	locality mesh.Locality
	labels   map[string]string
	// addrs are its external addresses, or its internal ones if it has none.
	addrs []netip.Addr
}

func (t *Translator) setNode(o *corev1.Node) {
	n := &node{labels: o.Labels, locality: mesh.Locality{
		Region:  firstLabel(o.Labels, labelRegion, labelRegionOld),
		Zone:    firstLabel(o.Labels, labelZone, labelZoneOld),
		SubZone: o.Labels[labelSubZone],
	}}
	var f faults
	if !clean(n.locality.Region, n.locality.Zone, n.locality.SubZone) {
		f.add("metadata.labels", "region, zone or subzone is not a valid label; the locality counts as unknown")
		n.locality = mesh.Locality{}
	}
	n.addrs = nodeAddresses(o.Status.Addresses, corev1.NodeExternalIP)
	if len(n.addrs) == 0 {
		n.addrs = nodeAddresses(o.Status.Addresses, corev1.NodeInternalIP)
	}
	t.problems.report(KindNode, "", o.Name, f)
	if old := t.nodes[o.Name]; old != nil && old.equal(n) {
		return
	}
	t.nodes[o.Name] = n
	t.nodeChanged(o.Name)
}

func (n *node) equal(o *node) bool {
	return n.locality == o.locality && maps.Equal(n.labels, o.labels) && slices.Equal(n.addrs, o.addrs)
}

func (t *Translator) deleteNode(name string) {
	delete(t.nodes, name)
	t.nodeChanged(name)
}

func (t *Translator) nodeChanged(name string) {
	for _, p := range t.index.podsByNode[name] {
		t.refreshPod(p)
	}
	for k := range t.index.gatewayServices {
		if t.services[k].gateway.nodeSelector != nil {
			t.dirty.cluster = true
		}
	}
}

func nodeAddresses(in []corev1.NodeAddress, kind corev1.NodeAddressType) []netip.Addr {
	var out []netip.Addr
	for _, a := range in {
		if a.Type != kind {
			continue
		}
		if addr, err := netip.ParseAddr(a.Address); err == nil && !slices.Contains(out, addr) {
			out = append(out, addr)
		}
	}
	return out
}

func firstLabel(labels map[string]string, keys ...string) string {
	for _, k := range keys {
		if v := labels[k]; v != "" {
			return v
		}
	}
	return ""
}
