package config

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/isthmus-mesh/isthmus/mesh"
)

func TestOwnSettings(t *testing.T) {
	s, err := FromConfigMap(map[string]string{"isthmus": `
failoverNeedsOutlierDetection: true
weights:
  clusters: {north: 0, south: 50}
  networks: {net-2: 25}
`})
	require.NoError(t, err)
	require.True(t, s.FailoverNeedsOutliers)
	require.Equal(t, mesh.Weights{Clusters: map[mesh.ClusterID]uint32{"north": 0, "south": 50}, Networks: map[mesh.NetworkID]uint32{"net-2": 25}}, s.Weights)
	require.Equal(t, uint32(0), s.Weights.Of("north", "net-1"))
	require.Equal(t, uint32(12), s.Weights.Of("south", "net-2"))
	require.Equal(t, uint32(100), s.Weights.Of("west", "net-1"))

	for text, want := range map[string]string{
		"weights: {clusters: {north: 101}}": "key isthmus: weights.clusters.north: 101 is above 100; it is a percentage",
		"weights: {networks: {net: 200}}":   "key isthmus: weights.networks.net: 200 is above 100; it is a percentage",
		"wieghts: {}":                       "wieghts",
		"weights: {clusters: {north: -1}}":  "key isthmus",
	} {
		_, err := FromConfigMap(map[string]string{"isthmus": text})
		require.ErrorContains(t, err, want)
	}
}
