package multicluster

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"go.uber.org/zap"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// ReasonWeight is the reason of Events about a weight that cannot be read.
const ReasonWeight = "InvalidWeight"

// fieldWeight is where the weight is, in problems.
const fieldWeight = "metadata.annotations[" + WeightAnnotation + "]"

// weights is what the Secrets that count say of their clusters' weights. They
// have no part in the state machine: a changed weight restarts nothing.
type weights struct {
	// of holds for every cluster the last weight that could be read.
	of map[mesh.ClusterID]mesh.Weight
	// told is what SetWeights was called with last.
	told map[mesh.ClusterID]mesh.Weight
	// wrong are the Secrets whose annotation is on record as a problem.
	wrong map[mesh.ObjectRef]struct{}
}

// ParseWeight reads a weight as the annotation has it.
func ParseWeight(text string) (uint32, error) {
	n, err := strconv.ParseUint(strings.TrimSpace(text), 10, 32)
	if err != nil || n > mesh.FullWeight {
		return 0, fmt.Errorf("%q is not a percentage: write a whole number from 0 to 100", printable(text))
	}
	return uint32(n), nil
}

// WeightFrom names the annotation of a Secret NAMESPACE/NAME as what gives a
// cluster its weight.
func WeightFrom(secret string) string {
	return "annotation " + WeightAnnotation + " of secret " + secret
}

// weigh reads the annotations of the Secrets that count. One that cannot be read
// leaves the cluster with the weight it has, and is on record by name.
func (m *Manager) weigh(owners map[mesh.ClusterID]claim) {
	w := &m.loop.weights
	next := maps.Clone(w.of)
	if next == nil {
		next = map[mesh.ClusterID]mesh.Weight{}
	}
	wrong := map[mesh.ObjectRef]struct{}{}
	for _, id := range slices.SortedFunc(maps.Keys(owners), cmp.Compare) {
		c := owners[id]
		if !c.weight.set {
			delete(next, id)
			continue
		}
		percent, err := ParseWeight(c.weight.text)
		if err != nil {
			ref := m.secretRef(c.origin)
			if _, told := wrong[ref]; !told { // it may be that of several clusters
				m.refuseWeight(ref, c, err)
			}
			wrong[ref] = struct{}{}
			continue
		}
		next[id] = mesh.Weight{Percent: percent, From: WeightFrom(c.origin.String())}
	}
	for ref := range w.wrong {
		if _, still := wrong[ref]; !still {
			m.cfg.Problems.Clear(ref)
		}
	}
	w.wrong, w.of = wrong, next
	m.tellWeights()
}

// forgetWeights forgets the weights of clusters that nobody claims.
func (m *Manager) forgetWeights(owners map[mesh.ClusterID]claim) {
	w := &m.loop.weights
	maps.DeleteFunc(w.of, func(id mesh.ClusterID, _ mesh.Weight) bool {
		_, claimed := owners[id]
		return !claimed
	})
	m.tellWeights()
}

// tellWeights hands the weights on if they are others than before.
func (m *Manager) tellWeights() {
	w := &m.loop.weights
	if maps.Equal(w.of, w.told) {
		return
	}
	for _, id := range slices.SortedFunc(maps.Keys(w.of), cmp.Compare) {
		if x := w.of[id]; w.told[id] != x {
			m.log.Info("weight of cluster", zap.String("cluster", string(id)), zap.Uint32("percent", x.Percent), zap.String("from", x.From))
		}
	}
	w.told = maps.Clone(w.of)
	if m.cfg.SetWeights != nil {
		m.cfg.SetWeights(maps.Clone(w.of))
	}
}

// refuseWeight puts an annotation that cannot be read on record, once.
func (m *Manager) refuseWeight(ref mesh.ObjectRef, c claim, err error) {
	message := fmt.Sprintf("%v; the last good weight stays, or none if there was none", err)
	if m.cfg.Problems.Set(ref, fieldWeight, message) {
		m.log.Warn("weight of cluster refused", zap.String("cluster", string(c.id)), zap.String("origin", c.origin.String()), zap.String("message", message))
		m.warn(c.origin, ReasonWeight, "annotation "+WeightAnnotation+": "+message)
	}
}

// secretRef names a Secret, which is in the primary.
func (m *Manager) secretRef(o Origin) mesh.ObjectRef {
	return mesh.ObjectRef{Cluster: m.cfg.Primary, Kind: "Secret", Namespace: o.Namespace, Name: o.Name}
}
