package deploy

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/cespare/xxhash/v2"
	"go.uber.org/zap"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/tools/cache"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/isthmus-mesh/isthmus/registry/gatewayapi"
)

// istiodManagers are the managers of the fields that istiod applies.
func istiodManagers() []string {
	return []string{gatewayapi.Controller, gatewayapi.ControllerEastWest, "istio gateway controller"}
}

// applyAll applies what is not as it should be, and notes how it is then. again is
// when something waits to be put back.
func (j *job) applyAll(objects *Objects) (again time.Duration, err error) {
	for _, want := range objects.List {
		k := kindOf(want)
		if k.key == keyAccount && j.account {
			continue
		}
		said, err := fingerprint(want)
		if err != nil {
			return 0, err
		}
		have := j.live[k.key]
		w := j.record.written[k.key]
		if w == nil {
			w = &written{}
			j.record.written[k.key] = w
		}
		if have != nil {
			seen, err := fingerprint(have)
			if err != nil {
				return 0, err
			}
			if w.said == said && w.seen == seen && !istiods(have) {
				continue
			}
		}
		ok, in := w.due(said, j.c.cfg.Clock())
		if !ok {
			if again == 0 || in < again {
				again = in
			}
			continue
		}
		now, err := j.apply(k, want, have)
		if err != nil {
			return 0, fmt.Errorf("apply %s %s/%s for Gateway %s: %w", k.Kind, want.GetNamespace(), want.GetName(), j.gw.Name, err)
		}
		if w.seen, err = fingerprint(now); err != nil {
			return 0, err
		}
		j.live[k.key] = now
	}
	return again, nil
}

// apply applies one object. One that is there is changed only as it was read; one
// that is not there takes nothing over that somebody makes in this moment.
func (j *job) apply(k kind, want, have *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	api := j.c.cfg.Dynamic.Resource(k.gvr()).Namespace(want.GetNamespace())
	body := want.DeepCopy()
	if have != nil {
		body.SetResourceVersion(have.GetResourceVersion())
	}
	now, err := call(j.ctx, func(ctx context.Context) (*unstructured.Unstructured, error) {
		return api.Apply(ctx, want.GetName(), body, metav1.ApplyOptions{FieldManager: FieldManager, Force: have != nil})
	})
	if err != nil {
		return nil, err
	}
	if have == nil {
		j.c.log.Info("made for a Gateway", zap.Stringer("gateway", j.name), zap.String("kind", k.Kind), zap.String("name", want.GetName()))
	}
	return j.takeOver(k, now)
}

// istiods reports whether istiod still has fields of an object.
func istiods(o *unstructured.Unstructured) bool {
	return slices.ContainsFunc(o.GetManagedFields(), isIstiods)
}

func isIstiods(m metav1.ManagedFieldsEntry) bool {
	return m.Operation == metav1.ManagedFieldsOperationApply && m.Subresource == "" && slices.Contains(istiodManagers(), m.Manager)
}

// takeOver gives up, in istiod's name, what istiod applied to an object that is
// ours now: it rendered whole pods, which injection would be laid over.
func (j *job) takeOver(k kind, o *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	api := j.c.cfg.Dynamic.Resource(k.gvr()).Namespace(o.GetNamespace())
	for _, m := range o.GetManagedFields() {
		if !isIstiods(m) {
			continue
		}
		nothing := &unstructured.Unstructured{Object: map[string]any{"apiVersion": m.APIVersion, "kind": k.Kind,
			"metadata": map[string]any{"name": o.GetName(), "namespace": o.GetNamespace()}}}
		now, err := call(j.ctx, func(ctx context.Context) (*unstructured.Unstructured, error) {
			return api.Apply(ctx, o.GetName(), nothing, metav1.ApplyOptions{FieldManager: m.Manager, Force: true})
		})
		if err != nil {
			return nil, fmt.Errorf("take it over from %s: %w", m.Manager, err)
		}
		j.c.log.Info("taken over from istiod", zap.Stringer("gateway", j.name), zap.String("kind", k.Kind), zap.String("name", o.GetName()))
		o = now
	}
	return o, nil
}

// clean deletes what was made for a Gateway and is not among its objects any more.
func (t *term) clean(ctx context.Context, gw *gatewayv1.Gateway, objects *Objects) error {
	for _, k := range kinds() {
		there, err := t.made[k.key].GetIndexer().ByIndex(cache.NamespaceIndex, gw.Namespace)
		if err != nil {
			return fmt.Errorf("list what was made: %w", err)
		}
		for _, x := range there {
			o := objectOf(x)
			if o.GetDeletionTimestamp() != nil || !slices.ContainsFunc(o.GetOwnerReferences(), func(r metav1.OwnerReference) bool { return r.UID == gw.UID }) {
				continue
			}
			if objects != nil && slices.ContainsFunc(objects.List, func(w *unstructured.Unstructured) bool {
				return w.GetKind() == k.Kind && w.GetName() == o.GetName()
			}) {
				continue
			}
			api := t.c.cfg.Dynamic.Resource(k.gvr()).Namespace(gw.Namespace)
			uid, background := o.GetUID(), metav1.DeletePropagationBackground
			_, err := call(ctx, func(ctx context.Context) (struct{}, error) {
				return struct{}{}, api.Delete(ctx, o.GetName(), metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}, PropagationPolicy: &background})
			})
			if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
				return fmt.Errorf("delete %s %s/%s, which Gateway %s has no use for any more: %w", k.Kind, gw.Namespace, o.GetName(), gw.Name, err)
			}
			t.c.log.Info("deleted: its Gateway has no use for it any more", zap.String("gateway", gw.Namespace+"/"+gw.Name), zap.String("kind", k.Kind), zap.String("name", o.GetName()))
		}
	}
	return nil
}

// fingerprint is equal for objects that differ in nothing but what API servers and
// other controllers keep to themselves.
func fingerprint(o *unstructured.Unstructured) (string, error) {
	top := maps.Clone(o.Object)
	delete(top, "status")
	if m, ok := top["metadata"].(map[string]any); ok {
		m = maps.Clone(m)
		for _, name := range []string{"resourceVersion", "managedFields", "generation"} {
			delete(m, name)
		}
		top["metadata"] = m
	}
	raw, err := json.Marshal(top)
	if err != nil {
		return "", fmt.Errorf("encode %s %s: %w", o.GetKind(), o.GetName(), err)
	}
	return strconv.FormatUint(xxhash.Sum64(raw), 36), nil
}
