package status

import (
	"context"
	"encoding/json"
	"fmt"

	"go.uber.org/zap"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/registry/config"
)

// outcome is what came of looking at an object.
type outcome int

const (
	later  outcome = iota // it is not as it should be, or as it was read
	stands                // it says what it should
	gone                  // there is no condition, and nothing to remember of the object
)

// write has the condition of an object say what is wrong with it as it stands at
// the server; without a fault there is to be none.
func (w *Writer) write(ctx context.Context, k config.Kind, key mesh.ObjectKey, fault *registry.Problem) (outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	api := w.cfg.Client.Resource(resource(k)).Namespace(key.Namespace)
	live, err := api.Get(ctx, key.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return gone, nil
	case err != nil:
		return later, fmt.Errorf("read it: %w", err)
	}
	var want *Condition
	if fault != nil && w.ours(live) {
		var current bool
		if want, current, err = w.condition(k, live, fault); err != nil || !current {
			return later, err // it has changed: that will be read
		}
	}
	done := stands
	if fault == nil {
		done = gone
	}
	merged, changed := Merge(conditionsOf(live), w.typ, want, w.cfg.Clock())
	if !changed {
		return done, nil
	}
	if written, err := w.put(ctx, api, k, live, merged); err != nil || !written {
		return later, err
	}
	return done, nil
}

// condition is what is to be said of an object at the server; current is false if
// the fault is not about the object as it is there.
func (w *Writer) condition(k config.Kind, live *unstructured.Unstructured, fault *registry.Problem) (c *Condition, current bool, err error) {
	if len(fault.Parts) > 0 {
		return partly(fault.Parts, fault.Generation), fault.Generation == live.GetGeneration(), nil
	}
	doc, err := json.Marshal(live.Object)
	if err != nil {
		return nil, false, fmt.Errorf("encode it: %w", err)
	}
	if _, err := config.Decode(w.cfg.Cluster, k, doc); err != nil {
		return refusal(err, live.GetGeneration()), true, nil
	}
	return nil, false, nil
}

// put writes conditions into the status of an object that must be at the server
// as it was read, and reports whether they are there. Who may not patch updates.
func (w *Writer) put(ctx context.Context, api dynamic.ResourceInterface, k config.Kind, live *unstructured.Unstructured, conditions []any) (written bool, err error) {
	if !w.updates[k.Kind] {
		var body []byte
		patch := map[string]any{"metadata": map[string]any{"resourceVersion": live.GetResourceVersion()}, "status": map[string]any{"conditions": conditions}}
		if body, err = json.Marshal(patch); err != nil {
			return false, fmt.Errorf("encode its status: %w", err)
		}
		_, err = api.Patch(ctx, live.GetName(), types.MergePatchType, body, metav1.PatchOptions{FieldManager: fieldManager}, "status")
	}
	if w.updates[k.Kind] || apierrors.IsForbidden(err) {
		if err = w.update(ctx, api, live, conditions); err == nil {
			w.updates[k.Kind] = true
		}
	}
	switch {
	case apierrors.IsConflict(err):
		return false, fmt.Errorf("somebody else writes to it: %w", err)
	case apierrors.IsForbidden(err):
		if w.denied[k.Kind].IsZero() {
			w.log.Warn("what is wrong with objects is not written into their status, see /debug/problems: allow patch on "+k.Resource+"/status in the primary",
				zap.String("group", k.Group), zap.String("object", string(k.Kind)+" "+live.GetNamespace()+"/"+live.GetName()), zap.Error(err))
		}
		w.denied[k.Kind] = w.cfg.Clock().Add(deniedFor)
		return false, nil
	case err != nil:
		return false, fmt.Errorf("write it: %w", err)
	}
	return true, nil
}

// update writes the whole status.
func (w *Writer) update(ctx context.Context, api dynamic.ResourceInterface, live *unstructured.Unstructured, conditions []any) error {
	next := live.DeepCopy()
	if len(conditions) == 0 {
		unstructured.RemoveNestedField(next.Object, "status", "conditions")
	} else if err := unstructured.SetNestedSlice(next.Object, conditions, "status", "conditions"); err != nil {
		return fmt.Errorf("change its status: %w", err)
	}
	_, err := api.UpdateStatus(ctx, next, metav1.UpdateOptions{FieldManager: fieldManager})
	return err
}
