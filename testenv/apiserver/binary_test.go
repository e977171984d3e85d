package apiserver

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestBinary builds the server if need be; run alone and with -v, it shows
// how the build gets on.
func TestBinary(t *testing.T) {
	NeedBinary(t)
	path, err := Binary(t.Context())
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.NotZero(t, info.Mode()&0o100, "executable")
	assert.Greater(t, info.Size(), int64(50<<20), "whole")
}

func TestBinaryFromEnvironment(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mine")
	t.Setenv(binaryEnv, path)
	_, err := Binary(t.Context())
	require.ErrorIs(t, err, os.ErrNotExist)

	require.NoError(t, os.WriteFile(path, nil, 0o700))
	got, err := Binary(t.Context())
	require.NoError(t, err)
	assert.Equal(t, path, got)
}

func TestHashSource(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
		sum, err := hashSource(dir)
		if name != "go.sum" && err != nil {
			return ""
		}
		require.NoError(t, err)
		return sum
	}
	write("go.mod", "module m")
	first := write("go.sum", "sums")
	source := write("main.go", "package main")
	assert.NotEqual(t, first, source, "source counts")
	assert.Equal(t, source, write("main_test.go", "package main"), "tests do not")
	assert.Equal(t, source, write("README.md", "text"), "nor does text")
	assert.NotEqual(t, source, write("go.sum", "other sums"), "dependencies count")
}

func TestVersionFlags(t *testing.T) {
	source, err := sourceDir()
	require.NoError(t, err)
	version, err := kubernetesVersion(source)
	require.NoError(t, err)
	assert.Regexp(t, `^v1\.\d+\.\d+$`, version)
	assert.Equal(t, "-s -w"+
		" -X k8s.io/component-base/version.gitVersion=v1.36.3"+
		" -X k8s.io/component-base/version.gitMajor=1"+
		" -X k8s.io/component-base/version.gitMinor=36", ldflags("v1.36.3"))

	_, err = kubernetesVersion(t.TempDir())
	require.Error(t, err)
}

func TestLockFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := lockFile(t.Context(), path)
	require.NoError(t, err)

	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = lockFile(short, path)
	require.ErrorIs(t, err, context.DeadlineExceeded, "held")

	unlock()
	unlock, err = lockFile(t.Context(), path)
	require.NoError(t, err, "free again")
	unlock()
}

func TestRemoveUnused(t *testing.T) {
	root := t.TempDir()
	put := func(name string, age time.Duration) string {
		path := filepath.Join(root, cachePrefix+name, binaryName)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path, nil, 0o700))
		used := time.Now().Add(-age)
		require.NoError(t, os.Chtimes(path, used, used))
		return path
	}
	mine, recent, old := put("mine", 2*unusedAfter), put("recent", time.Hour), put("old", 2*unusedAfter)

	removeUnused(root, filepath.Dir(mine))
	assert.FileExists(t, mine)
	assert.FileExists(t, recent)
	assert.NoDirExists(t, filepath.Dir(old))
}

func TestDecode(t *testing.T) {
	objects, err := decode([]byte(`
---
# nothing but a comment
---
{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}}
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: b}}
- {apiVersion: v1, kind: Namespace, metadata: {name: c}}
`))
	require.NoError(t, err)
	var names []string
	for _, object := range objects {
		names = append(names, object.GetName())
	}
	assert.Equal(t, []string{"a", "b", "c"}, names)

	_, err = decode([]byte("kind: A\n---\nkind: [\n"))
	require.ErrorContains(t, err, "document 2")
}
