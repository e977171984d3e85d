package ca

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Istio's roles do not always allow Leases: those for remote clusters never do,
// those of the primary not before release 1.14. ConfigMaps may be written by
// whoever distributes roots, so they decide where Leases cannot. All replicas of
// a control plane have the same rights, and so use the same lock; while rights
// change two of them may lead for a while, and write the same.

// lock is the lock of one election: a Lease, and from when the API server refuses
// that, a ConfigMap.
type lock struct {
	cfg ElectionConfig
	// giveUp ends the standing that the lock is used by. Set before it begins.
	giveUp context.CancelFunc

	mu     sync.Mutex
	using  resourcelock.Interface
	lease  bool  // using is the Lease
	denied error // why no lock may be used
	told   bool  // that it is denied
	noted  bool  // that Leases are not allowed
}

func newLock(cfg ElectionConfig) *lock {
	l := &lock{cfg: cfg, giveUp: func() {}}
	l.useLease()
	return l
}

func (l *lock) useLease() {
	l.using, l.lease = &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: l.cfg.Namespace, Name: l.cfg.Name},
		Client:     l.cfg.Client.CoordinationV1(),
		LockConfig: resourcelock.ResourceLockConfig{Identity: l.cfg.Replica},
	}, true
}

// current is the lock that is in use.
func (l *lock) current() resourcelock.Interface {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.using
}

// isDenied reports whether no lock may be used.
func (l *lock) isDenied() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.denied != nil
}

// retry begins with the Lease again.
func (l *lock) retry() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.denied = nil
	l.useLease()
}

// refused takes an error of the lock in use, and reports whether another one is
// to be tried in its place.
func (l *lock) refused(err error) (other bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case !apierrors.IsForbidden(err), apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return false
	case l.lease:
		l.using, l.lease = &configMapLock{api: l.cfg.Client.CoreV1().ConfigMaps(l.cfg.Namespace), namespace: l.cfg.Namespace, name: l.cfg.Name, identity: l.cfg.Replica}, false
		if !l.noted {
			l.noted = true
			l.cfg.Logger.Info("Leases are not allowed: a ConfigMap of the same name decides who writes",
				zap.String("cluster", string(l.cfg.Cluster)), zap.String("lease", l.cfg.Namespace+"/"+l.cfg.Name), zap.Error(err))
		}
		return true
	}
	l.denied = err
	l.giveUp()
	if !l.told {
		l.told = true
		l.report(fmt.Sprintf("which replica writes cannot be decided, so none does: grant get, create and update on leases.coordination.k8s.io "+
			"(or on configmaps) in namespace %s: %v", l.cfg.Namespace, err))
	}
	return false
}

// allowed notes that the lock in use may be used.
func (l *lock) allowed() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.told {
		l.told = false
		l.report("")
	}
}

// report tells a problem, or that it is over.
func (l *lock) report(problem string) {
	about := mesh.ObjectRef{Cluster: l.cfg.Cluster, Kind: "Lease", Namespace: l.cfg.Namespace, Name: l.cfg.Name}
	if problem == "" {
		l.cfg.Logger.Info("which replica writes can be decided again", zap.Stringer("object", about))
	} else {
		l.cfg.Logger.Warn("nobody writes", zap.Stringer("object", about), zap.String("because", problem))
	}
	if l.cfg.Report != nil {
		l.cfg.Report(about, problem)
	}
}

// Get implements [resourcelock.Interface].
func (l *lock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	record, raw, err := l.current().Get(ctx)
	if err != nil && l.refused(err) {
		record, raw, err = l.current().Get(ctx)
		l.refused(err)
	}
	return record, raw, err
}

// Create implements [resourcelock.Interface]. Another lock has to be read first,
// which happens with the next attempt.
func (l *lock) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	return l.write(l.current().Create(ctx, record))
}

// Update implements [resourcelock.Interface].
func (l *lock) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	return l.write(l.current().Update(ctx, record))
}

func (l *lock) write(err error) error {
	if err == nil {
		l.allowed()
	} else {
		l.refused(err)
	}
	return err
}

// RecordEvent implements [resourcelock.Interface]. Elections are no news.
func (l *lock) RecordEvent(string) {}

// Identity implements [resourcelock.Interface].
func (l *lock) Identity() string { return l.cfg.Replica }

// Describe implements [resourcelock.Interface].
func (l *lock) Describe() string { return l.cfg.Namespace + "/" + l.cfg.Name }

// configMapLock keeps the record of an election in an annotation of a ConfigMap,
// as Kubernetes did before there were Leases.
type configMapLock struct {
	api                       typedcorev1.ConfigMapInterface
	namespace, name, identity string
	have                      *corev1.ConfigMap
}

var errNotRead = errors.New("the lock has not been read yet")

// Get implements [resourcelock.Interface].
func (c *configMapLock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	have, err := c.api.Get(ctx, c.name, metav1.GetOptions{})
	if err != nil {
		return nil, nil, err
	}
	c.have = have
	raw := []byte(have.Annotations[resourcelock.LeaderElectionRecordAnnotationKey])
	record := &resourcelock.LeaderElectionRecord{}
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, record); err != nil {
			return nil, nil, fmt.Errorf("read annotation %s of ConfigMap %s: %w", resourcelock.LeaderElectionRecordAnnotationKey, c.Describe(), err)
		}
	}
	return record, raw, nil
}

// Create implements [resourcelock.Interface].
func (c *configMapLock) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	o := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: c.name}}
	if err := c.put(o, record); err != nil {
		return err
	}
	made, err := c.api.Create(ctx, o, metav1.CreateOptions{})
	if err == nil {
		c.have = made
	}
	return err
}

// Update implements [resourcelock.Interface]. The version that was read keeps
// two replicas from both having it.
func (c *configMapLock) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	if c.have == nil {
		return errNotRead
	}
	o := c.have.DeepCopy()
	if err := c.put(o, record); err != nil {
		return err
	}
	now, err := c.api.Update(ctx, o, metav1.UpdateOptions{})
	if err == nil {
		c.have = now
	}
	return err
}

func (c *configMapLock) put(o *corev1.ConfigMap, record resourcelock.LeaderElectionRecord) error {
	raw, err := json.Marshal(record)
	if err != nil {
		return fmt.Errorf("encode record of lock %s: %w", c.Describe(), err)
	}
	metav1.SetMetaDataAnnotation(&o.ObjectMeta, resourcelock.LeaderElectionRecordAnnotationKey, string(raw))
	return nil
}

// RecordEvent implements [resourcelock.Interface].
func (c *configMapLock) RecordEvent(string) {}

// Identity implements [resourcelock.Interface].
func (c *configMapLock) Identity() string { return c.identity }

// Describe implements [resourcelock.Interface].
func (c *configMapLock) Describe() string { return c.namespace + "/" + c.name }
