package registry

import (
	"cmp"
	"iter"
	"maps"
	"slices"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry/entry"
)

// What users write by hand about hosts and machines (ServiceEntry,
// WorkloadEntry) is not a source of its own: it is derived within the batch that
// brings an object or a pod, so that what the Store says stays a function of the
// newest states alone.
//
// A host that a Kubernetes Service of the namespace has too is the Service's,
// whatever is older: nobody takes a host over by an entry. The entry adds its
// endpoints, and the clash is among the conflicts.

// podState is a workload as a cluster reported it.
type podState struct {
	workload *mesh.Workload
	health   mesh.Health
}

// pods yields the pods of all clusters.
func (s *Store) pods() iter.Seq[entry.Pod] {
	return func(yield func(entry.Pod) bool) {
		for id, sh := range s.shards {
			for k, p := range sh.workloads {
				if !yield(entry.Pod{Cluster: id, Key: k, Workload: p.workload, Health: p.health}) {
					return
				}
			}
		}
	}
}

// trustDomain is the trust domain of machines.
func trustDomain(s mesh.Settings) string {
	return cmp.Or(s.Mesh.GetTrustDomain(), mesh.DefaultTrustDomain)
}

// updatePod tells the entries of a pod that may have changed.
func (b *batch) updatePod(id mesh.ClusterID, key string, before, after podState) {
	pod := func(p podState) *entry.Pod {
		if p.workload == nil {
			return nil
		}
		return &entry.Pod{Cluster: id, Key: key, Workload: p.workload, Health: p.health}
	}
	b.store.entries.SetPod(pod(before), pod(after))
}

// updateMachine takes in a WorkloadEntry of a cluster; nil removes it.
func (b *batch) updateMachine(id mesh.ClusterID, k mesh.ObjectKey, o *mesh.Object) {
	b.machineChanged(b.store.entries.SetMachine(id, k, o))
}

// machineChanged makes a machine known under its new address, and touches the
// Kubernetes Services of its cluster that select it. Those that are new or
// different in this batch are touched anyway.
func (b *batch) machineChanged(c entry.MachineChange) {
	if c.Before != c.After {
		b.claim(c.Cluster, c.Before, c.After)
	}
	for _, w := range []*mesh.Workload{c.Before, c.After} {
		if w == nil {
			continue
		}
		for _, svc := range b.store.catalog.Load().InNamespace(w.Namespace) {
			if d := svc.In[c.Cluster]; d != nil && entry.Selects(d.Selector, w.Labels) {
				b.touch(svc.Key)
			}
		}
	}
}

// updateTrustDomain renews the identities of machines.
func (b *batch) updateTrustDomain() {
	for _, c := range b.store.entries.SetTrustDomain(trustDomain(b.store.settings)) {
		b.machineChanged(c)
	}
}

// touchDerived touches every host of a ServiceEntry.
func (b *batch) touchDerived() {
	for k := range b.store.entries.All() {
		b.touch(k)
	}
}

// entryConflicts tells where entries disagree about a host, with each other and
// with the Kubernetes Services that have it.
func (s *Store) entryConflicts(k mesh.ServiceKey, in map[mesh.ClusterID]*mesh.Definition) []mesh.Conflict {
	d := s.entries.Derived(k)
	if d == nil || in[s.primary] == d.Definition {
		if d == nil {
			return nil
		}
		return d.Conflicts
	}
	winner := slices.MinFunc(slices.Collect(maps.Keys(in)), func(a, b mesh.ClusterID) int { return mesh.CompareClusters(s.primary, a, b) })
	return append(slices.Clone(d.Conflicts), mesh.Conflict{Service: k, Field: entry.ConflictField, Winner: winner, Loser: s.primary,
		Detail: d.Definition.Origin.String() + " defines the host of " + in[winner].Origin.String() + ", which counts; the entry adds its endpoints"})
}

// sameConflicts reports whether a merged service tells of these conflicts about
// entries, and of no others.
func sameConflicts(merged *mesh.Service, want []mesh.Conflict) bool {
	i := 0
	for _, c := range merged.Conflicts {
		if c.Field != entry.ConflictField {
			continue
		}
		if i == len(want) || c != want[i] {
			return false
		}
		i++
	}
	return i == len(want)
}

// entryEndpoints lists the endpoints of a host that no cluster reported: those
// of ServiceEntries, and the machines that Kubernetes Services select in their
// own clusters. Networks are set; the order is none.
func (s *Store) entryEndpoints(k mesh.ServiceKey) []mesh.Endpoint {
	var out []mesh.Endpoint
	for id, sh := range s.shards {
		if d := sh.services[k].Definition; d != nil && len(d.Selector) > 0 {
			out = s.entries.Selected(out, id, k.Namespace, d.Selector, d.Ports)
		}
	}
	if d := s.entries.Derived(k); d != nil {
		out = append(out, d.Endpoints...)
	}
	for i := range out {
		var of mesh.NetworkID
		id := out[i].Workload.Cluster
		if sh := s.shards[id]; sh != nil {
			of = sh.state.Network
		}
		out[i].Network = s.networks.of(id, of, out[i])
	}
	return out
}
