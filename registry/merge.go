package registry

import (
	"fmt"
	"maps"
	"slices"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// mergeService makes one service of the definitions that clusters have of it.
// The result depends only on the definitions and on which cluster is the
// primary, never on the order in which they arrived. Ports are united by name,
// as KEP-1645 does for exported services; where clusters disagree the earlier
// one in the order of [mesh.Service.Clusters] wins and the conflict is on record.
func mergeService(key mesh.ServiceKey, primary mesh.ClusterID, in map[mesh.ClusterID]*mesh.Definition) *mesh.Service {
	if len(in) == 0 {
		return nil
	}
	ids := slices.SortedFunc(maps.Keys(in), func(a, b mesh.ClusterID) int { return mesh.CompareClusters(primary, a, b) })
	m := merger{svc: &mesh.Service{Key: key, Lead: in[ids[0]], LeadCluster: ids[0], In: in, Clusters: ids}}
	for _, id := range ids {
		m.add(id, in[id])
	}
	return m.svc
}

type merger struct {
	svc *mesh.Service
	// owners[i] is the cluster that contributed svc.Ports[i].
	owners []mesh.ClusterID
}

func (m *merger) add(id mesh.ClusterID, d *mesh.Definition) {
	for _, p := range d.Ports {
		m.addPort(id, p)
	}
	lead := m.svc.Lead
	if d.Resolution != lead.Resolution {
		m.conflict("resolution", m.svc.LeadCluster, id, fmt.Sprintf("%s here, %s there", lead.Resolution, d.Resolution))
	}
	if d.TrafficDistribution != lead.TrafficDistribution {
		m.conflict("trafficDistribution", m.svc.LeadCluster, id, fmt.Sprintf("%q here, %q there", lead.TrafficDistribution, d.TrafficDistribution))
	}
	if !slices.Equal(d.ExportTo, lead.ExportTo) {
		m.conflict("exportTo", m.svc.LeadCluster, id, fmt.Sprintf("%v here, %v there", lead.ExportTo, d.ExportTo))
	}
}

func (m *merger) addPort(id mesh.ClusterID, p mesh.Port) {
	for i, have := range m.svc.Ports {
		if (have.Protocol == mesh.ProtocolUDP) != (p.Protocol == mesh.ProtocolUDP) && have.Name != p.Name {
			continue // one number for both transports, as DNS has it
		}
		switch {
		case have.Name == p.Name && have.Number == p.Number:
			if have.Protocol != p.Protocol {
				m.conflict("protocol", m.owners[i], id, fmt.Sprintf("port %d (%s) is %s here, %s there", p.Number, p.Name, have.Protocol, p.Protocol))
			}
			return
		case have.Name == p.Name:
			m.conflict("port number", m.owners[i], id, fmt.Sprintf("port %q is %d here, %d there", p.Name, have.Number, p.Number))
			return
		case have.Number == p.Number:
			m.conflict("port name", m.owners[i], id, fmt.Sprintf("port %d is called %q here, %q there", p.Number, have.Name, p.Name))
			return
		}
	}
	m.svc.Ports = append(m.svc.Ports, p)
	m.owners = append(m.owners, id)
}

func (m *merger) conflict(field string, winner, loser mesh.ClusterID, detail string) {
	m.svc.Conflicts = append(m.svc.Conflicts, mesh.Conflict{Service: m.svc.Key, Field: field, Winner: winner, Loser: loser, Detail: detail})
}
