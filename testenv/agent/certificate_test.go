package agent

import (
	"crypto/tls"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/serve"
	"github.com/isthmus-mesh/isthmus/multicluster"
)

// Checks 1 to 4: what an agent asks for and what it gets.
func TestAgentGetsACertificate(t *testing.T) {
	l := newLab(t)
	web := l.web()
	for _, c := range []struct {
		name string
		csr  CSR
		life time.Duration
	}{
		{"RSA-2048, as by default", CSR{URI: spiffe("shop", "web")}, 24 * time.Hour},
		{"ECDSA for 40 s", CSR{URI: spiffe("shop", "web"), ECDSA: true, Lifetime: 40 * time.Second}, 40 * time.Second},
		{"another's name", CSR{URI: spiffe("shop", "other"), ECDSA: true}, 24 * time.Hour},
		{"no name", CSR{ECDSA: true}, 24 * time.Hour},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := l.in(t)
			before := time.Now()
			got, err := web.Certificate(l.ctx, c.csr)
			require.NoError(t, err)
			require.GreaterOrEqual(t, len(got.Chain), 2)
			for _, e := range got.Chain {
				require.True(t, strings.HasSuffix(e, "\n"))
			}
			require.Empty(t, got.Leaf.DNSNames)
			require.Empty(t, got.Leaf.IPAddresses)
			require.Len(t, got.Leaf.URIs, 1)
			require.Equal(t, spiffe("shop", "web"), got.Leaf.URIs[0].String())
			require.False(t, got.Leaf.IsCA)
			require.WithinRange(t, got.Leaf.NotAfter, before.Add(c.life-2*time.Second), time.Now().Add(c.life))
			require.True(t, got.Leaf.NotBefore.Before(before), "clocks differ")
			verify(t, got)
			require.Equal(t, l.rootConfigMap(), string(got.Roots()))
		})
	}
}

// verify checks a chain as another proxy would.
func verify(t *testing.T, got *Issued) {
	t.Helper()
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(got.Roots()))
	for _, e := range got.Chain[1 : len(got.Chain)-1] {
		require.True(t, between.AppendCertsFromPEM([]byte(e)))
	}
	_, err := got.Leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	require.NoError(t, err)
}

// rootConfigMap waits for the ConfigMap in namespace shop of the primary.
func (l *lab) rootConfigMap() string {
	l.t.Helper()
	text := ""
	l.eventually("the roots are distributed", func() bool {
		cm, err := l.c1.Client().CoreV1().ConfigMaps("shop").Get(l.ctx, "istio-ca-root-cert", metav1.GetOptions{})
		if err == nil {
			text = cm.Data["root-cert.pem"]
		}
		return text == string(l.plane.RootsPEM())
	})
	return text
}

// Check 4 with an intermediate, from a mounted directory: the one that isthmus
// ca makes.
func TestIntermediateCompletesTheChain(t *testing.T) {
	dir := t.TempDir()
	makeIntermediate(t, dir)
	l := newLab(t, func(s *serve.Settings) {
		s.Security.CADir = dir + "/c1"
		s.Namespace = "istio-system"
	})
	got, err := l.web().Certificate(l.ctx, CSR{URI: spiffe("shop", "web"), ECDSA: true})
	require.NoError(t, err)
	require.Len(t, got.Chain, 3)
	verify(t, got)
}

// Check 5.
func TestRefusals(t *testing.T) {
	l := newLab(t)
	l.join()
	good := l.podToken(l.c1, "istio-ca")
	with := func(token, cluster string) *Agent {
		return l.agent(func(c *Config) { c.Token, c.Cluster = token, cluster })
	}
	before := l.metric(`isthmus_token_reviews_total{result="ok"}`)
	l.refused(with("", "c1"), codes.Unauthenticated, "authentication required")
	l.refused(with("garbage", "c1"), codes.Unauthenticated, "authentication failure")
	l.refused(with("e30.bnVsbA.e30", "c1"), codes.Unauthenticated, "authentication failure")
	l.refused(with(l.podToken(l.c1, "somebody-else"), "c1"), codes.Unauthenticated, "authentication failure")
	l.refused(with(good, "nowhere"), codes.Unauthenticated, "authentication failure")
	l.refused(with(good, "c2"), codes.Unauthenticated, "authentication failure")
	l.refused(with(l.podToken(l.c2, "istio-ca"), "c1"), codes.Unauthenticated, "authentication failure")
	require.Equal(t, before, l.metric(`isthmus_token_reviews_total{result="ok"}`))
	_, err := with(good, "c1").Certificate(l.ctx, CSR{URI: spiffe("shop", "web"), ECDSA: true})
	require.NoError(t, err, "the same token in its own cluster")
	_, err = with(good, "").Certificate(l.ctx, CSR{URI: spiffe("shop", "web"), ECDSA: true})
	require.NoError(t, err, "without a clusterid the primary is meant")
}

// Check 6: machines renew with the certificate that they have.
func TestClientCertificateIsEnough(t *testing.T) {
	l := newLab(t)
	first, err := l.web().Certificate(l.ctx, CSR{URI: spiffe("shop", "web"), ECDSA: true})
	require.NoError(t, err)
	renewing := l.agent(func(c *Config) { c.Certificate = first.TLS() })
	second, err := renewing.Certificate(l.ctx, CSR{URI: spiffe("shop", "web"), ECDSA: true})
	require.NoError(t, err)
	require.Equal(t, spiffe("shop", "web"), second.Leaf.URIs[0].String())
	s := l.open(renewing, webNode(), true)
	l.ask(s, Request{Type: CDS})
	require.NotEmpty(t, l.next(s, CDS).Resources)
}

// Check 7.
func TestServingCertificate(t *testing.T) {
	l := newLab(t, func(s *serve.Settings) {
		s.Revision, s.Security.CustomHosts = "canary", []string{"istiod.example.com"}
	})
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		roots := x509.NewCertPool()
		require.True(t, roots.AppendCertsFromPEM([]byte(l.rootConfigMap())))
		conn, err := tls.Dial("tcp", l.plane.SecureGRPCAddr(), &tls.Config{RootCAs: roots, ServerName: DefaultServerName,
			NextProtos: []string{"h2"}, MinVersion: version, MaxVersion: version})
		require.NoError(t, err)
		state := conn.ConnectionState()
		require.NoError(t, conn.Close())
		require.Equal(t, "h2", state.NegotiatedProtocol)
		require.Equal(t, version, state.Version)
		for _, name := range []string{"istiod.istio-system.svc", "istiod-remote.istio-system.svc", "istio-pilot.istio-system.svc",
			"istiod-canary.istio-system.svc", "istiod.example.com"} {
			require.NoError(t, state.PeerCertificates[0].VerifyHostname(name))
		}
	}
}

// Check 8.
func TestRemoteTokens(t *testing.T) {
	l := newLab(t)
	token := l.podToken(l.c2, "istio-ca")
	remote := l.agent(func(c *Config) { c.Token, c.Cluster = token, "c2" })
	l.refused(remote, codes.Unauthenticated, "authentication failure")
	l.join()
	got, err := remote.Certificate(l.ctx, CSR{URI: spiffe("shop", "web"), ECDSA: true})
	require.NoError(t, err)
	require.Equal(t, spiffe("shop", "web"), got.Leaf.URIs[0].String())
	require.NoError(t, l.c1.Client().CoreV1().Secrets("istio-system").Delete(l.ctx, "remote-c2", metav1.DeleteOptions{}))
	l.eventually("c2 has left", func() bool { return len(l.plane.Clusters()) == 1 })
	l.refused(remote, codes.Unauthenticated, "authentication failure")
}

// A remote whose credentials were taken back: nobody can tell whether a token is
// good, which is another answer than that it is not.
func TestRevokedKubeconfig(t *testing.T) {
	l := newLab(t)
	l.join()
	token := l.podToken(l.c2, "istio-ca")
	require.NoError(t, l.c2.RevokeReader(l.ctx, multicluster.ReaderAccount))
	l.refused(l.agent(func(c *Config) { c.Token, c.Cluster = token, "c2" }), codes.Unavailable, "try again")
	_, err := l.web().Certificate(l.ctx, CSR{ECDSA: true})
	require.NoError(t, err, "the primary is not concerned")
}

// A hanging API server: the deadline ends the review.
func TestHangingTokenReview(t *testing.T) {
	l := newLab(t)
	l.join()
	token := l.podToken(l.c2, "istio-ca")
	l.c2.Pause()
	defer l.c2.Resume()
	l.refused(l.agent(func(c *Config) { c.Token, c.Cluster = token, "c2" }), codes.Unavailable, "try again")
}

// Check 9: refusals are cheap.
func TestRefusedCSRsAreCheap(t *testing.T) {
	l := newLab(t)
	token := l.podToken(l.c1, "istio-ca")
	forged := token[:len(token)-8] + "AAAAAAAA"
	stranger := l.agent(func(c *Config) { c.Token = forged })
	for range 100 {
		l.refused(stranger, codes.Unauthenticated, "authentication failure")
	}
	require.Equal(t, "100", l.metric("citadel_server_authentication_failure_count"))
	require.Equal(t, "100", l.metric(`isthmus_token_reviews_total{result="refused"}`), "one review each at most")
}
