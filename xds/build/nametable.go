package build

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// TypeNameTable is the xDS type of name tables.
const TypeNameTable = typePrefix + "istio.networking.nds.v1.NameTable"

// Registries as name tables call them. An agent completes short names for those
// of Kubernetes only.
const (
	registryKubernetes = "Kubernetes"
	registryExternal   = "External"
)

// NameTables makes name tables (NDS): one unnamed resource with the addresses
// behind every host that the view sees, for the DNS proxy of an agent. It gives
// whoever asks what a client of the proxy would dial:
//
//   - a service's virtual IPs, of the proxy's own cluster if it has any there,
//     of the address families that the proxy has;
//   - for a headless service the pods' own addresses, those of the own cluster
//     first, and under HOSTNAME.SUBDOMAIN the addresses of the single pod. Only
//     pods that a proxy can dial are in it (see [Listeners]), and like in a
//     cluster's own DNS only pods that are ready.
//
// Names without an address and aliases (ExternalName) are left out: the agent
// then asks its resolver, which knows them.
type NameTables struct{}

var (
	_ Generator = NameTables{}
	_ Encoder   = NameTables{}
)

// TypeURL implements [Generator].
func (NameTables) TypeURL() string { return TypeNameTable }

// Wildcard says that an agent asks for its table by naming nothing.
func (NameTables) Wildcard() bool { return true }

// List implements [Generator]: the table has no name.
func (NameTables) List(Inputs, View) []string { return []string{""} }

// ListView implements [Generator].
func (NameTables) ListView(View) View { return View{} }

// AffectedView keeps what Affected looks at.
func (NameTables) AffectedView(v View) View { return View{Sidecar: v.Sidecar} }

// Project implements [Generator].
func (NameTables) Project(in Inputs, v View, name string) View {
	if name != "" {
		return View{}
	}
	p := View{Cluster: v.Cluster, Network: v.Network, NetworkView: v.NetworkView, Namespace: tableScope(in, v), Sidecar: v.Sidecar}
	p.IPv4, p.IPv6 = families(v)
	return p
}

// tableScope is a namespace that stands for the view's: "" unless the view's
// sees a host that "" does not, or the other way round. What a Sidecar imports
// may be of its proxy's namespace or exported to it, and its "./*" is something
// else to every namespace that it is in force for.
func tableScope(in Inputs, v View) string {
	if v.Sidecar != (ObjectName{}) {
		return v.Namespace
	}
	if export := in.Catalog.Settings.Mesh.GetDefaultServiceExportTo(); len(export) > 0 && !slices.Contains(export, "*") {
		return v.Namespace
	}
	anyone := withoutNamespace(v)
	for host := range in.Catalog.ScopedHosts() {
		if namedService(in, v, host) != namedService(in, anyone, host) {
			return v.Namespace
		}
	}
	return ""
}

// namedService is the service that a host name means to the view: of several
// that it sees the one in its own namespace, else the first. nil if there is none.
func namedService(in Inputs, v View, host mesh.Hostname) *mesh.Service {
	var found *mesh.Service
	for _, s := range in.Catalog.Host(host) {
		if sees(in, v, s) && (found == nil || s.Key.Namespace == v.Namespace) {
			found = s
		}
	}
	return found
}

// Build implements [Generator].
func (NameTables) Build(in Inputs, v View, name string) (proto.Message, error) {
	if name != "" {
		return nil, nil
	}
	return nameTableMessage(nameRecords(in, v)), nil
}

// Encode implements [Encoder].
func (NameTables) Encode(in Inputs, v View, name string, dst []byte) ([]byte, bool, error) {
	if name != "" {
		return dst, false, nil
	}
	for _, r := range nameRecords(in, v) {
		dst = r.encode(dst)
	}
	return dst, true, nil
}

// Affected implements [Generator].
func (NameTables) Affected(in Inputs, v View, c *registry.Change) Affected {
	c, all := sidecarAffected(in, v, c)
	if all || c.Scope.Has(registry.ScopeSettings) {
		return Affected{All: true}
	}
	scoped := v.Sidecar != (ObjectName{}) // which may let services in by their ports
	for _, s := range c.Services {
		if s.Aspects.Has(registry.AspectDefinition) && (scoped || !sameNames(s.Before, s.After)) ||
			s.Aspects.Has(registry.AspectEndpoints) && (podsNamed(s.Before) || podsNamed(s.After)) {
			return Affected{Names: []string{""}}
		}
	}
	return Affected{}
}

// podsNamed reports whether a table may have addresses of the service's pods.
func podsNamed(s *mesh.Service) bool { return s != nil && s.Lead.Headless() && !s.Lead.FromEntry() }

// sameNames reports whether two states of a service give the same to any name
// table, but for their pods. Most changes of definitions are about ports or
// labels, and a table costs a walk over the mesh.
func sameNames(a, b *mesh.Service) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Lead.Resolution == b.Lead.Resolution && a.Lead.Name == b.Lead.Name && registryOf(a) == registryOf(b) &&
		slices.Equal(a.Lead.ExportTo, b.Lead.ExportTo) &&
		slices.EqualFunc(a.Clusters, b.Clusters, func(x, y mesh.ClusterID) bool {
			return x == y && slices.Equal(a.In[x].Addresses, b.In[y].Addresses) && slices.Equal(a.In[x].AutoAddresses, b.In[y].AutoAddresses)
		})
}

func registryOf(s *mesh.Service) string {
	if s.Lead.FromEntry() {
		return registryExternal
	}
	return registryKubernetes
}

// nameRecord is one name of a table. A name that several records have is that
// of the best ranked one.
type nameRecord struct {
	host             string
	service          *mesh.Service
	short, namespace string
	addrs            []netip.Addr
	// rank: a service's own name before those of pods, and of these the own cluster's.
	rank    uint8
	cluster mesh.ClusterID
}

const (
	nameOfService uint8 = iota
	nameOfPod
	nameOfRemotePod
)

// nameRecords lists the names that a view knows, sorted.
func nameRecords(in Inputs, v View) []*nameRecord {
	list := make([]nameRecord, 0, in.Catalog.Len())
	for s := range in.Catalog.Services() {
		if sees(in, v, s) && namedService(in, v, s.Key.Hostname) == s {
			list = appendNames(list, in, v, s)
		}
	}
	order := make([]*nameRecord, len(list))
	for i := range list {
		order[i] = &list[i]
		if list[i].service.Key.Hostname.InClusterSet() { // which has no short names
			list[i].short, list[i].namespace = "", ""
		}
	}
	slices.SortFunc(order, compareNames)
	out := order[:0]
	for _, r := range order {
		if len(out) == 0 || out[len(out)-1].host != r.host {
			out = append(out, r)
			continue
		}
		// A pod with several addresses, or several pods of one name in one cluster.
		if last := out[len(out)-1]; last.rank != nameOfService && last.rank == r.rank && last.cluster == r.cluster {
			last.addrs = appendNew(last.addrs, r.addrs...)
		}
	}
	return out
}

func compareNames(a, b *nameRecord) int {
	if c := strings.Compare(a.host, b.host); c != 0 {
		return c
	}
	return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(a.cluster, b.cluster), slices.CompareFunc(a.addrs, b.addrs, netip.Addr.Compare))
}

// appendNames appends the names that come from one service.
func appendNames(list []nameRecord, in Inputs, v View, s *mesh.Service) []nameRecord {
	host := string(s.Key.Hostname)
	own := nameRecord{host: host, service: s, short: s.Lead.Name, namespace: s.Key.Namespace}
	v.DNSCapture = true // who asks for a table resolves names with it
	if !podsNamed(s) || !headless(s, v.Cluster) {
		if own.addrs = inFamilies(v, addresses(v, s)); len(own.addrs) > 0 {
			list = append(list, own)
		}
		return list
	}
	_, domain, _ := strings.Cut(host, ".")
	var remote []netip.Addr
	for e := range in.Endpoints.Endpoints(s.Key).All() {
		if e.Health == mesh.HealthNotReady || e.Health == mesh.HealthDraining || !dials(in, v, s, e) {
			continue
		}
		w, addr := e.Workload, dialled(e.Addr)
		rank := nameOfPod
		if w.Cluster != v.Cluster {
			rank = nameOfRemotePod
			remote = append(remote, addr)
		} else {
			own.addrs = append(own.addrs, addr)
		}
		if w.Hostname == "" || w.Subdomain == "" || domain == "" {
			continue
		}
		short := w.Hostname + "." + w.Subdomain
		list = append(list, nameRecord{host: short + "." + domain, service: s, short: short, namespace: s.Key.Namespace,
			addrs: []netip.Addr{addr}, rank: rank, cluster: w.Cluster})
	}
	own.addrs = append(distinct(own.addrs), distinct(remote)...)
	if len(own.addrs) > 0 {
		list = append(list, own)
	}
	return list
}

// inFamilies returns the addresses of the families that the proxy has, or all
// if it has none of them.
func inFamilies(v View, addrs []netip.Addr) []netip.Addr {
	if !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return !hasFamily(v, a) }) {
		return addrs
	}
	var out []netip.Addr
	for _, a := range addrs {
		if hasFamily(v, a) {
			out = append(out, a)
		}
	}
	if len(out) == 0 {
		return addrs
	}
	return out
}

// distinct sorts addresses and drops those that are there twice, as a pod is
// that serves several ports.
func distinct(addrs []netip.Addr) []netip.Addr {
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs)
}

func appendNew(list []netip.Addr, more ...netip.Addr) []netip.Addr {
	for _, a := range more {
		if !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	return list
}
