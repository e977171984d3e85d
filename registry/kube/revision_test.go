package kube

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// Objects that name another control plane do not count; Namespaces, and Gateways
// that may name a tag, do all the same.
func TestRevisionOfObjects(t *testing.T) {
	for _, tc := range []struct {
		name, revision, label string
		kind                  mesh.ObjectKind
		want                  bool
	}{
		{"of nobody", "canary", "", mesh.KindVirtualService, true},
		{"ours", "canary", "canary", mesh.KindVirtualService, true},
		{"of another", "canary", "stable", mesh.KindVirtualService, false},
		{"of the default one", "canary", "default", mesh.KindVirtualService, false},
		{"ours by name, as the default one", "", "default", mesh.KindSidecar, true},
		{"ours, as the default one by name", "default", "default", mesh.KindSidecar, true},
		{"of another than the default one", "", "canary", mesh.KindHTTPRoute, false},
		{"namespace", "", "canary", mesh.KindNamespace, true},
		{"Gateway that may name a tag", "", "prod", mesh.KindGatewayAPIGateway, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tr := NewTranslator(TranslatorConfig{Cluster: "east", Revision: tc.revision})
			o := &mesh.Object{Key: mesh.ObjectKey{Kind: tc.kind, Namespace: "shop", Name: "x"}, Version: "2", Labels: map[string]string{"istio.io/rev": tc.label}}
			before := &mesh.Object{Key: o.Key, Version: "1"}
			tr.Set(before)
			require.Equal(t, []registry.ObjectState{{Key: o.Key, Object: before}}, tr.Snapshot().Objects)
			tr.Set(o)
			u, _ := tr.Flush()
			want := registry.ObjectState{Key: o.Key}
			if tc.want {
				want.Object = o
			}
			require.Equal(t, []registry.ObjectState{want}, u.Objects)
		})
	}
}
