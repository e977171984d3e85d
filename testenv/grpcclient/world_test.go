package grpcclient

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/serve"
	"github.com/isthmus-mesh/isthmus/testenv/plane"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	port     = 17070
	method   = "/isthmus.test.Who/AmI"
	target   = "echo.shop.svc.cluster.local:17070"
	patience = 30 * time.Second
)

// world is folders of clusters whose pods are servers on loopback addresses.
type world struct {
	t   *testing.T
	dir string
	// ADS is the address of the control plane.
	ADS string
}

// pods of the echo service by cluster: each is a real server that answers with
// its own address.
func newWorld(t *testing.T, pods map[string][]string) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir()}
	for cluster, addrs := range pods {
		for _, a := range addrs {
			answer(t, a)
		}
		w.write(cluster, addrs...)
	}
	w.start()
	return w
}

// start runs the control plane over the folders.
func (w *world) start() {
	w.t.Helper()
	p := plane.Serve(w.t, func(s *serve.Settings) {
		s.Files, s.Primary, s.HTTPAddr, s.MonitoringAddr = w.dir, "east", "", ""
	})
	w.ADS = p.GRPCAddr()
}

// answer starts a server that answers every call with its address.
func answer(t *testing.T, addr string) {
	l, err := net.Listen("tcp", fmt.Sprintf("%s:%d", addr, port))
	require.NoError(t, err)
	srv := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		if err := s.RecvMsg(&emptypb.Empty{}); err != nil {
			return err
		}
		return s.SendMsg(wrapperspb.String(addr))
	}))
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Stop(); <-done })
}

// write lays out a cluster with the pods of the echo service.
func (w *world) write(cluster string, addrs ...string) {
	w.t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, `apiVersion: v1
kind: Service
metadata: {name: echo, namespace: shop}
spec: {clusterIP: 10.0.0.1, clusterIPs: [10.0.0.1], ports: [{name: grpc, port: %d, targetPort: %d}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: echo-1, namespace: shop, labels: {kubernetes.io/service-name: echo}}
addressType: IPv4
ports: [{name: grpc, port: %d, protocol: TCP}]
endpoints:
`, port, port, port)
	if len(addrs) == 0 {
		b.WriteString("  []\n")
	}
	for _, a := range addrs {
		fmt.Fprintf(&b, "- {addresses: [%s], conditions: {ready: true}}\n", a)
	}
	require.NoError(w.t, os.MkdirAll(filepath.Join(w.dir, cluster), 0o755))
	tmp := filepath.Join(w.t.TempDir(), "echo.yaml")
	require.NoError(w.t, os.WriteFile(tmp, []byte(b.String()), 0o600))
	require.NoError(w.t, os.Rename(tmp, filepath.Join(w.dir, cluster, "echo.yaml")))
}

// bootstrap is what an injected pod of cluster east would be given.
func (w *world) bootstrap() []byte {
	return fmt.Appendf(nil, `{
  "xds_servers": [{"server_uri": %q, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}],
  "node": {
    "id": "sidecar~10.0.0.9~client-0.shop~shop.svc.cluster.local",
    "metadata": {"GENERATOR": "grpc", "CLUSTER_ID": "east", "NAMESPACE": "shop", "INSTANCE_IPS": "10.0.0.9"},
    "locality": {"region": "r", "zone": "z"}
  }
}`, w.ADS)
}
