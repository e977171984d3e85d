package authn

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// CertConfig configures [NewCert].
type CertConfig struct {
	// Roots are the roots trusted now; during a root rotation old and new.
	// Required.
	Roots func() *x509.CertPool
	// TrustDomains whose identities are accepted: that of the mesh, its aliases
	// and those of the remote clusters. Required.
	TrustDomains func() []string
	// Revoked reports whether a certificate of a verified chain is on a
	// revocation list; may be nil.
	Revoked func(chain []*x509.Certificate) bool
	Clock   func() time.Time
}

// Cert authenticates workloads by the client certificate of their connection:
// machines outside Kubernetes renew theirs that way.
type Cert struct {
	cfg CertConfig
	now func() time.Time
}

// NewCert returns an authenticator for client certificates.
func NewCert(cfg CertConfig) (*Cert, error) {
	if cfg.Roots == nil || cfg.TrustDomains == nil {
		return nil, errors.New("new certificate authenticator: Roots and TrustDomains are required")
	}
	return &Cert{cfg: cfg, now: clockOrSystem(cfg.Clock)}, nil
}

// Authenticate implements [Authenticator]. The certificate is verified anew at
// each call: since the handshake it may have expired, its root may have been
// retired.
func (c *Cert) Authenticate(_ context.Context, r Request) (Caller, error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return Caller{}, fmt.Errorf("authenticate client certificate: %w", ErrNoCredential)
	}
	leaf := r.TLS.PeerCertificates[0]
	chains, err := c.verify(r.TLS.PeerCertificates)
	if err != nil {
		return Caller{}, fmt.Errorf("verify client certificate: %w: %w", err, ErrUnauthenticated)
	}
	if c.cfg.Revoked != nil && !slices.ContainsFunc(chains, func(ch []*x509.Certificate) bool { return !c.cfg.Revoked(ch) }) {
		return Caller{}, fmt.Errorf("verify client certificate: serial %x is revoked: %w", leaf.SerialNumber, ErrUnauthenticated)
	}
	id, err := identityOf(leaf)
	if err != nil {
		return Caller{}, fmt.Errorf("read client certificate: %w: %w", err, ErrUnauthenticated)
	}
	if !slices.Contains(c.cfg.TrustDomains(), id.TrustDomain) {
		return Caller{}, fmt.Errorf("read client certificate: trust domain %q is not ours: add it to trustDomainAliases to accept it: %w",
			id.TrustDomain, ErrUnauthenticated)
	}
	return Caller{Identity: id, Expiry: chainExpiry(chains), Source: SourceMTLS}, nil
}

func (c *Cert) verify(certs []*x509.Certificate) ([][]*x509.Certificate, error) {
	roots := c.cfg.Roots()
	if roots == nil {
		// A nil pool means the system's roots to crypto/x509.
		return nil, errors.New("no roots are known")
	}
	between := x509.NewCertPool()
	for _, cert := range certs[1:] {
		between.AddCert(cert)
	}
	return certs[0].Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: between,
		CurrentTime:   c.now(),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

// identityOf reads the identity of a workload certificate: exactly one URI and
// no other name, so that nobody can read another identity out of it than we do.
func identityOf(cert *x509.Certificate) (mesh.Identity, error) {
	if len(cert.URIs) != 1 || len(cert.DNSNames)+len(cert.IPAddresses)+len(cert.EmailAddresses) != 0 {
		return mesh.Identity{}, fmt.Errorf("want one URI and no other subject alternative name, have %d URIs, %d DNS names, %d addresses, %d e-mails",
			len(cert.URIs), len(cert.DNSNames), len(cert.IPAddresses), len(cert.EmailAddresses))
	}
	id, err := mesh.ParseIdentity(cert.URIs[0].String())
	if err != nil {
		return mesh.Identity{}, err
	}
	return id, CheckIdentity(id)
}

// chainExpiry is the last moment at which one of the chains is still whole.
func chainExpiry(chains [][]*x509.Certificate) time.Time {
	var latest time.Time
	for _, chain := range chains {
		end := chain[0].NotAfter
		for _, cert := range chain[1:] {
			if cert.NotAfter.Before(end) {
				end = cert.NotAfter
			}
		}
		if end.After(latest) {
			latest = end
		}
	}
	return latest
}
