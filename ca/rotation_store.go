package ca

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// RotationSecret is the Secret in which replicas agree on a rotation. Idle, it
// holds public certificates only; during a rotation also the keys of the issuer
// that signs and of the next one, because the source holds only one of them.
const RotationSecret = "isthmus-ca-rotation"

// Keys of that Secret.
const (
	keyState      = "state.json"
	keyReports    = "reports.json"
	keyRoots      = "roots.pem"
	prefixCurrent = "current."
	prefixNext    = "next."
)

// errStale means that somebody else has written a record in the meantime.
var errStale = errors.New("the rotation record has changed")

// rotationRecord is what is kept of a rotation.
type rotationRecord struct {
	state RotationState
	// reports of the replicas, by name.
	reports map[string]ReplicaReport
	// roots by fingerprint: all that state names.
	roots map[string]*x509.Certificate
	// bundles with keys by issuer ID, those of Current and Next; empty if idle.
	bundles map[string]*Bundle
	// secret that the record was read from, nil for a new one.
	secret *corev1.Secret
	// sequence likewise in memory.
	sequence int
}

// rotationStore keeps the record.
type rotationStore interface {
	// load returns an empty record if there is none.
	load(ctx context.Context) (*rotationRecord, error)
	// save fails with errStale if the record is not the one that was loaded.
	save(ctx context.Context, r *rotationRecord) error
	watch(ctx context.Context, changed func())
}

// memoryStore keeps the record of a single replica without Kubernetes.
type memoryStore struct {
	mu       sync.Mutex
	sequence int
	record   rotationRecord
}

func (m *memoryStore) load(context.Context) (*rotationRecord, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.record
	r.sequence = m.sequence
	r.reports = maps.Clone(r.reports)
	return &r, nil
}

func (m *memoryStore) save(_ context.Context, r *rotationRecord) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r.sequence != m.sequence {
		return errStale
	}
	m.sequence++
	m.record = *r
	return nil
}

func (m *memoryStore) watch(ctx context.Context, _ func()) { <-ctx.Done() }

// secretStore keeps the record in a Secret of the system namespace.
type secretStore struct{ ref secretRef }

func newSecretStore(client kubernetes.Interface, cluster mesh.ClusterID, namespace string) *secretStore {
	return &secretStore{secretRef{client: client, cluster: cluster, namespace: namespace, name: RotationSecret}}
}

func (s *secretStore) watch(ctx context.Context, changed func()) { s.ref.watch(ctx, changed) }

func (s *secretStore) load(ctx context.Context) (*rotationRecord, error) {
	secret, err := s.ref.get(ctx)
	if err != nil {
		return nil, err
	}
	r := &rotationRecord{secret: secret}
	if secret == nil {
		return r, nil
	}
	if err := r.decode(s.ref.String(), secret.Data); err != nil {
		return nil, fmt.Errorf("%w: restore %s or delete it: it is made anew, and a rotation that was under way starts over", err, s.ref)
	}
	return r, nil
}

func (s *secretStore) save(ctx context.Context, r *rotationRecord) error {
	data, err := r.encode()
	if err != nil {
		return err
	}
	if r.secret == nil {
		err = s.ref.create(ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: s.ref.name, Namespace: s.ref.namespace}, Data: data,
		})
	} else {
		secret := r.secret.DeepCopy()
		secret.Data = data
		err = s.ref.update(ctx, secret)
	}
	// NotFound: deleted since it was read, so the record is not what we think.
	if apierrors.IsAlreadyExists(err) || apierrors.IsConflict(err) || (r.secret != nil && apierrors.IsNotFound(err)) {
		return errStale
	}
	return err
}

func (r *rotationRecord) encode() (map[string][]byte, error) {
	data := map[string][]byte{}
	var err error
	if data[keyState], err = json.Marshal(r.state); err != nil {
		return nil, fmt.Errorf("encode rotation state: %w", err)
	}
	if data[keyReports], err = json.Marshal(r.reports); err != nil {
		return nil, fmt.Errorf("encode rotation reports: %w", err)
	}
	for _, fp := range slices.Sorted(maps.Keys(r.roots)) {
		data[keyRoots] = append(data[keyRoots], encodeCertificates(r.roots[fp])...)
	}
	put := func(prefix, id string) error {
		b := r.bundles[id]
		if b == nil {
			return nil
		}
		files, err := b.Files()
		for name, text := range files {
			data[prefix+name] = text
		}
		return err
	}
	if err := put(prefixCurrent, r.state.Current.ID); err != nil {
		return nil, err
	}
	if r.state.Next != nil {
		return data, put(prefixNext, r.state.Next.ID)
	}
	return data, nil
}

func (r *rotationRecord) decode(origin string, data map[string][]byte) error {
	if err := json.Unmarshal(data[keyState], &r.state); err != nil {
		return fmt.Errorf("read %s: key %s: %w", origin, keyState, err)
	}
	if len(data[keyReports]) > 0 {
		if err := json.Unmarshal(data[keyReports], &r.reports); err != nil {
			return fmt.Errorf("read %s: key %s: %w", origin, keyReports, err)
		}
	}
	p := &bundleParser{origin: origin, files: data}
	roots, err := p.certificates(keyRoots, false)
	if err != nil {
		return err
	}
	r.roots = map[string]*x509.Certificate{}
	for _, c := range roots {
		r.roots[fingerprint(c)] = c
	}
	r.bundles = map[string]*Bundle{}
	for _, prefix := range []string{prefixCurrent, prefixNext} {
		files := map[string][]byte{}
		for name, text := range data {
			if short, ok := strings.CutPrefix(name, prefix); ok {
				files[short] = text
			}
		}
		b, err := ParseBundle(origin, files, time.Time{})
		if errors.Is(err, ErrNoBundle) {
			continue
		}
		if err != nil {
			return err
		}
		// It came from where the state says; the record only carries it.
		if b.Origin = r.state.Current.Origin; prefix == prefixNext && r.state.Next != nil {
			b.Origin = r.state.Next.Origin
		}
		r.bundles[b.ID()] = b
	}
	return nil
}
