package ca

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// PluggedInSecret is the name of the Secret that operators put their own CA in.
const PluggedInSecret = "cacerts"

// callTimeout bounds every call to the API server that a person does not wait
// for.
const callTimeout = 10 * time.Second

// secretRef is a Secret in the primary cluster.
type secretRef struct {
	client          kubernetes.Interface
	cluster         mesh.ClusterID
	namespace, name string
}

func (s secretRef) String() string { return "Secret " + s.namespace + "/" + s.name }

func (s secretRef) object() mesh.ObjectRef {
	return mesh.ObjectRef{Cluster: s.cluster, Kind: "Secret", Namespace: s.namespace, Name: s.name}
}

// get reads the Secret; nil without an error means that it does not exist.
func (s secretRef) get(ctx context.Context) (*corev1.Secret, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	secret, err := s.client.CoreV1().Secrets(s.namespace).Get(ctx, s.name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("get %s in cluster %s: %w", s, s.cluster, err)
	}
	return secret, nil
}

// create makes the Secret; an error for which IsAlreadyExists holds means that
// somebody else was first.
func (s secretRef) create(ctx context.Context, secret *corev1.Secret) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := s.client.CoreV1().Secrets(s.namespace).Create(ctx, secret, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("create %s in cluster %s: %w", s, s.cluster, err)
	}
	return nil
}

// update writes the Secret if it still has the resource version that it was
// read with; an error for which IsConflict holds means that it has not.
func (s secretRef) update(ctx context.Context, secret *corev1.Secret) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := s.client.CoreV1().Secrets(s.namespace).Update(ctx, secret, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("update %s in cluster %s: %w", s, s.cluster, err)
	}
	return nil
}

// watch calls changed at every event of the Secret until the context ends.
func (s secretRef) watch(ctx context.Context, changed func()) {
	only := fields.OneTermEqualSelector("metadata.name", s.name).String()
	secrets := s.client.CoreV1().Secrets(s.namespace)
	_, informer := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: &cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				o.FieldSelector = only
				return secrets.List(ctx, o)
			},
			WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
				o.FieldSelector = only
				return secrets.Watch(ctx, o)
			},
		},
		ObjectType: &corev1.Secret{},
		// The content is read when it is used: a cache need not hold keys.
		Transform: func(obj any) (any, error) {
			if secret, ok := obj.(*corev1.Secret); ok {
				secret.Data, secret.StringData = nil, nil
			}
			return obj, nil
		},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { changed() },
			UpdateFunc: func(any, any) { changed() },
			DeleteFunc: func(any) { changed() },
		},
	})
	informer.RunWithContext(ctx)
}

// SecretSource reads issuing material from a Secret.
type SecretSource struct {
	// LeaveGenerated leaves a CA that is marked as generated to [SelfSigned]. Set
	// it before use.
	LeaveGenerated bool

	ref secretRef
	now func() time.Time
}

// NewSecretSource returns a source for the Secret cacerts of the system
// namespace; clock may be nil.
func NewSecretSource(client kubernetes.Interface, cluster mesh.ClusterID, namespace string, clock func() time.Time) *SecretSource {
	return &SecretSource{
		ref: secretRef{client: client, cluster: cluster, namespace: namespace, name: PluggedInSecret},
		now: clockOrSystem(clock),
	}
}

// Name implements [Source].
func (s *SecretSource) Name() string { return s.ref.String() }

// Object implements [Source].
func (s *SecretSource) Object() mesh.ObjectRef { return s.ref.object() }

// Load implements [Source].
func (s *SecretSource) Load(ctx context.Context) (*Bundle, error) {
	secret, err := s.ref.get(ctx)
	if err != nil {
		return nil, err
	}
	if secret == nil {
		return nil, fmt.Errorf("load CA bundle from %s: %w", s.Name(), ErrNoBundle)
	}
	if _, generated := secret.Data[fileGenerated]; generated && s.LeaveGenerated {
		return nil, fmt.Errorf("load CA bundle from %s: it is a self-signed one: %w", s.Name(), ErrNoBundle)
	}
	return ParseBundle(s.Name(), secret.Data, s.now())
}

// Watch implements [Source].
func (s *SecretSource) Watch(ctx context.Context, changed func()) error {
	s.ref.watch(ctx, changed)
	return nil
}
