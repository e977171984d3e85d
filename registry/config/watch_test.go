package config

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

type watched struct {
	*Watcher
	sets     chan mesh.Settings
	problems *registry.Problems
}

func start(t *testing.T, c WatchConfig) *watched {
	w := &watched{sets: make(chan mesh.Settings, 100), problems: registry.NewProblems(nil)}
	c.Set, c.Problems, c.Cluster = func(s mesh.Settings) { w.sets <- s }, w.problems, "east"
	var err error
	w.Watcher, err = NewWatcher(c)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
	return w
}

const soon = 20 * time.Second // only a failing test waits that long

func (w *watched) next(t *testing.T) mesh.Settings {
	t.Helper()
	select {
	case s := <-w.sets:
		return s
	case <-time.After(soon):
		require.Fail(t, "no settings came", "problems: %v", w.problems.List())
		return mesh.Settings{}
	}
}

func (w *watched) refused(t *testing.T) registry.Problem {
	t.Helper()
	require.Eventually(t, func() bool { return len(w.problems.List()) == 1 }, soon, time.Millisecond)
	return w.problems.List()[0]
}

func configMap(name, text string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: name}, Data: map[string]string{"mesh": text}}
}

func TestWatchConfigMap(t *testing.T) {
	client := fake.NewClientset(configMap("istio-canary", "trustDomain: wrong.example"), configMap("istio", "trustDomain: one.example"))
	maps := client.CoreV1().ConfigMaps("istio-system")
	w := start(t, WatchConfig{Client: client, Namespace: "istio-system", Revision: "default"})
	require.Equal(t, "one.example", w.next(t).Mesh.GetTrustDomain())
	<-w.Synced()

	_, err := maps.Update(t.Context(), configMap("istio", "trustDomain: two.example"), metav1.UpdateOptions{})
	require.NoError(t, err)
	require.Equal(t, "two.example", w.next(t).Mesh.GetTrustDomain())

	touched := configMap("istio", "# said otherwise\ntrustDomain: two.example")
	_, err = maps.Update(t.Context(), touched, metav1.UpdateOptions{})
	require.NoError(t, err)
	_, err = maps.Update(t.Context(), configMap("istio", "trustDomain: 7"), metav1.UpdateOptions{})
	require.NoError(t, err)
	p := w.refused(t)
	require.Equal(t, mesh.ObjectRef{Cluster: "east", Kind: "ConfigMap", Namespace: "istio-system", Name: "istio"}, p.Object)
	require.Equal(t, "trustDomain", p.Field)
	require.Equal(t, "key mesh: parse mesh configuration: trustDomain: want a string, got the number 7; the last good settings stay in force", p.Message)

	_, err = maps.Update(t.Context(), configMap("istio", "trustDomain: three.example"), metav1.UpdateOptions{})
	require.NoError(t, err)
	require.Equal(t, "three.example", w.next(t).Mesh.GetTrustDomain(), "neither what was refused nor what means the same was set")
	require.Empty(t, w.problems.List())

	require.NoError(t, maps.Delete(t.Context(), "istio", metav1.DeleteOptions{}))
	require.Equal(t, "cluster.local", w.next(t).Mesh.GetTrustDomain(), "removed, not unknown")
}

func TestWatchMissingConfigMapMeansDefaults(t *testing.T) {
	w := start(t, WatchConfig{Client: fake.NewClientset(configMap("istio", "trustDomain: wrong.example")), Namespace: "istio-system", Revision: "canary"})
	require.Equal(t, "cluster.local", w.next(t).Mesh.GetTrustDomain())
	<-w.Synced()
}

// An API server that cannot be reached has said nothing: no defaults.
func TestWatchUnreachableIsNotEmpty(t *testing.T) {
	client := fake.NewClientset(configMap("istio", "trustDomain: one.example"))
	var up atomic.Bool
	var asked atomic.Int32
	client.PrependReactor("list", "configmaps", func(clienttesting.Action) (bool, runtime.Object, error) {
		asked.Add(1)
		return !up.Load(), nil, errors.New("connection refused")
	})
	w := start(t, WatchConfig{Client: client, Namespace: "istio-system"})
	require.Eventually(t, func() bool { return asked.Load() >= 1 }, soon, time.Millisecond)
	require.Empty(t, w.sets)
	select {
	case <-w.Synced():
		require.Fail(t, "synced without an answer")
	default:
	}
	up.Store(true)
	require.Equal(t, "one.example", w.next(t).Mesh.GetTrustDomain())
}

func TestWatchBadSettingsAtStartAreNotServed(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "mesh")
	require.NoError(t, os.WriteFile(file, []byte("trustDomain: ["), 0o600))
	w := start(t, WatchConfig{Files: Files{Mesh: file, Networks: filepath.Join(dir, "networks")}})
	require.Contains(t, w.refused(t).Message, "nothing is served before they can be used")
	require.Empty(t, w.sets)
	require.NoError(t, os.WriteFile(file, []byte("trustDomain: good.example"), 0o600))
	require.Equal(t, "good.example", w.next(t).Mesh.GetTrustDomain())
	<-w.Synced()
}

// A mounted ConfigMap: the file is a link into a folder that a second link is
// swapped to.
func TestWatchFilesOfAMountedConfigMap(t *testing.T) {
	dir := t.TempDir()
	publish := func(version, trustDomain string) {
		data := filepath.Join(dir, version)
		require.NoError(t, os.Mkdir(data, 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(data, "mesh"), []byte("trustDomain: "+trustDomain), 0o600))
		require.NoError(t, os.WriteFile(filepath.Join(data, "meshNetworks"), []byte("networks: {net: {endpoints: [{fromRegistry: west}]}}"), 0o600))
		tmp := filepath.Join(dir, "..data_tmp")
		require.NoError(t, os.Symlink(version, tmp))
		require.NoError(t, os.Rename(tmp, filepath.Join(dir, "..data")))
	}
	publish("..v1", "one.example")
	for _, f := range []string{"mesh", "meshNetworks"} {
		require.NoError(t, os.Symlink(filepath.Join("..data", f), filepath.Join(dir, f)))
	}
	w := start(t, WatchConfig{Files: Files{Mesh: filepath.Join(dir, "mesh"), Networks: filepath.Join(dir, "meshNetworks")}})
	first := w.next(t)
	require.Equal(t, "one.example", first.Mesh.GetTrustDomain())
	require.Contains(t, first.Networks.GetNetworks(), "net")
	publish("..v2", "two.example")
	require.Equal(t, "two.example", w.next(t).Mesh.GetTrustDomain())
}

func TestWatchFilesThatCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	w := start(t, WatchConfig{Files: Files{Mesh: dir}}) // a folder is not a file
	p := w.refused(t)
	require.Equal(t, "File", p.Object.Kind)
	require.Contains(t, p.Message, dir)
	require.Empty(t, w.sets)
}

func TestNewWatcherRefuses(t *testing.T) {
	_, err := NewWatcher(WatchConfig{Files: Files{Mesh: "x"}})
	require.ErrorContains(t, err, "nobody to tell")
	_, err = NewWatcher(WatchConfig{Set: func(mesh.Settings) {}})
	require.ErrorContains(t, err, "nothing to read")
}
