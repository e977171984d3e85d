package kube

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// A name in the cluster set comes with the export, follows the Service, and goes
// with whichever goes first.
func TestClusterSetFollowsExportAndService(t *testing.T) {
	tr := NewTranslator(TranslatorConfig{Cluster: "east"})
	set := mesh.ServiceKey{Namespace: "shop", Hostname: "web.shop.svc.clusterset.local"}
	states := func() map[mesh.ServiceKey]*mesh.Definition {
		u, _ := tr.Flush()
		out := map[mesh.ServiceKey]*mesh.Definition{}
		for _, s := range u.Services {
			out[s.Key] = s.Definition
		}
		return out
	}
	meta := metav1.ObjectMeta{Namespace: "shop", Name: "web"}
	export := &ServiceExport{ObjectMeta: meta}
	svc := &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1", Ports: []corev1.ServicePort{{Name: "http", Port: 80}}}}

	tr.Set(export)
	require.Empty(t, states(), "nothing to export yet")
	tr.Set(svc)
	require.NotNil(t, states()[set])
	tr.Set(export)
	require.Empty(t, states(), "the same again")

	changed := svc.DeepCopy()
	changed.Spec.Ports[0].Port = 81
	tr.Set(changed)
	require.EqualValues(t, 81, states()[set].Ports[0].Number)
	tr.Delete(KindServiceExport, "shop", "web")
	now := states()
	require.Contains(t, now, set)
	require.Nil(t, now[set])
	require.Len(t, now, 1, "the Service itself stays as it is")

	tr.Set(export)
	require.NotNil(t, states()[set])
	tr.Delete(KindService, "shop", "web")
	now = states()
	require.Len(t, now, 2)
	require.Nil(t, now[set])
	require.Empty(t, tr.Snapshot().Services)
}
