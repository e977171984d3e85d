package deploy

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/registry/gatewayapi"
)

// maxOverlay bounds one overlay, in bytes.
const maxOverlay = 64 << 10

// overlay is a ConfigMap with changes to objects.
type overlay struct {
	name string
	// trusted: its author may change anything.
	trusted bool
	trees   map[string]map[string]any
}

// overlays are in the order in which they are laid over objects.
type overlays []overlay

// overlays reads what users want to have changed: the defaults of the class, then
// the Gateway's own parameters.
func (m *maker) overlays() (overlays, error) {
	var out overlays
	for _, x := range []struct {
		from    *corev1.ConfigMap
		trusted bool
	}{{m.Class, true}, {m.Parameters, false}} {
		if x.from == nil {
			continue
		}
		o := overlay{name: fmt.Sprintf("ConfigMap %s/%s", x.from.Namespace, x.from.Name), trusted: x.trusted, trees: map[string]map[string]any{}}
		for _, key := range sortedKeys(x.from.Data) {
			tree, err := readOverlay(key, x.from.Data[key])
			if err == nil && !x.trusted {
				err = judge(key, tree)
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %s: %w", o.name, key, err)
			}
			o.trees[key] = tree
		}
		out = append(out, o)
	}
	return out, nil
}

func readOverlay(key, text string) (map[string]any, error) {
	all := kinds()
	if !slices.ContainsFunc(all, func(k kind) bool { return k.key == key }) {
		names := make([]string, len(all))
		for i, k := range all {
			names[i] = k.key
		}
		return nil, fmt.Errorf("there is nothing of that name to change: want one of %v", names)
	}
	if len(text) > maxOverlay {
		return nil, fmt.Errorf("has %d bytes, %d are the most", len(text), maxOverlay)
	}
	raw, err := yaml.YAMLToJSONStrict([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("is no YAML: %w", err)
	}
	var tree map[string]any
	if err := json.Unmarshal(raw, &tree); err != nil {
		return nil, errors.New("is no map of fields")
	}
	if tree == nil {
		tree = map[string]any{}
	}
	return tree, nil
}

// have reports whether anybody asks for changes of a kind.
func (o overlays) have(key string) bool {
	return slices.ContainsFunc(o, func(x overlay) bool { return x.trees[key] != nil })
}

// apply lays all overlays over an object.
func (o overlays) apply(k kind, object map[string]any) (map[string]any, error) {
	for _, x := range o {
		if x.trees[k.key] == nil {
			continue
		}
		next, err := lay(k, object, x.trees[k.key])
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", x.name, k.key, err)
		}
		object = next
	}
	raw, err := json.Marshal(object)
	if err != nil {
		return nil, fmt.Errorf("encode object: %w", err)
	}
	out := map[string]any{}
	if err := utiljson.Unmarshal(raw, &out); err != nil { // whole numbers are integers
		return nil, fmt.Errorf("encode object: %w", err)
	}
	return out, nil
}

// lay lays one overlay over an object by the rules of strategic merge patches.
func lay(k kind, object, tree map[string]any) (map[string]any, error) {
	lookup, err := strategicpatch.NewPatchMetaFromStruct(k.empty())
	if err != nil {
		return nil, fmt.Errorf("read fields of %s: %w", k.Kind, err)
	}
	before := found(object)
	next, err := strategicpatch.StrategicMergeMapPatchUsingLookupPatchMeta(runtime.DeepCopyJSON(object), runtime.DeepCopyJSON(tree), lookup)
	if err != nil {
		return nil, fmt.Errorf("cannot be laid over the object: %w", err)
	}
	for _, name := range sortedKeys(before) {
		if after := found(next)[name]; !reflect.DeepEqual(before[name], after) {
			return nil, fmt.Errorf("%s would become %s, but it is what the object is found by", name, short(after))
		}
	}
	var clean map[string]any
	raw, err := json.Marshal(next)
	if err == nil {
		err = utiljson.Unmarshal(raw, &clean)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot be laid over the object: %w", err)
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(clean, k.empty(), true); err != nil {
		return nil, fmt.Errorf("makes no %s: %w", k.Kind, err)
	}
	return next, nil
}

func short(v any) string {
	raw, _ := json.Marshal(v)
	return string(raw[:min(len(raw), 100)])
}

// found lists what an object, and what belongs to it, is found by: no overlay may
// change that.
func found(object map[string]any) map[string]any {
	out := map[string]any{"apiVersion": object["apiVersion"], "kind": object["kind"]}
	metadata, _ := object["metadata"].(map[string]any)
	rest := maps.Clone(metadata)
	delete(rest, "labels")
	delete(rest, "annotations")
	out["metadata"] = rest
	out["status"] = object["status"]
	for _, path := range [][]string{{"spec", "selector"}, {"spec", "scaleTargetRef"}, {"spec", "template", "spec", "serviceAccountName"}, {"spec", "template", "spec", "serviceAccount"}} {
		out[dotted(path)], _, _ = unstructured.NestedFieldNoCopy(object, path...)
	}
	for _, at := range [][]string{{"metadata", "labels"}, {"spec", "template", "metadata", "labels"}} {
		for _, key := range []string{gatewayapi.LabelGateway, gatewayapi.LabelClass, gatewayapi.LabelManaged, labelInject, labelRevision} {
			path := append(slices.Clone(at), key)
			out[dotted(path)], _, _ = unstructured.NestedFieldNoCopy(object, path...)
		}
	}
	return out
}

func dotted(path []string) string {
	out := path[0]
	for _, p := range path[1:] {
		out += "." + p
	}
	return out
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
