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
// first, then the first by name.
func findServed(in Inputs, v View, host mesh.Hostname, port uint16) (served, bool) {
	var found served
	for _, s := range in.Catalog.Host(host) {
		p, ok := servedPort(s, port)
		if !ok || !sees(in, v, s) || admit(in, v, s, port) == 0 {
			continue
		}
		if found.service == nil || s.Key.Namespace == v.Namespace {
			found = served{s, p}
		}
	}
	return found, found.service != nil
}

// scope is a namespace that stands for the view's: one that finds the same
// service port. Most services are visible to all, so that "" does.
func scope(in Inputs, v View, host mesh.Hostname, port uint16) string {
	want, _ := findServed(in, v, host, port)
	tries := []string{""}
	if want.service != nil {
		tries = append(tries, want.service.Key.Namespace)
	}
	for _, ns := range tries {
		w := v
		if w.Namespace = ns; same(in, w, host, port, want) {
			return ns
		}
	}
	return v.Namespace
}

func same(in Inputs, v View, host mesh.Hostname, port uint16, want served) bool {
	got, _ := findServed(in, v, host, port)
	return got == want
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
// had or has, in both forms.
func changedNames(out []string, host mesh.Hostname, c registry.ServiceChange) []string {
	for _, p := range changedPorts(c) {
		out = append(out, UpstreamName(DirectionOutbound, p, "", host), SNIName(p, "", host))
	}
	return out
}
