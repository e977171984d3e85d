package serve

import (
	"context"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/manifests"
)

// meshKey is the mesh settings' key in a ConfigMap.
const meshKey = "mesh"

// settingsClient is the client that mesh settings are read with: where several
// control planes share settings (SHARED_MESH_CONFIG), it shows ConfigMap istio
// with the shared one lying under it.
func (k *kubeWorld) settingsClient() kubernetes.Interface {
	if k.c.settings.SharedMeshConfig == "" {
		return k.client
	}
	return sharedSettings{k.client, k.c.settings.SharedMeshConfig}
}

// sharedSettings is a client whose ConfigMaps, where one is read by name, have
// another one's mesh settings under their own.
type sharedSettings struct {
	kubernetes.Interface
	shared string
}

// CoreV1 implements [kubernetes.Interface].
func (s sharedSettings) CoreV1() typedcorev1.CoreV1Interface {
	return sharedCore{s.Interface.CoreV1(), s.shared}
}

// IsWatchListSemanticsUnSupported makes informers list before they watch: both
// ConfigMaps must be known before the first merge.
func (s sharedSettings) IsWatchListSemanticsUnSupported() bool { return true }

type sharedCore struct {
	typedcorev1.CoreV1Interface
	shared string
}

// ConfigMaps implements [typedcorev1.CoreV1Interface].
func (c sharedCore) ConfigMaps(namespace string) typedcorev1.ConfigMapInterface {
	return &sharedConfigMaps{ConfigMapInterface: c.CoreV1Interface.ConfigMaps(namespace), namespace: namespace, shared: c.shared}
}

// sharedConfigMaps lists and watches one ConfigMap with another under it.
type sharedConfigMaps struct {
	typedcorev1.ConfigMapInterface
	namespace, shared string

	mu         sync.Mutex
	own, under *corev1.ConfigMap // what is known of them; guarded by mu
}

// List implements [typedcorev1.ConfigMapInterface].
func (s *sharedConfigMaps) List(ctx context.Context, o metav1.ListOptions) (*corev1.ConfigMapList, error) {
	own, err := s.ConfigMapInterface.List(ctx, o)
	if err != nil {
		return nil, err
	}
	under, err := s.ConfigMapInterface.List(ctx, metav1.ListOptions{FieldSelector: s.selector()})
	if err != nil {
		return nil, fmt.Errorf("list shared settings %s/%s: %w", s.namespace, s.shared, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.own, s.under = named(own, nameIn(o)), named(under, s.shared)
	// The older version is the one to watch from, so that nothing between the two is lost.
	out := &corev1.ConfigMapList{TypeMeta: own.TypeMeta, ListMeta: metav1.ListMeta{ResourceVersion: own.ResourceVersion}}
	if m := s.merged(nameIn(o)); m != nil {
		out.Items = append(out.Items, *m)
	}
	return out, nil
}

// Watch implements [typedcorev1.ConfigMapInterface]. Every change of either is
// one of the merged ConfigMap.
func (s *sharedConfigMaps) Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	own, err := s.ConfigMapInterface.Watch(ctx, o)
	if err != nil {
		return nil, err
	}
	both := o
	both.FieldSelector = s.selector()
	under, err := s.ConfigMapInterface.Watch(ctx, both)
	if err != nil {
		own.Stop()
		return nil, fmt.Errorf("watch shared settings %s/%s: %w", s.namespace, s.shared, err)
	}
	events := make(chan watch.Event)
	out := watch.NewProxyWatcher(events)
	go s.forward(nameIn(o), own, under, events, out)
	return out, nil
}

// forward merges two watches into one, until either ends. Their events have no
// order between them, so that the last version seen says nothing about both:
// after an end they are listed again.
func (s *sharedConfigMaps) forward(name string, own, under watch.Interface, events chan<- watch.Event, out *watch.ProxyWatcher) {
	defer close(events)
	defer own.Stop()
	defer under.Stop()
	for {
		var e watch.Event
		var ok, mine bool
		select {
		case <-out.StopChan():
			return
		case e, ok = <-own.ResultChan():
			mine = true
		case e, ok = <-under.ResultChan():
		}
		end := !ok || e.Type == watch.Error
		switch {
		case !ok:
			e = watch.Event{Type: watch.Error, Object: &apierrors.NewResourceExpired("one of two watches ended").ErrStatus}
		case !end:
			if e, ok = s.take(name, e, mine); !ok {
				continue
			}
		}
		select {
		case <-out.StopChan():
			return
		case events <- e:
		}
		if end {
			return
		}
	}
}

// take notes what changed in one of the two, and returns what that is for the
// merged one; false if nothing changed.
func (s *sharedConfigMaps) take(name string, e watch.Event, mine bool) (watch.Event, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	got, ok := e.Object.(*corev1.ConfigMap)
	if !ok || e.Type == watch.Bookmark || mine && got.Name != name || !mine && got.Name != s.shared {
		return e, false
	}
	version := got.ResourceVersion
	if e.Type == watch.Deleted {
		got = nil
	}
	if mine {
		s.own = got
	} else {
		s.under = got
	}
	m := s.merged(name)
	if m == nil {
		return watch.Event{Type: watch.Deleted, Object: &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: s.namespace, ResourceVersion: version}}}, true
	}
	m = m.DeepCopy()
	m.ResourceVersion = version
	return watch.Event{Type: watch.Modified, Object: m}, true
}

func (s *sharedConfigMaps) selector() string {
	return fields.OneTermEqualSelector(metav1.ObjectNameField, s.shared).String()
}

// nameIn is the name that a selector asks for.
func nameIn(o metav1.ListOptions) string {
	selector, err := fields.ParseSelector(o.FieldSelector)
	if err != nil {
		return ""
	}
	name, _ := selector.RequiresExactMatch(metav1.ObjectNameField)
	return name
}

func named(list *corev1.ConfigMapList, name string) *corev1.ConfigMap {
	for i := range list.Items {
		if list.Items[i].Name == name {
			return &list.Items[i]
		}
	}
	return nil
}

// merged is what is shown; nil if neither is there. The caller holds mu.
func (s *sharedConfigMaps) merged(name string) *corev1.ConfigMap {
	if s.under == nil || name == s.shared {
		return s.own
	}
	out := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: s.namespace, ResourceVersion: s.under.ResourceVersion}}
	if s.own != nil {
		out = s.own.DeepCopy()
	}
	data := map[string]string{}
	for k, v := range s.under.Data {
		data[k] = v
	}
	for k, v := range out.Data {
		if k == meshKey {
			v = mergeYAML(data[meshKey], v)
		}
		data[k] = v
	}
	out.Data = data
	return out
}

// mergeYAML puts settings over others. Text that is no YAML is returned as it is,
// so that whoever reads it says what is wrong with it.
func mergeYAML(under, over string) string {
	base, top := map[string]any{}, map[string]any{}
	if yaml.Unmarshal([]byte(under), &base) != nil {
		return under
	}
	if yaml.Unmarshal([]byte(over), &top) != nil {
		return over
	}
	text, err := yaml.Marshal(manifests.Merge(base, top))
	if err != nil {
		return over
	}
	return string(text)
}
