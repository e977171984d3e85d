package grpcclient

import (
	"context"
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestPythonGRPC: the same with gRPC's C core, an independent implementation.
func TestPythonGRPC(t *testing.T) {
	python := pythonWithGRPC(t)
	w := newWorld(t, map[string][]string{"east": {"127.0.0.21"}, "west": {"127.0.0.22"}, "south": {"127.0.0.23"}})
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, python, "testdata/client.py", target, "30", "127.0.0.21", "127.0.0.22", "127.0.0.23")
	cmd.Env = append(os.Environ(), "GRPC_XDS_BOOTSTRAP_CONFIG="+string(w.bootstrap()))
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// pythonWithGRPC finds an interpreter that has grpcio.
func pythonWithGRPC(t *testing.T) string {
	t.Helper()
	for _, p := range []string{"/usr/bin/python3", "python3"} {
		if exec.CommandContext(t.Context(), p, "-c", "import grpc").Run() == nil {
			return p
		}
	}
	t.Skip("skipped: no python3 with grpcio; Debian has it as python3-grpcio")
	return ""
}
