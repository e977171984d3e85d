package mtls

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	cmdserve "github.com/isthmus-mesh/isthmus/cmd/isthmus/serve"
	"github.com/isthmus-mesh/isthmus/testenv/plane"
)

// Addresses of the pods and of the gateway; ports are free ones.
const (
	clientIP  = "127.0.77.1" // pod of account client, cluster east, network net-east
	echoIP    = "127.0.77.2" // pod of account echo, cluster west, network net-west
	gatewayIP = "127.0.77.9" // east-west gateway of net-west
	// secureHost is the name of the control plane here.
	secureHost = "localhost"
	echoHost   = "echo.shop.svc.cluster.local"
	echoPort   = 7070
	target     = "echo.shop.svc.cluster.local:7070"
	// passed is the upstream of the gateway that stands for the service; it is
	// also the server name on the wire.
	passed = "outbound_.7070_._.echo.shop.svc.cluster.local"
)

// world is two clusters on two networks, the control plane that reads them, and
// the gateway between them.
type world struct {
	t testing.TB
	// ads is the address of ADS without TLS, secure that of ADS and CA with TLS;
	// one of them is empty.
	ads, secure string
	// echo is where the pod's server listens, gateway where the gateway does.
	echo, gateway netip.AddrPort
}

// freePort finds a port of an address on which nobody listens.
func freePort(t testing.TB, ip string) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
	require.NoError(t, err)
	require.NoError(t, l.Close())
	return netip.MustParseAddrPort(l.Addr().String())
}

// newWorld starts the control plane, without TLS, and the gateway.
func newWorld(t testing.TB) *world {
	t.Helper()
	return startWorld(t, nil, func(s *cmdserve.Settings) { s.GRPCAddr = "127.0.0.1:0" })
}

// startWorld starts the control plane with settings and the gateway, which has
// the certificate that gateway gives if the control plane wants one.
func startWorld(t testing.TB, gateway func() material, change func(*cmdserve.Settings)) *world {
	t.Helper()
	requireHAProxy(t)
	w := &world{t: t, echo: freePort(t, echoIP), gateway: freePort(t, gatewayIP)}
	dir := t.TempDir()
	w.write(dir, "east", "net-east", gatewayRule, pod("client", clientIP, ""))
	w.write(dir, "west", "net-west", gatewayService, pod("echo", echoIP, ""),
		pod("istio-eastwestgateway", gatewayIP, "istio-system"))
	c := plane.Serve(t, func(s *cmdserve.Settings) {
		s.Files, s.Primary, s.GRPCAddr, s.HTTPAddr, s.MonitoringAddr = dir, "east", "", "", ""
	}, change)
	w.ads = c.GRPCAddr()
	if at := c.SecureGRPCAddr(); at != "" {
		_, port, err := net.SplitHostPort(at)
		require.NoError(t, err)
		w.secure = net.JoinHostPort(secureHost, port)
	}
	w.startGateway(gateway)
	return w
}

// write lays out a cluster: the echo service, whose definition all clusters
// share, and what is particular to the cluster.
func (w *world) write(dir, cluster, network string, objects ...string) {
	w.t.Helper()
	text := strings.NewReplacer(
		"NETWORK", network,
		"ECHO_PORT", fmt.Sprint(echoPort), "ECHO_TARGET", fmt.Sprint(w.echo.Port()),
		"GATEWAY_PORT", fmt.Sprint(w.gateway.Port()), "GATEWAY_IP", gatewayIP,
	).Replace(strings.Join(append([]string{everyCluster}, objects...), "---\n"))
	require.NoError(w.t, os.MkdirAll(filepath.Join(dir, cluster), 0o755))
	require.NoError(w.t, os.WriteFile(filepath.Join(dir, cluster, "objects.yaml"), []byte(text), 0o600))
}

const everyCluster = `apiVersion: v1
kind: Namespace
metadata: {name: istio-system, labels: {topology.istio.io/network: NETWORK}}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: echo, namespace: shop}
spec:
  clusterIP: 10.0.0.1
  clusterIPs: [10.0.0.1]
  selector: {app: echo}
  ports: [{name: grpc, port: ECHO_PORT, targetPort: ECHO_TARGET}]
`

const gatewayRule = `apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: cross-network-gateway, namespace: istio-system}
spec:
  selector: {app: istio-eastwestgateway}
  servers:
  - port: {number: GATEWAY_PORT, name: tls, protocol: TLS}
    tls: {mode: AUTO_PASSTHROUGH}
    hosts: ["*.local"]
`

const gatewayService = `apiVersion: v1
kind: Service
metadata:
  name: istio-eastwestgateway
  namespace: istio-system
  labels: {topology.istio.io/network: NETWORK, networking.istio.io/gatewayPort: "GATEWAY_PORT"}
spec:
  type: LoadBalancer
  clusterIP: 10.0.0.9
  clusterIPs: [10.0.0.9]
  selector: {app: istio-eastwestgateway}
  ports: [{name: tls, port: GATEWAY_PORT, targetPort: GATEWAY_PORT}]
status: {loadBalancer: {ingress: [{ip: GATEWAY_IP}]}}
`

// pod is a ready pod in the mesh whose account has its name.
func pod(name, ip, namespace string) string {
	if namespace == "" {
		namespace = "shop"
	}
	return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata:
  name: %[1]s-0
  namespace: %[3]s
  labels: {app: %[1]s, security.istio.io/tlsMode: istio}
spec:
  serviceAccountName: %[1]s
  containers: [{name: main, image: example.com/main}]
status:
  phase: Running
  podIP: %[2]s
  podIPs: [{ip: %[2]s}]
  conditions: [{type: Ready, status: "True"}]
`, name, ip, namespace)
}

// within is the context of one step of a test.
func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}
