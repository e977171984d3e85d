package entry

import (
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Entry is a ServiceEntry as it is served. It is immutable.
type Entry struct {
	Object *mesh.Object
	// Hosts are the names that it defines, each once.
	Hosts []mesh.Hostname
	// Selector selects pods and machines of the entry's namespace in all clusters,
	// empty if its endpoints are written in it.
	Selector map[string]string
	base     mesh.Definition
	inline   []*Member
	// selecting: there is a workloadSelector, be it empty.
	selecting bool
	// allocate: hosts without a wildcard get a virtual IP.
	allocate bool
}

// ReadEntry translates a ServiceEntry; trustDomain is that of the mesh. It
// returns nil for an object that is none. What cannot be served is left out.
func ReadEntry(o *mesh.Object, trustDomain string) *Entry {
	spec, ok := o.Spec.(*networking.ServiceEntry)
	if !ok || spec == nil {
		return nil
	}
	e := &Entry{Object: o, selecting: spec.GetWorkloadSelector() != nil, Selector: spec.GetWorkloadSelector().GetLabels()}
	for _, h := range spec.GetHosts() {
		name := mesh.Hostname(strings.ToLower(strings.TrimSuffix(h, ".")))
		if name != "" && !slices.Contains(e.Hosts, name) && (!byRequest(spec) || strings.HasPrefix(string(name), "*.")) {
			e.Hosts = append(e.Hosts, name)
		}
	}
	e.base = mesh.Definition{
		Ports:               readPorts(spec.GetPorts()),
		Resolution:          resolutionOf(spec.GetResolution()),
		Selector:            e.Selector,
		Labels:              o.Labels,
		ExportTo:            spec.GetExportTo(),
		Identities:          spec.GetSubjectAltNames(),
		TrafficDistribution: trafficDistribution(o.Annotations[annotationTrafficDistribution]),
		MeshExternal:        spec.GetLocation() == networking.ServiceEntry_MESH_EXTERNAL,
		Created:             o.Created,
		Origin:              o.Origin,
	}
	if byRequest(spec) {
		e.askEach()
		return e
	}
	e.base.Addresses, e.base.Prefixes = readAddresses(spec.GetAddresses())
	e.inline = slices.DeleteFunc(readInline(o, spec, trustDomain), func(m *Member) bool { return !reachable(e.base.Resolution, m) })
	e.allocate = len(spec.GetAddresses()) == 0 && e.base.Resolution != mesh.ResolutionPassthrough && !strings.EqualFold(o.Labels[labelAllocate], "false")
	return e
}

// byRequest reports whether proxies look up the name that each request asks for.
func byRequest(spec *networking.ServiceEntry) bool {
	return spec.GetResolution() == networking.ServiceEntry_DYNAMIC_DNS
}

// askEach keeps of the entry what means something where the name of each request
// is looked up: ports whose traffic names a host. An address stands for no name,
// and endpoints, written or selected, are not asked.
func (e *Entry) askEach() {
	e.selecting, e.Selector, e.base.Selector = false, nil, nil
	e.base.Ports = slices.DeleteFunc(e.base.Ports, func(p mesh.Port) bool { return !p.Protocol.NamesHost() })
}

// trafficDistribution is what the annotation asks for, in the spelling of the
// field of Services.
func trafficDistribution(s string) string {
	for _, known := range []string{"PreferClose", "PreferSameZone", "PreferSameNode", "PreferSameNetwork", "Any"} {
		if strings.EqualFold(known, strings.TrimSpace(s)) {
			return known
		}
	}
	return ""
}

// reachable reports whether a member can be an endpoint of a service that is
// resolved in a way: only proxies resolve names, and only if told to.
func reachable(r mesh.Resolution, m *Member) bool {
	switch {
	case r == mesh.ResolutionPassthrough:
		return len(m.Workload.Addresses) > 0 && m.Workload.Kind != KindInline
	case m.Workload.Host == "":
		return len(m.Workload.Addresses) > 0 || m.Workload.NetworkLabel != ""
	case strings.HasPrefix(m.Workload.Host, socketPrefix):
		return r == mesh.ResolutionStatic && len(m.Workload.Host) > len(socketPrefix)
	}
	return r.ByName()
}

// definition is what the entry says of a host.
func (e *Entry) definition(host mesh.Hostname) *mesh.Definition {
	d := e.base
	d.Name = string(host)
	return &d
}

// written lists the members of a host that are written in the entry. A name that
// is to be resolved and has none is resolved itself.
func (e *Entry) written(host mesh.Hostname) []*Member {
	if !e.base.Resolution.ByName() || len(e.inline) > 0 || e.selecting || strings.HasPrefix(string(host), "*") {
		return e.inline
	}
	return []*Member{{Workload: &mesh.Workload{Cluster: e.Object.Origin.Cluster, Namespace: e.Object.Key.Namespace, Name: e.Object.Key.Name,
		WorkloadName: e.Object.Key.Name, Kind: KindInline, Host: string(host)}}}
}

// Allocates reports whether a host of the entry gets a virtual IP.
func (e *Entry) Allocates(host mesh.Hostname) bool {
	return e.allocate && !strings.HasPrefix(string(host), "*")
}

// readPorts translates ports; of two with one number or name the first counts.
func readPorts(list []*networking.ServicePort) []mesh.Port {
	out := make([]mesh.Port, 0, len(list))
	for _, p := range list {
		if n := p.GetNumber(); n == 0 || n > 65535 || p.GetTargetPort() > 65535 {
			continue
		}
		to := mesh.Port{Name: p.GetName(), Number: uint16(p.GetNumber()), TargetPort: uint16(p.GetTargetPort()), Protocol: mesh.ProtocolAuto}
		if known, ok := mesh.ParseProtocol(p.GetProtocol()); ok {
			to.Protocol = known
		}
		if !slices.ContainsFunc(out, func(have mesh.Port) bool { return have.Number == to.Number || have.Name == to.Name }) {
			out = append(out, to)
		}
	}
	return out
}

// resolutionOf translates a resolution.
func resolutionOf(r networking.ServiceEntry_Resolution) mesh.Resolution {
	switch r {
	case networking.ServiceEntry_STATIC:
		return mesh.ResolutionStatic
	case networking.ServiceEntry_DNS:
		return mesh.ResolutionDNS
	case networking.ServiceEntry_DNS_ROUND_ROBIN:
		return mesh.ResolutionDNSRoundRobin
	case networking.ServiceEntry_DYNAMIC_DNS:
		return mesh.ResolutionDynamicDNS
	}
	return mesh.ResolutionPassthrough
}
