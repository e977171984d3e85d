package authn

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// issuer is a small CA for tests.
type issuer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newIssuer(t testing.TB, parent *issuer) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	i := &issuer{key: key, cert: &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotBefore: start.Add(-time.Hour), NotAfter: start.Add(48 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}}
	if parent == nil {
		parent = i
	} else {
		i.cert.Subject.CommonName = "intermediate"
	}
	der, err := x509.CreateCertificate(rand.Reader, i.cert, parent.cert, key.Public(), parent.key)
	require.NoError(t, err)
	i.cert, err = x509.ParseCertificate(der)
	require.NoError(t, err)
	return i
}

func (i *issuer) leaf(t testing.TB, change func(*x509.Certificate), uris ...string) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(7), NotBefore: start.Add(-time.Minute), NotAfter: start.Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	for _, u := range uris {
		parsed, err := url.Parse(u)
		require.NoError(t, err)
		c.URIs = append(c.URIs, parsed)
	}
	if change != nil {
		change(c)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, i.cert, key.Public(), i.key)
	require.NoError(t, err)
	out, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return out
}

func presenting(certs ...*x509.Certificate) Request {
	return Request{TLS: &tls.ConnectionState{PeerCertificates: certs}}
}

func TestClientCertificates(t *testing.T) {
	const web = "spiffe://cluster.local/ns/shop/sa/web"
	root, foreign := newIssuer(t, nil), newIssuer(t, nil)
	inter := newIssuer(t, root)
	c := newClock()
	pool := x509.NewCertPool()
	pool.AddCert(root.cert)
	auth, err := NewCert(CertConfig{
		Roots:        func() *x509.CertPool { return pool },
		TrustDomains: func() []string { return []string{"cluster.local", "old.example"} },
		Revoked:      func(chain []*x509.Certificate) bool { return chain[0].SerialNumber.Int64() == 13 },
		Clock:        c.Now,
	})
	require.NoError(t, err)
	expired := func(c *x509.Certificate) { c.NotAfter = start.Add(-time.Second) }
	for name, tc := range map[string]struct {
		req  Request
		want mesh.Identity
		kind error
	}{
		"under the root":      {req: presenting(root.leaf(t, nil, web)), want: mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}},
		"intermediate":        {req: presenting(inter.leaf(t, nil, web), inter.cert), want: mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}},
		"alias":               {req: presenting(root.leaf(t, nil, "spiffe://old.example/ns/a/sa/b")), want: mesh.Identity{TrustDomain: "old.example", Namespace: "a", ServiceAccount: "b"}},
		"plaintext":           {req: Request{}, kind: ErrNoCredential},
		"none presented":      {req: Request{TLS: &tls.ConnectionState{}}, kind: ErrNoCredential},
		"foreign root":        {req: presenting(foreign.leaf(t, nil, web)), kind: ErrUnauthenticated},
		"missing link":        {req: presenting(inter.leaf(t, nil, web)), kind: ErrUnauthenticated},
		"expired":             {req: presenting(root.leaf(t, expired, web)), kind: ErrUnauthenticated},
		"other trust domain":  {req: presenting(root.leaf(t, nil, "spiffe://evil/ns/shop/sa/web")), kind: ErrUnauthenticated},
		"no name":             {req: presenting(root.leaf(t, nil)), kind: ErrUnauthenticated},
		"two names":           {req: presenting(root.leaf(t, nil, web, "spiffe://cluster.local/ns/a/sa/b")), kind: ErrUnauthenticated},
		"a DNS name too":      {req: presenting(root.leaf(t, func(c *x509.Certificate) { c.DNSNames = []string{"x"} }, web)), kind: ErrUnauthenticated},
		"not SPIFFE":          {req: presenting(root.leaf(t, nil, "https://cluster.local/ns/shop/sa/web")), kind: ErrUnauthenticated},
		"empty segment":       {req: presenting(root.leaf(t, nil, "spiffe://cluster.local/ns//sa/web")), kind: ErrUnauthenticated},
		"path tricks":         {req: presenting(root.leaf(t, nil, "spiffe://cluster.local/ns/../sa/web")), kind: ErrUnauthenticated},
		"percent":             {req: presenting(root.leaf(t, nil, "spiffe://cluster.local/ns/a%2fb/sa/web")), kind: ErrUnauthenticated},
		"query":               {req: presenting(root.leaf(t, nil, web+"?x")), kind: ErrUnauthenticated},
		"server only":         {req: presenting(root.leaf(t, func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[1:] }, web)), kind: ErrUnauthenticated},
		"revoked":             {req: presenting(root.leaf(t, func(c *x509.Certificate) { c.SerialNumber = big.NewInt(13) }, web)), kind: ErrUnauthenticated},
		"the CA itself calls": {req: presenting(root.cert), kind: ErrUnauthenticated},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := auth.Authenticate(t.Context(), tc.req)
			if tc.kind != nil {
				require.ErrorIs(t, err, tc.kind)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tc.want, got.Identity)
			require.Equal(t, SourceMTLS, got.Source)
			require.Empty(t, got.Cluster, "a certificate proves no cluster")
			require.Equal(t, start.Add(24*time.Hour), got.Expiry.UTC())
		})
	}
	t.Run("a root retired since the handshake", func(t *testing.T) {
		req := presenting(root.leaf(t, nil, web))
		pool = x509.NewCertPool()
		_, err := auth.Authenticate(t.Context(), req)
		require.ErrorIs(t, err, ErrUnauthenticated)
		pool = nil
		_, err = auth.Authenticate(t.Context(), req)
		require.ErrorIs(t, err, ErrUnauthenticated, "no roots are not the system's roots")
	})
}
