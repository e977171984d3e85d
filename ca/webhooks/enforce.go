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
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// Validation begins with failurePolicy Ignore, so that nobody is kept from
// writing by a control plane that does not answer yet. From when it answers
// nothing unchecked is to come in.

// enforce sets failurePolicy Fail for validation that works.
func (t *term) enforce(ctx context.Context, k key, meta *metav1.ObjectMeta, hooks []hook, bundle []byte) (again bool, err error) {
	enforced, lax := alreadyEnforced(hooks), []string(nil)
	for _, h := range hooks {
		if h.validating == nil || slices.Contains(enforced, h.name) {
			continue
		}
		if err := t.works(ctx, h.validating); err != nil {
			t.p.log.Debug("validation does not work yet, and stays lax", zap.String("webhook", h.name), zap.Error(err))
			again = true
			continue
		}
		lax = append(lax, h.name)
	}
	if len(lax) == 0 {
		return again, nil
	}
	// The bundle is ours already: what is taken over is only the policy, of who
	// installed the configuration.
	if wait, err := t.outcome(k, "set failurePolicy", t.apply(ctx, k, meta, hooks, bundle, lax, true)); err != nil {
		return wait, err
	}
	t.p.log.Info("validation works and is enforced", zap.Strings("webhooks", lax))
	return again, nil
}

// giveUp gives the policy up that we have set: whoever keeps it makes the next helm
// upgrade, which says Ignore again, a conflict. Nobody owns it then, and the API
// server's own default is Fail.
func (t *term) giveUp(ctx context.Context, k key, meta *metav1.ObjectMeta, hooks []hook, bundle []byte) (again bool, err error) {
	if t.updates[k.kind] || !slices.ContainsFunc(hooks, func(h hook) bool { return h.held }) {
		return false, nil
	}
	return t.outcome(k, "give up failurePolicy", t.apply(ctx, k, meta, hooks, bundle, nil, true))
}

// alreadyEnforced are the validating webhooks that refuse what they cannot check.
func alreadyEnforced(hooks []hook) []string {
	var out []string
	for _, h := range hooks {
		if h.validating != nil && (h.validating.FailurePolicy == nil || *h.validating.FailurePolicy == admissionv1.Fail) {
			out = append(out, h.name)
		}
	}
	return out
}

// errAdmitted says that an object that is invalid was let through.
var errAdmitted = errors.New("an invalid object was admitted: the webhook was not asked, or did not answer")

// works tells whether validation by a webhook works. Another webhook may be asked
// about the same object, as that of Istio's base chart is about every object; of
// several that refuse, the API server names whichever was first. One that is
// called at the same address and verified with the same bundle speaks for both.
func (t *term) works(ctx context.Context, hook *admissionv1.ValidatingWebhook) error {
	if t.p.cfg.Works != nil {
		return t.p.cfg.Works(ctx, hook)
	}
	by, err := t.p.try(ctx, hook)
	if err != nil || by == hook.Name || slices.ContainsFunc(t.stores[kindValidating].List(), func(x any) bool {
		o, ok := x.(*admissionv1.ValidatingWebhookConfiguration)
		return ok && slices.ContainsFunc(o.Webhooks, func(w admissionv1.ValidatingWebhook) bool {
			return w.Name == by && equality.Semantic.DeepEqual(w.ClientConfig, hook.ClientConfig)
		})
	}) {
		return err
	}
	return fmt.Errorf("try validation: it was webhook %s that refused", by)
}

// try asks the API server to take a Gateway without servers, which only
// validation refuses, and returns the name of the webhook that did. It is a dry
// run: nothing is written.
func (p *Patcher) try(ctx context.Context, hook *admissionv1.ValidatingWebhook) (by string, err error) {
	set, err := p.labelsFor(hook)
	if err != nil {
		return "", err
	}
	body, err := json.Marshal(map[string]any{
		"apiVersion": "networking.istio.io/v1", "kind": "Gateway",
		"metadata": map[string]any{"name": "isthmus-tries-validation", "namespace": p.cfg.SystemNamespace, "labels": set},
		"spec":     map[string]any{},
	})
	if err != nil {
		return "", fmt.Errorf("encode probe: %w", err)
	}
	err = p.cfg.Client.Discovery().RESTClient().Post().
		AbsPath("/apis/networking.istio.io/v1/namespaces/"+p.cfg.SystemNamespace+"/gateways").
		Param("dryRun", metav1.DryRunAll).SetHeader("Content-Type", "application/json").Body(body).Do(ctx).Error()
	if err == nil {
		return "", errAdmitted
	}
	if by, ok := refusedBy(err.Error()); ok {
		return by, nil
	}
	return "", fmt.Errorf("try validation: %w", err)
}

// refusedBy is the webhook that refused an object, as the API server says it.
func refusedBy(message string) (name string, ok bool) {
	_, rest, _ := strings.Cut(message, `admission webhook "`)
	name, _, ok = strings.Cut(rest, `" denied the request`)
	return name, ok
}

// labelsFor are labels of an object that a webhook is asked about.
func (p *Patcher) labelsFor(hook *admissionv1.ValidatingWebhook) (map[string]string, error) {
	selector, err := metav1.LabelSelectorAsSelector(hook.ObjectSelector)
	if err != nil {
		return nil, fmt.Errorf("read object selector of webhook %s: %w", hook.Name, err)
	}
	for _, set := range []map[string]string{nil, {RevisionLabel: p.cfg.Revision}} {
		if hook.ObjectSelector == nil || selector.Matches(labels.Set(set)) {
			return set, nil
		}
	}
	return nil, fmt.Errorf("webhook %s selects objects neither by no label nor by %s=%s", hook.Name, RevisionLabel, p.cfg.Revision)
}
