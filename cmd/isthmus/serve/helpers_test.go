package serve

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
)

func farFuture() time.Time { return time.Now().Add(time.Hour) }

// filesControl is a control plane over one empty folder.
func filesControl(t *testing.T) *Control {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "north"), 0o700))
	yaml := "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n"
	require.NoError(t, os.WriteFile(filepath.Join(dir, "north", "all.yaml"), []byte(yaml), 0o600))
	s := Defaults(func(string) string { return "" })
	s.Files, s.Primary, s.Namespace = dir, "north", "istio-system"
	s.GRPCAddr, s.SecureGRPCAddr, s.HTTPAddr, s.MonitoringAddr, s.HTTPSAddr = "", "127.0.0.1:0", "", "", ""
	s.Security.DebugNamespaces, s.Security.CADir = []string{"ops"}, filepath.Join(dir, "no-ca")
	c, err := New(s, Build{Version: "test"}, zap.NewNop())
	require.NoError(t, err)
	return c
}
