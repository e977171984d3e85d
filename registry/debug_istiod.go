package registry

import (
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry/entry"
)

// This file has the answers in the JSON shapes of istiod, for tools made for it.
// Fields that have no meaning here are left out.

// istiod's names for the kinds of registries that services come from.
const (
	providerKubernetes = "Kubernetes"
	providerExternal   = "External" // ServiceEntries and WorkloadEntries
)

// provider names the kind of registry a service comes from.
func provider(d *mesh.Definition) string {
	if d.FromEntry() {
		return providerExternal
	}
	return providerKubernetes
}

type istiodService struct {
	Attributes      istiodAttributes
	Ports           []istiodPort     `json:"ports,omitempty"`
	ServiceAccounts []string         `json:"serviceAccounts,omitempty"`
	CreationTime    time.Time        `json:"creationTime,omitzero"`
	Hostname        mesh.Hostname    `json:"hostname"`
	ClusterVIPs     istiodAddressMap `json:"clusterVIPs"`
	DefaultAddress  string           `json:"defaultAddress,omitempty"`
	Resolution      int
	MeshExternal    bool
}

type istiodAttributes struct {
	ServiceRegistry          string
	Name                     string
	Namespace                string
	Labels                   map[string]string
	ExportTo                 []string
	LabelSelectors           map[string]string
	ClusterExternalAddresses map[mesh.ClusterID][]string `json:",omitempty"`
	ExternalName             mesh.Hostname               `json:",omitempty"`
	NodeLocal                bool                        `json:",omitempty"`
}

type istiodPort struct {
	Name     string        `json:"name,omitempty"`
	Port     uint16        `json:"port"`
	Protocol mesh.Protocol `json:"protocol,omitempty"`
}

type istiodAddressMap struct {
	Addresses map[mesh.ClusterID][]string
}

// ServeRegistryz answers with every service of the mesh.
func (d *Debug) ServeRegistryz(w http.ResponseWriter, r *http.Request) {
	c := d.store.Catalog()
	out := make([]istiodService, 0, c.Len())
	for _, svc := range c.SortedServices() {
		out = append(out, toIstiodService(svc, d.store.Endpoints(svc.Key)))
	}
	writeJSON(w, r, out)
}

func toIstiodService(svc *mesh.Service, set *EndpointSet) istiodService {
	lead := svc.Lead
	s := istiodService{
		Attributes: istiodAttributes{ServiceRegistry: provider(lead), Name: lead.Name, Namespace: svc.Key.Namespace, Labels: lead.Labels,
			ExportTo: lead.ExportTo, LabelSelectors: lead.Selector, ExternalName: lead.ExternalName, NodeLocal: lead.NodeLocal},
		CreationTime: lead.Created,
		Hostname:     svc.Key.Hostname,
		ClusterVIPs:  istiodAddressMap{Addresses: map[mesh.ClusterID][]string{}},
		Resolution:   istiodResolution(lead.Resolution),
		MeshExternal: lead.MeshExternal,
	}
	for _, p := range svc.Ports {
		s.Ports = append(s.Ports, istiodPort{p.Name, p.Number, p.Protocol})
	}
	for _, id := range set.Identities() {
		s.ServiceAccounts = append(s.ServiceAccounts, id.SPIFFE())
	}
	for _, id := range svc.Clusters {
		if a := svc.In[id].Addresses; len(a) > 0 {
			s.ClusterVIPs.Addresses[id] = addrStrings(a)
			if s.DefaultAddress == "" {
				s.DefaultAddress = a[0].String()
			}
		}
		if x := svc.In[id].External; len(x) > 0 {
			if s.Attributes.ClusterExternalAddresses == nil {
				s.Attributes.ClusterExternalAddresses = map[mesh.ClusterID][]string{}
			}
			s.Attributes.ClusterExternalAddresses[id] = x
		}
	}
	return s
}

// istiodResolution numbers resolutions as istiod does.
func istiodResolution(r mesh.Resolution) int {
	return slices.Index([]mesh.Resolution{mesh.ResolutionStatic, mesh.ResolutionDNS, mesh.ResolutionDNSRoundRobin,
		mesh.ResolutionPassthrough, mesh.ResolutionAlias, mesh.ResolutionDynamicDNS}, r)
}

type istiodShards struct {
	Shards          map[string][]istiodEndpoint
	ServiceAccounts map[string]struct{}
}

type istiodEndpoint struct {
	Labels          map[string]string
	Addresses       []string
	ServicePortName string
	ServiceAccount  string
	Network         mesh.NetworkID
	Locality        istiodLocality
	EndpointPort    uint16
	LbWeight        uint32
	TLSMode         string
	Namespace       string
	WorkloadName    string
	HostName        string
	SubDomain       string
	HealthStatus    int
	NodeName        string
}

type istiodLocality struct {
	Label     string
	ClusterID mesh.ClusterID
}

// ServeEndpointShardz answers with every endpoint by host, namespace and cluster.
func (d *Debug) ServeEndpointShardz(w http.ResponseWriter, r *http.Request) {
	out := map[mesh.Hostname]map[string]istiodShards{}
	for svc := range d.store.Catalog().Services() {
		set := d.store.Endpoints(svc.Key)
		sh := istiodShards{Shards: map[string][]istiodEndpoint{}, ServiceAccounts: map[string]struct{}{}}
		for e := range set.All() {
			k := providerKubernetes + "/" + string(e.Workload.Cluster)
			if kind := e.Workload.Kind; kind == entry.KindInline || svc.Lead.FromEntry() {
				k = providerExternal + "/" + string(d.store.primary)
			}
			sh.Shards[k] = append(sh.Shards[k], toIstiodEndpoint(e))
		}
		for _, id := range set.Identities() {
			sh.ServiceAccounts[id.SPIFFE()] = struct{}{}
		}
		if out[svc.Key.Hostname] == nil {
			out[svc.Key.Hostname] = map[string]istiodShards{}
		}
		out[svc.Key.Hostname][svc.Key.Namespace] = sh
	}
	writeJSON(w, r, out)
}

func toIstiodEndpoint(e mesh.Endpoint) istiodEndpoint {
	w := e.Workload
	out := istiodEndpoint{Labels: w.Labels, Addresses: []string{w.Host}, ServicePortName: e.PortName, ServiceAccount: w.Identity.SPIFFE(),
		Network: e.Network, Locality: istiodLocality{w.Locality.String(), w.Cluster}, EndpointPort: e.Port, LbWeight: e.Weight,
		TLSMode: "disabled", Namespace: w.Namespace, WorkloadName: w.WorkloadName, HostName: w.Hostname, SubDomain: w.Subdomain,
		HealthStatus: int(e.Health), NodeName: w.Node} // istiod numbers health alike: 1 healthy, 2 not, 3 draining
	if e.Addr.IsValid() {
		out.Addresses[0] = e.Addr.String()
	}
	if w.MTLS {
		out.TLSMode = "istio"
	}
	return out
}

type istiodGateway struct {
	Network        mesh.NetworkID
	Cluster        mesh.ClusterID
	Addr           string
	Port           uint16
	HBONEPort      uint16
	ServiceAccount istiodName
}

type istiodName struct{ Namespace, Name string }

// ServeNetworkz answers with every network gateway that can be dialled.
func (d *Debug) ServeNetworkz(w http.ResponseWriter, r *http.Request) {
	c := d.store.Catalog()
	out := []istiodGateway{}
	for _, n := range c.Networks() {
		for _, g := range c.Gateways(n) {
			if g.Addr.IsValid() {
				out = append(out, istiodGateway{Network: g.Network, Cluster: g.Cluster, Addr: g.Addr.String(), Port: g.Port, HBONEPort: g.HBONEPort})
			}
		}
	}
	writeJSON(w, r, out)
}

func addrStrings(in []netip.Addr) []string {
	out := make([]string, len(in))
	for i, a := range in {
		out[i] = a.String()
	}
	return out
}
