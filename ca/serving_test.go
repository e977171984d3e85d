package ca

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/isthmus-mesh/isthmus/ca/authn"
)

func TestServingNames(t *testing.T) {
	require.Equal(t, []string{"istiod.mesh.svc", "istiod-remote.mesh.svc", "istio-pilot.mesh.svc", "istiod-canary.mesh.svc", "istiod.example.com"},
		ServingNames("mesh", "canary", " istiod.example.com", "", "istiod.mesh.svc"))
	require.Len(t, ServingNames("mesh", "default"), 3)
}

// handshake connects a client and a server over memory; the result is the
// server's view.
func handshake(server, client *tls.Config) (tls.ConnectionState, error) {
	cs, ss := net.Pipe()
	defer func() { _ = cs.Close(); _ = ss.Close() }()
	done := make(chan error, 1)
	go func() {
		c := tls.Client(cs, client)
		err := c.Handshake()
		if err == nil {
			_, err = c.Read(make([]byte, 1)) // with TLS 1.3 a refusal comes late
			if errors.Is(err, io.EOF) {
				err = nil
			}
		}
		_ = cs.Close()
		done <- err
	}()
	s := tls.Server(ss, server)
	err := s.Handshake()
	if err == nil {
		_ = s.Close()
	} else {
		_ = ss.Close()
	}
	return s.ConnectionState(), errors.Join(err, <-done)
}

func clientTLS(t testing.TB, c *clock, roots []byte, cert *Certificate, key any) *tls.Config {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(roots)
	cfg := &tls.Config{RootCAs: pool, ServerName: "istiod.istio-system.svc", Time: c.Now, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"}}
	if cert != nil {
		leaf, err := x509.ParseCertificate(cert.DER)
		require.NoError(t, err)
		pair := tls.Certificate{Certificate: [][]byte{cert.DER}, PrivateKey: key, Leaf: leaf}
		for _, i := range cert.issuer.Chain {
			pair.Certificate = append(pair.Certificate, i.Raw)
		}
		// Sent even if the server does not name its issuer: servers must cope.
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	return cfg
}

func newServing(t testing.TB, c *clock, a *Authority) *Serving {
	t.Helper()
	s, err := NewServing(ServingConfig{Authority: a, DNSNames: ServingNames("istio-system", ""), Clock: c.Now})
	require.NoError(t, err)
	return s
}

func TestServing(t *testing.T) {
	c := newClock()
	root := newRoot(t, "r", c.Now(), 3650*24*time.Hour)
	inter := newIntermediate(t, root, "east", c.Now(), 1000*24*time.Hour)
	a := newAuthority(t, c, nil)
	s := newServing(t, c, a)
	require.ErrorIs(t, s.renew(), ErrNotReady)
	_, err := handshake(s.TLSConfig(), clientTLS(t, c, nil, nil, nil))
	require.Error(t, err)
	require.NoError(t, a.install(inter, nil))
	require.NoError(t, s.renew())
	cfg := s.TLSConfig()

	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		client := clientTLS(t, c, a.RootsPEM(), nil, nil)
		client.MaxVersion = version
		state, err := handshake(cfg, client)
		require.NoError(t, err)
		require.Equal(t, "h2", state.NegotiatedProtocol)
		require.Equal(t, version, state.Version)
	}
	old := clientTLS(t, c, a.RootsPEM(), nil, nil)
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	_, err = handshake(cfg, old)
	require.Error(t, err)
	wrong := clientTLS(t, c, a.RootsPEM(), nil, nil)
	wrong.ServerName = "kubernetes.default.svc"
	_, err = handshake(cfg, wrong)
	require.Error(t, err)

	cert, key := sign(t, a, workload("shop", "web"), time.Hour)
	client := clientTLS(t, c, a.RootsPEM(), cert, key)
	state, err := handshake(cfg, client)
	require.NoError(t, err)
	end, ok := PeerExpiry(state)
	require.True(t, ok)
	require.Equal(t, cert.NotAfter, end)

	foreign := newAuthority(t, c, newRoot(t, "foreign", c.Now(), 1000*time.Hour))
	cert, key = sign(t, foreign, workload("shop", "web"), time.Hour)
	_, err = handshake(cfg, clientTLS(t, c, a.RootsPEM(), cert, key))
	require.Error(t, err, "a client certificate of a foreign root")
	c.Add(2 * time.Hour)
	_, err = handshake(cfg, client)
	require.Error(t, err, "an expired client certificate")
}

// Row 30, for the control plane's own port: during a rotation clients with old
// certificates and old servers' certificates go on working.
func TestServingDuringRotation(t *testing.T) {
	c := newClock()
	old, next := newRoot(t, "same name", c.Now(), 3650*24*time.Hour), newRoot(t, "same name", c.Now(), 3650*24*time.Hour)
	a := newAuthority(t, c, old)
	s := newServing(t, c, a)
	require.NoError(t, s.renew())
	cfg := s.TLSConfig()
	cert, key := sign(t, a, workload("a", "b"), 0)

	require.NoError(t, a.install(old, next.Roots))
	distributed := a.RootsPEM()
	_, err := handshake(cfg, clientTLS(t, c, distributed, cert, key))
	require.NoError(t, err)

	require.NoError(t, a.install(next, old.Roots))
	require.NoError(t, s.renew())
	_, err = handshake(cfg, clientTLS(t, c, distributed, cert, key))
	require.NoError(t, err, "a client with an old certificate and both roots")
	renewed, key2 := sign(t, a, workload("a", "b"), 0)
	_, err = handshake(cfg, clientTLS(t, c, a.RootsPEM(), renewed, key2))
	require.NoError(t, err)

	require.NoError(t, a.install(next, nil))
	_, err = handshake(cfg, clientTLS(t, c, a.RootsPEM(), cert, key))
	require.Error(t, err, "the old root is retired")
}

func TestServingRunRenewsBySynctest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, err := NewAuthority(AuthorityConfig{})
		require.NoError(t, err)
		s, err := NewServing(ServingConfig{Authority: a, DNSNames: []string{"x"}})
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { _ = s.Run(ctx) }()
		synctest.Wait()
		require.False(t, s.Ready())
		require.NoError(t, a.install(newRoot(t, "r", time.Now(), 3650*24*time.Hour), nil))
		synctest.Wait()
		require.True(t, s.Ready(), "at once")
		first := s.cert.Load().Leaf
		time.Sleep(11 * time.Hour)
		require.Equal(t, first, s.cert.Load().Leaf)
		time.Sleep(3 * time.Hour)
		require.NotEqual(t, first, s.cert.Load().Leaf)
		for range 10 {
			time.Sleep(12 * time.Hour)
			require.True(t, time.Now().Before(s.cert.Load().Leaf.NotAfter))
		}
		require.NoError(t, a.install(newRoot(t, "r2", time.Now(), 3650*24*time.Hour), nil))
		synctest.Wait()
		require.Equal(t, "O=r2", s.cert.Load().Leaf.Issuer.String())
		cancel()
		synctest.Wait()
	})
}

// Row 36: what a connection may live on its certificate ends with it.
func TestRow36CallerContextEndsWithItsCredential(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, err := NewAuthority(AuthorityConfig{})
		require.NoError(t, err)
		require.NoError(t, a.install(newRoot(t, "r", time.Now(), 3650*24*time.Hour), nil))
		cert, _ := sign(t, a, workload("shop", "web"), 10*time.Minute)
		leaf, err := x509.ParseCertificate(cert.DER)
		require.NoError(t, err)
		auth, err := authn.NewCert(authn.CertConfig{Roots: a.Roots, TrustDomains: func() []string { return []string{"cluster.local"} }, Revoked: a.Revoked})
		require.NoError(t, err)
		req := authn.Request{TLS: &tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}}}
		caller, err := authn.Chain{auth}.Authenticate(t.Context(), req)
		require.NoError(t, err)
		ctx, cancel := caller.Context(t.Context())
		defer cancel()
		time.Sleep(10*time.Minute - time.Second)
		require.NoError(t, ctx.Err())
		time.Sleep(2 * time.Second)
		require.ErrorIs(t, context.Cause(ctx), authn.ErrCredentialExpired)
		_, err = authn.Chain{auth}.Authenticate(t.Context(), req)
		require.ErrorIs(t, err, authn.ErrUnauthenticated)
		require.ErrorContains(t, err, "expired")
	})
}
