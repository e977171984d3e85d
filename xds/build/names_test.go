package build

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/isthmus-mesh/isthmus/mesh"
)

func TestNamesAreThoseOfIstio(t *testing.T) {
	require.Equal(t, "outbound|80||reviews.shop.svc.cluster.local", UpstreamName(DirectionOutbound, 80, "", "reviews.shop.svc.cluster.local"))
	require.Equal(t, "inbound|8080||", UpstreamName(DirectionInbound, 8080, "", ""))
	require.Equal(t, "outbound_.80_.v1_.reviews.shop.svc.cluster.local", SNIName(80, "v1", "reviews.shop.svc.cluster.local"))
}

func TestParseNameRefuses(t *testing.T) {
	for _, name := range []string{
		"", "outbound", "outbound|80", "outbound|80|", "outbound|080||h", "outbound|65536||h", "outbound|-1||h", "outbound|x||h", "sideways|80||h",
		"outbound_.80_._.h", "BlackHoleCluster",
	} {
		_, ok := ParseUpstreamName(name)
		require.False(t, ok, name)
	}
	for _, name := range []string{"", "outbound|80||h", "inbound_.80_._.h", "outbound_.80_._.", "outbound_.80_.h", "outbound_.00_._.h"} {
		_, ok := ParseSNIName(name)
		require.False(t, ok, name)
	}
}

// TestNamesReadBack: a name reads back as what it was made of.
func TestNamesReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		id := UpstreamID{Direction: mixOf(t, "direction", DirectionOutbound, DirectionInbound), Port: rapid.Uint16().Draw(t, "port"),
			Subset: rapid.StringMatching(`[a-z0-9-]{0,8}`).Draw(t, "subset"),
			Host:   mesh.Hostname(rapid.StringMatching(`[a-z0-9*-]{1,8}(\.[a-z0-9-]{1,8}){0,3}`).Draw(t, "host")),
			SNI:    rapid.Bool().Draw(t, "SNI")}
		if id.SNI {
			id.Direction = DirectionOutbound
		}
		got, ok := parseAnyName(id.String())
		if !ok || got != id {
			t.Fatalf("%+v is %q, which reads %+v", id, id.String(), got)
		}
	})
}

// FuzzParseName: what is read from any text writes the same text, and nothing panics.
func FuzzParseName(f *testing.F) {
	for _, s := range []string{"outbound|80||a.b", "inbound|1||", "outbound_.80_.v1_.a.b", "outbound|080||a", "outbound_.80_._._.x", "||||"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if id, ok := parseAnyName(s); ok && id.String() != s {
			t.Fatalf("%q reads %+v, which is %q", s, id, id.String())
		}
	})
}
