package ca

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/isthmus-mesh/isthmus/ca/authn"
	"github.com/isthmus-mesh/isthmus/mesh"
)

// backdate is how long before its issue a certificate becomes valid, and how
// far into the future an issuer's own start may lie: clocks differ.
const backdate = 2 * time.Minute

// Lifetimes of workload certificates unless the settings say otherwise.
const (
	defaultLifetime = 24 * time.Hour
	defaultMaxLife  = 90 * 24 * time.Hour
)

// Why nothing is signed; whoever asked may try again.
var (
	// ErrNotReady: no issuing material has been read yet.
	ErrNotReady = errors.New("the authority has no issuing certificate yet")
	// ErrIssuerExpired: the issuing certificate, or one above it, is not valid now.
	ErrIssuerExpired = errors.New("the issuing certificate is not valid now")
)

// AuthorityConfig configures [NewAuthority].
type AuthorityConfig struct {
	// DefaultLifetime is given to requests that ask for none. Default 24 h.
	DefaultLifetime time.Duration
	// MaxLifetime caps what is asked for. Default 90 days.
	MaxLifetime time.Duration

	Logger     *zap.Logger
	Clock      func() time.Time
	Registerer prometheus.Registerer
}

// Authority signs certificates with the issuing material installed last. It is
// safe for concurrent use; one signature sees one material, whole.
type Authority struct {
	cfg AuthorityConfig
	log *zap.Logger
	now func() time.Time

	state atomic.Pointer[authorityState]

	mu        sync.Mutex
	listeners map[int]func()
	nextID    int
}

// authorityState is what is installed: immutable.
type authorityState struct {
	signer *Bundle
	// trust are the roots handed out, with their text, pool and anchors.
	trust     []*x509.Certificate
	trustPEM  []byte
	trustText string
	pool      *x509.CertPool
	anchors   map[string]bool
	// chainPEM are the intermediates, one element each.
	chainPEM []string
	// notBefore and notAfter bound the whole chain.
	notBefore, notAfter time.Time
	template            *leafTemplate
}

// NewAuthority returns an authority that has nothing to sign with yet.
func NewAuthority(cfg AuthorityConfig) (*Authority, error) {
	if cfg.DefaultLifetime == 0 {
		cfg.DefaultLifetime = defaultLifetime
	}
	if cfg.MaxLifetime == 0 {
		cfg.MaxLifetime = defaultMaxLife
	}
	if cfg.DefaultLifetime < 0 || cfg.MaxLifetime < 0 {
		return nil, errors.New("new authority: lifetimes must be positive")
	}
	cfg.DefaultLifetime = min(cfg.DefaultLifetime, cfg.MaxLifetime)
	a := &Authority{cfg: cfg, log: loggerOrNop(cfg.Logger), now: clockOrSystem(cfg.Clock), listeners: map[int]func(){}}
	return a, a.registerExpiry(cfg.Registerer)
}

// install replaces the issuing material and the roots to hand out. Roots that
// the bundle needs itself are always among them.
func (a *Authority) install(signer *Bundle, trust []*x509.Certificate) error {
	trust = dedupe(append(append([]*x509.Certificate{}, signer.Roots...), trust...))
	st := &authorityState{
		signer:    signer,
		trust:     trust,
		trustPEM:  encodeCertificates(trust...),
		pool:      x509.NewCertPool(),
		anchors:   map[string]bool{},
		notBefore: signer.NotBefore(),
		notAfter:  signer.NotAfter(),
	}
	st.trustText = string(st.trustPEM)
	for _, c := range trust {
		st.pool.AddCert(c)
		st.anchors[anchorOf(c)] = true
	}
	for _, c := range signer.Chain {
		st.chainPEM = append(st.chainPEM, string(encodeCertificates(c)))
	}
	var err error
	if st.template, err = newLeafTemplate(signer); err != nil {
		return err
	}
	a.state.Store(st)
	a.notify()
	return nil
}

// OnChange registers a function that is called after the issuer or the roots
// have changed. It must not block.
func (a *Authority) OnChange(f func()) (cancel func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	id := a.nextID
	a.nextID++
	a.listeners[id] = f
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.listeners, id)
	}
}

func (a *Authority) notify() {
	a.mu.Lock()
	fs := make([]func(), 0, len(a.listeners))
	for _, f := range a.listeners {
		fs = append(fs, f)
	}
	a.mu.Unlock()
	for _, f := range fs {
		f()
	}
}

// Ready reports whether there is material to sign with.
func (a *Authority) Ready() bool { return a.state.Load() != nil }

// RootsPEM is the text of the roots that everybody is to trust now, nil if
// there is no material yet. During a rotation it holds old and new roots. The
// caller must not change it.
func (a *Authority) RootsPEM() []byte {
	if st := a.state.Load(); st != nil {
		return st.trustPEM
	}
	return nil
}

// Roots is the pool of the same roots; nil if there is no material yet.
func (a *Authority) Roots() *x509.CertPool {
	if st := a.state.Load(); st != nil {
		return st.pool
	}
	return nil
}

// CRLPEM is the text of the revocation lists, nil if there are none.
func (a *Authority) CRLPEM() []byte {
	if st := a.state.Load(); st != nil {
		return st.signer.CRLPEM
	}
	return nil
}

// Revoked reports whether a certificate of a verified chain is on a revocation
// list of its issuer.
func (a *Authority) Revoked(chain []*x509.Certificate) bool {
	st := a.state.Load()
	if st == nil {
		return false
	}
	for i, cert := range chain[:max(len(chain)-1, 0)] {
		for _, crl := range st.signer.CRLs {
			if string(crl.RawIssuer) == string(cert.RawIssuer) && listed(crl, cert.SerialNumber) &&
				crl.CheckSignatureFrom(chain[i+1]) == nil {
				return true
			}
		}
	}
	return false
}

func listed(crl *x509.RevocationList, serial *big.Int) bool {
	for _, e := range crl.RevokedCertificateEntries {
		if e.SerialNumber.Cmp(serial) == 0 {
			return true
		}
	}
	return false
}

// SignRequest asks for a workload certificate.
type SignRequest struct {
	// CSR in PEM form. Only its key is used.
	CSR []byte
	// Identity becomes the certificate's only name.
	Identity mesh.Identity
	// Lifetime asked for; zero or less means the default. It is capped.
	Lifetime time.Duration
}

// Certificate is an issued certificate.
type Certificate struct {
	// DER form of the certificate.
	DER []byte
	// Serial number, 128 random bits.
	Serial *big.Int
	// NotBefore and NotAfter bound its life.
	NotBefore, NotAfter time.Time
	// Chain is what its holder presents and trusts, in PEM: the certificate,
	// every intermediate, and as last element all roots.
	Chain []string
	// anchors that its holder trusts from now on.
	anchors map[string]bool
	issuer  *Bundle
}

// Sign issues a certificate for a workload. Errors wrap [ErrBadCSR],
// [ErrNotReady] or [ErrIssuerExpired] where these are the reason.
func (a *Authority) Sign(req SignRequest) (*Certificate, error) {
	key, err := parseCSR(req.CSR)
	if err != nil {
		return nil, err
	}
	if err := authn.CheckIdentity(req.Identity); err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	spiffe, err := url.Parse(req.Identity.SPIFFE())
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	return a.issue(leaf{key: key, uri: spiffe}, req.Lifetime)
}

// issueServing issues a certificate for the control plane's own servers.
func (a *Authority) issueServing(key crypto.PublicKey, dnsNames []string, lifetime time.Duration) (*Certificate, error) {
	return a.issue(leaf{key: key, dnsNames: dnsNames}, lifetime)
}

func (a *Authority) issue(l leaf, lifetime time.Duration) (*Certificate, error) {
	st := a.state.Load()
	if st == nil {
		return nil, fmt.Errorf("sign certificate: %w", ErrNotReady)
	}
	now := a.now()
	if !now.Before(st.notAfter) || now.Before(st.notBefore.Add(-backdate)) {
		return nil, fmt.Errorf("sign certificate with issuer %s from %s, valid until %s: %w",
			st.signer.ID(), st.signer.Origin, st.notAfter.UTC().Format(time.RFC3339), ErrIssuerExpired)
	}
	if lifetime <= 0 {
		lifetime = a.cfg.DefaultLifetime
	}
	// X.509 times have no fractions: round down, or a request for 24 h would end
	// a moment after what was asked.
	l.notBefore = now.Add(-backdate).Truncate(time.Second)
	l.notAfter = earlier(now.Add(min(lifetime, a.cfg.MaxLifetime)), st.notAfter).Truncate(time.Second)
	var err error
	if l.serial, err = newSerial(); err != nil {
		return nil, err
	}
	der, err := st.template.sign(l, st.signer.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	cert := &Certificate{DER: der, Serial: l.serial, NotBefore: l.notBefore, NotAfter: l.notAfter, anchors: st.anchors, issuer: st.signer}
	cert.Chain = make([]string, 0, 2+len(st.chainPEM))
	cert.Chain = append(cert.Chain, encodeDER(der))
	cert.Chain = append(append(cert.Chain, st.chainPEM...), st.trustText)
	return cert, nil
}

// newSerial draws 128 random bits; a serial number must not be zero.
func newSerial() (*big.Int, error) {
	var b [16]byte
	for {
		if _, err := rand.Read(b[:]); err != nil {
			return nil, fmt.Errorf("draw serial number: %w", err)
		}
		if n := new(big.Int).SetBytes(b[:]); n.Sign() > 0 {
			return n, nil
		}
	}
}
