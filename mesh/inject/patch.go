package inject

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// operation is one step of an RFC 6902 patch.
type operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"`
}

// createPatch returns the patch from one pod to another. It says no more than
// what differs: fields of a pod that this program does not know stay as they
// are, and a container that moves is not rewritten.
func createPatch(from, to *corev1.Pod) ([]byte, error) {
	a, err := toTree(from)
	if err != nil {
		return nil, err
	}
	b, err := toTree(to)
	if err != nil {
		return nil, err
	}
	ops := diffMaps("", a, b, nil)
	if ops == nil {
		ops = []operation{}
	}
	raw, err := json.Marshal(ops)
	if err != nil {
		return nil, fmt.Errorf("encode patch: %w", err)
	}
	return raw, nil
}

func toTree(pod *corev1.Pod) (map[string]any, error) {
	raw, err := json.Marshal(pod)
	if err != nil {
		return nil, fmt.Errorf("encode pod: %w", err)
	}
	tree := map[string]any{}
	if err := json.Unmarshal(raw, &tree); err != nil {
		return nil, fmt.Errorf("decode pod: %w", err)
	}
	return tree, nil
}

func diffMaps(path string, a, b map[string]any, ops []operation) []operation {
	for _, k := range slices.Sorted(maps.Keys(a)) {
		if _, ok := b[k]; !ok {
			ops = append(ops, operation{Op: "remove", Path: path + "/" + pointer(k)})
		}
	}
	for _, k := range slices.Sorted(maps.Keys(b)) {
		at := path + "/" + pointer(k)
		old := a[k]
		switch {
		case reflect.DeepEqual(old, b[k]) || b[k] == nil:
		case old == nil || isEmptyMap(old):
			// An empty map may be there in our reading of the pod only: "add" suits both.
			ops = append(ops, operation{"add", at, b[k]})
		default:
			ops = diff(at, old, b[k], ops)
		}
	}
	return ops
}

func isEmptyMap(v any) bool {
	m, ok := v.(map[string]any)
	return ok && len(m) == 0
}

func diff(path string, a, b any, ops []operation) []operation {
	switch x := a.(type) {
	case map[string]any:
		if y, ok := b.(map[string]any); ok {
			return diffMaps(path, x, y, ops)
		}
	case []any:
		if y, ok := b.([]any); ok {
			return diffLists(path, x, y, ops)
		}
	}
	if reflect.DeepEqual(a, b) {
		return ops
	}
	return append(ops, operation{"replace", path, b})
}

// diffLists compares lists of named things name by name, where those that stay
// keep their order; other lists are replaced.
func diffLists(path string, a, b []any, ops []operation) []operation {
	if reflect.DeepEqual(a, b) {
		return ops
	}
	from, to := listNames(a), listNames(b)
	if from == nil || to == nil || !sameOrder(from, to) {
		return append(ops, operation{"replace", path, b})
	}
	for i := len(from) - 1; i >= 0; i-- {
		if !slices.Contains(to, from[i]) {
			ops = append(ops, operation{Op: "remove", Path: path + "/" + strconv.Itoa(i)})
		}
	}
	for i, name := range to {
		at := path + "/" + strconv.Itoa(i)
		if old := slices.Index(from, name); old >= 0 {
			ops = diff(at, a[old], b[i], ops)
		} else {
			ops = append(ops, operation{"add", at, b[i]})
		}
	}
	return ops
}

// listNames are the names of the elements, nil if they have none or not each its own.
func listNames(list []any) []string {
	names := []string{}
	for _, x := range list {
		m, ok := x.(map[string]any)
		if !ok {
			return nil
		}
		name, ok := m["name"].(string)
		if !ok || slices.Contains(names, name) {
			return nil
		}
		names = append(names, name)
	}
	return names
}

// sameOrder: what is in both lists is in the same order in both.
func sameOrder(a, b []string) bool {
	at := -1
	for _, name := range a {
		i := slices.Index(b, name)
		if i < 0 {
			continue
		}
		if i < at {
			return false
		}
		at = i
	}
	return true
}

// pointer escapes a key for a JSON pointer.
func pointer(key string) string {
	return strings.NewReplacer("~", "~0", "/", "~1").Replace(key)
}
