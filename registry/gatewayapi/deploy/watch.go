package deploy

import (
	"context"
	"maps"
	"slices"
	"sync"

	"go.uber.org/zap"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry/gatewayapi"
)

// labelClassDefaults is on ConfigMaps that hold the defaults of a class, labelTag on
// webhook configurations of tags.
const (
	labelClassDefaults = "gateway.istio.io/defaults-for-class"
	labelTag           = "istio.io/tag"
)

// term is one term of leadership.
type term struct {
	c       *Controller
	changed func()
	queue   workqueue.TypedRateLimitingInterface[gatewayapi.Name]
	stop    []func()

	made     map[string]cache.SharedIndexInformer // by key of the kind
	defaults cache.SharedIndexInformer
	tags     cache.SharedIndexInformer

	mu       sync.Mutex
	records  map[gatewayapi.Name]*history // guarded by mu; each is used by one worker at a time
	warnings map[string]bool              // guarded by mu
}

func newTerm(c *Controller, changed func()) *term {
	limit := workqueue.NewTypedItemExponentialFailureRateLimiter[gatewayapi.Name](retryMin, retryMax)
	return &term{c: c, changed: changed, queue: workqueue.NewTypedRateLimitingQueue(limit), made: map[string]cache.SharedIndexInformer{},
		records: map[gatewayapi.Name]*history{}, warnings: map[string]bool{}}
}

// watch follows what was made, the defaults of classes and the tags of revisions.
// It reports whether all of it has been read.
func (t *term) watch(ctx context.Context) bool {
	all := metav1.NamespaceAll
	managed := gatewayapi.LabelManaged + " in (" + gatewayapi.ManagedBy(gatewayapi.Controller) + "," + gatewayapi.ManagedBy(gatewayapi.ControllerEastWest) + ")"
	var synced []cache.InformerSynced
	follow := func(gvr schema.GroupVersionResource, namespace, selector string, heard func(*unstructured.Unstructured)) cache.SharedIndexInformer {
		f := dynamicinformer.NewFilteredDynamicSharedInformerFactory(t.c.cfg.Dynamic, 0, namespace, func(o *metav1.ListOptions) { o.LabelSelector = selector })
		informer := f.ForResource(gvr).Informer()
		_ = informer.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) { t.warn(gvr, err) }) // it has not started
		handle, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(o any) { heard(objectOf(o)) },
			UpdateFunc: func(_, o any) { heard(objectOf(o)) },
			DeleteFunc: func(o any) { heard(objectOf(o)) },
		})
		if err == nil { // it has not stopped
			synced = append(synced, handle.HasSynced)
		}
		f.Start(ctx.Done())
		t.stop = append(t.stop, f.Shutdown)
		return informer
	}
	for _, k := range kinds() {
		t.made[k.key] = follow(k.gvr(), all, managed, func(o *unstructured.Unstructured) {
			t.queue.Add(gatewayapi.Name{Namespace: o.GetNamespace(), Name: o.GetLabels()[gatewayapi.LabelGateway]})
		})
	}
	everything := func(*unstructured.Unstructured) { t.all() }
	t.defaults = follow(schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}, t.c.cfg.Namespace, labelClassDefaults, everything)
	t.tags = follow(schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "mutatingwebhookconfigurations"}, all, labelTag, everything)
	if !cache.WaitForCacheSync(ctx.Done(), synced...) {
		t.unwatch()
		return false
	}
	return true
}

// unwatch waits until nothing is followed any more; the context must have ended.
func (t *term) unwatch() {
	for _, f := range t.stop {
		f()
	}
}

// warn says once what cannot be read.
func (t *term) warn(gvr schema.GroupVersionResource, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !apierrors.IsForbidden(err) || t.warnings[gvr.Resource] {
		return
	}
	t.warnings[gvr.Resource] = true
	t.c.log.Error("Gateways get no routers: grant get, list and watch, as role gateway-deployments of the chart does, or set PILOT_ENABLE_GATEWAY_API_DEPLOYMENT_CONTROLLER=false",
		zap.String("resource", gvr.GroupResource().String()), zap.Error(err))
}

// objectOf is the object of an event, empty if nothing is known of it.
func objectOf(o any) *unstructured.Unstructured {
	if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
		o = gone.Obj
	}
	if u, ok := o.(*unstructured.Unstructured); ok {
		return u
	}
	return &unstructured.Unstructured{}
}

// classDefaults are the defaults of a class: of several, the oldest count.
func (t *term) classDefaults(class string) *unstructured.Unstructured {
	var out *unstructured.Unstructured
	for _, o := range t.defaults.GetStore().List() {
		u := objectOf(o)
		if u.GetLabels()[labelClassDefaults] != class {
			continue
		}
		if out == nil || older(u, out) {
			out = u
		}
	}
	return out
}

func older(a, b *unstructured.Unstructured) bool {
	x, y := a.GetCreationTimestamp(), b.GetCreationTimestamp()
	if x.Equal(&y) {
		return a.GetName() < b.GetName()
	}
	return x.Before(&y)
}

// defaultRevision is the name that an empty revision goes by.
const defaultRevision = "default"

// answersTo lists the names that are asked for when this control plane is meant:
// its revision and its tags.
func (t *term) answersTo() []string {
	revision := t.c.cfg.Revision
	if revision == "" {
		revision = defaultRevision
	}
	names := map[string]bool{revision: true}
	for _, o := range t.tags.GetStore().List() {
		labels := objectOf(o).GetLabels()
		if tag := labels[labelTag]; labels[labelRevision] == revision {
			names[tag] = true
		} else if tag == defaultRevision { // somebody else took the name over
			delete(names, tag)
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// mine reports whether a Gateway is this control plane's to care for: its label
// says so, else that of its namespace, else who is the default does.
func mine(gateway, namespace map[string]string, names []string) bool {
	asked, ok := gateway[labelRevision]
	if !ok {
		asked = namespace[labelRevision]
	}
	if asked == "" {
		asked = defaultRevision
	}
	return slices.Contains(names, asked)
}

func (t *term) namespaceLabels(name string) map[string]string {
	if o := t.c.cfg.Store.Catalog().Object(mesh.ObjectKey{Kind: mesh.KindNamespace, Name: name}); o != nil {
		return o.Labels
	}
	return nil
}

func specOf(o *mesh.Object) *gatewayv1.GatewaySpec {
	if o == nil {
		return nil
	}
	spec, _ := o.Value.(*gatewayv1.GatewaySpec)
	return spec
}

func sameMap(a, b map[string]string) bool { return maps.Equal(a, b) }
