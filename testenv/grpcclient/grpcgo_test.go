package grpcclient

import (
	"context"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/xds"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// TestGRPCGo: grpc-go's own xDS client resolves a service of three clusters,
// reaches every pod of each, and follows a pod that comes and a cluster that goes.
func TestGRPCGo(t *testing.T) {
	w := newWorld(t, map[string][]string{"east": {"127.0.0.11"}, "west": {"127.0.0.12"}, "south": {"127.0.0.13"}})
	answer(t, "127.0.0.14")
	resolver, err := xds.NewXDSResolverWithConfigForTesting(w.bootstrap())
	require.NoError(t, err)
	conn, err := grpc.NewClient("xds:///"+target, grpc.WithResolvers(resolver), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()

	reaches(t, conn, "127.0.0.11", "127.0.0.12", "127.0.0.13")
	w.write("west", "127.0.0.12", "127.0.0.14")
	reaches(t, conn, "127.0.0.11", "127.0.0.12", "127.0.0.13", "127.0.0.14")
	w.write("south")
	reaches(t, conn, "127.0.0.11", "127.0.0.12", "127.0.0.14")
}

// reaches calls until the servers that answer a round of calls are exactly those.
func reaches(t *testing.T, conn *grpc.ClientConn, want ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var got []string
	for ctx.Err() == nil {
		seen := map[string]bool{}
		for range 40 {
			var who wrapperspb.StringValue
			require.NoError(t, conn.Invoke(ctx, method, &emptypb.Empty{}, &who, grpc.WaitForReady(true)), "last answered: %v", got)
			seen[who.GetValue()] = true
		}
		if got = slices.Sorted(maps.Keys(seen)); slices.Equal(got, want) {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	require.Equal(t, want, got)
}
