package build

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

func TestDrain(t *testing.T) {
	l := netLab(nil, gatewayAt("9.9.9.9"))
	for _, addr := range []string{"10.1.0.1", "10.1.0.2", "10.1.0.3"} {
		webPod(l, "c1", addr)
	}
	webPod(l, "c2", "10.2.0.1")
	drain := func(w mesh.Weights) Selection {
		l.store.SetSettings(mesh.Settings{Weights: w})
		return l.selectWeb(labSidecar(func(v *View) { v.Network = "n1" }))
	}
	clusters := func(m map[mesh.ClusterID]uint32) mesh.Weights { return mesh.Weights{Clusters: m} }

	require.Equal(t, map[string]uint32{" 10.1.0.1:80": 1, " 10.1.0.2:80": 1, " 10.1.0.3:80": 1, " 9.9.9.9:15443": 1}, sent(drain(mesh.Weights{})))
	away := drain(clusters(map[mesh.ClusterID]uint32{"c1": 0}))
	require.Equal(t, map[string]uint32{" 9.9.9.9:15443": 1}, sent(away), "nothing goes to a drained cluster")
	require.Equal(t, VerdictDrained, away.Candidates[0].Verdict.Code)
	require.Equal(t, map[string]uint32{" 10.1.0.1:80": 1, " 10.1.0.2:80": 1, " 10.1.0.3:80": 1},
		sent(drain(mesh.Weights{Networks: map[mesh.NetworkID]uint32{"n2": 0}})), "nor to a drained network")
	require.Equal(t, map[string]uint32{" 10.1.0.1:80": 25, " 10.1.0.2:80": 25, " 10.1.0.3:80": 25, " 9.9.9.9:15443": 100},
		sent(drain(clusters(map[mesh.ClusterID]uint32{"c1": 25}))), "shares are exact")
	require.Equal(t, map[string]uint32{" 10.1.0.1:80": 3, " 10.1.0.2:80": 3, " 10.1.0.3:80": 3, " 9.9.9.9:15443": 100},
		sent(drain(mesh.Weights{Clusters: map[mesh.ClusterID]uint32{"c1": 30}, Networks: map[mesh.NetworkID]uint32{"n1": 10}})), "weights multiply")

	all := drain(clusters(map[mesh.ClusterID]uint32{"c1": 0, "c2": 0}))
	require.Len(t, sent(all), 4, "draining everything drains nothing")
	require.True(t, all.Undrained)
}

// A drain must not turn away requests that nobody else can answer.
func TestDrainLeavesSomethingReady(t *testing.T) {
	l := netLab(nil, gatewayAt("9.9.9.9"))
	webPod(l, "c1", "10.1.0.1")
	webPod(l, "c2", "10.2.0.1", inHealth(mesh.HealthNotReady), onNetwork("n1"))
	l.store.SetSettings(mesh.Settings{Weights: mesh.Weights{Clusters: map[mesh.ClusterID]uint32{"c1": 0}}})
	sel := l.selectWeb(labSidecar(func(v *View) { v.Network = "n1" }))
	require.Equal(t, map[string]uint32{" 10.1.0.1:80": 1, " 10.2.0.1:80": 1}, sent(sel))
	x := Explain(l.in(), labSidecar(func(v *View) { v.Network = "n1" }), webKey.Hostname, 80)
	require.Contains(t, x.Notes, "drains are not heeded here: no endpoint outside the drained clusters and networks is ready")
}

// A changed drain concerns assignments and nothing else.
func TestDrainChange(t *testing.T) {
	l := netLab(nil)
	webPod(l, "c1", "10.1.0.1")
	l.store.SetSettings(mesh.Settings{Weights: mesh.Weights{Clusters: map[mesh.ClusterID]uint32{"c1": 50}}})
	require.Equal(t, registry.ScopeWeights, l.last.Scope)
	v := labSidecar()
	require.True(t, Assignments{}.Affected(l.in(), v, &l.last).All)
	require.Equal(t, Affected{}, Upstreams{}.Affected(l.in(), v, &l.last))
	require.Empty(t, Listeners{}.Affected(l.in(), v, &l.last).Names)
	require.Empty(t, Routes{}.Affected(l.in(), v, &l.last).Names)
	require.False(t, ViewConcerned(labProxy(), &l.last))
	l.store.SetSettings(mesh.Settings{Weights: mesh.Weights{Clusters: map[mesh.ClusterID]uint32{"c1": 50}}})
	require.Equal(t, registry.ScopeWeights, l.last.Scope, "equal settings change nothing")
}

// What drains or reduces is named: annotation, setting, or both.
func TestDrainSaysWhere(t *testing.T) {
	l := netLab(nil, gatewayAt("9.9.9.9"))
	webPod(l, "c1", "10.1.0.1")
	webPod(l, "c2", "10.2.0.1")
	l.store.SetSettings(mesh.Settings{Weights: mesh.Weights{
		Clusters: map[mesh.ClusterID]uint32{"c1": 50}, Networks: map[mesh.NetworkID]uint32{"n2": 0}}})
	l.store.SetSecretWeights(map[mesh.ClusterID]mesh.Weight{"c1": {Percent: 20, From: "the secret"}})
	v := labSidecar(func(v *View) { v.Network = "n1" })
	sel := l.selectWeb(v)
	require.Equal(t, map[string]uint32{" 10.1.0.1:80": 20}, sent(sel))
	require.Equal(t, "network n2 is drained: weight 0 by key isthmus of ConfigMap istio", sel.Candidates[1].Text(v))
	x := Explain(l.in(), v, webKey.Hostname, 80)
	require.Contains(t, x.Notes, "endpoints of cluster c1 on network n1 get 20 % of their share: "+
		"cluster 20 % by the secret, which counts before the 50 % of key isthmus of ConfigMap istio")

	l.store.SetSecretWeights(map[mesh.ClusterID]mesh.Weight{"c2": {Percent: 0, From: "its secret"}})
	require.Equal(t, registry.ScopeWeights, l.last.Scope)
	require.Equal(t, "cluster c2 is drained: weight 0 by its secret", l.selectWeb(v).Candidates[1].Text(v))
	require.Equal(t, Affected{}, Upstreams{}.Affected(l.in(), v, &l.last))
	require.True(t, Assignments{}.Affected(l.in(), v, &l.last).All)
}
