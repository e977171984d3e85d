package config

import (
	"context"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// configMapName is the name of the ConfigMap of a control plane revision.
func configMapName(revision string) string {
	if revision == "" || revision == "default" {
		return "istio"
	}
	return "istio-" + revision
}

// watchConfigMap follows one ConfigMap. Its absence is an answer (the defaults);
// no answer is none.
func (w *Watcher) watchConfigMap(ctx context.Context) error {
	name := configMapName(w.cfg.Revision)
	ref := mesh.ObjectRef{Cluster: w.cfg.Cluster, Kind: "ConfigMap", Namespace: w.cfg.Namespace, Name: name}
	mine := func(o any) (*corev1.ConfigMap, bool) {
		if t, ok := o.(cache.DeletedFinalStateUnknown); ok {
			o = t.Obj
		}
		cm, ok := o.(*corev1.ConfigMap)
		return cm, ok && cm.Name == name && cm.Namespace == w.cfg.Namespace
	}
	set := func(o any) {
		if cm, ok := mine(o); ok {
			w.take(ref, cm.Data)
		}
	}
	informer := cache.NewSharedInformer(w.listWatch(name), &corev1.ConfigMap{}, 0)
	if err := informer.SetWatchErrorHandlerWithContext(w.watchErrors(ref)); err != nil {
		return fmt.Errorf("watch %s: %w", ref, err)
	}
	handle, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    set,
		UpdateFunc: func(_, o any) { set(o) },
		DeleteFunc: func(o any) {
			if _, ok := mine(o); ok {
				w.take(ref, nil)
			}
		},
	})
	if err != nil {
		return fmt.Errorf("watch %s: %w", ref, err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		informer.RunWithContext(ctx)
	}()
	if cache.WaitForCacheSync(ctx.Done(), handle.HasSynced) {
		if _, there, _ := informer.GetStore().GetByKey(w.cfg.Namespace + "/" + name); !there {
			w.take(ref, nil)
		}
	}
	<-done
	return nil
}

func (w *Watcher) listWatch(name string) cache.ListerWatcher {
	client := w.cfg.Client.CoreV1().ConfigMaps(w.cfg.Namespace)
	only := fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
	return cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = only
			return client.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = only
			return client.Watch(ctx, o)
		},
	}, w.cfg.Client)
}

// watchErrors logs a failure to read when it is new, not on every retry.
func (w *Watcher) watchErrors(ref mesh.ObjectRef) cache.WatchErrorHandlerWithContext {
	const quiet = 10 * time.Minute
	var mu sync.Mutex
	var text string
	var at time.Time
	return func(_ context.Context, _ *cache.Reflector, err error) {
		mu.Lock()
		defer mu.Unlock()
		if err.Error() == text && time.Since(at) < quiet {
			return
		}
		text, at = err.Error(), time.Now()
		w.log.Warn("cannot read settings now; what was read stays in force", zap.Stringer("object", ref), zap.Error(err))
	}
}
