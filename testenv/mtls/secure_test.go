package mtls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	securityapi "istio.io/api/security/v1alpha1"

	"github.com/isthmus-mesh/isthmus/ca"
	cmdserve "github.com/isthmus-mesh/isthmus/cmd/isthmus/serve"
	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/testenv/recorder"
)

// newSecureWorld is a world in which nothing is said in plain text: ADS and the
// CSR service are those of port 15012, for callers with a certificate of the
// mesh. Their first one comes from the authority that is returned, as it would
// with a machine that joins.
func newSecureWorld(t testing.TB) (*world, *ca.Authority) {
	t.Helper()
	m := newMount(t, newRoot(t, "first"))
	joins, _ := newAuthority(t, m.dir, time.Now, nil)
	gateway := mesh.Identity{TrustDomain: trustDomain, Namespace: "istio-system", ServiceAccount: "istio-eastwestgateway"}
	return startWorld(t, func() material { return sign(t, joins, gateway) }, func(s *cmdserve.Settings) {
		s.SecureGRPCAddr, s.Security.CADir, s.Security.CustomHosts = "127.0.0.1:0", m.dir, []string{secureHost}
	}), joins
}

// toControlPlane is a workload's side of TLS to the control plane.
func toControlPlane(t testing.TB, m material) *tls.Config {
	t.Helper()
	pair, err := tls.X509KeyPair(m.chain, m.key)
	require.NoError(t, err)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(m.roots))
	return &tls.Config{RootCAs: roots, ServerName: secureHost, Certificates: []tls.Certificate{pair}}
}

// renew asks the CSR service for the next certificate by the present one.
func (w *world) renew(m material) material {
	w.t.Helper()
	conn, err := grpc.NewClient(w.secure, grpc.WithTransportCredentials(credentials.NewTLS(toControlPlane(w.t, m))))
	require.NoError(w.t, err)
	defer func() { require.NoError(w.t, conn.Close()) }()
	csr, key := newRequest(w.t)
	resp, err := securityapi.NewIstioCertificateServiceClient(conn).CreateCertificate(within(w.t), &securityapi.IstioCertificateRequest{Csr: string(csr)})
	require.NoError(w.t, err)
	return answered(resp.GetCertChain(), key)
}

// TestSecurePort: the wiring that users run, with TLS on every connection: both
// ends and the gateway are configured over 15012, and both hold certificates
// that they got there.
func TestSecurePort(t *testing.T) {
	w, joins := newSecureWorld(t)
	srv := w.startEcho(newAgent(t, w.renew(sign(t, joins, workload("echo")))))
	c := w.dialEcho(newAgent(t, w.renew(sign(t, joins, workload("client")))))
	who, dialled, err := call(t.Context(), c.conn)
	require.NoError(t, err)
	require.Equal(t, workload("client").SPIFFE(), who)
	require.Equal(t, w.gateway.String(), dialled)
	require.Empty(t, srv.failures())
}

// hear opens an ADS stream as the client pod with a certificate.
func (w *world) hear(m material) *recorder.Proxy {
	w.t.Helper()
	p, err := recorder.Dial(w.t.Context(), w.secure, recorder.Node{Name: "client-0", Namespace: "shop", Cluster: "east", Network: "net-east", IP: clientIP},
		recorder.Options{Delta: true, Dial: []grpc.DialOption{grpc.WithTransportCredentials(credentials.NewTLS(toControlPlane(w.t, m)))}})
	require.NoError(w.t, err)
	w.t.Cleanup(p.Close)
	return p
}

// ended waits for the end of a stream and returns its code.
func ended(ctx context.Context, t testing.TB, p *recorder.Proxy) codes.Code {
	t.Helper()
	select {
	case <-p.Done():
	case <-ctx.Done():
		require.FailNow(t, "the stream goes on")
	}
	return status.Code(p.Err())
}

// Row 33: a certificate of another namespace does not get the client's
// configuration.
func TestRow33AnotherNamespace(t *testing.T) {
	w, joins := newSecureWorld(t)
	p := w.hear(sign(t, joins, mesh.Identity{TrustDomain: trustDomain, Namespace: "bank", ServiceAccount: "client"}))
	require.Equal(t, codes.PermissionDenied, ended(within(t), t, p), "%v", p.Err())
	require.Empty(t, p.Pushes())
}

// Row 36: a stream ends with the certificate that let it in.
func TestRow36StreamEndsWithItsCertificate(t *testing.T) {
	w, joins := newSecureWorld(t)
	csr, key := newRequest(t)
	cert, err := joins.Sign(ca.SignRequest{CSR: csr, Identity: workload("client"), Lifetime: 3 * time.Second})
	require.NoError(t, err)
	p := w.hear(answered(cert.Chain, key))
	require.NoError(t, p.Ready(within(t)))
	require.Equal(t, codes.Unauthenticated, ended(within(t), t, p), "%v", p.Err())
	require.False(t, time.Now().Before(cert.NotAfter))
}
