package build

import (
	"cmp"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// A Sidecar object says which hosts a proxy sees, by the egress listeners that
// import them. A listener without a port imports whole services; one with a port
// imports only that port of them, and if it names an address to bind, serves it
// there and nowhere else. What a VirtualService among the imported hosts sends
// requests on to is imported with it, even if it is excluded: the rule would lead
// nowhere otherwise.
//
// Source of the rules: https://istio.io/latest/docs/reference/config/networking/sidecar/

// sidecarScope is a Sidecar object in the form that it is asked in.
type sidecarScope struct {
	object *mesh.Object
	spec   *networking.Sidecar
	egress []egress
}

// egress is one egress listener of a Sidecar.
type egress struct {
	// port is 0 for all ports.
	port     uint16
	protocol mesh.Protocol
	// bind is the address that the listener is bound to, "" for where the services
	// themselves are.
	bind string
	// direct says that clients dial the listener itself: nothing intercepts.
	direct bool
	// hosts are what the listener imports, except what is in excluded.
	hosts, excluded []egressHost
}

// egressHost is NAMESPACE/HOST. The namespace may be "*" for all and "." for the
// proxy's own; the host a name, "*.SUFFIX" or "*".
type egressHost struct{ namespace, host string }

// matches reports whether a host of a namespace is imported by a proxy of
// namespace own.
func (e egressHost) matches(own, namespace string, host mesh.Hostname) bool {
	switch e.namespace {
	case "*", namespace:
	case ".":
		if own != namespace {
			return false
		}
	default:
		return false
	}
	_, ok := hostRank(e.host, host)
	return ok
}

func (e *egress) imports(own, namespace string, host mesh.Hostname) bool {
	matches := func(h egressHost) bool { return h.matches(own, namespace, host) }
	return slices.ContainsFunc(e.hosts, matches) && !slices.ContainsFunc(e.excluded, matches)
}

// add takes in a host as it is written. A "~" before the namespace excludes; alone
// it excludes from all namespaces, so that "~/*" leaves nothing.
func (e *egress) add(written string) {
	namespace, host, ok := strings.Cut(written, "/")
	if !ok {
		return
	}
	host = strings.ToLower(host)
	if from, excluded := strings.CutPrefix(namespace, "~"); excluded {
		e.excluded = append(e.excluded, egressHost{cmp.Or(from, "*"), host})
		return
	}
	e.hosts = append(e.hosts, egressHost{namespace, host})
}

// sidecarScopes holds all Sidecars by name.
type sidecarScopes map[ObjectName]*sidecarScope

func indexSidecars(all []*mesh.Object) sidecarScopes {
	out := make(sidecarScopes, len(all))
	for _, o := range all {
		if s, ok := o.Spec.(*networking.Sidecar); ok {
			out[ObjectName{o.Key.Namespace, o.Key.Name}] = newSidecarScope(o, s)
		}
	}
	return out
}

func newSidecarScope(o *mesh.Object, s *networking.Sidecar) *sidecarScope {
	c := &sidecarScope{object: o, spec: s}
	for _, l := range s.GetEgress() {
		e := egress{bind: l.GetBind(), direct: l.GetCaptureMode() == networking.CaptureMode_NONE}
		if n := l.GetPort().GetNumber(); n > 0 && n <= 65535 {
			e.port = uint16(n)
			e.protocol, _ = mesh.ParseProtocol(l.GetPort().GetProtocol())
		}
		for _, h := range l.GetHosts() {
			e.add(h)
		}
		c.egress = append(c.egress, e)
	}
	if len(c.egress) == 0 { // it is only about what comes in
		c.egress = []egress{{hosts: []egressHost{{"*", "*"}}}}
	}
	return c
}

// sidecarOf returns the Sidecar that is in force for a view, nil if none is.
func sidecarOf(in Inputs, v View) *sidecarScope {
	if v.Sidecar == (ObjectName{}) {
		return nil
	}
	return registry.Derived(in.Catalog, mesh.KindSidecar, indexSidecars)[v.Sidecar]
}

// admission says how a service port comes into a view.
type admission uint8

const (
	// admitFree: where the service itself is, at its addresses and port.
	admitFree admission = 1 << iota
	// admitBound: at the address that an egress listener binds.
	admitBound
)

// admit tells how the view's Sidecar lets a service port in; 0 means not at all.
func admit(in Inputs, v View, s *mesh.Service, number uint16) admission {
	scope := sidecarOf(in, v)
	if scope == nil {
		return admitFree
	}
	var how admission
	for i := range scope.egress {
		e := &scope.egress[i]
		if e.port != 0 && e.port != number {
			continue
		}
		as := admitFree
		if e.fixed() {
			as = admitBound
		}
		if how&as == 0 && e.admits(in, v, s, number) {
			how |= as
		}
	}
	return how
}

// fixed reports whether the listener is at one address for all its services.
func (e *egress) fixed() bool { return e.port != 0 && (e.bind != "" || e.direct) }

func (e *egress) admits(in Inputs, v View, s *mesh.Service, number uint16) bool {
	return e.imports(v.Namespace, s.Key.Namespace, s.Key.Hostname) || e.follows(in, v, s, number)
}

// follows reports whether a VirtualService that the listener imports sends
// requests to the service port.
func (e *egress) follows(in Inputs, v View, s *mesh.Service, number uint16) bool {
	return slices.ContainsFunc(ruleTables(in).leading[s.Key.Hostname], func(vs *virtualService) bool {
		return slices.Contains(vs.gateways, meshGateway) && vs.leadsTo(s.Key.Hostname, number) &&
			exportRank(in, v.Namespace, vs) != ruleHidden &&
			slices.ContainsFunc(vs.hosts, func(h mesh.Hostname) bool { return e.imports(v.Namespace, vs.name.Namespace, h) })
	})
}

// admitsAny reports whether any port of a service is in the view.
func admitsAny(in Inputs, v View, s *mesh.Service) bool {
	if v.Sidecar == (ObjectName{}) {
		return true
	}
	return slices.ContainsFunc(s.Ports, func(p mesh.Port) bool { return admit(in, v, s, p.Number) != 0 })
}

// eachDestination calls f for everything that a VirtualService sends requests or
// connections to.
func eachDestination(vs *networking.VirtualService, f func(*networking.Destination)) {
	some := func(d *networking.Destination) {
		if d.GetHost() != "" {
			f(d)
		}
	}
	for _, r := range vs.GetHttp() {
		for _, d := range r.GetRoute() {
			some(d.GetDestination())
		}
		some(r.GetMirror())
		for _, m := range r.GetMirrors() {
			some(m.GetDestination())
		}
	}
	for _, r := range vs.GetTcp() {
		for _, d := range r.GetRoute() {
			some(d.GetDestination())
		}
	}
	for _, r := range vs.GetTls() {
		for _, d := range r.GetRoute() {
			some(d.GetDestination())
		}
	}
}

// fullHost completes a host name that a policy writes short: without a dot it is
// that of a Service beside the policy.
func fullHost(host, namespace string) mesh.Hostname {
	if host == "" || strings.Contains(host, ".") || strings.HasPrefix(host, "*") {
		return mesh.Hostname(strings.ToLower(host))
	}
	return mesh.Hostname(strings.ToLower(host) + "." + namespace + ".svc." + DefaultDomain)
}

// elsewhere is the upstream for outbound traffic to what the mesh does not
// know: the original destination or the proxy that the Sidecar names for it, or
// nothing where only what is known is allowed.
func elsewhere(in Inputs, v View) string {
	if registryOnly(in, v) {
		return UpstreamBlackHole
	}
	if s := sidecarOf(in, v); s != nil {
		if d := s.spec.GetOutboundTrafficPolicy().GetEgressProxy(); d.GetHost() != "" {
			return UpstreamName(DirectionOutbound, uint16(d.GetPort().GetNumber()), d.GetSubset(), fullHost(d.GetHost(), s.object.Key.Namespace))
		}
	}
	return UpstreamPassthrough
}

// exported reports whether something of a namespace is exported to another one
// by an exportTo list; an empty list exports to all.
func exported(to []string, from, namespace string) bool {
	return len(to) == 0 || slices.ContainsFunc(to, func(e string) bool {
		return e == "*" || e == namespace || e == "." && from == namespace
	})
}
