package file

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// patience is how long a test waits for what must happen.
const patience = 30 * time.Second

// reading is a source that runs, and what its sink knows.
type reading struct {
	dir      string
	problems *registry.Problems
	changed  chan struct{}

	mu       sync.Mutex
	replaces int
	applied  int
	services map[mesh.Hostname]registry.ServiceState
	objects  map[mesh.ObjectKey]*mesh.Object
	cluster  *registry.ClusterState
	told     []string // trust domains of settings, and "replace"
}

func (r *reading) note(f func()) {
	r.mu.Lock()
	f()
	r.mu.Unlock()
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

func (r *reading) Replace(u registry.Update) {
	r.note(func() { r.replaces++; r.told = append(r.told, "replace"); r.take(u) })
}

func (r *reading) Apply(u registry.Update) { r.note(func() { r.applied++; r.take(u) }) }

func (r *reading) Close(registry.Disposition) {}

func (r *reading) take(u registry.Update) {
	for _, s := range u.Services {
		if s.Definition == nil {
			delete(r.services, s.Key.Hostname)
		} else {
			r.services[s.Key.Hostname] = s
		}
	}
	for _, o := range u.Objects {
		if o.Object == nil {
			delete(r.objects, o.Key)
		} else {
			r.objects[o.Key] = o.Object
		}
	}
	if u.Cluster != nil {
		r.cluster = u.Cluster
	}
}

func (r *reading) await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(patience)
	for {
		r.mu.Lock()
		ok := holds()
		r.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-r.changed:
		case <-time.After(5 * time.Millisecond): // problems tell nobody
		case <-deadline:
			require.Fail(t, "did not happen: "+what)
		}
	}
}

// names lists the services that the sink knows.
func (r *reading) names() []string {
	var out []string
	for h := range r.services {
		out = append(out, strings.TrimSuffix(string(h), ".shop.svc.cluster.local"))
	}
	slices.Sort(out)
	return out
}

func (r *reading) awaitNames(t *testing.T, want ...string) {
	t.Helper()
	r.await(t, "services "+strings.Join(want, ", "), func() bool { return slices.Equal(r.names(), want) })
}

func (r *reading) awaitProblems(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	defer func() {
		if t.Failed() {
			t.Log("problems:", strings.Join(got, "\n"))
		}
	}()
	r.await(t, "problems "+strings.Join(want, "\n"), func() bool {
		got = nil
		for _, p := range r.problems.List() {
			got = append(got, fmt.Sprintf("%s: %s: %s", p.Object, p.Field, p.Message))
		}
		return len(got) == len(want) && !slices.ContainsFunc(want, func(w string) bool {
			return !slices.ContainsFunc(got, func(g string) bool { return strings.Contains(g, w) })
		})
	})
}

func start(t *testing.T, dir string, edit func(*Config)) *reading {
	t.Helper()
	r := &reading{dir: dir, problems: registry.NewProblems(nil), changed: make(chan struct{}, 1),
		services: map[mesh.Hostname]registry.ServiceState{}, objects: map[mesh.ObjectKey]*mesh.Object{}}
	c := Config{Dir: dir, Cluster: "east", Problems: r.problems}
	if edit != nil {
		edit(&c)
	}
	s, err := New(c)
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, r) }()
	t.Cleanup(func() {
		stop()
		require.NoError(t, <-done)
	})
	r.await(t, "first reading", func() bool { return r.replaces == 1 })
	return r
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	path := filepath.Join(dir, name)
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755)) //nolint:gosec // test data
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
}

func service(name string, port int) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: %s, namespace: shop}\nspec: {clusterIP: 10.0.0.1, ports: [{name: http, port: %d}]}\n", name, port)
}

func (r *reading) port(name string) uint16 {
	s, ok := r.services[mesh.Hostname(name+".shop.svc.cluster.local")]
	if !ok || len(s.Definition.Ports) == 0 {
		return 0
	}
	return s.Definition.Ports[0].Number
}

// TestEdits: files that change, come, go and are renamed over, in folders that do.
func TestEdits(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", service("a", 80))
	write(t, dir, "sub/b.json", `{"apiVersion":"v1","kind":"Service","metadata":{"name":"b","namespace":"shop"}}`)
	write(t, dir, ".hidden.yaml", service("hidden", 80))
	write(t, dir, ".git/c.yaml", service("hidden", 80))
	write(t, dir, "README.md", "not an object")
	r := start(t, dir, nil)
	r.awaitNames(t, "a", "b")

	write(t, dir, "a.yaml", service("a", 81))
	r.await(t, "edit", func() bool { return r.port("a") == 81 })
	write(t, dir, ".a.tmp", service("a", 82))
	require.NoError(t, os.Rename(filepath.Join(dir, ".a.tmp"), filepath.Join(dir, "a.yaml")))
	r.await(t, "file renamed over", func() bool { return r.port("a") == 82 })
	write(t, dir, "new/deeper/c.yml", service("c", 80))
	r.awaitNames(t, "a", "b", "c")
	write(t, dir, "new/deeper/c.yml", service("d", 80))
	r.awaitNames(t, "a", "b", "d")
	require.NoError(t, os.RemoveAll(filepath.Join(dir, "new")))
	r.awaitNames(t, "a", "b")
	require.NoError(t, os.Remove(filepath.Join(dir, "sub", "b.json")))
	r.awaitNames(t, "a")
	require.Equal(t, 1, r.replaces)
	require.Empty(t, r.problems.List())
}

// TestBadFile: a file that does not parse keeps its last good content, is named
// with its line, and does not concern the others.
func TestBadFile(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", service("a", 80))
	write(t, dir, "b.yaml", "kind: [")
	r := start(t, dir, nil)
	r.awaitNames(t, "a")
	r.awaitProblems(t, "File b.yaml in cluster east: line 1")
	write(t, dir, "a.yaml", service("a", 81)+"---\nkind: Service\n  bad: indentation\n")
	r.awaitProblems(t, "File b.yaml in cluster east: line 1", "File a.yaml in cluster east: line 7: mapping values are not allowed")
	require.Equal(t, uint16(80), r.port("a"))
	write(t, dir, "b.yaml", service("b", 80))
	r.awaitNames(t, "a", "b")
	write(t, dir, "a.yaml", service("a", 82))
	r.awaitProblems(t)
	r.await(t, "good content", func() bool { return r.port("a") == 82 })
}

// TestBadObjectInFile: an object that cannot be decoded keeps its last good
// version, and the rest of its file is served.
func TestBadObjectInFile(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", service("x", 80)+"---\n"+service("z", 80))
	r := start(t, dir, nil)
	write(t, dir, "a.yaml", strings.Replace(service("x", 81), "port: 81", "port: many", 1)+"---\n"+service("z", 81))
	r.awaitProblems(t, "Service shop/x in cluster east: spec.ports.port: a.yaml line 4: want int32, got string")
	r.await(t, "the other object", func() bool { return r.port("z") == 81 })
	require.Equal(t, uint16(80), r.port("x"))
	// Back to what is served already: the problem ends all the same.
	write(t, dir, "a.yaml", service("x", 80)+"---\n"+service("z", 81))
	r.awaitProblems(t)
	write(t, dir, "a.yaml", service("z", 81))
	r.awaitNames(t, "z")
}

// TestTwice: of two files that define one object the first by name wins,
// whichever was there first, and the other takes over when it goes.
func TestTwice(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "b.yaml", service("x", 2)+"---\n"+service("z", 2))
	r := start(t, dir, nil)
	write(t, dir, "a.yaml", "# first\n"+service("x", 1))
	r.await(t, "the first file wins", func() bool { return r.port("x") == 1 })
	r.awaitProblems(t, "File b.yaml in cluster east: : Service shop/x (line 1) is also in a.yaml line 2, which counts; remove one")
	require.NoError(t, os.Remove(filepath.Join(dir, "a.yaml")))
	r.await(t, "the other takes over", func() bool { return r.port("x") == 2 })
	r.awaitProblems(t)
}

// TestEmptied: a file that becomes empty is looked at twice, because editors
// empty files before they write them.
func TestEmptied(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", service("a", 80))
	f := &folder{dir: dir, cluster: "east", files: map[string]*state{}}
	read := func() (objects int, changed, again bool) {
		_, changed, again, err := f.read()
		require.NoError(t, err)
		return len(f.files["a.yaml"].good.objects), changed, again
	}
	n, changed, again := read()
	require.Equal(t, []any{1, true, false}, []any{n, changed, again})
	n, changed, again = read()
	require.Equal(t, []any{1, false, false}, []any{n, changed, again}, "nothing new")
	write(t, dir, "a.yaml", "")
	n, _, again = read()
	require.Equal(t, []any{1, true}, []any{n, again}, "kept for now")
	write(t, dir, "a.yaml", service("a", 81))
	n, changed, again = read()
	require.Equal(t, []any{1, true, false}, []any{n, changed, again}, "it was an editor")
	write(t, dir, "a.yaml", "")
	read()
	n, changed, again = read()
	require.Equal(t, []any{0, true, false}, []any{n, changed, again}, "it is meant")

	r := start(t, dir, nil)
	write(t, dir, "a.yaml", service("a", 80))
	r.awaitNames(t, "a")
	write(t, dir, "a.yaml", "")
	r.awaitNames(t)
}

// TestMountedConfigMap: Kubernetes mounts a ConfigMap as links through a folder
// that it replaces as a whole.
func TestMountedConfigMap(t *testing.T) {
	dir := t.TempDir()
	publish := func(version, text string) {
		write(t, dir, "..version-"+version+"/a.yaml", text)
		require.NoError(t, os.Symlink("..version-"+version, filepath.Join(dir, "..data_tmp")))
		require.NoError(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	}
	publish("1", service("a", 80))
	require.NoError(t, os.Symlink("..data/a.yaml", filepath.Join(dir, "a.yaml")))
	r := start(t, dir, nil)
	r.awaitNames(t, "a")
	publish("2", service("a", 81))
	r.await(t, "new version", func() bool { return r.port("a") == 81 })
	require.NoError(t, os.RemoveAll(filepath.Join(dir, "..version-1")))
	publish("3", service("b", 80))
	r.awaitNames(t, "b")
}

// TestSettings: the primary's settings arrive before what was read with them;
// settings that cannot be used leave those in force.
func TestSettings(t *testing.T) {
	dir := t.TempDir()
	meshConfig := func(text string) {
		write(t, dir, "mesh.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    "+text+"\n")
	}
	meshConfig("trustDomain: one")
	write(t, dir, "ns.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: istio-system, labels: {topology.istio.io/network: net-1}}\n")
	var r *reading
	told := func() []string {
		r.mu.Lock()
		defer r.mu.Unlock()
		return slices.Clone(r.told)
	}
	hold := make(chan *reading, 1)
	var early []string
	r = start(t, dir, func(c *Config) {
		c.OnSettings = func(s mesh.Settings) {
			select {
			case x := <-hold:
				hold <- x
				x.note(func() { x.told = append(x.told, s.Mesh.GetTrustDomain()) })
			default:
				early = append(early, s.Mesh.GetTrustDomain())
			}
		}
	})
	require.Equal(t, []string{"one"}, early)
	require.Equal(t, []string{"replace"}, told(), "settings first")
	hold <- r
	require.Equal(t, "one", r.cluster.TrustDomain)
	require.Equal(t, mesh.NetworkID("net-1"), r.cluster.Network)
	meshConfig("trustDomain: one\n    connectTimeout: soon")
	r.awaitProblems(t, "ConfigMap istio-system/istio in cluster east: ")
	require.Equal(t, []string{"replace"}, told())
	meshConfig("trustDomain: two")
	r.await(t, "new settings", func() bool { return slices.Equal(r.told, []string{"replace", "two"}) && r.cluster.TrustDomain == "two" })
	r.awaitProblems(t)
}

// TestIstioObjects: they are read too, and a bad one is named by field and line.
func TestIstioObjects(t *testing.T) {
	dir := t.TempDir()
	gateway := func(name, mode string) string {
		return "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: " + name + ", namespace: shop}\nspec:\n  selector: {istio: x}\n  servers:\n" +
			"  - hosts: ['*.local']\n    port: {number: 15443, name: tls, protocol: TLS}\n    tls:\n      mode: " + mode + "\n"
	}
	write(t, dir, "g.yaml", gateway("good", "AUTO_PASSTHROUGH")+"---\n"+gateway("bad", "SIDEWAYS"))
	r := start(t, dir, nil)
	require.Len(t, r.objects, 1)
	r.awaitProblems(t, "Gateway shop/bad in cluster east: spec.servers[0].tls.mode: g.yaml line 21: ")
	write(t, dir, "g.yaml", gateway("bad", "AUTO_PASSTHROUGH"))
	r.awaitProblems(t)
	r.await(t, "one came, one went", func() bool {
		return len(r.objects) == 1 && r.objects[mesh.ObjectKey{Kind: mesh.KindGateway, Namespace: "shop", Name: "bad"}] != nil
	})
}

// TestFolderGone: a folder that cannot be read keeps what was read.
func TestFolderGone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "east")
	write(t, dir, "a.yaml", service("a", 80))
	r := start(t, dir, nil)
	require.NoError(t, os.Rename(dir, dir+".away"))
	r.awaitProblems(t, "File . in cluster east: : the folder cannot be read, its last good content stays")
	require.Equal(t, []string{"a"}, r.names())
	write(t, dir, "b.yaml", service("b", 80))
	r.awaitNames(t, "b")
	r.awaitProblems(t)
	write(t, dir, "b.yaml", service("c", 80))
	r.awaitNames(t, "c")
}

func TestNoFolder(t *testing.T) {
	_, err := New(Config{})
	require.ErrorContains(t, err, "set Dir and Cluster")
	s, err := New(Config{Dir: filepath.Join(t.TempDir(), "none"), Cluster: "east"})
	require.NoError(t, err)
	require.ErrorContains(t, s.Run(t.Context(), &reading{}), "of cluster east")
}

func TestClusters(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "world.yaml", service("x", 80))
	write(t, dir, "west/deep/a.yml", service("x", 80))
	write(t, dir, "east/a.yaml", "")
	write(t, dir, "answers/a.json", "{}")
	write(t, dir, ".git/a.yaml", "")
	write(t, dir, "docs/a.md", "")
	require.NoError(t, os.Mkdir(filepath.Join(dir, "empty"), 0o755)) //nolint:gosec // test data
	got, err := Clusters(dir)
	require.NoError(t, err)
	require.Equal(t, []mesh.ClusterID{"east", "west"}, got)
	_, err = Clusters(filepath.Join(dir, "none"))
	require.ErrorIs(t, err, os.ErrNotExist)
}
