package install

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
)

// webhookManager is under whose name the control plane writes into webhook
// configurations.
const webhookManager = "isthmus-webhooks"

// cede removes the webhooks that the plan does not have any more from an object
// that the control plane has written into: what it owns of them would stay, and
// would not be valid alone.
func (i *Installer) cede(ctx context.Context, have, want *unstructured.Unstructured) error {
	if have == nil || !strings.HasSuffix(want.GetKind(), "WebhookConfiguration") || !slices.Contains(managers(have), webhookManager) {
		return nil
	}
	there, _, _ := unstructured.NestedSlice(have.Object, "webhooks")
	wanted, _, _ := unstructured.NestedSlice(want.Object, "webhooks")
	keep := slices.DeleteFunc(slices.Clone(there), func(x any) bool {
		return !slices.ContainsFunc(wanted, func(y any) bool { return nameOf(x) == nameOf(y) })
	})
	if len(keep) == len(there) {
		return nil
	}
	return i.replaceWebhooks(ctx, have, keep)
}

func nameOf(x any) string {
	w, _ := x.(map[string]any)
	name, _ := w["name"].(string)
	return name
}

// replaceWebhooks leaves an object with some of its webhooks.
func (i *Installer) replaceWebhooks(ctx context.Context, have *unstructured.Unstructured, keep []any) error {
	patch, err := json.Marshal([]map[string]any{
		{"op": "test", "path": "/metadata/resourceVersion", "value": have.GetResourceVersion()},
		{"op": "replace", "path": "/webhooks", "value": keep},
	})
	if err != nil {
		return fmt.Errorf("encode patch of %s: %w", Describe(have), err)
	}
	options := metav1.PatchOptions{FieldManager: FieldManager}
	if i.DryRun {
		options.DryRun = []string{metav1.DryRunAll}
	}
	if _, err := i.Target.api(have).Patch(ctx, have.GetName(), types.JSONPatchType, patch, options); err != nil {
		return i.Target.explain(err, "change", "patch", have)
	}
	return nil
}
