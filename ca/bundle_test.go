package ca

import (
	"crypto/rand"
	"crypto/x509"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestParseBundleForms(t *testing.T) {
	now := newClock().Now()
	root := newRoot(t, "root", now, 24*time.Hour)
	top := newIntermediate(t, root, "top", now, 20*time.Hour)
	east := newIntermediate(t, top, "east", now, 10*time.Hour)
	files := filesOf(t, east)
	pem := func(cs ...*x509.Certificate) []byte { return encodeCertificates(cs...) }

	for name, tc := range map[string]struct {
		files map[string][]byte
		chain []*x509.Certificate
	}{
		"as we write it":           {files, []*x509.Certificate{east.Cert, top.Cert}},
		"root in the chain":        {with(files, fileCertChain, pem(east.Cert, top.Cert, root.Cert)), []*x509.Certificate{east.Cert, top.Cert}},
		"issuer not in the chain":  {with(files, fileCertChain, pem(top.Cert)), []*x509.Certificate{east.Cert, top.Cert}},
		"chain in ca-cert":         {with(with(files, fileCertChain, nil), fileCACert, pem(east.Cert, top.Cert)), []*x509.Certificate{east.Cert, top.Cert}},
		"two roots":                {with(files, fileRootCert, pem(newRoot(t, "other", now, time.Hour).Cert, root.Cert, root.Cert)), []*x509.Certificate{east.Cert, top.Cert}},
		"text around certificates": {with(files, fileRootCert, append([]byte("Certificate:\n  Data: ...\n"), pem(root.Cert)...)), []*x509.Certificate{east.Cert, top.Cert}},
		"kubernetes.io/tls":        {map[string][]byte{fileTLSCert: pem(east.Cert, top.Cert), fileTLSKey: files[fileCAKey], fileTLSRoot: pem(root.Cert)}, []*x509.Certificate{east.Cert, top.Cert}},
		"self-signed":              {filesOf(t, root), nil},
		"istiod's empty keys":      {with(with(filesOf(t, root), fileCertChain, []byte{}), "key.pem", []byte{}), nil},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := ParseBundle("here", tc.files, now)
			require.NoError(t, err)
			require.Equal(t, tc.chain, b.Chain)
			require.Equal(t, root.Cert, b.Anchor)
			again, err := ParseBundle("here", filesOf(t, b), now)
			require.NoError(t, err)
			require.Equal(t, b.Digest(), again.Digest())
		})
	}
}

func with(files map[string][]byte, name string, text []byte) map[string][]byte {
	out := maps.Clone(files)
	out[name] = text
	return out
}

func without(files map[string][]byte, name string) map[string][]byte {
	out := maps.Clone(files)
	delete(out, name)
	return out
}

func TestParseBundleRefusals(t *testing.T) {
	now := newClock().Now()
	root := newRoot(t, "root", now, 24*time.Hour)
	other := newRoot(t, "other", now, 24*time.Hour)
	good := newIntermediate(t, root, "east", now, 10*time.Hour)
	files := filesOf(t, good)
	leafKey := ecKey(t)
	a := newAuthority(t, newClock(), good)
	leafCert, err := a.Sign(SignRequest{CSR: agentCSR(t, leafKey, "x:y"), Identity: workload("a", "b")})
	require.NoError(t, err)
	leafKeyPEM, err := encodePrivateKey(leafKey)
	require.NoError(t, err)
	noSign := *root.Cert
	noSign.KeyUsage = x509.KeyUsageCRLSign
	noSignCert, err := createCA(&noSign, &noSign, root.key.Public(), root.key)
	require.NoError(t, err)
	weak, err := encodePrivateKey(weakRSA(t))
	require.NoError(t, err)
	half := func(name string) map[string][]byte { return with(files, name, files[name][:len(files[name])/2]) }

	for name, tc := range map[string]struct {
		files         map[string][]byte
		at            time.Time
		file, problem string
	}{
		"key of another":       {files: with(files, fileCAKey, filesOf(t, other)[fileCAKey]), file: fileCAKey, problem: "does not match"},
		"no key":               {files: without(files, fileCAKey), file: fileCAKey, problem: "missing"},
		"no certificate":       {files: without(files, fileCACert), file: fileCACert, problem: "missing"},
		"no root":              {files: without(files, fileRootCert), file: fileRootCert, problem: "missing"},
		"only a root":          {files: map[string][]byte{fileRootCert: files[fileRootCert]}, file: fileCAKey, problem: "missing"},
		"root of another":      {files: with(files, fileRootCert, filesOf(t, other)[fileRootCert]), file: fileRootCert, problem: "does not verify"},
		"half a key":           {files: half(fileCAKey), file: fileCAKey, problem: "no PEM block"},
		"half a certificate":   {files: half(fileCACert), file: fileCACert, problem: "not PEM"},
		"half a root":          {files: half(fileRootCert), file: fileRootCert, problem: "not PEM"},
		"cut in the middle":    {files: with(files, fileRootCert, append(half(fileRootCert)[fileRootCert], files[fileRootCert]...)), file: fileRootCert, problem: "not PEM"},
		"half a chain":         {files: half(fileCertChain), file: fileCertChain, problem: "not PEM"},
		"key among the roots":  {files: with(files, fileRootCert, append(files[fileRootCert], files[fileCAKey]...)), file: fileRootCert, problem: "EC PRIVATE KEY"},
		"key in cert file":     {files: with(files, fileCACert, append(files[fileCACert], files[fileCAKey]...)), file: fileCACert, problem: "EC PRIVATE KEY"},
		"garbage certificate":  {files: with(files, fileCACert, pemOf(pemCertificate, []byte("x"))), file: fileCACert, problem: "cannot be parsed"},
		"no CA":                {files: map[string][]byte{fileCACert: []byte(leafCert.Chain[0]), fileCAKey: leafKeyPEM, fileRootCert: files[fileRootCert]}, file: fileCACert, problem: "not a CA"},
		"may not sign":         {files: with(with(filesOf(t, root), fileCACert, encodeCertificates(noSignCert)), fileRootCert, encodeCertificates(noSignCert)), file: fileCACert, problem: "must not sign"},
		"expired":              {files: files, at: now.Add(11 * time.Hour), file: fileCACert, problem: "expired"},
		"root expired":         {files: filesOf(t, newIntermediate(t, newRoot(t, "short", now, time.Hour), "i", now, 10*time.Hour)), at: now.Add(2 * time.Hour), file: fileRootCert, problem: "expired"},
		"not yet valid":        {files: files, at: now.Add(-2 * time.Hour), file: fileCACert, problem: "not valid before"},
		"weak key":             {files: with(files, fileCAKey, weak), file: fileCAKey, problem: "1024 bits"},
		"encrypted key":        {files: with(files, fileCAKey, pemOf("ENCRYPTED PRIVATE KEY", []byte("x"))), file: fileCAKey, problem: "encrypted"},
		"huge":                 {files: with(files, fileRootCert, []byte(strings.Repeat("x", maxBundleFile+1))), file: fileRootCert, problem: "longer than"},
		"too many":             {files: with(files, fileCertChain, []byte(strings.Repeat(string(files[fileRootCert]), maxBundleCerts+1))), file: fileCertChain, problem: "more than"},
		"revocation garbage":   {files: with(files, fileCRL, []byte("nothing")), file: fileCRL, problem: "no list"},
		"revocation, half":     {files: with(files, fileCRL, pemOf(pemCRL, []byte("x"))), file: fileCRL, problem: "cannot be parsed"},
		"certificates as CRLs": {files: with(files, fileCRL, files[fileRootCert]), file: fileCRL, problem: "CERTIFICATE"},
	} {
		t.Run(name, func(t *testing.T) {
			at := tc.at
			if at.IsZero() {
				at = now
			}
			_, err := ParseBundle("Secret istio-system/cacerts", tc.files, at)
			var bad *BundleError
			require.ErrorAs(t, err, &bad)
			require.Equal(t, tc.file, bad.File)
			require.Contains(t, bad.Problem, tc.problem)
			require.NotEmpty(t, bad.Fix)
			require.Contains(t, err.Error(), "Secret istio-system/cacerts")
			require.NotContains(t, err.Error(), "BEGIN", "no content in errors")
		})
	}
}

func TestParseBundleAbsent(t *testing.T) {
	for _, files := range []map[string][]byte{nil, {}, {"README": []byte("x")}, {fileCAKey: nil}} {
		_, err := ParseBundle("here", files, time.Now())
		require.ErrorIs(t, err, ErrNoBundle)
	}
}

func TestKeyForms(t *testing.T) {
	key := ecKey(t)
	sec1, err := x509.MarshalECPrivateKey(key)
	require.NoError(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	params := pemOf("EC PARAMETERS", []byte{6, 8, 42, 134, 72, 206, 61, 3, 1, 7})
	for name, text := range map[string][]byte{
		"SEC 1": pemOf(pemECKey, sec1), "PKCS 8": pemOf(pemPKCS8Key, pkcs8), "openssl": append(params, pemOf(pemECKey, sec1)...),
	} {
		got, err := parsePrivateKey(text)
		require.NoError(t, err, name)
		require.True(t, key.Equal(got), name)
	}
}

// FuzzBundle: no text makes the parser panic, and what it accepts is whole: it
// can sign a certificate that verifies.
func FuzzBundle(f *testing.F) {
	c := newClock()
	root := newRoot(f, "root", c.Now(), 24*time.Hour)
	for _, b := range []*Bundle{root, newIntermediate(f, root, "east", c.Now(), time.Hour)} {
		x := filesOf(f, b)
		f.Add(x[fileCACert], x[fileCAKey], x[fileCertChain], x[fileRootCert], []byte{})
	}
	crl, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: root.Cert.SerialNumber, NextUpdate: c.Now()}, root.Cert, root.key)
	require.NoError(f, err)
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----"), []byte{}, []byte{}, []byte{}, pemOf(pemCRL, crl))
	f.Fuzz(func(t *testing.T, cert, key, chain, root, crl []byte) {
		b, err := ParseBundle("fuzz", map[string][]byte{
			fileCACert: cert, fileCAKey: key, fileCertChain: chain, fileRootCert: root, fileCRL: crl,
		}, c.Now())
		if err != nil {
			var bad *BundleError
			require.True(t, errors.As(err, &bad) || errors.Is(err, ErrNoBundle), "%v", err)
			return
		}
		require.False(t, c.Now().After(b.NotAfter()))
		require.Contains(t, b.Roots, b.Anchor)
	})
}
