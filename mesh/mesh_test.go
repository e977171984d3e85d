package mesh

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestLocality(t *testing.T) {
	for s, want := range map[string]Locality{
		"": {}, "r": {Region: "r"}, "r/z": {Region: "r", Zone: "z"}, "r/z/s": {"r", "z", "s"}, "r/z/s/t": {"r", "z", "s/t"}, "r//s": {Region: "r", SubZone: "s"},
	} {
		require.Equal(t, want, ParseLocality(s), s)
		require.Equal(t, s, ParseLocality(s).String())
		require.Equal(t, s == "", ParseLocality(s).IsZero())
	}
	require.Negative(t, Locality{Region: "a", Zone: "z"}.Compare(Locality{Region: "b"}))
	require.Zero(t, Locality{Region: "a"}.Compare(Locality{Region: "a"}))
}

func TestVisibleTo(t *testing.T) {
	tests := []struct {
		name             string
		export, fallback []string
		own, other       bool
	}{
		{"nothing said", nil, nil, true, true},
		{"all", []string{"*"}, []string{"~"}, true, true},
		{"own", []string{"."}, nil, true, false},
		{"none", []string{"~"}, nil, false, false},
		{"named", []string{"other"}, nil, false, true},
		{"own and named", []string{".", "other"}, nil, true, true},
		{"the mesh's default", nil, []string{"."}, true, false},
	}
	for _, tt := range tests {
		s := &Service{Key: ServiceKey{Namespace: "shop"}, Lead: &Definition{ExportTo: tt.export}}
		require.Equal(t, tt.own, s.VisibleTo("shop", tt.fallback), tt.name)
		require.Equal(t, tt.other, s.VisibleTo("other", tt.fallback), tt.name)
	}
}

func TestAddressesOfAService(t *testing.T) {
	a, b := []netip.Addr{netip.MustParseAddr("10.0.0.1")}, []netip.Addr{netip.MustParseAddr("10.1.0.1")}
	s := &Service{Clusters: []ClusterID{"lead", "east", "west"}, In: map[ClusterID]*Definition{"lead": {}, "east": {Addresses: a}, "west": {Addresses: b}}}
	require.Equal(t, b, s.Addresses("west"), "its own")
	require.Equal(t, a, s.Addresses("lead"), "the first that has one")
	require.Equal(t, a, s.Addresses("elsewhere"))
	require.Nil(t, (&Service{}).Addresses("x"))
}

func TestCanonicalLabels(t *testing.T) {
	require.Equal(t, "w", CanonicalName(nil, "w"))
	labels := map[string]string{"app": "a"}
	require.Equal(t, "a", CanonicalName(labels, "w"))
	labels["app.kubernetes.io/name"] = "n"
	require.Equal(t, "n", CanonicalName(labels, "w"))
	labels["service.istio.io/canonical-name"] = "c"
	require.Equal(t, "c", CanonicalName(labels, "w"))
	require.Equal(t, "latest", CanonicalRevision(labels))
	labels["version"] = "v1"
	require.Equal(t, "v1", CanonicalRevision(labels))
}

// Sorting is a total order: however endpoints come, they end alike, and those of
// one port are neighbours.
func TestEndpointOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var pods []*Workload
		for i := range 3 {
			pods = append(pods, &Workload{Cluster: ClusterID(rapid.SampledFrom([]string{"c1", "c2"}).Draw(t, "cluster")),
				Name: string(rune('a' + i)), Locality: Locality{Region: rapid.SampledFrom([]string{"", "r"}).Draw(t, "region")}})
		}
		list := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Endpoint {
			return Endpoint{Addr: netip.AddrFrom4([4]byte{10, 0, 0, rapid.Byte().Draw(t, "addr") % 2}), Port: uint16(rapid.IntRange(1, 2).Draw(t, "port")),
				PortName: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "name"), Weight: uint32(rapid.IntRange(0, 1).Draw(t, "weight")),
				Workload: rapid.SampledFrom(pods).Draw(t, "pod")}
		}), 0, 12).Draw(t, "endpoints")
		other := rapid.Permutation(list).Draw(t, "order")
		slices.SortFunc(list, Endpoint.Compare)
		slices.SortFunc(other, Endpoint.Compare)
		require.True(t, slices.EqualFunc(list, other, Endpoint.Equal))
		require.True(t, slices.IsSortedFunc(list, func(a, b Endpoint) int { return slices.Compare([]string{a.PortName}, []string{b.PortName}) }))
	})
}

func TestGatewayOrderPrefersHBONE(t *testing.T) {
	plain := NetworkGateway{Network: "n", Addr: netip.MustParseAddr("203.0.113.1"), Port: 15443}
	both := plain
	both.HBONEPort = 15008
	require.Positive(t, CompareGateways(plain, both))
	require.Negative(t, CompareGateways(both, plain))
	require.Zero(t, CompareGateways(both, both))
}

func TestObjectOrder(t *testing.T) {
	obj := func(name string, at int64) *Object {
		return &Object{Key: ObjectKey{Kind: KindGateway, Name: name}, Created: time.Unix(at, 0)}
	}
	list := []*Object{obj("a", 3), obj("c", 1), obj("b", 1)}
	slices.SortFunc(list, CompareObjects)
	require.Equal(t, []string{"b", "c", "a"}, []string{list[0].Key.Name, list[1].Key.Name, list[2].Key.Name})
}

func TestDefinitionEqual(t *testing.T) {
	a := &Definition{Name: "a", Ports: []Port{{Name: "http", Number: 80}}, Labels: map[string]string{"x": "y"}}
	b := *a
	b.Ports = slices.Clone(a.Ports)
	require.True(t, a.Equal(&b))
	b.Ports[0].Number = 81
	require.False(t, a.Equal(&b))
	require.False(t, a.Equal(nil))
	require.True(t, (*Definition)(nil).Equal(nil))
}

func TestReferences(t *testing.T) {
	require.Equal(t, "Gateway ns/a in cluster c", ObjectRef{Cluster: "c", Kind: "Gateway", Namespace: "ns", Name: "a"}.String())
	require.Equal(t, "Node a in cluster c", ObjectRef{Cluster: "c", Kind: "Node", Name: "a"}.String())
	k := ServiceKey{Namespace: "b", Hostname: "a"}
	require.Equal(t, "b/a", k.String())
	require.Negative(t, k.Compare(ServiceKey{Namespace: "a", Hostname: "b"}), "host names count first")
}
