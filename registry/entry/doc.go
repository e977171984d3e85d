// Package entry derives services and endpoints from what users write by hand:
// ServiceEntries, and WorkloadEntries for machines outside Kubernetes.
//
// It owns the translation of both kinds, the selection of pods and machines by
// ServiceEntries, and the virtual IPs of hosts that have none. Everything is a
// pure function of the objects: in whatever order they come, [Index] says the
// same, and says what a change concerns so that the rest need not be asked for.
// It does not know where objects come from, nor what else is called by the same
// host names: the Store in package registry merges what clusters report with
// what is derived here.
package entry

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Kinds of what is behind an endpoint, as in [mesh.Workload.Kind].
const (
	// KindMachine is a WorkloadEntry.
	KindMachine = string(mesh.KindWorkloadEntry)
	// KindInline is an endpoint that is written in its ServiceEntry.
	KindInline = string(mesh.KindServiceEntry)
)

// Labels and annotations that are read.
const (
	labelNetwork                  = "topology.istio.io/network"
	labelTLSMode                  = "security.istio.io/tlsMode"
	labelLocality                 = "topology.istio.io/locality"
	labelLocalityOld              = "istio-locality"
	labelAllocate                 = "networking.istio.io/enable-autoallocate-ip"
	annotationTrafficDistribution = "networking.istio.io/traffic-distribution"
	annotationHealthChecks        = "proxy.istio.io/health-checks-enabled"
	tlsModeIstio                  = "istio"
)

// Member is one thing that traffic for a host may go to: an endpoint of a
// ServiceEntry, a machine or a pod. It is immutable.
type Member struct {
	Workload *mesh.Workload
	// Ports are the numbers that the workload serves ports of services under, by
	// the name of the port; those not in it are served under their target port.
	Ports  map[string]uint16
	Weight uint32
	Health mesh.Health
}

func (m *Member) equal(o *Member) bool {
	if m == o || m == nil || o == nil {
		return m == o
	}
	return m.Weight == o.Weight && m.Health == o.Health && m.Workload.Equal(o.Workload) && maps.Equal(m.Ports, o.Ports)
}

// port is where the member serves a port; 0 if it does not.
func (m *Member) port(p mesh.Port) uint16 {
	if n := m.Ports[p.Name]; n != 0 {
		return n
	}
	if p.TargetName != "" {
		return cmp.Or(m.Ports[p.TargetName], m.Workload.ContainerPorts[p.TargetName])
	}
	return cmp.Or(p.TargetPort, p.Number)
}

// Endpoints appends the member's endpoints for the ports of a service. Of
// several addresses the first counts: a workload is one workload, however many
// families it is reached by.
func (m *Member) Endpoints(out []mesh.Endpoint, ports []mesh.Port) []mesh.Endpoint {
	var addr netip.Addr
	if len(m.Workload.Addresses) > 0 {
		addr = m.Workload.Addresses[0]
	}
	for _, p := range ports {
		e := mesh.Endpoint{Addr: addr, Port: m.port(p), PortName: p.Name, Health: m.Health, Weight: m.Weight, Workload: m.Workload}
		if strings.HasPrefix(m.Workload.Host, socketPrefix) {
			e.Port = 0
		} else if e.Port == 0 {
			continue
		}
		out = append(out, e)
	}
	return out
}

// Selects reports whether labels have everything that a selector asks for. An
// empty selector selects nothing.
func Selects(selector, labels map[string]string) bool {
	for k, want := range selector {
		if got, ok := labels[k]; !ok || got != want {
			return false
		}
	}
	return len(selector) > 0
}

// readAddresses splits what users write as addresses into virtual IPs and
// ranges. A range of one address is that address.
func readAddresses(list []string) (ips []netip.Addr, ranges []netip.Prefix) {
	for _, s := range list {
		if a, err := netip.ParseAddr(s); err == nil {
			if a = a.Unmap().WithZone(""); !a.IsUnspecified() && !slices.Contains(ips, a) {
				ips = append(ips, a)
			}
			continue
		}
		p, err := netip.ParsePrefix(s)
		switch {
		case err != nil:
		case p.IsSingleIP():
			if a := p.Addr().Unmap(); !slices.Contains(ips, a) {
				ips = append(ips, a)
			}
		case !slices.Contains(ranges, p.Masked()):
			ranges = append(ranges, p.Masked())
		}
	}
	return ips, ranges
}
