package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/cespare/xxhash/v2"
	"github.com/hashicorp/go-multierror"
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
	if o, known, err := decodeValue(cluster, k, objJSON); known {
		return o, err
	}
	d, ok := lookupKind(k.Kind)
	if !ok {
		return nil, fmt.Errorf("decode object in cluster %s: kind %q is not one that is read", cluster, k.Kind)
	}
	var raw struct {
		Metadata metav1.ObjectMeta `json:"metadata"`
		Spec     json.RawMessage   `json:"spec"`
		Status   json.RawMessage   `json:"status"`
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
	o, err := d.object(ref, &raw.Metadata, spec, canonical)
	if err != nil {
		return nil, err
	}
	return withStatus(o, raw.Status), nil
}

// Review decodes and validates an object that is about to be written, for the
// one who writes it: other than in [Decode], fields that do not exist are errors,
// and what is accepted but most likely not meant is returned as warnings, also
// beside an error. The object need not have a name yet.
func Review(cluster mesh.ClusterID, k Kind, objJSON []byte) (warnings []string, err error) {
	d, ok := lookupKind(k.Kind)
	if !ok {
		return nil, fmt.Errorf("review object in cluster %s: kind %q is not one that is read", cluster, k.Kind)
	}
	top := map[string]json.RawMessage{}
	if err := json.Unmarshal(objJSON, &top); err != nil {
		return nil, fmt.Errorf("review %s in cluster %s: %w", k.Kind, cluster, err)
	}
	var meta metav1.ObjectMeta
	if raw, ok := top["metadata"]; ok {
		if err := json.Unmarshal(raw, &meta); err != nil {
			return nil, fmt.Errorf("review %s in cluster %s: %w", k.Kind, cluster, &FieldError{Field: "metadata", Message: err.Error()})
		}
	}
	ref := mesh.ObjectRef{Cluster: cluster, Kind: string(k.Kind), Namespace: meta.Namespace, Name: meta.Name}
	spec := d.newSpec()
	_, unknown, err := decodeProto(top["spec"], "spec", spec)
	if err != nil {
		return nil, fmt.Errorf("review %s: %w", ref, err)
	}
	c := d.check(&meta, spec)
	for _, f := range unknown {
		(&checker{path: f, found: c.all()}).failf("is not a field of %s; check the spelling and the level it is on", k.Kind)
	}
	for _, f := range sortedKeys(top) {
		if !slices.Contains([]string{"apiVersion", "kind", "metadata", "spec", "status"}, f) {
			(&checker{path: clip(f), found: c.all()}).failf("is not a field of %s; what is configured goes below spec", k.Kind)
		}
	}
	if err = c.err(); err != nil {
		err = fmt.Errorf("review %s: %w", ref, err)
	}
	return c.all().warns, err
}

// FieldErrors lists the faults in an error of this package, one for each field.
func FieldErrors(err error) []*FieldError {
	var several *multierror.Error
	if errors.As(err, &several) {
		var out []*FieldError
		for _, e := range several.Errors {
			out = append(out, FieldErrors(e)...)
		}
		return out
	}
	var one *FieldError
	if errors.As(err, &one) {
		return []*FieldError{one}
	}
	return nil
}

// FromTyped makes an object of one that istio.io/client-go decoded, without its
// status. The object's specification is shared, not copied: it must not be
// changed after.
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
	if err := d.check(meta, spec).err(); err != nil {
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
		Generation:  meta.GetGeneration(),
		Spec:        spec,
	}, nil
}

// check validates an object and returns all that was found.
func (d descriptor) check(meta metav1.Object, spec proto.Message) *checker {
	c := &checker{}
	validateMeta(c.at("metadata"), meta, spec)
	of := c.at("spec")
	of.namespace = meta.GetNamespace()
	d.validate(of, spec)
	return c
}

// contentVersionPrefix begins versions that are made up here.
const contentVersionPrefix = "h"

// contentVersion is a hash of everything of an object that is read but its
// status.
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
	return contentVersionPrefix + strconv.FormatUint(h.Sum64(), 16), nil
}
