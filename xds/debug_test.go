package xds

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/isthmus-mesh/isthmus/xds/build"
	"github.com/isthmus-mesh/isthmus/xds/match"
)

// TestDebugShapes: what istiod's tools read is where they look for it.
func TestDebugShapes(t *testing.T) {
	bothProtocols(t, func(t *testing.T, delta bool) {
		w := twoServices(t, nil)
		defer w.stop()
		c := connected(t, w, delta)
		defer c.close()
		handlers := w.srv.DebugHandlers(func(_ build.Inputs, v build.View, host string, port uint16, _ match.Request) any {
			return []any{v.Network, host, port}
		})
		ask := func(name, query string) *httptest.ResponseRecorder {
			rec := httptest.NewRecorder()
			handlers[name](rec, httptest.NewRequest(http.MethodGet, "/debug/"+name+query, nil))
			return rec
		}
		read := func(name, query string, to any) {
			rec := ask(name, query)
			require.Equal(t, http.StatusOK, rec.Code, rec.Body.String())
			require.NoError(t, json.Unmarshal(rec.Body.Bytes(), to))
		}

		var syncz []map[string]any
		read("syncz", "", &syncz)
		require.Len(t, syncz, 1)
		require.Equal(t, "pod-10.9.9.9.shop", syncz[0]["proxy"])
		require.Equal(t, "east", syncz[0]["cluster_id"])
		for _, prefix := range []string{"cluster", "endpoint", "listener", "route"} {
			require.Len(t, syncz[0][prefix+"_sent"], 16)
			require.Equal(t, syncz[0][prefix+"_sent"], syncz[0][prefix+"_acked"], prefix)
		}
		read("syncz", "?namespace=other", &syncz)
		require.Empty(t, syncz)

		var adsz connections
		read("adsz", "?pretty", &adsz)
		require.Equal(t, 1, adsz.TotalClients)
		require.Equal(t, []string{assignment("a"), assignment("b")}, adsz.Clients[0].Watches[TypeEDS])
		require.Empty(t, adsz.Clients[0].Watches[TypeCDS])
		read("connections", "", &adsz)
		require.Equal(t, 1, adsz.TotalClients)

		var dump adminv3.ConfigDump
		require.NoError(t, protojson.Unmarshal(ask("config_dump", "?proxyID=pod-10.9.9.9.shop&include_eds").Body.Bytes(), &dump))
		require.Len(t, dump.Configs, 4)
		var clusters adminv3.ClustersConfigDump
		require.NoError(t, dump.Configs[0].UnmarshalTo(&clusters))
		require.Len(t, clusters.DynamicActiveClusters, 3)
		require.NoError(t, protojson.Unmarshal(ask("config_dump", "?proxyID=pod-10.9.9.9.shop&types="+TypeLDS).Body.Bytes(), &dump))
		require.Len(t, dump.Configs, 1)
		var edsz []json.RawMessage // an array of assignments, as istiod answers
		read("edsz", "?proxyID=pod-10.9.9.9.shop", &edsz)
		var hosts []string
		for _, raw := range edsz {
			var a endpointv3.ClusterLoadAssignment
			require.NoError(t, protojson.Unmarshal(raw, &a))
			require.NotEmpty(t, a.Endpoints)
			hosts = append(hosts, a.ClusterName)
		}
		require.ElementsMatch(t, []string{"outbound|80||a.shop.svc.cluster.local", "outbound|80||b.shop.svc.cluster.local"}, hosts)

		var explained []any
		read("explain", "?proxy=pod-10.9.9.9.shop&host=a&port=80", &explained)
		require.Equal(t, []any{"net-east", "a.shop.svc.cluster.local", 80.0}, explained)
		require.Equal(t, http.StatusBadRequest, ask("explain", "?proxy=pod-10.9.9.9.shop&port=80").Code)
		require.Equal(t, http.StatusNotFound, ask("edsz", "?proxyID=nobody").Code)
		require.Equal(t, http.StatusBadRequest, ask("edsz", "").Code)

		var cachez map[string]any
		read("cachez", "", &cachez)
		require.InDelta(t, 1, cachez["views"], 0)
		require.InDelta(t, 3, cachez["cds"].(map[string]any)["resources"], 0)
	})
}

// TestCachezNamesWhatFails: a quarantined resource is listed with its reason.
func TestCachezNamesWhatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := twoServices(t, nil)
		defer w.stop()
		c := connected(t, w, true)
		defer c.close()
		w.put("east", "a", svc{labels: map[string]string{"fault": "error"}})
		settle(c)
		rec := httptest.NewRecorder()
		w.srv.DebugHandlers(nil)["cachez"](rec, httptest.NewRequest(http.MethodGet, "/debug/cachez", nil))
		require.Contains(t, rec.Body.String(), "label fault: not acceptable")
	})
}

// A stream is listed from the moment it is known, which is before it has a view.
func TestViewOfAStreamThatArrives(t *testing.T) {
	s := &stream{srv: &Server{graph: newGraph(nil, nil)}}
	require.Equal(t, build.View{}, s.currentView())
}
