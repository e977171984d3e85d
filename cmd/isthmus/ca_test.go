package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/isthmus-mesh/isthmus/ca"
	"github.com/isthmus-mesh/isthmus/mesh"
)

// What the two commands write is a CA that the control plane takes.
func TestCACommands(t *testing.T) {
	dir := t.TempDir()
	root, east := filepath.Join(dir, "root"), filepath.Join(dir, "east")
	r := runCommand(t.Context(), "ca", "root", "--dir", root, "--organization", "Example")
	require.Zero(t, r.code, r.err)
	require.Contains(t, r.out, "O=Example")
	require.Contains(t, r.out, "offline")
	r = runCommand(t.Context(), "ca", "intermediate", "--root", root, "--cluster", "east", "--dir", east)
	require.Zero(t, r.code, r.err)
	require.Contains(t, r.out, "kubectl create secret generic cacerts")

	source := ca.NewFileSource(east, mesh.ObjectRef{}, nil)
	bundle, err := source.Load(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"Example"}, bundle.Anchor.Subject.Organization)
	require.Equal(t, []string{"east"}, bundle.Cert.Subject.Locality)
	key, err := os.Stat(filepath.Join(east, "ca-key.pem"))
	require.NoError(t, err)
	require.Zero(t, key.Mode().Perm()&0o077, "others must not read the key")

	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"ca", "root"}, exitUsage, "--dir"},
		{[]string{"ca", "root", "--dir", root}, exitFailed, "exists already"},
		{[]string{"ca", "root", "--dir", dir + "/x", "--lifetime", "1m"}, exitUsage, "--lifetime"},
		{[]string{"ca", "intermediate", "--dir", east}, exitUsage, "--root"},
		{[]string{"ca", "intermediate", "--root", dir + "/none", "--dir", dir + "/y"}, exitFailed, dir + "/none"},
		{[]string{"ca", "leaf"}, exitUsage, "takes no arguments"},
	} {
		r := runCommand(t.Context(), c.args...)
		require.Equal(t, c.code, r.code, "%v: %s", c.args, r.err)
		require.Contains(t, r.err, c.says)
	}
}
