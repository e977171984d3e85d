package deploy

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/record"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/registry/gatewayapi"
)

// FieldManager owns what is written.
const FieldManager = "isthmus-gateway-deployment"

const (
	// workers apply objects of several Gateways at once.
	workers = 4
	// callTimeout bounds a call to the API server.
	callTimeout = 10 * time.Second
	// retryMin and retryMax bound the wait after a failure, and before something is
	// put back that somebody else keeps changing.
	retryMin = 250 * time.Millisecond
	retryMax = 5 * time.Minute
	// calm is how long nothing must have been put back for the next time to come at
	// once again.
	calm = time.Minute
	// patience is how long a term may take to look at a Gateway before its status is
	// written without.
	patience = 30 * time.Second
	// look is how often parameters are looked at, and whatever is in the way.
	look = 10 * time.Second
)

// Config configures a [Controller].
type Config struct {
	// Dynamic is for the primary.
	Dynamic dynamic.Interface
	Store   *registry.Store
	// Primary is the primary's name in the Store.
	Primary mesh.ClusterID
	// Namespace has the defaults of classes.
	Namespace string
	// Revision is that of this control plane, "" for the default one. Others take
	// care of Gateways that ask for another.
	Revision string
	// CopyMetadata: see [Input].
	CopyMetadata bool
	// Injects says why the pods of a namespace with the labels would not get their
	// proxy from this control plane, which also answers to the tags; nil if they
	// would. Required.
	Injects func(namespace string, labels map[string]string, tags []string, pod *corev1.Pod) error
	// Events tells users what is in the way; nobody if nil.
	Events record.EventRecorder
	Clock  func() time.Time // time.Now if nil
	Log    *zap.Logger      // nothing if nil
}

// Controller makes routers for Gateways for as long as it leads.
type Controller struct {
	cfg Config
	log *zap.Logger

	mu    sync.Mutex
	since time.Time                                     // when this term began, zero out of terms; guarded by mu
	known map[gatewayapi.Name]gatewayapi.Infrastructure // of Gateways that were looked at in this term; guarded by mu
}

// New returns a controller; it does nothing before [Controller.Lead].
func New(c Config) (*Controller, error) {
	if c.Dynamic == nil || c.Store == nil || c.Namespace == "" || c.Injects == nil {
		return nil, errors.New("make controller of gateway deployments: client, store, namespace and what is injected must be set")
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	return &Controller{cfg: c, log: c.Log, known: map[gatewayapi.Name]gatewayapi.Infrastructure{}}, nil
}

// State is what is known of the routers of a Gateway. It is not settled as long as
// this term has not looked at them: nothing should be said of them yet. If nothing
// can be found out for long, nothing known is all there is.
func (c *Controller) State(n gatewayapi.Name) (known gatewayapi.Infrastructure, settled bool) {
	cat := c.cfg.Store.Catalog()
	if !makesRouters(cat, specOf(cat.Object(mesh.ObjectKey{Kind: mesh.KindGatewayAPIGateway, Namespace: n.Namespace, Name: n.Name}))) {
		return known, true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	known, settled = c.known[n]
	return known, settled || !c.since.IsZero() && c.cfg.Clock().Sub(c.since) > patience
}

func makesRouters(cat *registry.Catalog, spec *gatewayv1.GatewaySpec) bool {
	return spec != nil && gatewayapi.MakesRouters(gatewayapi.ControllerOf(cat.Objects, string(spec.GatewayClassName)), spec)
}

// know notes what is known of the routers of a Gateway, and reports whether it is
// new.
func (c *Controller) know(n gatewayapi.Name, i gatewayapi.Infrastructure) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old, ok := c.known[n]; ok && old == i {
		return false
	}
	c.known[n] = i
	return true
}

// forget notes that a Gateway is no more.
func (c *Controller) forget(n gatewayapi.Name) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.known, n)
}

// begin and end a term.
func (c *Controller) begin(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.since = now
	clear(c.known)
}

// Lead makes routers until the context ends, and calls changed whenever
// [Controller.State] says something else. Call it from one place at a time, with
// the primary read completely.
func (c *Controller) Lead(ctx context.Context, changed func()) {
	c.begin(c.cfg.Clock())
	defer c.begin(time.Time{})
	t := newTerm(c, changed)
	defer t.queue.ShutDown()
	first := make(chan struct{}, 1)
	defer c.cfg.Store.OnChange(func(change registry.Change) {
		t.heard(&change)
		select {
		case first <- struct{}{}:
		default:
		}
	})()
	for !t.wanted() { // nothing is watched for clusters that have no such Gateway
		select {
		case <-ctx.Done():
			return
		case <-first:
		}
	}
	if !t.watch(ctx) {
		return
	}
	defer t.unwatch()
	t.all()
	var running sync.WaitGroup
	for range workers {
		running.Go(func() { t.work(ctx) })
	}
	<-ctx.Done()
	t.queue.ShutDown()
	running.Wait()
}

// wanted reports whether there is any Gateway that routers are made for.
func (t *term) wanted() bool {
	cat := t.c.cfg.Store.Catalog()
	return slices.ContainsFunc(cat.Objects(mesh.KindGatewayAPIGateway), func(o *mesh.Object) bool { return makesRouters(cat, specOf(o)) })
}

// heard queues the Gateways that a change concerns.
func (t *term) heard(c *registry.Change) {
	if c.Scope.Has(registry.ScopeNetworks) {
		t.all()
		return
	}
	for k, o := range c.Objects {
		switch k.Kind {
		case mesh.KindGatewayAPIGateway:
			if sameButStatus(o.Before, o.After) {
				continue // our own words, most likely
			}
			t.queue.Add(gatewayapi.Name{Namespace: k.Namespace, Name: k.Name})
		case mesh.KindGatewayClass:
			t.all()
		case mesh.KindNamespace:
			t.in(k.Name)
		}
	}
}

// sameButStatus reports whether two states of a Gateway are to get the same
// routers.
func sameButStatus(a, b *mesh.Object) bool {
	return a != nil && b != nil && a.Generation == b.Generation && a.Generation != 0 && a.Created.Equal(b.Created) &&
		sameMap(a.Labels, b.Labels) && sameMap(a.Annotations, b.Annotations)
}

// all queues all Gateways.
func (t *term) all() { t.in(metav1.NamespaceAll) }

// in queues the Gateways of a namespace.
func (t *term) in(namespace string) {
	for _, o := range t.c.cfg.Store.Catalog().Objects(mesh.KindGatewayAPIGateway) {
		if namespace == metav1.NamespaceAll || o.Key.Namespace == namespace {
			t.queue.Add(gatewayapi.Name{Namespace: o.Key.Namespace, Name: o.Key.Name})
		}
	}
}

// work takes Gateways from the queue until it is shut down.
func (t *term) work(ctx context.Context) {
	for {
		n, shutdown := t.queue.Get()
		if shutdown {
			return
		}
		again, err := t.reconcile(ctx, n)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			t.c.log.Warn("routers of a Gateway are not as they should be, trying again", zap.Stringer("gateway", n), zap.Error(err))
			t.queue.AddRateLimited(n)
		default:
			t.queue.Forget(n)
			if again > 0 {
				t.queue.AddAfter(n, again)
			}
		}
		t.queue.Done(n)
	}
}
