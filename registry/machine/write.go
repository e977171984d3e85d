package machine

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	utiljson "k8s.io/apimachinery/pkg/util/json"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry/config"
)

// keep makes sure that there is an entry of a machine that is connected here,
// and that it says so, with the health that was reported.
func (r *Registrar) keep(ctx context.Context, k mesh.ObjectKey, s *session) error {
	api := r.entries.Namespace(k.Namespace)
	o, err := api.Get(ctx, k.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		if o, err = r.entry(k, s); err != nil {
			return r.wrap("make", k, err)
		}
		if o, err = api.Create(ctx, o, metav1.CreateOptions{}); err == nil {
			r.log.Info("machine registered", zap.String("entry", k.Namespace+"/"+k.Name), zap.String("group", s.group))
		}
	}
	if err != nil {
		return r.wrap("write", k, err)
	}
	have := o.GetAnnotations()
	connected := stamp(s.since)
	if have[AnnotationController] != r.cfg.Instance || have[AnnotationDisconnected] != "" || have[AnnotationConnected] != connected {
		if err := r.annotate(ctx, k, "", map[string]any{AnnotationController: r.cfg.Instance, AnnotationConnected: connected, AnnotationDisconnected: nil}); err != nil {
			return r.wrap("write", k, err)
		}
	}
	if s.health == nil {
		return nil
	}
	return r.wrap("write health of", k, r.report(ctx, o, s.health))
}

// entry is a new machine's entry: the group's template, then the group's labels,
// then what the proxy says of itself.
func (r *Registrar) entry(k mesh.ObjectKey, s *session) (*unstructured.Unstructured, error) {
	g := r.cfg.Catalog().Object(mesh.ObjectKey{Kind: mesh.KindWorkloadGroup, Namespace: k.Namespace, Name: s.group})
	if g == nil {
		return nil, fmt.Errorf("WorkloadGroup %s/%s is gone", k.Namespace, s.group)
	}
	group, _ := g.Spec.(*networking.WorkloadGroup)
	spec, ok := proto.Clone(group.GetTemplate()).(*networking.WorkloadEntry)
	if !ok || spec == nil {
		spec = &networking.WorkloadEntry{}
	}
	labels := map[string]string{}
	maps.Copy(labels, spec.GetLabels())
	maps.Copy(labels, group.GetMetadata().GetLabels())
	maps.Copy(labels, s.proxy.Labels)
	annotations := map[string]string{}
	maps.Copy(annotations, group.GetMetadata().GetAnnotations())
	maps.Copy(annotations, map[string]string{AnnotationGroup: s.group, AnnotationController: r.cfg.Instance, AnnotationConnected: stamp(s.since)})
	if group.GetProbe() != nil || s.proxy.ProxyConfig["readinessProbe"] != nil {
		annotations[annotationHealthChecks] = "true"
	}
	spec.Labels = labels
	if len(s.proxy.Addresses) > 0 {
		spec.Address = s.proxy.Addresses[0].String()
	}
	if s.proxy.Network != "" {
		spec.Network = string(s.proxy.Network)
	}
	if !s.proxy.Locality.IsZero() {
		spec.Locality = s.proxy.Locality.String()
	}
	return asObject(k, labels, annotations, spec)
}

func asObject(k mesh.ObjectKey, labels, annotations map[string]string, spec *networking.WorkloadEntry) (*unstructured.Unstructured, error) {
	raw, err := protojson.Marshal(spec)
	if err != nil {
		return nil, err
	}
	var content map[string]any
	if err := utiljson.Unmarshal(raw, &content); err != nil {
		return nil, err
	}
	o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "networking.istio.io/v1", "kind": string(mesh.KindWorkloadEntry), "spec": content}}
	o.SetNamespace(k.Namespace)
	o.SetName(k.Name)
	o.SetLabels(labels)
	o.SetAnnotations(annotations)
	return o, nil
}

// annotate changes annotations; nil removes one. With a version, the entry must
// not have changed since it was read as that.
func (r *Registrar) annotate(ctx context.Context, k mesh.ObjectKey, version string, to map[string]any) error {
	meta := map[string]any{"annotations": to}
	if version != "" {
		meta["resourceVersion"] = version
	}
	patch, err := json.Marshal(map[string]any{"metadata": meta})
	if err != nil {
		return err
	}
	_, err = r.entries.Namespace(k.Namespace).Patch(ctx, k.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}

// report writes a machine's health into the conditions of its entry.
func (r *Registrar) report(ctx context.Context, o *unstructured.Unstructured, h *health) error {
	want := map[string]any{"type": config.ConditionHealthy, "status": string(metav1.ConditionTrue), "lastProbeTime": stamp(h.at), "lastTransitionTime": stamp(h.at)}
	if !h.ok {
		want["status"], want["message"] = string(metav1.ConditionFalse), h.message
	}
	conditions, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
	out := []any{want}
	for _, c := range conditions {
		m, ok := c.(map[string]any)
		switch {
		case !ok:
		case m["type"] != config.ConditionHealthy:
			out = append(out, c)
		case m["status"] == want["status"] && text(m["message"]) == text(want["message"]):
			return nil // says so already
		}
	}
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": out}})
	if err != nil {
		return err
	}
	_, err = r.entries.Namespace(o.GetNamespace()).Patch(ctx, o.GetName(), types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}

func text(v any) string {
	s, _ := v.(string)
	return s
}

// departTries bounds how often an entry that changes in the same moment is read
// again.
const departTries = 5

// depart notes in the entry that its proxy left this replica, unless another one
// has it already. One that takes it over in this moment must not be overwritten:
// its machine would count as gone.
func (r *Registrar) depart(ctx context.Context, k mesh.ObjectKey, s *session) error {
	var err error
	for range departTries {
		var o *unstructured.Unstructured
		if o, err = r.own(ctx, k); o == nil || err != nil {
			return err
		}
		err = r.annotate(ctx, k, o.GetResourceVersion(), map[string]any{AnnotationDisconnected: stamp(s.left)})
		if !apierrors.IsConflict(err) {
			break
		}
	}
	return r.wrap("write", k, err)
}

// own reads an entry; nil if there is none or another replica has it.
func (r *Registrar) own(ctx context.Context, k mesh.ObjectKey) (*unstructured.Unstructured, error) {
	o, err := r.entries.Namespace(k.Namespace).Get(ctx, k.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, r.wrap("read", k, err)
	case !r.mine(o):
		return nil, nil
	}
	return o, nil
}

// mine reports whether an entry registered itself and this replica was the last
// to look after it.
func (r *Registrar) mine(o *unstructured.Unstructured) bool {
	a := o.GetAnnotations()
	return a[AnnotationGroup] != "" && a[AnnotationController] == r.cfg.Instance
}

// remove removes the entry of a machine that stayed away, unless another replica
// has it.
func (r *Registrar) remove(ctx context.Context, k mesh.ObjectKey) error {
	o, err := r.own(ctx, k)
	if o == nil || err != nil {
		return err
	}
	return r.wrap("remove", k, r.delete(ctx, o))
}

// delete removes an entry as it was read: if it has changed since, it stays.
func (r *Registrar) delete(ctx context.Context, o *unstructured.Unstructured) error {
	uid, version := o.GetUID(), o.GetResourceVersion()
	err := r.entries.Namespace(o.GetNamespace()).Delete(ctx, o.GetName(), metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid, ResourceVersion: &version}})
	if err == nil {
		r.log.Info("machine is gone", zap.String("entry", o.GetNamespace()+"/"+o.GetName()))
	}
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // gone, or in other hands
	}
	return err
}

// sweep removes entries that registered themselves and that no replica looks
// after any more: their replica went away without saying goodbye.
func (r *Registrar) sweep(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	list, err := r.entries.List(ctx, metav1.ListOptions{})
	if err != nil {
		r.log.Warn("cannot look for forsaken entries of machines", zap.Error(err))
		return
	}
	now := r.cfg.Clock()
	for i := range list.Items {
		o := &list.Items[i]
		a := o.GetAnnotations()
		if a[AnnotationGroup] == "" || r.has(o) {
			continue
		}
		left := older(a[AnnotationDisconnected], now.Add(-r.cfg.Grace-sweepEvery))
		lost := r.cfg.Forsake > 0 && a[AnnotationDisconnected] == "" && older(a[AnnotationConnected], now.Add(-r.cfg.Forsake))
		if !left && !lost {
			continue
		}
		if err := r.delete(ctx, o); err != nil {
			r.log.Warn("forsaken entry of a machine stays", zap.String("entry", o.GetNamespace()+"/"+o.GetName()), zap.Error(err))
		}
	}
}

// has reports whether the machine is connected here, or was a moment ago.
func (r *Registrar) has(o *unstructured.Unstructured) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sessions[mesh.ObjectKey{Kind: mesh.KindWorkloadEntry, Namespace: o.GetNamespace(), Name: o.GetName()}] != nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// older reports whether a stamp is one, and before a time.
func older(s string, than time.Time) bool {
	at, err := time.Parse(time.RFC3339Nano, s)
	return err == nil && at.Before(than)
}
