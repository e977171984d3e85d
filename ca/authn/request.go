package authn

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Names of the headers that carry credentials, in gRPC metadata and in HTTP.
const (
	headerAuthorization = "authorization"
	headerClusterID     = "clusterid"
	bearerPrefix        = "Bearer "
)

// Bounds on what a caller may send.
const (
	// maxToken bounds a token, in octets. Kubernetes tokens are about 1 KiB.
	maxToken = 16 << 10
	// maxClusterID bounds a cluster ID, in octets.
	maxClusterID = 253
)

// Request is what a request offers as proof of who sent it.
type Request struct {
	// Token is the bearer token without its prefix, "" if there is none.
	Token string
	// Cluster is the metadata "clusterid": the cluster whose API server can
	// check the token, "" if not given. It is a claim.
	Cluster mesh.ClusterID
	// TLS is the state of the connection, nil on plaintext.
	TLS *tls.ConnectionState
	// Peer is the address the request came from, invalid if unknown.
	Peer netip.Addr
	// Malformed says why the credentials cannot be read at all, "" if they can.
	Malformed string
}

// FromContext reads the credentials of an incoming gRPC call.
func FromContext(ctx context.Context) Request {
	md, _ := metadata.FromIncomingContext(ctx)
	var r Request
	r.setHeaders(md.Get(headerAuthorization), md.Get(headerClusterID))
	if p, ok := peer.FromContext(ctx); ok {
		r.Peer = addrOf(p.Addr)
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			r.TLS = &info.State
		}
	}
	return r
}

// FromHTTP reads the credentials of an HTTP request.
func FromHTTP(req *http.Request) Request {
	r := Request{TLS: req.TLS}
	r.setHeaders(req.Header.Values(headerAuthorization), req.Header.Values(headerClusterID))
	if ap, err := netip.ParseAddrPort(req.RemoteAddr); err == nil {
		r.Peer = ap.Addr().Unmap()
	}
	return r
}

// setHeaders takes the token and the cluster ID. Several different values of
// one header are refused: a proxy in between and we might each read another.
func (r *Request) setHeaders(authorization, clusterID []string) {
	var tokens []string
	for _, v := range authorization {
		if len(v) >= len(bearerPrefix) && strings.EqualFold(v[:len(bearerPrefix)], bearerPrefix) {
			tokens = append(tokens, strings.TrimSpace(v[len(bearerPrefix):]))
		}
	}
	tokens, clusterID = distinct(tokens), distinct(clusterID)
	switch {
	case len(tokens) > 1:
		r.Malformed = "several bearer tokens"
	case len(clusterID) > 1:
		r.Malformed = "several values of clusterid"
	case len(tokens) == 1 && len(tokens[0]) > maxToken:
		r.Malformed = "token too long"
	case len(clusterID) == 1 && len(clusterID[0]) > maxClusterID:
		r.Malformed = "clusterid too long"
	}
	if r.Malformed != "" {
		return
	}
	if len(tokens) == 1 {
		r.Token = tokens[0]
	}
	if len(clusterID) == 1 {
		r.Cluster = mesh.ClusterID(clusterID[0])
	}
}

func distinct(in []string) []string {
	if len(in) < 2 {
		return in
	}
	out := slices.Clone(in)
	slices.Sort(out)
	return slices.Compact(out)
}

func addrOf(a net.Addr) netip.Addr {
	if a == nil {
		return netip.Addr{}
	}
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}
