package inject

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ObjectResult is what became of an object with a pod in it.
type ObjectResult struct {
	Decision
	// Kind, Namespace and Name say which object.
	Kind, Namespace, Name string
	// Object is the object with its pod injected; the one that was given if it is
	// not injected.
	Object map[string]any
	// Warnings are for the user.
	Warnings []string
}

// podPath is where kinds have their pod, nil for a kind without one.
func podPath(kind string) []string {
	switch kind {
	case "Pod":
		return []string{}
	case "Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Job", "DeploymentConfig", "Rollout":
		return []string{"spec", "template"}
	case "CronJob":
		return []string{"spec", "jobTemplate", "spec", "template"}
	case "PodTemplate":
		return []string{"template"}
	}
	return nil
}

// InjectObject injects the pod in an object: a Pod, or any of the kinds that make
// pods. It returns nil for objects without a pod. The request gives what is
// known of the mesh; its pod, namespace and owner come from the object. The
// object that was given does not change, and fields that this program does not
// know stay as they are.
func (c *Config) InjectObject(object map[string]any, r Request) (*ObjectResult, error) {
	kind, _ := object["kind"].(string)
	path := podPath(kind)
	if path == nil {
		return nil, nil
	}
	object = copyJSON(object)
	var head metav1.PartialObjectMetadata
	if err := convert(object, &head); err != nil {
		return nil, fmt.Errorf("read %s: %w", kind, err)
	}
	out := &ObjectResult{Kind: kind, Namespace: head.Namespace, Name: head.Name, Object: object}
	if out.Namespace == "" {
		out.Namespace = r.Namespace
	}
	template, err := descend(object, path)
	if err != nil {
		return nil, fmt.Errorf("read %s %s/%s: %w", kind, out.Namespace, out.Name, err)
	}
	pod := &corev1.Pod{}
	if err := convert(template, pod); err != nil {
		return nil, fmt.Errorf("read pod of %s %s/%s: %w", kind, out.Namespace, out.Name, err)
	}
	r.Pod, r.Namespace = pod, out.Namespace
	if kind != "Pod" {
		r.Owner = &Owner{TypeMeta: head.TypeMeta, Name: head.Name, Namespace: out.Namespace}
	}
	result, err := c.Inject(r)
	if err != nil {
		return nil, err
	}
	out.Decision, out.Warnings = result.Decision, result.Warnings
	if !result.Inject {
		return out, nil
	}
	if err := applyPatch(template, result.Patch); err != nil {
		return nil, fmt.Errorf("inject %s %s/%s: %w", kind, out.Namespace, out.Name, err)
	}
	return out, nil
}

func convert(from map[string]any, to any) error {
	raw, err := json.Marshal(from)
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, to)
}

func descend(object map[string]any, path []string) (map[string]any, error) {
	at := object
	for i, key := range path {
		next, ok := at[key].(map[string]any)
		if !ok {
			return nil, fmt.Errorf("%s: there is none", strings.Join(path[:i+1], "."))
		}
		at = next
	}
	return at, nil
}

// applyPatch applies a patch of createPatch to the object it was made for.
func applyPatch(object map[string]any, patch []byte) error {
	var ops []operation
	if err := json.Unmarshal(patch, &ops); err != nil {
		return fmt.Errorf("read patch: %w", err)
	}
	for _, op := range ops {
		parts := strings.Split(op.Path, "/")[1:]
		for i := range parts {
			parts[i] = strings.NewReplacer("~1", "/", "~0", "~").Replace(parts[i])
		}
		if _, err := applyAt(object, parts, op); err != nil {
			return fmt.Errorf("apply patch at %s: %w", op.Path, err)
		}
	}
	return nil
}

// applyAt applies an operation below a value and returns the value as it is then.
func applyAt(at any, parts []string, op operation) (any, error) {
	key, last := parts[0], len(parts) == 1
	switch x := at.(type) {
	case map[string]any:
		switch {
		case last && op.Op == "remove":
			delete(x, key)
		case last:
			x[key] = op.Value
		default:
			sub, err := applyAt(x[key], parts[1:], op)
			if err != nil {
				return nil, err
			}
			x[key] = sub
		}
		return x, nil
	case []any:
		i, err := strconv.Atoi(key)
		if err != nil || i < 0 || i > len(x) || i == len(x) && (!last || op.Op != "add") {
			return nil, fmt.Errorf("no element %s of %d", key, len(x))
		}
		switch {
		case last && op.Op == "remove":
			return slices.Delete(x, i, i+1), nil
		case last && op.Op == "add":
			return slices.Insert(x, i, op.Value), nil
		case last:
			x[i] = op.Value
		default:
			if x[i], err = applyAt(x[i], parts[1:], op); err != nil {
				return nil, err
			}
		}
		return x, nil
	}
	return nil, fmt.Errorf("no %q in a %T", key, at)
}
