package mesh

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseIdentity(t *testing.T) {
	id, err := ParseIdentity("spiffe://cluster.local/ns/shop/sa/web")
	require.NoError(t, err)
	require.Equal(t, Identity{"cluster.local", "shop", "web"}, id)
	require.Equal(t, "spiffe://cluster.local/ns/shop/sa/web", id.SPIFFE())
	require.Empty(t, Identity{}.SPIFFE())
	require.True(t, Identity{}.IsZero())

	for _, bad := range []string{
		"", "cluster.local/ns/shop/sa/web", "https://cluster.local/ns/shop/sa/web", "SPIFFE://cluster.local/ns/shop/sa/web",
		"spiffe:///ns/shop/sa/web", "spiffe://td/ns//sa/web", "spiffe://td/ns/shop/sa/", "spiffe://td/ns/shop/sa/web/more",
		"spiffe://td/sa/shop/ns/web", "spiffe://td/ns/shop",
	} {
		_, err := ParseIdentity(bad)
		require.ErrorContains(t, err, "parse identity", bad)
	}
}

func FuzzParseIdentity(f *testing.F) {
	f.Add("spiffe://cluster.local/ns/shop/sa/web")
	f.Add("spiffe://td/ns//sa/")
	f.Add("spiffe://a/ns/b/sa/c/d")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseIdentity(s)
		if err != nil {
			if !id.IsZero() {
				t.Fatalf("an error and %v", id)
			}
			return
		}
		// Only what reads back the same is accepted, with nothing empty and no
		// part that could be two.
		if id.SPIFFE() != s {
			t.Fatalf("%q became %q", s, id.SPIFFE())
		}
		for _, part := range []string{id.TrustDomain, id.Namespace, id.ServiceAccount} {
			if part == "" || strings.Contains(part, "/") {
				t.Fatalf("part %q in %q", part, s)
			}
		}
	})
}
