package build

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares text with testdata/NAME, or rewrites the file.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", filepath.FromSlash(name))
	if *update {
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, got, 0o644))
		return
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err, "run the test with -update to write the golden file")
	require.Equal(t, string(want), string(got), "%s differs: run the test with -update if that is meant", file)
}

// resourceText renders resources in a stable form for people.
func resourceText(t *testing.T, list ...proto.Message) []byte {
	t.Helper()
	var out bytes.Buffer
	for _, m := range list {
		raw, err := protojson.Marshal(m)
		require.NoError(t, err)
		require.NoError(t, json.Indent(&out, raw, "", " "))
		out.WriteByte('\n')
	}
	return out.Bytes()
}
