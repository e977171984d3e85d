package mesh

import (
	"cmp"
	"time"

	"google.golang.org/protobuf/proto"
	meshconfig "istio.io/api/mesh/v1alpha1"
)

// ObjectKind is the kind of a configuration object written by users.
type ObjectKind string

// Kinds of configuration objects. Others are added with the features that use them.
const (
	KindGateway ObjectKind = "Gateway" // networking.istio.io
)

// ObjectKey identifies a configuration object within a cluster.
type ObjectKey struct {
	Kind      ObjectKind
	Namespace string
	Name      string
}

// Object is one configuration object with a decoded, validated spec. It is immutable.
type Object struct {
	Key         ObjectKey
	Origin      ObjectRef
	Labels      map[string]string
	Annotations map[string]string
	Created     time.Time
	// Version changes whenever the object does (resourceVersion or a content hash).
	Version string
	// Spec is the istio.io/api message of the kind.
	Spec proto.Message
}

// CompareObjects orders objects by age, oldest first, then by name and
// namespace: the order in which Istio lets the first win.
func CompareObjects(a, b *Object) int {
	return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Key.Name, b.Key.Name),
		cmp.Compare(a.Key.Namespace, b.Key.Namespace), cmp.Compare(a.Key.Kind, b.Key.Kind))
}

// Settings are the mesh-wide settings of the users: MeshConfig and
// MeshNetworks, with Istio's defaults filled in. They are immutable.
type Settings struct {
	Mesh     *meshconfig.MeshConfig
	Networks *meshconfig.MeshNetworks
}
