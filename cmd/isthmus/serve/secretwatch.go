package serve

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/isthmus-mesh/isthmus/ca/authn"
)

// Bounds of the watches.
const (
	// maxSecretWatches is how many Secrets are watched at the same time.
	maxSecretWatches = 4096
	// secretLinger is how long a watch outlives the last proxy that asked.
	secretLinger = time.Minute
)

// secretWatches watches single Secrets and ConfigMaps from the first time that somebody who
// may have them asks, until nobody does. Reading all Secrets of a cluster would
// need memory, and hold keys, that nobody asked for.
type secretWatches struct {
	clients authn.Clients
	changed func(secretKey)
	log     *zap.Logger

	mu      sync.Mutex
	ctx     context.Context // nil while nothing runs
	watches map[secretKey]*secretWatch
	running sync.WaitGroup
}

// secretWatch is one Secret. client is the one it is read with: another one
// means that the cluster's credentials have changed.
type secretWatch struct {
	client kubernetes.Interface
	stop   context.CancelFunc
	store  cache.Store
	synced func() bool
	asked  time.Time
}

func newSecretWatches(clients authn.Clients, changed func(secretKey), log *zap.Logger) *secretWatches {
	return &secretWatches{clients: clients, changed: changed, log: log, watches: map[secretKey]*secretWatch{}}
}

// start allows watches until stop is called, which waits for them.
func (s *secretWatches) start(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ctx = ctx
	return func() {
		s.mu.Lock()
		cancel()
		s.ctx = nil
		clear(s.watches)
		s.mu.Unlock()
		s.running.Wait()
	}
}

// get returns the data of a Secret or ConfigMap, nil if it does not exist. It
// waits for the first reading.
func (s *secretWatches) get(ctx context.Context, k secretKey) (map[string][]byte, error) {
	obj, err := s.object(ctx, k)
	if obj == nil || err != nil {
		return nil, err
	}
	switch o := obj.(type) {
	case *corev1.Secret:
		return o.Data, nil
	case *corev1.ConfigMap:
		out := make(map[string][]byte, len(o.Data))
		for name, text := range o.Data {
			out[name] = []byte(text)
		}
		return out, nil
	}
	return nil, fmt.Errorf("secret %s: watch returned a %T", k, obj)
}

// secret is [secretWatches.get] for a whole Secret, which must not be changed.
func (s *secretWatches) secret(ctx context.Context, k secretKey) (*corev1.Secret, error) {
	obj, err := s.object(ctx, k)
	if obj == nil || err != nil {
		return nil, err
	}
	secret, ok := obj.(*corev1.Secret)
	if !ok {
		return nil, fmt.Errorf("secret %s: watch returned a %T", k, obj)
	}
	return secret, nil
}

// object returns what is watched, nil if it does not exist.
func (s *secretWatches) object(ctx context.Context, k secretKey) (any, error) {
	w, err := s.watch(k)
	if err != nil {
		return nil, err
	}
	if !cache.WaitForCacheSync(ctx.Done(), w.synced) {
		return nil, fmt.Errorf("secret %s: could not be read yet: check that the API server answers and that our account may list and watch secrets there", k)
	}
	obj, ok, err := w.store.GetByKey(k.namespace + "/" + k.name)
	if err != nil || !ok {
		return nil, err
	}
	return obj, nil
}

// watch returns the watch of a Secret, a new one if need be.
func (s *secretWatches) watch(k secretKey) (*secretWatch, error) {
	client, ok := s.clients(k.cluster)
	if !ok {
		return nil, fmt.Errorf("secret %s: the cluster is not part of the mesh now", k)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx == nil {
		return nil, errors.New("secrets are not read while the control plane starts or ends")
	}
	w := s.watches[k]
	if w != nil && w.client == client {
		w.asked = time.Now()
		return w, nil
	}
	if w != nil {
		w.stop()
	} else if len(s.watches) >= maxSecretWatches {
		return nil, fmt.Errorf("secret %s: %d secrets are watched already, which is the most", k, maxSecretWatches)
	}
	w = s.open(s.ctx, k, client)
	s.watches[k] = w
	return w, nil
}

// open starts a watch. mu is held.
func (s *secretWatches) open(ctx context.Context, k secretKey, client kubernetes.Interface) *secretWatch {
	ctx, cancel := context.WithCancel(ctx)
	only := fields.OneTermEqualSelector("metadata.name", k.name).String()
	lw, kind := listed(client, k)
	changed := func() {
		if ctx.Err() == nil {
			s.changed(k)
		}
	}
	handler := cache.ResourceEventHandlerFuncs{AddFunc: func(any) { changed() }, UpdateFunc: func(any, any) { changed() }}
	if k.configMap {
		handler.DeleteFunc = func(any) { changed() } // whom nobody vouches for any more is not trusted
	}
	store, informer := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				o.FieldSelector = only
				return lw.ListWithContextFunc(ctx, o)
			},
			WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
				o.FieldSelector = only
				return lw.WatchFuncWithContext(ctx, o)
			},
		}, client),
		ObjectType: kind,
		Handler:    handler,
	})
	s.running.Go(func() { informer.RunWithContext(ctx) })
	return &secretWatch{client: client, stop: cancel, store: store, synced: informer.HasSynced, asked: time.Now()}
}

// listed reads the kind of object that a key means.
func listed(client kubernetes.Interface, k secretKey) (*cache.ListWatch, runtime.Object) {
	if k.configMap {
		api := client.CoreV1().ConfigMaps(k.namespace)
		return &cache.ListWatch{
			ListWithContextFunc:  func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return api.List(ctx, o) },
			WatchFuncWithContext: api.Watch,
		}, &corev1.ConfigMap{}
	}
	api := client.CoreV1().Secrets(k.namespace)
	return &cache.ListWatch{
		ListWithContextFunc:  func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return api.List(ctx, o) },
		WatchFuncWithContext: api.Watch,
	}, &corev1.Secret{}
}

// keep ends the watches that nobody wants any more.
func (s *secretWatches) keep(wanted map[secretKey]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for k, w := range s.watches {
		switch {
		case wanted[k]:
			w.asked = now
		case now.Sub(w.asked) > secretLinger:
			w.stop()
			delete(s.watches, k)
		}
	}
}
