package build

import (
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/registry/gatewayapi"
)

// A VirtualService says where requests and connections to its hosts go, for the
// gateways that it names or, without any, for the sidecars of the mesh. Which
// one is in force for a host depends on who asks: those that only their own
// namespace can see go first, then those exported to the client's namespace by
// name, then those exported to all; among these the older one, and what
// delegates to others after what does not. A host that is named in full goes
// before a wildcard, a longer wildcard before a shorter one.

// meshGateway is the gateway name that stands for all sidecars.
const meshGateway = "mesh"

// virtualService is a VirtualService in the form in which it is looked up. It is
// immutable.
type virtualService struct {
	object *mesh.Object
	name   ObjectName
	// hosts are complete and in lower case, gateways "mesh" or NAMESPACE/NAME.
	hosts    []mesh.Hostname
	gateways []string
	exportTo []string
	http     []httpRule
	tcp      []*networking.TCPRoute
	tls      []*networking.TLSRoute
	// httpKeys and streamKeys are the keys of the source labels that its rules for
	// requests and for connections look at.
	httpKeys, streamKeys []string
	// order is its place among all, by which equals are told apart.
	order int
}

// httpRule is a rule for requests.
type httpRule struct {
	*networking.HTTPRoute
	// from is the object that the rule was written in: short names in it are those
	// of its namespace. It differs from the object that has the hosts where that
	// one delegates.
	from *mesh.Object
	// routed is what the rule cannot say of the Gateway API's rule that it was
	// derived from; nil for one that a user wrote.
	routed *gatewayapi.Rule
}

// virtualServices finds VirtualServices. It is made from the objects alone.
type virtualServices struct {
	byName map[ObjectName]*virtualService
	bound  map[string]*boundRules
	// roots lists by delegate the objects that delegate to it.
	roots map[ObjectName][]ObjectName
	// leading lists by host those that send something there.
	leading map[mesh.Hostname][]*virtualService
	// wildTargets are those of these hosts that are wildcards.
	wildTargets []mesh.Hostname
}

// boundRules is the VirtualServices of one gateway, in order.
type boundRules struct {
	all   []*virtualService
	exact map[mesh.Hostname][]*virtualService
	// wild is by what follows the "*"; lengths are those of its keys, longest first.
	wild    map[mesh.Hostname][]*virtualService
	lengths []int
	// sourced are those that look at source labels.
	sourced []*virtualService
}

func ruleTables(in Inputs) *virtualServices {
	return registry.Derived(in.Catalog, mesh.KindVirtualService, indexVirtualServices)
}

// indexVirtualServices indexes all objects, oldest first.
func indexVirtualServices(all []*mesh.Object) *virtualServices {
	x := &virtualServices{byName: map[ObjectName]*virtualService{}, bound: map[string]*boundRules{},
		roots: map[ObjectName][]ObjectName{}, leading: map[mesh.Hostname][]*virtualService{}}
	byName := make(map[ObjectName]*mesh.Object, len(all))
	for _, o := range all {
		byName[ObjectName{o.Key.Namespace, o.Key.Name}] = o
	}
	var plain, roots []*virtualService
	for _, o := range all {
		spec, ok := o.Spec.(*networking.VirtualService)
		if !ok || len(spec.GetHosts()) == 0 {
			continue
		}
		vs, delegates := readVirtualService(o, spec, byName)
		for _, d := range delegates {
			x.roots[d] = append(x.roots[d], vs.name)
		}
		if len(delegates) > 0 {
			roots = append(roots, vs)
		} else {
			plain = append(plain, vs)
		}
	}
	for i, vs := range slices.Concat(plain, roots) {
		vs.order = i
		x.add(vs)
	}
	for _, b := range x.bound {
		for suffix := range b.wild {
			if !slices.Contains(b.lengths, len(suffix)) {
				b.lengths = append(b.lengths, len(suffix))
			}
		}
		slices.SortFunc(b.lengths, func(a, b int) int { return b - a })
	}
	for h := range x.leading {
		if isWild(h) {
			x.wildTargets = append(x.wildTargets, h)
		}
	}
	return x
}

// readVirtualService reads one object with what it delegates to, and tells to
// whom it delegates.
func readVirtualService(o *mesh.Object, spec *networking.VirtualService, byName map[ObjectName]*mesh.Object) (*virtualService, []ObjectName) {
	vs := &virtualService{object: o, name: ObjectName{o.Key.Namespace, o.Key.Name}, exportTo: spec.GetExportTo(),
		tcp: spec.GetTcp(), tls: spec.GetTls()}
	for _, h := range spec.GetHosts() {
		if full := fullHost(h, o.Key.Namespace); !slices.Contains(vs.hosts, full) {
			vs.hosts = append(vs.hosts, full)
		}
	}
	for _, g := range spec.GetGateways() {
		vs.gateways = append(vs.gateways, fullGateway(g, o.Key.Namespace))
	}
	if len(vs.gateways) == 0 {
		vs.gateways = []string{meshGateway}
	}
	var delegates []ObjectName
	vs.http, delegates = readRules(o, spec, byName)
	k := labelKeys{}
	for _, r := range vs.http {
		for _, m := range r.GetMatch() {
			k.addAll(m.GetSourceLabels())
		}
	}
	vs.httpKeys = k.sorted()
	k = labelKeys{}
	for _, r := range vs.tcp {
		for _, m := range r.GetMatch() {
			k.addAll(m.GetSourceLabels())
		}
	}
	for _, r := range vs.tls {
		for _, m := range r.GetMatch() {
			k.addAll(m.GetSourceLabels())
		}
	}
	vs.streamKeys = k.sorted()
	return vs, delegates
}

// add puts an object into the tables; they are filled in order.
func (x *virtualServices) add(vs *virtualService) {
	x.byName[vs.name] = vs
	for _, g := range slices.Compact(slices.Sorted(slices.Values(vs.gateways))) {
		b := x.bound[g]
		if b == nil {
			b = &boundRules{exact: map[mesh.Hostname][]*virtualService{}, wild: map[mesh.Hostname][]*virtualService{}}
			x.bound[g] = b
		}
		b.all = append(b.all, vs)
		if len(vs.httpKeys)+len(vs.streamKeys) > 0 {
			b.sourced = append(b.sourced, vs)
		}
		for _, h := range vs.hosts {
			if suffix, ok := strings.CutPrefix(string(h), "*"); ok {
				b.wild[mesh.Hostname(suffix)] = append(b.wild[mesh.Hostname(suffix)], vs)
			} else {
				b.exact[h] = append(b.exact[h], vs)
			}
		}
	}
	for h := range vs.destinations() {
		x.leading[h] = append(x.leading[h], vs)
	}
}

// destinations collects the hosts to which anything is sent.
func (vs *virtualService) destinations() map[mesh.Hostname]struct{} {
	out := map[mesh.Hostname]struct{}{}
	for _, r := range vs.http {
		eachDestination(&networking.VirtualService{Http: []*networking.HTTPRoute{r.HTTPRoute}}, func(d *networking.Destination) {
			out[fullHost(d.GetHost(), r.from.Key.Namespace)] = struct{}{}
		})
	}
	eachDestination(&networking.VirtualService{Tcp: vs.tcp, Tls: vs.tls}, func(d *networking.Destination) {
		out[fullHost(d.GetHost(), vs.name.Namespace)] = struct{}{}
	})
	return out
}

// leadsTo reports whether the VirtualService sends anything to a port of a host.
// A destination without a port may be any.
func (vs *virtualService) leadsTo(host mesh.Hostname, port uint16) bool {
	found := false
	to := func(namespace string) func(*networking.Destination) {
		return func(d *networking.Destination) {
			n := d.GetPort().GetNumber()
			found = found || fullHost(d.GetHost(), namespace) == host && (n == 0 || n == uint32(port))
		}
	}
	for _, r := range vs.http {
		eachDestination(&networking.VirtualService{Http: []*networking.HTTPRoute{r.HTTPRoute}}, to(r.from.Key.Namespace))
	}
	eachDestination(&networking.VirtualService{Tcp: vs.tcp, Tls: vs.tls}, to(vs.name.Namespace))
	return found
}

// fullGateway completes the name of a gateway: "mesh" stays, NAME is beside the
// object, NAME.NAMESPACE... is an old form of NAMESPACE/NAME.
func fullGateway(g, namespace string) string {
	if g == meshGateway {
		return g
	}
	if ns, name, ok := strings.Cut(g, "/"); ok {
		if ns == "." {
			ns = namespace
		}
		return ns + "/" + name
	}
	if name, rest, ok := strings.Cut(g, "."); ok {
		ns, _, _ := strings.Cut(rest, ".")
		return ns + "/" + name
	}
	return namespace + "/" + g
}

// ruleRank says how near a VirtualService is to a view; lower is nearer.
type ruleRank uint8

const (
	ruleOwn    ruleRank = iota // it is the view's namespace that it is kept to
	ruleNamed                  // it is exported to the view's namespace by name
	rulePublic                 // it is exported to all
	ruleHidden                 // the view does not see it
)

// ruleRankOf tells how near a VirtualService is to a view. What a Sidecar's egress
// hosts do not import is hidden.
func ruleRankOf(in Inputs, v View, vs *virtualService) ruleRank {
	rank := exportRank(in, v.Namespace, vs)
	if rank == ruleHidden || v.Sidecar == (ObjectName{}) || admitsRules(in, v, vs) {
		return rank
	}
	return ruleHidden
}

func exportRank(in Inputs, namespace string, vs *virtualService) ruleRank {
	export := vs.exportTo
	if len(export) == 0 {
		export = in.Catalog.Settings.Mesh.GetDefaultVirtualServiceExportTo()
	}
	switch {
	case len(export) == 0, slices.Contains(export, "*"):
		return rulePublic
	case slices.Contains(export, "~"):
		return ruleHidden
	case namespace == vs.name.Namespace && (slices.Contains(export, ".") || slices.Contains(export, namespace)):
		return ruleOwn
	case slices.Contains(export, namespace):
		return ruleNamed
	}
	return ruleHidden
}

// admitsRules reports whether the view's Sidecar imports a VirtualService: any of
// its hosts from its namespace.
func admitsRules(in Inputs, v View, vs *virtualService) bool {
	scope := sidecarOf(in, v)
	if scope == nil {
		return true
	}
	for i := range scope.egress {
		for _, h := range vs.hosts {
			if scope.egress[i].imports(v.Namespace, vs.name.Namespace, h) {
				return true
			}
		}
	}
	return false
}

// visibleRules keeps of a list in order what a view sees, nearest first.
func visibleRules(in Inputs, v View, list []*virtualService) []*virtualService {
	if len(list) == 0 {
		return nil
	}
	var by [ruleHidden][]*virtualService
	for _, vs := range list {
		if r := ruleRankOf(in, v, vs); r != ruleHidden {
			by[r] = append(by[r], vs)
		}
	}
	return slices.Concat(by[:]...)
}

// virtualServicesFor lists the VirtualServices that a view sees on a gateway,
// "mesh" or NAMESPACE/NAME, in the order in which the first one wins.
func virtualServicesFor(in Inputs, v View, gateway string) []*virtualService {
	b := ruleTables(in).bound[gateway]
	if b == nil {
		return nil
	}
	return visibleRules(in, v, b.all)
}

// forHost lists the VirtualServices that may route requests to a host, in the
// order in which they are tried: those that name it in full, or if there is none
// the one with the most specific wildcard.
func (b *boundRules) forHost(in Inputs, v View, host mesh.Hostname) []*virtualService {
	if b == nil {
		return nil
	}
	if list := visibleRules(in, v, b.exact[host]); len(list) > 0 {
		return list
	}
	rest := strings.TrimPrefix(string(host), "*")
	for _, n := range b.lengths {
		if n > len(rest) {
			continue
		}
		if list := visibleRules(in, v, b.wild[mesh.Hostname(rest[len(rest)-n:])]); len(list) > 0 {
			return list[:1]
		}
	}
	return nil
}

// overlapping lists the VirtualServices with any host that has names in common
// with a host, in order: connections are not told apart by host.
func (b *boundRules) overlapping(in Inputs, v View, host mesh.Hostname) []*virtualService {
	if b == nil {
		return nil
	}
	var list []*virtualService
	if isWild(host) {
		for _, vs := range b.all {
			if slices.ContainsFunc(vs.hosts, func(h mesh.Hostname) bool { return hostsOverlap(h, host) }) {
				list = append(list, vs)
			}
		}
		return visibleRules(in, v, list)
	}
	list = append(list, b.exact[host]...)
	for _, n := range b.lengths {
		if n <= len(host) {
			list = append(list, b.wild[host[len(host)-n:]]...)
		}
	}
	slices.SortFunc(list, func(a, b *virtualService) int { return a.order - b.order })
	return visibleRules(in, v, slices.Compact(list))
}

func isWild(h mesh.Hostname) bool { return strings.HasPrefix(string(h), "*") }

// hostsOverlap reports whether two hosts, either of which may be a wildcard, have
// names in common.
func hostsOverlap(a, b mesh.Hostname) bool {
	switch {
	case isWild(a) && isWild(b):
		return strings.HasSuffix(string(a[1:]), string(b[1:])) || strings.HasSuffix(string(b[1:]), string(a[1:]))
	case isWild(a):
		return strings.HasSuffix(string(b), string(a[1:]))
	case isWild(b):
		return strings.HasSuffix(string(a), string(b[1:]))
	}
	return a == b
}
