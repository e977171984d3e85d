package build

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// TestExplainGolden shows what people read: text and JSON.
func TestExplainGolden(t *testing.T) {
	l := netLab(nil, gatewayAt("203.0.113.1"), gatewayAt("203.0.113.2"))
	webPod(l, "c1", "10.0.0.1", inRegion("r1"))
	webPod(l, "c1", "10.0.0.2", inRegion("r1"), inHealth(mesh.HealthNotReady))
	webPod(l, "c2", "10.0.0.1", inRegion("r2"))
	webPod(l, "c2", "10.0.0.2", inRegion("r2"), plain)
	webPod(l, "c3", "10.0.0.3")
	st := labPods(labService("web", "shop", labPorts(labPort("web", 80, mesh.ProtocolHTTP)), nil), "c3", "", "10.0.0.4")
	l.services("c3", st)
	x := Explain(l.in(), viewOn("n1"), webKey.Hostname, 80)
	golden(t, "explain/web.txt", []byte(x.Text()))
	raw, err := json.MarshalIndent(x, "", " ")
	require.NoError(t, err)
	golden(t, "explain/web.json", append(raw, '\n'))
}

func TestExplainNotes(t *testing.T) {
	l := shopLab()
	grpc := labSidecar(dialect(mesh.DialectGRPC))
	noted := func(v View, host mesh.Hostname, port uint16) string {
		x := Explain(l.in(), v, host, port)
		require.NotEmpty(t, x.Notes)
		require.Contains(t, x.Text(), x.Notes[0])
		return x.Notes[0]
	}
	require.Contains(t, noted(grpc, "nobody.example", 80), "no cluster has a service with the host nobody.example")
	require.Contains(t, noted(grpc, "hidden.shop.svc.cluster.local", 80), "not visible to namespace shop (exportTo elsewhere)")
	require.Contains(t, noted(grpc, "alias.shop.svc.cluster.local", 80), "another name for web.shop.svc.cluster.local")
	require.Contains(t, noted(grpc, "web.shop.svc.cluster.local", 81), "its ports are 80 http, 90 grpc, 91 any")
	require.Contains(t, noted(grpc, "web.shop.svc.cluster.local", 53), "no port 53 that proxies serve")
	require.Contains(t, noted(labSidecar(), "store.shop.svc.cluster.local", 7000), "headless")

	l.services("c1", labService("kept", "other", labTwoPorts, nil, func(d *mesh.Definition) { d.Private, d.ExportTo = true, []string{"*"} }))
	require.Contains(t, noted(labSidecar(), "kept.other.svc.cluster.local", 80), "not visible to namespace shop (serviceEntryVisibility keeps it within its own)")

	l = netLab(localShop(true))
	webPod(l, "c2", "10.0.0.1")
	notes := Explain(l.in(), viewOn("n1"), webKey.Hostname, 80).Notes
	require.Contains(t, notes[0], "cluster-local: only endpoints in c1 count")
	require.Contains(t, notes[1], "no endpoint is kept")
	webPod(l, "c1", "10.0.0.1", inHealth(mesh.HealthDraining))
	require.Contains(t, Explain(l.in(), viewOn("n1"), webKey.Hostname, 80).Notes[1], "no endpoint that is kept is ready")
}

func TestExplainUpstream(t *testing.T) {
	l := netLab(nil)
	webPod(l, "c1", "10.0.0.1", plain)
	x, ok := ExplainUpstream(l.in(), viewOn("n1"), "outbound_.80_._.web.shop.svc.cluster.local")
	require.True(t, ok)
	require.Equal(t, VerdictSNINotMTLS, x.Candidates[0].Verdict)
	require.Equal(t, "outbound_.80_._.web.shop.svc.cluster.local", x.Upstream)
	_, ok = ExplainUpstream(l.in(), viewOn("n1"), "inbound|80||")
	require.False(t, ok)
}
