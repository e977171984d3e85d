package grpcclient

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/xds"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The rules of users as grpc-go's own xDS client carries them out. Cluster east
// is in region r1, where the client is, west in region r2.

// Methods of the servers.
const (
	methodFlaky = "/isthmus.test.Who/Flaky" // the first attempt of a call fails
	methodSlow  = "/isthmus.test.Who/Slow"  // answers when the caller gives up
)

// backend is one pod: a server on a loopback address of its own.
type backend struct {
	cluster, region, version, addr string
	ready                          bool
	broken                         *atomic.Bool // answers every call with an error
}

func startBackend(t *testing.T, cluster, region, version, addr string) *backend {
	b := &backend{cluster, region, version, addr, true, &atomic.Bool{}}
	l, err := net.Listen("tcp", fmt.Sprintf("%s:%d", addr, port))
	require.NoError(t, err)
	srv := grpc.NewServer(grpc.UnknownServiceHandler(b.serve))
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Stop(); <-done })
	return b
}

func (b *backend) serve(_ any, s grpc.ServerStream) error {
	if err := s.RecvMsg(&emptypb.Empty{}); err != nil {
		return err
	}
	called, _ := grpc.MethodFromServerStream(s)
	md, _ := metadata.FromIncomingContext(s.Context())
	switch {
	case b.broken.Load():
		return status.Error(codes.Internal, "broken")
	case called == methodFlaky && len(md.Get("grpc-previous-rpc-attempts")) == 0:
		return status.Error(codes.Unavailable, "not at first")
	case called == methodSlow:
		<-s.Context().Done()
		return s.Context().Err()
	}
	return s.SendMsg(wrapperspb.String(b.addr))
}

// rulesWorld is a mesh of backends with rules.
type rulesWorld struct {
	*world
	backends []*backend
}

func newRulesWorld(t *testing.T, rules string, backends ...*backend) *rulesWorld {
	w := &rulesWorld{world: &world{t: t, dir: t.TempDir()}, backends: backends}
	for _, c := range []string{"east", "west"} {
		require.NoError(t, os.MkdirAll(filepath.Join(w.dir, c), 0o755))
	}
	w.put("east", "rules.yaml", rules)
	w.settle()
	w.start()
	return w
}

// put writes one file of a cluster in one step.
func (w *rulesWorld) put(cluster, name, text string) {
	w.t.Helper()
	tmp := filepath.Join(w.t.TempDir(), name)
	require.NoError(w.t, os.WriteFile(tmp, []byte(text), 0o600))
	require.NoError(w.t, os.Rename(tmp, filepath.Join(w.dir, cluster, name)))
}

// settle writes what the clusters know of the backends.
func (w *rulesWorld) settle() {
	w.t.Helper()
	for _, cluster := range []string{"east", "west"} {
		var pods, slice strings.Builder
		for i, b := range w.backends {
			if b.cluster != cluster {
				continue
			}
			fmt.Fprintf(&pods, `---
apiVersion: v1
kind: Pod
metadata: {name: echo-%d, namespace: shop, labels: {app: echo, version: %s}}
spec: {nodeName: %s-node, containers: [{name: echo, image: echo}]}
status: {phase: Running, podIP: %s, podIPs: [{ip: %s}]}
`, i, b.version, cluster, b.addr, b.addr)
			fmt.Fprintf(&slice, "- {addresses: [%s], conditions: {ready: %t}, targetRef: {kind: Pod, namespace: shop, name: echo-%d}}\n", b.addr, b.ready, i)
		}
		if slice.Len() == 0 {
			slice.WriteString("  []\n")
		}
		w.put(cluster, "echo.yaml", fmt.Sprintf(`apiVersion: v1
kind: Node
metadata: {name: %s-node, labels: {topology.kubernetes.io/region: %s, topology.kubernetes.io/zone: z}}
---
apiVersion: v1
kind: Service
metadata: {name: echo, namespace: shop}
spec: {clusterIP: 10.0.0.1, clusterIPs: [10.0.0.1], selector: {app: echo}, ports: [{name: grpc, port: %d, targetPort: %d}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: echo-1, namespace: shop, labels: {kubernetes.io/service-name: echo}}
addressType: IPv4
ports: [{name: grpc, port: %d, protocol: TCP}]
endpoints:
%s%s`, cluster, map[string]string{"east": "r1", "west": "r2"}[cluster], port, port, port, slice.String(), pods.String()))
	}
}

func (w *rulesWorld) dial() *grpc.ClientConn {
	w.t.Helper()
	config := strings.Replace(string(w.bootstrap()), `"region": "r"`, `"region": "r1"`, 1)
	resolver, err := xds.NewXDSResolverWithConfigForTesting([]byte(config))
	require.NoError(w.t, err)
	conn, err := grpc.NewClient("xds:///"+target, grpc.WithResolvers(resolver), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(w.t, err)
	w.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// call makes one call and returns who answered.
func call(ctx context.Context, conn *grpc.ClientConn, what string) (string, error) {
	var who wrapperspb.StringValue
	err := conn.Invoke(ctx, what, &emptypb.Empty{}, &who, grpc.WaitForReady(true))
	return who.GetValue(), err
}

const subsetRules = `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: echo, namespace: shop}
spec:
  host: echo
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: echo, namespace: shop}
spec:
  hosts: [echo]
  http:
  - match: [{headers: {x-version: {exact: "2"}}}]
    route: [{destination: {host: echo, subset: v2}}]
  - match: [{uri: {exact: /isthmus.test.Who/Flaky}}]
    retries: {attempts: 2, retryOn: unavailable}
    route: [{destination: {host: echo, subset: v1}}]
  - match: [{uri: {exact: /isthmus.test.Who/Slow}}]
    timeout: 200ms
    route: [{destination: {host: echo, subset: v1}}]
  - route:
    - {destination: {host: echo, subset: v1}, weight: 75}
    - {destination: {host: echo, subset: v2}, weight: 25}
`

func TestRulesForRequests(t *testing.T) {
	w := newRulesWorld(t, subsetRules, startBackend(t, "east", "r1", "v1", "127.0.1.11"), startBackend(t, "west", "r2", "v2", "127.0.1.12"))
	conn := w.dial()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()

	const calls = 800
	first := 0
	for range calls {
		who, err := call(ctx, conn, method)
		require.NoError(t, err)
		if who == "127.0.1.11" {
			first++
		}
	}
	// Ten standard deviations around three of four.
	require.InDelta(t, calls*3/4, first, 125, "weights 3:1")

	for range 20 {
		who, err := call(metadata.AppendToOutgoingContext(ctx, "x-version", "2"), conn, method)
		require.NoError(t, err)
		require.Equal(t, "127.0.1.12", who, "a header decides")
	}
	who, err := call(ctx, conn, methodFlaky)
	require.NoError(t, err, "a call that fails at first is made again")
	require.Equal(t, "127.0.1.11", who)
	_, err = call(ctx, conn, methodSlow)
	require.Equal(t, codes.DeadlineExceeded, status.Code(err), "the rule's timeout ends a call that has none of its own: %v", err)
	require.NoError(t, ctx.Err())
}

func TestOutlierIsEjected(t *testing.T) {
	good, bad := startBackend(t, "east", "r1", "v1", "127.0.1.21"), startBackend(t, "east", "r1", "v1", "127.0.1.22")
	w := newRulesWorld(t, `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: echo, namespace: shop}
spec:
  host: echo
  trafficPolicy:
    outlierDetection: {consecutive5xxErrors: 3, interval: 100ms, baseEjectionTime: 600s, maxEjectionPercent: 100}
`, good, bad)
	conn := w.dial()
	reaches(t, conn, good.addr, bad.addr)
	bad.broken.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for in := 0; in < 60; { // until a whole round of calls goes to the other
		who, err := call(ctx, conn, method)
		if ctx.Err() != nil {
			require.NoError(t, err, "the broken server is never ejected")
		}
		if err == nil && who == good.addr {
			in++
		} else {
			in = 0
		}
	}
}

func TestFailoverToAnotherRegionAndBack(t *testing.T) {
	near, far := startBackend(t, "east", "r1", "v1", "127.0.1.31"), startBackend(t, "west", "r2", "v1", "127.0.1.32")
	w := newRulesWorld(t, `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: echo, namespace: shop}
spec:
  host: echo
  trafficPolicy:
    loadBalancer: {localityLbSetting: {enabled: true}}
`, near, far)
	conn := w.dial()
	reaches(t, conn, near.addr)
	near.ready = false // no outlier detection: readiness alone decides
	w.settle()
	reaches(t, conn, far.addr)
	near.ready = true
	w.settle()
	reaches(t, conn, near.addr)
}

// Draining a cluster to nothing under calls, and filling it again, fails none.
func TestDrainUnderCalls(t *testing.T) {
	east, west := startBackend(t, "east", "r1", "v1", "127.0.1.41"), startBackend(t, "west", "r2", "v1", "127.0.1.42")
	w := newRulesWorld(t, "", east, west)
	conn := w.dial()
	reaches(t, conn, east.addr, west.addr)

	ctx, stop := context.WithCancel(t.Context())
	var calls, failed atomic.Int64
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			for ctx.Err() == nil {
				_, err := call(ctx, conn, method)
				calls.Add(1)
				if err != nil && ctx.Err() == nil {
					failed.Add(1)
				}
				time.Sleep(time.Millisecond) // leaves the machine to others
			}
		})
	}
	weights := func(west int) {
		w.put("east", "mesh.yaml", fmt.Sprintf(`apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  isthmus: |
    weights: {clusters: {west: %d}}
`, west))
	}
	weights(0)
	reaches(t, conn, east.addr)
	weights(100)
	reaches(t, conn, east.addr, west.addr)
	stop()
	callers.Wait()
	require.Zero(t, failed.Load(), "of %d calls", calls.Load())
	require.Positive(t, calls.Load())
}
