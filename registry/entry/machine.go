package entry

import (
	"cmp"
	"maps"
	"net/netip"
	"strconv"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// socketPrefix begins addresses that are paths of Unix domain sockets.
const socketPrefix = "unix://"

// ReadMachine translates a WorkloadEntry of a cluster; trustDomain is that of
// the mesh. It returns nil for an object that is none.
func ReadMachine(id mesh.ClusterID, o *mesh.Object, trustDomain string) *Member {
	spec, ok := o.Spec.(*networking.WorkloadEntry)
	if !ok || spec == nil {
		return nil
	}
	labels := spec.GetLabels()
	if len(o.Labels) > 0 { // those of the object go before
		labels = maps.Clone(labels)
		if labels == nil {
			labels = map[string]string{}
		}
		maps.Copy(labels, o.Labels)
	}
	m := readWorkload(id, o.Key.Namespace, spec, labels, trustDomain)
	m.Workload.Kind, m.Workload.Name = KindMachine, o.Key.Name
	m.Workload.WorkloadName = o.Key.Name
	m.Health = machineHealth(o)
	if strings.HasPrefix(m.Workload.Host, socketPrefix) {
		m.Workload.Host = "" // somebody else's socket is nobody's address
	}
	return m
}

// machineHealth is the health that a machine's agent reported. Where it is known
// that it reports, a machine without a report is not ready; else nothing is known.
func machineHealth(o *mesh.Object) mesh.Health {
	if on, _ := strconv.ParseBool(o.Annotations[annotationHealthChecks]); !on {
		return mesh.HealthUnknown
	}
	if o.Status != nil && o.Status.Health == mesh.HealthReady {
		return mesh.HealthReady
	}
	return mesh.HealthNotReady
}

// readInline translates the endpoints of a ServiceEntry, which are called by its
// name and their number.
func readInline(o *mesh.Object, spec *networking.ServiceEntry, trustDomain string) []*Member {
	out := make([]*Member, 0, len(spec.GetEndpoints()))
	for i, e := range spec.GetEndpoints() {
		if e == nil {
			continue
		}
		m := readWorkload(o.Origin.Cluster, o.Key.Namespace, e, e.GetLabels(), trustDomain)
		m.Workload.Kind = KindInline
		m.Workload.Name = o.Key.Name + "-" + strconv.Itoa(i)
		m.Workload.WorkloadName = m.Workload.Name
		out = append(out, m)
	}
	return out
}

// readWorkload translates what the two have in common.
func readWorkload(id mesh.ClusterID, namespace string, spec *networking.WorkloadEntry, labels map[string]string, trustDomain string) *Member {
	w := &mesh.Workload{
		Cluster: id, Namespace: namespace, Labels: labels,
		NetworkLabel: mesh.NetworkID(cmp.Or(spec.GetNetwork(), labels[labelNetwork])),
		Locality:     localityOf(spec.GetLocality(), labels),
	}
	if a, err := netip.ParseAddr(spec.GetAddress()); err == nil {
		w.Addresses = []netip.Addr{a.Unmap().WithZone("")}
	} else {
		w.Host = spec.GetAddress()
	}
	if sa := spec.GetServiceAccount(); sa != "" {
		w.Identity = mesh.Identity{TrustDomain: trustDomain, Namespace: namespace, ServiceAccount: sa}
	}
	// Who has an identity has a proxy, unless it says otherwise.
	if mode, said := labels[labelTLSMode]; said {
		w.MTLS = mode == tlsModeIstio
	} else {
		w.MTLS = spec.GetServiceAccount() != ""
	}
	m := &Member{Workload: w, Weight: spec.GetWeight()}
	for name, n := range spec.GetPorts() {
		if n == 0 || n > 65535 {
			continue
		}
		if m.Ports == nil {
			m.Ports = make(map[string]uint16, len(spec.GetPorts()))
		}
		m.Ports[name] = uint16(n)
	}
	return m
}

// localityOf reads a locality, or a label that stands for it, in which dots are
// slashes.
func localityOf(s string, labels map[string]string) mesh.Locality {
	if s == "" {
		s = cmp.Or(labels[labelLocality], labels[labelLocalityOld])
		if !strings.Contains(s, "/") {
			s = strings.ReplaceAll(s, ".", "/")
		}
	}
	return mesh.ParseLocality(s)
}
