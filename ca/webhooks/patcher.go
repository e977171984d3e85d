package webhooks

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"github.com/isthmus-mesh/isthmus/ca"
	"github.com/isthmus-mesh/isthmus/mesh"
)

// Names that tell which webhooks are ours.
const (
	// RevisionLabel and the control plane's own revision mark its configurations;
	// those of revision tags carry it too.
	RevisionLabel = "istio.io/rev"
	// InjectionSuffix and ValidationSuffix end the names of our webhooks within them.
	InjectionSuffix  = "sidecar-injector.istio.io"
	ValidationSuffix = "validation.istio.io"
	// FieldManager is under whose name we write.
	FieldManager = "isthmus-webhooks"
	// Lease is the name of the Lease that decides who writes in a cluster; a
	// revision but the default one appends its name.
	Lease = "isthmus-webhooks"

	defaultRevision = "default"
)

// Waits between attempts, and the bound of one request.
const (
	retryFirst  = 200 * time.Millisecond
	retryMost   = time.Minute
	callTimeout = 10 * time.Second
)

// Config configures a [Patcher].
type Config struct {
	// Client of the cluster to write to. Required.
	Client  kubernetes.Interface
	Cluster mesh.ClusterID
	// Revision of the control plane; "" is "default".
	Revision string
	// SystemNamespace holds the Lease, and is where validation is tried; Replica
	// names this replica. Required.
	SystemNamespace, Replica string
	// Bundle is the text of the roots; nothing is written while it is empty.
	// Required.
	Bundle func() []byte
	// OnChange calls a function when it changes; may be nil.
	OnChange func(func()) (cancel func())
	// Elect decides who writes. Default: by Lease.
	Elect ca.Elector
	// Report takes what is wrong with an object, or "" when nothing is any more.
	// The same thing is reported once. May be nil.
	Report func(about mesh.ObjectRef, problem string)
	// Works tells whether validation by one webhook works; nil asks the API server
	// for something that only this webhook refuses.
	Works func(ctx context.Context, hook *admissionv1.ValidatingWebhook) error

	Logger  *zap.Logger
	Metrics *Metrics
}

// Patcher looks after the webhook configurations of one cluster.
type Patcher struct {
	cfg Config
	log *zap.Logger
}

// New returns a patcher. It does no I/O.
func New(cfg Config) (*Patcher, error) {
	if cfg.Client == nil || cfg.Bundle == nil || cfg.SystemNamespace == "" || cfg.Replica == "" {
		return nil, errors.New("new webhook patcher: Client, Bundle, SystemNamespace and Replica are required")
	}
	cfg.Revision = cmp.Or(cfg.Revision, defaultRevision)
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	if cfg.Metrics == nil {
		cfg.Metrics, _ = NewMetrics(nil) // fails only while registering
	}
	p := &Patcher{cfg: cfg, log: cfg.Logger.With(zap.String("cluster", string(cfg.Cluster)))}
	if p.cfg.Elect == nil {
		p.cfg.Elect = ca.LeaseElector(ca.ElectionConfig{Client: cfg.Client, Cluster: cfg.Cluster, Namespace: cfg.SystemNamespace,
			Name: LeaseName(cfg.Revision), Replica: cfg.Replica, Logger: cfg.Logger, Report: cfg.Report})
	}
	return p, nil
}

// LeaseName is the name of the Lease of a revision.
func LeaseName(revision string) string {
	if revision == defaultRevision || revision == "" {
		return Lease
	}
	return Lease + "-" + revision
}

// Run patches while we lead, until the context ends.
func (p *Patcher) Run(ctx context.Context) error {
	if err := p.cfg.Elect(ctx, p.lead); err != nil {
		return fmt.Errorf("patch webhooks of cluster %s: %w", p.cfg.Cluster, err)
	}
	return nil
}

// key is an object to look at.
type key struct{ kind, name string }

const (
	kindMutating   = "MutatingWebhookConfiguration"
	kindValidating = "ValidatingWebhookConfiguration"
)

// term is the work of one term of leadership.
type term struct {
	p      *Patcher
	stores map[string]cache.Store // by kind
	queue  workqueue.TypedRateLimitingInterface[key]
	// What follows is touched by the one worker only.
	refused map[key]refusal
	taken   map[key]bool    // taken over from istiod once
	updates map[string]bool // kinds that may be updated and not patched
	told    map[key]string
}

// refusal is a bundle that another manager did not let us write.
type refusal struct{ theirs, ours string }

// lead works until the context ends.
func (p *Patcher) lead(ctx context.Context) {
	t := &term{p: p, stores: map[string]cache.Store{}, refused: map[key]refusal{}, taken: map[key]bool{}, updates: map[string]bool{}, told: map[key]string{},
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[key](retryFirst, retryMost))}
	mine := informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = RevisionLabel + "=" + p.cfg.Revision })
	factory := informers.NewSharedInformerFactoryWithOptions(p.cfg.Client, 0, mine)
	api := factory.Admissionregistration().V1()
	var synced []cache.InformerSynced
	for kind, informer := range map[string]cache.SharedIndexInformer{
		kindMutating: api.MutatingWebhookConfigurations().Informer(), kindValidating: api.ValidatingWebhookConfigurations().Informer(),
	} {
		t.stores[kind] = informer.GetStore()
		if err := t.follow(kind, informer); err != nil {
			p.log.Error("webhooks are not patched", zap.Error(err))
			return
		}
		synced = append(synced, informer.HasSynced)
	}
	if p.cfg.OnChange != nil {
		defer p.cfg.OnChange(t.all)()
	}
	factory.StartWithContext(ctx)
	defer factory.Shutdown()
	stopped := context.AfterFunc(ctx, t.queue.ShutDown)
	defer stopped()
	if !cache.WaitForCacheSync(ctx.Done(), synced...) {
		return
	}
	p.log.Info("looking after webhook configurations", zap.String("revision", p.cfg.Revision))
	var worker sync.WaitGroup
	worker.Go(func() {
		for t.next(ctx) {
		}
	})
	worker.Wait()
	for k := range t.told { // whoever leads next has its own record
		if p.cfg.Report != nil {
			p.cfg.Report(mesh.ObjectRef{Cluster: p.cfg.Cluster, Kind: k.kind, Name: k.name}, "")
		}
	}
}

// follow enqueues the objects of a kind when they change.
func (t *term) follow(kind string, informer cache.SharedIndexInformer) error {
	enqueue := func(obj any) {
		if name, err := cache.DeletionHandlingMetaNamespaceKeyFunc(obj); err == nil {
			t.queue.Add(key{kind, name})
		}
	}
	if err := informer.SetTransform(keepOurs); err != nil {
		return fmt.Errorf("watch %s: %w", kind, err)
	}
	if err := informer.SetWatchErrorHandlerWithContext(func(ctx context.Context, _ *cache.Reflector, err error) {
		if ctx.Err() != nil {
			return // told to end
		}
		t.p.log.Warn("cannot read webhook configurations now", zap.String("kind", kind), zap.Error(err))
	}); err != nil {
		return fmt.Errorf("watch %s: %w", kind, err)
	}
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: enqueue, UpdateFunc: func(_, now any) { enqueue(now) }, DeleteFunc: enqueue,
	})
	if err != nil {
		return fmt.Errorf("watch %s: %w", kind, err)
	}
	return nil
}

// keepOurs drops the managed fields that nobody looks at: all but what we applied.
func keepOurs(obj any) (any, error) {
	if o, ok := obj.(metav1.Object); ok {
		o.SetManagedFields(slices.DeleteFunc(slices.Clone(o.GetManagedFields()), func(m metav1.ManagedFieldsEntry) bool {
			return m.Manager != FieldManager || m.Operation != metav1.ManagedFieldsOperationApply
		}))
	}
	return obj, nil
}

// all enqueues every object.
func (t *term) all() {
	for kind, store := range t.stores {
		for _, name := range store.ListKeys() {
			t.queue.Add(key{kind, name})
		}
	}
}

// next handles one object and reports whether there may be another.
func (t *term) next(ctx context.Context) bool {
	k, quit := t.queue.Get()
	if quit {
		return false
	}
	defer t.queue.Done(k)
	again, err := t.reconcile(ctx, k)
	if ctx.Err() != nil {
		return true
	}
	if err != nil {
		t.tell(k, err.Error())
	}
	if !again {
		t.queue.Forget(k)
		return true
	}
	if err != nil {
		t.p.cfg.Metrics.retries.WithLabelValues(string(t.p.cfg.Cluster), k.name).Inc()
	}
	t.queue.AddRateLimited(k)
	return true
}

// tell reports what is wrong with an object, once.
func (t *term) tell(k key, problem string) {
	if t.told[k] == problem {
		return
	}
	t.told[k] = problem
	about := mesh.ObjectRef{Cluster: t.p.cfg.Cluster, Kind: k.kind, Name: k.name}
	if problem == "" {
		delete(t.told, k)
		t.p.log.Info("webhook configuration is in order again", zap.Stringer("object", about))
	} else {
		t.p.log.Warn("webhook configuration is not in order", zap.Stringer("object", about), zap.String("because", problem))
	}
	if t.p.cfg.Report != nil {
		t.p.cfg.Report(about, problem)
	}
}
