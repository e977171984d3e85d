package config

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// FollowConfigMap tells take of one ConfigMap until the context ends: what it is
// when it has been read, and whenever it changes. nil is that there is none,
// which is an answer; while the API server gives none, take hears nothing and
// failed hears why. take is never called twice at the same time but for the first
// answer, which may come beside a change.
func FollowConfigMap(ctx context.Context, client kubernetes.Interface, namespace, name string, take func(*corev1.ConfigMap), failed func(error)) error {
	set := func(o any) {
		if cm, ok := o.(*corev1.ConfigMap); ok && cm.Name == name && cm.Namespace == namespace {
			take(cm)
		}
	}
	informer := cache.NewSharedInformer(oneConfigMap(client, namespace, name), &corev1.ConfigMap{}, 0)
	if err := informer.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) { failed(err) }); err != nil {
		return fmt.Errorf("watch ConfigMap %s/%s: %w", namespace, name, err)
	}
	handle, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    set,
		UpdateFunc: func(_, o any) { set(o) },
		DeleteFunc: func(o any) {
			if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o = gone.Obj
			}
			if cm, ok := o.(*corev1.ConfigMap); ok && cm.Name == name && cm.Namespace == namespace {
				take(nil)
			}
		},
	})
	if err != nil {
		return fmt.Errorf("watch ConfigMap %s/%s: %w", namespace, name, err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		informer.RunWithContext(ctx)
	}()
	if cache.WaitForCacheSync(ctx.Done(), handle.HasSynced) {
		if _, there, _ := informer.GetStore().GetByKey(namespace + "/" + name); !there {
			take(nil)
		}
	}
	<-done
	return nil
}

func oneConfigMap(client kubernetes.Interface, namespace, name string) cache.ListerWatcher {
	maps := client.CoreV1().ConfigMaps(namespace)
	only := fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
	return cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = only
			return maps.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = only
			return maps.Watch(ctx, o)
		},
	}, client)
}
