package build

import (
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/testenv/validate"
)

func (l *lab) upstream(t *testing.T, v View, name string) *clusterv3.Cluster {
	t.Helper()
	m, err := Upstreams{}.Build(l.in(), v, name)
	require.NoError(t, err)
	require.NotNil(t, m, name)
	require.NoError(t, validate.Message(m))
	return m.(*clusterv3.Cluster)
}

// TestMeshWidePolicy: MeshConfig's connection pool and outlier detection hold where
// a rule says nothing of its own in the place of the whole block, and the pool for
// what comes in and what passes through, too.
func TestMeshWidePolicy(t *testing.T) {
	pool := func(n int32) *networking.ConnectionPoolSettings {
		return &networking.ConnectionPoolSettings{Tcp: &networking.ConnectionPoolSettings_TCPSettings{MaxConnections: n}}
	}
	l := newLab(&meshconfig.MeshConfig{DefaultTrafficPolicy: &meshconfig.MeshConfig_DefaultTrafficPolicy{
		ConnectionPool:   pool(10),
		OutlierDetection: &networking.OutlierDetection{Consecutive_5XxErrors: wrapperspb.UInt32(7)},
	}})
	l.services("c1", labService("web", "shop", labPorts(labPort("http", 80, mesh.ProtocolHTTP), labPort("alt", 81, mesh.ProtocolHTTP)), []string{"10.0.0.1"}),
		labService("bare", "shop", labPorts(labPort("http", 80, mesh.ProtocolHTTP)), []string{"10.0.0.2"}))
	l.objects(labRule("web", "shop", &networking.DestinationRule{Host: "web", TrafficPolicy: &networking.TrafficPolicy{
		ConnectionPool: pool(20),
		PortLevelSettings: []*networking.TrafficPolicy_PortTrafficPolicy{{Port: &networking.PortSelector{Number: 81},
			OutlierDetection: &networking.OutlierDetection{Consecutive_5XxErrors: wrapperspb.UInt32(3)}}},
	}}))
	v := labSidecar(func(v *View) {
		v.Inbound = MakeInbound(InboundSpec{Targets: []InboundTarget{{Hostname: "bare.shop.svc.cluster.local", Name: "bare", Namespace: "shop", Port: 80, Target: 80, Protocol: "HTTP"}}})
	})
	for _, c := range []struct {
		name        string
		connections uint32
		errors      uint32 // 0: no outlier detection
	}{
		{"outbound|80||bare.shop.svc.cluster.local", 10, 7},
		{"outbound|80||web.shop.svc.cluster.local", 20, 7},
		{"outbound|81||web.shop.svc.cluster.local", 10, 3},
		{"inbound|80||", 10, 0},
		{UpstreamPassthrough, 10, 0},
		{UpstreamInboundPassthrough, 10, 0},
	} {
		u := l.upstream(t, v, c.name)
		require.Equal(t, c.connections, u.GetCircuitBreakers().GetThresholds()[0].GetMaxConnections().GetValue(), c.name)
		require.Equal(t, c.errors, u.GetOutlierDetection().GetConsecutive_5Xx().GetValue(), c.name)
	}
}

// TestRetryBudgetInterval: requests count for a while.
func TestRetryBudgetInterval(t *testing.T) {
	require.Equal(t, time.Second, retryBudget(&networking.TrafficPolicy_RetryBudget{BudgetInterval: duration(time.Second)}).GetBudgetInterval().AsDuration())
	require.Nil(t, retryBudget(&networking.TrafficPolicy_RetryBudget{}).GetBudgetInterval())
}

// TestNothingUnreadyInPanic: with a panic threshold, proxies dial whatever they
// know of; so they are not told of what takes no requests.
func TestNothingUnreadyInPanic(t *testing.T) {
	l := newLab(&meshconfig.MeshConfig{})
	s := labPods(labService("web", "shop", labPorts(labPort("http", 80, mesh.ProtocolHTTP)), []string{"10.0.0.1"}), "c1", "", "10.1.0.1", "10.1.0.2", "10.1.0.3")
	s.Endpoints[1].Health, s.Endpoints[2].Health = mesh.HealthNotReady, mesh.HealthDraining
	l.services("c1", s)
	require.Len(t, sent(l.selectWeb(labSidecar())), 3)
	l.objects(labRule("web", "shop", &networking.DestinationRule{Host: "web", TrafficPolicy: &networking.TrafficPolicy{
		OutlierDetection: &networking.OutlierDetection{MinHealthPercent: 50}}}))
	require.Len(t, sent(l.selectWeb(labSidecar())), 1)
	for _, c := range l.selectWeb(labSidecar()).Candidates {
		if c.Endpoint.Health == mesh.HealthReady {
			require.Equal(t, VerdictDirect, c.Verdict.Code)
			continue
		}
		require.Equal(t, VerdictMayPanic, c.Verdict.Code)
		require.Contains(t, c.Text(labSidecar()), "minHealthPercent")
	}
}
