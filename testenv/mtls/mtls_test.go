package mtls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// TestAcrossNetworks: a client in one cluster and network reaches a server in
// another through a gateway that cannot read what they say: each has seen the
// other's certificate.
func TestAcrossNetworks(t *testing.T) {
	tr, w := newTrust(t), newWorld(t)
	srv := w.startEcho(newAgent(t, tr.issue("west", "echo")))
	c := w.dialEcho(newAgent(t, tr.issue("east", "client")))
	who, dialled, err := call(t.Context(), c.conn)
	require.NoError(t, err)
	require.Equal(t, workload("client").SPIFFE(), who)
	require.Equal(t, w.gateway.String(), dialled, "the pod's address cannot be routed from here")
	require.Empty(t, srv.failures())
	require.Empty(t, c.failures())
}

// TestRefused: whoever does not hold the right certificate of the mesh gets no
// call through, whichever side it is on; with the right one it does.
func TestRefused(t *testing.T) {
	tr, w := newTrust(t), newWorld(t)
	foreign, _ := newAuthority(t, newRoot(t, "foreign"), time.Now, nil)
	past, _ := newAuthority(t, tr.mount.dir, func() time.Time { return time.Now().Add(-time.Hour) }, nil)
	client, echo := tr.issue("east", "client"), tr.issue("west", "echo")
	// A stranger trusts our roots: it is us who refuse it.
	stranger := func(m material) material { m.roots = tr.authority.RootsPEM(); return m }
	for name, test := range map[string]struct {
		client, echo material
		// which side refuses, and why
		byClient, byServer string
	}{
		"right certificates":        {client: client, echo: echo},
		"server of another account": {client: client, echo: tr.issue("west", "thief"), byClient: "do not match any of the accepted SANs"},
		"server of a foreign root":  {client: client, echo: stranger(sign(t, foreign, workload("echo"))), byClient: "certificate signed by unknown authority"},
		"server has expired":        {client: client, echo: sign(t, past, workload("echo")), byClient: "certificate has expired"},
		// Go's client keeps back a certificate that the server says it does not want.
		"client of a foreign root": {client: stranger(sign(t, foreign, workload("client"))), echo: echo, byServer: "client didn't provide a certificate"},
		"client has expired":       {client: sign(t, past, workload("client")), echo: echo, byServer: "certificate has expired"},
	} {
		t.Run(name, func(t *testing.T) {
			w := w.in(t)
			srv := w.startEcho(newAgent(t, test.echo))
			c := w.dialEcho(newAgent(t, test.client))
			_, _, err := call(t.Context(), c.conn)
			if test.byClient == "" && test.byServer == "" {
				require.NoError(t, err)
				return
			}
			require.Equal(t, codes.Unavailable, status.Code(err), "%v", err)
			require.Empty(t, srv.called())
			if test.byClient != "" {
				require.ErrorContains(t, err, test.byClient)
				return
			}
			srv.refused(t, test.byServer)
			require.NoError(t, w.goodCall(t, tr), "the server is there for others")
		})
	}
}

// TestOutsiders: who does not speak mesh mTLS is turned away by the gateway, or
// by the pod if it gets there.
func TestOutsiders(t *testing.T) {
	tr, w := newTrust(t), newWorld(t)
	foreign, _ := newAuthority(t, newRoot(t, "foreign"), time.Now, nil)
	for name, hello := range map[string]*tls.Config{
		"unknown server name":    anonymous("outbound_.7070_._.other.shop.svc.cluster.local"),
		"the service's name":     anonymous(echoHost),
		"no server name":         anonymous(""),
		"no protocol at all":     {ServerName: passed, InsecureSkipVerify: true},
		"protocol of a stranger": {ServerName: passed, InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}},
	} {
		t.Run(name, func(t *testing.T) {
			srv := w.in(t).startEcho(newAgent(t, tr.issue("west", "echo")))
			_, err := (&tls.Dialer{Config: hello}).DialContext(within(t), "tcp", w.gateway.String())
			var closed *net.OpError
			require.True(t, errors.Is(err, io.EOF) || errors.As(err, &closed), "want the connection closed, not answered: %v", err)
			require.NoError(t, w.goodCall(t, tr))
			require.Empty(t, srv.failures(), "the pod heard of it")
		})
	}
	for name, test := range map[string]struct {
		to    string
		creds credentials.TransportCredentials
		why   string // the pod refuses it; "" if it never hears of it
	}{
		"plain text to the gateway": {w.gateway.String(), insecure.NewCredentials(), ""},
		"plain text to the pod":     {w.echo.String(), insecure.NewCredentials(), "first record does not look like a TLS handshake"},
		"no certificate":            {w.gateway.String(), credentials.NewTLS(anonymous(passed)), "client didn't provide a certificate"},
		"foreign certificate":       {w.gateway.String(), insisting(t, sign(t, foreign, workload("client"))), "certificate signed by unknown authority"},
	} {
		t.Run(name, func(t *testing.T) {
			w := w.in(t)
			srv := w.startEcho(newAgent(t, tr.issue("west", "echo")))
			conn, err := grpc.NewClient("passthrough:///"+test.to, grpc.WithTransportCredentials(test.creds))
			require.NoError(t, err)
			defer func() { require.NoError(t, conn.Close()) }()
			_, _, err = call(t.Context(), conn)
			require.Equal(t, codes.Unavailable, status.Code(err), "%v", err)
			require.Empty(t, srv.called())
			if test.why != "" {
				srv.refused(t, test.why)
			}
			require.NoError(t, w.goodCall(t, tr))
			if test.why == "" {
				require.Empty(t, srv.failures(), "the pod heard of it")
			}
		})
	}
}

// TestHelloOfAnEnvoy: the protocols that sidecars offer pass the gateway as they
// are, without what the adapter adds for gRPC.
func TestHelloOfAnEnvoy(t *testing.T) {
	tr, w := newTrust(t), newWorld(t)
	w.startEcho(newAgent(t, tr.issue("west", "echo")))
	hello := mutual(t, tr.issue("east", "client"))
	hello.NextProtos = []string{"istio-peer-exchange", "istio"}
	hello.MaxVersion = tls.VersionTLS12 // the handshake ends when both have verified
	_, err := (&tls.Dialer{Config: hello}).DialContext(within(t), "tcp", w.gateway.String())
	// gRPC's server shares no protocol with it and says so: it was reached.
	require.ErrorContains(t, err, "no application protocol")
	hello.NextProtos = append(hello.NextProtos, "h2")
	conn, err := (&tls.Dialer{Config: hello}).DialContext(within(t), "tcp", w.gateway.String())
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close()) }()
	peers := conn.(*tls.Conn).ConnectionState().PeerCertificates
	require.Equal(t, workload("echo").SPIFFE(), peers[0].URIs[0].String())
}

// anonymous says hello as gRPC does, without a certificate.
func anonymous(name string) *tls.Config {
	return &tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: []string{"h2"}}
}

// mutual is a client's side of mesh mTLS by crypto/tls.
func mutual(t testing.TB, m material) *tls.Config {
	t.Helper()
	pair, err := tls.X509KeyPair(m.chain, m.key)
	require.NoError(t, err)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(m.roots))
	return &tls.Config{
		ServerName: passed,
		NextProtos: []string{"h2"},
		// Certificates of workloads have no DNS name to check: their identity is.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			between := x509.NewCertPool()
			for _, c := range s.PeerCertificates[1:] {
				between.AddCert(c)
			}
			_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between})
			if err == nil && (len(s.PeerCertificates[0].URIs) != 1 || s.PeerCertificates[0].URIs[0].String() != workload("echo").SPIFFE()) {
				err = errors.New("another identity")
			}
			return err
		},
		// Presented whether the server wants it or not.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil },
	}
}

// insisting presents a certificate although the server says whose it wants, and
// believes every server.
func insisting(t testing.TB, m material) credentials.TransportCredentials {
	t.Helper()
	c := mutual(t, m)
	c.VerifyConnection = nil
	return credentials.NewTLS(c)
}

// in is the world for a part of the test that began it.
func (w *world) in(t testing.TB) *world {
	sub := *w
	sub.t = t
	return &sub
}

// goodCall makes one call as the client pod.
func (w *world) goodCall(t *testing.T, tr *trust) error {
	t.Helper()
	_, _, err := call(t.Context(), w.in(t).dialEcho(newAgent(t, tr.issue("east", "client"))).conn)
	return err
}

// refused waits until the server has refused a handshake for the reason.
func (s *server) refused(t *testing.T, why string) {
	t.Helper()
	require.Eventually(t, func() bool {
		return slices.ContainsFunc(s.failures(), func(err error) bool { return strings.Contains(err.Error(), why) })
	}, patience, time.Millisecond, "%v", s.failures())
}
