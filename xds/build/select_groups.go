package build

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// plan is a selection in its smallest form: what is dialled by locality, as
// numbers that refer to endpoints and gateways. The hot path makes one per
// assignment, so it holds no pointer per endpoint.
type plan struct {
	candidates []mesh.Endpoint
	gateways   []*mesh.NetworkGateway
	groups     []planned
	// plain says that a DestinationRule takes mesh mTLS off all endpoints.
	plain bool
	// ready says that something that is kept takes requests.
	ready bool
}

// planned is what is dialled in one locality.
type planned struct {
	locality mesh.Locality
	picks    []pick
	// priority is 0 for what is preferred; the next ones are for when that fails.
	priority uint32
	// share is the locality's weight where it is not the sum of its picks', else 0.
	share uint32
}

// pick is one address to dial: candidates[at], or gateways[at-len(candidates)].
type pick struct{ at, weight uint32 }

// weight is the sum of the weights of a locality.
func (g *planned) weight() uint32 {
	if g.share != 0 {
		return g.share
	}
	var sum uint32
	for _, x := range g.picks {
		sum = add(sum, x.weight)
	}
	return sum
}

// entry is what a pick refers to.
func (p *plan) entry(x pick) Entry {
	if i := int(x.at) - len(p.candidates); i >= 0 {
		return Entry{Gateway: p.gateways[i], Weight: x.weight}
	}
	return Entry{Endpoint: &p.candidates[x.at], Weight: x.weight, plain: p.plain}
}

// expand gives a plan the form of [Selection].
func (p *plan) expand() []Group {
	var out []Group
	for _, g := range p.groups {
		e := make([]Entry, len(g.picks))
		for i, x := range g.picks {
			e[i] = p.entry(x)
		}
		out = append(out, Group{Locality: g.locality, Priority: g.priority, Share: g.share, Entries: e})
	}
	return out
}

// bucket collects what is kept of one locality. at is where its picks start in
// the list of all.
type bucket struct {
	locality mesh.Locality
	direct   int
	at       int
	gateways []pick
}

// placed is a pick and the bucket that it belongs to.
type placed struct {
	pick
	bucket uint32
}

// usualLocalities is how many localities most services are in at most.
const usualLocalities = 4

// plan decides about all candidates and gathers what is kept by locality:
// localities in order, within each the endpoints in the order of candidates,
// then the gateways by address.
func (s *selector) plan(candidates []mesh.Endpoint) *plan {
	if p := s.gather(candidates); s.undrained || !s.drained || p.ready {
		return s.arranged(p)
	}
	// Nothing that is left is ready: the drained endpoints are better than none.
	s.undrained = true
	return s.arranged(s.gather(candidates))
}

// gather decides about all candidates and puts what is kept into groups.
func (s *selector) gather(candidates []mesh.Endpoint) *plan {
	p := &plan{candidates: candidates, plain: s.ruled}
	flat := make([]placed, 0, len(candidates))
	buckets := make([]bucket, 0, usualLocalities)
	cur := -1
	for i := range candidates {
		e := &candidates[i]
		code, r := s.decide(e)
		if !code.Kept() {
			continue
		}
		if cur < 0 || buckets[cur].locality != e.Workload.Locality {
			buckets, cur = bucketOf(buckets, e.Workload.Locality)
		}
		p.ready = p.ready || e.Health == mesh.HealthReady || e.Health == mesh.HealthUnknown
		w := s.weight(e, r)
		if code == VerdictGateway {
			p.through(&buckets[cur], r.gateways, w)
			continue
		}
		flat = append(flat, placed{pick{uint32(i), w}, uint32(cur)})
		buckets[cur].direct++
	}
	p.assemble(buckets, flat)
	return p
}

// arranged orders a plan by what the client prefers and what it can take.
func (s *selector) arranged(p *plan) *plan {
	p.arrange(s.v, s.prefer)
	if s.v.Dialect == mesh.DialectGRPC {
		p.distinct()
	}
	p.fit()
	return p
}

func bucketOf(buckets []bucket, l mesh.Locality) ([]bucket, int) {
	for i := range buckets {
		if buckets[i].locality == l {
			return buckets, i
		}
	}
	return append(buckets, bucket{locality: l}), len(buckets)
}

// through splits an endpoint's weight over gateways. Gateways with the same
// address are one entry.
func (p *plan) through(b *bucket, gateways []mesh.NetworkGateway, weight uint32) {
	for i := range gateways {
		part := share(weight, i, len(gateways))
		if part == 0 {
			continue
		}
		if at := slices.IndexFunc(b.gateways, func(x pick) bool { return sameAddress(p.entry(x).Gateway, &gateways[i]) }); at >= 0 {
			b.gateways[at].weight = add(b.gateways[at].weight, part)
			continue
		}
		b.gateways = append(b.gateways, pick{uint32(len(p.candidates) + len(p.gateways)), part})
		p.gateways = append(p.gateways, &gateways[i])
	}
}

func sameAddress(a, b *mesh.NetworkGateway) bool {
	return a == b || a.Port == b.Port && dialled(a.Addr) == dialled(b.Addr)
}

// assemble puts the picks of all localities into order.
func (p *plan) assemble(buckets []bucket, flat []placed) {
	if len(buckets) == 0 {
		return
	}
	var few [usualLocalities]int
	order := few[:0]
	total := 0
	for i := range buckets {
		order = append(order, i)
		total += buckets[i].direct + len(buckets[i].gateways)
		slices.SortFunc(buckets[i].gateways, p.byAddress)
	}
	slices.SortFunc(order, func(a, b int) int { return buckets[a].locality.Compare(buckets[b].locality) })
	all := make([]pick, total)
	p.groups = make([]planned, 0, len(buckets))
	at := 0
	for _, i := range order {
		b := &buckets[i]
		end := at + b.direct + len(b.gateways)
		p.groups = append(p.groups, planned{locality: b.locality, picks: all[at:end:end]})
		copy(all[at+b.direct:end], b.gateways)
		b.at, at = at, end
	}
	for _, x := range flat {
		b := &buckets[x.bucket]
		all[b.at] = x.pick
		b.at++
	}
}

func (p *plan) byAddress(a, b pick) int {
	x, y := p.entry(a), p.entry(b)
	return x.Address().Compare(y.Address())
}

// distinct makes every address occur once, for clients that reject an
// assignment otherwise (gRPC). An address that occurs in several localities, as
// a gateway does that stands for several, is kept in the first of them by order
// with the weight of all of one priority; so the share of traffic through the address stays
// right, and its locality is that of some of its endpoints.
func (p *plan) distinct() {
	type place struct {
		pick     *pick
		priority uint32
	}
	seen := map[netip.AddrPort]place{}
	order := make([]int, len(p.groups))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(p.groups[a].priority, p.groups[b].priority) })
	for _, i := range order {
		g := &p.groups[i]
		kept := g.picks[:0]
		for _, x := range g.picks {
			e := p.entry(x)
			addr := e.Address()
			if first, dup := seen[addr]; dup {
				if first.priority == g.priority {
					first.pick.weight = add(first.pick.weight, x.weight)
				}
				continue
			}
			kept = append(kept, x)
			seen[addr] = place{&kept[len(kept)-1], g.priority}
		}
		g.picks = kept
	}
	p.groups = slices.DeleteFunc(p.groups, func(g planned) bool { return len(g.picks) == 0 })
	p.dense()
}
