package agent

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/isthmus-mesh/isthmus/ca"
	"github.com/isthmus-mesh/isthmus/multicluster"
	"github.com/isthmus-mesh/isthmus/testenv/apiserver"
)

// roots waits for the ConfigMap of a namespace.
func (l *lab) roots(c *apiserver.Cluster, namespace string) *corev1.ConfigMap {
	l.t.Helper()
	var cm *corev1.ConfigMap
	l.eventually("the roots are in "+c.Name()+"/"+namespace, func() bool {
		var err error
		cm, err = c.Client().CoreV1().ConfigMaps(namespace).Get(l.ctx, ca.RootConfigMap, metav1.GetOptions{})
		return err == nil && cm.Data["root-cert.pem"] == string(l.plane.RootsPEM())
	})
	return cm
}

// annotate says on c2's system namespace who looks after it.
func (l *lab) annotate(value string) {
	l.t.Helper()
	_, err := l.c2.Client().CoreV1().Namespaces().Patch(l.ctx, "istio-system", types.MergePatchType,
		[]byte(`{"metadata":{"annotations":{"topology.istio.io/controlPlaneClusters":`+value+`}}}`), metav1.PatchOptions{})
	require.NoError(l.t, err)
}

// The roots are in every namespace of the primary, and of a remote that names us;
// edited or deleted, they come back.
func TestRootsAreDistributed(t *testing.T) {
	l := newLab(t)
	api := l.c1.Client().CoreV1().ConfigMaps("shop")
	edited := l.roots(l.c1, "shop")
	edited.Data["root-cert.pem"] = "mine"
	_, err := api.Update(l.ctx, edited, metav1.UpdateOptions{})
	require.NoError(t, err)
	l.roots(l.c1, "shop")
	require.NoError(t, api.Delete(l.ctx, ca.RootConfigMap, metav1.DeleteOptions{}))
	l.roots(l.c1, "shop")

	l.annotate(`"elsewhere, c1"`)
	defer l.annotate("null")
	l.join()
	// The reader of a remote may only read, unless the remote lets it write.
	l.mayWriteRoots()
	l.roots(l.c2, "shop")
	require.NoError(t, l.c2.EnsureNamespace(l.ctx, "newcomer"))
	l.roots(l.c2, "newcomer")
	lease, err := l.c2.Client().CoordinationV1().Leases("istio-system").Get(l.ctx, ca.RootLease, metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, "istiod-0", *lease.Spec.HolderIdentity)
}

// A remote that names nobody is left alone.
func TestRootsOfOthersAreLeftAlone(t *testing.T) {
	l := newLab(t)
	l.annotate(`"elsewhere"`)
	defer l.annotate("null")
	require.NoError(t, l.c2.EnsureNamespace(l.ctx, "alone"))
	l.join()
	l.mayWriteRoots()
	l.roots(l.c1, "shop")
	_, err := l.agent(func(c *Config) { c.Token, c.Cluster = l.podToken(l.c2, "istio-ca"), "c2" }).Certificate(l.ctx, CSR{ECDSA: true})
	require.NoError(t, err, "its workloads get certificates nevertheless")
	_, err = l.c2.Client().CoreV1().ConfigMaps("alone").Get(l.ctx, ca.RootConfigMap, metav1.GetOptions{})
	require.Error(t, err)
}

// mayWriteRoots lets the reader account of c2 write what root distribution writes.
func (l *lab) mayWriteRoots() {
	l.t.Helper()
	require.NoError(l.t, l.c2.Apply(l.ctx, []byte(`
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: isthmus-root-writer}
rules:
- {apiGroups: [""], resources: [configmaps], verbs: [create, update]}
- {apiGroups: [coordination.k8s.io], resources: [leases], verbs: [get, create, update]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: isthmus-root-writer}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: isthmus-root-writer}
subjects: [{kind: ServiceAccount, namespace: istio-system, name: `+multicluster.ReaderAccount+`}]
`)))
}
