package kube

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Bounds and waits of requests.
const (
	listTimeout       = time.Minute
	watchStartTimeout = 30 * time.Second
	// watchStartLate is when a watch that has not started counts as unanswered in
	// the status. It goes on until watchStartTimeout: an API server under load may
	// queue it, but one that is gone has to be found out within a minute, and the
	// death of the watch before it took up to 45 s of that.
	watchStartLate = 5 * time.Second
	// retryMin and retryMax bound the wait after a failure; jitter adds half.
	retryMin = 500 * time.Millisecond
	retryMax = 5 * time.Second
	// absentRetry is how often a kind that the server does not have is asked for.
	absentRetry = 30 * time.Second
)

// reader keeps the translator equal to one kind of an API server. It is the
// store of a client-go reflector: lists and events go into the translator
// without another cache between them. The reflector does the protocol: a
// streamed list where the server has it, bookmarks, 410, backoff.
type reader struct {
	source *Source
	// resource names the kind in messages and requests.
	resource string
	// object is an example of the type that is read.
	object runtime.Object
	// optional kinds need not exist in the server. Of spare ones, which clusters do
	// without as a rule, it is the same to be refused as to find nothing: a reader
	// that was made before they were read is no defect.
	optional, spare bool
	list            cache.ListWithContextFunc
	watch           cache.WatchFuncWithContext
	// set and remove change the translator, which is locked. set reports whether
	// the object is one that the reader knows.
	set    func(obj any)
	remove func(k types.NamespacedName)

	state *kindState
	keys  map[types.NamespacedName]struct{} // what is in the translator; guarded by source.mu
	// absent and absentAt remember that the server does not have the kind. Only
	// the reflector's goroutine uses them.
	absent   error
	absentAt time.Time
	// away says that the server refused connections since the last answer. Only
	// the reflector's goroutine uses it.
	away bool
}

// run reads until the context ends.
func (r *reader) run(ctx context.Context) {
	lw := &cache.ListWatch{ListWithContextFunc: r.doList, WatchFuncWithContext: r.doWatch}
	cache.NewReflectorWithOptions(lw, r.object, r, cache.ReflectorOptions{
		Name:    string(r.source.cfg.Cluster) + "/" + r.resource,
		Logger:  &klog.Logger{},
		Backoff: &wait.Backoff{Duration: retryMin, Cap: retryMax, Steps: 16, Factor: 2, Jitter: 0.5},
	}).RunWithContext(ctx)
}

func (r *reader) doList(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	if err := r.heldOff(); err != nil {
		return nil, err
	}
	bounded, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	list, err := r.list(bounded, o)
	if ctx.Err() == nil {
		r.answered(err, false)
	}
	return list, err
}

// doWatch starts a watch within a bounded time.
func (r *reader) doWatch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	if err := r.heldOff(); err != nil {
		return nil, err
	}
	started, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(watchStartTimeout, func() { cancel(errWatchStart) })
	answered := r.noteLate()
	w, err := r.watch(started, o)
	answered()
	if err == nil && !timer.Stop() {
		w.Stop()
		err = errWatchStart
	}
	if err != nil {
		if errors.Is(context.Cause(started), errWatchStart) {
			err = errWatchStart
		}
		timer.Stop()
		cancel(nil)
	}
	if ctx.Err() == nil {
		r.answered(err, true)
	}
	r.away = r.away || utilnet.IsConnectionRefused(err)
	switch {
	case err == nil && r.away && o.SendInitialEvents == nil:
		// A server that was away may have been restored from an older state. It
		// would take a watch from a version that it has not reached and stay silent
		// (kubernetes#107457): what it has is listed instead.
		r.away = false
		w.Stop()
		cancel(nil)
		return nil, apierrors.NewResourceExpired("the server was away and may have gone back in time: listing again")
	case err == nil:
		r.away = false
		return &boundWatch{w, cancel}, nil
	case o.SendInitialEvents != nil && (utilnet.IsConnectionRefused(err) || apierrors.IsTooManyRequests(err)):
		// For these two the reflector would wait without looking at the context.
		return nil, errors.New(err.Error())
	}
	return nil, err
}

// noteLate tells the status when a watch takes long to start. The function that
// it returns is to be called when there is an answer; nothing is told after it.
func (r *reader) noteLate() (answered func()) {
	var mu sync.Mutex
	done := false
	timer := time.AfterFunc(watchStartLate, func() {
		mu.Lock()
		defer mu.Unlock()
		if !done {
			r.note(r.source.cfg.Clock(), errWatchLate, false, false, false)
			r.source.wake()
		}
	})
	return func() {
		timer.Stop()
		mu.Lock()
		defer mu.Unlock()
		done = true
	}
}

var errWatchLate = fmt.Errorf("no answer to a watch for %s", watchStartLate)

var errWatchStart = fmt.Errorf("no answer to a watch within %s", watchStartTimeout)

// boundWatch ends its context with the watch.
type boundWatch struct {
	watch.Interface
	cancel context.CancelCauseFunc
}

func (w *boundWatch) Stop() {
	w.Interface.Stop()
	w.cancel(nil)
}

// heldOff returns the last answer for a kind that the server does not have,
// until it is time to ask again.
func (r *reader) heldOff() error {
	if r.absent != nil && r.source.cfg.Clock().Sub(r.absentAt) < absentRetry {
		return r.absent
	}
	return nil
}

// answered notes the outcome of a request.
func (r *reader) answered(err error, watching bool) {
	now := r.source.cfg.Clock()
	refused, absent := false, false
	switch {
	case apierrors.IsForbidden(err):
		absent, refused = r.spare && !r.everRead(), !r.spare || r.everRead()
	case apierrors.IsNotFound(err):
		absent, refused = r.optional, !r.optional
	case apierrors.IsResourceExpired(err) || apierrors.IsGone(err):
		err = nil // the reflector lists anew
		watching = false
	}
	if r.absent = nil; absent {
		r.absent, r.absentAt = err, now
	}
	r.note(now, err, refused, absent, watching)
	if refused {
		r.reportRefusal(err)
	} else if err == nil {
		r.clearRefusal()
	}
	r.source.wake()
}

// everRead reports whether the kind was read before: then a refusal is news.
func (r *reader) everRead() bool {
	b := &r.source.status
	b.mu.Lock()
	defer b.mu.Unlock()
	return r.state.Synced && !r.state.Absent
}

func (r *reader) note(now time.Time, err error, refused, absent, watching bool) {
	b, k := &r.source.status, r.state
	b.mu.Lock()
	defer b.mu.Unlock()
	if k.Refused = refused; !refused {
		k.refusedSince = time.Time{}
	} else if k.refusedSince.IsZero() {
		k.refusedSince = now
	}
	k.Absent, k.Error = absent, ""
	if absent {
		k.Synced, k.Connected = true, false
	} else if err != nil {
		k.Connected, k.Error = false, printable(err.Error())
	} else {
		k.Connected = k.Connected || watching
	}
	var status apierrors.APIStatus
	if b.answered = err == nil || errors.As(err, &status); b.answered {
		b.lastContact, b.failure = now, ""
	} else {
		b.failure = k.Error
	}
}

// ref names the kind itself in the list of problems.
func (r *reader) ref() mesh.ObjectRef {
	return mesh.ObjectRef{Cluster: r.source.cfg.Cluster, Kind: "Resource", Name: r.resource}
}

func (r *reader) reportRefusal(err error) {
	message := "cannot be read, the other kinds are served: " + printable(err.Error()) + "; grant get, list and watch to the account of the kubeconfig"
	switch {
	case r.state.essential:
		message = "cannot be read, and without it nothing of the cluster is served: " + printable(err.Error()) + "; grant get, list and watch to the account of the kubeconfig"
	case r.resource == resourcePods:
		message += "; until then addresses are served without identity and mTLS"
	}
	if p := r.source.cfg.Problems; p == nil || p.Set(r.ref(), "", message) {
		r.source.log.Warn("kind "+message, zap.String("kind", r.resource))
	}
}

func (r *reader) clearRefusal() {
	if p := r.source.cfg.Problems; p != nil {
		p.Clear(r.ref())
	}
}

// Add, Update, Delete, Replace, Resync, Bookmark and Transformer make the reader
// the store of its reflector.

// Add takes a new object.
func (r *reader) Add(obj any) error { return r.put(obj, "add") }

// Update takes a changed object.
func (r *reader) Update(obj any) error { return r.put(obj, "update") }

func (r *reader) put(obj any, event string) error {
	k, err := keyOf(obj)
	if err != nil {
		return err
	}
	if obj, err = Strip(obj); err != nil {
		return err
	}
	r.source.mu.Lock()
	r.set(obj)
	r.keys[k] = struct{}{}
	n := len(r.keys)
	r.source.mu.Unlock()
	r.seen(event, n, false)
	return nil
}

// Delete takes an object away.
func (r *reader) Delete(obj any) error {
	k, err := keyOf(obj)
	if err != nil {
		return err
	}
	r.source.mu.Lock()
	r.remove(k)
	delete(r.keys, k)
	n := len(r.keys)
	r.source.mu.Unlock()
	r.seen("delete", n, false)
	return nil
}

// Replace takes a whole list: what was there and is not in it is gone. What is
// in it unchanged has no effect.
func (r *reader) Replace(list []any, _ string) error {
	next := make(map[types.NamespacedName]struct{}, len(list))
	r.source.mu.Lock()
	for _, obj := range list {
		k, err := keyOf(obj)
		if err != nil {
			continue // not an object: nothing could be said of it
		}
		if obj, err = Strip(obj); err == nil {
			r.set(obj)
			next[k] = struct{}{}
		}
	}
	for k := range r.keys {
		if _, ok := next[k]; !ok {
			r.remove(k)
		}
	}
	r.keys = next
	r.source.mu.Unlock()
	r.clearRefusal()
	r.seen("list", len(next), true)
	return nil
}

// Resync does nothing: the translator is complete.
func (r *reader) Resync() error { return nil }

// Bookmark notes a sign of life.
func (r *reader) Bookmark(string) error {
	r.touch(func(*kindState) {})
	return nil
}

// Transformer strips objects as soon as they are decoded.
func (r *reader) Transformer() cache.TransformFunc { return Strip }

func (r *reader) seen(event string, objects int, whole bool) {
	r.touch(func(k *kindState) {
		k.Objects = objects
		if whole {
			k.Synced, k.Absent, k.Refused, k.refusedSince = true, false, false, time.Time{}
			k.LastList = k.LastEvent
		}
	})
	r.source.metrics.count(r.resource, event)
	r.source.wake()
}

func (r *reader) touch(f func(*kindState)) {
	now := r.source.cfg.Clock()
	b := &r.source.status
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answered, b.lastContact, r.state.LastEvent = true, now, now
	f(r.state)
}

// keyOf names an object, also one of which only the deletion is known.
func keyOf(obj any) (types.NamespacedName, error) {
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		ns, name, err := cache.SplitMetaNamespaceKey(gone.Key)
		return types.NamespacedName{Namespace: ns, Name: name}, err
	}
	m, err := meta.Accessor(obj)
	if err != nil {
		return types.NamespacedName{}, fmt.Errorf("read object: %w", err)
	}
	return types.NamespacedName{Namespace: m.GetNamespace(), Name: m.GetName()}, nil
}
