package authn

import (
	"context"
	"net/netip"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// PeerCap bounds how many streams one peer address may hold open, so that a
// flood from one place leaves room for everybody else. Behind a NAT many
// proxies share an address: the limit is for floods, not for fairness.
type PeerCap struct {
	limit int

	mu   sync.Mutex
	open map[netip.Addr]int
}

// NewPeerCap returns a cap of limit streams per peer; a limit of 0 or less
// bounds nothing.
func NewPeerCap(limit int) *PeerCap { return &PeerCap{limit: limit, open: map[netip.Addr]int{}} }

// Acquire takes a place for a stream of the peer and reports whether there was
// one; then release must be called once when the stream ends.
func (p *PeerCap) Acquire(peer netip.Addr) (release func(), ok bool) {
	if p.limit <= 0 {
		return func() {}, true
	}
	peer = PeerGroup(peer)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open[peer] >= p.limit {
		return nil, false
	}
	p.open[peer]++
	return sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.open[peer]--; p.open[peer] == 0 {
			delete(p.open, peer)
		}
	}), true
}

// StreamInterceptor applies the cap to every stream of a gRPC server.
func (p *PeerCap) StreamInterceptor(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	release, ok := p.Acquire(PeerOf(ss.Context()))
	if !ok {
		return status.Error(codes.ResourceExhausted, "too many streams from this address: close some or try again later")
	}
	defer release()
	return handler(srv, ss)
}

// PeerOf is the address a gRPC call comes from, invalid if unknown.
func PeerOf(ctx context.Context) netip.Addr { return FromContext(ctx).Peer }

// PeerGroup is what counts as one peer: an IPv4 address, or the /64 network
// within which an IPv6 host chooses its addresses.
func PeerGroup(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if !a.Is6() {
		return a
	}
	p, err := a.Prefix(64)
	if err != nil {
		return a
	}
	return p.Addr()
}
