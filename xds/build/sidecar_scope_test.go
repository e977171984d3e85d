package build

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// TestHostsExcluded: what is imported is less what any entry of the listener
// excludes, wherever the entry stands.
func TestHostsExcluded(t *testing.T) {
	all := []string{"shop/a.ext", "bank/a.ext", "bank/b.ext"}
	for name, c := range map[string]struct {
		hosts []string
		want  []string // of all
	}{
		"nothing":                {[]string{"*/*"}, all},
		"a namespace":            {[]string{"~bank/*", "*/*"}, []string{"shop/a.ext"}},
		"the own one":            {[]string{"*/*", "~./*"}, []string{"bank/a.ext", "bank/b.ext"}},
		"a host of a namespace":  {[]string{"*/*", "~bank/a.ext"}, []string{"shop/a.ext", "bank/b.ext"}},
		"a host everywhere":      {[]string{"*/*", "~/A.ext"}, []string{"bank/b.ext"}},
		"the same, in full":      {[]string{"*/*", "~*/a.ext"}, []string{"bank/b.ext"}},
		"all":                    {[]string{"*/*", "~/*"}, nil},
		"more than was imported": {[]string{"bank/*", "~shop/*", "~/*.ext"}, nil},
	} {
		scope := newSidecarScope(&mesh.Object{}, &networking.Sidecar{Egress: []*networking.IstioEgressListener{{Hosts: c.hosts}}})
		var got []string
		for _, s := range all {
			if ns, host, _ := strings.Cut(s, "/"); scope.egress[0].imports("shop", ns, mesh.Hostname(host)) {
				got = append(got, s)
			}
		}
		require.Equal(t, c.want, got, name)
	}
}
