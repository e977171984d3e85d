package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/registry/config"
	"github.com/isthmus-mesh/isthmus/registry/gatewayapi"
)

const (
	// fieldManager owns what is written.
	fieldManager = "isthmus-gateway-status"
	// pause collects changes before anything is written.
	pause = 200 * time.Millisecond
	// look is how often Secrets and ConfigMaps that objects name are looked at.
	look = 10 * time.Second
	// lookAgain is how often those are that are missing or broken.
	lookAgain = 2 * time.Second
	// callTimeout bounds a call to the API server.
	callTimeout = 10 * time.Second
	// retryMin and retryMax bound the wait before an object is written again that
	// could not be, or that somebody else keeps changing.
	retryMin = time.Second
	retryMax = 5 * time.Minute
)

// Config configures a [Writer].
type Config struct {
	// Dynamic and Client are for the primary.
	Dynamic dynamic.Interface
	Client  kubernetes.Interface
	Store   *registry.Store
	// Routers makes routers for Gateways while this replica leads; nil for nobody.
	Routers Routers
	// Elect runs a function while this replica writes, and returns when the context
	// ends; see [LeaseName]. Required.
	Elect func(ctx context.Context, lead func(context.Context)) error
	Clock func() time.Time // time.Now if nil
	Log   *zap.Logger      // nothing if nil
}

// Routers makes routers for Gateways: see registry/gatewayapi/deploy.
type Routers interface {
	// Lead makes them until the context ends, and calls changed when State says
	// something else.
	Lead(ctx context.Context, changed func())
	// State is what is known of the routers of a Gateway; nothing is said of one that
	// is not settled.
	State(gatewayapi.Name) (known gatewayapi.Infrastructure, settled bool)
}

// Writer writes statuses for as long as it leads.
type Writer struct {
	cfg Config
	log *zap.Logger
	// Only the goroutine that leads looks at what follows.
	attempts    map[mesh.ObjectKey]*attempt
	credentials map[gatewayapi.Credential]knowledge
	classes     map[string]*attempt
	// unsettled are the Gateways of whose routers nothing was known when statuses
	// were last worked out.
	unsettled  map[mesh.ObjectKey]struct{}
	translator gatewayapi.Translator
}

// attempt remembers when an object was last written, and what for.
type attempt struct {
	said string
	next time.Time
	wait time.Duration
}

// due reports whether something may be said now, and notes that it is. What is
// new may be said at once; what had to be said before waits longer every time.
func (a *attempt) due(said string, now time.Time) bool {
	if a.said != said {
		a.said, a.wait, a.next = said, retryMin, now.Add(retryMin)
		return true
	}
	if now.Before(a.next) {
		return false
	}
	a.wait = min(2*a.wait, retryMax)
	a.next = now.Add(a.wait)
	return true
}

// New returns a writer; it does nothing before [Writer.Run].
func New(c Config) (*Writer, error) {
	if c.Dynamic == nil || c.Client == nil || c.Store == nil || c.Elect == nil {
		return nil, errors.New("make writer of gateway status: clients, store and election must be set")
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	return &Writer{cfg: c, log: c.Log}, nil
}

// lead writes until the context ends.
func (w *Writer) lead(ctx context.Context) {
	if ctx.Err() != nil {
		return
	}
	w.log.Info("writing the status of gateways and routes")
	w.attempts, w.credentials, w.classes = map[mesh.ObjectKey]*attempt{}, map[gatewayapi.Credential]knowledge{}, map[string]*attempt{}
	wake := make(chan struct{}, 1)
	again := func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
	again()
	cancel := w.cfg.Store.OnChange(func(c registry.Change) {
		if concerns(&c) {
			again()
		}
	})
	defer cancel()
	if w.cfg.Routers != nil {
		var routers sync.WaitGroup
		defer routers.Wait()
		routers.Go(func() { w.cfg.Routers.Lead(ctx, again) })
	}
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
		timer.Reset(min(look, max(retryMin, w.writeAll(ctx))))
	}
}

// concerns reports whether a change may make a difference to any status.
func concerns(c *registry.Change) bool {
	for k := range c.Objects {
		if gatewayapi.Reads(k.Kind) {
			return true
		}
	}
	for _, s := range c.Services {
		if s.Aspects.Has(registry.AspectDefinition) {
			return true
		}
	}
	return false
}

// writeAll writes every status that is not as it should be, and returns after
// how long there may be more to write.
func (w *Writer) writeAll(ctx context.Context) time.Duration {
	cat := w.cfg.Store.Catalog()
	w.makeClasses(ctx, cat)
	res := w.translate(ctx, cat)
	wait := look
	for _, c := range w.credentials {
		wait = min(wait, c.holds())
	}
	for _, k := range config.GatewayKinds() {
		if k.Kind == mesh.KindReferenceGrant {
			continue
		}
		for _, o := range cat.Objects(k.Kind) {
			if ctx.Err() != nil {
				return look
			}
			if _, wait := w.unsettled[o.Key]; wait {
				continue // its status stays as it is
			}
			if err := w.write(ctx, k, o, res.Statuses[o.Key], &wait); err != nil && ctx.Err() == nil {
				w.log.Warn("status is not written, trying again", zap.Stringer("object", o.Origin), zap.Error(err))
			}
		}
	}
	for k := range w.attempts {
		if cat.Object(k) == nil {
			delete(w.attempts, k)
		}
	}
	return wait
}

// written is the status of an object as it was read.
func written(o *mesh.Object) string {
	if o.Status == nil {
		return ""
	}
	return o.Status.Written
}

// write writes the status of one object if it should say something else.
func (w *Writer) write(ctx context.Context, k config.Kind, o *mesh.Object, want *gatewayapi.Status, wait *time.Duration) error {
	if want == nil && !strings.Contains(written(o), gatewayapi.Controller) {
		return nil
	}
	now := w.cfg.Clock()
	next, err := Merge(k.Kind, written(o), want, metav1.NewTime(now.Truncate(time.Second)))
	if err != nil || next == nil {
		return err
	}
	said, err := json.Marshal(want)
	if err != nil {
		return fmt.Errorf("encode status of %s: %w", o.Origin, err)
	}
	a := w.attempts[o.Key]
	if a == nil {
		a = &attempt{}
		w.attempts[o.Key] = a
	}
	due := a.due(string(said), now)
	*wait = min(*wait, a.next.Sub(now))
	if !due {
		return nil
	}
	return w.patch(ctx, k, o, want, now)
}

// patch changes the status as it stands at the server: what was read may be old.
func (w *Writer) patch(ctx context.Context, k config.Kind, o *mesh.Object, want *gatewayapi.Status, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	api, live, err := w.get(ctx, k, o.Key)
	switch {
	case apierrors.IsNotFound(err):
		return nil // gone: that will be read
	case err != nil:
		return fmt.Errorf("read %s: %w", o.Origin, err)
	case live.GetGeneration() != o.Generation:
		return nil // changed: that will be read
	}
	current := ""
	if s, ok := live.Object["status"].(map[string]any); ok {
		raw, err := json.Marshal(s)
		if err != nil {
			return fmt.Errorf("encode status of %s: %w", o.Origin, err)
		}
		current = string(raw)
	}
	next, err := Merge(k.Kind, current, want, metav1.NewTime(now.Truncate(time.Second)))
	if err != nil || next == nil {
		return err
	}
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"resourceVersion": live.GetResourceVersion()}, "status": json.RawMessage(next)})
	if err != nil {
		return fmt.Errorf("encode status of %s: %w", o.Origin, err)
	}
	_, err = api.Patch(ctx, o.Key.Name, types.MergePatchType, body, metav1.PatchOptions{FieldManager: fieldManager}, "status")
	switch {
	case apierrors.IsConflict(err), apierrors.IsNotFound(err):
		return nil
	case apierrors.IsForbidden(err):
		return fmt.Errorf("write status of %s: allow patch on %s/status in the primary: %w", o.Origin, k.Resource, err)
	case err != nil:
		return fmt.Errorf("write status of %s: %w", o.Origin, err)
	}
	return nil
}

// get reads an object in the newest version that the server has.
func (w *Writer) get(ctx context.Context, k config.Kind, key mesh.ObjectKey) (dynamic.ResourceInterface, *unstructured.Unstructured, error) {
	var first error
	for _, v := range config.GatewayVersions(k.Kind) {
		var api dynamic.ResourceInterface = w.cfg.Dynamic.Resource(schema.GroupVersionResource{Group: k.Group, Version: v, Resource: k.Resource})
		if key.Namespace != "" {
			api = w.cfg.Dynamic.Resource(schema.GroupVersionResource{Group: k.Group, Version: v, Resource: k.Resource}).Namespace(key.Namespace)
		}
		o, err := api.Get(ctx, key.Name, metav1.GetOptions{})
		if err == nil || !apierrors.IsNotFound(err) {
			return api, o, err
		}
		if first == nil {
			first = err
		}
	}
	return nil, nil, first
}

// makeClasses makes the classes that users expect, where the server has the kind.
func (w *Writer) makeClasses(ctx context.Context, cat *registry.Catalog) {
	api := w.cfg.Dynamic.Resource(schema.GroupVersionResource{Group: gatewayv1.GroupName, Version: "v1", Resource: "gatewayclasses"})
	for name, controller := range gatewayapi.Classes() {
		if slices.ContainsFunc(cat.Objects(mesh.KindGatewayClass), func(o *mesh.Object) bool { return o.Key.Name == name }) {
			continue
		}
		if w.classes[name] == nil {
			w.classes[name] = &attempt{}
		}
		if !w.classes[name].due(controller, w.cfg.Clock()) {
			continue
		}
		c := &unstructured.Unstructured{Object: map[string]any{"apiVersion": gatewayv1.GroupName + "/v1", "kind": string(mesh.KindGatewayClass),
			"metadata": map[string]any{"name": name}, "spec": map[string]any{"controllerName": controller}}}
		callCtx, cancel := context.WithTimeout(ctx, callTimeout)
		_, err := api.Create(callCtx, c, metav1.CreateOptions{FieldManager: fieldManager})
		cancel()
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsAlreadyExists(err) && ctx.Err() == nil {
			w.log.Warn("class of gateways is not there and cannot be made", zap.String("class", name), zap.Error(err))
		}
	}
}
