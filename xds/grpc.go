package xds

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

// Transport configures [ServerOptions]. The zero value of a field means its default.
type Transport struct {
	// MaxConcurrentStreams bounds the streams of one connection: 100. A proxy needs
	// one or two; a bound makes floods of resets expensive for the sender alone.
	MaxConcurrentStreams uint32
	// MaxConnectionAge closes connections, after which proxies spread over the
	// replicas anew. gRPC jitters it by 10 %. Default 30 min, negative: never.
	MaxConnectionAge time.Duration
	// MinPing is the least time between two pings of a client: 10 s.
	MinPing time.Duration
	// WriteBuffer is the size of the buffers that are shared by connections being
	// written to: 64 KB.
	WriteBuffer int
}

// ServerOptions returns the options for a gRPC server that serves ADS. The codec
// is needed by [Server]; other services on the same server are not affected by it.
func ServerOptions(t Transport) []grpc.ServerOption {
	if t.MaxConcurrentStreams == 0 {
		t.MaxConcurrentStreams = 100
	}
	if t.MinPing == 0 {
		t.MinPing = 10 * time.Second
	}
	if t.WriteBuffer == 0 {
		t.WriteBuffer = 64 << 10
	}
	alive := keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}
	switch {
	case t.MaxConnectionAge == 0:
		alive.MaxConnectionAge = 30 * time.Minute
	case t.MaxConnectionAge > 0:
		alive.MaxConnectionAge = t.MaxConnectionAge
	}
	if alive.MaxConnectionAge > 0 {
		// An ADS stream never ends by itself.
		alive.MaxConnectionAgeGrace = 10 * time.Second
	}
	pool := newBufferPool()
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(newCodec(pool)),
		experimental.BufferPool(pool),
		grpc.MaxRecvMsgSize(MaxRequestBytes),
		grpc.MaxConcurrentStreams(t.MaxConcurrentStreams),
		// Fixed windows switch gRPC's bandwidth estimation off, and its pings with it.
		grpc.InitialWindowSize(64 << 10), grpc.InitialConnWindowSize(128 << 10),
		grpc.WriteBufferSize(t.WriteBuffer),
		grpc.KeepaliveParams(alive),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: t.MinPing, PermitWithoutStream: true}),
		grpc.ConnectionTimeout(20 * time.Second),
	}
}

// serviceDesc describes ADS with the engine's own message types.
func (srv *Server) serviceDesc() *grpc.ServiceDesc {
	handler := func(delta bool) grpc.StreamHandler {
		return func(_ any, st grpc.ServerStream) error {
			err := srv.serve(newGRPCTransport(st), delta)
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
	return &grpc.ServiceDesc{
		ServiceName: "envoy.service.discovery.v3.AggregatedDiscoveryService",
		HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{
			{StreamName: "StreamAggregatedResources", Handler: handler(false), ServerStreams: true, ClientStreams: true},
			{StreamName: "DeltaAggregatedResources", Handler: handler(true), ServerStreams: true, ClientStreams: true},
		},
		Metadata: "envoy/service/discovery/v3/ads.proto",
	}
}

// grpcTransport is a gRPC stream.
type grpcTransport struct {
	st     grpc.ServerStream
	status interface{ WriteStatus(*status.Status) error }
}

func newGRPCTransport(st grpc.ServerStream) *grpcTransport {
	t := &grpcTransport{st: st}
	// What gRPC keeps in the context can end the stream at any time and from any
	// goroutine. The alternative, a second goroutine per stream that returns from
	// the handler while the first one waits in RecvMsg, costs 8 KB per proxy.
	t.status, _ = grpc.ServerTransportStreamFromContext(st.Context()).(interface{ WriteStatus(*status.Status) error })
	return t
}

func (t *grpcTransport) Context() context.Context { return t.st.Context() }
func (t *grpcTransport) Recv(r *request) error    { return t.st.RecvMsg(r) }
func (t *grpcTransport) Send(r *response) error   { return t.st.SendMsg(r) }

func (t *grpcTransport) Abort(st *status.Status) {
	if t.status != nil {
		_ = t.status.WriteStatus(st) // the stream is over either way
		return
	}
	// A message that cannot be encoded ends a stream, too.
	_ = t.st.SendMsg(status.Error(codes.Aborted, st.Message()))
}
