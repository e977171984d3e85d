package xds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// dial serves a world over gRPC in memory.
func (w *world) dial(t testing.TB) discoveryv3.AggregatedDiscoveryServiceClient {
	l := bufconn.Listen(64 << 10)
	srv := grpc.NewServer(ServerOptions(Transport{})...)
	w.srv.Register(srv)
	go func() { _ = srv.Serve(l) }()
	cc, err := grpc.NewClient("passthrough:///bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithStaticStreamWindowSize(64<<10), grpc.WithStaticConnWindowSize(16<<20), // so that a client that does not read takes 64 KB
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = cc.Close()
		srv.Stop()
		w.stop()
	})
	return discoveryv3.NewAggregatedDiscoveryServiceClient(cc)
}

func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestStandardClientOverGRPC(t *testing.T) {
	w := newWorld(t, nil)
	w.put("east", "cart", svc{pods: []string{"10.0.0.1"}})
	ads := w.dial(t)

	st, err := ads.StreamAggregatedResources(deadline(t))
	require.NoError(t, err)
	require.NoError(t, st.Send(&discoveryv3.DiscoveryRequest{Node: labNode("10.9.9.1", "", "net-east", "shop", nil), TypeUrl: TypeCDS}))
	r, err := st.Recv()
	require.NoError(t, err)
	require.Equal(t, TypeCDS, r.TypeUrl)
	require.Len(t, r.Resources, 2)
	require.Len(t, r.Nonce, 16)
	require.Len(t, r.VersionInfo, 16)

	d, err := ads.DeltaAggregatedResources(deadline(t))
	require.NoError(t, err)
	require.NoError(t, d.Send(&discoveryv3.DeltaDiscoveryRequest{Node: labNode("10.9.9.2", "", "net-east", "shop", nil), TypeUrl: TypeEDS,
		ResourceNamesSubscribe: []string{"outbound|80||cart.shop.svc.cluster.local", "outbound|1||none"}}))
	dr, err := d.Recv()
	require.NoError(t, err)
	require.Len(t, dr.Resources, 1)
	require.Equal(t, []string{"outbound|1||none"}, dr.RemovedResources)

	proxies := w.srv.Proxies()
	require.Len(t, proxies, 2)
	require.Equal(t, mesh.ClusterID("east"), proxies[0].Cluster, "the primary stands in for a missing CLUSTER_ID")
	require.Equal(t, StatusStale, proxies[0].Types[0].Status)

	w.stop()
	_, err = st.Recv()
	require.Equal(t, codes.Unavailable, status.Code(err), "%v", err)
	_, err = d.Recv()
	require.Equal(t, codes.Unavailable, status.Code(err), "%v", err)
}

func TestRefusedStreams(t *testing.T) {
	first := func(w *world, r *discoveryv3.DiscoveryRequest) error {
		st, err := w.dial(t).StreamAggregatedResources(deadline(t))
		require.NoError(t, err)
		if err := st.Send(r); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		_, err = st.Recv()
		return err
	}
	node := labNode("10.9.9.1", "east", "n", "shop", nil)
	t.Run("not ready", func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Ready = func() bool { return false } })
		require.Equal(t, codes.Unavailable, status.Code(first(w, &discoveryv3.DiscoveryRequest{Node: node, TypeUrl: TypeCDS})))
	})
	t.Run("without node", func(t *testing.T) {
		err := first(newWorld(t, nil), &discoveryv3.DiscoveryRequest{TypeUrl: TypeCDS})
		require.Equal(t, codes.InvalidArgument, status.Code(err))
		require.ErrorContains(t, err, "node.id")
	})
	t.Run("not authenticated", func(t *testing.T) {
		w := newWorld(t, func(c *Config) {
			c.Authenticate = func(context.Context, *mesh.Proxy) (Credential, error) { return Credential{}, fmt.Errorf("no token") }
		})
		require.Equal(t, codes.Unauthenticated, status.Code(first(w, &discoveryv3.DiscoveryRequest{Node: node, TypeUrl: TypeCDS})))
	})
	t.Run("5 MiB request", func(t *testing.T) {
		big := &discoveryv3.DiscoveryRequest{Node: node, TypeUrl: TypeEDS, ResourceNames: []string{string(make([]byte, 5<<20))}}
		require.Equal(t, codes.ResourceExhausted, status.Code(first(newWorld(t, nil), big)))
	})
	t.Run("too many", func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Settings.MaxStreams = 1 })
		ads := w.dial(t)
		st, err := ads.StreamAggregatedResources(deadline(t))
		require.NoError(t, err)
		require.NoError(t, st.Send(&discoveryv3.DiscoveryRequest{Node: node, TypeUrl: TypeCDS}))
		_, err = st.Recv()
		require.NoError(t, err)
		again, err := ads.StreamAggregatedResources(deadline(t))
		require.NoError(t, err)
		require.NoError(t, again.Send(&discoveryv3.DiscoveryRequest{Node: node, TypeUrl: TypeCDS}))
		_, err = again.Recv()
		require.Equal(t, codes.ResourceExhausted, status.Code(err))
	})
}

// TestProxiesThatDoNotRead is row 40 of the fault table: proxies that stop
// reading in the middle of megabytes delay nobody, hold no memory that grows
// with what happens meanwhile, and are closed in the end.
func TestProxiesThatDoNotRead(t *testing.T) {
	var ahead atomic.Int64
	w := newWorld(t, func(c *Config) {
		c.Settings.StuckAfter = time.Second
		c.Clock = func() time.Time { return time.Unix(1e9, ahead.Load()) }
	})
	for i := range 300 { // each type is far more than fits into a stream's window
		w.put("east", fmt.Sprintf("%s-%d", bigName, i), svc{labels: map[string]string{"v": string(make([]byte, 1000))}})
	}
	ads := w.dial(t)
	// Streams without a deadline: who ends them is the server.
	open, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	var stuck []discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient
	for i := range 20 {
		st, err := ads.StreamAggregatedResources(open)
		require.NoError(t, err)
		for _, url := range []string{TypeCDS, TypeLDS} { // the second waits in Send
			require.NoError(t, st.Send(&discoveryv3.DiscoveryRequest{Node: labNode(fmt.Sprintf("10.8.0.%d", i), "east", "n", "shop", nil), TypeUrl: url}))
		}
		stuck = append(stuck, st)
	}
	good, err := w.dial(t).StreamAggregatedResources(open)
	require.NoError(t, err)
	name := "outbound|80||cart.shop.svc.cluster.local"
	require.NoError(t, good.Send(&discoveryv3.DiscoveryRequest{Node: labNode("10.9.9.1", "east", "net-east", "shop", nil), TypeUrl: TypeEDS, ResourceNames: []string{name}}))
	r, err := good.Recv()
	require.NoError(t, err)
	for i := range 50 {
		require.NoError(t, good.Send(&discoveryv3.DiscoveryRequest{TypeUrl: TypeEDS, ResourceNames: []string{name}, VersionInfo: r.VersionInfo, ResponseNonce: r.Nonce}))
		w.put("east", "cart", svc{pods: []string{fmt.Sprintf("10.0.1.%d", i)}})
		r, err = good.Recv()
		require.NoError(t, err, "change %d", i)
		if len(r.Resources) != 1 {
			t.Fatalf("change %d: %d resources", i, len(r.Resources))
		}
	}
	// Time must not pass before everybody waits, in Send or, where the change came
	// first, for an answer; nor while what was read is on its way out of Send.
	later := time.Unix(1e9, 0).Add(time.Minute)
	waiting := func() (n int) {
		for _, s := range w.srv.all() {
			if s.stuck(later, time.Second) {
				n++
			}
		}
		return n
	}
	require.Eventually(t, func() bool { return waiting() == len(stuck) && len(w.srv.all()) == len(stuck)+1 }, time.Minute, time.Millisecond, "who does not read is waited for")
	ahead.Store(int64(time.Minute)) // has no effect on who answers
	// Reading what is buffered would set Send free: the server has to go first.
	require.Eventually(t, func() bool { return len(w.srv.all()) == 1 }, time.Minute, time.Millisecond, "who reads stays, and nobody else")
	for _, st := range stuck {
		for err = nil; err == nil; {
			_, err = st.Recv()
		}
		require.Equal(t, codes.DeadlineExceeded, status.Code(err), "%v", err)
		require.Contains(t, err.Error(), "responses were not answered")
	}
	require.NoError(t, good.Send(&discoveryv3.DiscoveryRequest{TypeUrl: TypeEDS, ResourceNames: []string{name}, VersionInfo: r.VersionInfo, ResponseNonce: r.Nonce}))
	w.put("east", "cart", svc{pods: []string{"10.0.2.1"}})
	_, err = good.Recv()
	require.NoError(t, err)
}

const bigName = "a-service-with-a-name-of-some-length"
