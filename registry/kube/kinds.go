package kube

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry/config"
)

const resourcePods = "pods"

// lister is what every typed client and the dynamic one have in common.
type lister[L runtime.Object] interface {
	List(ctx context.Context, o metav1.ListOptions) (L, error)
	Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error)
}

// newReader makes a reader of one kind. narrow limits what is read on the server.
func newReader[L runtime.Object](s *Source, resource string, kind Kind, object runtime.Object, api lister[L], narrow func(*metav1.ListOptions)) *reader {
	return &reader{
		source: s, resource: resource, object: object, keys: map[types.NamespacedName]struct{}{},
		list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			narrow(&o)
			return api.List(ctx, o)
		},
		watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			narrow(&o)
			return api.Watch(ctx, o)
		},
		set:    func(obj any) { s.translator.Set(obj) },
		remove: func(k types.NamespacedName) { s.translator.Delete(kind, k.Namespace, k.Name) },
		state:  s.status.add(resource, kind == KindService || kind == KindEndpointSlice),
	}
}

func all(*metav1.ListOptions) {}

func named(name string) func(*metav1.ListOptions) {
	return func(o *metav1.ListOptions) { o.FieldSelector = "metadata.name=" + name }
}

// unfinished leaves out pods that have ended: there are many of them where jobs run.
func unfinished(o *metav1.ListOptions) {
	o.FieldSelector = "status.phase!=" + string(corev1.PodSucceeded) + ",status.phase!=" + string(corev1.PodFailed)
}

// builtinReaders read what every cluster has.
func (s *Source) builtinReaders(c kubernetes.Interface) []*reader {
	core, system := c.CoreV1(), s.translator.cfg.Namespace
	return []*reader{
		newReader(s, "services", KindService, &corev1.Service{}, core.Services(""), all),
		newReader(s, "endpointslices", KindEndpointSlice, &discoveryv1.EndpointSlice{}, c.DiscoveryV1().EndpointSlices(""), all),
		newReader(s, resourcePods, KindPod, &corev1.Pod{}, core.Pods(""), unfinished),
		newReader(s, "nodes", KindNode, &corev1.Node{}, core.Nodes(), all),
		newReader(s, "namespaces", KindNamespace, &corev1.Namespace{}, core.Namespaces(), all),
		newReader(s, "configmaps", KindConfigMap, &corev1.ConfigMap{}, core.ConfigMaps(system), named(config.MeshConfigMap(s.cfg.Revision))),
	}
}

// dynamicReaders read custom resources. They are decoded one by one from their
// JSON: a typed client would fail a whole list for one bad object in it.
func (s *Source) dynamicReaders(c dynamic.Interface) []*reader {
	gateways := schema.GroupVersionResource{Group: gatewayv1.GroupName, Version: "v1", Resource: "gateways"}
	r := newReader(s, gateways.GroupResource().String(), KindGateway, example(gateways.GroupVersion(), "Gateway"), dynamicLister{c.Resource(gateways)},
		func(o *metav1.ListOptions) {
			if !s.cfg.Primary { // where every Gateway counts, not only those that lead to a network
				o.LabelSelector = labelNetwork
			}
		})
	r.optional, r.set = true, s.setUnstructuredGateway
	out := append(s.clusterSetReaders(c), r)
	for _, k := range s.objectKinds() {
		gvr := schema.GroupVersionResource{Group: k.Group, Version: k.Version, Resource: k.Resource}
		var api lister[*unstructured.UnstructuredList] = dynamicLister{c.Resource(gvr)}
		if versions := config.GatewayVersions(k.Kind); len(versions) > 1 {
			api = newVersionedLister(c, gvr, versions)
		}
		r := newReader(s, gvr.GroupResource().String(), Kind(k.Kind), example(gvr.GroupVersion(), k.Name()), api, all)
		r.optional = true
		r.set = func(obj any) { s.setObject(k, obj) }
		r.remove = func(n types.NamespacedName) {
			s.translator.problems.clear(Kind(k.Kind), n.Namespace, n.Name)
			s.translator.DeleteObject(mesh.ObjectKey{Kind: k.Kind, Namespace: n.Namespace, Name: n.Name})
		}
		out = append(out, r)
	}
	return out
}

// objectKinds lists the kinds of configuration objects that count in this cluster.
func (s *Source) objectKinds() []config.Kind {
	kinds := config.Kinds()
	if s.cfg.Primary {
		for _, k := range config.GatewayKinds() {
			if k.Kind != mesh.KindGatewayAPIGateway { // which has a reader in every cluster
				kinds = append(kinds, k)
			}
		}
		return kinds
	}
	return slices.DeleteFunc(kinds, func(k config.Kind) bool { return !k.Everywhere })
}

// dynamicLister gives the dynamic client the signatures of a typed one.
type dynamicLister struct {
	api dynamic.NamespaceableResourceInterface
}

func (d dynamicLister) List(ctx context.Context, o metav1.ListOptions) (*unstructured.UnstructuredList, error) {
	return d.api.List(ctx, o)
}

func (d dynamicLister) Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	return d.api.Watch(ctx, o)
}

func example(gv schema.GroupVersion, kind string) *unstructured.Unstructured {
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(gv.WithKind(kind))
	return u
}

// setUnstructuredGateway reads a Gateway of the Gateway API. One that cannot be
// decoded leaves what was known of it.
func (s *Source) setUnstructuredGateway(obj any) {
	u, ok := obj.(*unstructured.Unstructured)
	if !ok {
		return
	}
	var g gatewayv1.Gateway
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &g); err != nil {
		s.translator.problems.report(KindGateway, u.GetNamespace(), u.GetName(), faults{{"", "cannot be decoded: " + printable(err.Error())}})
		return
	}
	s.translator.Set(&g)
}

// setObject reads one of Istio's objects. One that is refused leaves what was
// known of it.
func (s *Source) setObject(k config.Kind, obj any) {
	u, ok := obj.(*unstructured.Unstructured)
	if !ok {
		return
	}
	doc, err := json.Marshal(u.Object)
	var o *mesh.Object
	if err == nil {
		o, err = config.Decode(s.cfg.Cluster, k, doc)
	}
	s.translator.SetDecoded(mesh.ObjectKey{Kind: k.Kind, Namespace: u.GetNamespace(), Name: u.GetName()}, o, err)
}

// SetDecoded sets a configuration object that was decoded, or reports that it
// could not be: then what was known of it stays.
func (t *Translator) SetDecoded(k mesh.ObjectKey, o *mesh.Object, err error) {
	if err == nil {
		t.problems.clear(Kind(k.Kind), k.Namespace, k.Name)
		t.setObject(o)
		return
	}
	field, message := "", err.Error()
	var fe *config.FieldError
	if errors.As(err, &fe) {
		field, message = fe.Field, fe.Message
		if n := strings.Count(err.Error(), "\n"); n > 0 { // several faults
			message = strings.TrimSpace(err.Error())
		}
	}
	t.problems.report(Kind(k.Kind), k.Namespace, k.Name, faults{{field, message}})
}
