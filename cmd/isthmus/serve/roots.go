package serve

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/isthmus-mesh/isthmus/ca"
	"github.com/isthmus-mesh/isthmus/ca/webhooks"
	"github.com/isthmus-mesh/isthmus/mesh"
)

// controlPlaneAnnotation on a remote's system namespace names the clusters whose
// control planes look after it.
const controlPlaneAnnotation = "topology.istio.io/controlPlaneClusters"

// Times of root distribution.
const (
	rootsLook    = time.Second      // how often clusters that came, left or changed are noticed
	rootsAsk     = 30 * time.Second // how often a cluster's annotation is read
	rootsTimeout = 5 * time.Second  // of one such reading
	rootsRetry   = 10 * time.Second // before a distribution that failed is tried again
)

// roots distributes the roots to the primary and to every remote that says that
// we look after it: into ConfigMaps for agents, into webhook configurations for
// API servers. In each cluster one replica of us writes.
type roots struct {
	c       *Control
	log     *zap.Logger
	targets map[mesh.ClusterID]*rootsTarget
	// hooks counts what is written into webhook configurations.
	hooks *webhooks.Metrics
}

// rootsTarget is a cluster as far as root distribution is concerned.
type rootsTarget struct {
	client kubernetes.Interface
	ours   bool
	asked  time.Time // when that was found out, zero: never
	stop   context.CancelFunc
	done   chan struct{}
}

func newRoots(c *Control) *roots {
	return &roots{c: c, log: c.log.Named("roots"), targets: map[mesh.ClusterID]*rootsTarget{}}
}

func (r *roots) run(ctx context.Context) error {
	var err error
	if r.hooks, err = webhooks.NewMetrics(r.c.metrics); err != nil {
		return err
	}
	defer func() {
		for _, t := range r.targets {
			t.end()
		}
	}()
	tick := time.NewTicker(rootsLook)
	defer tick.Stop()
	for {
		r.look(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// look starts and stops distributions according to the clusters there are now.
func (r *roots) look(ctx context.Context) {
	present := map[mesh.ClusterID]bool{}
	for _, s := range r.c.world.clusters() {
		if client, ok := r.c.clientFor(s.ID); ok {
			present[s.ID] = true
			r.noteClient(s.ID, client)
		}
	}
	for id, t := range r.targets {
		if !present[id] {
			t.end()
			delete(r.targets, id)
			r.hooks.Forget(id)
		}
	}
	r.askAll(ctx)
	for id, t := range r.targets {
		switch {
		case t.ours && t.stop == nil:
			r.begin(ctx, id, t)
		case !t.ours && t.stop != nil:
			t.end()
		}
	}
}

// noteClient notes the client of a cluster; with another one the distribution
// begins anew.
func (r *roots) noteClient(id mesh.ClusterID, client kubernetes.Interface) {
	t := r.targets[id]
	if t == nil {
		t = &rootsTarget{}
		r.targets[id] = t
	}
	if t.client != client {
		t.end()
		t.client, t.asked = client, time.Time{}
	}
}

// askAll reads the annotations that are due, of all clusters at once: one that
// hangs must not hold up the others.
func (r *roots) askAll(ctx context.Context) {
	var wg sync.WaitGroup
	for id, t := range r.targets {
		if id == r.c.settings.primary() {
			t.ours = true
			continue
		}
		if time.Since(t.asked) < rootsAsk {
			continue
		}
		wg.Go(func() {
			ours, err := r.ask(ctx, t.client)
			t.asked = time.Now()
			if err != nil {
				// Unknown is not no: what runs goes on.
				r.log.Warn("cannot tell whether to distribute roots", zap.String("cluster", string(id)), zap.Error(err))
				return
			}
			t.ours = ours
		})
	}
	wg.Wait()
}

// ask reads whether a remote wants its roots from us.
func (r *roots) ask(ctx context.Context, client kubernetes.Interface) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, rootsTimeout)
	defer cancel()
	ns, err := client.CoreV1().Namespaces().Get(ctx, r.c.settings.Namespace, metav1.GetOptions{})
	if err != nil {
		return false, fmt.Errorf("read annotation %s of namespace %s: %w", controlPlaneAnnotation, r.c.settings.Namespace, err)
	}
	named := split(ns.Annotations[controlPlaneAnnotation])
	return slices.Contains(named, "*") || slices.Contains(named, r.c.settings.Primary), nil
}

// begin starts distributing in a cluster.
func (r *roots) begin(ctx context.Context, id mesh.ClusterID, t *rootsTarget) {
	s := &r.c.settings
	distributor, err := ca.NewDistributor(ca.DistributorConfig{
		Client: t.client, Cluster: id, SystemNamespace: s.Namespace, Replica: s.PodName,
		Bundle: r.c.trust.rootsPEM, CRL: r.c.trust.authority.CRLPEM, OnChange: r.c.trust.authority.OnChange, Logger: r.log,
	})
	if err != nil {
		r.log.Error("roots are not distributed", zap.String("cluster", string(id)), zap.Error(err))
		return
	}
	patcher, err := webhooks.New(webhooks.Config{
		Client: t.client, Cluster: id, Revision: s.Revision, SystemNamespace: s.Namespace, Replica: s.PodName,
		Bundle: r.c.trust.rootsPEM, OnChange: r.c.trust.authority.OnChange, Report: r.c.reportWebhook,
		Logger: r.c.log.Named("webhooks"), Metrics: r.hooks,
	})
	if err != nil {
		r.log.Error("webhooks are not patched", zap.String("cluster", string(id)), zap.Error(err))
		return
	}
	ctx, t.stop = context.WithCancel(ctx)
	t.done = make(chan struct{})
	go func(done chan struct{}) {
		defer close(done)
		var both sync.WaitGroup
		both.Go(func() { r.keep(ctx, "distribution of roots", distributor.Run) })
		both.Go(func() { r.keep(ctx, "patching of webhooks", patcher.Run) })
		both.Wait()
	}(t.done)
}

// keep runs a writer again and again until the context ends.
func (r *roots) keep(ctx context.Context, what string, run func(context.Context) error) {
	for ctx.Err() == nil {
		if err := run(ctx); err != nil && ctx.Err() == nil {
			r.log.Error(what+" ended, starting again", zap.Error(err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(rootsRetry):
		}
	}
}

// end stops distributing and waits for it.
func (t *rootsTarget) end() {
	if t.stop != nil {
		t.stop()
		<-t.done
		t.stop = nil
	}
}
