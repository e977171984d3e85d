package ca

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// ConfigMaps with which agents learn the roots and the revocation lists before
// they have a certificate.
const (
	RootConfigMap = "istio-ca-root-cert"
	CRLConfigMap  = "istio-ca-crl"
	// configLabel marks what the control plane writes.
	configLabel = "istio.io/config"
	// RootLease is the Lease that decides who writes them in a cluster, or the
	// ConfigMap where Leases are not allowed.
	RootLease = "isthmus-root-cert"
)

// DistributorConfig configures [NewDistributor].
type DistributorConfig struct {
	// Client of the cluster to write to. Required.
	Client  kubernetes.Interface
	Cluster mesh.ClusterID
	// SystemNamespace holds the Lease; Replica names this replica in it.
	// Required unless Elect is set.
	SystemNamespace, Replica string
	// Bundle is the text of the roots; nothing is written while it is empty.
	// Required.
	Bundle func() []byte
	// CRL is the text of the revocation lists; nil, or while it is empty, none
	// are distributed.
	CRL func() []byte
	// OnChange calls a function when either changes; may be nil.
	OnChange func(func()) (cancel func())
	// Elect decides who writes. Default: by Lease.
	Elect Elector
	// Report takes why nobody may decide who writes, as [ElectionConfig] says; may
	// be nil.
	Report func(about mesh.ObjectRef, problem string)
	// Workers write concurrently. Default 4.
	Workers int

	Logger *zap.Logger
}

// Distributor keeps the ConfigMaps of all namespaces of one cluster: made,
// repaired when edited, made again when deleted. Of several replicas one
// writes.
type Distributor struct {
	cfg DistributorConfig
	log *zap.Logger
}

// NewDistributor returns a distributor for one cluster.
func NewDistributor(cfg DistributorConfig) (*Distributor, error) {
	if cfg.Client == nil || cfg.Bundle == nil {
		return nil, errors.New("new root distributor: Client and Bundle are required")
	}
	if cfg.Elect == nil && (cfg.SystemNamespace == "" || cfg.Replica == "") {
		return nil, errors.New("new root distributor: SystemNamespace and Replica are required")
	}
	if cfg.Workers <= 0 {
		cfg.Workers = 4
	}
	d := &Distributor{cfg: cfg, log: loggerOrNop(cfg.Logger).With(zap.String("cluster", string(cfg.Cluster)))}
	if d.cfg.Elect == nil {
		d.cfg.Elect = LeaseElector(ElectionConfig{Client: cfg.Client, Cluster: cfg.Cluster, Namespace: cfg.SystemNamespace, Name: RootLease,
			Replica: cfg.Replica, Logger: cfg.Logger, Report: cfg.Report})
	}
	return d, nil
}

// Run distributes while we lead, until the context ends.
func (d *Distributor) Run(ctx context.Context) error {
	if err := d.cfg.Elect(ctx, d.lead); err != nil {
		return fmt.Errorf("distribute roots in cluster %s: %w", d.cfg.Cluster, err)
	}
	return nil
}

// distribution is the work of one term of leadership.
type distribution struct {
	d          *Distributor
	namespaces corelisters.NamespaceLister
	configMaps map[string]corelisters.ConfigMapLister // by name of the ConfigMap
	queue      workqueue.TypedRateLimitingInterface[string]
}

// lead works until the context ends.
func (d *Distributor) lead(ctx context.Context) {
	w := &distribution{
		d: d, configMaps: map[string]corelisters.ConfigMapLister{},
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](100*time.Millisecond, time.Minute)),
	}
	factories, synced, err := w.watch()
	if err != nil {
		d.log.Error("roots are not distributed", zap.Error(err))
		return
	}
	if d.cfg.OnChange != nil {
		defer d.cfg.OnChange(w.all)()
	}
	for _, f := range factories {
		f.StartWithContext(ctx)
		defer f.Shutdown()
	}
	if !cache.WaitForCacheSync(ctx.Done(), synced...) {
		w.queue.ShutDown()
		return
	}
	d.log.Info("distributing roots")
	w.all()
	var workers sync.WaitGroup
	for range d.cfg.Workers {
		workers.Go(func() {
			for w.next(ctx) {
			}
		})
	}
	<-ctx.Done()
	w.queue.ShutDown()
	workers.Wait()
}

// watch prepares informers for the namespaces and for the ConfigMaps by name.
func (w *distribution) watch() ([]informers.SharedInformerFactory, []cache.InformerSynced, error) {
	all := informers.NewSharedInformerFactoryWithOptions(w.d.cfg.Client, 0, informers.WithTransform(stripNamespace))
	ns := all.Core().V1().Namespaces()
	w.namespaces = ns.Lister()
	factories, synced := []informers.SharedInformerFactory{all}, []cache.InformerSynced{ns.Informer().HasSynced}
	add := func(inf cache.SharedIndexInformer, key func(metav1.Object) string) error {
		enqueue := func(obj any) {
			if tomb, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = tomb.Obj
			}
			if o, ok := obj.(metav1.Object); ok {
				w.queue.Add(key(o))
			}
		}
		_, err := inf.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: enqueue, UpdateFunc: func(_, now any) { enqueue(now) }, DeleteFunc: enqueue,
		})
		return err
	}
	if err := add(ns.Informer(), metav1.Object.GetName); err != nil {
		return nil, nil, err
	}
	names := []string{RootConfigMap}
	if w.d.cfg.CRL != nil {
		names = append(names, CRLConfigMap)
	}
	for _, name := range names {
		only := informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector("metadata.name", name).String()
		})
		f := informers.NewSharedInformerFactoryWithOptions(w.d.cfg.Client, 0, only)
		cm := f.Core().V1().ConfigMaps()
		w.configMaps[name] = cm.Lister()
		factories, synced = append(factories, f), append(synced, cm.Informer().HasSynced)
		if err := add(cm.Informer(), metav1.Object.GetNamespace); err != nil {
			return nil, nil, err
		}
	}
	return factories, synced, nil
}

// stripNamespace keeps of a namespace what we look at.
func stripNamespace(obj any) (any, error) {
	if ns, ok := obj.(*corev1.Namespace); ok {
		return &corev1.Namespace{
			ObjectMeta: metav1.ObjectMeta{Name: ns.Name, ResourceVersion: ns.ResourceVersion, UID: ns.UID},
			Status:     corev1.NamespaceStatus{Phase: ns.Status.Phase},
		}, nil
	}
	return obj, nil
}

// all enqueues every namespace.
func (w *distribution) all() {
	list, err := w.namespaces.List(labels.Everything())
	if err != nil {
		w.d.log.Error("list namespaces", zap.Error(err))
	}
	for _, ns := range list {
		w.queue.Add(ns.Name)
	}
}

// next handles one namespace and reports whether there may be another.
func (w *distribution) next(ctx context.Context) bool {
	ns, quit := w.queue.Get()
	if quit {
		return false
	}
	defer w.queue.Done(ns)
	if err := w.reconcile(ctx, ns); err != nil && ctx.Err() == nil {
		w.d.log.Warn("roots could not be written: trying again", zap.String("namespace", ns), zap.Error(err))
		w.queue.AddRateLimited(ns)
		return true
	}
	w.queue.Forget(ns)
	return true
}

// ignoredNamespaces hold no workloads of a mesh.
func ignoredNamespaces() []string {
	return []string{metav1.NamespaceSystem, metav1.NamespacePublic, "kube-node-lease", "local-path-storage"}
}

func (w *distribution) reconcile(ctx context.Context, name string) error {
	ns, err := w.namespaces.Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if ns.Status.Phase == corev1.NamespaceTerminating || slices.Contains(ignoredNamespaces(), name) {
		return nil
	}
	if text := w.d.cfg.Bundle(); len(text) > 0 {
		if err := w.ensure(ctx, name, RootConfigMap, fileRootCert, string(text)); err != nil {
			return err
		}
	}
	if w.d.cfg.CRL == nil {
		return nil
	}
	if text := w.d.cfg.CRL(); len(text) > 0 {
		return w.ensure(ctx, name, CRLConfigMap, fileCRL, string(text))
	}
	return nil
}

// ensure makes or repairs one ConfigMap. Other keys in it are left alone.
func (w *distribution) ensure(ctx context.Context, namespace, name, key, text string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	client := w.d.cfg.Client.CoreV1().ConfigMaps(namespace)
	have, err := w.configMaps[name].ConfigMaps(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		_, err = client.Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: map[string]string{configLabel: "true"}},
			Data:       map[string]string{key: text},
		}, metav1.CreateOptions{})
		if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			return nil
		}
		return wrap(err, "create", namespace, name)
	}
	if err != nil {
		return wrap(err, "get", namespace, name)
	}
	if have.Data[key] == text && have.Labels[configLabel] == "true" {
		return nil
	}
	want := have.DeepCopy()
	if want.Data == nil {
		want.Data = map[string]string{}
	}
	if want.Labels == nil {
		want.Labels = map[string]string{}
	}
	want.Data[key], want.Labels[configLabel] = text, "true"
	_, err = client.Update(ctx, want, metav1.UpdateOptions{})
	return wrap(err, "update", namespace, name)
}

func wrap(err error, verb, namespace, name string) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s ConfigMap %s/%s: %w", verb, namespace, name, err)
}
