package multicluster

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/isthmus-mesh/isthmus/mesh"
)

func named(cluster string) string {
	return `{current-context: x, contexts: [{name: x, context: {cluster: ` + cluster + `, user: u}}],
 clusters: [{name: ` + cluster + `, cluster: {server: "https://10.1.2.3"}}], users: [{name: u, user: {token: t}}]}`
}

func write(t *testing.T, dir, name, content string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
}

// idsOf maps file names to what they claim; a problem is marked with "!".
func idsOf(s snapshot) map[string]string {
	out := map[string]string{}
	for _, o := range s.objects {
		id := string(o.entries[0].id)
		if o.entries[0].problem != "" {
			id += "!"
		}
		out[filepath.Base(o.origin.Name)] = id
	}
	return out
}

func TestDirectoryRead(t *testing.T) {
	dir := t.TempDir()
	d := newDirectory(dir, zap.NewNop())
	write(t, dir, "a.yaml", named("c2"))
	write(t, dir, "b.yml", named("c3"))
	write(t, dir, "c.json", `{"contexts": [{"name": "y", "context": {"cluster": "c4"}}]}`)
	write(t, dir, "d.yaml", `clusters: [{name: c5}, {name: c6}]`)
	write(t, dir, "e.yaml", `{current-context: gone, contexts: [{name: y, context: {cluster: c7}}], clusters: [{name: other}]}`)
	write(t, dir, "readme.txt", named("no"))
	write(t, dir, ".hidden.yaml", named("no"))
	write(t, dir, "garbage.yaml", "[")
	require.NoError(t, os.Mkdir(filepath.Join(dir, "dir.yaml"), 0o700))
	require.NoError(t, syscall.Mkfifo(filepath.Join(dir, "pipe.yaml"), 0o600)) // reading it would block for ever
	require.NoError(t, os.Symlink(filepath.Join(dir, "nowhere"), filepath.Join(dir, "dangling.yaml")))
	s, err := d.read()
	require.NoError(t, err)
	require.Equal(t, map[string]string{"a.yaml": "c2", "b.yml": "c3", "c.json": "c4", "d.yaml": "c5", "e.yaml": "c7", "garbage.yaml": "!"}, idsOf(s))
	require.Equal(t, filepath.Join(dir, "a.yaml"), s.objects[0].origin.String())
	again, err := d.read()
	require.NoError(t, err)
	require.Equal(t, s.version(), again.version())

	// A file that becomes unreadable keeps its cluster, one that goes gives it up.
	write(t, dir, "a.yaml", "half wri")
	require.NoError(t, os.Remove(filepath.Join(dir, "b.yml")))
	broken, err := d.read()
	require.NoError(t, err)
	require.Equal(t, "c2!", idsOf(broken)["a.yaml"])
	require.NotContains(t, idsOf(broken), "b.yml")
	require.NotEqual(t, s.version(), broken.version())
	broken, err = d.read()
	require.NoError(t, err)
	require.Equal(t, "c2!", idsOf(broken)["a.yaml"], "it is remembered for as long as the file is there")
	write(t, dir, "a.yaml", named("c9"))
	fixed, err := d.read()
	require.NoError(t, err)
	require.Equal(t, "c9", idsOf(fixed)["a.yaml"])

	write(t, dir, "big.yaml", named("c2")+string(make([]byte, MaxKubeconfig)))
	s, err = d.read()
	require.NoError(t, err)
	require.Equal(t, "!", idsOf(s)["big.yaml"])

	require.NoError(t, os.RemoveAll(dir))
	_, err = d.read()
	require.ErrorIs(t, err, os.ErrNotExist, "a directory that cannot be listed is not an empty one")
}

// TestDirectoryFollowsEdits watches a real directory, laid out as a mounted
// volume: files are links into a directory that is swapped as a whole.
func TestDirectoryFollowsEdits(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "..1"), 0o700))
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "..2"), 0o700))
	write(t, dir, "..1/a.yaml", named("c2"))
	write(t, dir, "..2/a.yaml", named("c3"))
	require.NoError(t, os.Symlink("..1", filepath.Join(dir, "..data")))
	require.NoError(t, os.Symlink("..data/a.yaml", filepath.Join(dir, "a.yaml")))

	ctx, cancel := context.WithCancel(t.Context())
	reports, done := make(chan snapshot, 100), make(chan error, 1)
	go func() {
		done <- newDirectory(dir, zap.NewNop()).run(ctx, func(s snapshot) { reports <- s }, func(string) {})
	}()
	until := func(want map[string]string) {
		for s := range reports { // what is between is of no interest
			if got := idsOf(s); len(got) == len(want) {
				same := true
				for k, v := range want {
					same = same && got[k] == v
				}
				if same {
					return
				}
			}
		}
	}
	until(map[string]string{"a.yaml": "c2"})
	require.NoError(t, os.Symlink("..2", filepath.Join(dir, "..tmp")))
	require.NoError(t, os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data")))
	until(map[string]string{"a.yaml": "c3"})
	write(t, dir, "b.yaml", named("c4"))
	until(map[string]string{"a.yaml": "c3", "b.yaml": "c4"})
	require.NoError(t, os.Remove(filepath.Join(dir, "b.yaml")))
	until(map[string]string{"a.yaml": "c3"})
	cancel()
	require.NoError(t, <-done)
}

func TestDirectoryThatIsMissing(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	failures, done := make(chan string, 10), make(chan error, 1)
	d := newDirectory(filepath.Join(t.TempDir(), "gone"), zap.NewNop())
	go func() {
		done <- d.run(ctx, func(snapshot) { t.Error("reported") }, func(m string) { failures <- m })
	}()
	require.Contains(t, <-failures, "no such file")
	cancel()
	require.NoError(t, <-done)
}

func TestTwoFilesOneCluster(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "b.yaml", named("c2"))
	write(t, dir, "a.yaml", named("c2"))
	s, err := newDirectory(dir, zap.NewNop()).read()
	require.NoError(t, err)
	var claims []claim
	for _, o := range s.objects {
		claims = append(claims, claim{id: o.entries[0].id, origin: o.origin, content: o.entries[0].content})
	}
	d := decide(claims)
	require.Equal(t, filepath.Join(dir, "a.yaml"), d.owners[mesh.ClusterID("c2")].origin.Name)
	require.Len(t, d.refusals, 1)
}
