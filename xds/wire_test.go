package xds

import (
	"fmt"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/stretchr/testify/require"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

func thousand() []string {
	names := make([]string, 1000)
	for i := range names {
		names[i] = fmt.Sprintf("outbound|80||svc-%05d.ns-%d.svc.cluster.local", i, i%10)
	}
	return names
}

func marshal(t testing.TB, m proto.Message) []byte {
	b, err := proto.Marshal(m)
	require.NoError(t, err)
	return b
}

// FuzzRequest: reading a request by walking the wire gives what the generated
// parser gives, or the same refusal.
func FuzzRequest(f *testing.F) {
	long := string(make([]byte, 200))
	for _, m := range []proto.Message{
		&discoveryv3.DiscoveryRequest{TypeUrl: TypeEDS, ResourceNames: []string{"a", "", "b", long}, VersionInfo: "v", ResponseNonce: "00000000000000aa"},
		&discoveryv3.DiscoveryRequest{Node: &corev3.Node{Id: "sidecar~1.2.3.4~a.b~c"}, TypeUrl: TypeCDS, ErrorDetail: &rpcstatus.Status{Code: 3, Message: "no"}},
		&discoveryv3.DiscoveryRequest{ResourceLocators: []*discoveryv3.ResourceLocator{{Name: "x"}}},
		&discoveryv3.DeltaDiscoveryRequest{TypeUrl: TypeEDS, ResourceNamesSubscribe: []string{"a", "*"}, ResourceNamesUnsubscribe: []string{"b"},
			InitialResourceVersions: map[string]string{"a": "1", "": ""}, ResponseNonce: "n"},
		&discoveryv3.DeltaDiscoveryRequest{ErrorDetail: &rpcstatus.Status{Message: "no", Details: []*anypb.Any{{TypeUrl: "x"}}}},
	} {
		f.Add(marshal(f, m), true)
		f.Add(marshal(f, m), false)
	}
	two := append(marshal(f, &discoveryv3.DiscoveryRequest{TypeUrl: "a", ResourceNames: []string{"1"}}), marshal(f, &discoveryv3.DiscoveryRequest{TypeUrl: "b", ResourceNames: []string{"2"}})...)
	f.Add(two, false)
	f.Fuzz(func(t *testing.T, b []byte, delta bool) {
		sets := newNameSets()
		got := &request{delta: delta, sets: sets}
		err := got.decode(b)
		want := &request{delta: delta, sets: sets}
		wantErr := want.decodeFull(b)
		if wantErr != nil {
			require.Error(t, err)
			return
		}
		require.NoError(t, err)
		require.Equal(t, want.typeURL, got.typeURL)
		require.Equal(t, want.version, got.version)
		require.Equal(t, want.nonce, got.nonce)
		require.Equal(t, want.failed, got.failed)
		require.Equal(t, want.message, got.message)
		require.Equal(t, want.names.Names(), got.names.Names())
		require.Same(t, want.names, got.names)
		require.ElementsMatch(t, want.unsubscribe, got.unsubscribe)
		require.Equal(t, want.initial, got.initial)
		require.True(t, proto.Equal(want.node, got.node))
	})
}

func TestRepeatedNamesAreNotDecoded(t *testing.T) {
	b := marshal(t, &discoveryv3.DiscoveryRequest{TypeUrl: TypeEDS, ResourceNames: thousand(), ResponseNonce: "00000000000000aa", VersionInfo: "v"})
	var last uint64
	r := &request{sets: newNameSets(), known: func(url []byte) (uint64, string, bool) { return last, TypeEDS, last != 0 }}
	require.NoError(t, r.decode(b))
	require.False(t, r.sameNames)
	require.Equal(t, 1000, r.names.Len())
	set := r.names
	last = r.namesHash
	require.NoError(t, r.decode(b))
	require.True(t, r.sameNames)
	// Another stream that sends the same shares the set.
	other := &request{sets: r.sets}
	require.NoError(t, other.decode(b))
	require.Same(t, set, other.names)
	require.LessOrEqual(t, testing.AllocsPerRun(100, func() { _ = r.decode(b) }), 2.0, "only nonce and version are copied")
}

func BenchmarkDecodeACK(b *testing.B) {
	msg := marshal(b, &discoveryv3.DiscoveryRequest{TypeUrl: TypeEDS, ResourceNames: thousand(), ResponseNonce: "00000000000000aa", VersionInfo: "00000000000000aa"})
	var last uint64
	r := &request{sets: newNameSets(), known: func([]byte) (uint64, string, bool) { return last, TypeEDS, last != 0 }}
	require.NoError(b, r.decode(msg))
	last = r.namesHash
	b.Run("walk", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_ = r.decode(msg)
		}
	})
	b.Run("proto", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var m discoveryv3.DiscoveryRequest
			_ = proto.Unmarshal(msg, &m)
		}
	})
}

// TestResourceRecords: one buffer is a record of both protocols.
func TestResourceRecords(t *testing.T) {
	r := newResource(TypeEDS, "outbound|80||a", 7, []byte{0x0a, 1, 'x'})
	tail := appendTail(nil, []string{"gone"}, 1, 2)
	var d discoveryv3.DeltaDiscoveryResponse
	require.NoError(t, proto.Unmarshal(append(append(responseHead(TypeEDS, "me", true).ReadOnlyData(), r.Body...), tail...), &d))
	require.Equal(t, "outbound|80||a", d.Resources[0].Name)
	require.Equal(t, r.Version, d.Resources[0].Version)
	require.Equal(t, TypeEDS, d.Resources[0].Resource.TypeUrl)
	require.Equal(t, r.Message(), d.Resources[0].Resource.Value)
	require.Equal(t, []string{"gone"}, d.RemovedResources)
	require.Equal(t, "me", d.ControlPlane.Identifier)
	require.Equal(t, []string{hex16(1), hex16(2)}, []string{d.SystemVersionInfo, d.Nonce})

	var s discoveryv3.DiscoveryResponse
	require.NoError(t, proto.Unmarshal(append(append(responseHead(TypeEDS, "me", false).ReadOnlyData(), r.Body[r.sotw:]...), appendTail(nil, nil, 1, 2)...), &s))
	require.Equal(t, r.Message(), s.Resources[0].Value)
	require.Equal(t, "me", s.ControlPlane.Identifier)
	require.Equal(t, hex16(2), s.Nonce)
	require.Empty(t, s.ProtoReflect().GetUnknown())
}
