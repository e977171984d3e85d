package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/cespare/xxhash/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// The kinds of the Kubernetes Gateway API are Go structs, not messages: an
// object holds a pointer to one as its value. Their resource definitions check
// what they hold; what cannot be meant is told in the status of the object
// (registry/gatewayapi), so only what is no such object is refused here.

// valueKind is all the package knows of a kind of the Gateway API.
type valueKind struct {
	Kind
	// versions are those with the same specification, newest first.
	versions []string
	newSpec  func() any
}

// gatewayTable lists the kinds of the Gateway API that are read.
func gatewayTable() []valueKind {
	kind := func(k mesh.ObjectKind, resource string, newSpec func() any, older ...string) valueKind {
		return valueKind{Kind{Kind: k, Group: gatewayv1.GroupName, Version: "v1", Resource: resource}, append([]string{"v1"}, older...), newSpec}
	}
	return []valueKind{
		kind(mesh.KindBackendTLSPolicy, "backendtlspolicies", func() any { return &gatewayv1.BackendTLSPolicySpec{} }, "v1alpha3"),
		kind(mesh.KindGatewayAPIGateway, "gateways", func() any { return &gatewayv1.GatewaySpec{} }, "v1beta1"),
		kind(mesh.KindGatewayClass, "gatewayclasses", func() any { return &gatewayv1.GatewayClassSpec{} }, "v1beta1"),
		kind(mesh.KindGRPCRoute, "grpcroutes", func() any { return &gatewayv1.GRPCRouteSpec{} }, "v1alpha2"),
		kind(mesh.KindHTTPRoute, "httproutes", func() any { return &gatewayv1.HTTPRouteSpec{} }, "v1beta1"),
		kind(mesh.KindReferenceGrant, "referencegrants", func() any { return &gatewayv1.ReferenceGrantSpec{} }, "v1beta1", "v1alpha2"),
		kind(mesh.KindTCPRoute, "tcproutes", func() any { return &gatewayv1.TCPRouteSpec{} }, "v1alpha2"),
		kind(mesh.KindTLSRoute, "tlsroutes", func() any { return &gatewayv1.TLSRouteSpec{} }, "v1alpha3", "v1alpha2"),
	}
}

// GatewayKinds lists the kinds of the Gateway API that are read.
func GatewayKinds() []Kind {
	all := gatewayTable()
	out := make([]Kind, len(all))
	for i, d := range all {
		out[i] = d.Kind
	}
	return out
}

// Name is the kind without the group that tells it from another one.
func (k Kind) Name() string { return strings.TrimSuffix(string(k.Kind), "."+k.Group) }

// GatewayVersions lists the versions of a kind of the Gateway API that can be
// read, newest first; nil for other kinds.
func GatewayVersions(k mesh.ObjectKind) []string {
	for _, d := range gatewayTable() {
		if d.Kind.Kind == k {
			return d.versions
		}
	}
	return nil
}

func lookupGateway(group, version, name string) (Kind, bool) {
	for _, d := range gatewayTable() {
		if d.Group == group && d.Name() == name && slices.Contains(d.versions, version) {
			return d.Kind, true
		}
	}
	return Kind{}, false
}

// decodeValue reads an object of the Gateway API from JSON; known is false for
// other kinds.
func decodeValue(cluster mesh.ClusterID, k Kind, doc []byte) (o *mesh.Object, known bool, err error) {
	all := gatewayTable()
	i := slices.IndexFunc(all, func(d valueKind) bool { return d.Kind.Kind == k.Kind })
	if i < 0 {
		return nil, false, nil
	}
	var raw struct {
		Metadata metav1.ObjectMeta `json:"metadata"`
		Spec     json.RawMessage   `json:"spec"`
		Status   json.RawMessage   `json:"status"`
	}
	if err := json.Unmarshal(doc, &raw); err != nil {
		return nil, true, fmt.Errorf("decode %s in cluster %s: %w", k.Kind, cluster, err)
	}
	m := &raw.Metadata
	ref := mesh.ObjectRef{Cluster: cluster, Kind: string(k.Kind), Namespace: m.Namespace, Name: m.Name}
	if m.Name == "" {
		return nil, true, fmt.Errorf("decode %s: %w", ref, &FieldError{Field: "metadata.name", Message: "is empty; name the object"})
	}
	spec := all[i].newSpec()
	if len(raw.Spec) > 0 {
		if err := json.Unmarshal(raw.Spec, spec); err != nil {
			return nil, true, fmt.Errorf("decode %s: %w", ref, specError(err))
		}
	}
	o = &mesh.Object{
		Key: mesh.ObjectKey{Kind: k.Kind, Namespace: m.Namespace, Name: m.Name}, Origin: ref, Labels: m.Labels, Annotations: m.Annotations,
		Created: m.CreationTimestamp.Time, Version: m.ResourceVersion, Generation: m.Generation, Value: spec,
	}
	if written := canonicalJSON(raw.Status); written != "" {
		o.Status = &mesh.ObjectStatus{Written: written}
	}
	if o.Version == "" {
		o.Version = contentVersionPrefix + strconv.FormatUint(xxhash.Sum64(doc), 16)
	}
	return o, true, nil
}

// specError tells which field of a specification is of a wrong type.
func specError(err error) error {
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		return &FieldError{Field: join("spec", wrong.Field), Message: fmt.Sprintf("want %s, got %s", wrong.Type, wrong.Value)}
	}
	return &FieldError{Field: "spec", Message: err.Error()}
}

// canonicalJSON sorts the keys of a JSON document; "" if it is none or empty.
func canonicalJSON(raw json.RawMessage) string {
	var tree map[string]any
	if json.Unmarshal(raw, &tree) != nil || len(tree) == 0 {
		return ""
	}
	out, err := json.Marshal(tree)
	if err != nil {
		return ""
	}
	return string(out)
}

// FromGateway makes an object of a Gateway that is decoded already. Its
// specification is shared, not copied.
func FromGateway(cluster mesh.ClusterID, g *gatewayv1.Gateway) *mesh.Object {
	o := &mesh.Object{
		Key:    mesh.ObjectKey{Kind: mesh.KindGatewayAPIGateway, Namespace: g.Namespace, Name: g.Name},
		Origin: mesh.ObjectRef{Cluster: cluster, Kind: string(mesh.KindGatewayAPIGateway), Namespace: g.Namespace, Name: g.Name},
		Labels: g.Labels, Annotations: g.Annotations, Created: g.CreationTimestamp.Time, Version: g.ResourceVersion,
		Generation: g.Generation, Value: &g.Spec,
	}
	if raw, err := json.Marshal(g.Status); err == nil {
		if written := canonicalJSON(raw); written != "" {
			o.Status = &mesh.ObjectStatus{Written: written}
		}
	}
	if o.Version == "" {
		if raw, err := json.Marshal(g); err == nil {
			o.Version = contentVersionPrefix + strconv.FormatUint(xxhash.Sum64(raw), 16)
		}
	}
	return o
}
