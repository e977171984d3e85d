package build

import (
	"math"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// Weights are multiplied by [registry.Catalog.WeightScale] before they are
// split among gateways, so that a pod counts the same whether it is dialled
// itself or stands behind any number of gateways. What the scale cannot divide
// (more gateways than its bound allows, or gateways left out because they have
// no address) goes to the first gateways in order: the sum is always exact.

// weightScale is the unit of all assignments. Where clusters are drained in part,
// it divides by a hundred, too.
func weightScale(c *registry.Catalog) uint32 {
	if c.Settings.Weights.Partial() {
		return saturate(uint64(c.WeightScale()) * mesh.FullWeight)
	}
	return c.WeightScale()
}

// scaled is an endpoint's weight in the unit of its assignment.
func scaled(weight, scale uint32) uint32 {
	return saturate(uint64(max(weight, 1)) * uint64(max(scale, 1)))
}

// share is the part of a weight that the i-th of n gateways gets.
func share(weight uint32, i, n int) uint32 {
	part := weight / uint32(n)
	if uint32(i) < weight%uint32(n) {
		part++
	}
	return part
}

// add sums two weights without wrapping around.
func add(a, b uint32) uint32 { return saturate(uint64(a) + uint64(b)) }

func saturate(w uint64) uint32 { return uint32(min(w, math.MaxUint32)) }

// fit divides all weights by one number if their sum is more than 32 bits hold:
// Envoy and gRPC reject such an assignment. No weight becomes 0.
func (p *plan) fit() {
	var total, n uint64
	for _, g := range p.groups {
		for _, x := range g.picks {
			total += uint64(x.weight)
			n++
		}
	}
	if total <= math.MaxUint32 {
		return
	}
	room := math.MaxUint32 - n
	by := (total + room - 1) / room
	for _, g := range p.groups {
		for i := range g.picks {
			g.picks[i].weight = max(uint32(uint64(g.picks[i].weight)/by), 1)
		}
	}
}
