package conformance

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/registry/config"
	"github.com/isthmus-mesh/isthmus/registry/gatewayapi"
	"github.com/isthmus-mesh/isthmus/registry/gatewayapi/status"
	"github.com/isthmus-mesh/isthmus/registry/kube"
	"github.com/isthmus-mesh/isthmus/testenv/apiserver"
)

const primary = mesh.ClusterID("conformance")

// world is a cluster, the parts of the control plane that read it, write status
// and build resources, and the stand-in.
type world struct {
	cluster  *apiserver.Cluster
	store    *registry.Store
	routers  routers
	standIns *standIn
	doors    *doors
	log      func(string)
}

// newWorld starts everything; it ends with the test.
func newWorld(t *testing.T) *world {
	t.Helper()
	apiserver.NeedBinary(t)
	ctx, cancel := context.WithCancel(context.Background())
	c, err := apiserver.Start(ctx, apiserver.Config{Name: string(primary)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Stop()) })
	installDefinitions(ctx, t, c)
	w := &world{cluster: c, store: registry.NewStore(registry.Config{Primary: primary, Settings: config.Defaults()})}
	w.routers = routers{w: w}
	w.standIns = &standIn{w: w, addresses: map[string]string{}, running: map[string]*corev1.Pod{}}
	w.doors = &doors{w: w, shut: mayOpen(ctx), open: map[string]net.Listener{}}
	w.log = func(s string) { t.Log(s) }
	src, err := kube.New(kube.Config{Cluster: primary, REST: c.REST(), Primary: true})
	require.NoError(t, err)
	writer, err := status.New(status.Config{Dynamic: c.Dynamic(), Client: c.Client(), Store: w.store, Elect: alone})
	require.NoError(t, err)
	synced := make(chan struct{})
	sink := &firstReport{Sink: w.store.NewSink(primary), done: synced}
	run := func(f func(context.Context) error) {
		done := make(chan error, 1)
		go func() { done <- f(ctx) }()
		t.Cleanup(func() { cancel(); require.NoError(t, <-done) })
	}
	run(func(ctx context.Context) error { return src.Run(ctx, sink) })
	<-synced
	run(writer.Run)
	run(func(ctx context.Context) error {
		defer w.doors.close()
		return w.standIns.run(ctx)
	})
	w.awaitClass(t)
	return w
}

// alone leads at once: there is one writer.
func alone(ctx context.Context, lead func(context.Context)) error {
	lead(ctx)
	return nil
}

// awaitClass waits until the class of gateways has been made and read.
func (w *world) awaitClass(t *testing.T) {
	t.Helper()
	made := make(chan struct{}, 1)
	is := func() bool {
		return w.store.Catalog().Object(mesh.ObjectKey{Kind: mesh.KindGatewayClass, Name: gatewayapi.ClassIstio}) != nil
	}
	cancel := w.store.OnChange(func(registry.Change) {
		if is() {
			select {
			case made <- struct{}{}:
			default:
			}
		}
	})
	defer cancel()
	if is() {
		return
	}
	select {
	case <-made:
	case <-time.After(time.Minute):
		t.Fatal("nobody made the class of gateways")
	}
}

// firstReport closes a channel when the cluster has been read.
type firstReport struct {
	registry.Sink
	done chan struct{}
}

func (f *firstReport) Replace(u registry.Update) {
	f.Sink.Replace(u)
	if f.done != nil {
		close(f.done)
		f.done = nil
	}
}

// installDefinitions makes the server take the objects of the Gateway API, with
// the schemas that users have.
func installDefinitions(ctx context.Context, t *testing.T, c *apiserver.Cluster) {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/gateway-api").Output()
	require.NoError(t, err)
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(out)), "config/crd/standard/gateway.networking.k8s.io_*s.yaml"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, f := range files {
		if strings.Contains(f, "_vap_") {
			continue // a policy about upgrades of the definitions
		}
		text, err := os.ReadFile(f)
		require.NoError(t, err)
		var definition unstructured.Unstructured
		require.NoError(t, yaml.Unmarshal(text, &definition.Object))
		require.NoError(t, unstructured.SetNestedSlice(definition.Object, served(t, &definition), "spec", "versions"))
		unstructured.RemoveNestedField(definition.Object, "status")
		require.NoError(t, c.ApplyObjects(ctx, &definition), f)
	}
	require.NoError(t, c.Apply(ctx, fmt.Appendf(nil, "apiVersion: v1\nkind: Namespace\nmetadata: {name: %s}\n---\napiVersion: v1\nkind: Node\nmetadata: {name: %s}\n", apiserver.SystemNamespace, node)))
}

// served lists the versions of a definition that are served; nobody waits for
// others.
func served(t *testing.T, definition *unstructured.Unstructured) []any {
	t.Helper()
	versions, _, err := unstructured.NestedSlice(definition.Object, "spec", "versions")
	require.NoError(t, err)
	return slices.DeleteFunc(versions, func(v any) bool { return v.(map[string]any)["served"] != true })
}
