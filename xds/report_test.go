package xds

import (
	"testing"
	"testing/synctest"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/stretchr/testify/require"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// TestReports: what a proxy reports of itself is passed on, and not answered.
func TestReports(t *testing.T) {
	bothProtocols(t, func(t *testing.T, delta bool) {
		var got []Report
		w := twoServices(t, func(c *Config) {
			c.Reports = map[string]func(*mesh.Proxy, Report){TypeHealth: func(p *mesh.Proxy, r Report) {
				require.NotEmpty(t, p.ID)
				got = append(got, r)
			}}
		})
		defer w.stop()
		c := connected(t, w, delta)
		defer c.close()
		settle(c)
		send := func(e *rpcstatus.Status) {
			if delta {
				c.sendDelta(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: TypeHealth, ErrorDetail: e})
			} else {
				c.sendSotW(&discoveryv3.DiscoveryRequest{TypeUrl: TypeHealth, ErrorDetail: e})
			}
			synctest.Wait()
		}
		send(nil)
		send(&rpcstatus.Status{Code: 500, Message: "connection refused"})
		require.Equal(t, []Report{{}, {Failed: true, Message: "connection refused"}}, got)
		require.Nil(t, c.p.take())
	})
}
