package mesh

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWeightsOfSecretsCountFirst(t *testing.T) {
	w := Weights{Clusters: map[ClusterID]uint32{"a": 0, "b": 50, "d": 40}, Networks: map[NetworkID]uint32{"n": 50},
		Secrets: map[ClusterID]Weight{"a": {100, "secret a"}, "c": {0, "secret c"}, "d": {40, "secret d"}}}
	for id, want := range map[ClusterID]struct {
		weight       Weight
		alone, in    uint32
		saysAnything bool
	}{
		"a": {Weight{100, "secret a, which counts before the 0 % of key isthmus of ConfigMap istio"}, 100, 50, true},
		"b": {Weight{50, "key isthmus of ConfigMap istio"}, 50, 25, true},
		"c": {Weight{0, "secret c"}, 0, 0, true},
		"d": {Weight{40, "secret d"}, 40, 20, true},
		"e": {Weight{100, ""}, 100, 50, false},
	} {
		require.Equal(t, want.weight, w.Cluster(id), id)
		require.Equal(t, want.alone, w.Of(id, "other"), id)
		require.Equal(t, want.in, w.Of(id, "n"), "weights of cluster %s and network multiply", id)
		require.Equal(t, want.saysAnything, w.Cluster(id).Given() != nil, id)
	}
	require.Equal(t, Weight{50, "key isthmus of ConfigMap istio"}, w.Network("n"))
	require.Nil(t, w.Network("other").Given())
}

func TestPartialWeights(t *testing.T) {
	for _, c := range []struct {
		w    Weights
		want bool
	}{
		{Weights{}, false},
		{Weights{Clusters: map[ClusterID]uint32{"a": 50}}, true},
		{Weights{Clusters: map[ClusterID]uint32{"a": 0, "b": 100}}, false},
		{Weights{Networks: map[NetworkID]uint32{"n": 1}}, true},
		{Weights{Secrets: map[ClusterID]Weight{"a": {99, "s"}}}, true},
		{Weights{Clusters: map[ClusterID]uint32{"a": 50}, Secrets: map[ClusterID]Weight{"a": {0, "s"}}}, false}, // the 50 is not in force
	} {
		require.Equal(t, c.want, c.w.Partial(), "%+v", c.w)
	}
}
