package kube

import (
	"context"
	"sync"
	"sync/atomic"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
)

// versionedLister reads a kind in the newest version that the server has: the
// resource definitions of the Gateway API are installed by users, of whatever
// release.
type versionedLister struct {
	apis []dynamic.NamespaceableResourceInterface // newest first
	// group and version are what all objects pass for.
	group, version string
	// served is the index of the version that was last found.
	served atomic.Int32
}

func newVersionedLister(c dynamic.Interface, gvr schema.GroupVersionResource, versions []string) *versionedLister {
	l := &versionedLister{group: gvr.Group, version: versions[0]}
	for _, v := range versions {
		l.apis = append(l.apis, c.Resource(gvr.GroupResource().WithVersion(v)))
	}
	return l
}

// List tries one version after the other. A kind that is absent in all of them
// is absent.
func (l *versionedLister) List(ctx context.Context, o metav1.ListOptions) (*unstructured.UnstructuredList, error) {
	var first error
	for i, api := range l.apis {
		list, err := api.List(ctx, o)
		if err == nil {
			l.served.Store(int32(i))
			for i := range list.Items {
				l.newest(&list.Items[i])
			}
			return list, nil
		}
		if first == nil {
			first = err
		}
		if !apierrors.IsNotFound(err) {
			return nil, err
		}
	}
	return nil, first
}

// Watch watches the version that was listed; a watch that begins with all
// objects finds the version itself.
func (l *versionedLister) Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	i := int(l.served.Load())
	w, err := l.apis[i].Watch(ctx, o)
	for next := 0; o.SendInitialEvents != nil && apierrors.IsNotFound(err) && next < len(l.apis); next++ {
		if next != i {
			if w, err = l.apis[next].Watch(ctx, o); err == nil {
				l.served.Store(int32(next))
			}
		}
	}
	if err != nil {
		return nil, err
	}
	return newVersionedWatch(w, l.newest), nil
}

// versionedWatch passes events on after a look at each. It ends when it is
// stopped, also if nobody takes the event at hand: watch.Filter would not.
type versionedWatch struct {
	inner   watch.Interface
	results chan watch.Event
	stop    sync.Once
	stopped chan struct{}
}

func newVersionedWatch(inner watch.Interface, look func(*unstructured.Unstructured)) *versionedWatch {
	w := &versionedWatch{inner: inner, results: make(chan watch.Event), stopped: make(chan struct{})}
	go func() {
		defer close(w.results)
		for e := range inner.ResultChan() {
			if u, ok := e.Object.(*unstructured.Unstructured); ok {
				look(u)
			}
			select {
			case w.results <- e:
			case <-w.stopped:
				return
			}
		}
	}()
	return w
}

// ResultChan implements [watch.Interface].
func (w *versionedWatch) ResultChan() <-chan watch.Event { return w.results }

// Stop implements [watch.Interface].
func (w *versionedWatch) Stop() {
	w.stop.Do(func() { close(w.stopped) })
	w.inner.Stop()
}

// newest lets an object of an older version pass for one of the newest: what
// reads them expects one version.
func (l *versionedLister) newest(u *unstructured.Unstructured) {
	if u.GroupVersionKind().Group == l.group {
		u.SetAPIVersion(l.group + "/" + l.version)
	}
}
