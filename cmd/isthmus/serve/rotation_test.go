package serve

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	securityapi "istio.io/api/security/v1alpha1"

	"github.com/isthmus-mesh/isthmus/ca"
	"github.com/isthmus-mesh/isthmus/xds"
)

// rotating is a control plane whose CA is plugged in from a directory, with a
// clock of its own, and proxies that prove themselves by certificate.
type rotating struct {
	*running
	dir    string
	offset atomic.Int64 // of its clock to ours
}

func (r *rotating) now() time.Time { return time.Now().Add(time.Duration(r.offset.Load())) }

// later moves the clock and has the CA look.
func (r *rotating) later(d time.Duration) {
	r.offset.Add(int64(d))
	r.control.trust.keeper.Load().Poke()
}

// until waits for a state of the CA. The keeper decides and reports in one go:
// what is reported as counted has been decided about.
func (r *rotating) until(what string, ok func(ca.Progress) bool) ca.Progress {
	r.Helper()
	var p ca.Progress
	require.Eventually(r, func() bool {
		p = r.control.trust.keeper.Load().Progress()
		if !ok(p) {
			r.control.trust.keeper.Load().Poke()
			return false
		}
		return true
	}, time.Minute, 20*time.Millisecond, what)
	return p
}

// outsideRoot is a root with its key.
type outsideRoot struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newOutsideRoot(t *testing.T, name string) outsideRoot {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(10000 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return outsideRoot{cert, key}
}

func (o outsideRoot) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: o.cert.Raw})
}

// plug writes the root to a directory in Istio's form.
func (o outsideRoot) plug(t *testing.T, dir string) {
	key, err := x509.MarshalECPrivateKey(o.key)
	require.NoError(t, err)
	for name, text := range map[string][]byte{"ca-cert.pem": o.pem(), "root-cert.pem": o.pem(), "cert-chain.pem": nil,
		"ca-key.pem": pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: key})} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), text, 0o600))
	}
}

// longLived is a workload's certificate that outlives every rotation.
func (o outsideRoot) longLived(t *testing.T, account string) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	uri, err := url.Parse("spiffe://td.example/ns/shop/sa/" + account)
	require.NoError(t, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), URIs: []*url.URL{uri}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(9000 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, o.cert, key.Public(), o.key)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// certified is a proxy with a certificate, the roots that it trusts, and a
// stream of ADS.
type certified struct {
	r       *rotating
	account string
	pair    tls.Certificate
	roots   string
	stream  grpc.BidiStreamingClient[discoveryv3.DiscoveryRequest, discoveryv3.DiscoveryResponse]
	close   func()
}

func (r *rotating) join(account string, pair tls.Certificate, roots []byte) *certified {
	return &certified{r: r, account: account, pair: pair, roots: string(roots)}
}

// dial connects with what the proxy has, and verifies the server as agents do.
func (p *certified) dial() (*grpc.ClientConn, func()) {
	pool := x509.NewCertPool()
	require.True(p.r, pool.AppendCertsFromPEM([]byte(p.roots)))
	conn, err := grpc.NewClient("passthrough:///"+p.r.control.SecureGRPCAddr(), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		RootCAs: pool, ServerName: "istiod.istio-system.svc", Time: p.r.now, MinVersion: tls.VersionTLS12,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &p.pair, nil }})))
	require.NoError(p.r, err)
	return conn, func() { require.NoError(p.r, conn.Close()) }
}

// renew asks the CSR service for a certificate and uses it from then on, with
// the roots that come with it. It returns who issued it.
func (p *certified) renew() string {
	p.r.Helper()
	conn, done := p.dial()
	defer done()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(p.r, err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	require.NoError(p.r, err)
	resp, err := securityapi.NewIstioCertificateServiceClient(conn).CreateCertificate(p.r.Context(), &securityapi.IstioCertificateRequest{
		Csr: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}))})
	require.NoError(p.r, err)
	chain := resp.GetCertChain()
	block, _ := pem.Decode([]byte(chain[0]))
	leaf, err := x509.ParseCertificate(block.Bytes)
	require.NoError(p.r, err)
	p.pair = tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: key}
	p.roots = chain[len(chain)-1]
	return leaf.Issuer.CommonName
}

// connect opens a stream of ADS and returns why it was refused, if it was.
func (p *certified) connect() error {
	conn, done := p.dial()
	st, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(p.r.Context())
	if err == nil {
		p.stream = st
		_, err = p.ask()
	}
	if p.close = done; err != nil {
		done()
	}
	return err
}

// ask asks for upstreams, as the first request of a stream.
func (p *certified) ask() (*discoveryv3.DiscoveryResponse, error) {
	md, err := structpb.NewStruct(map[string]any{"CLUSTER_ID": "east", "NAMESPACE": "shop", "SERVICE_ACCOUNT": p.account})
	require.NoError(p.r, err)
	if err := p.stream.Send(&discoveryv3.DiscoveryRequest{TypeUrl: xds.TypeCDS,
		Node: &corev3.Node{Id: "sidecar~10.1.0.10~" + p.account + "-0.shop~shop.svc.cluster.local", Metadata: md}}); err != nil {
		return nil, err
	}
	return p.stream.Recv()
}

// alive asks for one more type on the stream that is open.
func (p *certified) alive(typeURL string) {
	p.r.Helper()
	require.NoError(p.r, p.stream.Send(&discoveryv3.DiscoveryRequest{TypeUrl: typeURL}))
	resp, err := p.stream.Recv()
	require.NoError(p.r, err)
	require.Equal(p.r, typeURL, resp.TypeUrl)
}

// A root is replaced from end to end: the operator writes another one, both are
// handed out, the signer is switched when every connected proxy has been given
// the new root and not before, and in the end the old root is gone. Nobody's
// connection breaks on the way.
func TestRow30RotationEndToEnd(t *testing.T) {
	r := &rotating{dir: t.TempDir()}
	old, next := newOutsideRoot(t, "old root"), newOutsideRoot(t, "new root")
	old.plug(t, r.dir)
	r.running = runWith(t, func(s *Settings) {
		s.Security.CADir, s.Security.Clock = r.dir, r.now
		s.Security.CertTTL, s.Security.MaxCertTTL = 2*time.Hour, 2*time.Hour
	})
	oldRoots := r.control.RootsPEM()
	web, api, other := r.join("web", old.longLived(t, "web"), oldRoots), r.join("api", old.longLived(t, "api"), oldRoots),
		r.join("other", old.longLived(t, "other"), oldRoots) // which got its certificate from another replica
	for _, p := range []*certified{web, api} {
		require.Equal(t, "old root", p.renew())
	}
	for _, p := range []*certified{web, api, other} {
		require.NoError(t, p.connect())
	}
	first := r.until("the old root signs", func(p ca.Progress) bool { return p.Current.ID != "" && p.Phase == ca.PhaseIdle })

	next.plug(t, r.dir)
	p := r.until("both roots are handed out", func(p ca.Progress) bool { return p.Next != nil && !p.Distributed.IsZero() })
	require.Equal(t, ca.PhaseDistributing, p.Phase)
	require.Equal(t, first.Current.ID, p.Current.ID)
	require.Equal(t, 2, strings.Count(string(r.control.RootsPEM()), "BEGIN CERTIFICATE"))

	r.later(20 * time.Minute)
	p = r.until("the proxies are counted", func(p ca.Progress) bool { return p.Share.Known })
	require.Equal(t, ca.Share{Held: 0, Total: 3, Known: true}, p.Share)
	require.Contains(t, p.Waits, "3 more of 3 proxies must hold the new root")
	require.Equal(t, p.Waits, r.control.Overview().CA.Waits)

	require.Equal(t, "old root", web.renew())
	require.Equal(t, 2, strings.Count(web.roots, "BEGIN CERTIFICATE"))
	p = r.until("web holds it", func(p ca.Progress) bool { return p.Share.Held == 1 })
	require.Equal(t, ca.Share{Held: 1, Total: 3, Known: true}, p.Share)
	require.Equal(t, first.Current.ID, p.Current.ID)
	require.Equal(t, "old root", api.renew())
	p = r.until("api holds it", func(p ca.Progress) bool { return p.Share.Held == 2 })
	require.Equal(t, ca.Share{Held: 2, Total: 3, Known: true}, p.Share)
	require.Equal(t, first.Current.ID, p.Current.ID, "two of three are not enough")
	other.close()

	p = r.until("the signer is switched", func(p ca.Progress) bool { return p.Phase == ca.PhaseRetiring })
	require.NotEqual(t, first.Current.ID, p.Current.ID)
	require.Equal(t, first.Current.ID, p.Previous)
	web.alive(xds.TypeLDS)
	api.alive(xds.TypeLDS)
	api.close()
	require.NoError(t, api.connect(), "with the certificate of the old root")
	require.Equal(t, "new root", web.renew())
	web.close()
	require.NoError(t, web.connect(), "with that of the new one")

	p = r.until("every replica signs with the new root", func(p ca.Progress) bool { return !p.Retiring[0].Until.IsZero() })
	require.Contains(t, p.Waits, "the last certificate under the old root ends by")
	r.later(3*time.Hour + time.Minute)
	r.until("the old root is gone", func(p ca.Progress) bool { return p.Phase == ca.PhaseIdle })
	require.Equal(t, 1, strings.Count(string(r.control.RootsPEM()), "BEGIN CERTIFICATE"))
	other.roots = string(r.control.RootsPEM())
	require.Equal(t, codes.Unavailable, status.Code(other.connect()), "its root is trusted no more: the handshake fails")
	late := r.join("late", next.longLived(t, "late"), r.control.RootsPEM())
	require.NoError(t, late.connect())
	for _, p := range []*certified{web, api, late} {
		p.close()
	}
}
