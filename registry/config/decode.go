package config

import (
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/protobuf/proto"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Decode reads one object of a kind from JSON in the form of an API server and
// validates it. Unknown fields are left out, as an API server prunes them;
// values of a wrong type, unknown enum names and everything that the kind's
// validation refuses are errors that name the object and, as a [FieldError],
// the field.
func Decode(cluster mesh.ClusterID, k Kind, objJSON []byte) (*mesh.Object, error) {
	d, ok := lookupKind(k.Kind)
	if !ok {
		return nil, fmt.Errorf("decode object in cluster %s: kind %q is not one that is read", cluster, k.Kind)
	}
	var raw struct {
		Metadata metav1.ObjectMeta `json:"metadata"`
		Spec     json.RawMessage   `json:"spec"`
	}
	if err := json.Unmarshal(objJSON, &raw); err != nil {
		return nil, fmt.Errorf("decode %s in cluster %s: %w", k.Kind, cluster, err)
	}
	ref := mesh.ObjectRef{Cluster: cluster, Kind: string(k.Kind), Namespace: raw.Metadata.Namespace, Name: raw.Metadata.Name}
	if ref.Name == "" {
		return nil, fmt.Errorf("decode %s: %w", ref, &FieldError{Field: "metadata.name", Message: "is empty; name the object"})
	}
	spec := d.newSpec()
	canonical, _, err := decodeProto(raw.Spec, "spec", spec)
	if err != nil {
		return nil, fmt.Errorf("decode %s: %w", ref, err)
	}
	return d.object(ref, &raw.Metadata, spec, canonical)
}

// FromTyped makes an object of one that istio.io/client-go decoded. The
// object's specification is shared, not copied: it must not be changed after.
func FromTyped(cluster mesh.ClusterID, obj runtime.Object) (*mesh.Object, error) {
	for _, d := range table() {
		meta, spec := d.typed(obj)
		if meta == nil {
			continue
		}
		ref := mesh.ObjectRef{Cluster: cluster, Kind: string(d.Kind.Kind), Namespace: meta.GetNamespace(), Name: meta.GetName()}
		return d.object(ref, meta, spec, nil)
	}
	return nil, fmt.Errorf("read object in cluster %s: type %T is not one that is read", cluster, obj)
}

// object validates a specification and puts the object together. canonical is
// the specification as canonical JSON, nil to have it made when needed.
func (d descriptor) object(ref mesh.ObjectRef, meta metav1.Object, spec proto.Message, canonical []byte) (*mesh.Object, error) {
	c := &checker{path: "spec"}
	d.validate(c, spec)
	if err := c.err(); err != nil {
		return nil, fmt.Errorf("validate %s: %w", ref, err)
	}
	version := meta.GetResourceVersion()
	if version == "" {
		var err error
		if version, err = contentVersion(meta, spec, canonical); err != nil {
			return nil, fmt.Errorf("hash %s: %w", ref, err)
		}
	}
	return &mesh.Object{
		Key:         mesh.ObjectKey{Kind: d.Kind.Kind, Namespace: ref.Namespace, Name: ref.Name},
		Origin:      ref,
		Labels:      meta.GetLabels(),
		Annotations: meta.GetAnnotations(),
		Created:     meta.GetCreationTimestamp().Time,
		Version:     version,
		Spec:        spec,
	}, nil
}

// contentVersion is a hash of everything of an object that is read.
func contentVersion(meta metav1.Object, spec proto.Message, canonical []byte) (string, error) {
	head, err := json.Marshal([]any{meta.GetLabels(), meta.GetAnnotations(), meta.GetCreationTimestamp().Time})
	if err != nil {
		return "", err
	}
	if canonical == nil {
		if canonical, err = (proto.MarshalOptions{Deterministic: true}).Marshal(spec); err != nil {
			return "", err
		}
	}
	h := xxhash.New()
	_, _ = h.Write(head) // a hash never fails to write
	_, _ = h.Write(canonical)
	return "h" + strconv.FormatUint(h.Sum64(), 16), nil
}
