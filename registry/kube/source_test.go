package kube

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// world is a service with one pod on one node.
func world(t *testing.T, f *fakeServer) {
	f.set(t, "services", aService("a", "web", aPort("http", 80)))
	f.set(t, "endpointslices", aSlice("a", "web-1", "web", anEndpoint("10.0.0.1", "p")))
	f.set(t, "pods", aPod("a", "p", "10.0.0.1", "n1"))
	f.set(t, "nodes", aNode("n1", "r1"))
	f.set(t, "namespaces", &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: DefaultNamespace, Labels: map[string]string{labelNetwork: "net-1"}}})
	f.set(t, "namespaces", &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "other", Labels: map[string]string{labelNetwork: "wrong"}}})
	f.set(t, "configmaps", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "istio", Namespace: DefaultNamespace}, Data: map[string]string{"mesh": "trustDomain: east.example"}})
}

// TestFollow: everything at once, then what changes, with streamed lists and
// without.
func TestFollow(t *testing.T) {
	t.Parallel()
	for _, streams := range []bool{true, false} {
		t.Run(fmt.Sprintf("streams=%v", streams), func(t *testing.T) {
			f := newFakeServer(t, streams)
			world(t, f)
			s := start(t, f, nil)
			s.awaitSync(t)
			e := s.endpoints("web")
			require.Len(t, e, 1)
			require.Equal(t, "spiffe://east.example/ns/a/sa/web", e[0].Workload.Identity.SPIFFE())
			require.Equal(t, mesh.Locality{Region: "r1"}, e[0].Workload.Locality)
			require.Equal(t, mesh.NetworkID("net-1"), s.state.cluster.Network)
			require.Equal(t, "east.example", s.state.cluster.TrustDomain)

			f.set(t, "pods", aPod("a", "q", "10.0.0.2", "n1"))
			f.set(t, "endpointslices", aSlice("a", "web-1", "web", anEndpoint("10.0.0.1", "p"), anEndpoint("10.0.0.2", "q")))
			s.await(t, "second endpoint", func() bool { return len(s.endpoints("web")) == 2 })
			f.remove("pods", "a/p")
			s.await(t, "endpoint of the pod that went", func() bool { return len(s.endpoints("web")) == 1 && s.state.workloads["a/p"] == nil })
			f.remove("services", "a/web")
			s.await(t, "service gone", func() bool { return len(s.state.services) == 0 })
			require.Equal(t, 1, s.replaces, "one full report")
			require.Empty(t, s.problems.List(), "a missing Gateway API is nothing special")

			st := s.source.Status()
			require.True(t, st.Reachable)
			require.Empty(t, st.Error)
			require.Zero(t, st.Staleness(time.Now()))
			for _, k := range st.Kinds {
				require.True(t, k.Synced, k.Kind)
				require.Equal(t, strings.Contains(k.Kind, "."), k.Absent, "only custom resources are absent: %s", k.Kind)
				require.Empty(t, k.Error, k.Kind)
			}
			require.Equal(t, 1, kindOf(st, "pods").Objects)
			require.InDelta(t, 1, metric(t, s.metrics, "pilot_k8s_reg_events", "delete", "services"), 0)
		})
	}
}

// TestMissedWhileAway: what happened while watches were cut, even if the server
// has forgotten it, arrives as a difference and nothing else.
func TestMissedWhileAway(t *testing.T) {
	t.Parallel()
	f := newFakeServer(t, true)
	world(t, f)
	f.set(t, "services", aService("a", "old", aPort("http", 80)))
	f.set(t, "services", aService("a", "same", aPort("http", 80)))
	s := start(t, f, nil)
	s.awaitSync(t)
	before := f.listed("services")

	f.forget()
	f.mu.Lock() // between the cut and the change no watch may start
	for id, w := range f.watchers {
		close(w.cut)
		delete(f.watchers, id)
	}
	delete(f.objects["services"], "a/old")
	f.mu.Unlock()
	f.set(t, "services", aService("a", "new", aPort("http", 80)))
	f.forget()
	s.await(t, "new service, old one gone", func() bool {
		_, added := s.state.services[mesh.ServiceKey{Namespace: "a", Hostname: "new.a.svc.cluster.local"}]
		_, there := s.state.services[mesh.ServiceKey{Namespace: "a", Hostname: "old.a.svc.cluster.local"}]
		return added && !there
	})
	require.Equal(t, 1, s.replaces)
	require.Greater(t, f.listed("services"), before, "the server was asked for everything again")
	for _, u := range s.applied {
		for _, x := range u.Services {
			require.Contains(t, []mesh.Hostname{"new.a.svc.cluster.local", "old.a.svc.cluster.local"}, x.Key.Hostname, "nothing else was reported")
		}
		require.Empty(t, u.Workloads)
	}
}

// TestForbiddenKind: a kind that the account may not read is named, the others
// are served, and it comes in when it is granted.
func TestForbiddenKind(t *testing.T) {
	t.Parallel()
	f := newFakeServer(t, true)
	world(t, f)
	f.refuseKind("nodes", http.StatusForbidden)
	s := start(t, f, nil)
	s.awaitSync(t)
	require.Len(t, s.endpoints("web"), 1)
	require.True(t, s.endpoints("web")[0].Workload.Locality.IsZero())
	require.Len(t, s.problems.List(), 1)
	p := s.problems.List()[0]
	require.Equal(t, mesh.ObjectRef{Cluster: "east", Kind: "Resource", Name: "nodes"}, p.Object)
	require.Contains(t, p.Message, "grant get, list and watch")
	k := kindOf(s.source.Status(), "nodes")
	require.True(t, k.Refused)
	require.False(t, k.Synced)
	require.Contains(t, k.Error, "refused")

	f.refuseKind("nodes", 0)
	s.await(t, "locality", func() bool { return s.endpoints("web")[0].Workload.Locality.Region == "r1" })
	require.Empty(t, s.problems.List())
}

// TestForbiddenSpareKind: a kind that clusters do without as a rule may be
// refused: an account that was made before it was read is no defect.
func TestForbiddenSpareKind(t *testing.T) {
	t.Parallel()
	f := newFakeServer(t, true)
	world(t, f)
	f.refuseKind("serviceexports", http.StatusForbidden)
	f.refuseKind("serviceimports", http.StatusForbidden)
	s := start(t, f, nil)
	s.awaitSync(t)
	require.Empty(t, s.problems.List())
	for _, k := range s.source.Status().Kinds {
		require.True(t, k.Synced, k.Kind)
		require.False(t, k.Refused, k.Kind)
	}
}

// TestForbiddenPods: without pods the addresses are served without identity.
func TestForbiddenPods(t *testing.T) {
	t.Parallel()
	f := newFakeServer(t, false)
	world(t, f)
	f.refuseKind("pods", http.StatusForbidden)
	s := start(t, f, nil)
	s.awaitSync(t)
	require.Len(t, s.endpoints("web"), 1)
	require.Empty(t, s.endpoints("web")[0].Workload.Kind)
	require.Contains(t, s.problems.List()[0].Message, "without identity and mTLS")
	f.refuseKind("pods", http.StatusInternalServerError)
	s.await(t, "another answer", func() bool { return !kindOf(s.latest(), "pods").Refused })
	f.refuseKind("pods", 0)
	s.await(t, "workload", func() bool {
		require.Len(t, s.endpoints("web"), 1, "never taken away")
		return s.endpoints("web")[0].Workload.Kind == "Pod"
	})
}

// TestSettled: what holds up the first report, and for how long.
func TestSettled(t *testing.T) {
	now, timeout := time.Unix(1000, 0), 10*time.Second
	tests := []struct {
		name string
		kind kindState
		wait time.Duration
		ok   bool
	}{
		{"read", kindState{KindStatus: KindStatus{Synced: true}}, 0, true},
		{"not answered yet", kindState{}, 0, false},
		{"refused just now", kindState{refusedSince: now}, timeout, false},
		{"refused for a while", kindState{refusedSince: now.Add(-3 * time.Second)}, 7 * time.Second, false},
		{"refused for good", kindState{refusedSince: now.Add(-timeout)}, 0, true},
		{"refused, but the cluster would look empty", kindState{essential: true, refusedSince: now.Add(-time.Hour)}, 0, false},
	}
	for _, tt := range tests {
		b := statusBoard{kinds: []*kindState{{KindStatus: KindStatus{Synced: true}}, &tt.kind}}
		wait, ok := b.settled(now, timeout)
		require.Equal(t, tt.ok, ok, tt.name)
		require.Equal(t, tt.wait, wait, tt.name)
	}
}

// TestEssentialKinds: a cluster whose Services cannot be read is unknown, not
// empty.
func TestEssentialKinds(t *testing.T) {
	t.Parallel()
	f := newFakeServer(t, true)
	world(t, f)
	f.refuseKind("services", http.StatusForbidden)
	s := start(t, f, nil)
	s.await(t, "everything else read and services refused", func() bool {
		kinds := s.latest().Kinds
		for _, k := range kinds {
			if k.Kind == "services" && !k.Refused || k.Kind != "services" && !k.Synced {
				return false
			}
		}
		return len(kinds) > 0
	})
	s.offset.Store(int64(time.Hour))
	require.Contains(t, s.problems.List()[0].Message, "nothing of the cluster is served")
	f.refuseKind("services", 0)
	s.awaitSync(t)
	require.Len(t, s.endpoints("web"), 1, "the first report has everything")
}

// TestUnreachable: nothing is reported of a server that does not answer, and the
// source ends at once when it is told to.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := l.Addr().String()
	require.NoError(t, l.Close())
	s := start(t, nil, func(c *Config) {
		c.REST = &rest.Config{Host: "http://" + addr}
		RESTDefaults(c.REST)
	})
	s.await(t, "failure in the status", func() bool { return s.latest().Error != "" })
	st := s.source.Status()
	require.False(t, st.Reachable)
	require.Zero(t, st.SyncedAt)
	require.Zero(t, s.replaces)
	require.Empty(t, s.problems.List())
}

// TestOutage: a server that goes keeps everything in place, and the age of what
// was read grows.
func TestOutage(t *testing.T) {
	t.Parallel()
	f := newFakeServer(t, true)
	world(t, f)
	s := start(t, f, nil)
	s.awaitSync(t)
	for _, r := range []string{"services", "endpointslices", "pods", "nodes", "namespaces", "configmaps"} {
		f.refuseKind(r, http.StatusUnauthorized)
	}
	f.cut()
	s.await(t, "kinds fail", func() bool {
		return kindOf(s.latest(), "services").Error != "" && kindOf(s.latest(), "pods").Error != ""
	})
	s.offset.Store(int64(time.Minute))
	st := s.source.Status()
	require.True(t, st.Reachable, "it answers, if only with 401")
	require.True(t, kindOf(st, "services").Synced)
	require.GreaterOrEqual(t, st.Staleness(s.source.cfg.Clock()), time.Minute)
	require.Empty(t, s.applied, "nothing was taken away")
	for _, r := range []string{"services", "endpointslices", "pods", "nodes", "namespaces", "configmaps"} {
		f.refuseKind(r, 0)
	}
	f.set(t, "services", aService("a", "back", aPort("http", 80)))
	s.await(t, "recovery", func() bool { return len(s.state.services) == 2 })
}

// TestRewind: a server that was restored from a backup knows less than the
// source saw. It is read anew, and what it does not have is gone.
func TestRewind(t *testing.T) {
	t.Parallel()
	for _, streams := range []bool{true, false} {
		t.Run(fmt.Sprintf("streams=%v", streams), func(t *testing.T) {
			f := newFakeServer(t, streams)
			world(t, f)
			f.set(t, "services", aService("a", "since", aPort("http", 80)))
			s := start(t, f, nil)
			s.awaitSync(t)
			f.rewind("services", "a/since")
			s.await(t, "the older state", func() bool { return len(s.state.services) == 1 && len(s.endpoints("web")) == 1 })
			f.set(t, "services", aService("a", "after", aPort("http", 80)))
			s.await(t, "watching again", func() bool { return len(s.state.services) == 2 })
			require.Equal(t, 1, s.replaces)
		})
	}
}

// TestConfiguration: Istio's objects are read of the primary. One that cannot be
// decoded is named and the others are served, though they came in one list.
func TestConfiguration(t *testing.T) {
	t.Parallel()
	f := newFakeServer(t, true)
	world(t, f)
	const istioGateways = "gateways.networking.istio.io"
	f.install(istioGateways)
	gateway := func(name string, number any) map[string]any {
		return map[string]any{"metadata": map[string]any{"name": name, "namespace": "a"}, "spec": map[string]any{
			"selector": map[string]any{"istio": "eastwest"}, "servers": []any{map[string]any{"hosts": []any{"*.local"},
				"port": map[string]any{"number": number, "name": "tls", "protocol": "TLS"}, "tls": map[string]any{"mode": "AUTO_PASSTHROUGH"}}}}}
	}
	f.set(t, istioGateways, gateway("good", 15443))
	f.set(t, istioGateways, gateway("bad", "many"))
	s := start(t, f, func(c *Config) { c.Primary = true })
	s.awaitSync(t)
	key := mesh.ObjectKey{Kind: mesh.KindGateway, Namespace: "a", Name: "good"}
	require.Len(t, s.state.objects, 3, "it and two namespaces")
	require.NotNil(t, s.state.objects[key])
	require.Len(t, s.problems.List(), 1)
	require.Equal(t, "bad", s.problems.List()[0].Object.Name)
	require.Equal(t, "spec.servers[0].port.number", s.problems.List()[0].Field)

	f.set(t, istioGateways, gateway("good", "spoilt"))
	f.set(t, istioGateways, gateway("bad", 15443))
	s.await(t, "the bad one is put right", func() bool { return len(s.state.objects) == 4 })
	require.Equal(t, "good", s.problems.List()[0].Object.Name, "the good one went bad, its last good version stays")
	f.remove(istioGateways, "a/good")
	s.await(t, "removal", func() bool { return len(s.state.objects) == 3 })
	require.Empty(t, s.problems.List())
}

// TestConfigurationOfRemotes: of a cluster other than the primary, only the kinds
// that count everywhere are asked for, and a remote without them is complete.
func TestConfigurationOfRemotes(t *testing.T) {
	t.Parallel()
	f := newFakeServer(t, true)
	world(t, f)
	const entries, istioGateways = "workloadentries.networking.istio.io", "gateways.networking.istio.io"
	f.install(istioGateways)
	f.install(entries)
	f.set(t, entries, map[string]any{"metadata": map[string]any{"name": "vm", "namespace": "a"}, "spec": map[string]any{"address": "192.0.2.7"}})
	s := start(t, f, nil)
	s.awaitSync(t)
	require.Len(t, s.state.objects, 3, "it and two namespaces, whose labels say whether they are in the mesh")
	o := s.state.objects[mesh.ObjectKey{Kind: mesh.KindWorkloadEntry, Namespace: "a", Name: "vm"}]
	require.NotNil(t, o)
	require.Equal(t, mesh.ClusterID("east"), o.Origin.Cluster)
	for _, k := range s.source.Status().Kinds {
		require.NotEqual(t, istioGateways, k.Kind, "configuration of a remote is not asked for")
	}
}

// TestKindInstalledLater: a kind that the server does not have is asked for now
// and then, and read when it appears.
func TestKindInstalledLater(t *testing.T) {
	t.Parallel()
	f := newFakeServer(t, true)
	world(t, f)
	s := start(t, f, nil)
	s.awaitSync(t)
	f.install("gateways.gateway.networking.k8s.io")
	kind := gatewayv1.IPAddressType
	g := &gatewayv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "gw", Labels: map[string]string{labelNetwork: "net-1"}},
		Spec: gatewayv1.GatewaySpec{GatewayClassName: "istio", Listeners: []gatewayv1.Listener{{Name: "tls", Port: 15443, Protocol: "TLS"}},
			Addresses: []gatewayv1.GatewaySpecAddress{{Type: &kind, Value: "203.0.113.5"}}}}
	f.set(t, "gateways.gateway.networking.k8s.io", g)
	s.offset.Store(int64(absentRetry))
	s.await(t, "gateway", func() bool { return len(s.state.cluster.Gateways) == 1 })
	require.Equal(t, "203.0.113.5", s.state.cluster.Gateways[0].Host)
}

// TestTrustDomainOverride: the primary's settings may come from a file.
func TestTrustDomainOverride(t *testing.T) {
	t.Parallel()
	f := newFakeServer(t, true)
	world(t, f)
	var td atomic.Value
	td.Store("from.file")
	s := start(t, f, func(c *Config) { c.TrustDomain = func() string { return td.Load().(string) } })
	s.awaitSync(t)
	require.Equal(t, "from.file", s.state.cluster.TrustDomain)
	td.Store("edited.file")
	f.set(t, "nodes", aNode("n2", "r2")) // anything wakes the source
	s.await(t, "new trust domain", func() bool { return s.state.cluster.TrustDomain == "edited.file" })
	require.Equal(t, "edited.file", s.endpoints("web")[0].Workload.Identity.TrustDomain)
}

// TestTwoSourcesOneRegisterer: sources share their metrics.
func TestTwoSourcesOneRegisterer(t *testing.T) {
	r := prometheus.NewRegistry()
	a, b := newMetrics(r), newMetrics(r)
	require.Same(t, a.events, b.events)
	a.setPending("east", 2)
	require.InDelta(t, 2, metric(t, r, "pilot_k8s_endpoints_pending_pod", "east"), 0)
	b.forget("east")
	require.InDelta(t, -1, metric(t, r, "pilot_k8s_endpoints_pending_pod", "east"), 0)
}

func TestNewRefuses(t *testing.T) {
	_, err := New(Config{})
	require.ErrorContains(t, err, "set Cluster")
	_, err = New(Config{Cluster: "east"})
	require.ErrorContains(t, err, "set REST or Client")
}
