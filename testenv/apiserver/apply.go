package apiserver

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
)

// fieldManager owns the fields that Apply sets.
const fieldManager = "isthmus-testenv"

// Apply applies objects on the server (server-side apply, by force), however
// often. It takes what kubectl prints: several documents, lists, and objects
// with the fields that only a server sets. What others need comes first
// (namespaces, custom resource definitions, service accounts), else the order
// is kept. An object without a namespace goes to "default". A status is
// applied too, to the status subresource. Objects that are not ready for use
// at once are waited for: new kinds until they are served, the namespace of a
// pod until it has the ServiceAccount.
func (c *Cluster) Apply(ctx context.Context, yaml []byte) error {
	objects, err := decode(yaml)
	if err != nil {
		return fmt.Errorf("decode objects for %s: %w", c.cfg.Name, err)
	}
	return c.ApplyObjects(ctx, objects...)
}

// ApplyObjects is Apply for objects at hand, which it does not change.
func (c *Cluster) ApplyObjects(ctx context.Context, objects ...*unstructured.Unstructured) error {
	objects = slices.SortedStableFunc(slices.Values(objects), func(a, b *unstructured.Unstructured) int {
		return cmp.Compare(rank(a.GetKind()), rank(b.GetKind()))
	})
	established := false
	for _, object := range objects {
		if !established && rank(object.GetKind()) > rank(kindCRD) {
			if err := c.waitEstablished(ctx, objects); err != nil {
				return err
			}
			established = true
		}
		if err := c.applyOne(ctx, object.DeepCopy()); err != nil {
			return fmt.Errorf("apply %s %s/%s in %s: %w",
				object.GetKind(), object.GetNamespace(), object.GetName(), c.cfg.Name, err)
		}
	}
	if !established {
		return c.waitEstablished(ctx, objects)
	}
	return nil
}

const kindCRD = "CustomResourceDefinition"

// rank orders kinds by what needs what.
func rank(kind string) int {
	switch kind {
	case "Namespace":
		return 0
	case kindCRD:
		return 1
	case "ServiceAccount", "Node":
		return 2
	default:
		return 3
	}
}

// applyOne applies one object, which it may change, and its status.
func (c *Cluster) applyOne(ctx context.Context, object *unstructured.Unstructured) error {
	resource, err := c.resource(object)
	if err != nil {
		return err
	}
	for _, field := range []string{"managedFields", "resourceVersion", "uid", "creationTimestamp", "generation", "selfLink"} {
		unstructured.RemoveNestedField(object.Object, "metadata", field)
	}
	status, hasStatus, err := unstructured.NestedMap(object.Object, "status")
	if err != nil {
		return fmt.Errorf("read status: %w", err)
	}
	unstructured.RemoveNestedField(object.Object, "status")
	opts := metav1.ApplyOptions{FieldManager: fieldManager, Force: true}
	var refused error
	err = poll(ctx, func(ctx context.Context) (bool, error) {
		_, err := resource.Apply(ctx, object.GetName(), object, opts)
		if soon(object, err) {
			refused = err
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		return errors.Join(err, refused)
	}
	if !hasStatus || len(status) == 0 || object.GetKind() == kindCRD {
		return nil
	}
	return applyStatus(ctx, resource, object, status)
}

// applyStatus applies the status alone, where the kind has a subresource.
func applyStatus(
	ctx context.Context, resource dynamic.ResourceInterface, object *unstructured.Unstructured, status map[string]any,
) error {
	bare := &unstructured.Unstructured{}
	bare.SetGroupVersionKind(object.GroupVersionKind())
	bare.SetName(object.GetName())
	bare.SetNamespace(object.GetNamespace())
	bare.Object["status"] = status
	opts := metav1.ApplyOptions{FieldManager: fieldManager, Force: true}
	_, err := resource.ApplyStatus(ctx, object.GetName(), bare, opts)
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsMethodNotSupported(err) {
		return fmt.Errorf("apply status: %w", err)
	}
	return nil
}

// soon says that an apply is refused only because the pod's ServiceAccount is
// not there yet; a controller makes that of a new namespace.
func soon(object *unstructured.Unstructured, err error) bool {
	return apierrors.IsForbidden(err) && object.GetKind() == "Pod" &&
		strings.Contains(err.Error(), "error looking up service account")
}

// resource finds the REST endpoint of an object's kind. Where the kind is not
// known, it asks the server anew.
func (c *Cluster) resource(object *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	kind := object.GroupVersionKind()
	mapping, err := c.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if meta.IsNoMatchError(err) {
		c.mapper.Reset()
		mapping, err = c.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	}
	if err != nil {
		return nil, fmt.Errorf("find resource of %s: %w", kind, err)
	}
	if mapping.Scope.Name() == meta.RESTScopeNameRoot {
		return c.dynamic.Resource(mapping.Resource), nil
	}
	if object.GetNamespace() == "" {
		object.SetNamespace(metav1.NamespaceDefault)
	}
	return c.dynamic.Resource(mapping.Resource).Namespace(object.GetNamespace()), nil
}

// waitEstablished waits until the server serves the definitions among the
// objects and says so in discovery.
func (c *Cluster) waitEstablished(ctx context.Context, objects []*unstructured.Unstructured) error {
	definitions := c.dynamic.Resource(schema.GroupVersionResource{
		Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions",
	})
	for _, object := range objects {
		if object.GetKind() != kindCRD {
			continue
		}
		err := poll(ctx, func(ctx context.Context) (bool, error) {
			got, err := definitions.Get(ctx, object.GetName(), metav1.GetOptions{})
			if err != nil || !isEstablished(got) {
				return false, err
			}
			return c.discovered(got)
		})
		if err != nil {
			return fmt.Errorf("wait for definition %s in %s: %w", object.GetName(), c.cfg.Name, err)
		}
	}
	return nil
}

// discovered says whether discovery has every version of a definition.
func (c *Cluster) discovered(definition *unstructured.Unstructured) (bool, error) {
	group, _, _ := unstructured.NestedString(definition.Object, "spec", "group")
	plural, _, _ := unstructured.NestedString(definition.Object, "spec", "names", "plural")
	versions, _, _ := unstructured.NestedSlice(definition.Object, "spec", "versions")
	for _, version := range versions {
		name, _, _ := unstructured.NestedString(version.(map[string]any), "name")
		list, err := c.client.Discovery().ServerResourcesForGroupVersion(group + "/" + name)
		if apierrors.IsNotFound(err) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("discover resources: %w", err)
		}
		if !slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Name == plural }) {
			return false, nil
		}
	}
	return true, nil
}

// isEstablished reads the condition of a definition.
func isEstablished(definition *unstructured.Unstructured) bool {
	conditions, _, _ := unstructured.NestedSlice(definition.Object, "status", "conditions")
	return slices.ContainsFunc(conditions, func(c any) bool {
		condition, ok := c.(map[string]any)
		return ok && condition["type"] == "Established" && condition["status"] == "True"
	})
}

// decode reads YAML or JSON documents; lists are taken apart.
func decode(raw []byte) ([]*unstructured.Unstructured, error) {
	decoder := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader(raw), 4096)
	var objects []*unstructured.Unstructured
	for document := 1; ; document++ {
		object := &unstructured.Unstructured{}
		err := decoder.Decode(&object.Object)
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read document %d: %w", document, err)
		}
		if len(object.Object) == 0 {
			continue
		}
		if !object.IsList() {
			objects = append(objects, object)
			continue
		}
		err = object.EachListItem(func(item runtime.Object) error {
			objects = append(objects, item.(*unstructured.Unstructured))
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("read list in document %d: %w", document, err)
		}
	}
}
