package multicluster

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// weightManager is the field manager of what [WriteWeight] writes.
const weightManager = "isthmus-drain"

// WeightChange is what [WriteWeight] did.
type WeightChange struct {
	// Secret is the Secret's NAMESPACE/NAME.
	Secret string
	// Before and After are the annotation's text, "" if there is none.
	Before, After string
}

// WriteWeight annotates the remote secret that counts for a cluster with a
// weight, or takes the annotation away if it is nil. It changes nothing else of
// the secret. The client is one of the primary.
func WriteWeight(ctx context.Context, client kubernetes.Interface, namespace string, id mesh.ClusterID, percent *uint32, dryRun bool) (WeightChange, error) {
	api := client.CoreV1().Secrets(namespace)
	list, err := api.List(ctx, metav1.ListOptions{LabelSelector: SecretLabel + "=true"})
	if err != nil {
		return WeightChange{}, explain(err, "list remote secrets of namespace "+namespace, "list", "secrets", namespace)
	}
	s, err := secretOf(list.Items, id)
	if err != nil {
		return WeightChange{}, fmt.Errorf("find remote secret of cluster %s in namespace %s: %w", id, namespace, err)
	}
	out := WeightChange{Secret: namespace + "/" + s.Name, Before: s.Annotations[WeightAnnotation]}
	var value any // nil removes it
	if percent != nil {
		out.After = strconv.FormatUint(uint64(*percent), 10)
		value = out.After
	}
	if _, set := s.Annotations[WeightAnnotation]; set == (percent != nil) && out.Before == out.After {
		return out, nil
	}
	// The UID keeps a secret that was made anew meanwhile from being meant.
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": s.UID, "annotations": map[string]any{WeightAnnotation: value}}})
	if err != nil {
		return out, fmt.Errorf("encode weight of cluster %s: %w", id, err)
	}
	o := metav1.PatchOptions{FieldManager: weightManager}
	if dryRun {
		o.DryRun = []string{metav1.DryRunAll}
	}
	_, err = api.Patch(ctx, s.Name, types.MergePatchType, patch, o)
	switch {
	case apierrors.IsConflict(err):
		return out, fmt.Errorf("annotate secret %s: it was made anew in this moment, try again: %w", out.Secret, err)
	case err != nil:
		return out, explain(err, "annotate secret "+out.Secret, "patch", "secrets", namespace)
	}
	return out, nil
}

// secretOf is the Secret that counts for a cluster, as the manager decides it.
func secretOf(list []corev1.Secret, id mesh.ClusterID) (*corev1.Secret, error) {
	var claims []claim
	for i := range list {
		o := readSecret(&list[i])
		for _, e := range o.entries {
			if e.id == id {
				claims = append(claims, claim{id: e.id, origin: o.origin, content: e.content})
			}
		}
	}
	owner, ok := decide(claims).owners[id]
	if !ok {
		return nil, fmt.Errorf("no secret with label %s=true has a key %s; a primary and clusters of kubeconfig files have none: "+
			"set weights.clusters.%s in key isthmus of ConfigMap istio", SecretLabel, id, id)
	}
	i := slices.IndexFunc(list, func(s corev1.Secret) bool { return s.Name == owner.origin.Name })
	if len(list[i].Data) > 1 {
		var names []string
		for _, e := range readSecret(&list[i]).entries {
			names = append(names, e.key)
		}
		return nil, fmt.Errorf("secret %s is that of several clusters (%s), which an annotation would all concern: "+
			"set weights.clusters.%s in key isthmus of ConfigMap istio", owner.origin, strings.Join(names, ", "), id)
	}
	return &list[i], nil
}
