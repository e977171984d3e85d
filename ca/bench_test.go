package ca

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	securityapi "istio.io/api/security/v1alpha1"

	"github.com/isthmus-mesh/isthmus/ca/authn"
)

// BenchmarkIssue: one certificate against the sum of the cryptographic
// operations in it, which are checking the CSR's signature and signing; the
// quotient is to stay below 1.3. The operations are timed inside the same loop,
// so that a noisy machine slows both alike.
func BenchmarkIssue(b *testing.B) {
	c := newClock()
	a := newAuthority(b, c, newRoot(b, "r", c.Now(), 3650*24*time.Hour))
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(b, err)
	id := workload("shop", "web")
	for name, csr := range map[string][]byte{
		"P-256":    agentCSR(b, ecKey(b), id.SPIFFE()),
		"RSA-2048": agentCSR(b, rsaKey, id.SPIFFE()),
	} {
		b.Run(name, func(b *testing.B) {
			block, _ := pem.Decode(csr)
			parsed, err := x509.ParseCertificateRequest(block.Bytes)
			require.NoError(b, err)
			key := a.state.Load().signer.key.(*ecdsa.PrivateKey)
			digest := sha256.Sum256([]byte("tbs"))
			var issue, crypto time.Duration
			b.ReportAllocs()
			for b.Loop() {
				t0 := time.Now()
				if _, err := a.Sign(SignRequest{CSR: csr, Identity: id}); err != nil {
					b.Fatal(err)
				}
				t1 := time.Now()
				if parsed.CheckSignature() != nil {
					b.Fatal("signature")
				}
				if _, err := ecdsa.SignASN1(rand.Reader, key, digest[:]); err != nil {
					b.Fatal(err)
				}
				issue, crypto = issue+t1.Sub(t0), crypto+time.Since(t1)
			}
			b.ReportMetric(float64(issue.Nanoseconds())/float64(b.N), "ns/cert")
			b.ReportMetric(float64(b.N)/issue.Seconds(), "certs/s/core")
			b.ReportMetric(float64(issue)/float64(crypto), "x-crypto")
		})
	}
}

// BenchmarkService: a whole request within the process, as many at once as
// there are cores.
func BenchmarkService(b *testing.B) {
	w := newServiceWorld(b, func(c *ServiceConfig) { c.PeerRate, c.IdentityRate, c.Logger = -1, -1, nil })
	csr := string(agentCSR(b, ecKey(b), "x:y"))
	ctx := fromPeer("10.0.0.1:1")
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			if _, err := w.service.CreateCertificate(ctx, &securityapi.IstioCertificateRequest{Csr: csr}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "certs/s")
}

// BenchmarkRefusal: what a flood of unauthenticated requests costs.
func BenchmarkRefusal(b *testing.B) {
	w := newServiceWorld(b, func(c *ServiceConfig) { c.Logger = nil })
	w.auth.err = fmt.Errorf("x: %w", authn.ErrUnauthenticated)
	ctx := fromPeer(netip.MustParseAddr("10.0.0.1").String() + ":1")
	req := &securityapi.IstioCertificateRequest{}
	b.ReportAllocs()
	for b.Loop() {
		_, _ = w.service.CreateCertificate(ctx, req)
	}
}
