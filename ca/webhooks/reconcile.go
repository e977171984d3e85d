package webhooks

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"go.uber.org/zap"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// istiodManager is under whose name istiod writes bundles. An installation that
// has switched from it still names it as their owner.
const istiodManager = "pilot-discovery"

// hook is what we look at of a webhook, injecting or validating.
type hook struct {
	name   string
	bundle []byte
	// validating is nil for injection.
	validating *admissionv1.ValidatingWebhook
	// held: we have applied its failurePolicy, and own it.
	held bool
}

// reconcile brings one object into order. again asks for another look later.
func (t *term) reconcile(ctx context.Context, k key) (again bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	meta, hooks, there := t.read(k)
	if !there {
		t.forget(k)
		return false, nil
	}
	bundle := t.p.cfg.Bundle()
	if len(bundle) == 0 || len(hooks) == 0 {
		return false, nil
	}
	if theirs := foreign(hooks, bundle); theirs != "" || slices.ContainsFunc(hooks, func(h hook) bool { return len(h.bundle) == 0 }) {
		return t.write(ctx, k, meta, hooks, bundle, theirs)
	}
	delete(t.refused, k)
	delete(t.taken, k)
	if again, err := t.enforce(ctx, k, meta, hooks, bundle); again || err != nil {
		return again, err
	}
	if again, err := t.giveUp(ctx, k, meta, hooks, bundle); again || err != nil {
		return again, err
	}
	t.tell(k, "")
	return false, nil
}

// forget drops what is known of an object that is gone.
func (t *term) forget(k key) {
	if t.told[k] != "" {
		t.tell(k, "")
	}
	delete(t.refused, k)
	delete(t.taken, k)
}

// read returns an object as it was last seen, with those of its webhooks that
// are ours.
func (t *term) read(k key) (*metav1.ObjectMeta, []hook, bool) {
	obj, there, err := t.stores[k.kind].GetByKey(k.name)
	if err != nil || !there {
		return nil, nil, false
	}
	var hooks []hook
	switch o := obj.(type) {
	case *admissionv1.MutatingWebhookConfiguration:
		for i := range o.Webhooks {
			if w := &o.Webhooks[i]; strings.HasSuffix(w.Name, InjectionSuffix) {
				hooks = append(hooks, hook{name: w.Name, bundle: w.ClientConfig.CABundle})
			}
		}
		return &o.ObjectMeta, hooks, true
	case *admissionv1.ValidatingWebhookConfiguration:
		for i := range o.Webhooks {
			if w := &o.Webhooks[i]; strings.HasSuffix(w.Name, ValidationSuffix) {
				hooks = append(hooks, hook{name: w.Name, bundle: w.ClientConfig.CABundle, validating: w, held: holdsPolicy(&o.ObjectMeta, w.Name)})
			}
		}
		return &o.ObjectMeta, hooks, true
	}
	return nil, nil, false
}

// foreign are the bundles that differ from ours and are not empty, as text.
func foreign(hooks []hook, bundle []byte) string {
	var out []byte
	for _, h := range hooks {
		if len(h.bundle) > 0 && !bytes.Equal(h.bundle, bundle) {
			out = append(append(out, h.bundle...), 0)
		}
	}
	return string(out)
}

// write writes the bundle. What another manager insists on is left to it, unless
// that is istiod, whose place we have taken: once, because if it comes back it
// still runs.
func (t *term) write(ctx context.Context, k key, meta *metav1.ObjectMeta, hooks []hook, bundle []byte, theirs string) (bool, error) {
	now := refusal{theirs: theirs, ours: string(bundle)}
	if t.refused[k] == now && theirs != "" {
		return false, nil // told already
	}
	err := t.apply(ctx, k, meta, hooks, bundle, nil, theirs == "")
	if apierrors.HasStatusCause(err, metav1.CauseTypeFieldManagerConflict) {
		who := slices.DeleteFunc(conflicting(err), func(name string) bool { return name == FieldManager }) // an update of ours
		switch {
		case len(who) == 0:
			err = t.apply(ctx, k, meta, hooks, bundle, nil, true)
		case slices.Equal(who, []string{istiodManager}) && !t.taken[k]:
			t.taken[k] = true
			t.p.log.Info("taking webhook configuration over from istiod", zap.String("object", k.name))
			err = t.apply(ctx, k, meta, hooks, bundle, nil, true)
		default:
			t.refused[k] = now
			t.failed(k, failedConflict)
			return false, fmt.Errorf("the API server verifies this control plane with a bundle that %s keeps, and it is not that of the mesh's roots: "+
				"take caBundle out of what %s writes, or stop it; nothing is overwritten", strings.Join(who, " and "), who[0])
		}
	}
	return t.outcome(k, "write the bundle", err)
}

// outcome judges an error of the API server. An object that is gone or has
// changed meanwhile comes again by its watch event.
func (t *term) outcome(k key, what string, err error) (again bool, _ error) {
	switch {
	case err == nil, apierrors.IsNotFound(err), apierrors.IsConflict(err):
		return false, nil
	case apierrors.IsForbidden(err):
		t.failed(k, failedForbidden)
		return true, fmt.Errorf("%s: not allowed: grant verb patch (or update) on %ss.admissionregistration.k8s.io in cluster %s: %w",
			what, strings.ToLower(k.kind), t.p.cfg.Cluster, err)
	}
	t.failed(k, failedOther)
	return true, fmt.Errorf("%s: %w", what, err)
}

func (t *term) failed(k key, reason string) {
	t.p.cfg.Metrics.failures.WithLabelValues(string(t.p.cfg.Cluster), k.name, reason).Inc()
}

// conflicting names the managers that a conflict is with.
func conflicting(err error) []string {
	var out []string
	status, ok := err.(apierrors.APIStatus) //nolint:errorlint // what the client returns is not wrapped
	if !ok || status.Status().Details == nil {
		return []string{"another manager"}
	}
	for _, cause := range status.Status().Details.Causes {
		// conflict with "NAME" using ..., or: conflict with "NAME": FIELD
		_, rest, _ := strings.Cut(cause.Message, `"`)
		if name, _, found := strings.Cut(rest, `"`); found && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	if len(out) == 0 {
		return []string{"another manager"}
	}
	return out
}

// apply writes the bundle into our webhooks of one object, and failurePolicy
// Fail into those that are to be enforced. The UID keeps an object from being made
// that was deleted meanwhile.
func (t *term) apply(ctx context.Context, k key, meta *metav1.ObjectMeta, hooks []hook, bundle []byte, enforced []string, force bool) error {
	t.p.cfg.Metrics.attempts.WithLabelValues(string(t.p.cfg.Cluster), k.name).Inc()
	if t.updates[k.kind] {
		return t.update(ctx, k, meta, hooks, bundle, enforced, force)
	}
	err := t.patch(ctx, k, meta, hooks, bundle, enforced, force)
	if apierrors.IsForbidden(err) {
		return t.byUpdate(ctx, err, k, meta, hooks, bundle, enforced, force)
	}
	return err
}

func (t *term) patch(ctx context.Context, k key, meta *metav1.ObjectMeta, hooks []hook, bundle []byte, enforced []string, force bool) error {
	list := make([]map[string]any, 0, len(hooks))
	for _, h := range hooks {
		w := map[string]any{"name": h.name, "clientConfig": map[string]any{"caBundle": bundle}}
		if slices.Contains(enforced, h.name) {
			w["failurePolicy"] = admissionv1.Fail
		}
		list = append(list, w)
	}
	patch, err := json.Marshal(map[string]any{
		"apiVersion": admissionv1.SchemeGroupVersion.String(), "kind": k.kind,
		"metadata": map[string]any{"name": k.name, "uid": meta.UID}, "webhooks": list,
	})
	if err != nil {
		return fmt.Errorf("encode patch of %s %s: %w", k.kind, k.name, err)
	}
	options := metav1.PatchOptions{FieldManager: FieldManager, Force: &force}
	api := t.p.cfg.Client.AdmissionregistrationV1()
	if k.kind == kindMutating {
		_, err = api.MutatingWebhookConfigurations().Patch(ctx, k.name, types.ApplyPatchType, patch, options)
	} else {
		_, err = api.ValidatingWebhookConfigurations().Patch(ctx, k.name, types.ApplyPatchType, patch, options)
	}
	return err
}
