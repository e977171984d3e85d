package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"io"
	"math"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/isthmus-mesh/isthmus/mesh"
)

func TestSignLikeIstiod(t *testing.T) {
	c := newClock()
	root := newRoot(t, "cluster.local", c.Now(), 10*365*24*time.Hour)
	for name, issuer := range map[string]*Bundle{
		"self-signed":  root,
		"intermediate": newIntermediate(t, root, "east", c.Now(), 365*24*time.Hour),
	} {
		t.Run(name, func(t *testing.T) {
			a := newAuthority(t, c, issuer)
			cert, _ := sign(t, a, workload("shop", "web"), 24*time.Hour)
			require.Len(t, cert.Chain, 2+len(issuer.Chain))
			leaf := verifies(t, cert.Chain, c.Now())
			require.Empty(t, leaf.Subject.String())
			require.Equal(t, []*url.URL{mustURL(t, "spiffe://cluster.local/ns/shop/sa/web")}, leaf.URIs)
			require.False(t, leaf.IsCA)
			require.True(t, leaf.BasicConstraintsValid)
			require.Equal(t, x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment, leaf.KeyUsage)
			require.Equal(t, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, leaf.ExtKeyUsage)
			require.Equal(t, c.Now().Add(-2*time.Minute), leaf.NotBefore)
			require.Equal(t, c.Now().Add(24*time.Hour), leaf.NotAfter)
			require.Equal(t, issuer.Cert.SubjectKeyId, leaf.AuthorityKeyId)
			require.Empty(t, leaf.SubjectKeyId)
			require.Equal(t, leaf.SerialNumber, cert.Serial)
			require.True(t, sanCritical(leaf))
		})
	}
}

func sanCritical(c *x509.Certificate) bool {
	for _, e := range c.Extensions {
		if e.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 17}) {
			return e.Critical
		}
	}
	return false
}

// Row 24: whatever a CSR asks for, names and properties come from us.
func TestRow24ForeignSANsAndCABit(t *testing.T) {
	c := newClock()
	a := newAuthority(t, c, newRoot(t, "r", c.Now(), 24*time.Hour*3650))
	caBit, err := asn1.Marshal(struct {
		IsCA bool `asn1:"optional"`
	}{true})
	require.NoError(t, err)
	csr := csrOf(t, ecKey(t), &x509.CertificateRequest{
		Subject:        pkix.Name{CommonName: "istiod.istio-system.svc"},
		DNSNames:       []string{"istiod.istio-system.svc"},
		EmailAddresses: []string{"root@example.com"},
		URIs:           []*url.URL{mustURL(t, "spiffe://cluster.local/ns/kube-system/sa/admin"), mustURL(t, "spiffe://other/ns/a/sa/b")},
		ExtraExtensions: []pkix.Extension{
			{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: caBit},
			{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Value: []byte{4, 0}},
		},
	})
	cert, err := a.Sign(SignRequest{CSR: csr, Identity: workload("shop", "web")})
	require.NoError(t, err)
	leaf := verifies(t, cert.Chain, c.Now())
	require.False(t, leaf.IsCA)
	require.Empty(t, leaf.DNSNames)
	require.Empty(t, leaf.EmailAddresses)
	require.Empty(t, leaf.Subject.String())
	require.Equal(t, []*url.URL{mustURL(t, "spiffe://cluster.local/ns/shop/sa/web")}, leaf.URIs)
	for _, e := range leaf.Extensions {
		require.False(t, e.Id.Equal(asn1.ObjectIdentifier{1, 2, 3, 4}))
	}
}

func TestKeyTypes(t *testing.T) {
	c := newClock()
	a := newAuthority(t, c, newRoot(t, "r", c.Now(), 24*time.Hour*3650))
	gen := func(k crypto.Signer, err error) crypto.Signer { require.NoError(t, err); return k }
	ec := func(curve elliptic.Curve) crypto.Signer { return gen(ecdsa.GenerateKey(curve, rand.Reader)) }
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	for name, tc := range map[string]struct {
		key crypto.Signer
		bad string
	}{
		"P-256":    {key: ec(elliptic.P256())},
		"P-384":    {key: ec(elliptic.P384())},
		"P-521":    {key: ec(elliptic.P521()), bad: "use P-256 or P-384"},
		"P-224":    {key: ec(elliptic.P224()), bad: "use P-256 or P-384"},
		"RSA-2048": {key: gen(rsa.GenerateKey(rand.Reader, 2048))},
		"RSA-1024": {key: weakRSA(t), bad: "RSA key of 1024 bits"},
		"Ed25519":  {key: ed},
	} {
		t.Run(name, func(t *testing.T) {
			cert, err := a.Sign(SignRequest{CSR: agentCSR(t, tc.key, "spiffe://x/ns/a/sa/b"), Identity: workload("a", "b")})
			if tc.bad != "" {
				require.ErrorIs(t, err, ErrBadCSR)
				require.ErrorContains(t, err, tc.bad)
				return
			}
			require.NoError(t, err)
			require.True(t, equalKeys(verifies(t, cert.Chain, c.Now()).PublicKey, tc.key.Public()))
		})
	}
}

// weakRSA builds a key that crypto/rsa refuses to generate.
func weakRSA(t *testing.T) *rsa.PrivateKey {
	t.Setenv("GODEBUG", "rsa1024min=0")
	key, err := rsa.GenerateKey(rand.Reader, 1024)
	require.NoError(t, err)
	return key
}

func TestBadCSRs(t *testing.T) {
	c := newClock()
	a := newAuthority(t, c, newRoot(t, "r", c.Now(), 24*time.Hour*3650))
	good := string(agentCSR(t, ecKey(t), "spiffe://x/ns/a/sa/b"))
	for name, text := range map[string]string{
		"empty":     "",
		"garbage":   "hello",
		"other PEM": strings.ReplaceAll(good, "CERTIFICATE REQUEST", "CERTIFICATE"),
		"two":       good + good,
		"long":      good + strings.Repeat(" ", maxCSR),
		"truncated": good[:len(good)/2],
		"bad DER":   "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
		"trailing":  good + "x",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := a.Sign(SignRequest{CSR: []byte(text), Identity: workload("a", "b")})
			require.ErrorIs(t, err, ErrBadCSR)
		})
	}
}

// Row 26: no request gets more than the cap, the issuer and its chain allow.
func TestRow26Lifetimes(t *testing.T) {
	c := newClock()
	long := newRoot(t, "long", c.Now(), 10*365*24*time.Hour)
	for name, tc := range map[string]struct {
		issuer  *Bundle
		seconds int64
		want    time.Duration
	}{
		"default":      {long, 0, 24 * time.Hour},
		"negative":     {long, -5, 24 * time.Hour},
		"most neg":     {long, math.MinInt64, 24 * time.Hour},
		"short":        {long, 40, 40 * time.Second},
		"capped":       {long, 366 * 24 * 3600, 90 * 24 * time.Hour},
		"overflow":     {long, math.MaxInt64, 90 * 24 * time.Hour},
		"overflow 2":   {long, math.MaxInt64/int64(time.Second) + 1, 90 * 24 * time.Hour},
		"issuer ends":  {newRoot(t, "short", c.Now(), time.Hour), 86400, time.Hour},
		"root is next": {newIntermediate(t, newRoot(t, "r", c.Now(), 2*time.Hour), "i", c.Now(), 24*time.Hour), 86400, 2 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAuthority(t, c, tc.issuer)
			cert, err := a.Sign(SignRequest{CSR: agentCSR(t, ecKey(t), "x:y"), Identity: workload("a", "b"), Lifetime: seconds(tc.seconds)})
			require.NoError(t, err)
			require.Equal(t, c.Now().Add(tc.want), cert.NotAfter)
		})
	}
}

// Row 28: an issuer that is not valid signs nothing.
func TestRow28IssuerNotValid(t *testing.T) {
	c := newClock()
	a := newAuthority(t, c, nil)
	req := SignRequest{CSR: agentCSR(t, ecKey(t), "x:y"), Identity: workload("a", "b")}
	_, err := a.Sign(req)
	require.ErrorIs(t, err, ErrNotReady)

	require.NoError(t, a.install(newRoot(t, "r", c.Now(), time.Hour), nil))
	_, err = a.Sign(req)
	require.NoError(t, err)
	c.Add(time.Hour)
	_, err = a.Sign(req)
	require.ErrorIs(t, err, ErrIssuerExpired)
	c.Add(-3 * time.Hour)
	_, err = a.Sign(req)
	require.ErrorIs(t, err, ErrIssuerExpired, "an hour before it becomes valid")
}

// Row 31: clocks that differ by two minutes get valid certificates.
func TestRow31ClockSkew(t *testing.T) {
	c := newClock()
	a := newAuthority(t, c, newRoot(t, "r", c.Now(), 24*time.Hour*3650))
	cert, _ := sign(t, a, workload("a", "b"), 24*time.Hour)
	verifies(t, cert.Chain, c.Now().Add(-2*time.Minute))
	verifies(t, cert.Chain, c.Now().Add(2*time.Minute))
}

func TestSignRefusesIncompleteIdentities(t *testing.T) {
	c := newClock()
	a := newAuthority(t, c, newRoot(t, "r", c.Now(), time.Hour))
	for _, id := range []mesh.Identity{
		{}, {TrustDomain: "td", Namespace: "ns"}, {Namespace: "ns", ServiceAccount: "sa"}, {TrustDomain: "td", ServiceAccount: "sa"},
		{TrustDomain: "td", Namespace: "..", ServiceAccount: "sa"}, {TrustDomain: "td", Namespace: "a/b", ServiceAccount: "sa"},
		{TrustDomain: "td", Namespace: "a%2fb", ServiceAccount: "sa"}, {TrustDomain: "t d", Namespace: "a", ServiceAccount: "sa"},
		{TrustDomain: ".local", Namespace: "a", ServiceAccount: "sa"}, {TrustDomain: "a..b", Namespace: "a", ServiceAccount: "sa"},
	} {
		_, err := a.Sign(SignRequest{CSR: agentCSR(t, ecKey(t), "x:y"), Identity: id})
		require.Error(t, err, "%+v", id)
	}
}

// Our encoding equals the standard library's, octet for octet, for any leaf and
// any kind of issuing key.
func TestLeafEqualsStandardLibrary(t *testing.T) {
	now := newClock().Now()
	keys := map[string]crypto.Signer{"P-256": ecKey(t)}
	k384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	require.NoError(t, err)
	krsa, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	_, ked, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	keys["P-384"], keys["RSA"], keys["Ed25519"] = k384, krsa, ked
	leafKeys := []crypto.Signer{keys["P-256"], k384, krsa, ked}
	for name, key := range keys {
		t.Run(name, func(t *testing.T) {
			tmpl, err := caTemplate(pkix.Name{Organization: []string{"mesh"}, CommonName: "ca"}, now.Add(-time.Hour), now.Add(time.Hour))
			require.NoError(t, err)
			cert, err := createCA(tmpl, tmpl, key.Public(), key)
			require.NoError(t, err)
			b := &Bundle{Cert: cert, Anchor: cert, Roots: []*x509.Certificate{cert}, key: key}
			template, err := newLeafTemplate(b)
			require.NoError(t, err)
			rapid.Check(t, func(t *rapid.T) {
				l := leaf{
					key:       rapid.SampledFrom(leafKeys).Draw(t, "key").Public(),
					serial:    new(big.Int).SetBytes(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "serial")),
					notBefore: time.Unix(rapid.Int64Range(0, 4e9).Draw(t, "from"), 0),
					notAfter:  time.Unix(rapid.Int64Range(0, 4e9).Draw(t, "to"), 0),
				}
				l.serial.Add(l.serial, big.NewInt(1))
				part := rapid.StringMatching(`[a-zA-Z0-9._-]{1,40}`)
				if rapid.Bool().Draw(t, "workload") {
					u, err := url.Parse("spiffe://" + rapid.StringMatching(`[a-zA-Z0-9_-]{1,20}(\.[a-zA-Z0-9_-]{1,20}){0,3}`).Draw(t, "td") + "/ns/" + part.Draw(t, "ns") + "/sa/" + part.Draw(t, "sa"))
					require.NoError(t, err)
					l.uri = u
				} else {
					l.dnsNames = rapid.SliceOfN(rapid.StringMatching(`[a-z0-9]{1,20}\.svc`), 1, 5).Draw(t, "dns")
				}
				got, err := template.sign(l, key)
				require.NoError(t, err)
				parsed, err := x509.ParseCertificate(got)
				require.NoError(t, err)
				require.NoError(t, parsed.CheckSignatureFrom(cert))
				std := &x509.Certificate{
					SerialNumber: l.serial, NotBefore: l.notBefore, NotAfter: l.notAfter,
					KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
					ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
					BasicConstraintsValid: true, DNSNames: l.dnsNames,
				}
				if l.uri != nil {
					std.URIs = []*url.URL{l.uri}
				}
				der, err := x509.CreateCertificate(rand.Reader, std, cert, l.key, key)
				require.NoError(t, err)
				want, err := x509.ParseCertificate(der)
				require.NoError(t, err)
				require.Equal(t, want.RawTBSCertificate, parsed.RawTBSCertificate)
			})
		})
	}
}

func TestSerialsAreLongAndDistinct(t *testing.T) {
	seen, bits := map[string]bool{}, 0
	for range 500 {
		n, err := newSerial()
		require.NoError(t, err)
		require.Positive(t, n.Sign())
		require.False(t, seen[n.String()])
		seen[n.String()] = true
		bits = max(bits, n.BitLen())
	}
	require.Equal(t, 128, bits)
}

func TestInstallRefusesAKeyThatDoesNotSign(t *testing.T) {
	c := newClock()
	b := newRoot(t, "r", c.Now(), time.Hour)
	a := newAuthority(t, c, b)
	broken := *b
	broken.key = lyingKey{b.key}
	require.Error(t, a.install(&broken, nil))
	_, err := a.Sign(SignRequest{CSR: agentCSR(t, ecKey(t), "x:y"), Identity: workload("a", "b")})
	require.NoError(t, err, "the old material stays")
}

// lyingKey signs something else.
type lyingKey struct{ crypto.Signer }

func (l lyingKey) Sign(r io.Reader, digest []byte, o crypto.SignerOpts) ([]byte, error) {
	return l.Signer.Sign(r, make([]byte, len(digest)), o)
}

func TestExpiryMetrics(t *testing.T) {
	c, reg := newClock(), prometheus.NewRegistry()
	a, err := NewAuthority(AuthorityConfig{Clock: c.Now, Registerer: reg})
	require.NoError(t, err)
	require.NoError(t, a.install(newIntermediate(t, newRoot(t, "r", c.Now(), 2*time.Hour), "i", c.Now(), time.Hour), nil))
	c.Add(90 * time.Minute)
	got := metricValues(t, reg)
	require.InDelta(t, -1800, got["citadel_server_cert_chain_expiry_seconds"], 0)
	require.InDelta(t, 1800, got["citadel_server_root_cert_expiry_seconds"], 0)
	require.InDelta(t, c.Now().Unix()-1800, got["citadel_server_cert_chain_expiry_timestamp"], 0)
	require.InDelta(t, c.Now().Unix()+1800, got["citadel_server_root_cert_expiry_timestamp"], 0)
}

func TestRevoked(t *testing.T) {
	c := newClock()
	root := newRoot(t, "r", c.Now(), time.Hour)
	a := newAuthority(t, c, root)
	bad, _ := sign(t, a, workload("a", "bad"), 0)
	good, _ := sign(t, a, workload("a", "good"), 0)
	crl, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: c.Now(), NextUpdate: c.Now().Add(time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: bad.Serial, RevocationTime: c.Now()}},
	}, root.Cert, root.key)
	require.NoError(t, err)
	files := filesOf(t, root)
	files[fileCRL] = pemOf(pemCRL, crl)
	b, err := ParseBundle("x", files, c.Now())
	require.NoError(t, err)
	require.NoError(t, a.install(b, nil))
	require.Equal(t, files[fileCRL], a.CRLPEM())
	chain := func(x *Certificate) []*x509.Certificate {
		leaf, err := x509.ParseCertificate(x.DER)
		require.NoError(t, err)
		return []*x509.Certificate{leaf, root.Cert}
	}
	require.True(t, a.Revoked(chain(bad)))
	require.False(t, a.Revoked(chain(good)))
}
