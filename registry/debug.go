package registry

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strconv"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Debug answers questions about what the Store knows: as istiod's /debug
// endpoints do (see debug_istiod.go), and as an [Overview]. It reads immutable
// values and never holds the Store up. Who may ask is decided by whoever mounts
// the handlers.
type Debug struct {
	store    *Store
	problems *Problems
}

// NewDebug returns the debug view of a store; problems may be nil.
func NewDebug(s *Store, p *Problems) *Debug {
	if p == nil {
		p = NewProblems(nil)
	}
	return &Debug{store: s, problems: p}
}

// Handlers returns every handler by its name under /debug. All answer a GET with
// JSON, indented if the query has "pretty".
func (d *Debug) Handlers() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"overview": d.ServeOverview, "conflicts": d.ServeConflicts, "problems": d.ServeProblems, "mesh": d.ServeMesh,
		"registryz": d.ServeRegistryz, "endpointShardz": d.ServeEndpointShardz, "networkz": d.ServeNetworkz,
	}
}

// Overview is the mesh at a glance: what a status page and the command line show.
type Overview struct {
	Revision      uint64            `json:"revision"`
	Primary       mesh.ClusterID    `json:"primary"`
	TrustDomain   string            `json:"trustDomain"`
	RootNamespace string            `json:"rootNamespace"`
	Clusters      []ClusterOverview `json:"clusters"`
	Networks      []NetworkOverview `json:"networks"`
	Services      []ServiceOverview `json:"services"`
	Conflicts     []mesh.Conflict   `json:"conflicts"`
	Problems      []Problem         `json:"problems"`
}

// Count is a number of endpoints and how many of them may be sent traffic.
type Count struct {
	Endpoints int `json:"endpoints"`
	Ready     int `json:"ready"`
}

func (c *Count) add(e mesh.Endpoint) {
	c.Endpoints++
	if e.Health != mesh.HealthNotReady {
		c.Ready++
	}
}

// ClusterOverview is one Kubernetes cluster that has reported.
type ClusterOverview struct {
	ID       mesh.ClusterID `json:"id"`
	Primary  bool           `json:"primary"`
	Network  mesh.NetworkID `json:"network"`
	Services int            `json:"services"`
	Count
}

// NetworkOverview is one network that something is on, "" for unknown.
type NetworkOverview struct {
	ID mesh.NetworkID `json:"id"`
	// Weight is nil unless the settings give the network one.
	Weight *mesh.Weight `json:"weight,omitempty"`
	// Clusters are those with endpoints on the network.
	Clusters []mesh.ClusterID  `json:"clusters"`
	Gateways []GatewayOverview `json:"gateways"`
	Count
}

// GatewayOverview is one way into a network. Address is "" while Host is a name
// that is not resolved.
type GatewayOverview struct {
	Cluster mesh.ClusterID `json:"cluster,omitempty"`
	Host    string         `json:"host"`
	Address string         `json:"address,omitempty"`
	Port    uint16         `json:"port"`
	Origin  string         `json:"origin"`
}

// ServiceOverview is one service of the mesh.
type ServiceOverview struct {
	Namespace string        `json:"namespace"`
	Hostname  mesh.Hostname `json:"hostname"`
	// Ports are written "name:number/protocol".
	Ports []string `json:"ports"`
	// Clusters that define the service or have endpoints of it, the lead first.
	Clusters  []ServiceInCluster `json:"clusters"`
	Conflicts int                `json:"conflicts"`
}

// ServiceInCluster is a service's share of one cluster.
type ServiceInCluster struct {
	ID mesh.ClusterID `json:"id"`
	Count
}

// Overview collects the mesh at a glance. It costs a walk over all endpoints.
func (d *Debug) Overview() Overview {
	c := d.store.Catalog()
	o := Overview{Revision: c.Revision, Primary: c.Primary, TrustDomain: c.TrustDomain(), RootNamespace: c.RootNamespace(),
		Clusters: []ClusterOverview{}, Services: make([]ServiceOverview, 0, c.Len()),
		Conflicts: append([]mesh.Conflict{}, c.Conflicts()...), Problems: d.problems.List()}
	clusters, nets := map[mesh.ClusterID]*ClusterOverview{}, map[mesh.NetworkID]*NetworkOverview{}
	for _, k := range c.Clusters() {
		clusters[k.ID] = &ClusterOverview{ID: k.ID, Primary: k.ID == c.Primary, Network: k.Network}
	}
	for _, n := range c.Networks() {
		nets[n] = &NetworkOverview{ID: n, Gateways: gatewayOverviews(c.Gateways(n))}
	}
	for _, svc := range c.SortedServices() {
		o.Services = append(o.Services, d.service(svc, clusters, nets))
	}
	for _, k := range c.Clusters() {
		o.Clusters = append(o.Clusters, *clusters[k.ID])
	}
	o.Networks = []NetworkOverview{}
	for _, n := range slices.Sorted(maps.Keys(nets)) {
		slices.Sort(nets[n].Clusters)
		nets[n].Clusters = append([]mesh.ClusterID{}, nets[n].Clusters...)
		nets[n].Gateways = append([]GatewayOverview{}, nets[n].Gateways...)
		nets[n].Weight = c.Settings.Weights.Network(n).Given()
		o.Networks = append(o.Networks, *nets[n])
	}
	return o
}

// service looks at one service and counts its endpoints where they belong.
func (d *Debug) service(svc *mesh.Service, clusters map[mesh.ClusterID]*ClusterOverview, nets map[mesh.NetworkID]*NetworkOverview) ServiceOverview {
	out := ServiceOverview{Namespace: svc.Key.Namespace, Hostname: svc.Key.Hostname, Ports: []string{}, Conflicts: len(svc.Conflicts)}
	for _, p := range svc.Ports {
		out.Ports = append(out.Ports, p.Name+":"+strconv.Itoa(int(p.Number))+"/"+string(p.Protocol))
	}
	in := map[mesh.ClusterID]*Count{}
	for _, id := range svc.Clusters {
		in[id] = &Count{}
		if k := clusters[id]; k != nil {
			k.Services++
		}
	}
	for e := range d.store.Endpoints(svc.Key).All() {
		id := e.Workload.Cluster
		if in[id] == nil {
			in[id] = &Count{}
		}
		in[id].add(e)
		if k := clusters[id]; k != nil {
			k.add(e)
		}
		n := nets[e.Network]
		if n == nil {
			n = &NetworkOverview{ID: e.Network}
			nets[e.Network] = n
		}
		n.add(e)
		if !slices.Contains(n.Clusters, id) {
			n.Clusters = append(n.Clusters, id)
		}
	}
	ids := slices.Clone(svc.Clusters)
	for _, id := range slices.Sorted(maps.Keys(in)) {
		if !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	for _, id := range ids {
		out.Clusters = append(out.Clusters, ServiceInCluster{ID: id, Count: *in[id]})
	}
	return out
}

func gatewayOverviews(list []mesh.NetworkGateway) []GatewayOverview {
	out := make([]GatewayOverview, len(list))
	for i, g := range list {
		out[i] = GatewayOverview{Cluster: g.Cluster, Host: g.Host, Port: g.Port, Origin: g.Origin.String()}
		if g.Addr.IsValid() {
			out[i].Address = g.Addr.String()
		}
	}
	return out
}

// ServeOverview answers with the [Overview].
func (d *Debug) ServeOverview(w http.ResponseWriter, r *http.Request) { writeJSON(w, r, d.Overview()) }

// ServeConflicts answers with every disagreement between clusters.
func (d *Debug) ServeConflicts(w http.ResponseWriter, r *http.Request) {
	writeJSON(w, r, append([]mesh.Conflict{}, d.store.Catalog().Conflicts()...))
}

// ServeProblems answers with every object that is not served as written.
func (d *Debug) ServeProblems(w http.ResponseWriter, r *http.Request) {
	writeJSON(w, r, d.problems.List())
}

// ServeMesh answers with the MeshConfig in force, defaults filled in.
func (d *Debug) ServeMesh(w http.ResponseWriter, r *http.Request) {
	b, err := protojson.Marshal(d.store.Catalog().Settings.Mesh)
	if err != nil {
		http.Error(w, "encode mesh configuration: "+err.Error(), http.StatusInternalServerError)
		return
	}
	writeJSON(w, r, json.RawMessage(b))
}

// writeJSON answers with a value, indented if the query has "pretty".
func writeJSON(w http.ResponseWriter, r *http.Request, v any) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	if r.URL.Query().Has("pretty") {
		enc.SetIndent("", "  ")
	}
	if err := enc.Encode(v); err != nil {
		http.Error(w, "encode answer: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(buf.Bytes()) // the caller went away: nobody to tell
}
