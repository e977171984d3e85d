package build

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	xdscreds "google.golang.org/grpc/credentials/xds"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/xds"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// ads answers gRPC's own xDS client with listeners and routes as they are
// built, and with hand-made upstreams and assignments.
type ads struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	lab   *lab
	view  View
	extra map[string]proto.Message

	mu    sync.Mutex
	nacks []string
}

func (s *ads) resource(typeURL, name string) proto.Message {
	var m proto.Message
	switch typeURL {
	case TypeListener:
		m, _ = Listeners{}.Build(s.lab.in(), s.view, name)
	case TypeRoute:
		m, _ = Routes{}.Build(s.lab.in(), s.view, name)
	default:
		m = s.extra[typeURL+name]
	}
	return m
}

func (s *ads) StreamAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	known := map[string][]string{}
	for n := 1; ; n++ {
		r, err := stream.Recv()
		if err != nil {
			return nil //nolint:nilerr // the client is gone
		}
		if d := r.GetErrorDetail(); d != nil {
			s.mu.Lock()
			s.nacks = append(s.nacks, d.GetMessage())
			s.mu.Unlock()
			continue
		}
		if r.GetResponseNonce() != "" && slices.Equal(known[r.GetTypeUrl()], r.GetResourceNames()) {
			continue
		}
		known[r.GetTypeUrl()] = r.GetResourceNames()
		out := &discoveryv3.DiscoveryResponse{TypeUrl: r.GetTypeUrl(), VersionInfo: fmt.Sprint(n), Nonce: fmt.Sprint(n)}
		for _, name := range r.GetResourceNames() {
			if m := s.resource(r.GetTypeUrl(), name); m != nil {
				a, err := anypb.New(m)
				if err != nil {
					return err
				}
				out.Resources = append(out.Resources, a)
			}
		}
		if err := stream.Send(out); err != nil {
			return err
		}
	}
}

func (s *ads) refused() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.nacks)
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	return l
}

// serveADS starts the server and returns a bootstrap configuration for it.
func serveADS(t *testing.T, s *ads, certs string) []byte {
	t.Helper()
	l := listen(t)
	server := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, s)
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(l) })
	t.Cleanup(func() { server.Stop(); wg.Wait() })
	return fmt.Appendf(nil, `{
		"xds_servers": [{"server_uri": %q, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}],
		"node": {"id": "test"},
		"server_listener_resource_name_template": "xds.istio.io/grpc/lds/inbound/%%s",
		"certificate_providers": {"default": {"plugin_name": "file_watcher", "config": {
			"certificate_file": %q, "private_key_file": %q, "ca_certificate_file": %q, "refresh_interval": "900s"}}}
	}`, l.Addr(), filepath.Join(certs, "cert.pem"), filepath.Join(certs, "key.pem"), filepath.Join(certs, "root.pem"))
}

// TestGRPCClientTakesOurListeners: gRPC's own xDS client resolves a service by
// its full and its short name and reaches a backend.
func TestGRPCClientTakesOurListeners(t *testing.T) {
	back := listen(t)
	backend := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(backend, health.NewServer())
	var wg sync.WaitGroup
	wg.Go(func() { _ = backend.Serve(back) })
	t.Cleanup(func() { backend.Stop(); wg.Wait() })

	upstream := "outbound|9000||web.shop.svc.cluster.local"
	at := netip.MustParseAddrPort(back.Addr().String())
	s := &ads{lab: labShop(&meshconfig.MeshConfig{}), extra: map[string]proto.Message{
		"type.googleapis.com/envoy.config.cluster.v3.Cluster" + upstream: &clusterv3.Cluster{Name: upstream, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
			EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{EdsConfig: adsSource(), ServiceName: upstream}},
		"type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment" + upstream: &endpointv3.ClusterLoadAssignment{ClusterName: upstream,
			Endpoints: []*endpointv3.LocalityLbEndpoints{{Locality: &corev3.Locality{Region: "r"}, LoadBalancingWeight: wrapperspb.UInt32(1), LbEndpoints: []*endpointv3.LbEndpoint{{
				HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: addrAddress(at.Addr(), at.Port())}}}}}}},
	}}
	s.view = View{Kind: mesh.ProxySidecar, Dialect: mesh.DialectGRPC, Namespace: "shop", Domain: DefaultDomain}
	resolver, err := xds.NewXDSResolverWithConfigForTesting(serveADS(t, s, t.TempDir()))
	require.NoError(t, err)
	for _, host := range []string{"web.shop.svc.cluster.local:9000", "web:9000", "web.shop:9000", "web.shop.svc:9000"} {
		conn, err := grpc.NewClient("xds:///"+host, grpc.WithResolvers(resolver), grpc.WithTransportCredentials(insecure.NewCredentials()))
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		r, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.WaitForReady(true))
		cancel()
		require.NoError(t, conn.Close())
		require.NoError(t, err, "%s; refused: %v", host, s.refused())
		require.Equal(t, grpc_health_v1.HealthCheckResponse_SERVING, r.GetStatus())
	}
	require.Empty(t, s.refused())
}

// authority makes certificates in a folder: root.pem, cert.pem and key.pem.
func authority(t *testing.T, dir string) (client tls.Certificate, roots *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, key.Public(), key)
	require.NoError(t, err)
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"server"},
		IPAddresses: []net.IP{net.ParseIP("127.0.0.1")}}
	der, err := x509.CreateCertificate(rand.Reader, leaf, root, key.Public(), key)
	require.NoError(t, err)
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	pems := map[string][]byte{}
	for name, b := range map[string]pem.Block{"root.pem": {Type: "CERTIFICATE", Bytes: rootDER}, "cert.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "PRIVATE KEY", Bytes: raw}} {
		pems[name] = pem.EncodeToMemory(&b)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), pems[name], 0o600))
	}
	client, err = tls.X509KeyPair(pems["cert.pem"], pems["key.pem"])
	require.NoError(t, err)
	roots = x509.NewCertPool()
	roots.AppendCertsFromPEM(pems["root.pem"])
	return client, roots
}

// TestGRPCServerTakesOurListener: a gRPC server that is configured by us serves,
// and only peers with a certificate of the mesh get in.
func TestGRPCServerTakesOurListener(t *testing.T) {
	dir := t.TempDir()
	cert, roots := authority(t, dir)
	s := &ads{lab: labShop(&meshconfig.MeshConfig{}), view: View{Kind: mesh.ProxySidecar, Dialect: mesh.DialectGRPC, Namespace: "shop", Domain: DefaultDomain}}
	bootstrap := serveADS(t, s, dir)
	creds, err := xdscreds.NewServerCredentials(xdscreds.ServerOptions{FallbackCreds: insecure.NewCredentials()})
	require.NoError(t, err)
	server, err := xds.NewGRPCServer(grpc.Creds(creds), xds.BootstrapContentsForTesting(bootstrap))
	require.NoError(t, err)
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	l := listen(t)
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(l) })
	t.Cleanup(func() { server.Stop(); wg.Wait() })

	check := func(certs ...tls.Certificate) error {
		conn, err := grpc.NewClient("passthrough:///"+l.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
			RootCAs: roots, ServerName: "server", Certificates: certs, MinVersion: tls.VersionTLS12})))
		require.NoError(t, err)
		defer func() { require.NoError(t, conn.Close()) }()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		_, err = grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.WaitForReady(len(certs) > 0))
		return err
	}
	require.NoError(t, check(cert), "refused: %v", s.refused())
	require.Error(t, check(), "a peer without a certificate")
	require.Empty(t, s.refused())
}
