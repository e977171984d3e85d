package gatewayapi

import (
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Kinds and groups that references name.
const (
	kindService       = "Service"
	kindServiceImport = "ServiceImport"
	kindSecret        = "Secret"
	kindConfigMap     = "ConfigMap"
	kindGateway       = "Gateway"
	groupGateway      = gatewayv1.GroupName
	groupClusterSet   = "multicluster.x-k8s.io"
)

// grantKey is one thing that a ReferenceGrant allows. name is "" for all of a kind.
type grantKey struct {
	fromKind, fromGroup, fromNamespace string
	toKind, toGroup                    string
	to                                 Name
}

// readGrants collects what ReferenceGrants allow.
func (t *translator) readGrants() {
	t.grants = map[grantKey]struct{}{}
	for _, o := range t.list(mesh.KindReferenceGrant) {
		spec, ok := o.Value.(*gatewayv1.ReferenceGrantSpec)
		if !ok {
			continue
		}
		for _, from := range spec.From {
			for _, to := range spec.To {
				k := grantKey{string(from.Kind), string(from.Group), string(from.Namespace), string(to.Kind), string(to.Group), Name{Namespace: o.Key.Namespace}}
				if to.Name != nil {
					k.to.Name = string(*to.Name)
				}
				t.grants[k] = struct{}{}
			}
		}
	}
}

// permitted reports whether an object of a kind of the Gateway API may refer to
// another object: one of its own namespace, or one that a grant opens to it.
func (t *translator) permitted(fromKind, fromNamespace, toGroup, toKind string, to Name) bool {
	if fromNamespace == to.Namespace {
		return true
	}
	k := grantKey{fromKind, groupGateway, fromNamespace, toKind, toGroup, to}
	ok := t.granted(k)
	if t.reading != nil {
		t.reading.grants[k] = ok
	}
	return ok
}

// granted reports whether a grant allows something by name, or by kind.
func (t *translator) granted(k grantKey) bool {
	if _, ok := t.grants[k]; ok {
		return true
	}
	k.to.Name = ""
	_, ok := t.grants[k]
	return ok
}

// deref returns what a pointer leads to, or a default.
func deref[P ~*T, T any](p P, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}
