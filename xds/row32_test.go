package xds

import (
	"strings"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Row 32: a first request without a node, or with metadata larger than anybody
// needs, ends the stream with InvalidArgument, which names the field. Others are
// not concerned.
func TestRow32NodeMetadata(t *testing.T) {
	w := twoServices(t, nil)
	ads := w.dial(t)
	large := labNode("10.9.9.1", "east", "net-east", "shop", map[string]any{"X": strings.Repeat("x", 300<<10)})
	for field, req := range map[string]*discoveryv3.DiscoveryRequest{
		"node.id: missing":       {TypeUrl: TypeCDS},
		"node.metadata: node of": {TypeUrl: TypeCDS, Node: large},
	} {
		st, err := ads.StreamAggregatedResources(deadline(t))
		require.NoError(t, err)
		require.NoError(t, st.Send(req))
		_, err = st.Recv()
		require.Equal(t, codes.InvalidArgument, status.Code(err), field)
		require.ErrorContains(t, err, field)
		require.Less(t, len(err.Error()), 4096, "it is not sent back")
	}
	st, err := ads.StreamAggregatedResources(deadline(t))
	require.NoError(t, err)
	require.NoError(t, st.Send(&discoveryv3.DiscoveryRequest{TypeUrl: TypeCDS, Node: labNode("10.9.9.2", "east", "net-east", "shop", nil)}))
	resp, err := st.Recv()
	require.NoError(t, err)
	require.NotEmpty(t, resp.Resources)
}
