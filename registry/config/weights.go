package config

import (
	"fmt"
	"maps"
	"slices"

	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// keyOwn is the key of the mesh's ConfigMap for what MeshConfig has no field for.
const keyOwn = "isthmus"

// ownSettings is the content of the key.
type ownSettings struct {
	// FailoverNeedsOutlierDetection restricts failover between localities to
	// services with outlier detection, as Istio does.
	FailoverNeedsOutlierDetection bool `json:"failoverNeedsOutlierDetection"`
	// Weights is how much of its share of the traffic a cluster or a network gets,
	// in percent. 0 drains it.
	Weights struct {
		Clusters map[mesh.ClusterID]uint32 `json:"clusters"`
		Networks map[mesh.NetworkID]uint32 `json:"networks"`
	} `json:"weights"`
}

// readOwn reads the key into settings. A field that is not known is an error: a
// drain that is misspelt must not be taken for none.
func readOwn(text string, into *mesh.Settings) error {
	var own ownSettings
	if err := yaml.UnmarshalStrict([]byte(text), &own); err != nil {
		return fmt.Errorf("key %s: %w", keyOwn, err)
	}
	w := own.Weights
	for _, id := range slices.Sorted(maps.Keys(w.Clusters)) {
		if n := w.Clusters[id]; n > mesh.FullWeight {
			return fmt.Errorf("key %s: weights.clusters.%s: %d is above 100; it is a percentage", keyOwn, id, n)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(w.Networks)) {
		if n := w.Networks[id]; n > mesh.FullWeight {
			return fmt.Errorf("key %s: weights.networks.%s: %d is above 100; it is a percentage", keyOwn, id, n)
		}
	}
	into.FailoverNeedsOutliers = own.FailoverNeedsOutlierDetection
	into.Weights = mesh.Weights{Clusters: w.Clusters, Networks: w.Networks}
	return nil
}
