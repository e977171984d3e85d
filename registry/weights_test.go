package registry

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Weights of secrets are no part of the settings, and neither replaces the other.
func TestSecretWeights(t *testing.T) {
	s := NewStore(Config{Primary: primary})
	var changes []Change
	s.OnChange(func(c Change) { changes = append(changes, c) })
	given := map[mesh.ClusterID]mesh.Weight{"west": {Percent: 0, From: "a secret"}}
	s.SetSecretWeights(given)
	require.Len(t, changes, 1)
	require.Equal(t, ScopeWeights, changes[0].Scope)
	require.Empty(t, changes[0].Services)
	given["west"] = mesh.Weight{Percent: 7, From: "the caller's own map"}
	require.EqualValues(t, 0, s.Catalog().Settings.Weights.Of("west", ""))

	s.SetSecretWeights(map[mesh.ClusterID]mesh.Weight{"west": {Percent: 0, From: "a secret"}})
	require.Len(t, changes, 1, "the same again is no change")

	s.SetSettings(mesh.Settings{Weights: mesh.Weights{Clusters: map[mesh.ClusterID]uint32{"west": 50, "east": 50}}})
	require.Len(t, changes, 2)
	require.Equal(t, ScopeWeights, changes[1].Scope)
	require.EqualValues(t, 0, s.Catalog().Settings.Weights.Of("west", ""), "the secret counts before the settings")
	require.EqualValues(t, 50, s.Catalog().Settings.Weights.Of("east", ""))

	s.SetSecretWeights(nil)
	require.Equal(t, ScopeWeights, changes[2].Scope)
	require.EqualValues(t, 50, s.Catalog().Settings.Weights.Of("west", ""))
}
