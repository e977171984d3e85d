package xds

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// A stream ends with the credential that let it in, and not before; until then
// its caller is known.
func TestStreamEndsWithItsCredential(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := twoServices(t, func(c *Config) {
			c.Authenticate = func(context.Context, *mesh.Proxy) (Credential, error) {
				return Credential{Caller: "web", Expiry: time.Now().Add(time.Hour)}, nil
			}
		})
		defer w.stop()
		settle()
		c := w.client(true, labNode("10.9.9.9", "east", "net-east", "shop", nil))
		c.sendDelta(&discoveryv3.DeltaDiscoveryRequest{Node: c.node, TypeUrl: TypeCDS})
		time.Sleep(59 * time.Minute)
		synctest.Wait()
		require.Equal(t, []any{"web"}, w.srv.Callers())
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		require.Empty(t, w.srv.Callers())
		require.Equal(t, codes.Unauthenticated, c.p.ended.Code())
	})
}
