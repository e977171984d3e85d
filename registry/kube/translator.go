// Package kube reads one Kubernetes cluster and reports it as states.
//
// It has two halves. The [Translator] is a set of the objects of one cluster,
// indexed by what depends on what; it does no I/O, and its result is a function
// of the objects alone, whatever the order in which they came. The [Source]
// keeps a Translator equal to an API server and hands what changed to a
// [registry.Sink]. registry/file feeds the same Translator from a folder.
//
// The package owns what a Kubernetes object means for the mesh: which protocol
// a port speaks, who a pod is, where it runs, when it is ready, which Services
// are network gateways. It does not merge clusters (package registry), choose
// endpoints for a proxy (xds/build), understand Istio's objects
// (registry/config) or decide which clusters are read (multicluster).
package kube

import (
	"reflect"
	"slices"
	"strings"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/registry/config"
)

// Defaults of a [TranslatorConfig].
const (
	DefaultDomain    = "cluster.local"
	DefaultNamespace = "istio-system"
)

// TranslatorConfig configures a [Translator].
type TranslatorConfig struct {
	Cluster mesh.ClusterID
	// Domain is the cluster's DNS domain; [DefaultDomain] if empty.
	Domain string
	// Namespace is the system namespace; [DefaultNamespace] if empty.
	Namespace string
	// Revision says which objects are for this control plane, and names the mesh
	// ConfigMap: "istio", or "istio-REVISION" for a revision other than "default".
	Revision string
	// TrustDomain, if set, is used instead of the one in the mesh ConfigMap.
	TrustDomain string
	// Primary says that the cluster's configuration counts for the whole mesh:
	// Gateways of class istio-remote are read.
	Primary bool
	// DeriveEndpoints makes endpoints for a Service with a selector but without
	// any slice from the pods that it selects.
	DeriveEndpoints bool
	// Problems lists objects that are not served as written; nil for none.
	Problems *registry.Problems
	// Log tells each problem once; nil for none.
	Log *zap.Logger
}

// Kind is a kind of object that a [Translator] reads.
type Kind string

// Kinds of objects, named as in [mesh.ObjectRef]. The Gateway of the Gateway API
// carries its group: Istio has a Gateway too.
const (
	KindService       Kind = "Service"
	KindEndpointSlice Kind = "EndpointSlice"
	KindPod           Kind = "Pod"
	KindNode          Kind = "Node"
	KindNamespace     Kind = "Namespace"
	KindConfigMap     Kind = "ConfigMap"
	KindGateway       Kind = "Gateway.gateway.networking.k8s.io"
	KindServiceExport Kind = "ServiceExport"
	KindServiceImport Kind = "ServiceImport"
)

// Translator holds the objects of one cluster and turns them into states. It is
// not safe for concurrent use.
//
// Objects that are set must not be changed afterwards, but are not kept either,
// except for their strings and maps.
type Translator struct {
	cfg      TranslatorConfig
	problems problemSet

	services map[types.NamespacedName]*ksvc
	slices   map[types.NamespacedName]*slice
	pods     map[types.NamespacedName]*pod
	nodes    map[string]*node
	gateways map[types.NamespacedName][]mesh.NetworkGateway
	objects  map[mesh.ObjectKey]*mesh.Object
	// exports are the Services that are exported, imports what is known of those
	// that any cluster exports.
	exports map[types.NamespacedName]struct{}
	imports map[types.NamespacedName]*mesh.Definition
	// network and trustDomain are those of the cluster.
	network     mesh.NetworkID
	trustDomain string
	// configured is the trust domain in the mesh ConfigMap, "" if it names none.
	configured string
	// podsUnknown: pods cannot be read, so a slice's address is served as it is.
	podsUnknown bool

	index index
	dirty dirty
	// Newest states, as returned by Flush.
	sent struct {
		services  map[types.NamespacedName]registry.ServiceState
		sets      map[types.NamespacedName]registry.ServiceState // under the names of the cluster set
		workloads map[types.NamespacedName]registry.WorkloadState
		cluster   *registry.ClusterState
	}
	// pending counts the endpoints of a service that wait for their pod.
	pending map[types.NamespacedName]int
}

// dirty is what has to be translated again.
type dirty struct {
	services  map[types.NamespacedName]struct{}
	workloads map[types.NamespacedName]struct{}
	objects   map[mesh.ObjectKey]struct{}
	cluster   bool
}

func newDirty() dirty {
	return dirty{services: map[types.NamespacedName]struct{}{}, workloads: map[types.NamespacedName]struct{}{},
		objects: map[mesh.ObjectKey]struct{}{}}
}

// NewTranslator returns an empty translator.
func NewTranslator(c TranslatorConfig) *Translator {
	if c.Domain == "" {
		c.Domain = DefaultDomain
	}
	if c.Namespace == "" {
		c.Namespace = DefaultNamespace
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	t := &Translator{
		cfg:      c,
		problems: problemSet{cluster: c.Cluster, list: c.Problems, log: c.Log, set: map[mesh.ObjectRef]struct{}{}},
		services: map[types.NamespacedName]*ksvc{},
		slices:   map[types.NamespacedName]*slice{},
		pods:     map[types.NamespacedName]*pod{},
		nodes:    map[string]*node{},
		gateways: map[types.NamespacedName][]mesh.NetworkGateway{},
		objects:  map[mesh.ObjectKey]*mesh.Object{},
		exports:  map[types.NamespacedName]struct{}{},
		imports:  map[types.NamespacedName]*mesh.Definition{},
		index:    newIndex(),
		dirty:    newDirty(),
		pending:  map[types.NamespacedName]int{},
	}
	t.dirty.cluster = true
	t.trustDomain = t.chooseTrustDomain("")
	t.sent.services = map[types.NamespacedName]registry.ServiceState{}
	t.sent.sets = map[types.NamespacedName]registry.ServiceState{}
	t.sent.workloads = map[types.NamespacedName]registry.WorkloadState{}
	return t
}

// Set adds an object or replaces the one of its name: a Service, EndpointSlice,
// Pod, Node, Namespace, ConfigMap, Gateway (Gateway API), ServiceExport,
// ServiceImport or [mesh.Object]. It reports whether the object is of such a type.
func (t *Translator) Set(obj any) bool {
	switch o := obj.(type) {
	case *corev1.Service:
		t.setService(o)
	case *discoveryv1.EndpointSlice:
		t.setSlice(o)
	case *corev1.Pod:
		t.setPod(o)
	case *corev1.Node:
		t.setNode(o)
	case *corev1.Namespace:
		t.setNamespace(o)
	case *corev1.ConfigMap:
		t.setConfigMap(o)
	case *gatewayv1.Gateway:
		t.setGateway(o)
	case *ServiceExport:
		t.setExport(types.NamespacedName{Namespace: o.Namespace, Name: o.Name})
	case *ServiceImport:
		t.setImport(o)
	case *mesh.Object:
		t.setObject(o)
	default:
		return false
	}
	return true
}

// Delete removes an object. Namespace is empty for Nodes and Namespaces.
func (t *Translator) Delete(kind Kind, namespace, name string) {
	k := types.NamespacedName{Namespace: namespace, Name: name}
	t.problems.clear(kind, namespace, name)
	switch kind {
	case KindService:
		t.deleteService(k)
	case KindEndpointSlice:
		t.deleteSlice(k)
	case KindPod:
		t.deletePod(k)
	case KindNode:
		t.deleteNode(name)
	case KindNamespace:
		t.deleteNamespace(name)
	case KindConfigMap:
		t.deleteConfigMap(k)
	case KindGateway:
		t.deleteGateway(k)
	case KindServiceExport:
		t.deleteExport(k)
	case KindServiceImport:
		t.deleteImport(k)
	}
}

// DeleteObject removes a configuration object.
func (t *Translator) DeleteObject(k mesh.ObjectKey) {
	if _, ok := t.objects[k]; ok {
		delete(t.objects, k)
		t.dirty.objects[k] = struct{}{}
	}
}

// setObject takes an object in; one that is for another control plane is as one
// that is not there.
func (t *Translator) setObject(o *mesh.Object) {
	if !t.reads(o) {
		t.DeleteObject(o.Key)
		return
	}
	if old := t.objects[o.Key]; old != nil && old.Version == o.Version && o.Version != "" {
		return
	}
	t.objects[o.Key] = o
	t.dirty.objects[o.Key] = struct{}{}
}

// reads reports whether an object is for this control plane. Namespaces are for
// all: their label is about what is in them. So are Gateways of the Gateway API,
// which may name a tag: see registry/gatewayapi/deploy.
func (t *Translator) reads(o *mesh.Object) bool {
	switch o.Key.Kind {
	case mesh.KindNamespace, mesh.KindGatewayAPIGateway:
		return true
	}
	return config.InRevision(o.Labels, t.cfg.Revision)
}

// SetTrustDomain replaces [TranslatorConfig.TrustDomain].
func (t *Translator) SetTrustDomain(override string) {
	if t.cfg.TrustDomain != override {
		t.cfg.TrustDomain = override
		t.setTrustDomain(t.configured)
	}
}

// SetPodsUnknown says whether pods cannot be read at all (RBAC). Then the
// addresses of slices are served without a pod: reachable, but without identity
// and mTLS. Otherwise an endpoint waits for its pod, as in istiod: without the
// pod it is not known whether it speaks mTLS.
func (t *Translator) SetPodsUnknown(unknown bool) {
	if t.podsUnknown != unknown {
		t.podsUnknown = unknown
		t.touchAll()
	}
}

// Pending is the number of endpoints that wait for their pod.
func (t *Translator) Pending() int {
	n := 0
	for _, x := range t.pending {
		n += x
	}
	return n
}

// Flush returns what changed since the last Flush or Snapshot; ok is false if
// nothing did. States are ordered by key.
func (t *Translator) Flush() (u registry.Update, ok bool) {
	d := t.dirty
	t.dirty = newDirty()
	for _, k := range sortedKeys(d.services) {
		if st, changed := t.translate(k); changed {
			u.Services = append(u.Services, st)
		}
		if st, changed := t.translateSet(k); changed {
			u.Services = append(u.Services, st)
		}
	}
	for _, k := range sortedKeys(d.workloads) {
		if st, changed := t.workloadState(k); changed {
			u.Workloads = append(u.Workloads, st)
		}
	}
	for k := range d.objects {
		u.Objects = append(u.Objects, registry.ObjectState{Key: k, Object: t.objects[k]})
	}
	slices.SortFunc(u.Objects, compareObjectStates)
	if d.cluster {
		if st := t.clusterState(); t.sent.cluster == nil || !reflect.DeepEqual(*t.sent.cluster, st) {
			t.sent.cluster, u.Cluster = &st, &st
		}
	}
	return u, len(u.Services)+len(u.Workloads)+len(u.Objects) > 0 || u.Cluster != nil
}

// Snapshot returns everything, ordered by key.
func (t *Translator) Snapshot() registry.Update {
	t.Flush()
	u := registry.Update{Cluster: t.sent.cluster}
	for _, k := range sortedKeys(t.sent.services) {
		u.Services = append(u.Services, t.sent.services[k])
	}
	for _, k := range sortedKeys(t.sent.sets) {
		u.Services = append(u.Services, t.sent.sets[k])
	}
	for _, k := range sortedKeys(t.sent.workloads) {
		u.Workloads = append(u.Workloads, t.sent.workloads[k])
	}
	for k, o := range t.objects {
		u.Objects = append(u.Objects, registry.ObjectState{Key: k, Object: o})
	}
	slices.SortFunc(u.Objects, compareObjectStates)
	return u
}

// translate brings the state of one service up to date and reports whether it
// changed.
func (t *Translator) translate(k types.NamespacedName) (registry.ServiceState, bool) {
	old, had := t.sent.services[k]
	svc := t.services[k]
	if svc == nil {
		delete(t.sent.services, k)
		delete(t.pending, k)
		return registry.ServiceState{Key: old.Key}, had
	}
	def := t.definition(svc)
	st := registry.ServiceState{Key: t.serviceKey(k), Definition: def, Endpoints: t.endpoints(k, svc)}
	if had && old.Definition.Equal(def) {
		if slices.EqualFunc(old.Endpoints, st.Endpoints, mesh.Endpoint.Equal) {
			return old, false
		}
		st.Definition = old.Definition
	}
	t.sent.services[k] = st
	return st, true
}

func (t *Translator) workloadState(k types.NamespacedName) (registry.WorkloadState, bool) {
	st := registry.WorkloadState{Key: k.String()}
	if p := t.pods[k]; p != nil && len(p.workload.Addresses) > 0 {
		st.Workload, st.Health = p.workload, p.health
	}
	old := t.sent.workloads[k]
	if old.Workload.Equal(st.Workload) && old.Health == st.Health {
		return st, false
	}
	if st.Workload == nil {
		delete(t.sent.workloads, k)
	} else {
		t.sent.workloads[k] = st
	}
	return st, true
}

// serviceKey names a Kubernetes Service in the mesh.
func (t *Translator) serviceKey(k types.NamespacedName) mesh.ServiceKey {
	return mesh.ServiceKey{Namespace: k.Namespace, Hostname: mesh.Hostname(k.Name + "." + k.Namespace + ".svc." + t.cfg.Domain)}
}

// touch marks a service for translation. Services that do not exist and never
// did cost nothing.
func (t *Translator) touch(k types.NamespacedName) { t.dirty.services[k] = struct{}{} }

func (t *Translator) touchAll() {
	for k := range t.services {
		t.touch(k)
	}
}

func compareObjectStates(a, b registry.ObjectState) int {
	return strings.Compare(string(a.Key.Kind)+"/"+a.Key.Namespace+"/"+a.Key.Name, string(b.Key.Kind)+"/"+b.Key.Namespace+"/"+b.Key.Name)
}

func compareNames(a, b types.NamespacedName) int {
	if c := strings.Compare(a.Namespace, b.Namespace); c != 0 {
		return c
	}
	return strings.Compare(a.Name, b.Name)
}

func sortedKeys[V any](m map[types.NamespacedName]V) []types.NamespacedName {
	out := make([]types.NamespacedName, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.SortFunc(out, compareNames)
	return out
}
