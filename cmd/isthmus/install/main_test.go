package install_test

import (
	"bytes"
	"context"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pmezard/go-difflib/difflib"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/testenv/apiserver"
)

func update() bool { return flag.Lookup("update").Value.String() == "true" }

func TestMain(m *testing.M) {
	flag.Bool("update", false, "rewrite golden files and generated files")
	goleak.VerifyTestMain(lending{m})
}

// lending stops the cluster before leaks are looked for.
type lending struct{ *testing.M }

func (l lending) Run() int {
	defer func() {
		if shared.cluster != nil {
			_ = shared.cluster.Stop()
		}
	}()
	return l.M.Run()
}

// shared is the API server of all tests; they have namespaces and releases of
// their own.
var shared struct{ cluster *apiserver.Cluster } //nolint:gochecknoglobals // one server per test binary

// cluster returns the API server, started on first use.
func cluster(t *testing.T) *apiserver.Cluster {
	t.Helper()
	apiserver.NeedBinary(t)
	if shared.cluster == nil {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		c, err := apiserver.Start(ctx, apiserver.Config{Name: "east"})
		require.NoError(t, err)
		shared.cluster = c
	}
	return shared.cluster
}

// golden compares text with a file, or writes the file.
func golden(t *testing.T, file string, text []byte) {
	t.Helper()
	if update() {
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, text, 0o644))
		return
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err, "run: go test -update")
	if !bytes.Equal(want, text) {
		diff, err := difflib.GetUnifiedDiffString(difflib.UnifiedDiff{A: difflib.SplitLines(string(want)), B: difflib.SplitLines(string(text)), Context: 2})
		require.NoError(t, err)
		t.Fatalf("%s is not current: run go test -update and read the diff\n%s", file, diff)
	}
}

func values(t *testing.T, text string) map[string]any {
	t.Helper()
	out := map[string]any{}
	require.NoError(t, yaml.Unmarshal([]byte(text), &out))
	return out
}
