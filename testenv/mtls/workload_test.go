package mtls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/credentials/tls/certprovider"
	xdscreds "google.golang.org/grpc/credentials/xds"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/xds"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const method = "/isthmus.test.Who/AmI"

// agent keeps the certificate files of one workload, which gRPC watches.
type agent struct {
	t       testing.TB
	dir     string
	version int
	held    material
	// identity and roots are the very providers that gRPC uses: they are shared
	// within a process by configuration.
	identity, roots certprovider.Provider
}

func newAgent(t testing.TB, m material) *agent {
	t.Helper()
	a := &agent{t: t, dir: t.TempDir()}
	a.put(m)
	for _, p := range []struct {
		to  *certprovider.Provider
		opt certprovider.BuildOptions
	}{
		{&a.identity, certprovider.BuildOptions{CertName: "default", WantIdentity: true}},
		{&a.roots, certprovider.BuildOptions{CertName: "ROOTCA", WantRoot: true}},
	} {
		provider, err := certprovider.GetProvider("file_watcher", json.RawMessage(a.config()), p.opt)
		require.NoError(t, err)
		t.Cleanup(provider.Close)
		*p.to = provider
	}
	a.settle()
	return a
}

// put replaces the files in one step.
func (a *agent) put(m material) {
	a.t.Helper()
	a.version++
	a.held = m
	version := fmt.Sprintf("v%d", a.version)
	require.NoError(a.t, os.Mkdir(filepath.Join(a.dir, version), 0o700))
	for name, text := range map[string][]byte{"cert.pem": m.chain, "key.pem": m.key, "roots.pem": m.roots} {
		require.NoError(a.t, os.WriteFile(filepath.Join(a.dir, version, name), text, 0o600))
	}
	swapLink(a.t, version, filepath.Join(a.dir, "live"))
}

// settle waits until gRPC's handshakes use what the files hold.
func (a *agent) settle() {
	a.t.Helper()
	pair, err := tls.X509KeyPair(a.held.chain, a.held.key)
	require.NoError(a.t, err)
	pool := x509.NewCertPool()
	require.True(a.t, pool.AppendCertsFromPEM(a.held.roots))
	ctx := within(a.t)
	require.Eventually(a.t, func() bool {
		id, err := a.identity.KeyMaterial(ctx)
		require.NoError(a.t, err)
		roots, err := a.roots.KeyMaterial(ctx)
		require.NoError(a.t, err)
		return slices.Equal(id.Certs[0].Certificate[0], pair.Certificate[0]) && roots.Roots.Equal(pool)
	}, patience, 2*time.Millisecond)
}

// config is that of gRPC's certificate provider.
func (a *agent) config() string {
	at := func(name string) string { return filepath.Join(a.dir, "live", name) }
	return fmt.Sprintf(`{"certificate_file": %q, "private_key_file": %q, "ca_certificate_file": %q, "refresh_interval": "0.02s"}`,
		at("cert.pem"), at("key.pem"), at("roots.pem"))
}

// bootstrap is what an injected pod would be given.
func (a *agent) bootstrap(w *world, name, ip, cluster, network string) []byte {
	ads, channel := w.ads, `{"type": "insecure"}`
	if w.secure != "" {
		ads, channel = w.secure, fmt.Sprintf(`{"type": "tls", "config": %s}`, a.config())
	}
	return fmt.Appendf(nil, `{
  "xds_servers": [{"server_uri": %q, "channel_creds": [%[7]s], "server_features": ["xds_v3"]}],
  "node": {
    "id": "sidecar~%[2]s~%[3]s-0.shop~shop.svc.cluster.local",
    "metadata": {"GENERATOR": "grpc", "CLUSTER_ID": %[4]q, "NETWORK": %[5]q, "NAMESPACE": "shop", "INSTANCE_IPS": %[2]q},
    "locality": {"region": "r", "zone": "z"}
  },
  "server_listener_resource_name_template": "xds.istio.io/grpc/lds/inbound/%%s",
  "certificate_providers": {"default": {"plugin_name": "file_watcher", "config": %[6]s}}
}`, ads, ip, name, cluster, network, a.config(), channel)
}

// handshakes are gRPC's credentials; they keep count of what became of each
// handshake.
type handshakes struct {
	credentials.TransportCredentials
	log *handshakeLog
}

// handshakeLog counts the handshakes of one side by the issuer of the peer's
// certificate.
type handshakeLog struct {
	mu       sync.Mutex
	byIssuer map[string]int
	failed   []error
}

func (l *handshakeLog) add(info credentials.AuthInfo, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.failed = append(l.failed, err)
		return
	}
	if l.byIssuer == nil {
		l.byIssuer = map[string]int{}
	}
	if t, ok := info.(credentials.TLSInfo); ok && len(t.State.PeerCertificates) > 0 {
		l.byIssuer[issuerOf(t.State.PeerCertificates[0])]++
	}
}

// issuerOf names the key that signed a certificate.
func issuerOf(c *x509.Certificate) string { return hex.EncodeToString(c.AuthorityKeyId) }

func (l *handshakeLog) with(issuer string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.byIssuer[issuer]
}

func (l *handshakeLog) failures() []error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.failed)
}

// ClientHandshake implements [credentials.TransportCredentials].
func (h handshakes) ClientHandshake(ctx context.Context, authority string, c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := h.TransportCredentials.ClientHandshake(ctx, authority, c)
	h.log.add(info, err)
	return conn, info, err
}

// ServerHandshake implements [credentials.TransportCredentials].
func (h handshakes) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := h.TransportCredentials.ServerHandshake(c)
	h.log.add(info, err)
	return conn, info, err
}

// Clone implements [credentials.TransportCredentials].
func (h handshakes) Clone() credentials.TransportCredentials {
	return handshakes{h.TransportCredentials.Clone(), h.log}
}

// UsesXDS tells gRPC that the credentials take their configuration from xDS.
func (h handshakes) UsesXDS() bool { return true }

// server is the echo pod: it answers every call with the caller's identity.
type server struct {
	handshakeLog
	stop func()

	mu      sync.Mutex
	callers []string
}

// called lists the identities that got a call through.
func (s *server) called() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.callers)
}

// startEcho starts the echo pod with the certificate that the agent keeps, and
// waits until our ADS has told it how to serve.
func (w *world) startEcho(a *agent, opts ...grpc.ServerOption) *server {
	w.t.Helper()
	s := &server{}
	inner, err := xdscreds.NewServerCredentials(xdscreds.ServerOptions{FallbackCreds: insecure.NewCredentials()})
	require.NoError(w.t, err)
	serving := make(chan struct{})
	opened := sync.OnceFunc(func() { close(serving) })
	srv, err := xds.NewGRPCServer(append(opts,
		grpc.Creds(handshakes{inner, &s.handshakeLog}),
		xds.BootstrapContentsForTesting(a.bootstrap(w, "echo", echoIP, "west", "net-west")),
		xds.ServingModeCallback(func(_ net.Addr, args xds.ServingModeChangeArgs) {
			if args.Mode == connectivity.ServingModeServing {
				opened()
			}
		}),
		grpc.UnknownServiceHandler(s.answer))...)
	require.NoError(w.t, err)
	l, err := net.Listen("tcp", w.echo.String())
	require.NoError(w.t, err)
	s.stop = serve(w.t, srv, l)
	select {
	case <-serving:
	case <-within(w.t).Done():
		require.FailNow(w.t, "the server was not told to serve")
	}
	return s
}

func (s *server) answer(_ any, stream grpc.ServerStream) error {
	if err := stream.RecvMsg(&emptypb.Empty{}); err != nil {
		return err
	}
	who := "nobody"
	if p, ok := peer.FromContext(stream.Context()); ok {
		if t, ok := p.AuthInfo.(credentials.TLSInfo); ok && len(t.State.PeerCertificates) > 0 && len(t.State.PeerCertificates[0].URIs) == 1 {
			who = t.State.PeerCertificates[0].URIs[0].String()
		}
	}
	s.mu.Lock()
	s.callers = append(s.callers, who)
	s.mu.Unlock()
	return stream.SendMsg(wrapperspb.String(who))
}

// client is a connection of the client pod to the service.
type client struct {
	handshakeLog
	t    testing.TB
	conn *grpc.ClientConn
}

// dialEcho resolves the service by our ADS, with the certificate that the agent
// keeps.
func (w *world) dialEcho(a *agent) *client {
	w.t.Helper()
	c := &client{t: w.t}
	inner, err := xdscreds.NewClientCredentials(xdscreds.ClientOptions{FallbackCreds: insecure.NewCredentials()})
	require.NoError(w.t, err)
	resolver, err := xds.NewXDSResolverWithConfigForTesting(a.bootstrap(w, "client", clientIP, "east", "net-east"))
	require.NoError(w.t, err)
	c.conn, err = grpc.NewClient("xds:///"+target, grpc.WithResolvers(resolver), grpc.WithTransportCredentials(handshakes{inner, &c.handshakeLog}))
	require.NoError(w.t, err)
	w.t.Cleanup(func() { _ = c.conn.Close() })
	return c
}

// call makes one call that fails as soon as no connection can be made, and
// returns as whom the server knows us and whom we dialled.
func call(ctx context.Context, conn *grpc.ClientConn) (who, dialled string, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var answer wrapperspb.StringValue
	var p peer.Peer
	err = conn.Invoke(ctx, method, &emptypb.Empty{}, &answer, grpc.Peer(&p))
	if p.Addr != nil {
		dialled = p.Addr.String()
	}
	return answer.GetValue(), dialled, err
}
