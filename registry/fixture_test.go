package registry

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
)

const primary = mesh.ClusterID("east")

func key(name string) mesh.ServiceKey {
	return mesh.ServiceKey{Namespace: "shop", Hostname: mesh.Hostname(name + ".shop.svc.cluster.local")}
}

// definition makes a definition with ports written "name:number/protocol".
func definition(cluster mesh.ClusterID, k mesh.ServiceKey, ports ...string) *mesh.Definition {
	d := &mesh.Definition{Name: strings.SplitN(string(k.Hostname), ".", 2)[0],
		Origin: mesh.ObjectRef{Cluster: cluster, Kind: "Service", Namespace: k.Namespace, Name: string(k.Hostname)}}
	for _, p := range ports {
		var port mesh.Port
		name, rest, _ := strings.Cut(p, ":")
		number, protocol, _ := strings.Cut(rest, "/")
		_, _ = fmt.Sscan(number, &port.Number)
		port.Name, port.Protocol, port.TargetPort = name, mesh.Protocol(protocol), port.Number
		d.Ports = append(d.Ports, port)
	}
	return d
}

func pod(cluster mesh.ClusterID, name, addr string) *mesh.Workload {
	return &mesh.Workload{Cluster: cluster, Namespace: "shop", Name: name, WorkloadName: name, Kind: "Pod",
		Addresses: []netip.Addr{netip.MustParseAddr(addr)}, MTLS: true,
		Identity: mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: name}}
}

func endpoint(port string, w *mesh.Workload) mesh.Endpoint {
	return mesh.Endpoint{Addr: w.Addresses[0], Port: 8080, PortName: port, Health: mesh.HealthReady, Workload: w}
}

func service(cluster mesh.ClusterID, k mesh.ServiceKey, port string, pods ...*mesh.Workload) ServiceState {
	st := ServiceState{Key: k, Definition: definition(cluster, k, port)}
	name, _, _ := strings.Cut(port, ":")
	for _, w := range pods {
		st.Endpoints = append(st.Endpoints, endpoint(name, w))
	}
	return st
}

func object(name, version string, selector string) ObjectState {
	k := mesh.ObjectKey{Kind: mesh.KindGateway, Namespace: "shop", Name: name}
	return ObjectState{Key: k, Object: &mesh.Object{Key: k, Version: version,
		Spec: &networking.Gateway{Selector: map[string]string{"istio": selector}}}}
}

func networks(of map[string]*meshconfig.Network) mesh.Settings {
	return mesh.Settings{Networks: &meshconfig.MeshNetworks{Networks: of}}
}

func fromRegistry(id string) *meshconfig.Network_NetworkEndpoints {
	return &meshconfig.Network_NetworkEndpoints{Ne: &meshconfig.Network_NetworkEndpoints_FromRegistry{FromRegistry: id}}
}

func fromCIDR(c string) *meshconfig.Network_NetworkEndpoints {
	return &meshconfig.Network_NetworkEndpoints{Ne: &meshconfig.Network_NetworkEndpoints_FromCidr{FromCidr: c}}
}

func gatewayAddress(a string, port uint32) *meshconfig.Network_IstioNetworkGateway {
	return &meshconfig.Network_IstioNetworkGateway{Gw: &meshconfig.Network_IstioNetworkGateway_Address{Address: a}, Port: port}
}

func gatewayService(host string, port uint32) *meshconfig.Network_IstioNetworkGateway {
	return &meshconfig.Network_IstioNetworkGateway{Gw: &meshconfig.Network_IstioNetworkGateway_RegistryServiceName{RegistryServiceName: host}, Port: port}
}

// changes records the feed of a store.
type changes struct{ list []Change }

func record(s *Store) *changes {
	c := &changes{}
	s.OnChange(func(ch Change) { c.list = append(c.list, ch) })
	return c
}

func (c *changes) take() []Change {
	out := c.list
	c.list = nil
	return out
}

// picture is everything a reader of the store can see, in comparable form.
type picture struct {
	Services, ByHost, ByPort, BySpace, Endpoints, Clusters, Gateways, Objects, Workloads []string
	Scale                                                                                uint32
}

func look(s *Store) picture {
	c := s.Catalog()
	p := picture{Scale: c.WeightScale()}
	for _, svc := range c.SortedServices() {
		p.Services = append(p.Services, lookService(svc))
		p.Endpoints = append(p.Endpoints, lookEndpoints(svc.Key, s.Endpoints(svc.Key)))
	}
	names := func(list []*mesh.Service) (out []string) {
		for _, svc := range list {
			if c.Service(svc.Key) != svc {
				out = append(out, "stale "+svc.Key.String())
			}
			out = append(out, svc.Key.String())
		}
		return out
	}
	for _, part := range c.hosts.parts {
		for h, l := range part {
			p.ByHost = append(p.ByHost, fmt.Sprint(h, names(l)))
		}
	}
	if n := len(c.SortedServices()); n != c.Len() {
		p.ByHost = append(p.ByHost, fmt.Sprintf("length %d for %d services", c.Len(), n))
	}
	for n, l := range c.byPort {
		p.ByPort = append(p.ByPort, fmt.Sprint(n, names(l)))
	}
	for n, l := range c.bySpace {
		p.BySpace = append(p.BySpace, fmt.Sprint(n, names(l)))
	}
	p.Clusters = append(p.Clusters, fmt.Sprint(c.Clusters()))
	for _, n := range c.Networks() {
		p.Gateways = append(p.Gateways, fmt.Sprint(n, c.Gateways(n), c.GatewaysFor(n, "")))
		for _, k := range c.Clusters() {
			p.Gateways = append(p.Gateways, fmt.Sprint(n, k.ID, c.GatewaysFor(n, k.ID)))
		}
	}
	for k, l := range c.objects {
		for _, o := range l.oldestFirst {
			p.Objects = append(p.Objects, fmt.Sprint(k, o.Key, o.Labels, o.Spec))
		}
	}
	s.mu.Lock()
	for k, l := range s.byAddr {
		p.Workloads = append(p.Workloads, fmt.Sprintf("%v %+v", k, *l[0]))
	}
	s.mu.Unlock()
	for _, l := range [][]string{p.ByHost, p.ByPort, p.BySpace, p.Objects, p.Workloads} {
		slices.Sort(l)
	}
	return p
}

func lookService(svc *mesh.Service) string {
	if svc == nil {
		return "none"
	}
	var b strings.Builder
	fmt.Fprintln(&b, svc.Key, svc.LeadCluster, svc.Ports, svc.Clusters, svc.Conflicts, svc.Lead == svc.In[svc.LeadCluster])
	for _, id := range svc.Clusters {
		fmt.Fprintf(&b, "%s %+v\n", id, *svc.In[id])
	}
	return b.String()
}

func lookEndpoints(k mesh.ServiceKey, set *EndpointSet) string {
	var b strings.Builder
	fmt.Fprintln(&b, k, set.Identities())
	for e := range set.All() {
		w := *e.Workload
		e.Workload = nil
		fmt.Fprintf(&b, "%+v %+v\n", e, w)
	}
	return b.String()
}
