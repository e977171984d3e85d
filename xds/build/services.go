package build

import (
	"slices"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// served is a service port as a view sees it.
type served struct {
	service *mesh.Service
	port    mesh.Port
}

// findServed finds the service port that upstreams of a host and port number
// lead to. A host may be defined by several namespaces: the view's own goes
// first, then those that a Kubernetes Service defines, so that nobody takes its
// host over by a ServiceEntry, then the first by name.
func findServed(in Inputs, v View, host mesh.Hostname, port uint16) (served, bool) {
	var found served
	for _, s := range in.Catalog.Host(host) {
		p, ok := servedPort(s, port)
		if !ok || !sees(in, v, s) || admit(in, v, s, port) == 0 {
			continue
		}
		own := s.Key.Namespace == v.Namespace
		if found.service == nil || own || found.service.Key.Namespace != v.Namespace && found.service.Lead.FromEntry() && !s.Lead.FromEntry() {
			found = served{s, p}
		}
	}
	return found, found.service != nil
}

// found is what a view finds under a host and port: the service port and the
// rule about the service. Two that are equal are the same.
type found struct {
	served
	rule *destinationRule
}

func find(in Inputs, v View, host mesh.Hostname, port uint16) found {
	at, ok := findServed(in, v, host, port)
	if !ok {
		return found{}
	}
	return found{at, ruleFor(in, v, at.service)}
}

// meansOne reports whether a host is the same to all that no Sidecar restricts:
// one service that all may see, and no rule at all. It is the usual case, and
// quickly told.
func meansOne(in Inputs, host mesh.Hostname) bool {
	export := in.Catalog.Settings.Mesh.GetDefaultServiceExportTo()
	return !in.Catalog.Scoped(host) && len(in.Catalog.Objects(mesh.KindDestinationRule)) == 0 &&
		(len(export) == 0 || slices.Contains(export, "*"))
}

// narrow reduces a view to the least that finds the same under a host and port:
// of its namespace, labels and Sidecar. Most services and rules are visible to
// all, so that nothing is left.
func narrow(in Inputs, v View, host mesh.Hostname, port uint16) View {
	if v.Sidecar == (ObjectName{}) && meansOne(in, host) {
		return View{}
	}
	want := find(in, v, host, port)
	whole := View{Namespace: v.Namespace, Sidecar: v.Sidecar}
	if aboutBackend(in, host) {
		whole.Kind = v.Kind
	}
	if v.Labels != (Labels{}) {
		whole.Labels = v.Labels.Only(ruleSelectors(in, v.Namespace, host))
	}
	spaces := []string{"", v.Namespace}
	if want.service != nil {
		spaces = []string{"", want.service.Key.Namespace, v.Namespace}
	}
	for _, try := range []View{{}, {Labels: whole.Labels}, {Sidecar: whole.Sidecar}} {
		try.Kind = whole.Kind
		for _, ns := range spaces {
			if try.Namespace = ns; find(in, try, host, port) == want {
				return try
			}
		}
	}
	return whole
}

// families keeps what a choice by address family depends on: a proxy that has
// both, or names none, is not choosy.
func families(v View) (v4, v6 bool) {
	if v.IPv4 == v.IPv6 {
		return false, false
	}
	return v.IPv4, v.IPv6
}

// changedPorts lists the numbers of the ports that a service had or has.
func changedPorts(c registry.ServiceChange) []uint16 {
	var out []uint16
	for _, s := range []*mesh.Service{c.Before, c.After} {
		if s == nil {
			continue
		}
		for _, p := range s.Ports {
			if p.Protocol != mesh.ProtocolUDP && !slices.Contains(out, p.Number) {
				out = append(out, p.Number)
			}
		}
	}
	return out
}

// changedNames appends the names of all upstreams of the ports that a service
// had or has.
func changedNames(in Inputs, out []string, host mesh.Hostname, c registry.ServiceChange) []string {
	subsets := ruleSubsets(in, host)
	for _, p := range changedPorts(c) {
		out = upstreamNames(out, host, p, subsets)
	}
	return out
}

// upstreamNames appends the names of the upstreams of a port, for the whole
// service and for the subsets, in both forms.
func upstreamNames(out []string, host mesh.Hostname, port uint16, subsets []string) []string {
	out = append(out, UpstreamName(DirectionOutbound, port, "", host), SNIName(port, "", host))
	for _, s := range subsets {
		out = append(out, UpstreamName(DirectionOutbound, port, s, host), SNIName(port, s, host))
	}
	return out
}
