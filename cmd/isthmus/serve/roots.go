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

// roots looks after the writers of every cluster: of the primary, and of each
// remote that says that we look after it. Every cluster has a goroutine of its
// own, so that one that does not answer holds up nobody else: neither while it is
// asked, nor while its writers give back what they hold there, which may take as
// long as a call may last.
type roots struct {
	log *zap.Logger
	// primary is written to without being asked.
	primary mesh.ClusterID
	// clients are the clusters that can be written to now.
	clients func() map[mesh.ClusterID]kubernetes.Interface
	// ask reads whether a cluster wants us to write.
	ask func(ctx context.Context, client kubernetes.Interface) (bool, error)
	// write writes to a cluster until the context ends.
	write func(ctx context.Context, id mesh.ClusterID, client kubernetes.Interface)
	// left is called when nothing writes to a cluster any more that has left.
	left func(id mesh.ClusterID)
	// tended are the clusters; only look touches it.
	tended map[mesh.ClusterID]*tended
}

// tended is a cluster that is looked after.
type tended struct {
	client kubernetes.Interface // nil: it has left
	stop   context.CancelFunc
	done   chan struct{} // closed when nothing writes any more
}

func (r *roots) run(ctx context.Context) error {
	r.tended = map[mesh.ClusterID]*tended{}
	defer func() {
		for _, t := range r.tended { // they end side by side
			t.stop()
		}
		for _, t := range r.tended {
			<-t.done
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

// look follows the clusters there are now. It waits for nothing.
func (r *roots) look(ctx context.Context) {
	present := r.clients()
	for id, client := range present {
		before := r.tended[id]
		if before != nil && before.client == client {
			continue
		}
		var ended <-chan struct{}
		if before != nil { // with other credentials it begins anew
			before.stop()
			ended = before.done
		}
		t := &tended{client: client, done: make(chan struct{})}
		var own context.Context
		own, t.stop = context.WithCancel(ctx)
		r.tended[id] = t
		go func() {
			defer close(t.done)
			if ended != nil {
				<-ended // of two that write to a cluster, one would undo what the other holds
			}
			r.tend(own, id, client)
		}()
	}
	for id, t := range r.tended {
		if present[id] != nil {
			continue
		}
		t.stop()
		t.client = nil
		if closed(t.done) {
			delete(r.tended, id)
			r.left(id)
		}
	}
}

// tend writes to one cluster for as long as it wants that.
func (r *roots) tend(ctx context.Context, id mesh.ClusterID, client kubernetes.Interface) {
	if id == r.primary {
		r.write(ctx, id, client)
		return
	}
	var end func() // of what writes, nil if nothing does
	tick := time.NewTicker(rootsAsk)
	defer tick.Stop()
	for ctx.Err() == nil {
		ours, err := r.ask(ctx, client)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			// Unknown is not no: what runs goes on.
			r.log.Warn("cannot tell whether to distribute roots", zap.String("cluster", string(id)), zap.Error(err))
		case ours && end == nil:
			end = inBackground(ctx, func(ctx context.Context) { r.write(ctx, id, client) })
		case !ours && end != nil:
			end()
			end = nil
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	if end != nil {
		end()
	}
}

// inBackground runs a function; what it returns ends it and waits for it.
func inBackground(ctx context.Context, f func(context.Context)) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

// newRoots distributes the roots: into ConfigMaps for agents, into webhook
// configurations for API servers. In each cluster one replica of us writes.
func newRoots(c *Control) (*roots, error) {
	hooks, err := webhooks.NewMetrics(c.metrics)
	if err != nil {
		return nil, err
	}
	w := &rootsWriter{c: c, log: c.log.Named("roots"), hooks: hooks}
	return &roots{log: w.log, primary: c.settings.primary(), clients: w.clients, ask: w.ask, write: w.write, left: hooks.Forget}, nil
}

// rootsWriter knows what is written to a cluster.
type rootsWriter struct {
	c   *Control
	log *zap.Logger
	// hooks counts what is written into webhook configurations.
	hooks *webhooks.Metrics
}

func (w *rootsWriter) clients() map[mesh.ClusterID]kubernetes.Interface {
	out := map[mesh.ClusterID]kubernetes.Interface{}
	for _, s := range w.c.world.clusters() {
		if client, ok := w.c.clientFor(s.ID); ok {
			out[s.ID] = client
		}
	}
	return out
}

// ask reads whether a remote wants its roots from us.
func (w *rootsWriter) ask(ctx context.Context, client kubernetes.Interface) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, rootsTimeout)
	defer cancel()
	s := &w.c.settings
	ns, err := client.CoreV1().Namespaces().Get(ctx, s.Namespace, metav1.GetOptions{})
	if err != nil {
		return false, fmt.Errorf("read annotation %s of namespace %s: %w", controlPlaneAnnotation, s.Namespace, err)
	}
	named := split(ns.Annotations[controlPlaneAnnotation])
	return slices.Contains(named, "*") || slices.Contains(named, s.Primary), nil
}

// write distributes in a cluster until the context ends.
func (w *rootsWriter) write(ctx context.Context, id mesh.ClusterID, client kubernetes.Interface) {
	s := &w.c.settings
	distributor, err := ca.NewDistributor(ca.DistributorConfig{
		Client: client, Cluster: id, SystemNamespace: s.Namespace, Replica: s.PodName, Report: w.c.reportElection,
		Bundle: w.c.trust.rootsPEM, CRL: w.c.trust.authority.CRLPEM, OnChange: w.c.trust.authority.OnChange, Logger: w.log,
	})
	if err != nil {
		w.log.Error("roots are not distributed", zap.String("cluster", string(id)), zap.Error(err))
		return
	}
	patcher, err := webhooks.New(webhooks.Config{
		Client: client, Cluster: id, Revision: s.Revision, SystemNamespace: s.Namespace, Replica: s.PodName,
		Bundle: w.c.trust.rootsPEM, OnChange: w.c.trust.authority.OnChange, Report: w.c.reportWebhook,
		Logger: w.c.log.Named("webhooks"), Metrics: w.hooks,
	})
	if err != nil {
		w.log.Error("webhooks are not patched", zap.String("cluster", string(id)), zap.Error(err))
		return
	}
	var both sync.WaitGroup
	both.Go(func() { w.keep(ctx, "distribution of roots", distributor.Run) })
	both.Go(func() { w.keep(ctx, "patching of webhooks", patcher.Run) })
	both.Wait()
}

// keep runs a writer again and again until the context ends.
func (w *rootsWriter) keep(ctx context.Context, what string, run func(context.Context) error) {
	for ctx.Err() == nil {
		if err := run(ctx); err != nil && ctx.Err() == nil {
			w.log.Error(what+" ended, starting again", zap.Error(err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(rootsRetry):
		}
	}
}
