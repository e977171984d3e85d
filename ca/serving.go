package ca

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// ServingNames are the DNS names under which proxies and webhooks call the
// control plane: istiod.NS.svc and its older and sister names, that of the
// revision, and custom hosts (mesh discovery address, ISTIOD_CUSTOM_HOST).
func ServingNames(namespace, revision string, custom ...string) []string {
	names := []string{"istiod." + namespace + ".svc", "istiod-remote." + namespace + ".svc", "istio-pilot." + namespace + ".svc"}
	if revision != "" && revision != "default" {
		names = append(names, "istiod-"+revision+"."+namespace+".svc")
	}
	for _, host := range custom {
		if host = strings.TrimSpace(host); host != "" && !slices.Contains(names, host) {
			names = append(names, host)
		}
	}
	return names
}

// ServingConfig configures [NewServing].
type ServingConfig struct {
	// Authority issues the certificate. Required.
	Authority *Authority
	// DNSNames of the certificate. Required.
	DNSNames []string
	// MinVersion of TLS. Default 1.2.
	MinVersion uint16
	// CipherSuites for TLS 1.2; nil means Go's choice.
	CipherSuites []uint16
	// Files hold a certificate that somebody else issues, to serve with instead of
	// one of the Authority; nil if there are none.
	Files *ServingFiles

	Logger *zap.Logger
	Clock  func() time.Time
}

// Serving is the control plane's own TLS identity: a P-256 certificate of our
// CA, renewed at half its life and whenever the issuer changes, used by
// handshakes from that moment on. Or one from files, which are read again when
// they change; while they are bad the last good one is kept.
type Serving struct {
	cfg ServingConfig
	log *zap.Logger
	now func() time.Time

	cert atomic.Pointer[tls.Certificate]
	// material is what Files held last, nil without them or before.
	material atomic.Pointer[servingMaterial]
	problem  atomic.Pointer[string]

	mu     sync.Mutex // one renewal at a time
	issuer string     // ID of the issuer of cert
}

// NewServing returns a serving identity that has no certificate yet.
func NewServing(cfg ServingConfig) (*Serving, error) {
	if cfg.Authority == nil || len(cfg.DNSNames) == 0 {
		return nil, errors.New("new serving identity: Authority and DNSNames are required")
	}
	if cfg.MinVersion == 0 {
		cfg.MinVersion = tls.VersionTLS12
	}
	return &Serving{cfg: cfg, log: loggerOrNop(cfg.Logger), now: clockOrSystem(cfg.Clock)}, nil
}

// Run renews the certificate until the context ends.
func (s *Serving) Run(ctx context.Context) error {
	changed := make(chan struct{}, 1)
	look := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	defer s.cfg.Authority.OnChange(look)()
	if s.cfg.Files != nil {
		var watching sync.WaitGroup
		watching.Go(func() { s.watchFiles(ctx, look) })
		defer watching.Wait()
	}
	for {
		wait := s.renewLogged()
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-changed:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// renewLogged renews if it is time and returns when to look again.
func (s *Serving) renewLogged() time.Duration {
	const retry = 10 * time.Second
	err := s.renew()
	s.note(err)
	if err != nil {
		if !errors.Is(err, ErrNotReady) {
			s.log.Error("own serving certificate cannot be renewed; the old one is kept", zap.Error(err))
		}
		return retry
	}
	left := s.cert.Load().Leaf.NotAfter.Sub(s.now())
	return min(max(left/4, s.atLeast()), time.Hour)
}

// atLeast is the pause between two looks: files may hold a certificate that has
// ended, and reading them does not renew it.
func (s *Serving) atLeast() time.Duration {
	if s.cfg.Files != nil {
		return time.Minute
	}
	return time.Second
}

func (s *Serving) note(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	s.problem.Store(&text)
}

// Problem says why the certificate could not be renewed the last time, "" if it
// could.
func (s *Serving) Problem() string {
	if p := s.problem.Load(); p != nil {
		return *p
	}
	return ""
}

// renew gets a new certificate if there is none, if the present one is of
// another issuer or past half its life.
func (s *Serving) renew() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.cfg.Authority.state.Load()
	if st == nil {
		return ErrNotReady
	}
	if s.cfg.Files != nil {
		return s.renewFromFiles()
	}
	if have := s.cert.Load(); have != nil && s.issuer == st.signer.ID() {
		half := have.Leaf.NotBefore.Add(have.Leaf.NotAfter.Sub(have.Leaf.NotBefore) / 2)
		if s.now().Before(half) {
			return nil
		}
	}
	key, err := newIssuingKey()
	if err != nil {
		return err
	}
	issued, err := s.cfg.Authority.issueServing(key.Public(), s.cfg.DNSNames, 0)
	if err != nil {
		return fmt.Errorf("issue serving certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(issued.DER)
	if err != nil {
		return fmt.Errorf("issue serving certificate: %w", err)
	}
	cert := &tls.Certificate{Certificate: [][]byte{issued.DER}, PrivateKey: key, Leaf: leaf}
	for _, c := range issued.issuer.Chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	s.cert.Store(cert)
	s.issuer = issued.issuer.ID()
	s.log.Info("serving certificate renewed", zap.String("issuer", short(s.issuer)), zap.Time("notAfter", leaf.NotAfter))
	return nil
}

// Ready reports whether handshakes can succeed.
func (s *Serving) Ready() bool { return s.cert.Load() != nil }

// Bundle is the text of the roots that everybody is to trust: those of the mesh,
// and those under which a certificate from files verifies. It is for webhook
// configurations and for agents that have no certificate yet. nil if the ones or
// the others have not been read yet.
func (s *Serving) Bundle() []byte {
	if s.cfg.Files == nil {
		return s.cfg.Authority.RootsPEM()
	}
	st, m := s.cfg.Authority.state.Load(), s.material.Load()
	if st == nil || m == nil {
		return nil
	}
	return encodeCertificates(dedupe(slices.Concat(st.trust, m.roots))...)
}

// TLSConfig returns a configuration for servers whose clients may present a
// certificate. One that is presented must verify under the roots trusted at
// that moment. Sessions are not resumed: a resumed one would skip that check.
func (s *Serving) TLSConfig() *tls.Config {
	base := s.config(tls.VerifyClientCertIfGiven)
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		roots := s.cfg.Authority.Roots()
		if roots == nil {
			return nil, errors.New("no roots yet")
		}
		c := s.config(tls.VerifyClientCertIfGiven)
		c.ClientCAs = roots
		return c, nil
	}
	return base
}

// WebhookTLSConfig returns a configuration for servers that ask for no client
// certificate.
func (s *Serving) WebhookTLSConfig() *tls.Config { return s.config(tls.NoClientCert) }

func (s *Serving) config(auth tls.ClientAuthType) *tls.Config {
	return &tls.Config{
		MinVersion:             s.cfg.MinVersion,
		CipherSuites:           s.cfg.CipherSuites,
		NextProtos:             []string{"h2", "http/1.1"},
		ClientAuth:             auth,
		ClientCAs:              x509.NewCertPool(), // never the system's; see GetConfigForClient
		SessionTicketsDisabled: true,
		Time:                   s.now,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			if c := s.cert.Load(); c != nil {
				return c, nil
			}
			return nil, errors.New("no serving certificate yet")
		},
	}
}

// PeerExpiry is when the client certificate of a connection ends; false if the
// peer presented none. A stream let in by it must not outlive it.
func PeerExpiry(state tls.ConnectionState) (time.Time, bool) {
	if len(state.PeerCertificates) == 0 {
		return time.Time{}, false
	}
	end := state.PeerCertificates[0].NotAfter
	for _, c := range state.PeerCertificates[1:] {
		end = earlier(end, c.NotAfter)
	}
	return end, true
}
