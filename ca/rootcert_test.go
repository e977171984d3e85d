package ca

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"

	"github.com/isthmus-mesh/isthmus/ca/internal/apifake"
)

func putNamespace(t testing.TB, client kubernetes.Interface, name string, phase corev1.NamespacePhase) {
	t.Helper()
	_, err := client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NamespaceStatus{Phase: phase},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
}

// roots reads a distributed ConfigMap, nil if there is none.
func roots(t testing.TB, client kubernetes.Interface, ns, name string) *corev1.ConfigMap {
	t.Helper()
	cm, err := client.CoreV1().ConfigMaps(ns).Get(t.Context(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	require.NoError(t, err)
	return cm
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, 20*time.Second, 5*time.Millisecond, what)
}

func TestDistributor(t *testing.T) {
	api := apifake.New(t)
	client := api.Client(t)
	for _, ns := range []string{"shop", "kube-system", "kube-public", "kube-node-lease"} {
		putNamespace(t, client, ns, corev1.NamespaceActive)
	}
	putNamespace(t, client, "going", corev1.NamespaceTerminating)
	var bundle, crl atomic.Value
	bundle.Store("roots 1")
	crl.Store("")
	var changed func()
	var mu sync.Mutex
	d, err := NewDistributor(DistributorConfig{
		Client: client, Cluster: "c1",
		Bundle: func() []byte { return []byte(bundle.Load().(string)) },
		CRL:    func() []byte { return []byte(crl.Load().(string)) },
		OnChange: func(f func()) func() {
			mu.Lock()
			defer mu.Unlock()
			changed = f
			return func() {}
		},
		Elect: func(ctx context.Context, lead func(context.Context)) error { lead(ctx); return nil },
	})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- d.Run(ctx) }()
	holds := func(ns, text string) func() bool {
		return func() bool {
			cm := roots(t, client, ns, RootConfigMap)
			return cm != nil && cm.Data["root-cert.pem"] == text && cm.Labels["istio.io/config"] == "true"
		}
	}
	eventually(t, "made", holds("shop", "roots 1"))

	putNamespace(t, client, "late", corev1.NamespaceActive)
	eventually(t, "made in a new namespace", holds("late", "roots 1"))

	cm := roots(t, client, "shop", RootConfigMap)
	cm.Data = map[string]string{"root-cert.pem": "evil", "mine": "kept"}
	cm.Labels = nil
	_, err = client.CoreV1().ConfigMaps("shop").Update(t.Context(), cm, metav1.UpdateOptions{})
	require.NoError(t, err)
	eventually(t, "repaired", holds("shop", "roots 1"))
	require.Equal(t, "kept", roots(t, client, "shop", RootConfigMap).Data["mine"])

	require.NoError(t, client.CoreV1().ConfigMaps("shop").Delete(t.Context(), RootConfigMap, metav1.DeleteOptions{}))
	eventually(t, "made again", holds("shop", "roots 1"))

	bundle.Store("roots 2")
	crl.Store("revoked")
	mu.Lock()
	changed()
	mu.Unlock()
	eventually(t, "changed", holds("shop", "roots 2"))
	eventually(t, "changed", holds("late", "roots 2"))
	eventually(t, "revocation list", func() bool {
		cm := roots(t, client, "late", CRLConfigMap)
		return cm != nil && cm.Data["ca-crl.pem"] == "revoked"
	})
	for _, ns := range []string{"kube-system", "kube-public", "kube-node-lease", "going"} {
		require.Nil(t, roots(t, client, ns, RootConfigMap), ns)
	}
	cancel()
	require.NoError(t, <-done)
}

// One of several replicas writes; when it goes another takes over. None writes
// an empty bundle.
func TestDistributorLease(t *testing.T) {
	api := apifake.New(t)
	client := api.Client(t)
	putNamespace(t, client, "shop", corev1.NamespaceActive)
	leads := make(chan string, 8)
	run := func(name string) (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = LeaseElector(ElectionConfig{Client: api.Client(t), Namespace: systemNS, Name: RootLease, Replica: name})(ctx, func(ctx context.Context) {
				leads <- name
				<-ctx.Done()
			})
		}()
		return func() { cancel(); <-done }
	}
	stopA := run("a")
	require.Equal(t, "a", <-leads)
	stopB := run("b")
	stopA()
	require.Equal(t, "b", <-leads)
	stopB()
	require.Empty(t, leads)
}

func TestDistributorWritesNoEmptyBundle(t *testing.T) {
	w := &distribution{d: &Distributor{cfg: DistributorConfig{Bundle: func() []byte { return nil }}}}
	w.namespaces = oneNamespace{}
	require.NoError(t, w.reconcile(t.Context(), "shop")) // would panic without a client
}

// oneNamespace is a lister that knows every namespace.
type oneNamespace struct{ corelisters.NamespaceLister }

func (oneNamespace) Get(name string) (*corev1.Namespace, error) {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, nil
}
