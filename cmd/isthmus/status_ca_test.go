package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/isthmus-mesh/isthmus/ca"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/serve"
)

// rotations are overviews of one CA at different moments.
func rotations() map[string]serve.Overview {
	at := time.Date(2026, 11, 22, 16, 30, 0, 0, time.UTC)
	old := ca.Issuer{ID: "0123456789abcdef0123", NotAfter: at.Add(700 * time.Hour), Origin: "Secret istio-system/istio-ca-secret"}
	next := ca.Issuer{ID: "fedcba9876543210fedc", NotAfter: at.Add(87600 * time.Hour), Origin: "Secret istio-system/cacerts"}
	out := map[string]serve.Overview{}
	put := func(name string, p ca.Progress) {
		p.Threshold = 1
		out[name] = serve.Overview{At: at, Primary: "north", CA: &p}
	}
	put("none", ca.Progress{Phase: ca.PhaseIdle, Source: "/etc/cacerts", Problem: "load CA bundle from /etc/cacerts:\n ca-key.pem: missing"})
	put("idle", ca.Progress{Phase: ca.PhaseIdle, RotationState: ca.RotationState{Current: old}})
	put("distributing", ca.Progress{Phase: ca.PhaseDistributing, RotationState: ca.RotationState{Current: old, Next: &next},
		Share: ca.Share{Held: 3, Total: 4, Known: true},
		Waits: "1 more of 4 proxies must hold the new root; the signer switches by 2026-12-22T16:30:00Z at the latest"})
	put("unknown share", ca.Progress{Phase: ca.PhaseDistributing, RotationState: ca.RotationState{Current: old, Next: &next}, Waits: "1 of 2 replicas hand out both roots, all must"})
	put("retiring", ca.Progress{Phase: ca.PhaseRetiring, Error: "get Secret istio-system/isthmus-ca-rotation: timeout", Waits: "the last certificate under the old root ends by 2026-11-23T16:30:00Z",
		RotationState: ca.RotationState{Current: next, Retiring: []ca.Retiring{{Root: old.ID, IssuerEnd: old.NotAfter, Until: at.Add(24 * time.Hour)}}}})
	put("ended", ca.Progress{Phase: ca.PhaseIdle, RotationState: ca.RotationState{Current: ca.Issuer{ID: "00", NotAfter: at.Add(-90 * time.Minute)}}})
	return out
}

func TestStatusTellsOfTheCA(t *testing.T) {
	for name, lines := range map[string][]string{
		"none": {"certificate  id        ends  from", "issuer       none yet  -     /etc/cacerts", "  ! load CA bundle from /etc/cacerts: ca-key.pem: missing"},
		"idle": {"certificate  id            ends      from", "issuer       0123456789ab  in 29d4h  Secret istio-system/istio-ca-secret"},
		"distributing": {"certificate  id            ends        from",
			"issuer       0123456789ab  in 29d4h    Secret istio-system/istio-ca-secret",
			"next issuer  fedcba987654  in 3650d0h  Secret istio-system/cacerts",
			"  ! rotation of the root: distributing, 3 of 4 proxies hold the new root (100 % must); waits: " +
				"1 more of 4 proxies must hold the new root; the signer switches by 2026-12-22T16:30:00Z at the latest"},
		"unknown share": {"certificate  id            ends        from",
			"issuer       0123456789ab  in 29d4h    Secret istio-system/istio-ca-secret",
			"next issuer  fedcba987654  in 3650d0h  Secret istio-system/cacerts",
			"  ! rotation of the root: distributing; waits: 1 of 2 replicas hand out both roots, all must"},
		"retiring": {"certificate              id            ends        from",
			"issuer                   fedcba987654  in 3650d0h  Secret istio-system/cacerts",
			"old root, still trusted  0123456789ab  in 1d0h     -",
			"  ! rotation of the root: retiring; waits: the last certificate under the old root ends by 2026-11-23T16:30:00Z",
			"  ! get Secret istio-system/isthmus-ca-rotation: timeout"},
		"ended": {"certificate  id  ends             from", "issuer       00  ended 1h30m ago  -"},
	} {
		t.Run(name, func(t *testing.T) {
			want := "\nCERTIFICATES\n"
			for _, l := range lines {
				want += "  " + l + "\n"
			}
			var out bytes.Buffer
			require.NoError(t, report{o: rotations()[name]}.print(&out))
			require.Contains(t, out.String(), want)
		})
	}
	var out bytes.Buffer
	require.NoError(t, report{}.print(&out))
	require.NotContains(t, out.String(), "CERTIFICATES", "no CA runs")
}

// The command and its JSON carry it too.
func TestStatusCommandTellsOfTheCA(t *testing.T) {
	o := rotations()["distributing"]
	body, err := json.Marshal(o)
	require.NoError(t, err)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) }))
	defer srv.Close()
	r := runCommand(t.Context(), "status", "--address", srv.URL)
	require.Zero(t, r.code, r.err)
	require.Contains(t, r.out, "3 of 4 proxies hold the new root")
	r = runCommand(t.Context(), "status", "-o", "json", "--address", srv.URL)
	require.Zero(t, r.code, r.err)
	var got struct {
		CA struct {
			Phase, Waits string
			Share        ca.Share
		}
	}
	require.NoError(t, json.Unmarshal([]byte(r.out), &got))
	require.Equal(t, "distributing", got.CA.Phase)
	require.Equal(t, o.CA.Share, got.CA.Share)
	require.Equal(t, o.CA.Waits, got.CA.Waits)
}
