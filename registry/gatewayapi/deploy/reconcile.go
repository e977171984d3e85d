package deploy

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry/config"
	"github.com/isthmus-mesh/isthmus/registry/gatewayapi"
)

// reconcile makes a Gateway's objects be as they should be. It returns after how
// long they are to be looked at again, 0 if not before something changes.
func (t *term) reconcile(ctx context.Context, n gatewayapi.Name) (again time.Duration, err error) {
	cat := t.c.cfg.Store.Catalog()
	spec := specOf(cat.Object(mesh.ObjectKey{Kind: mesh.KindGatewayAPIGateway, Namespace: n.Namespace, Name: n.Name}))
	if spec == nil {
		t.drop(n)
		t.c.forget(n)
		return 0, nil
	}
	gw, err := t.gateway(ctx, n)
	if err != nil {
		return 0, err
	}
	labels := t.namespaceLabels(n.Namespace)
	names := t.answersTo()
	if gw == nil || gw.DeletionTimestamp != nil || !mine(gw.Labels, labels, names) {
		t.drop(n) // others care for it, or the garbage collector will
		return 0, nil
	}
	controller := gatewayapi.ControllerOf(cat.Objects, string(gw.Spec.GatewayClassName))
	if controller == "" {
		t.drop(n) // nobody knows what is meant: what is there stays
		return 0, nil
	}
	if !gatewayapi.MakesRouters(controller, &gw.Spec) {
		t.drop(n)
		return 0, t.clean(ctx, gw, nil)
	}
	in := Input{Gateway: gw, Controller: controller, CopyMetadata: t.c.cfg.CopyMetadata, Class: t.classParameters(string(gw.Spec.GatewayClassName))}
	if x, ok := cat.Cluster(t.c.cfg.Primary); ok {
		in.Network = string(x.Network)
	}
	job := &job{term: t, ctx: ctx, name: n, gw: gw, record: t.history(n)}
	return job.run(in, labels, names)
}

// gateway reads a Gateway as it stands, nil if there is none any more.
func (t *term) gateway(ctx context.Context, n gatewayapi.Name) (*gatewayv1.Gateway, error) {
	for _, v := range config.GatewayVersions(mesh.KindGatewayAPIGateway) {
		api := t.c.cfg.Dynamic.Resource(schema.GroupVersionResource{Group: gatewayv1.GroupName, Version: v, Resource: "gateways"}).Namespace(n.Namespace)
		o, err := call(ctx, func(ctx context.Context) (*unstructured.Unstructured, error) {
			return api.Get(ctx, n.Name, metav1.GetOptions{})
		})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read Gateway %s: %w", n, err)
		}
		gw := &gatewayv1.Gateway{}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, gw); err != nil {
			return nil, fmt.Errorf("read Gateway %s: %w", n, err)
		}
		return gw, nil
	}
	return nil, nil
}

// call bounds a call to the API server.
func call[T any](ctx context.Context, f func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return f(ctx)
}

// classParameters are the defaults of a class, nil for none.
func (t *term) classParameters(class string) *corev1.ConfigMap {
	o := t.classDefaults(class)
	if o == nil {
		return nil
	}
	return configMap(o)
}

func configMap(o *unstructured.Unstructured) *corev1.ConfigMap {
	out := &corev1.ConfigMap{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, out); err != nil {
		return &corev1.ConfigMap{} // the API server checks the type
	}
	return out
}

// job is one look at the objects of one Gateway.
type job struct {
	*term
	ctx    context.Context
	name   gatewayapi.Name
	gw     *gatewayv1.Gateway
	record *history
	live   map[string]*unstructured.Unstructured // by key of the kind
	// account: somebody else's is used.
	account bool
	told    map[string]bool
}

// refusal is why nothing is made: what users have to put right, and will be told
// in the status.
type refusal struct {
	gatewayapi.Infrastructure
	event string
	again time.Duration
}

func (j *job) run(in Input, labels map[string]string, names []string) (again time.Duration, err error) {
	j.told = map[string]bool{}
	defer func() { j.record.told = j.told }()
	objects, no, err := j.objects(in, labels, names)
	if err != nil {
		return 0, err
	}
	if no != nil {
		j.tell(no.event, no.Message+no.Parameters)
		j.say(j.name, no.Infrastructure)
		return no.again, nil
	}
	for _, text := range objects.LeftOut {
		j.tell("AnnotationLeftOut", text)
	}
	if again, err = j.applyAll(objects); err != nil {
		if apierrors.IsInvalid(err) || apierrors.IsForbidden(err) || apierrors.IsBadRequest(err) {
			j.tell("NotApplied", err.Error())
			j.say(j.name, gatewayapi.Infrastructure{Reason: string(gatewayv1.GatewayReasonNoResources), Message: err.Error()})
		}
		return 0, err
	}
	if len(objects.List) > 0 {
		if err := j.clean(j.ctx, j.gw, objects); err != nil {
			return 0, err
		}
	}
	j.say(j.name, reached(j.live[keyService], j.live[keyDeployment]))
	if in.Gateway.Spec.Infrastructure != nil && in.Gateway.Spec.Infrastructure.ParametersRef != nil && (again == 0 || again > look) {
		again = look // nobody tells when a ConfigMap changes
	}
	return again, nil
}

// objects works out what is to be there, with everything in its way.
func (j *job) objects(in Input, labels map[string]string, names []string) (*Objects, *refusal, error) {
	bad := func(err error) *refusal {
		return &refusal{gatewayapi.Infrastructure{Parameters: err.Error()}, "InvalidParameters", look}
	}
	var no *refusal
	var err error
	if in.Parameters, no, err = j.parameters(); no != nil || err != nil {
		return nil, no, err
	}
	m := &maker{Input: in, out: &Objects{}}
	if err := m.names(); err != nil {
		return nil, bad(err), nil
	}
	if err := j.read(m.out); err != nil {
		return nil, nil, err
	}
	in.Live = func(key, _ string) *unstructured.Unstructured { return j.live[key] }
	objects, err := Make(in)
	if err != nil {
		return nil, bad(err), nil
	}
	if no := j.collision(objects); no != nil {
		return nil, no, nil
	}
	for _, o := range objects.List {
		if o.GetKind() != "Deployment" {
			continue
		}
		if err := j.c.cfg.Injects(j.name.Namespace, labels, names, podOf(o)); err != nil {
			return nil, &refusal{gatewayapi.Infrastructure{Reason: string(gatewayv1.GatewayReasonNoResources),
				Message: "no routers are made, because they would not get their proxy: " + err.Error()}, "NotInjected", look}, nil
		}
	}
	return objects, nil, nil
}

func podOf(deployment *unstructured.Unstructured) *corev1.Pod {
	pod := &corev1.Pod{}
	template, _, _ := unstructured.NestedMap(deployment.Object, "spec", "template")
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(template, pod); err != nil {
		return &corev1.Pod{} // it has been a typed one
	}
	return pod
}

// parameters reads the ConfigMap that the Gateway names.
func (j *job) parameters() (*corev1.ConfigMap, *refusal, error) {
	if j.gw.Spec.Infrastructure == nil || j.gw.Spec.Infrastructure.ParametersRef == nil {
		return nil, nil, nil
	}
	no := func(format string, args ...any) *refusal {
		return &refusal{gatewayapi.Infrastructure{Parameters: fmt.Sprintf(format, args...)}, "InvalidParameters", look}
	}
	ref := j.gw.Spec.Infrastructure.ParametersRef
	if ref.Group != "" || ref.Kind != "ConfigMap" {
		return nil, no("infrastructure.parametersRef names a %s of group %q: want a ConfigMap", ref.Kind, ref.Group), nil
	}
	api := j.c.cfg.Dynamic.Resource(schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}).Namespace(j.name.Namespace)
	o, err := call(j.ctx, func(ctx context.Context) (*unstructured.Unstructured, error) {
		return api.Get(ctx, ref.Name, metav1.GetOptions{})
	})
	if apierrors.IsNotFound(err) {
		return nil, no("infrastructure.parametersRef names ConfigMap %s/%s, which is not there", j.name.Namespace, ref.Name), nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read parameters of Gateway %s: %w", j.name, err)
	}
	return configMap(o), nil, nil
}

// nameOf is the name of a Gateway's object of a kind.
func (o *Objects) nameOf(key string) string {
	if key == keyAccount {
		return o.Account
	}
	return o.Name
}

// read reads what is there under the names that objects are to have. What has our
// label is at hand; anything else is asked for.
func (j *job) read(o *Objects) error {
	j.live = map[string]*unstructured.Unstructured{}
	for _, k := range kinds() {
		name := o.nameOf(k.key)
		if have, ok, _ := j.made[k.key].GetStore().GetByKey(j.name.Namespace + "/" + name); ok {
			j.live[k.key] = objectOf(have)
			continue
		}
		api := j.c.cfg.Dynamic.Resource(k.gvr()).Namespace(j.name.Namespace)
		have, err := call(j.ctx, func(ctx context.Context) (*unstructured.Unstructured, error) {
			return api.Get(ctx, name, metav1.GetOptions{})
		})
		switch {
		case apierrors.IsNotFound(err):
		case err != nil:
			return fmt.Errorf("read %s %s/%s: %w", k.Kind, j.name.Namespace, name, err)
		default:
			j.live[k.key] = have
		}
	}
	return nil
}

func kindOf(o *unstructured.Unstructured) kind {
	all := kinds()
	return all[slices.IndexFunc(all, func(k kind) bool { return k.Kind == o.GetKind() })]
}

// tell writes an Event about the Gateway, once for what it says.
func (j *job) tell(reason, message string) {
	if reason == "" {
		return
	}
	j.told[message] = true
	if j.record.told[message] || j.c.cfg.Events == nil {
		return
	}
	about := &corev1.ObjectReference{APIVersion: j.gw.APIVersion, Kind: "Gateway", Namespace: j.gw.Namespace, Name: j.gw.Name, UID: j.gw.UID}
	j.c.cfg.Events.Event(about, corev1.EventTypeWarning, reason, message)
}
