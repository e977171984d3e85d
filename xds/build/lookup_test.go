package build

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/testenv/simulate"
)

// TestWhatIsLookedUp: names within the wildcard, on its ports, and no others.
func TestWhatIsLookedUp(t *testing.T) {
	l := entryLab(labEntry("wiki", &networking.ServiceEntry{Hosts: []string{"*.wiki.example"}, Resolution: networking.ServiceEntry_DYNAMIC_DNS}, "http:80", "tls:443", "tcp:3306"),
		labYAML(t, "led", `
hosts: [led.example]
http:
- match: [{uri: {prefix: /one}}]
  rewrite: {authority: one.wiki.example}
  route: [{destination: {host: "*.wiki.example", port: {number: 80}}}]
- match: [{uri: {prefix: /port}}]
  rewrite: {authority: "one.wiki.example:22"}
  route: [{destination: {host: "*.wiki.example", port: {number: 80}}}]
- route: [{destination: {host: "*.wiki.example", port: {number: 80}}}]
`))
	p := labSimulated(t, l, labSidecar())
	for name, c := range map[string]struct {
		to, sni, host, path string
		want                string
	}{
		"within":                 {"192.0.2.1:80", "", "one.wiki.example", "/", "*.wiki.example:80"},
		"in capitals":            {"192.0.2.1:80", "", "One.Two.WIKI.example", "/", "*.wiki.example:80"},
		"its port":               {"192.0.2.1:80", "", "one.wiki.example:80", "/", "*.wiki.example:80"},
		"the root of DNS":        {"192.0.2.1:80", "", "one.wiki.example.", "/", "*.wiki.example:80"},
		"another port":           {"192.0.2.1:80", "", "one.wiki.example:22", "/", "dropped"},
		"user information":       {"192.0.2.1:80", "", "127.0.0.1@one.wiki.example", "/", "dropped"},
		"led from outside":       {"192.0.2.1:80", "", "led.example", "/", "dropped"},
		"given another name":     {"192.0.2.1:80", "", "led.example", "/one", "*.wiki.example:80"},
		"given another port":     {"192.0.2.1:80", "", "led.example", "/port", "dropped"},
		"somebody else":          {"192.0.2.1:80", "", "else.test", "/", "PassthroughCluster"},
		"server name":            {"192.0.2.1:443", "one.wiki.example", "", "", "*.wiki.example:443"},
		"server name of another": {"192.0.2.1:443", "one.maps.example", "", "", "PassthroughCluster"},
		"no server name":         {"192.0.2.1:443", "", "", "", "PassthroughCluster"},
		"no name at all":         {"192.0.2.1:3306", "", "", "", "PassthroughCluster"},
	} {
		conn := simulate.Connection{To: netip.MustParseAddrPort(c.to), SNI: c.sni, TLS: c.sni != ""}
		if c.host != "" {
			conn.Request = &simulate.Request{Method: "GET", Host: c.host, Path: c.path}
		}
		a, err := p.Ask(conn)
		require.NoError(t, err)
		require.Equal(t, c.want, said(a), name)
	}
}

// TestLookupsAreExplained: what is looked up is no endpoint, and is told all the same.
func TestLookupsAreExplained(t *testing.T) {
	l := entryLab(labEntry("wiki", &networking.ServiceEntry{Hosts: []string{"*.wiki.example"}, Resolution: networking.ServiceEntry_DYNAMIC_DNS}, "http:80", "tls:443", "tcp:3306"))
	for port, told := range map[uint16]string{80: "Host header", 443: "server name"} {
		x := Explain(l.in(), labSidecar(), "*.wiki.example", port)
		require.Len(t, x.Candidates, 1)
		require.Equal(t, VerdictByRequest, x.Candidates[0].Verdict)
		require.True(t, x.Candidates[0].Kept)
		require.Contains(t, x.Candidates[0].Reason, told)
		require.Contains(t, x.Text(), "LookedUpByRequest")
	}
	require.Contains(t, Explain(l.in(), labSidecar(), "*.wiki.example", 3306).Notes[0], "has no port 3306")
	x := Explain(l.in(), labSidecar(dialect(mesh.DialectGRPC)), "*.wiki.example", 80)
	require.Empty(t, x.Candidates)
	require.Contains(t, x.Notes[0], "gRPC")
}
