package ca

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"hash/fnv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Where istiod keeps a self-signed CA, and so do we.
const (
	SelfSignedSecret     = "istio-ca-secret"
	selfSignedSecretType = corev1.SecretType("istio.io/ca-root")
	// fileWorkloadKey is a key that istiod leaves empty in that Secret.
	fileWorkloadKey = "key.pem"
	// fileGenerated marks a Secret cacerts that holds a self-signed CA and not an
	// operator's. Its content is empty.
	fileGenerated = "istio-generated"
)

// SelfSignedConfig configures [NewSelfSigned].
type SelfSignedConfig struct {
	// Client of the primary cluster; nil keeps the CA in memory, for trying out.
	Client    kubernetes.Interface
	Cluster   mesh.ClusterID
	Namespace string
	// Organization is the subject of the root. Default: the trust domain
	// cluster.local.
	Organization string
	// Lifetime of a root. Default 10 years.
	Lifetime time.Duration
	// GracePercent of its lifetime before its end a root is replaced. Default 20.
	GracePercent int
	// Replica spreads the moments at which replicas do so.
	Replica string
	// UseCACerts keeps a root in Secret cacerts, marked as generated, unless there
	// is one in istio-ca-secret already (USE_CACERTS_FOR_SELF_SIGNED_CA). The
	// sources that come before must then leave what is so marked.
	UseCACerts bool
	Clock      func() time.Time
}

// SelfSigned is the source of last resort: a root of our own, kept in a Secret
// in the form of istiod, so that either can take over from the other.
type SelfSigned struct {
	cfg SelfSignedConfig
	now func() time.Time
	// Used from the Keeper's goroutine only: the Secret in use, and the CA without
	// a client.
	ref    secretRef
	memory *Bundle
}

// NewSelfSigned returns the source. It makes nothing until it is loaded.
func NewSelfSigned(cfg SelfSignedConfig) (*SelfSigned, error) {
	if cfg.Lifetime == 0 {
		cfg.Lifetime = 10 * 365 * 24 * time.Hour
	}
	if cfg.GracePercent == 0 {
		cfg.GracePercent = 20
	}
	if cfg.Lifetime < time.Hour || cfg.GracePercent < 1 || cfg.GracePercent > 99 {
		return nil, errors.New("new self-signed CA: want a lifetime of an hour at least and a grace of 1 to 99 percent")
	}
	if cfg.Organization == "" {
		cfg.Organization = mesh.DefaultTrustDomain
	}
	return &SelfSigned{
		cfg: cfg,
		ref: secretRef{client: cfg.Client, cluster: cfg.Cluster, namespace: cfg.Namespace, name: SelfSignedSecret},
		now: clockOrSystem(cfg.Clock),
	}, nil
}

// named is one of the Secrets that may hold the CA.
func (s *SelfSigned) named(name string) secretRef {
	return secretRef{client: s.cfg.Client, cluster: s.cfg.Cluster, namespace: s.cfg.Namespace, name: name}
}

// Name implements [Source].
func (s *SelfSigned) Name() string {
	if s.cfg.Client == nil {
		return "self-signed CA in memory"
	}
	return s.ref.String()
}

// Object implements [Source].
func (s *SelfSigned) Object() mesh.ObjectRef { return s.ref.object() }

// Watch implements [Source].
func (s *SelfSigned) Watch(ctx context.Context, changed func()) error {
	if s.cfg.Client == nil {
		<-ctx.Done()
		return nil
	}
	var all sync.WaitGroup
	defer all.Wait()
	if s.cfg.UseCACerts {
		all.Go(func() { s.named(PluggedInSecret).watch(ctx, changed) })
	}
	s.named(SelfSignedSecret).watch(ctx, changed)
	return nil
}

// Load implements [Source]. Where there is no root yet it makes one; of several
// replicas that do so at once one succeeds and the others read its root. A
// Secret that is there but bad is never replaced: it may be somebody's CA.
func (s *SelfSigned) Load(ctx context.Context) (*Bundle, error) {
	if s.cfg.Client == nil {
		return s.loadMemory()
	}
	secret, err := s.find(ctx)
	if err != nil {
		return nil, err
	}
	if secret == nil {
		if secret, err = s.make(ctx); err != nil {
			return nil, err
		}
	}
	return s.read(secret)
}

// find reads the Secret that holds the CA, or chooses the one that is to hold
// it: like istiod, istio-ca-secret wherever it exists.
func (s *SelfSigned) find(ctx context.Context) (*corev1.Secret, error) {
	s.ref = s.named(SelfSignedSecret)
	secret, err := s.ref.get(ctx)
	if err != nil || secret != nil || !s.cfg.UseCACerts {
		return secret, err
	}
	s.ref = s.named(PluggedInSecret)
	return s.ref.get(ctx)
}

func (s *SelfSigned) loadMemory() (*Bundle, error) {
	if s.memory == nil {
		b, err := s.generate()
		if err != nil {
			return nil, err
		}
		s.memory = b
	}
	return s.memory, nil
}

// make creates the Secret, or returns the one that another replica made.
func (s *SelfSigned) make(ctx context.Context) (*corev1.Secret, error) {
	b, err := s.generate()
	if err != nil {
		return nil, err
	}
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: s.ref.name, Namespace: s.ref.namespace},
		Type:       selfSignedSecretType,
	}
	if secret.Data, err = s.data(b); err != nil {
		return nil, err
	}
	err = s.ref.create(ctx, secret)
	if err == nil {
		return secret, nil
	}
	if !apierrors.IsAlreadyExists(err) {
		return nil, err
	}
	winner, err := s.ref.get(ctx)
	if err == nil && winner == nil {
		err = fmt.Errorf("create %s: it was there and is gone: trying again", s.ref)
	}
	return winner, err
}

// data is the content of the Secret as istiod writes it.
func (s *SelfSigned) data(b *Bundle) (map[string][]byte, error) {
	data, err := b.Files()
	if err != nil {
		return nil, err
	}
	data[fileCertChain], data[fileWorkloadKey] = []byte{}, []byte{}
	if s.ref.name == PluggedInSecret {
		data[fileGenerated] = []byte{}
	}
	return data, nil
}

// read takes a bundle from the Secret. Older istiods write no root: then the
// certificate is it. An expired one is read too, so that it can be replaced.
func (s *SelfSigned) read(secret *corev1.Secret) (*Bundle, error) {
	if _, ours := secret.Data[fileGenerated]; s.ref.name == PluggedInSecret && !ours {
		// Somebody put it there just now; what is theirs is never renewed.
		return nil, fmt.Errorf("read %s: it holds a CA that is not marked %s", s.ref, fileGenerated)
	}
	files := map[string][]byte{}
	for _, name := range []string{fileCACert, fileCAKey, fileRootCert} {
		files[name] = secret.Data[name]
	}
	if !has(files, fileRootCert) {
		files[fileRootCert] = files[fileCACert]
	}
	b, err := ParseBundle(s.Name(), files, time.Time{})
	if errors.Is(err, ErrNoBundle) {
		return nil, &BundleError{Origin: s.Name(), File: fileCACert, Problem: "missing",
			Fix: "delete the Secret to have a new root made (every workload then has to get a new certificate), or restore it"}
	}
	return b, err
}

// generate makes a root.
func (s *SelfSigned) generate() (*Bundle, error) {
	now := s.now()
	return selfSign(rootSpec{
		Organization: s.cfg.Organization, NotBefore: now.Add(-backdate), NotAfter: now.Add(s.cfg.Lifetime),
	}, s.Name())
}

// renew implements renewingSource.
func (s *SelfSigned) renew(current *Bundle, now time.Time) (*Bundle, error) {
	life := current.NotAfter().Sub(current.NotBefore())
	grace := life / 100 * time.Duration(s.cfg.GracePercent)
	// Up to 2 % of the grace earlier or later, other for each replica.
	h := fnv.New32a()
	_, _ = h.Write([]byte(s.cfg.Replica))
	grace += grace / 100 * time.Duration(int64(h.Sum32()%5)-2)
	if now.Before(current.NotAfter().Add(-grace)) {
		return nil, nil
	}
	return s.generate()
}

// commit implements renewingSource.
func (s *SelfSigned) commit(ctx context.Context, next *Bundle, replaced string) error {
	if s.cfg.Client == nil {
		s.memory = next
		return nil
	}
	secret, err := s.ref.get(ctx)
	if err != nil {
		return err
	}
	if secret == nil {
		return fmt.Errorf("update %s: it is gone", s.ref)
	}
	if have, err := s.read(secret); err == nil && have.ID() != replaced {
		return nil // somebody else wrote it
	}
	if secret.Data, err = s.data(next); err != nil {
		return err
	}
	if err := s.ref.update(ctx, secret); err != nil && !apierrors.IsConflict(err) {
		return err
	}
	return nil
}

// rootSpec is what a root is made from.
type rootSpec struct {
	Organization, CommonName string
	NotBefore, NotAfter      time.Time
}

// selfSign makes a root with a new key.
func selfSign(spec rootSpec, origin string) (*Bundle, error) {
	key, err := newIssuingKey()
	if err != nil {
		return nil, err
	}
	tmpl, err := caTemplate(pkix.Name{Organization: []string{spec.Organization}, CommonName: spec.CommonName}, spec.NotBefore, spec.NotAfter)
	if err != nil {
		return nil, err
	}
	cert, err := createCA(tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &Bundle{Origin: origin, Cert: cert, Anchor: cert, Roots: []*x509.Certificate{cert}, key: key}, nil
}

func caTemplate(subject pkix.Name, notBefore, notAfter time.Time) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	return &x509.Certificate{
		SerialNumber: serial, Subject: subject, NotBefore: notBefore, NotAfter: notAfter,
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, nil
}

func createCA(tmpl, parent *x509.Certificate, pub crypto.PublicKey, signer crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, signer)
	if err != nil {
		return nil, fmt.Errorf("create CA certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("create CA certificate: %w", err)
	}
	return cert, nil
}
