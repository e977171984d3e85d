package webhooks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.uber.org/zap"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
)

// Istio's roles allow update of validating webhook configurations, and not patch.
// An update writes the whole object, so it is read first and sent back with its
// version, as JSON: a field that this program does not know stays. What the API
// server would say of an apply, who else keeps a field, is read from the object.

// resource is the name of a kind in URLs.
func (k key) resource() string { return strings.ToLower(k.kind) + "s" }

// update does what an apply does, for those who may not patch.
func (t *term) update(ctx context.Context, k key, meta *metav1.ObjectMeta, hooks []hook, bundle []byte, enforced []string, force bool) error {
	api := t.p.cfg.Client.AdmissionregistrationV1().RESTClient()
	raw, err := asJSON(api.Get()).Resource(k.resource()).Name(k.name).Do(ctx).Raw()
	if err != nil {
		return err
	}
	o := &unstructured.Unstructured{}
	if err := o.UnmarshalJSON(raw); err != nil {
		return fmt.Errorf("decode %s %s: %w", k.kind, k.name, err)
	}
	if o.GetUID() != meta.UID {
		return apierrors.NewConflict(k.group(), k.name, errors.New("it was made anew meanwhile"))
	}
	change := map[string]bool{}
	for _, h := range hooks {
		change[h.name] = true
	}
	if !force {
		if who := keepers(o, change, bundle); len(who) > 0 {
			return keptBy(who)
		}
	}
	if err := setFields(o, change, bundle, enforced); err != nil {
		return fmt.Errorf("change %s %s: %w", k.kind, k.name, err)
	}
	if raw, err = o.MarshalJSON(); err != nil {
		return fmt.Errorf("encode %s %s: %w", k.kind, k.name, err)
	}
	return asJSON(api.Put()).Resource(k.resource()).Name(k.name).Param("fieldManager", FieldManager).
		SetHeader("Content-Type", "application/json").Body(raw).Do(ctx).Error()
}

func asJSON(r *rest.Request) *rest.Request { return r.SetHeader("Accept", "application/json") }

func (k key) group() schema.GroupResource {
	return schema.GroupResource{Group: admissionv1.GroupName, Resource: k.resource()}
}

// setFields writes the bundle into the webhooks that are to change, and
// failurePolicy Fail into those that are enforced.
func setFields(o *unstructured.Unstructured, change map[string]bool, bundle []byte, enforced []string) error {
	list, _, err := unstructured.NestedSlice(o.Object, "webhooks")
	if err != nil {
		return err
	}
	text, err := json.Marshal(bundle) // as the API writes bytes
	if err != nil {
		return err
	}
	for _, x := range list {
		w, ok := x.(map[string]any)
		name, _, _ := unstructured.NestedString(w, "name")
		if !ok || !change[name] {
			continue
		}
		if err := unstructured.SetNestedField(w, strings.Trim(string(text), `"`), "clientConfig", "caBundle"); err != nil {
			return err
		}
		if slices.Contains(enforced, name) {
			w["failurePolicy"] = string(admissionv1.Fail)
		}
	}
	return unstructured.SetNestedSlice(o.Object, list, "webhooks")
}

// keepers are the managers but us that keep another bundle in a webhook that is
// to change.
func keepers(o *unstructured.Unstructured, change map[string]bool, bundle []byte) []string {
	ours, _ := json.Marshal(bundle) // bytes are always encoded
	list, _, _ := unstructured.NestedSlice(o.Object, "webhooks")
	theirs := map[string]bool{} // names of webhooks
	for _, x := range list {
		w, _ := x.(map[string]any)
		name, _, _ := unstructured.NestedString(w, "name")
		text, _, _ := unstructured.NestedString(w, "clientConfig", "caBundle")
		theirs[name] = change[name] && text != "" && text != strings.Trim(string(ours), `"`)
	}
	var out []string
	for _, m := range o.GetManagedFields() {
		if m.Manager == FieldManager || m.FieldsV1 == nil || slices.Contains(out, m.Manager) {
			continue
		}
		for name, fields := range ownedIn(m.FieldsV1.GetRawBytes()) {
			if fields.bundle && theirs[name] {
				out = append(out, m.Manager)
				break
			}
		}
	}
	return out
}

// ownedIn tells of every webhook which of the two fields are among those of a
// manager: f:webhooks, then k: and the key of the list as JSON, then the fields
// below.
func ownedIn(fields []byte) map[string]owned {
	var set struct {
		Webhooks map[string]struct {
			ClientConfig map[string]json.RawMessage `json:"f:clientConfig"`
			Policy       json.RawMessage            `json:"f:failurePolicy"`
		} `json:"f:webhooks"`
	}
	if json.Unmarshal(fields, &set) != nil {
		return nil
	}
	out := map[string]owned{}
	for k, below := range set.Webhooks {
		var by struct{ Name string }
		text, keyed := strings.CutPrefix(k, "k:")
		if _, bundle := below.ClientConfig["f:caBundle"]; keyed && json.Unmarshal([]byte(text), &by) == nil {
			out[by.Name] = owned{bundle: bundle, policy: below.Policy != nil}
		}
	}
	return out
}

type owned struct{ bundle, policy bool }

// holdsPolicy reports whether we have applied failurePolicy of a webhook. Only our
// own managed fields are kept: see keepOurs.
func holdsPolicy(meta *metav1.ObjectMeta, hook string) bool {
	return slices.ContainsFunc(meta.ManagedFields, func(m metav1.ManagedFieldsEntry) bool {
		return m.FieldsV1 != nil && ownedIn(m.FieldsV1.GetRawBytes())[hook].policy
	})
}

// keptBy is the conflict that the API server would answer an apply with.
func keptBy(who []string) error {
	causes := make([]metav1.StatusCause, len(who))
	for i, name := range who {
		causes[i] = metav1.StatusCause{Type: metav1.CauseTypeFieldManagerConflict, Message: fmt.Sprintf("conflict with %q", name), Field: ".webhooks"}
	}
	return apierrors.NewApplyConflict(causes, "caBundle is kept by "+strings.Join(who, " and "))
}

// byUpdate writes with an update from then on, if that is allowed where a patch
// is not; denied is what the API server said of the patch.
func (t *term) byUpdate(ctx context.Context, denied error, k key, meta *metav1.ObjectMeta, hooks []hook, bundle []byte, enforced []string, force bool) error {
	err := t.update(ctx, k, meta, hooks, bundle, enforced, force)
	if apierrors.IsForbidden(err) {
		return denied
	}
	if !t.updates[k.kind] {
		t.updates[k.kind] = true
		t.p.log.Info("patching is not allowed: webhook configurations are written by update", zap.String("kind", k.kind))
	}
	return err
}
