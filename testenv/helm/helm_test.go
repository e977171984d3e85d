package helm

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/isthmus-mesh/isthmus/manifests"
)

const (
	folder = "../../manifests"
	system = manifests.DefaultNamespace
)

// binary is helm, built once for all tests.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "isthmus-helm-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "helm")
	if out, err := exec.Command("go", "build", "-o", path, "helm.sh/helm/v4/cmd/helm").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build helm: %w\n%s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := binary(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// command is helm with a home of its own.
type command struct {
	t          *testing.T
	binary     string
	home       string
	kubeconfig string // "" for what needs no cluster
}

func newCommand(t *testing.T) *command {
	t.Helper()
	path, err := binary()
	require.NoError(t, err)
	return &command{t: t, binary: path, home: t.TempDir()}
}

// try runs helm and returns what it wrote to stdout, and its error with the rest.
func (c *command) try(args ...string) (string, error) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.binary, args...)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	cmd.Env = append(os.Environ(), "HOME="+c.home, "HELM_CACHE_HOME="+c.home, "HELM_CONFIG_HOME="+c.home, "HELM_DATA_HOME="+c.home, "KUBECONFIG="+c.kubeconfig)
	err := cmd.Run()
	if err != nil {
		return out.String(), &failure{args, out.String() + said.String(), err}
	}
	return out.String(), nil
}

type failure struct {
	args []string
	said string
	err  error
}

func (f *failure) Error() string {
	return "helm " + strings.Join(f.args, " ") + ": " + f.err.Error() + "\n" + f.said
}

func (c *command) run(args ...string) string {
	c.t.Helper()
	out, err := c.try(args...)
	require.NoError(c.t, err)
	return out
}

// variants are the values that are checked of every chart: file of values, "" for
// those that are given, and what is rendered from them.
func variants(t *testing.T) map[string]manifests.Options {
	t.Helper()
	out := map[string]manifests.Options{}
	files, err := filepath.Glob(filepath.Join(folder, "testdata/values/*.yaml"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		chart, _, _ := strings.Cut(strings.TrimSuffix(filepath.Base(file), ".yaml"), "-")
		out[file] = manifests.Options{Chart: manifests.Chart(chart)}
	}
	return out
}

func chart(c manifests.Chart) string { return filepath.Join(folder, "charts", string(c)) }

// TestLint: helm finds nothing wrong, with all the values that we render with.
func TestLint(t *testing.T) {
	c := newCommand(t)
	for file, o := range variants(t) {
		said, err := c.try("lint", "--strict", "--namespace", system, "--values", file, chart(o.Chart))
		require.NoError(t, err)
		require.NotContains(t, said, "[WARNING]", file)
		require.NotContains(t, said, "[ERROR]", file)
	}
	c.run("lint", "--strict", "--namespace", system, chart(manifests.Primary))
}

// TestTemplate: helm renders what isthmus renders, and so what is checked in as
// plain YAML, but for the label that says who manages it.
func TestTemplate(t *testing.T) {
	c := newCommand(t)
	golden := func(name string) string { return filepath.Join(folder, "testdata/golden", name) }
	rendered := func(name string) string { return filepath.Join(folder, "rendered", name) }
	for want, o := range map[string]struct {
		chart manifests.Chart
		args  []string
	}{
		rendered("primary.yaml"):  {manifests.Primary, nil},
		rendered("remote.yaml"):   {manifests.Remote, []string{"--set", "global.multiCluster.clusterName=west,global.network=network-west,global.remotePilotAddress=192.0.2.10"}},
		rendered("eastwest.yaml"): {manifests.EastWest, []string{"--set", "networkGateway=network-east"}},
	} {
		same(t, c, want, o.chart, o.args...)
	}
	for file, o := range variants(t) {
		same(t, c, golden(filepath.Base(file)), o.Chart, "--values", file)
	}
}

func same(t *testing.T, c *command, file string, of manifests.Chart, args ...string) {
	t.Helper()
	raw, err := os.ReadFile(file)
	require.NoError(t, err)
	want := objects(t, string(raw))
	got := objects(t, c.run(append([]string{"template", manifests.DefaultRelease(of), chart(of), "--namespace", system, "--kube-version", "1.37.0"}, args...)...))
	require.Len(t, got, len(want), file)
	for key, o := range want {
		require.Equal(t, o, got[key], "%s: %s", file, key)
	}
}

// objects reads YAML by kind, namespace and name, without what tells helm and us apart.
func objects(t *testing.T, text string) map[string]map[string]any {
	t.Helper()
	text = strings.NewReplacer(`managed-by: "Helm"`, "managed-by: "+manifests.ManagedBy, "managed-by: Helm", "managed-by: "+manifests.ManagedBy).Replace(text)
	list, err := manifests.Decode(strings.NewReader(text))
	require.NoError(t, err)
	out := map[string]map[string]any{}
	for _, o := range list {
		out[o.GetKind()+" "+o.GetNamespace()+"/"+o.GetName()] = o.Object
	}
	return out
}
