package registry

import (
	"bytes"
	"encoding/json"
	"flag"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

var update = flag.Bool("update", false, "rewrite golden files")

func debugStore() *Debug {
	at := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	s := NewStore(Config{Primary: primary, Settings: mesh.Settings{Mesh: &meshconfig.MeshConfig{TrustDomain: "cluster.local", RootNamespace: "istio-system"}}})
	a, b := pod("east", "a1", "10.0.0.1"), pod("west", "a2", "10.1.0.1")
	a.Locality, a.Labels, a.Node = mesh.Locality{Region: "r1", Zone: "z1"}, map[string]string{"app": "a"}, "node-1"
	b.MTLS = false
	east := service("east", key("a"), "http:80/HTTP", a)
	east.Definition.Addresses, east.Definition.Created = []netip.Addr{netip.MustParseAddr("10.96.0.1")}, at
	west := service("west", key("a"), "http:80/TCP", b)
	west.Endpoints[0].Health = mesh.HealthNotReady
	west.Definition.External = []string{"203.0.113.8"}
	s.NewSink("east").Replace(Update{Services: []ServiceState{east}, Cluster: &ClusterState{Network: "n1"}})
	gateways := []mesh.NetworkGateway{gw("n2", "west", "203.0.113.1", 15443), gw("n2", "west", "pending.example", 15443)}
	for i := range gateways {
		gateways[i].Origin = mesh.ObjectRef{Cluster: "west", Kind: "Service", Namespace: "istio-system", Name: "eastwest"}
	}
	s.NewSink("west").Replace(Update{Services: []ServiceState{west}, Cluster: &ClusterState{Network: "n2", Gateways: gateways}})
	p := NewProblems(func() time.Time { return at })
	p.Set(mesh.ObjectRef{Cluster: "west", Kind: "Service", Namespace: "shop", Name: "odd"}, "spec.ports[0]", "0 is not a port; use 1-65535")
	return NewDebug(s, p)
}

func TestDebugAnswers(t *testing.T) {
	d := debugStore()
	for name, h := range d.Handlers() {
		t.Run(name, func(t *testing.T) {
			pretty, plain := ask(h, "/?pretty"), ask(h, "/")
			require.Equal(t, "application/json", plain.Header().Get("Content-Type"))
			require.JSONEq(t, plain.Body.String(), pretty.Body.String())
			require.Equal(t, 1, bytes.Count(plain.Body.Bytes(), []byte("\n")), "one line unless it should be pretty")
			golden := filepath.Join("testdata", "debug", name+".json")
			if *update {
				require.NoError(t, os.MkdirAll(filepath.Dir(golden), 0o755))
				require.NoError(t, os.WriteFile(golden, pretty.Body.Bytes(), 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			require.Equal(t, string(want), pretty.Body.String())
		})
	}
}

// An empty mesh is answered with empty lists, not with null.
func TestDebugOfNothing(t *testing.T) {
	d := NewDebug(NewStore(Config{Primary: primary}), nil)
	for name, h := range map[string]http.HandlerFunc{"registryz": d.ServeRegistryz, "networkz": d.ServeNetworkz, "conflicts": d.ServeConflicts, "problems": d.ServeProblems} {
		require.Equal(t, "[]\n", ask(h, "/").Body.String(), name)
	}
	var o map[string]any
	require.NoError(t, json.Unmarshal(ask(d.ServeOverview, "/").Body.Bytes(), &o))
	for _, list := range []string{"clusters", "networks", "services", "conflicts", "problems"} {
		require.IsType(t, []any{}, o[list], list)
	}
}

func ask(h http.HandlerFunc, target string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h(w, httptest.NewRequest(http.MethodGet, target, nil))
	return w
}
