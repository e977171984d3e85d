// Package config understands the configuration that users write: it turns
// Istio objects, MeshConfig and MeshNetworks into decoded, defaulted and
// validated values, and watches the mesh-wide settings.
//
// It owns which kinds are read, what makes an object of a kind valid, and
// Istio's defaults. It does not read objects from API servers or folders
// (registry/kube and registry/file do, and call [Decode] or [FromTyped]), and
// it does not decide what an object means for a proxy (xds/build does).
//
// A kind is one entry in the table of this file and one file with its
// specification and validation. What Istio accepts is accepted, so that an
// object which works there is never quarantined here; what is accepted but most
// likely not meant is a warning, which [Review] returns to whoever writes it.
package config

import (
	"strings"

	"google.golang.org/protobuf/proto"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Kind names one kind of configuration object in the form it is asked for at an
// API server. Version is the newest version that is served.
type Kind struct {
	Kind                     mesh.ObjectKind
	Group, Version, Resource string
	// Everywhere says that objects of the kind count in every cluster, not only
	// in the primary.
	Everywhere bool
}

// descriptor is all the package knows of a kind.
type descriptor struct {
	Kind
	// versions are all versions of the group that share the specification.
	versions []string
	// newSpec returns an empty specification.
	newSpec func() proto.Message
	// typed returns the metadata and specification of a client-go object, or
	// nil if the object is of another kind.
	typed func(runtime.Object) (metav1.Object, proto.Message)
	// validate reports everything that is wrong with a specification.
	validate func(*checker, proto.Message)
}

// table lists every kind that is read. It is a function, so that nobody can
// change it.
func table() []descriptor {
	return []descriptor{
		authorizationPolicyKind(), destinationRuleKind(), envoyFilterKind(), gatewayKind(), peerAuthenticationKind(),
		proxyConfigKind(), requestAuthenticationKind(), serviceEntryKind(), sidecarKind(), telemetryKind(),
		virtualServiceKind(), wasmPluginKind(), workloadEntryKind(), workloadGroupKind(),
	}
}

// networkingKind names a kind of networking.istio.io that all versions have.
func networkingKind(k mesh.ObjectKind, resource string) (Kind, []string) {
	return Kind{Kind: k, Group: "networking.istio.io", Version: "v1", Resource: resource}, []string{"v1", "v1beta1", "v1alpha3"}
}

// securityKind names a kind of security.istio.io.
func securityKind(k mesh.ObjectKind, resource string) (Kind, []string) {
	return Kind{Kind: k, Group: "security.istio.io", Version: "v1", Resource: resource}, []string{"v1", "v1beta1"}
}

// typedAs makes the typed function of a kind from its client-go type.
func typedAs[T any, P interface {
	*T
	runtime.Object
	metav1.Object
}](spec func(P) proto.Message) func(runtime.Object) (metav1.Object, proto.Message) {
	return func(o runtime.Object) (metav1.Object, proto.Message) {
		if x, ok := o.(P); ok && x != nil {
			return x, spec(x)
		}
		return nil, nil
	}
}

// checks makes the validate function of a kind from one for its specification.
func checks[M proto.Message](f func(*checker, M)) func(*checker, proto.Message) {
	return func(c *checker, m proto.Message) { f(c, m.(M)) }
}

// Kinds lists Istio's kinds that are read. Those of the Gateway API are
// [GatewayKinds].
func Kinds() []Kind {
	all := table()
	out := make([]Kind, len(all))
	for i, d := range all {
		out[i] = d.Kind
	}
	return out
}

// Lookup finds a kind by the apiVersion and kind of an object. All versions that
// Istio serves are found.
func Lookup(apiVersion, kind string) (Kind, bool) {
	group, version, ok := strings.Cut(apiVersion, "/")
	if !ok {
		return Kind{}, false
	}
	for _, d := range table() {
		if string(d.Kind.Kind) != kind || d.Group != group {
			continue
		}
		for _, v := range d.versions {
			if v == version {
				return d.Kind, true
			}
		}
	}
	return lookupGateway(group, version, kind)
}

func lookupKind(k mesh.ObjectKind) (descriptor, bool) {
	for _, d := range table() {
		if d.Kind.Kind == k {
			return d, true
		}
	}
	return descriptor{}, false
}
