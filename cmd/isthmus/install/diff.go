package install

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/pmezard/go-difflib/difflib"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// Diff tells how a cluster differs from a plan: for every object that differs a
// unified diff from what is there to what would be there. "" is no difference.
func (i *Installer) Diff(ctx context.Context, p Plan) (string, error) {
	objects, err := p.Objects()
	if err != nil {
		return "", err
	}
	dry := *i
	dry.DryRun, dry.Force = true, true
	var out strings.Builder
	for _, o := range objects {
		have, err := i.Target.get(ctx, o)
		if err != nil {
			return "", err
		}
		would, err := dry.write(ctx, enforced(o, have))
		if err != nil {
			return "", err
		}
		text, err := diffObjects(have, would)
		if err != nil {
			return "", err
		}
		out.WriteString(text)
	}
	return out.String(), nil
}

// DiffObjects compares two lists of objects, by their names.
func DiffObjects(a, b []*unstructured.Unstructured) (string, error) {
	before, after := byName(a), byName(b)
	names := slices.Collect(maps.Keys(before))
	for name := range after {
		if before[name] == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	var out strings.Builder
	for _, name := range names {
		text, err := diffObjects(before[name], after[name])
		if err != nil {
			return "", err
		}
		out.WriteString(text)
	}
	return out.String(), nil
}

func byName(objects []*unstructured.Unstructured) map[string]*unstructured.Unstructured {
	out := map[string]*unstructured.Unstructured{}
	for _, o := range objects {
		out[Describe(o)] = o
	}
	return out
}

// diffObjects compares what users wrote in two objects; nil is none.
func diffObjects(a, b *unstructured.Unstructured) (string, error) {
	before, err := bare(a)
	if err != nil {
		return "", err
	}
	after, err := bare(b)
	if err != nil || before == after {
		return "", err
	}
	name := b
	if name == nil {
		name = a
	}
	text, err := difflib.GetUnifiedDiffString(difflib.UnifiedDiff{A: difflib.SplitLines(before), B: difflib.SplitLines(after),
		FromFile: Describe(name) + " (is)", ToFile: Describe(name) + " (would be)", Context: 3})
	if err != nil {
		return "", fmt.Errorf("compare %s: %w", Describe(name), err)
	}
	return text, nil
}

// bare renders an object without what API servers add.
func bare(o *unstructured.Unstructured) (string, error) {
	if o == nil {
		return "", nil
	}
	o = o.DeepCopy()
	for _, field := range []string{"managedFields", "resourceVersion", "uid", "generation", "creationTimestamp", "selfLink"} {
		unstructured.RemoveNestedField(o.Object, "metadata", field)
	}
	unstructured.RemoveNestedField(o.Object, "status")
	text, err := yaml.Marshal(o.Object)
	if err != nil {
		return "", fmt.Errorf("render %s: %w", Describe(o), err)
	}
	return string(text), nil
}
