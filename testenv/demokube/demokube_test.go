package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/testenv/apiserver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The whole demo on real API servers: secrets made by the real command, read by
// the real process, seen by real streams.
func TestOnce(t *testing.T) {
	apiserver.NeedBinary(t)
	binary := filepath.Join(t.TempDir(), "isthmus")
	built, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "../../cmd/isthmus").CombinedOutput()
	require.NoError(t, err, string(built))

	stdout := os.Stdout
	r, w, err := os.Pipe()
	require.NoError(t, err)
	text := make(chan string)
	go func() {
		b, _ := io.ReadAll(r)
		text <- string(b)
	}()
	os.Stdout = w
	err = run(t.Context(), options{isthmus: binary, world: "../../manifests/demo", primary: "north", from: "web",
		hosts: "checkout,legacy", once: true})
	os.Stdout = stdout
	require.NoError(t, w.Close())
	out := <-text
	require.NoError(t, err, out)

	for _, want := range []string{
		`island +ok +synced +current +island .*istio-system/istio-remote-secret-island`,
		`south +ok +synced +current +mainland .*istio-system/istio-remote-secret-south`,
		`island/web-v1-0\.shop .*synced CDS EDS LDS RDS`,
		`198\.51\.100\.20:15443 \(gateway\)`,
		`- 10\.1\.0\.17:8080 .*GatewayNotMTLS`,
	} {
		require.Regexp(t, want, out)
	}
}

func TestServiceRange(t *testing.T) {
	for text, want := range map[string]string{
		"":                               "",
		"kind: Pod\nspec: {nodeName: a}": "",
		"kind: Service\nspec: {clusterIP: None}\n---\nkind: Service\nspec: {clusterIP: 10.103.7.11}": "10.103.0.0/16",
		"kind: Service\nspec: {clusterIP: fd00::1}":                                                  "",
	} {
		require.Equal(t, want, serviceRange([][]byte{[]byte(text)}), text)
	}
}

func TestPick(t *testing.T) {
	const line = "2026-11-22T16:00:00Z  info  plaintext ADS on 127.0.0.1:4711"
	require.Equal(t, "127.0.0.1:4711", pick("", line, "plaintext ADS on "))
	require.Equal(t, "known", pick("known", line, "plaintext ADS on "))
	require.Empty(t, pick("", line, "http on "))
	require.Empty(t, pick("", "http on ", "http on "))
}
