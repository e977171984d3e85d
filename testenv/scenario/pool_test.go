package scenario

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"

	"github.com/isthmus-mesh/isthmus/multicluster"
	"github.com/isthmus-mesh/isthmus/registry/config"
	"github.com/isthmus-mesh/isthmus/testenv/apiserver"
)

// sets is how many worlds are used at the same time. More would wait for the
// processors: a set is up to three API servers.
const sets = 2

// machines lends API servers to tests. Starting one costs seconds, emptying one
// that ran before costs milliseconds.
var machines = newPool()

// pool is a number of sets of clusters; a set is in the channel while no test
// has it.
type pool struct{ free chan *set }

// set is a world's clusters, started when a test first needs that many.
type set struct {
	number   int
	dir      string
	clusters []*apiserver.Cluster
}

func newPool() *pool {
	p := &pool{free: make(chan *set, sets)}
	for i := range sets {
		p.free <- &set{number: i}
	}
	return p
}

// lend gives a test n running clusters without objects, and takes them back
// when it ends.
func (p *pool) lend(ctx context.Context, t *testing.T, n int) *set {
	t.Helper()
	var s *set
	select {
	case s = <-p.free:
	case <-ctx.Done():
		t.Fatal("no clusters became free: ", ctx.Err())
	}
	t.Cleanup(func() { p.free <- s })
	if s.dir == "" {
		dir, err := os.MkdirTemp("", "isthmus-scenario-")
		require.NoError(t, err)
		s.dir = dir
	}
	for len(s.clusters) < n {
		s.clusters = append(s.clusters, nil)
	}
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = s.ready(ctx, i) })
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
	return s
}

// data is where a cluster keeps what it knows.
func (s *set) data(i int) string { return filepath.Join(s.dir, fmt.Sprint("cluster-", i)) }

// ready sees to it that one cluster runs and is empty.
func (s *set) ready(ctx context.Context, i int) error {
	c := s.clusters[i]
	if c == nil {
		c, err := apiserver.Start(ctx, apiserver.Config{Name: fmt.Sprintf("set-%d-%d", s.number, i), Dir: s.data(i)})
		if err != nil {
			return err
		}
		s.clusters[i] = c
		return c.InstallIstioCRDs(ctx)
	}
	c.Resume()
	if !c.Running() {
		if err := c.Restart(ctx); err != nil {
			return err
		}
	}
	return empty(ctx, c)
}

// empty deletes what scenarios make, but namespaces and accounts.
func empty(ctx context.Context, c *apiserver.Cluster) error {
	api := c.Client()
	now, all := metav1.DeleteOptions{GracePeriodSeconds: new(int64)}, metav1.ListOptions{}
	errs := []error{
		deleteServices(ctx, api, "shop"),
		deleteServices(ctx, api, multicluster.SystemNamespace),
		api.CoreV1().Pods("shop").DeleteCollection(ctx, now, all),
		api.DiscoveryV1().EndpointSlices("shop").DeleteCollection(ctx, now, all),
		api.CoreV1().Secrets(multicluster.SystemNamespace).DeleteCollection(ctx, now, all),
		api.CoreV1().Events(multicluster.SystemNamespace).DeleteCollection(ctx, now, all),
		c.Dynamic().Resource(istioGateways()).Namespace(multicluster.SystemNamespace).DeleteCollection(ctx, now, all),
		deleteConfiguration(ctx, c, "shop"),
	}
	return errors.Join(errs...)
}

// deleteConfiguration deletes Istio's objects, where their kinds are there.
func deleteConfiguration(ctx context.Context, c *apiserver.Cluster, namespace string) error {
	for _, k := range config.Kinds() {
		gvr := schema.GroupVersionResource{Group: k.Group, Version: k.Version, Resource: k.Resource}
		err := c.Dynamic().Resource(gvr).Namespace(namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return nil
}

func istioGateways() schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "gateways"}
}

// deleteServices: the API has no collection for them.
func deleteServices(ctx context.Context, api kubernetes.Interface, namespace string) error {
	list, err := api.CoreV1().Services(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, s := range list.Items {
		if err := api.CoreV1().Services(namespace).Delete(ctx, s.Name, metav1.DeleteOptions{}); err != nil {
			return err
		}
	}
	return nil
}

// close stops all clusters; every set must have been given back.
func (p *pool) close() {
	for range sets {
		s := <-p.free
		for _, c := range s.clusters {
			if c != nil {
				_ = c.Stop()
			}
		}
		if s.dir != "" {
			_ = os.RemoveAll(s.dir)
		}
	}
}
