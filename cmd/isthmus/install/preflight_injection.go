package install

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// checkInjection looks for webhooks of somebody else that would inject the same
// pods: a pod would get two proxies, or the wrong one.
func (t *Target) checkInjection(ctx context.Context, f *Findings, objects []*unstructured.Unstructured) error {
	names := map[string]bool{}
	var own []webhook
	for _, o := range objects {
		if o.GetKind() == kindInjection {
			names[o.GetName()] = true
			own = append(own, webhooks(o)...)
		}
	}
	if len(own) == 0 {
		return nil
	}
	gvr := resourceOfKind(metav1.SchemeGroupVersion.WithKind(kindInjection))
	gvr.Group = "admissionregistration.k8s.io"
	list, err := t.dynamic.Resource(gvr).List(ctx, metav1.ListOptions{})
	if refusedAlready(err) {
		return nil // named among the rights
	}
	if err != nil {
		return fmt.Errorf("list %s in cluster %s: %w", gvr.Resource, t.Name, err)
	}
	found := false
	for i := range list.Items {
		o := &list.Items[i]
		if names[o.GetName()] {
			continue // one of the same name is taken over or has been named
		}
		for _, theirs := range webhooks(o) {
			if theirs.matchesOneOf(own) {
				found = true
				f.add(Fail, "injection", "cluster %s: webhook %s of %s injects the same pods: remove it, or leave out the tag or label that both answer to (istio.io/rev: %s)",
					t.Name, theirs.name, Describe(o), o.GetLabels()["istio.io/rev"])
			}
		}
	}
	if !found {
		f.add(OK, "injection", "nobody else injects the same pods")
	}
	return nil
}

// webhook is what decides which pods a webhook is asked about.
type webhook struct {
	name                string
	namespaces, objects any
}

func webhooks(o *unstructured.Unstructured) []webhook {
	list, _, _ := unstructured.NestedSlice(o.Object, "webhooks")
	var out []webhook
	for _, x := range list {
		if m, ok := x.(map[string]any); ok {
			name, _ := m["name"].(string)
			out = append(out, webhook{name, m["namespaceSelector"], m["objectSelector"]})
		}
	}
	return out
}

func (w webhook) matchesOneOf(list []webhook) bool {
	for _, x := range list {
		// The same name is the same purpose: webhooks of others select in ways of their own.
		if x.name == w.name && equality.Semantic.DeepEqual(x.namespaces, w.namespaces) && equality.Semantic.DeepEqual(x.objects, w.objects) {
			return true
		}
	}
	return false
}
