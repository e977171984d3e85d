package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/isthmus-mesh/isthmus/ca/authn"
	"github.com/isthmus-mesh/isthmus/mesh"
)

// clock is a clock that only a test moves.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// newRoot makes a root that was valid an hour ago and will be for life.
func newRoot(t testing.TB, name string, now time.Time, life time.Duration) *Bundle {
	t.Helper()
	b, err := selfSign(rootSpec{Organization: name, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(life)}, "root "+name)
	require.NoError(t, err)
	return b
}

// newIntermediate makes an issuer under a root.
func newIntermediate(t testing.TB, root *Bundle, name string, now time.Time, life time.Duration) *Bundle {
	t.Helper()
	key, err := newIssuingKey()
	require.NoError(t, err)
	tmpl, err := caTemplate(pkix.Name{CommonName: name}, now.Add(-time.Hour), now.Add(life))
	require.NoError(t, err)
	cert, err := createCA(tmpl, root.Cert, key.Public(), root.key)
	require.NoError(t, err)
	return &Bundle{Origin: name, Cert: cert, Chain: append([]*x509.Certificate{cert}, root.Chain...), Anchor: root.Anchor, Roots: root.Roots, key: key}
}

func filesOf(t testing.TB, b *Bundle) map[string][]byte {
	t.Helper()
	files, err := b.Files()
	require.NoError(t, err)
	return files
}

func newAuthority(t testing.TB, c *clock, b *Bundle) *Authority {
	t.Helper()
	a, err := NewAuthority(AuthorityConfig{Clock: c.Now})
	require.NoError(t, err)
	if b != nil {
		require.NoError(t, a.install(b, nil))
	}
	return a
}

func ecKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	return key
}

// agentCSR is a request as istio's agent writes it: a subject whose organization
// is the empty string and a critical SAN.
func agentCSR(t testing.TB, key crypto.Signer, uri string) []byte {
	t.Helper()
	san, err := asn1.Marshal([]asn1.RawValue{{Tag: 6, Class: asn1.ClassContextSpecific, Bytes: []byte(uri)}})
	require.NoError(t, err)
	return csrOf(t, key, &x509.CertificateRequest{
		Subject:         pkix.Name{Organization: []string{""}},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: san}},
	})
}

func csrOf(t testing.TB, key crypto.Signer, tmpl *x509.CertificateRequest) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
	require.NoError(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: pemCSR, Bytes: der})
}

func workload(ns, sa string) mesh.Identity {
	return mesh.Identity{TrustDomain: "cluster.local", Namespace: ns, ServiceAccount: sa}
}

func parsePEM(t testing.TB, text string) []*x509.Certificate {
	t.Helper()
	var out []*x509.Certificate
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			require.Empty(t, strings.TrimSpace(string(rest)))
			return out
		}
		c, err := x509.ParseCertificate(block.Bytes)
		require.NoError(t, err)
		out = append(out, c)
	}
}

func sign(t testing.TB, a *Authority, id mesh.Identity, life time.Duration) (*Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key := ecKey(t)
	cert, err := a.Sign(SignRequest{CSR: agentCSR(t, key, id.SPIFFE()), Identity: id, Lifetime: life})
	require.NoError(t, err)
	return cert, key
}

// verifies checks a chain as the service sends it against its last element.
func verifies(t testing.TB, chain []string, at time.Time) *x509.Certificate {
	t.Helper()
	require.GreaterOrEqual(t, len(chain), 2)
	roots, inter := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range parsePEM(t, chain[len(chain)-1]) {
		roots.AddCert(c)
	}
	for _, text := range chain[1 : len(chain)-1] {
		cs := parsePEM(t, text)
		require.Len(t, cs, 1, "one intermediate per element")
		inter.AddCert(cs[0])
	}
	for _, text := range chain {
		require.True(t, strings.HasSuffix(text, "\n"))
	}
	leaf := parsePEM(t, chain[0])
	require.Len(t, leaf, 1)
	_, err := leaf[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter, CurrentTime: at,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	require.NoError(t, err)
	return leaf[0]
}

// asCaller authenticates everybody as one caller, or fails with err.
type asCaller struct {
	caller authn.Caller
	err    error
}

func (a asCaller) Authenticate(_ context.Context, r authn.Request) (authn.Caller, error) {
	c := a.caller
	c.Peer = r.Peer
	return c, a.err
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func mustURL(t testing.TB, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	require.NoError(t, err)
	return u
}

// metricValues are the values of all counters and gauges without labels.
func metricValues(t testing.TB, reg prometheus.Gatherer) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	require.NoError(t, err)
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			out[f.GetName()] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return out
}
