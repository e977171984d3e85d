package entry

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"slices"

	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Pod is a pod as a cluster reports it.
type Pod struct {
	Cluster mesh.ClusterID
	// Key names the pod within the cluster.
	Key      string
	Workload *mesh.Workload
	Health   mesh.Health
}

// MachineChange is a machine before and after. Either side may be nil.
type MachineChange struct {
	Cluster       mesh.ClusterID
	Before, After *mesh.Workload
}

// Index holds the ServiceEntries of the primary and the machines of all
// clusters, and finds out what one change concerns: a pod costs a look at the
// entries of its namespace that have a selector, and then those that select it.
// What it says is a function of what was set last, whatever came before. It is
// not safe for concurrent use.
type Index struct {
	trustDomain string
	visibility  *meshconfig.ServiceEntryVisibility
	// namespaces holds the labels of those that are known.
	namespaces map[string]map[string]string
	entries    map[mesh.ObjectKey]*Entry
	// hosts lists the entries that define a host, oldest first.
	hosts    map[mesh.ServiceKey][]*Entry
	machines map[machineKey]machine
	spaces   map[string]*space
	vips     map[mesh.ServiceKey][]netip.Addr
	derived  map[mesh.ServiceKey]*Derived
	dirty    map[mesh.ServiceKey]struct{}
	// reallocate: the virtual IPs may be others; unread: some namespace has to
	// know its pods.
	reallocate, unread bool
}

type machineKey struct {
	cluster mesh.ClusterID
	key     mesh.ObjectKey
}

type machine struct {
	object *mesh.Object
	member *Member
}

// memberRef names a pod or a machine.
type memberRef struct {
	cluster mesh.ClusterID
	kind    string
	key     string
}

// space is what selection looks at in one namespace.
type space struct {
	selections map[mesh.ObjectKey]*selection
	machines   map[memberRef]*Member
	// pods are known only while some entry selects; known says that they are.
	pods  map[memberRef]*Member
	known bool
}

// selection is what an entry selects.
type selection struct {
	entry   *Entry
	members map[memberRef]*Member
}

// NewIndex returns an empty index for a mesh with a trust domain.
func NewIndex(trustDomain string) *Index {
	return &Index{trustDomain: trustDomain, namespaces: map[string]map[string]string{}, entries: map[mesh.ObjectKey]*Entry{}, hosts: map[mesh.ServiceKey][]*Entry{},
		machines: map[machineKey]machine{}, spaces: map[string]*space{}, vips: map[mesh.ServiceKey][]netip.Addr{},
		derived: map[mesh.ServiceKey]*Derived{}, dirty: map[mesh.ServiceKey]struct{}{}}
}

// SetTrustDomain renews the identities of machines and returns those that differ now.
func (x *Index) SetTrustDomain(to string) []MachineChange {
	if x.trustDomain == to {
		return nil
	}
	x.trustDomain = to
	for k, e := range maps.Clone(x.entries) {
		x.SetEntry(k, e.Object)
	}
	var out []MachineChange
	for k, m := range maps.Clone(x.machines) {
		if c := x.SetMachine(k.cluster, k.key, m.object); c.Before != c.After {
			out = append(out, c)
		}
	}
	return out
}

// SetEntry adds or replaces a ServiceEntry; nil removes it.
func (x *Index) SetEntry(k mesh.ObjectKey, o *mesh.Object) {
	old := x.entries[k]
	var now *Entry
	if o != nil {
		now = ReadEntry(o, x.trustDomain)
	}
	if now != nil {
		now = now.limit(visibilityOf(x.visibility, k.Namespace, x.namespaces[k.Namespace]))
	}
	if old != nil {
		x.unlink(old)
	}
	if now != nil {
		x.link(now)
	}
	x.reallocate = x.reallocate || !claimAlike(old, now)
}

func (x *Index) unlink(e *Entry) {
	ns := e.Object.Key.Namespace
	delete(x.entries, e.Object.Key)
	for _, h := range e.Hosts {
		k := mesh.ServiceKey{Namespace: ns, Hostname: h}
		x.dirty[k] = struct{}{}
		list := slices.DeleteFunc(slices.Clone(x.hosts[k]), func(o *Entry) bool { return o == e })
		if x.hosts[k] = list; len(list) == 0 {
			delete(x.hosts, k)
		}
	}
	if s := x.spaces[ns]; s != nil && s.selections[e.Object.Key] != nil {
		delete(s.selections, e.Object.Key)
		x.tidy(ns, s)
	}
}

func (x *Index) link(e *Entry) {
	ns := e.Object.Key.Namespace
	x.entries[e.Object.Key] = e
	for _, h := range e.Hosts {
		k := mesh.ServiceKey{Namespace: ns, Hostname: h}
		x.dirty[k] = struct{}{}
		list := append(slices.Clone(x.hosts[k]), e)
		slices.SortFunc(list, func(a, b *Entry) int { return mesh.CompareObjects(a.Object, b.Object) })
		x.hosts[k] = list
	}
	if len(e.Selector) == 0 {
		return
	}
	s := x.space(ns)
	if s.selections == nil {
		s.selections = map[mesh.ObjectKey]*selection{}
	}
	sel := &selection{entry: e, members: map[memberRef]*Member{}}
	s.selections[e.Object.Key] = sel
	x.unread = x.unread || !s.known
	for _, set := range []map[memberRef]*Member{s.machines, s.pods} {
		for r, m := range set {
			if Selects(e.Selector, m.Workload.Labels) {
				sel.members[r] = m
			}
		}
	}
}

func (x *Index) space(ns string) *space {
	s := x.spaces[ns]
	if s == nil {
		s = &space{}
		x.spaces[ns] = s
	}
	return s
}

// tidy forgets what nobody asks for any more.
func (x *Index) tidy(ns string, s *space) {
	if len(s.selections) == 0 {
		s.pods, s.known = nil, false
		if len(s.machines) == 0 {
			delete(x.spaces, ns)
		}
	}
}

// SetMachine adds or replaces a WorkloadEntry of a cluster; nil removes it. It
// returns what that means for the machine.
func (x *Index) SetMachine(id mesh.ClusterID, k mesh.ObjectKey, o *mesh.Object) MachineChange {
	mk, ref := machineKey{id, k}, memberRef{id, KindMachine, k.Name}
	old := x.machines[mk].member
	var now *Member
	if o != nil {
		now = ReadMachine(id, o, x.trustDomain)
	}
	if now.equal(old) {
		now = old
	}
	if now == nil {
		delete(x.machines, mk)
	} else {
		x.machines[mk] = machine{o, now}
	}
	c := MachineChange{Cluster: id}
	if old != nil {
		c.Before = old.Workload
	}
	if now != nil {
		c.After = now.Workload
	}
	if now == old {
		return c
	}
	s := x.space(k.Namespace)
	if s.machines == nil {
		s.machines = map[memberRef]*Member{}
	}
	if now != nil && old != nil && now.Workload.Equal(old.Workload) { // keeps the pointer that others have
		now.Workload, c.After = old.Workload, old.Workload
	}
	put(s.machines, ref, now)
	x.reselect(s, ref, now)
	x.tidy(k.Namespace, s)
	return c
}

// SetPod tells of a pod that changed; before and after are nil for one that was
// not there or is gone.
func (x *Index) SetPod(before, after *Pod) {
	if before != nil && (after == nil || after.Workload.Namespace != before.Workload.Namespace) {
		x.setPod(before, nil)
	}
	if after != nil {
		x.setPod(after, podMember(after))
	}
}

func (x *Index) setPod(p *Pod, m *Member) {
	s := x.spaces[p.Workload.Namespace]
	if s == nil || !s.known {
		return
	}
	ref := memberRef{p.Cluster, p.Workload.Kind, p.Key}
	put(s.pods, ref, m)
	x.reselect(s, ref, m)
}

func podMember(p *Pod) *Member { return &Member{Workload: p.Workload, Health: p.Health} }

func put(set map[memberRef]*Member, r memberRef, m *Member) {
	if m == nil {
		delete(set, r)
		return
	}
	set[r] = m
}

// reselect brings the selections of a namespace up to date for one member.
func (x *Index) reselect(s *space, r memberRef, m *Member) {
	for _, sel := range s.selections {
		old, now := sel.members[r], m
		if now != nil && !Selects(sel.entry.Selector, now.Workload.Labels) {
			now = nil
		}
		if old.equal(now) {
			if now != nil {
				sel.members[r] = now
			}
			continue
		}
		put(sel.members, r, now)
		x.touch(sel.entry)
	}
}

func (x *Index) touch(e *Entry) {
	for _, h := range e.Hosts {
		x.dirty[mesh.ServiceKey{Namespace: e.Object.Key.Namespace, Hostname: h}] = struct{}{}
	}
}

// Flush brings everything up to date and yields the hosts of which something
// else is derived now than before, in no particular order. pods yields the pods
// of all clusters; it is asked only if entries of a namespace begin to select.
func (x *Index) Flush(pods func() iter.Seq[Pod]) []mesh.ServiceKey {
	if x.unread {
		x.read(pods())
	}
	if x.reallocate {
		x.allocateAll()
	}
	if len(x.dirty) == 0 {
		return nil
	}
	out := make([]mesh.ServiceKey, 0, len(x.dirty))
	for k := range x.dirty {
		if x.rederive(k) {
			out = append(out, k)
		}
	}
	x.dirty = map[mesh.ServiceKey]struct{}{} // clearing one that was large would cost as much every time
	return out
}

// read gives pods to the namespaces that have begun to select.
func (x *Index) read(pods iter.Seq[Pod]) {
	x.unread = false
	wanting := map[string]*space{}
	for ns, s := range x.spaces {
		if len(s.selections) > 0 && !s.known {
			s.known, s.pods = true, map[memberRef]*Member{}
			wanting[ns] = s
		}
	}
	if len(wanting) == 0 {
		return
	}
	for p := range pods {
		if s := wanting[p.Workload.Namespace]; s != nil {
			x.setPod(&p, podMember(&p))
		}
	}
}

// allocateAll gives virtual IPs to all hosts that want one.
func (x *Index) allocateAll() {
	x.reallocate = false
	var claims []Claim
	reserved := map[netip.Addr]struct{}{}
	for k, list := range x.hosts {
		for _, e := range list { // the oldest that asks
			if e.Allocates(k.Hostname) {
				claims = append(claims, Claim{Key: k, Created: e.Object.Created, Held: e.held(k.Hostname)})
				break
			}
		}
	}
	for _, e := range x.entries {
		for _, a := range e.base.Addresses {
			reserved[a] = struct{}{}
		}
	}
	vips := Allocate(claims, reserved)
	for k := range x.vips {
		if _, still := vips[k]; !still {
			x.dirty[k] = struct{}{}
		}
	}
	for k, a := range vips {
		if !slices.Equal(x.vips[k], a) {
			x.dirty[k] = struct{}{}
		}
	}
	x.vips = vips
}

// held are the addresses that the entry's status has for a host.
func (e *Entry) held(host mesh.Hostname) []netip.Addr {
	var out []netip.Addr
	if e.Object.Status == nil {
		return nil
	}
	for _, a := range e.Object.Status.Addresses {
		if a.Host == host && !slices.Contains(out, a.Address) {
			out = append(out, a.Address)
		}
	}
	return out
}

// claimAlike reports whether two states of an entry, either of which may be nil,
// ask for the same virtual IPs and keep the same ones from others.
func claimAlike(a, b *Entry) bool {
	if a == nil || b == nil {
		e := cmp.Or(a, b)
		return e == nil || !e.allocate && len(e.base.Addresses) == 0
	}
	return a.allocate == b.allocate && slices.Equal(a.base.Addresses, b.base.Addresses) && slices.Equal(a.Hosts, b.Hosts) &&
		a.Object.Created.Equal(b.Object.Created) && a.Object.Status.Equal(b.Object.Status)
}

// rederive brings one host up to date and reports whether it differs now.
func (x *Index) rederive(k mesh.ServiceKey) bool {
	old, list := x.derived[k], x.hosts[k]
	if len(list) == 0 {
		delete(x.derived, k)
		return old != nil
	}
	now := derive(k, list, x.vips[k], x.members)
	if old == nil {
		x.derived[k] = now
		return true
	}
	same := old.Definition.Equal(now.Definition)
	if same {
		now.Definition = old.Definition
	}
	if same && slices.Equal(old.Conflicts, now.Conflicts) && slices.EqualFunc(old.Endpoints, now.Endpoints, mesh.Endpoint.Equal) {
		return false
	}
	x.derived[k] = now
	return true
}

// members lists what an entry selects, in a fixed order.
func (x *Index) members(e *Entry) []*Member {
	s := x.spaces[e.Object.Key.Namespace]
	if s == nil || s.selections[e.Object.Key] == nil {
		return nil
	}
	set := s.selections[e.Object.Key].members
	refs := slices.SortedFunc(maps.Keys(set), func(a, b memberRef) int {
		return cmp.Or(cmp.Compare(a.cluster, b.cluster), cmp.Compare(a.kind, b.kind), cmp.Compare(a.key, b.key))
	})
	out := make([]*Member, len(refs))
	for i, r := range refs {
		out[i] = set[r]
	}
	return out
}

// Derived returns what the ServiceEntries say of a host, as of the last Flush;
// nil if none defines it.
func (x *Index) Derived(k mesh.ServiceKey) *Derived { return x.derived[k] }

// All yields every host that a ServiceEntry defines, as of the last Flush.
func (x *Index) All() iter.Seq2[mesh.ServiceKey, *Derived] { return maps.All(x.derived) }

// Selected appends the endpoints of the machines of a cluster and namespace that
// the selector of a Kubernetes Service selects.
func (x *Index) Selected(out []mesh.Endpoint, id mesh.ClusterID, ns string, selector map[string]string, ports []mesh.Port) []mesh.Endpoint {
	s := x.spaces[ns]
	if s == nil {
		return out
	}
	for r, m := range s.machines {
		if r.cluster == id && m.Workload.Host == "" && Selects(selector, m.Workload.Labels) {
			out = m.Endpoints(out, ports)
		}
	}
	return out
}
