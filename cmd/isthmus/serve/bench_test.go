package serve

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/structpb"
	securityapi "istio.io/api/security/v1alpha1"

	"github.com/isthmus-mesh/isthmus/ca"
	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/xds"
)

// stormSize is how many proxies come back at once.
const stormSize = 1000

// storm is a control plane and the proxies that lose it and come back.
type storm struct {
	*running
	csr     string
	roots   *x509.CertPool
	proxies []tls.Certificate
}

func newStorm(b *testing.B) *storm {
	s := &storm{running: runWith(b, func(*Settings) {}), roots: x509.NewCertPool()}
	require.True(b, s.roots.AppendCertsFromPEM(s.control.RootsPEM()))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(b, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	require.NoError(b, err)
	s.csr = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	for i := range stormSize + 1 {
		cert, err := s.control.trust.authority.Sign(ca.SignRequest{CSR: []byte(s.csr),
			Identity: mesh.Identity{TrustDomain: "td.example", Namespace: "shop", ServiceAccount: fmt.Sprint("web-", i)}})
		require.NoError(b, err)
		s.proxies = append(s.proxies, tls.Certificate{Certificate: [][]byte{cert.DER}, PrivateKey: key})
	}
	return s
}

func (s *storm) dial(i int) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+s.control.SecureGRPCAddr(), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		RootCAs: s.roots, ServerName: "istiod.istio-system.svc", Certificates: s.proxies[i : i+1], MinVersion: tls.VersionTLS12})))
}

// certificate asks for one on a connection, and says how long that took.
func (s *storm) certificate(ctx context.Context, conn *grpc.ClientConn) (time.Duration, error) {
	begin := time.Now()
	_, err := securityapi.NewIstioCertificateServiceClient(conn).CreateCertificate(ctx, &securityapi.IstioCertificateRequest{Csr: s.csr})
	return time.Since(begin), err
}

// comeBack is what the agent of a proxy does: a new connection for its
// certificate, another one for ADS. It says how long the certificate took.
func (s *storm) comeBack(ctx context.Context, i int) (took time.Duration, closers []func() error, err error) {
	var ads sync.WaitGroup
	var adsErr error
	conn, err := s.dial(i)
	if err != nil {
		return 0, nil, err
	}
	closers = append(closers, conn.Close)
	ads.Go(func() { adsErr = s.subscribe(ctx, conn, i) })
	defer func() {
		ads.Wait()
		if err == nil {
			err = adsErr
		}
	}()
	certs, err := s.dial(i)
	if err != nil {
		return 0, closers, err
	}
	took, err = s.certificate(ctx, certs)
	return took, append(closers, certs.Close), err
}

// subscribe opens a stream and waits for the first answer.
func (s *storm) subscribe(ctx context.Context, conn *grpc.ClientConn, i int) error {
	st, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx)
	if err != nil {
		return err
	}
	md, err := structpb.NewStruct(map[string]any{"CLUSTER_ID": "east", "NAMESPACE": "shop", "SERVICE_ACCOUNT": fmt.Sprint("web-", i)})
	if err != nil {
		return err
	}
	node := &corev3.Node{Id: fmt.Sprintf("sidecar~10.1.%d.%d~web-%d.shop~shop.svc.cluster.local", i/250, i%250, i), Metadata: md}
	if err := st.Send(&discoveryv3.DiscoveryRequest{TypeUrl: xds.TypeCDS, Node: node}); err != nil {
		return err
	}
	_, err = st.Recv()
	return err
}

// BenchmarkReconnect: a control plane that 1,000 proxies come back to at the same
// moment, each with a connection for its certificate and one for ADS, all with
// mutual TLS, clients and server on the same machine. It reports the time of a
// certificate for those who come back, with connection and handshake, and for
// one who was never away.
func BenchmarkReconnect(b *testing.B) {
	s := newStorm(b)
	var back, stayed []time.Duration
	var all time.Duration
	steady, err := s.dial(stormSize)
	require.NoError(b, err)
	defer func() { require.NoError(b, steady.Close()) }()
	_, err = s.certificate(b.Context(), steady)
	require.NoError(b, err)
	for b.Loop() {
		begin := time.Now()
		b1, s1 := s.blow(b, steady)
		all += time.Since(begin)
		back, stayed = append(back, b1...), append(stayed, s1...)
	}
	report := func(took []time.Duration, who string) {
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms-p50-"+who)
		b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "ms-p99-"+who)
	}
	report(back, "back")
	report(stayed, "stayed")
	b.ReportMetric(float64(2*len(back))/all.Seconds(), "connections/s")
}

// blow lets all come back once.
func (s *storm) blow(b *testing.B, steady *grpc.ClientConn) (back, stayed []time.Duration) {
	var mu sync.Mutex
	var wg, renewing sync.WaitGroup
	var closers []func() error
	over := make(chan struct{})
	renewing.Go(func() {
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-over:
				return
			case <-tick.C:
			}
			took, err := s.certificate(b.Context(), steady)
			if err != nil {
				b.Error("a renewal: ", err)
				return
			}
			stayed = append(stayed, took)
		}
	})
	for i := range stormSize {
		wg.Go(func() {
			took, mine, err := s.comeBack(b.Context(), i)
			mu.Lock()
			defer mu.Unlock()
			closers = append(closers, mine...)
			if err != nil {
				b.Error("proxy ", i, ": ", err)
			}
			back = append(back, took)
		})
	}
	wg.Wait()
	close(over)
	renewing.Wait()
	b.StopTimer()
	for _, c := range closers {
		_ = c()
	}
	require.Eventually(b, func() bool { return len(s.control.xds.Proxies()) == 0 }, time.Minute, 10*time.Millisecond)
	b.StartTimer()
	return back, stayed
}
