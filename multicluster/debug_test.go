package multicluster

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
)

// series reads all metrics, by name and labels in the usual notation.
func series(t testing.TB, from prometheus.Gatherer) map[string]float64 {
	families, err := from.Gather()
	require.NoError(t, err)
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			out[f.GetName()+"{"+strings.Join(labels, ",")+"}"] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return out
}

func TestClusterzIsIstiods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		w.set(secretObject("istio-remote-secret-c2", 1, map[string]string{"c2": goodKubeconfig("1")}),
			secretObject("x", 2, map[string]string{"c3": "garbage", "c1": goodKubeconfig("1")}))
		w.newest("c2").sync(1)
		time.Sleep(DefaultTimeout)
		synctest.Wait()
		rec := httptest.NewRecorder()
		w.manager.ServeClusterz(rec, nil)
		require.Equal(t, "application/json", rec.Header().Get("Content-Type"))
		require.JSONEq(t, `[
			{"id": "primary", "secretName": "", "syncStatus": "synced"},
			{"id": "c1", "secretName": "istio-system/x", "syncStatus": "timeout"},
			{"id": "c2", "secretName": "istio-system/istio-remote-secret-c2", "syncStatus": "synced"},
			{"id": "c3", "secretName": "istio-system/x", "syncStatus": "closed"}
		]`, rec.Body.String())

		rec = httptest.NewRecorder()
		w.manager.ServeClusters(rec, nil)
		require.NotContains(t, rec.Body.String(), secretToken)
		var out struct {
			Ready    bool
			Clusters []struct {
				ID, Health, Reason, Server string
				StaleSeconds               float64
			}
			Refused []struct{ ID, SecretName, Key, Reason, Message string }
		}
		require.NoError(t, json.Unmarshal(rec.Body.Bytes(), &out))
		require.True(t, out.Ready)
		require.Equal(t, "c1", out.Clusters[1].ID)
		require.InDelta(t, DefaultTimeout.Seconds(), out.Clusters[1].StaleSeconds, 0.001)
		require.Equal(t, "10.1.2.3:6443", out.Clusters[2].Server)
		require.Equal(t, "refused", out.Clusters[3].Health)
		require.Len(t, out.Refused, 1)
		require.Equal(t, "istio-system/x", out.Refused[0].SecretName)
		require.Equal(t, ReasonKubeconfig, out.Refused[0].Reason)
	})
}

func TestPrimaryStatus(t *testing.T) {
	p := PrimaryStatus{Server: "https://10.0.0.1:443", Source: &SourceStatus{}}
	m, err := New(Config{Primary: "p", NewSink: newWorldlessSink, NewSource: unusedSource, PrimaryStatus: func() PrimaryStatus { return p }})
	require.NoError(t, err)
	s := m.Clusters()[0]
	require.Equal(t, StatusSyncing, s.SyncStatus)
	require.Equal(t, HealthUnreachable, s.Health)
	require.Equal(t, "10.0.0.1:443", s.Server)
	p = PrimaryStatus{Synced: true, Source: &SourceStatus{Reachable: true, Kinds: []KindStatus{{Kind: "Node", Error: "forbidden"}}}}
	s = m.Clusters()[0]
	require.Equal(t, StatusSynced, s.SyncStatus)
	require.Equal(t, HealthDegraded, s.Health)
	require.Equal(t, "Node: forbidden", s.Reason)
	require.True(t, s.Primary)
}

func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop()
		a := secretObject("a", 1, map[string]string{"c2": goodKubeconfig("1"), "c3": goodKubeconfig("1")})
		b := secretObject("b", 2, map[string]string{"c4": "garbage"})
		w.set(a, b, secretObject("empty", 3, nil))
		w.newest("c2").sync(1)
		time.Sleep(DefaultTimeout)
		synctest.Wait()
		w.set(secretObject("a", 1, map[string]string{"c2": goodKubeconfig("2"), "c3": goodKubeconfig("1")}), b)
		require.Equal(t, map[string]float64{
			`istiod_managed_clusters{cluster_type="local"}`:      1,
			`istiod_managed_clusters{cluster_type="remote"}`:     2,
			`isthmus_cluster_stale_seconds{cluster="primary"}`:   0,
			`isthmus_cluster_stale_seconds{cluster="c2"}`:        0,
			`isthmus_cluster_stale_seconds{cluster="c3"}`:        30,
			`isthmus_cluster_stale_seconds{cluster="c4"}`:        30,
			`remote_cluster_secret_events_total{event="add"}`:    3,
			`remote_cluster_secret_events_total{event="update"}`: 1,
			`remote_cluster_secret_events_total{event="delete"}`: 1,
			`remote_cluster_sync_timeouts_total{cluster="c3"}`:   1,
			syncSeries("c2", "synced"):                           1, syncSeries("c2", "syncing"): 0, syncSeries("c2", "timeout"): 0, syncSeries("c2", "closed"): 0,
			syncSeries("c3", "synced"): 0, syncSeries("c3", "syncing"): 0, syncSeries("c3", "timeout"): 1, syncSeries("c3", "closed"): 0,
			syncSeries("c4", "synced"): 0, syncSeries("c4", "syncing"): 0, syncSeries("c4", "timeout"): 0, syncSeries("c4", "closed"): 1,
		}, series(t, w.metrics))
		w.set()
		for name := range series(t, w.metrics) {
			require.NotContains(t, name, `"c`, "clusters that left leave no series")
		}
	})
}

func syncSeries(cluster, status string) string {
	return fmt.Sprintf(`istiod_remote_cluster_sync_status{cluster=%q,cluster_type="remote",status=%q}`, cluster, status)
}
