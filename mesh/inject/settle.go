package inject

import (
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
)

// The API server fills in defaults before it asks a webhook again. What follows
// keeps injection from taking them out.

// dropVoidSources takes out the sources of volumes that a template gives as
// nothing, unless an earlier template gave something: that is what it undoes.
func dropVoidSources(overlay map[string]any, template *corev1.Pod) {
	spec, _ := overlay["spec"].(map[string]any)
	volumes, _ := spec["volumes"].([]any)
	for _, v := range volumes {
		volume, _ := v.(map[string]any)
		for key, source := range volume {
			if source == nil && !hasSource(template, volume["name"], key) {
				delete(volume, key)
			}
		}
	}
}

func hasSource(pod *corev1.Pod, name any, key string) bool {
	for i := range pod.Spec.Volumes {
		if pod.Spec.Volumes[i].Name != name {
			continue
		}
		m := map[string]any{}
		raw, err := json.Marshal(pod.Spec.Volumes[i])
		return err == nil && json.Unmarshal(raw, &m) == nil && m[key] != nil
	}
	return false
}

// settle returns a pod that was injected again, where lists that say no more
// than they did before stay as they were, defaults included.
func settle(was, is *corev1.Pod) (*corev1.Pod, error) {
	a, err := toTree(was)
	if err != nil {
		return nil, err
	}
	b, err := toTree(is)
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(settled(a, b))
	if err != nil {
		return nil, fmt.Errorf("encode pod: %w", err)
	}
	out := &corev1.Pod{}
	if err := json.Unmarshal(raw, out); err != nil {
		return nil, fmt.Errorf("decode pod: %w", err)
	}
	return out, nil
}

func settled(was, is any) any {
	switch x := is.(type) {
	case map[string]any:
		old, _ := was.(map[string]any)
		for k := range x {
			if o, ok := old[k]; ok {
				x[k] = settled(o, x[k])
			}
		}
	case []any:
		old, _ := was.([]any)
		if named := listNames(x); named != nil {
			for i, name := range named {
				for j, other := range listNames(old) {
					if name == other {
						x[i] = settled(old[j], x[i])
					}
				}
			}
		} else if covers(old, x) {
			return old
		}
	}
	return is
}

// covers reports whether a value says all that another says.
func covers(was, is any) bool {
	switch x := is.(type) {
	case map[string]any:
		old, ok := was.(map[string]any)
		for k, v := range x {
			if o, there := old[k]; !there || !covers(o, v) {
				return false
			}
		}
		return ok
	case []any:
		old, ok := was.([]any)
		if !ok || len(old) != len(x) {
			return false
		}
		for i := range x {
			if !covers(old[i], x[i]) {
				return false
			}
		}
		return true
	}
	return was == is
}
