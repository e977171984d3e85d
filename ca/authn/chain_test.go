package authn

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/isthmus-mesh/isthmus/mesh"
)

type answer struct {
	caller Caller
	err    error
}

func (a answer) Authenticate(context.Context, Request) (Caller, error) { return a.caller, a.err }

func TestChain(t *testing.T) {
	ok := answer{caller: Caller{Identity: mesh.Identity{TrustDomain: "td", Namespace: "ns", ServiceAccount: "sa"}, Expiry: start}}
	incomplete, eternal := ok, ok
	incomplete.caller.Identity.TrustDomain = ""
	eternal.caller.Expiry = time.Time{}
	none := answer{err: fmt.Errorf("x: %w", ErrNoCredential)}
	bad := answer{err: fmt.Errorf("x: %w", ErrUnauthenticated)}
	down := answer{err: fmt.Errorf("x: %w", ErrUnavailable)}
	for name, tc := range map[string]struct {
		chain Chain
		kind  error
		code  codes.Code
	}{
		"nobody":                    {Chain{}, ErrNoCredential, codes.Unauthenticated},
		"nothing offered":           {Chain{none, none}, ErrNoCredential, codes.Unauthenticated},
		"first":                     {Chain{ok, down}, nil, codes.OK},
		"a later one knows":         {Chain{none, bad, down, ok}, nil, codes.OK},
		"bad":                       {Chain{bad, none}, ErrUnauthenticated, codes.Unauthenticated},
		"down":                      {Chain{none, down}, ErrUnavailable, codes.Unavailable},
		"down, then bad":            {Chain{down, bad}, ErrUnavailable, codes.Unavailable},
		"bad, then down":            {Chain{bad, down}, ErrUnavailable, codes.Unavailable},
		"an incomplete identity":    {Chain{incomplete}, ErrUnauthenticated, codes.Unauthenticated},
		"a credential without end":  {Chain{eternal}, ErrUnauthenticated, codes.Unauthenticated},
		"incomplete, then complete": {Chain{incomplete, ok}, nil, codes.OK},
	} {
		t.Run(name, func(t *testing.T) {
			addr := netip.MustParseAddr("10.0.0.1")
			got, err := tc.chain.Authenticate(t.Context(), Request{Peer: addr})
			require.Equal(t, tc.code, status.Code(Status(err)))
			if tc.kind == nil {
				require.NoError(t, err)
				require.Equal(t, addr, got.Peer)
				return
			}
			for _, kind := range []error{ErrNoCredential, ErrUnauthenticated, ErrUnavailable} {
				require.Equal(t, errors.Is(tc.kind, kind), errors.Is(err, kind), "%v", kind)
			}
		})
	}
}

func TestRequestFromContext(t *testing.T) {
	ctx := peer.NewContext(t.Context(), &peer.Peer{Addr: &net.TCPAddr{IP: net.ParseIP("::ffff:10.0.0.7"), Port: 1}})
	from := func(kv ...string) Request {
		return FromContext(metadata.NewIncomingContext(ctx, metadata.Pairs(kv...)))
	}
	r := from("authorization", "Bearer  abc ", "clusterid", "c2")
	require.Equal(t, "abc", r.Token)
	require.Equal(t, mesh.ClusterID("c2"), r.Cluster)
	require.Equal(t, netip.MustParseAddr("10.0.0.7"), r.Peer)
	require.Equal(t, "abc", from("authorization", "bearer abc").Token)
	require.Empty(t, from("authorization", "Basic abc").Token)
	require.Equal(t, "abc", from("authorization", "Bearer abc", "authorization", "Bearer abc").Token)
	for name, r := range map[string]Request{
		"two tokens":   from("authorization", "Bearer a", "authorization", "Bearer b"),
		"two clusters": from("clusterid", "a", "clusterid", "b"),
		"long token":   from("authorization", "Bearer "+strings.Repeat("x", maxToken+1)),
		"long cluster": from("clusterid", strings.Repeat("x", maxClusterID+1)),
	} {
		require.NotEmpty(t, r.Malformed, name)
		require.Empty(t, r.Token+string(r.Cluster), name)
		_, err := Chain{answer{caller: Caller{}}}.Authenticate(t.Context(), r)
		require.ErrorIs(t, err, ErrUnauthenticated, name)
	}
	require.Zero(t, FromContext(t.Context()))
}

func TestRequestFromHTTP(t *testing.T) {
	req := httptest.NewRequest("GET", "/debug/syncz", nil)
	req.RemoteAddr = "[::1]:999"
	req.Header.Set("Authorization", "Bearer abc")
	req.Header.Set("ClusterID", "c2")
	require.Equal(t, Request{Token: "abc", Cluster: "c2", Peer: netip.MustParseAddr("::1")}, FromHTTP(req))
}

func TestCallerKey(t *testing.T) {
	id := mesh.Identity{TrustDomain: "td", Namespace: "ns", ServiceAccount: "sa"}
	pod := Caller{Identity: id, Cluster: "c1", PodUID: "u"}
	moved := pod
	moved.Peer = netip.MustParseAddr("10.0.0.1")
	require.Equal(t, pod.Key(), moved.Key())
	other := pod
	other.Cluster = "c2"
	require.NotEqual(t, pod.Key(), other.Key())
	a, b := Caller{Identity: id, Peer: netip.MustParseAddr("10.0.0.1")}, Caller{Identity: id, Peer: netip.MustParseAddr("10.0.0.2")}
	require.NotEqual(t, a.Key(), b.Key())
}

// Row 37: one address holds so many streams and no more; others are served.
func TestRow37StreamsPerPeer(t *testing.T) {
	p := NewPeerCap(2)
	handled := 0
	open := func(addr string, handler grpc.StreamHandler) codes.Code {
		ctx := peer.NewContext(t.Context(), &peer.Peer{Addr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr))})
		return status.Code(p.StreamInterceptor(nil, serverStream{ctx: ctx}, nil, handler))
	}
	leaf := func(any, grpc.ServerStream) error { handled++; return nil }
	code := open("10.0.0.1:1", func(any, grpc.ServerStream) error {
		require.Equal(t, codes.OK, open("10.0.0.1:2", leaf), "a second one")
		require.Equal(t, codes.OK, open("10.0.0.1:2", func(any, grpc.ServerStream) error {
			require.Equal(t, codes.ResourceExhausted, open("10.0.0.1:3", leaf))
			require.Equal(t, codes.OK, open("10.0.0.2:1", leaf))
			return nil
		}))
		return nil
	})
	require.Equal(t, codes.OK, code)
	require.Equal(t, 2, handled)
	require.Empty(t, p.open)
	release, ok := NewPeerCap(0).Acquire(netip.Addr{})
	require.True(t, ok)
	release()
	require.Equal(t, PeerGroup(netip.MustParseAddr("2001:db8::1")), PeerGroup(netip.MustParseAddr("2001:db8::ffff:1")))
	require.NotEqual(t, PeerGroup(netip.MustParseAddr("2001:db8::1")), PeerGroup(netip.MustParseAddr("2001:db8:0:1::1")))
}

type serverStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s serverStream) Context() context.Context { return s.ctx }
