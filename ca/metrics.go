package ca

import (
	"crypto/x509"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// registerExpiry exports when the roots and the issuing chain end, under
// istiod's names. The gauges read the installed material when they are asked,
// so that they cannot be out of date.
func (a *Authority) registerExpiry(reg prometheus.Registerer) error {
	root := func(st *authorityState) time.Time { return st.signer.Anchor.NotAfter }
	chain := func(st *authorityState) time.Time { return st.notAfter }
	timestamp := func(of func(*authorityState) time.Time) func() float64 {
		return func() float64 {
			if st := a.state.Load(); st != nil {
				return float64(of(st).Unix())
			}
			return 0
		}
	}
	left := func(of func(*authorityState) time.Time) func() float64 {
		return func() float64 {
			if st := a.state.Load(); st != nil {
				return of(st).Sub(a.now()).Seconds()
			}
			return 0
		}
	}
	gauges := []struct {
		name, help string
		value      func() float64
	}{
		{"citadel_server_root_cert_expiry_timestamp", "Unix time at which the root of the issuer expires.", timestamp(root)},
		{"citadel_server_root_cert_expiry_seconds", "Seconds until the root of the issuer expires; negative once it has.", left(root)},
		{"citadel_server_cert_chain_expiry_timestamp", "Unix time at which the issuing chain expires.", timestamp(chain)},
		{"citadel_server_cert_chain_expiry_seconds", "Seconds until the issuing chain expires; negative once it has.", left(chain)},
	}
	if reg == nil {
		return nil
	}
	for _, g := range gauges {
		gauge := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: g.name, Help: g.help}, g.value)
		if err := reg.Register(gauge); err != nil {
			return fmt.Errorf("register metric %s: %w", g.name, err)
		}
	}
	return nil
}

// serviceMetrics count what the CSR service does, under istiod's names.
type serviceMetrics struct {
	csr, authnFailed, csrBad, idBad, signFailed, issued prometheus.Counter
	limited                                             prometheus.Counter
}

func newServiceMetrics(reg prometheus.Registerer) (*serviceMetrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &serviceMetrics{
		csr:         counter("citadel_server_csr_count", "Certificate requests received."),
		authnFailed: counter("citadel_server_authentication_failure_count", "Requests refused for their credential."),
		csrBad:      counter("citadel_server_csr_parsing_err_count", "Requests refused for their CSR."),
		idBad:       counter("citadel_server_id_extraction_err_count", "Requests refused for the identity they ask for."),
		signFailed:  counter("citadel_server_csr_sign_err_count", "Requests that could not be signed."),
		issued:      counter("citadel_server_success_cert_issuance_count", "Certificates issued."),
		limited:     counter("isthmus_ca_rate_limited_count", "Requests refused because their sender asks too often."),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Counter{m.csr, m.authnFailed, m.csrBad, m.idBad, m.signFailed, m.issued, m.limited} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register CSR service metrics: %w", err)
		}
	}
	return m, nil
}

// certInfo is a certificate in debug output.
type certInfo struct {
	Fingerprint string    `json:"fingerprint"`
	Subject     string    `json:"subject"`
	Serial      string    `json:"serial"`
	NotBefore   time.Time `json:"notBefore"`
	NotAfter    time.Time `json:"notAfter"`
}

func describe(c *x509.Certificate) certInfo {
	return certInfo{
		Fingerprint: fingerprint(c), Subject: c.Subject.String(), Serial: fmt.Sprintf("%x", c.SerialNumber),
		NotBefore: c.NotBefore.UTC(), NotAfter: c.NotAfter.UTC(),
	}
}

func loggerOrNop(l *zap.Logger) *zap.Logger {
	if l == nil {
		return zap.NewNop()
	}
	return l
}

func clockOrSystem(c func() time.Time) func() time.Time {
	if c == nil {
		return time.Now
	}
	return c
}
