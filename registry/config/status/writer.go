package status

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/registry/config"
)

const (
	// leaseName is the name of the lock that decides who writes, before a revision.
	leaseName = "isthmus-config-status"
	// fieldManager owns what is written.
	fieldManager = "isthmus-config-status"
	// pause collects changes before anything is written.
	pause = time.Second
	// perPass is how many objects are looked at in one go, and so in a pause.
	perPass = 10
	// settled is how long a fault must be gone before its condition goes: resources
	// are made of the mended object meanwhile, and may tell of it again.
	settled = 3 * time.Second
	// look is how often all is looked at without a change.
	look = time.Minute
	// callTimeout bounds a call to the API server, page a list's answer.
	callTimeout = 10 * time.Second
	page        = 250
	// retryMin and retryMax bound the wait before an object is looked at again.
	retryMin = time.Second
	retryMax = 5 * time.Minute
	// deniedFor is how long no status of a kind is written after that was not allowed.
	deniedFor = 10 * time.Minute
)

// LeaseName is the name of the lock of a revision.
func LeaseName(revision string) string { return config.NameOf(leaseName, revision) }

// Problems are the objects that are not served as written: see [registry.Problems].
type Problems interface {
	List() []registry.Problem
	OnChange(func()) (cancel func())
}

// Config configures a [Writer].
type Config struct {
	// Client is for the primary, which Cluster names. Both are required.
	Client  dynamic.Interface
	Cluster mesh.ClusterID
	// Revision is that of this control plane. Objects that ask for another one
	// (istio.io/rev) are left alone.
	Revision string
	// Problems and Generation are what is known of objects: Generation is that of the
	// object that is served, 0 if there is none. Both are required.
	Problems   Problems
	Generation func(mesh.ObjectKey) int64
	// Elect runs a function while this replica writes, and returns when the context
	// ends; see [LeaseName]. Required.
	Elect func(ctx context.Context, lead func(context.Context)) error
	Clock func() time.Time // time.Now if nil
	Log   *zap.Logger      // nothing if nil
}

// Writer writes conditions for as long as it leads.
type Writer struct {
	cfg   Config
	log   *zap.Logger
	typ   string
	kinds map[mesh.ObjectKind]config.Kind
	// Only the goroutine that leads looks at what follows.
	term
}

// term is what is remembered while this replica leads.
type term struct {
	// objects have or had a fault.
	objects map[mesh.ObjectKey]*object
	// lists are the kinds of which it is not known which objects have a condition from
	// before this replica led.
	lists map[mesh.ObjectKind]*attempt
	// denied are the kinds whose status may not be written, and until when that is
	// taken for so; updates those that may be updated, but not patched.
	denied  map[mesh.ObjectKind]time.Time
	updates map[mesh.ObjectKind]bool
}

// object is what is remembered of an object.
type object struct {
	attempt
	// seen: this replica has known of a fault itself.
	seen bool
	// reason and generation are those of the condition that was found.
	reason     string
	generation int64
	// mended is since when nothing is known of a fault, zero if something is.
	mended time.Time
}

// New returns a writer; it does nothing before [Writer.Run].
func New(c Config) (*Writer, error) {
	if c.Client == nil || c.Cluster == "" || c.Problems == nil || c.Generation == nil || c.Elect == nil {
		return nil, errors.New("make writer of configuration status: client, cluster, problems, generations and election must be set")
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	w := &Writer{cfg: c, log: c.Log, typ: TypeOf(c.Revision), kinds: map[mesh.ObjectKind]config.Kind{}}
	for _, k := range config.Kinds() {
		w.kinds[k.Kind] = k
	}
	return w, nil
}

// Run stands for election and writes while it leads, until the context ends. Call
// it once the primary has been read completely: before, it is not known which
// faults are gone.
func (w *Writer) Run(ctx context.Context) error {
	if err := w.cfg.Elect(ctx, w.lead); err != nil && ctx.Err() == nil {
		return fmt.Errorf("elect the writer of configuration status: %w", err)
	}
	return nil
}

// begin forgets everything: another replica may have written meanwhile.
func (w *Writer) begin() {
	w.term = term{objects: map[mesh.ObjectKey]*object{}, lists: map[mesh.ObjectKind]*attempt{},
		denied: map[mesh.ObjectKind]time.Time{}, updates: map[mesh.ObjectKind]bool{}}
	for k := range w.kinds {
		w.lists[k] = &attempt{}
	}
}

// lead writes until the context ends.
func (w *Writer) lead(ctx context.Context) {
	if ctx.Err() != nil {
		return
	}
	w.log.Info("telling authors of objects that are not served as written, in their status")
	w.begin()
	wake := make(chan struct{}, 1)
	wake <- struct{}{}
	cancel := w.cfg.Problems.OnChange(func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	})
	defer cancel()
	timer := time.NewTimer(look)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-wake:
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
		}
		timer.Reset(w.pass(ctx))
	}
}

// pass brings conditions up to date, so many of them, and returns after how long
// it is to be called again.
func (w *Writer) pass(ctx context.Context) time.Duration {
	wait := look
	w.listAll(ctx, &wait)
	faults := w.faults()
	for k := range faults {
		if w.objects[k] == nil {
			w.objects[k] = &object{}
		}
	}
	now := w.cfg.Clock()
	todo := w.todo(faults, now, &wait)
	for _, x := range todo[:min(len(todo), perPass)] {
		if ctx.Err() != nil {
			break
		}
		if now.Before(w.denied[x.key.Kind]) { // since a moment ago
			continue
		}
		x.object.due(x.said, now)
		w.settle(ctx, x.key, x.object, faults[x.key])
		wait = min(wait, x.object.next.Sub(now))
	}
	if len(todo) > perPass {
		return pause
	}
	return max(wait, pause)
}

// job is something to be said of an object now.
type job struct {
	key    mesh.ObjectKey
	object *object
	said   string
}

// todo lists what is due: first what was never said, then what waits longest.
func (w *Writer) todo(faults map[mesh.ObjectKey]*registry.Problem, now time.Time, wait *time.Duration) []job {
	var out []job
	for k, o := range w.objects {
		said, act := o.wants(faults[k], w.cfg.Generation(k), now, wait)
		if !act {
			continue
		}
		if until := w.denied[k.Kind]; now.Before(until) {
			*wait = min(*wait, until.Sub(now))
			continue
		}
		if again := o.rest(said, now); again > 0 {
			*wait = min(*wait, again)
			continue
		}
		out = append(out, job{k, o, said})
	}
	slices.SortFunc(out, func(a, b job) int {
		return cmp.Or(cmp.Compare(a.object.known(a.said), b.object.known(b.said)), a.object.next.Compare(b.object.next),
			cmp.Compare(a.key.Kind, b.key.Kind), cmp.Compare(a.key.Namespace, b.key.Namespace), cmp.Compare(a.key.Name, b.key.Name))
	})
	return out
}

// settle looks at an object and writes what is to be said of it.
func (w *Writer) settle(ctx context.Context, k mesh.ObjectKey, o *object, fault *registry.Problem) {
	result, err := w.write(ctx, w.kinds[k.Kind], k, fault)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		w.log.Warn("status is not written, trying again", zap.String("object", string(k.Kind)+" "+k.Namespace+"/"+k.Name), zap.Error(err))
	case result == gone:
		delete(w.objects, k)
	case result == stands:
		o.rested(w.cfg.Clock())
	}
}

// wants says whether anything is to be said of an object now, and in short what.
func (o *object) wants(fault *registry.Problem, generation int64, now time.Time, wait *time.Duration) (said string, act bool) {
	if fault != nil {
		if !o.mended.IsZero() { // it was gone, though for a moment
			o.attempt = attempt{}
		}
		o.seen, o.mended = true, time.Time{}
		return fmt.Sprint(fault.Generation, fault.Field, fault.Message, fault.Parts), true
	}
	// Parts are found by who makes resources with them. This replica may have nobody
	// to make them for: what another one has found stands until the object changes.
	if !o.seen && o.reason == ReasonPartsLeftOut && o.generation == generation {
		return "", false
	}
	if o.mended.IsZero() {
		o.mended = now
	}
	if rest := settled - now.Sub(o.mended); rest > 0 {
		*wait = min(*wait, rest)
		return "", false
	}
	return "", true
}

// faults are the problems of the primary's objects of Istio's kinds.
func (w *Writer) faults() map[mesh.ObjectKey]*registry.Problem {
	out := map[mesh.ObjectKey]*registry.Problem{}
	for _, p := range w.cfg.Problems.List() {
		k := mesh.ObjectKey{Kind: mesh.ObjectKind(p.Object.Kind), Namespace: p.Object.Namespace, Name: p.Object.Name}
		if _, ours := w.kinds[k.Kind]; ours && p.Object.Cluster == w.cfg.Cluster {
			out[k] = &p
		}
	}
	return out
}

// listAll finds the conditions that were written before this replica led.
func (w *Writer) listAll(ctx context.Context, wait *time.Duration) {
	for _, kind := range slices.Sorted(maps.Keys(w.lists)) {
		a, now := w.lists[kind], w.cfg.Clock()
		due := a.due("list", now)
		*wait = min(*wait, a.next.Sub(now))
		if !due {
			continue
		}
		err := w.listKind(ctx, w.kinds[kind])
		if err == nil || apierrors.IsNotFound(err) { // nobody has objects of a kind that is not there
			delete(w.lists, kind)
		} else if ctx.Err() == nil {
			w.log.Warn("conditions that were written before are not known, trying again", zap.String("kind", string(kind)), zap.Error(err))
		}
	}
}

func (w *Writer) listKind(ctx context.Context, k config.Kind) error {
	o := metav1.ListOptions{Limit: page}
	for {
		callCtx, cancel := context.WithTimeout(ctx, callTimeout)
		list, err := w.cfg.Client.Resource(resource(k)).List(callCtx, o)
		cancel()
		if err != nil {
			return fmt.Errorf("list %s: %w", k.Resource, err)
		}
		for i := range list.Items {
			x := &list.Items[i]
			c, ok := find(conditionsOf(x), w.typ)
			key := mesh.ObjectKey{Kind: k.Kind, Namespace: x.GetNamespace(), Name: x.GetName()}
			if !ok || w.objects[key] != nil {
				continue
			}
			reason, _ := c["reason"].(string)
			w.objects[key] = &object{reason: reason, generation: generationOf(c)}
		}
		if o.Continue = list.GetContinue(); o.Continue == "" {
			return nil
		}
	}
}

func resource(k config.Kind) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: k.Group, Version: k.Version, Resource: k.Resource}
}

func conditionsOf(o *unstructured.Unstructured) []any {
	out, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions") // what is no list has none of ours
	return out
}

// ours reports whether an object asks for this revision, or for none.
func (w *Writer) ours(o *unstructured.Unstructured) bool {
	return config.InRevision(o.GetLabels(), w.cfg.Revision)
}

// attempt remembers when something was last tried, and what for.
type attempt struct {
	said string
	next time.Time
	wait time.Duration
}

// rest is how long it is before something may be said: nothing if it is new.
func (a *attempt) rest(said string, now time.Time) time.Duration {
	if a.known(said) == 0 {
		return 0
	}
	return max(0, a.next.Sub(now))
}

// known is 1 if something was said before, else 0.
func (a *attempt) known(said string) int {
	if a.wait > 0 && a.said == said {
		return 1
	}
	return 0
}

// due reports whether something may be said now, and notes that it is. What is
// new may be said at once; what was said before is looked at ever more seldom.
func (a *attempt) due(said string, now time.Time) bool {
	switch {
	case a.rest(said, now) > 0:
		return false
	case a.known(said) == 0:
		a.said, a.wait = said, retryMin
	default:
		a.wait = min(2*a.wait, retryMax)
	}
	a.next = now.Add(a.wait)
	return true
}

// rested notes that what was said stands: there is no hurry to look again.
func (a *attempt) rested(now time.Time) {
	a.wait = max(a.wait, look)
	a.next = now.Add(a.wait)
}
