package build

import (
	"context"
	"encoding/json"
	"maps"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/registry/config"
	"github.com/isthmus-mesh/isthmus/registry/file"
	"github.com/isthmus-mesh/isthmus/testenv/validate"
)

// A case is a folder testdata/CASE with
//
//	clusters/NAME.yaml  one Kubernetes cluster: Services, Pods, Istio objects as
//	                    kubectl prints them; the first by name is the primary, whose
//	                    ConfigMap istio holds the MeshConfig
//	proxy.yaml          who asks, and what of the answer is shown (see caseProxy)
//	want.yaml           what it is told; written by go test -run Cases -update
//
// All that the proxy is told is built, checked by the deep validator as a whole
// and compared with what its projected views get; want.yaml shows what the
// proxy.yaml asks to see, so that a case is about one concept.

// caseProxy is proxy.yaml.
type caseProxy struct {
	Kind        mesh.ProxyKind    `json:"kind"`    // sidecar (the default) or router
	Dialect     string            `json:"dialect"` // istio (the default), envoy or grpc
	Cluster     mesh.ClusterID    `json:"cluster"` // the primary by default
	Network     mesh.NetworkID    `json:"network"`
	Namespace   string            `json:"namespace"`
	Labels      map[string]string `json:"labels"`
	Addresses   []netip.Addr      `json:"addresses"` // 10.255.0.1 by default
	Region      string            `json:"region"`
	Zone        string            `json:"zone"`
	Node        string            `json:"node"`
	NetworkView []mesh.NetworkID  `json:"networkView"`
	// Version, Metadata and ProxyConfig are what the proxy says of itself.
	Version     string         `json:"version"`
	Metadata    map[string]any `json:"metadata"`
	ProxyConfig map[string]any `json:"proxyConfig"`
	// Show lists globs of the names that want.yaml shows, by type: clusters,
	// endpoints, listeners, routes, extensions. A type that is absent is not shown at all; "*"
	// shows everything of it.
	Show map[string][]string `json:"show"`
	// Only keeps these fields of what is shown, by type; absent for all. A field
	// that a resource has not is shown by its absence.
	Only map[string][]string `json:"only"`
}

// TestCases compares what is built for every case with its want.yaml.
func TestCases(t *testing.T) {
	found, err := filepath.Glob("testdata/*/proxy.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, found)
	for _, f := range found {
		dir := filepath.Dir(f)
		t.Run(filepath.Base(dir), func(t *testing.T) { checkCase(t, dir) })
	}
}

func checkCase(t *testing.T, dir string) {
	t.Parallel()
	var c caseProxy
	text, err := os.ReadFile(filepath.Join(dir, "proxy.yaml"))
	require.NoError(t, err)
	require.NoError(t, yaml.UnmarshalStrict(text, &c))
	store, problems := readCase(t, dir, &c)
	p := c.proxy()
	in := Inputs{Catalog: store.Catalog(), Endpoints: store}
	leftOut := map[string]bool{}
	in.Report = func(o *mesh.Object, field, message string) {
		leftOut[o.Origin.String()+": "+field+" "+message] = true
	}
	want := map[string]any{}
	for kind, list := range buildCase(t, in, DeriveView(in, p, store.WorkloadOf(p.Cluster, p.Addresses, p.Namespace, ""))) {
		if shown := c.shown(t, kind, list); len(shown) > 0 {
			want[kind] = shown
		}
	}
	if len(problems) > 0 {
		want["problems"] = problems
	}
	if len(leftOut) > 0 {
		want["leftOut"] = slices.Sorted(maps.Keys(leftOut))
	}
	out, err := yaml.Marshal(want)
	require.NoError(t, err)
	golden(t, filepath.Base(dir)+"/want.yaml", out)
	tidyCase(t, dir)
}

// readCase reads the clusters of a case, the primary first.
func readCase(t *testing.T, dir string, c *caseProxy) (store *registry.Store, refused []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "clusters", "*.yaml"))
	require.NoError(t, err)
	require.NotEmpty(t, files, "%s has no clusters", dir)
	problems := registry.NewProblems(nil)
	for i, f := range files { // sorted
		id := mesh.ClusterID(strings.TrimSuffix(filepath.Base(f), ".yaml"))
		folder := t.TempDir()
		text, err := os.ReadFile(f)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(folder, "all.yaml"), text, 0o644))
		cfg := file.Config{Dir: folder, Cluster: id, Domain: DefaultDomain, Problems: problems}
		if i == 0 {
			store = registry.NewStore(registry.Config{Primary: id, Settings: config.Defaults()})
			cfg.OnSettings = store.SetSettings
			if c.Cluster == "" {
				c.Cluster = id
			}
		}
		readOnce(t, cfg, store.NewSink(id))
	}
	for _, p := range problems.List() {
		refused = append(refused, p.Object.String()+": "+strings.TrimPrefix(p.Field+": "+p.Message, ": "))
	}
	return store, refused
}

// onceSink ends its source with the first full report.
type onceSink struct {
	registry.Sink
	done context.CancelFunc
}

func (s onceSink) Replace(u registry.Update) {
	s.Sink.Replace(u)
	s.done()
}

func readOnce(t *testing.T, cfg file.Config, to registry.Sink) {
	t.Helper()
	src, err := file.New(cfg)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	require.NoError(t, src.Run(ctx, onceSink{to, cancel}))
}

func (c *caseProxy) proxy() *mesh.Proxy {
	p := &mesh.Proxy{ID: "proxy." + c.Namespace, Kind: c.Kind, Cluster: c.Cluster, Network: c.Network, Namespace: c.Namespace,
		Labels: c.Labels, Addresses: c.Addresses, Locality: mesh.Locality{Region: c.Region, Zone: c.Zone}, NodeName: c.Node,
		IstioVersion: c.Version, Metadata: c.Metadata, ProxyConfig: c.ProxyConfig,
		NetworkView: c.NetworkView, DNSDomain: c.Namespace + ".svc." + DefaultDomain}
	if p.Kind == "" {
		p.Kind = mesh.ProxySidecar
	}
	if len(p.Addresses) == 0 {
		p.Addresses = []netip.Addr{netip.MustParseAddr("10.255.0.1")}
	}
	switch c.Dialect {
	case "envoy":
		p.Dialect = mesh.DialectEnvoy
	case "grpc":
		p.Dialect = mesh.DialectGRPC
	}
	return p
}

// buildCase builds all that a proxy with the view has, by type and name, and
// checks that proxies would take it and that projected views get the same.
func buildCase(t *testing.T, in Inputs, v View) map[string]map[string]proto.Message {
	t.Helper()
	out := map[string]map[string]proto.Message{}
	all := validate.Snapshot{Options: validate.Options{GRPC: v.Dialect == mesh.DialectGRPC}}
	build := func(kind string, g Generator, names []string) {
		out[kind] = map[string]proto.Message{}
		for _, n := range names {
			m, err := g.Build(in, v, n)
			require.NoError(t, err)
			require.NotNil(t, m, "%s %s is listed and not there", kind, n)
			again, err := g.Build(in, g.Project(in, v, n), n)
			require.NoError(t, err)
			require.True(t, equalResources(m, again), "%s %s differs for the projected view", kind, n)
			out[kind][n] = m
			if x, ok := m.(*corev3.TypedExtensionConfig); ok {
				require.NoError(t, all.Message(asFetched(t, x)))
				continue
			}
			require.NoError(t, all.Message(m))
			require.NoError(t, all.Add(m))
		}
	}
	build("clusters", Upstreams{}, Upstreams{}.List(in, v))
	var assigned, routes []string
	for n, m := range out["clusters"] {
		if m.(*clusterv3.Cluster).GetType() == clusterv3.Cluster_EDS {
			assigned = append(assigned, n)
		}
	}
	build("endpoints", Assignments{}, assigned)
	build("listeners", Listeners{}, Listeners{}.List(in, v))
	for _, m := range out["listeners"] {
		routes = append(routes, validate.RouteNames(m.(*listenerv3.Listener))...)
	}
	slices.Sort(routes)
	build("routes", Routes{}, slices.Compact(routes))
	build("extensions", Extensions{}, extensionNames(in, v))
	require.NoError(t, all.Check())
	return out
}

// asFetched is an extension as a proxy gets it from its agent: with the module in a
// file.
func asFetched(t *testing.T, m *corev3.TypedExtensionConfig) proto.Message {
	t.Helper()
	filter, err := m.GetTypedConfig().UnmarshalNew()
	require.NoError(t, err)
	w, ok := filter.(interface{ GetConfig() *wasmv3.PluginConfig })
	if !ok {
		return m
	}
	w.GetConfig().GetVmConfig().Code = &corev3.AsyncDataSource{Specifier: &corev3.AsyncDataSource_Local{
		Local: &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: "/var/lib/istio/data/module.wasm"}}}}
	config, err := toAny(filter)
	require.NoError(t, err)
	return &corev3.TypedExtensionConfig{Name: m.GetName(), TypedConfig: config}
}

// extensionNames lists the extension configurations of a view.
func extensionNames(in Inputs, v View) []string {
	names := map[string]bool{}
	for _, n := range v.Plugins.List() {
		names[n.Namespace+"."+n.Name] = true
	}
	for _, x := range resolvePatches(in, v.Patches) {
		if n, ok := x.adds(); ok && x.applyTo == networking.EnvoyFilter_EXTENSION_CONFIG {
			names[n] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// shown is what want.yaml shows of the resources of a type.
func (c *caseProxy) shown(t *testing.T, kind string, list map[string]proto.Message) map[string]any {
	t.Helper()
	out := map[string]any{}
	for _, n := range slices.Sorted(maps.Keys(list)) {
		for _, glob := range c.Show[kind] {
			ok, err := path.Match(strings.ReplaceAll(glob, "/", "\x00"), strings.ReplaceAll(n, "/", "\x00"))
			require.NoError(t, err)
			if !ok {
				continue
			}
			text, err := protojson.Marshal(list[n])
			require.NoError(t, err)
			var fields map[string]any
			require.NoError(t, json.Unmarshal(text, &fields))
			if only := c.Only[kind]; only != nil {
				maps.DeleteFunc(fields, func(k string, _ any) bool { return !slices.Contains(only, k) })
			}
			out[n] = fields
		}
	}
	return out
}

// tidyCase removes, with -update, files of a case that nothing reads, and fails
// without for each.
func tidyCase(t *testing.T, dir string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, f := range list {
		switch f.Name() {
		case "clusters", "proxy.yaml", "want.yaml":
			continue
		}
		if *update {
			require.NoError(t, os.RemoveAll(filepath.Join(dir, f.Name())))
			continue
		}
		t.Errorf("%s/%s belongs to nothing: run the test with -update to remove it", dir, f.Name())
	}
}

// TestNoOrphanedCases: a case whose proxy.yaml is gone is a leftover.
func TestNoOrphanedCases(t *testing.T) {
	for _, name := range []string{"want.yaml", "clusters"} {
		found, err := filepath.Glob("testdata/*/" + name)
		require.NoError(t, err)
		for _, f := range found {
			_, err := os.Stat(filepath.Join(filepath.Dir(f), "proxy.yaml"))
			if err == nil {
				continue
			}
			if *update {
				require.NoError(t, os.RemoveAll(filepath.Dir(f)))
				continue
			}
			t.Errorf("%s has no proxy.yaml beside it: run the test with -update to remove it", f)
		}
	}
}
