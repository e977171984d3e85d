package xds

import (
	"context"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
)

// pinging is a control plane behind real gRPC on a clock of its own, and clients
// that ping it as agents do.
type pinging struct {
	*world
	listener *bufconn.Listener
}

func newPinging(t *testing.T, transport Transport) (p *pinging, stop func()) {
	p = &pinging{world: twoServices(t, nil), listener: bufconn.Listen(64 << 10)}
	srv := grpc.NewServer(ServerOptions(transport)...)
	p.srv.Register(srv)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = srv.Serve(p.listener)
	}()
	settle()
	return p, func() {
		srv.Stop()
		<-served
		p.stop()
	}
}

// pinger is a connection with a stream that has heard of its upstreams.
type pinger struct {
	conn   *grpc.ClientConn
	stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient
}

func (p *pinging) connect(t *testing.T, ip string) pinger {
	conn, err := grpc.NewClient("passthrough:///bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return p.listener.DialContext(ctx) }))
	require.NoError(t, err)
	a := pinger{conn: conn}
	a.stream, err = discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(context.Background())
	require.NoError(t, err)
	require.NoError(t, a.stream.Send(&discoveryv3.DiscoveryRequest{Node: labNode(ip, "east", "net-east", "shop", nil), TypeUrl: TypeCDS}))
	require.Len(t, a.upstreams(t), 3)
	return a
}

// upstreams waits for an answer and acknowledges it.
func (a pinger) upstreams(t *testing.T) []string {
	r, err := a.stream.Recv()
	require.NoError(t, err)
	require.NoError(t, a.stream.Send(&discoveryv3.DiscoveryRequest{TypeUrl: TypeCDS, ResponseNonce: r.Nonce, VersionInfo: r.VersionInfo}))
	var names []string
	for _, x := range r.Resources {
		names = append(names, nameOf(t, TypeCDS, x.Value))
	}
	return names
}

// An agent pings an idle stream every 30 s for ten minutes: nobody minds, and
// the stream is as good as before. A server that wanted fewer pings would have
// ended it, which shows that there were pings to count.
func TestPingsOfAnAgent(t *testing.T) {
	for least, welcome := range map[time.Duration]bool{0: true, 45 * time.Second: false} {
		t.Run(least.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, stop := newPinging(t, Transport{MinPing: least})
				defer stop()
				a := p.connect(t, "10.9.9.1")
				defer func() { _ = a.conn.Close() }()
				time.Sleep(10 * time.Minute)
				synctest.Wait()
				if !welcome {
					_, err := a.stream.Recv()
					require.Equal(t, codes.Unavailable, status.Code(err))
					require.ErrorContains(t, err, "too_many_pings")
					return
				}
				require.Equal(t, connectivity.Ready, a.conn.GetState(), "no GOAWAY")
				p.put("east", "c", svc{pods: []string{"10.0.0.3/x"}})
				require.Len(t, a.upstreams(t), 4)
			})
		})
	}
}

// At the connection's age comes a GOAWAY; the stream lives on for 10 s of grace
// and then ends. Everybody is back at once and has everything.
func TestConnectionsAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, stop := newPinging(t, Transport{MaxConnectionAge: 30 * time.Minute})
		defer stop()
		begin := time.Now()
		ips := []string{"10.9.9.1", "10.9.9.2", "10.9.9.3"}
		type life struct {
			told, ended time.Duration
			err         error
		}
		lives := make([]life, len(ips))
		var all sync.WaitGroup
		for i, ip := range ips {
			a := p.connect(t, ip)
			all.Go(func() {
				// An answer may be heard before the connection calls itself ready.
				for s := a.conn.GetState(); s != connectivity.Ready; s = a.conn.GetState() {
					a.conn.WaitForStateChange(context.Background(), s)
				}
				a.conn.WaitForStateChange(context.Background(), connectivity.Ready)
				lives[i].told = time.Since(begin)
				_, lives[i].err = a.stream.Recv()
				lives[i].ended = time.Since(begin)
				_ = a.conn.Close()
			})
		}
		all.Wait()
		synctest.Wait()
		for _, l := range lives {
			require.Equal(t, codes.Unavailable, status.Code(l.err))
			require.InDelta(t, 30*time.Minute, l.told, float64(3*time.Minute+10*time.Second), "spread by a tenth")
			require.InDelta(t, 10*time.Second, l.ended-l.told, float64(2*time.Second), "the grace")
		}
		require.Empty(t, p.srv.Proxies())
		var again []pinger
		for _, ip := range ips {
			again = append(again, p.connect(t, ip)) // and has heard of all upstreams
		}
		require.Len(t, p.srv.Proxies(), len(ips))
		for _, a := range again {
			_ = a.conn.Close()
		}
	})
}
