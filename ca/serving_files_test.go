package ca

import (
	"context"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// servingFilesOf writes what an outside CA issued.
func servingFilesOf(t testing.TB, c *clock, outside *Bundle, lifetime time.Duration, names ...string) *ServingFiles {
	t.Helper()
	f := &ServingFiles{Cert: "tls.crt", Key: "tls.key", Roots: "ca.crt"}
	dir := t.TempDir()
	for _, path := range []*string{&f.Cert, &f.Key, &f.Roots} {
		*path = filepath.Join(dir, *path)
	}
	f.write(t, c, outside, lifetime, names...)
	return f
}

func (f *ServingFiles) write(t testing.TB, c *clock, outside *Bundle, lifetime time.Duration, names ...string) {
	t.Helper()
	key := ecKey(t)
	cert, err := newAuthority(t, c, outside).issueServing(key.Public(), names, lifetime)
	require.NoError(t, err)
	text, err := encodePrivateKey(key)
	require.NoError(t, err)
	chain := []byte(cert.Chain[0])
	for _, between := range cert.Chain[1 : len(cert.Chain)-1] {
		chain = append(chain, between...)
	}
	putFile(t, f.Cert, chain)
	putFile(t, f.Key, text)
	putFile(t, f.Roots, []byte(cert.Chain[len(cert.Chain)-1]))
}

func putFile(t testing.TB, path string, text []byte) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, text, 0o600))
}

// A certificate from files is served, its roots are handed out beside ours, and
// clients still need a certificate of the mesh.
func TestServingFromFiles(t *testing.T) {
	c := newClock()
	ours, outside := newRoot(t, "ours", c.Now(), 1000*24*time.Hour), newRoot(t, "outside", c.Now(), 1000*24*time.Hour)
	a := newAuthority(t, c, nil)
	between := newIntermediate(t, outside, "east", c.Now(), 500*24*time.Hour)
	files := servingFilesOf(t, c, between, time.Hour, "istiod.istio-system.svc")
	s, err := NewServing(ServingConfig{Authority: a, DNSNames: []string{"istiod.istio-system.svc"}, Files: files, Clock: c.Now})
	require.NoError(t, err)
	require.ErrorIs(t, s.renew(), ErrNotReady)
	require.NoError(t, a.install(ours, nil))
	require.Empty(t, s.Bundle(), "half of the roots is not handed out")
	told := 0
	defer a.OnChange(func() { told++ })()
	require.NoError(t, s.renew())
	require.NoError(t, s.renew())
	require.Equal(t, 1, told, "once, since nothing changed")

	require.Equal(t, []*x509.Certificate{ours.Cert, outside.Cert}, parsePEM(t, string(s.Bundle())))
	_, err = handshake(s.TLSConfig(), clientTLS(t, c, encodeCertificates(outside.Cert), nil, nil))
	require.NoError(t, err)
	_, err = handshake(s.TLSConfig(), clientTLS(t, c, a.RootsPEM(), nil, nil))
	require.Error(t, err, "it is not of our root")

	cert, key := sign(t, a, workload("shop", "web"), time.Hour)
	_, err = handshake(s.TLSConfig(), clientTLS(t, c, s.Bundle(), cert, key))
	require.NoError(t, err)
	foreign, key := sign(t, newAuthority(t, c, outside), workload("shop", "web"), time.Hour)
	_, err = handshake(s.TLSConfig(), clientTLS(t, c, s.Bundle(), foreign, key))
	require.Error(t, err, "the outside CA vouches for us, not for workloads")
}

// Bad files change nothing, and say why; good ones are taken over without a
// restart.
func TestServingFilesAreValidatedWhole(t *testing.T) {
	c := newClock()
	outside := newRoot(t, "outside", c.Now(), 1000*24*time.Hour)
	a := newAuthority(t, c, newRoot(t, "ours", c.Now(), 1000*24*time.Hour))
	files := servingFilesOf(t, c, outside, time.Hour, "istiod.istio-system.svc")
	s, err := NewServing(ServingConfig{Authority: a, DNSNames: []string{"istiod.istio-system.svc"}, Files: files, Clock: c.Now})
	require.NoError(t, err)
	s.renewLogged()
	require.Empty(t, s.Problem())
	first := s.cert.Load()
	read := func(path string) []byte {
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		return text
	}
	cert, key, roots := read(files.Cert), read(files.Key), read(files.Roots)
	elsewhere := servingFilesOf(t, c, newRoot(t, "elsewhere", c.Now(), time.Hour), time.Minute, "istiod.istio-system.svc")
	for name, x := range map[string]struct {
		damage func()
		says   string
	}{
		"no file":              {func() { require.NoError(t, os.Remove(files.Cert)) }, "no such file"},
		"half a certificate":   {func() { putFile(t, files.Cert, cert[:len(cert)/2]) }, "half written"},
		"another's key":        {func() { putFile(t, files.Key, read(elsewhere.Key)) }, "does not match"},
		"no key":               {func() { putFile(t, files.Key, nil) }, "no PEM block"},
		"another's roots":      {func() { putFile(t, files.Roots, read(elsewhere.Roots)) }, "does not verify"},
		"a key with the roots": {func() { putFile(t, files.Roots, append(read(files.Key), roots...)) }, "certificates only"},
		"endless":              {func() { putFile(t, files.Roots, make([]byte, maxBundleFile+1)) }, "longer than"},
		"it has ended":         {func() { c.Add(2 * time.Hour) }, "expired"},
	} {
		x.damage()
		s.renewLogged()
		require.Contains(t, s.Problem(), x.says, name)
		require.Same(t, first, s.cert.Load(), name)
		putFile(t, files.Cert, cert)
		putFile(t, files.Key, key)
		putFile(t, files.Roots, roots)
		if name == "it has ended" {
			c.Add(-2 * time.Hour)
		}
		s.renewLogged()
		require.Empty(t, s.Problem(), name)
		first = s.cert.Load()
	}
	c.Add(2 * time.Hour)
	files.write(t, c, outside, time.Hour, "istiod.istio-system.svc")
	s.renewLogged()
	require.Empty(t, s.Problem())
	require.NotEqual(t, first.Leaf, s.cert.Load().Leaf)
}

// The files are noticed when they change.
func TestServingFilesAreWatched(t *testing.T) {
	c := newClock()
	outside := newRoot(t, "outside", c.Now(), 1000*24*time.Hour)
	a := newAuthority(t, c, newRoot(t, "ours", c.Now(), 1000*24*time.Hour))
	files := servingFilesOf(t, c, outside, time.Hour, "istiod.istio-system.svc")
	s, err := NewServing(ServingConfig{Authority: a, DNSNames: []string{"istiod.istio-system.svc"}, Files: files, Clock: c.Now})
	require.NoError(t, err)
	done := make(chan error, 1)
	ctx, stop := context.WithCancel(t.Context())
	go func() { done <- s.Run(ctx) }()
	require.Eventually(t, s.Ready, time.Minute, time.Millisecond)
	first := s.cert.Load().Leaf
	require.Eventually(t, func() bool { // until the watch has begun, too
		files.write(t, c, outside, time.Hour, "istiod.istio-system.svc")
		return !first.Equal(s.cert.Load().Leaf)
	}, time.Minute, 10*time.Millisecond)
	stop()
	require.NoError(t, <-done)
}
