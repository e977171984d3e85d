package mesh

import (
	"fmt"
	"maps"
)

// FullWeight is the weight, in percent, of what is not drained.
const FullWeight = 100

// settingOfWeights is where users write the weights of [Weights.Clusters] and
// [Weights.Networks].
const settingOfWeights = "key isthmus of ConfigMap istio"

// Weights say how much of its share of the traffic a cluster or network gets, in
// percent: 0 drains it. What is not named gets all of it. They are immutable.
type Weights struct {
	// Clusters and Networks are what the mesh-wide settings say.
	Clusters map[ClusterID]uint32
	Networks map[NetworkID]uint32
	// Secrets is what the remote secrets of clusters say. It counts before Clusters.
	Secrets map[ClusterID]Weight
}

// Weight is one weight and what says so.
type Weight struct {
	Percent uint32 `json:"percent"`
	// From names the object and the field, for people; "" if nothing says so, and
	// the weight is full.
	From string `json:"from"`
}

// Given is the weight if something says so, else nil.
func (w Weight) Given() *Weight {
	if w.From == "" {
		return nil
	}
	return &w
}

// Cluster is a cluster's own weight.
func (w Weights) Cluster(c ClusterID) Weight {
	setting, set := w.Clusters[c]
	s, ok := w.Secrets[c]
	switch {
	case ok && set && setting != s.Percent:
		s.From = fmt.Sprintf("%s, which counts before the %d %% of %s", s.From, setting, settingOfWeights)
		return s
	case ok:
		return s
	case set:
		return Weight{Percent: setting, From: settingOfWeights}
	}
	return Weight{Percent: FullWeight}
}

// Network is a network's own weight.
func (w Weights) Network(n NetworkID) Weight {
	if set, ok := w.Networks[n]; ok {
		return Weight{Percent: set, From: settingOfWeights}
	}
	return Weight{Percent: FullWeight}
}

// Of is the weight of endpoints in a cluster and network: the product of both,
// at least 1 unless one of them is drained. It is on the hot path.
func (w Weights) Of(c ClusterID, n NetworkID) uint32 {
	a, b := w.cluster(c), uint32(FullWeight)
	if set, ok := w.Networks[n]; ok {
		b = set
	}
	if a == 0 || b == 0 {
		return 0
	}
	return max(a*b/FullWeight, 1)
}

func (w Weights) cluster(c ClusterID) uint32 {
	if s, ok := w.Secrets[c]; ok {
		return s.Percent
	}
	if set, ok := w.Clusters[c]; ok {
		return set
	}
	return FullWeight
}

// Equal reports whether two sets of weights are the same, from the same places.
func (w Weights) Equal(o Weights) bool {
	return maps.Equal(w.Clusters, o.Clusters) && maps.Equal(w.Networks, o.Networks) && maps.Equal(w.Secrets, o.Secrets)
}

// Empty reports whether nothing has a weight of its own.
func (w Weights) Empty() bool { return len(w.Clusters)+len(w.Networks)+len(w.Secrets) == 0 }

// Partial reports whether any weight in force is neither nothing nor all.
func (w Weights) Partial() bool {
	partial := func(n uint32) bool { return n != 0 && n < FullWeight }
	for c := range w.Clusters {
		if partial(w.cluster(c)) {
			return true
		}
	}
	for _, n := range w.Networks {
		if partial(n) {
			return true
		}
	}
	for _, s := range w.Secrets {
		if partial(s.Percent) {
			return true
		}
	}
	return false
}
