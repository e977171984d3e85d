package serve

import (
	"context"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/isthmus-mesh/isthmus/ca/authn"
)

// secured reports whether the CA and everything over TLS is to run.
func (c *Control) secured() bool { return c.settings.SecureGRPCAddr != "" }

// securityParts are what the CA needs to run.
func (c *Control) securityParts() ([]part, error) {
	if !c.secured() {
		return nil, nil
	}
	parts := []part{{"certificate authority", c.trust.run}}
	if c.kube != nil {
		roots, err := newRoots(c)
		if err != nil {
			return nil, err
		}
		parts = append(parts, part{"gateway secrets", c.secrets.run}, part{"pull secrets", c.pulls.run}, part{"root distribution", func(ctx context.Context) error {
			defer close(c.kube.written)
			return roots.run(ctx)
		}})
	}
	return parts, nil
}

// serveSecure serves ADS and the CSR service over TLS until the context ends.
func (c *Control) serveSecure(l net.Listener) func(context.Context) error {
	return c.serveGRPC(l, func(options []grpc.ServerOption) (*grpc.Server, error) {
		serving := c.trust.serving.Load()
		if serving == nil {
			return nil, errNoServing
		}
		peers := authn.NewPeerCap(c.settings.Security.StreamsPerPeer)
		srv := grpc.NewServer(append(options, grpc.Creds(credentials.NewTLS(serving.TLSConfig())), grpc.ChainStreamInterceptor(peers.StreamInterceptor))...)
		c.xds.Register(srv)
		c.trust.service.Register(srv)
		healthpb.RegisterHealthServer(srv, health.NewServer())
		return srv, nil
	})
}

// servePlaintext serves ADS without TLS until the context ends.
func (c *Control) servePlaintext(l net.Listener) func(context.Context) error {
	return c.serveGRPC(l, func(options []grpc.ServerOption) (*grpc.Server, error) {
		srv := grpc.NewServer(options...)
		c.xds.Register(srv)
		return srv, nil
	})
}
