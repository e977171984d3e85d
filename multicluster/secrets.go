package multicluster

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// SecretLabel and its value "true" mark the Secrets that hold kubeconfigs.
const SecretLabel = "istio/multiCluster"

// feed tells which kubeconfigs there are.
type feed interface {
	// run calls report with everything there is, first when all of it has been
	// read once, then after every change, until ctx ends. While it cannot read it
	// reports nothing and calls fail with the reason, and with "" when it can again.
	run(ctx context.Context, report func(snapshot), fail func(message string)) error
}

// snapshot is everything that a feed knows.
type snapshot struct{ objects []object }

// object is a Secret or a file.
type object struct {
	origin Origin // without Key
	// version changes whenever the object does.
	version string
	entries []entry
	weight  annotation
}

// annotation is one annotation of a Secret, which may not be there.
type annotation struct {
	text string
	set  bool
}

// entry is one kubeconfig.
type entry struct {
	id      mesh.ClusterID
	key     string
	content string // hash of raw
	raw     []byte
	// problem is set if there is no kubeconfig to read at all.
	problem string
}

func contentOf(raw []byte) string {
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:])
}

// nothing is the feed of a mesh without remote clusters.
type nothing struct{}

func (nothing) run(ctx context.Context, report func(snapshot), _ func(string)) error {
	report(snapshot{})
	<-ctx.Done()
	return nil
}

// secrets is the feed of labelled Secrets in one namespace.
type secrets struct {
	client    kubernetes.Interface
	namespace string
	// seen holds what was read of each Secret, so that one event does not cost
	// the hashing of all. Only the informer's handler uses it.
	seen map[string]object
}

func newSecrets(client kubernetes.Interface, namespace string) *secrets {
	return &secrets{client: client, namespace: namespace, seen: map[string]object{}}
}

func (s *secrets) run(ctx context.Context, report func(snapshot), fail func(string)) error {
	informer := cache.NewSharedIndexInformer(s.listWatch(fail), &corev1.Secret{}, 0, cache.Indexers{})
	changed := make(chan struct{}, 1)
	changed <- struct{}{}
	wake := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	handler, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { wake() }, UpdateFunc: func(any, any) { wake() }, DeleteFunc: func(any) { wake() },
	})
	if err != nil {
		return fmt.Errorf("watch secrets in namespace %s: %w", s.namespace, err)
	}
	// Errors are seen where the requests are made, with those that the reflector
	// keeps to itself.
	err = informer.SetWatchErrorHandlerWithContext(func(context.Context, *cache.Reflector, error) {})
	if err != nil {
		return fmt.Errorf("watch secrets in namespace %s: %w", s.namespace, err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		informer.RunWithContext(ctx)
	}()
	defer func() { <-done }()
	if !cache.WaitForCacheSync(ctx.Done(), handler.HasSynced) {
		return nil
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			report(s.read(informer.GetStore().List()))
		}
	}
}

// listWatch asks the primary for the labelled Secrets, and tells fail how that goes.
func (s *secrets) listWatch(fail func(string)) cache.ListerWatcher {
	api := s.client.CoreV1().Secrets(s.namespace)
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.LabelSelector = SecretLabel + "=true"
			list, err := api.List(ctx, o)
			fail(s.describe(err))
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.LabelSelector = SecretLabel + "=true"
			w, err := api.Watch(ctx, o)
			fail(s.describe(err))
			return w, err
		},
	}
	return cache.ToListWatcherWithWatchListSemantics(lw, s.client)
}

// describe says why the Secrets cannot be read, "" if they can: an expired
// version only means that they are read anew.
func (s *secrets) describe(err error) string {
	switch {
	case err == nil, errors.Is(err, context.Canceled), apierrors.IsResourceExpired(err), apierrors.IsGone(err):
		return ""
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		return fmt.Sprintf("read secrets of namespace %s in the primary: %v; grant get, list and watch on secrets there", s.namespace, err)
	}
	return fmt.Sprintf("read secrets of namespace %s in the primary: %v", s.namespace, err)
}

// read turns the Secrets into objects, each once per version.
func (s *secrets) read(list []any) snapshot {
	now := make(map[string]object, len(list))
	var out snapshot
	for _, x := range list {
		secret, ok := x.(*corev1.Secret)
		if !ok {
			continue
		}
		name := string(secret.UID) + "/" + secret.Name
		o, known := s.seen[name]
		if !known || o.version != secret.ResourceVersion || secret.ResourceVersion == "" {
			o = readSecret(secret)
		}
		now[name] = o
		out.objects = append(out.objects, o)
	}
	s.seen = now
	return out
}

func readSecret(secret *corev1.Secret) object {
	o := object{
		origin: Origin{
			Namespace: secret.Namespace, Name: secret.Name, UID: string(secret.UID), Created: secret.CreationTimestamp.Time,
		},
		version: secret.ResourceVersion,
	}
	o.weight.text, o.weight.set = secret.Annotations[WeightAnnotation]
	for _, key := range slices.Sorted(maps.Keys(secret.Data)) {
		raw := secret.Data[key]
		o.entries = append(o.entries, entry{id: mesh.ClusterID(key), key: key, content: contentOf(raw), raw: raw})
	}
	return o
}
