package ca

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/isthmus-mesh/isthmus/mesh"
)

func TestMakeRootAndIntermediates(t *testing.T) {
	c, dir := newClock(), t.TempDir()
	root, err := MakeRoot(RootOptions{Dir: filepath.Join(dir, "root"), Organization: "Example", Clock: c.Now})
	require.NoError(t, err)
	require.True(t, root.IsCA)
	var certs []string
	for _, cluster := range []string{"east", "west"} {
		out := filepath.Join(dir, cluster)
		cert, err := MakeIntermediate(IntermediateOptions{RootDir: filepath.Join(dir, "root"), Dir: out, Cluster: cluster, Clock: c.Now})
		require.NoError(t, err)
		require.True(t, cert.MaxPathLenZero)
		require.Equal(t, []string{cluster}, cert.Subject.Locality)
		entries, err := os.ReadDir(out)
		require.NoError(t, err)
		require.Len(t, entries, 4)
		for _, e := range entries {
			info, err := e.Info()
			require.NoError(t, err)
			want := fs.FileMode(0o644)
			if e.Name() == "ca-key.pem" {
				want = 0o600
			}
			require.Equal(t, want, info.Mode().Perm(), e.Name())
		}
		// What was written is what the source of another cluster takes.
		b, err := NewFileSource(out, mesh.ObjectRef{}, c.Now).Load(t.Context())
		require.NoError(t, err)
		require.Equal(t, root.Raw, b.Anchor.Raw)
		issued, _ := sign(t, newAuthority(t, c, b), workload("a", "b"), 0)
		require.Len(t, issued.Chain, 3)
		certs = append(certs, issued.Chain[2])
		verifies(t, issued.Chain, c.Now())
	}
	require.Equal(t, certs[0], certs[1], "clusters share one root")
}

func TestMakeIntermediateEndsWithItsRoot(t *testing.T) {
	c, dir := newClock(), t.TempDir()
	root, err := MakeRoot(RootOptions{Dir: filepath.Join(dir, "r"), Lifetime: 24 * time.Hour, Clock: c.Now})
	require.NoError(t, err)
	cert, err := MakeIntermediate(IntermediateOptions{RootDir: filepath.Join(dir, "r"), Dir: filepath.Join(dir, "i"), Clock: c.Now})
	require.NoError(t, err)
	require.Equal(t, root.NotAfter, cert.NotAfter)
}

func TestOfflineNeverOverwrites(t *testing.T) {
	c, dir := newClock(), t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "root-cert.pem"), []byte("precious"), 0o600))
	_, err := MakeRoot(RootOptions{Dir: dir, Clock: c.Now})
	require.ErrorContains(t, err, "exists already")
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 1, "nothing else was written")
	_, err = MakeIntermediate(IntermediateOptions{RootDir: filepath.Join(dir, "nowhere"), Dir: dir, Clock: c.Now})
	require.ErrorIs(t, err, ErrNoBundle)
}
