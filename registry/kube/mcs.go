package kube

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// The Multi-Cluster Services API (KEP-1645): a Service that is exported is also
// called NAME.NAMESPACE.svc.clusterset.local, by which name only the clusters
// that export it serve it. Its virtual IPs are those of the ServiceImport in each
// cluster. The name under the cluster's own domain goes on to mean all clusters,
// exported or not.

// MCSGroup and MCSVersion are the API that is read.
const (
	MCSGroup   = "multicluster.x-k8s.io"
	MCSVersion = "v1alpha1"
)

// ServiceExport says that a Service is exported from its cluster.
type ServiceExport struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
}

// ServiceImport is how a cluster knows an exported Service.
type ServiceImport struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              ServiceImportSpec `json:"spec"`
}

// ServiceImportSpec is what is read of a ServiceImport.
type ServiceImportSpec struct {
	// Type is ClusterSetIP or Headless.
	Type  string               `json:"type"`
	IPs   []string             `json:"ips,omitempty"`
	Ports []corev1.ServicePort `json:"ports,omitempty"`
}

// importHeadless is the type of an import whose clients dial pods.
const importHeadless = "Headless"

func (t *Translator) setExport(k types.NamespacedName) {
	if _, had := t.exports[k]; !had && isDNSLabel(k.Name) && isDNSLabel(k.Namespace) {
		t.exports[k] = struct{}{}
		t.touch(k)
	}
}

func (t *Translator) deleteExport(k types.NamespacedName) {
	if _, had := t.exports[k]; had {
		delete(t.exports, k)
		t.touch(k)
	}
}

func (t *Translator) setImport(o *ServiceImport) {
	k := types.NamespacedName{Namespace: o.Namespace, Name: o.Name}
	d, f := t.readImport(o)
	t.problems.report(KindServiceImport, o.Namespace, o.Name, f)
	if d == nil {
		t.deleteImport(k)
		return
	}
	t.imports[k] = d
	t.touch(k)
}

func (t *Translator) deleteImport(k types.NamespacedName) {
	if t.imports[k] != nil {
		delete(t.imports, k)
		t.touch(k)
	}
}

// readImport reads a ServiceImport as a cluster without the Service knows it.
func (t *Translator) readImport(o *ServiceImport) (*mesh.Definition, faults) {
	var f faults
	if !isDNSLabel(o.Name) || !isDNSLabel(o.Namespace) {
		f.add("metadata.name", "name and namespace must be DNS labels; the ServiceImport is not served")
		return nil, f
	}
	d := &mesh.Definition{Name: o.Name, Created: o.CreationTimestamp.UTC(), Origin: t.problems.ref(KindServiceImport, o.Namespace, o.Name)}
	if o.Spec.Type == importHeadless {
		d.Resolution = mesh.ResolutionPassthrough
	}
	for i, ip := range o.Spec.IPs {
		a, err := netip.ParseAddr(ip)
		if err != nil || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
			f.add(fmt.Sprintf("spec.ips[%d]", i), fmt.Sprintf("%q is not an IP address and is left out", printable(ip)))
			continue
		}
		d.Addresses = append(d.Addresses, a.Unmap())
	}
	d.Ports = readPorts(o.Spec.Ports, &f)
	return d, f
}

// translateSet brings the state of an exported Service, by its name in the
// cluster set, up to date and reports whether it changed. The Service itself
// must be up to date.
func (t *Translator) translateSet(k types.NamespacedName) (registry.ServiceState, bool) {
	old, had := t.sent.sets[k]
	st := registry.ServiceState{Key: mesh.ServiceKey{Namespace: k.Namespace, Hostname: mesh.Hostname(k.Name + "." + k.Namespace + ".svc." + mesh.ClusterSetDomain)}}
	base, served := t.sent.services[k]
	_, exported := t.exports[k]
	imported := t.imports[k]
	switch {
	case exported && served && base.Definition.Resolution != mesh.ResolutionAlias:
		def := *base.Definition
		def.Addresses, def.External = nil, nil
		if imported != nil {
			def.Addresses = imported.Addresses
		}
		st.Definition, st.Endpoints = &def, base.Endpoints
	case imported != nil:
		st.Definition = imported
	default:
		delete(t.sent.sets, k)
		return st, had
	}
	if had && old.Definition.Equal(st.Definition) {
		if slices.EqualFunc(old.Endpoints, st.Endpoints, mesh.Endpoint.Equal) {
			return old, false
		}
		st.Definition = old.Definition
	}
	t.sent.sets[k] = st
	return st, true
}

// clusterSetReaders read exports and imports, where the cluster knows such kinds.
func (s *Source) clusterSetReaders(c dynamic.Interface) []*reader {
	gv := schema.GroupVersion{Group: MCSGroup, Version: MCSVersion}
	exports, imports := gv.WithResource("serviceexports"), gv.WithResource("serviceimports")
	e := newReader(s, exports.GroupResource().String(), KindServiceExport, example(gv, "ServiceExport"), dynamicLister{c.Resource(exports)}, all)
	i := newReader(s, imports.GroupResource().String(), KindServiceImport, example(gv, "ServiceImport"), dynamicLister{c.Resource(imports)}, all)
	e.optional, i.optional, e.spare, i.spare = true, true, true, true
	e.set = func(obj any) {
		if u, ok := obj.(*unstructured.Unstructured); ok {
			s.translator.setExport(types.NamespacedName{Namespace: u.GetNamespace(), Name: u.GetName()})
		}
	}
	i.set = func(obj any) {
		u, ok := obj.(*unstructured.Unstructured)
		if !ok {
			return
		}
		var o ServiceImport
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &o); err != nil {
			s.translator.problems.report(KindServiceImport, u.GetNamespace(), u.GetName(), faults{{"", "cannot be decoded: " + printable(err.Error())}})
			return
		}
		s.translator.setImport(&o)
	}
	return []*reader{e, i}
}
