package serve

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statusv3 "github.com/envoyproxy/go-control-plane/envoy/service/status/v3"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/isthmus-mesh/isthmus/ca"
	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/xds"
	"github.com/isthmus-mesh/isthmus/xds/build"
)

const twoServices = `
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data: {mesh: "trustDomain: td.example"}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1], selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: edge, namespace: istio-system, labels: {topology.istio.io/network: net1}}
spec: {type: LoadBalancer, clusterIP: 10.96.0.2, clusterIPs: [10.96.0.2], ports: [{name: tls, port: 15443}]}
status: {loadBalancer: {ingress: [{ip: 192.0.2.7}]}}
`

// running is a control plane of a folder of YAML, as istioctl finds it on its
// monitoring port.
type running struct {
	testing.TB
	control *Control
	ads     discoveryv3.AggregatedDiscoveryServiceClient
}

// run starts a control plane; prepare may change it when it listens already and
// does not run yet.
func run(t testing.TB, prepare ...func(*Control)) *running {
	t.Helper()
	return runWith(t, func(*Settings) {}, prepare...)
}

// runWith is run with other settings.
func runWith(t testing.TB, change func(*Settings), prepare ...func(*Control)) *running {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "east"), 0o750))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "east", "all.yaml"), []byte(twoServices), 0o600))
	s := Defaults(func(string) string { return "" })
	s.Files, s.Primary, s.PodName = dir, "east", "istiod-0"
	s.GRPCAddr, s.SecureGRPCAddr, s.HTTPAddr, s.MonitoringAddr, s.HTTPSAddr = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", ""
	s.Security.CADir = filepath.Join(dir, "no-ca")
	change(&s)
	c, err := New(s, Build{Version: "1.2.3", Revision: "abcdef", Status: "Clean"}, zap.NewNop())
	require.NoError(t, err)
	require.NoError(t, c.Listen())
	for _, f := range prepare {
		f(c)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		require.NoError(t, <-done)
	})
	require.Eventually(t, func() bool { return c.NotReady() == "" }, 20*time.Second, 10*time.Millisecond)
	r := &running{TB: t, control: c}
	r.connect(c.GRPCAddr(), insecure.NewCredentials())
	return r
}

// connect makes what follows go over a new connection.
func (r *running) connect(addr string, creds credentials.TransportCredentials) {
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(creds))
	require.NoError(r, err)
	r.Cleanup(func() { require.NoError(r, conn.Close()) })
	r.ads = discoveryv3.NewAggregatedDiscoveryServiceClient(conn)
}

// secure makes what follows go to the secure port with a certificate of an
// account. Like istioctl, it does not verify the server.
func (r *running) secure(namespace, account string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(r, err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	require.NoError(r, err)
	cert, err := r.control.trust.authority.Sign(ca.SignRequest{
		CSR:      pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}),
		Identity: mesh.Identity{TrustDomain: r.control.store.Catalog().TrustDomain(), Namespace: namespace, ServiceAccount: account}})
	require.NoError(r, err)
	r.connect(r.control.SecureGRPCAddr(), credentials.NewTLS(&tls.Config{InsecureSkipVerify: true, //nolint:gosec // as istioctl does
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert.DER}, PrivateKey: key}}}))
}

// istioctl asks as istioctl does, for an account of a namespace.
func (r *running) istioctl(namespace, account, typeURL string, names ...string) (*discoveryv3.DiscoveryResponse, error) {
	return r.stream("sidecar~192.0.2.2~test-1.default~default.svc.cluster.local", typeURL, map[string]any{
		"GENERATOR": "event", "ISTIO_VERSION": "65536.65536.65536", "NAMESPACE": namespace, "SERVICE_ACCOUNT": account}, names...)
}

// get asks the monitoring port without credentials, as through a port-forward.
func (r *running) get(path string) (int, string) {
	transport := &http.Transport{DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Get("http://" + r.control.MonitoringAddr() + path)
	require.NoError(r, err)
	defer func() { require.NoError(r, resp.Body.Close()) }()
	b, err := io.ReadAll(resp.Body)
	require.NoError(r, err)
	return resp.StatusCode, string(b)
}

func (r *running) page(path string, into any) string {
	code, body := r.get(path)
	require.Equal(r, http.StatusOK, code, "%s: %s", path, body)
	if into != nil {
		require.NoError(r, json.Unmarshal([]byte(body), into), body)
	}
	return body
}

// stream asks one thing on a new stream, which is open until the test ends.
func (r *running) stream(id, typeURL string, metadata map[string]any, names ...string) (*discoveryv3.DiscoveryResponse, error) {
	md, err := structpb.NewStruct(metadata)
	require.NoError(r, err)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	r.Cleanup(cancel)
	st, err := r.ads.StreamAggregatedResources(ctx)
	require.NoError(r, err)
	require.NoError(r, st.Send(&discoveryv3.DiscoveryRequest{TypeUrl: typeURL, ResourceNames: names, Node: &corev3.Node{Id: id, Metadata: md}, ResponseNonce: "2026-11-22 10:56:40"}))
	return st.Recv()
}

func (r *running) proxy(typeURL string) *discoveryv3.DiscoveryResponse {
	resp, err := r.stream("sidecar~10.1.0.10~web-0.shop~shop.svc.cluster.local", typeURL,
		map[string]any{"CLUSTER_ID": "east", "NAMESPACE": "shop", "ISTIO_VERSION": "1.30.0"})
	require.NoError(r, err)
	return resp
}

func TestWhatIstioctlReadsOverHTTP(t *testing.T) {
	r := run(t)
	r.proxy(xds.TypeCDS)

	require.Equal(t, "1.2.3-abcdef-Clean", r.page("/version", nil))
	require.Equal(t, "1.2.3-abcdef-Clean", r.page("//version", nil), "istioctl doubles the slash")

	var clusters []map[string]any
	r.page("/debug/clusterz", &clusters)
	require.Equal(t, []map[string]any{{"id": "east", "secretName": "", "syncStatus": "synced"}}, clusters)

	var names []string
	r.page("/debug/list", &names)
	require.True(t, slices.IsSorted(names))
	for _, n := range []string{"syncz", "adsz", "registryz", "endpointShardz", "edsz", "ndsz", "config_dump", "clusterz", "networkz", "connections", "mesh"} {
		require.Contains(t, names, n)
	}

	var proxies []map[string]any
	r.page("/debug/syncz", &proxies)
	require.Len(t, proxies, 1)
	p := proxies[0]
	require.Equal(t, []any{"east", "web-0.shop", "sidecar", "1.30.0"}, []any{p["cluster_id"], p["proxy"], p["proxy_type"], p["istio_version"]})
	require.NotEmpty(t, p["cluster_sent"])
	require.Equal(t, p["cluster_sent"], p["resources"].(map[string]any)[xds.TypeCDS].(map[string]any)["sent"])

	var networks []map[string]any
	r.page("/debug/networkz", &networks)
	require.Equal(t, []map[string]any{{"Network": "net1", "Cluster": "east", "Addr": "192.0.2.7", "Port": 15443.0, "HBONEPort": 0.0,
		"ServiceAccount": map[string]any{"Namespace": "", "Name": ""}}}, networks)

	for _, path := range []string{"/debug/nonsense", "/debug/nonsense?proxyID=web-0.shop"} {
		code, body := r.get(path)
		require.Equal(t, http.StatusNotFound, code)
		require.Contains(t, body, "404 page not found")
	}
	for _, name := range []string{"edsz", "ndsz", "config_dump"} {
		code, body := r.get("/debug/" + name)
		require.Equal(t, http.StatusBadRequest, code)
		require.Contains(t, body, "You must provide a proxyID in the query string")
		var answer any = &map[string]any{}
		if name == "edsz" {
			answer = &[]map[string]any{} // an array of assignments
		}
		r.page("/debug/"+name+"?proxyID=web-0.shop", answer)
	}
	for _, path := range []string{"/ready"} {
		code, _ := r.get(path)
		require.Equal(t, http.StatusNotFound, code, "not on this port")
	}
}

func TestNameTableOverADS(t *testing.T) {
	r := run(t)
	resp := r.proxy(build.TypeNameTable)
	require.Len(t, resp.Resources, 1)
	require.JSONEq(t, `{"table": {
		"edge.istio-system.svc.cluster.local": {"ips": ["10.96.0.2"], "registry": "Kubernetes", "shortname": "edge", "namespace": "istio-system"},
		"web.shop.svc.cluster.local": {"ips": ["10.96.0.1"], "registry": "Kubernetes", "shortname": "web", "namespace": "shop"}}}`,
		r.page("/debug/ndsz?proxyID=web-0.shop", nil))
}

// TestIstioctlOnThePlaintextPort: nobody proves anything there.
func TestIstioctlOnThePlaintextPort(t *testing.T) {
	r := run(t)
	for _, url := range []string{xds.TypeDebug, xds.TypeDebugSyncz, xds.TypeDebugConfigDump} {
		_, err := r.istioctl("istio-system", "default", url)
		require.Equal(t, codes.Unauthenticated, status.Code(err), "%s: %v", url, err)
		require.True(t, strings.HasPrefix(status.Convert(err).Message(), "authentication required"))
	}
}

// TestIstioctlOnTheSecurePort: the system namespace sees everything, another
// one its own proxies, and nobody may say to be somebody else.
func TestIstioctlOnTheSecurePort(t *testing.T) {
	r := run(t)
	r.proxy(xds.TypeCDS)
	proxies := func(namespace, account string) []string {
		r.secure(namespace, account)
		resp, err := r.istioctl(namespace, account, xds.TypeDebugSyncz)
		require.NoError(t, err)
		require.Contains(t, resp.ControlPlane.GetIdentifier(), `"ID":"istiod-0"`)
		var ids []string
		for _, a := range resp.Resources {
			c := &statusv3.ClientConfig{}
			require.NoError(t, a.UnmarshalTo(c))
			ids = append(ids, c.Node.Id)
		}
		return ids
	}
	require.Equal(t, []string{"web-0.shop"}, proxies("istio-system", "default"))
	resp, err := r.istioctl("istio-system", "default", xds.TypeDebug, "clusterz")
	require.NoError(t, err)
	require.Len(t, resp.Resources, 1)
	require.JSONEq(t, r.page("/debug/clusterz", nil), string(resp.Resources[0].Value))
	resp, err = r.istioctl("istio-system", "default", xds.TypeDebug, "nonsense")
	require.NoError(t, err)
	require.Contains(t, string(resp.Resources[0].Value), "404 page not found")

	require.Equal(t, []string{"web-0.shop"}, proxies("shop", "web"))
	require.Empty(t, proxies("bank", "teller"))
	_, err = r.istioctl("istio-system", "default", xds.TypeDebugSyncz)
	require.Equal(t, codes.PermissionDenied, status.Code(err), "a workload that says to be istioctl: %v", err)
}
