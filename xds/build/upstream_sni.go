package build

import (
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// projectSNI reduces a view for an SNI-DNAT upstream. Whether there is one
// depends on the router's labels and namespace; what it is, on the dialect.
func projectSNI(in Inputs, v View, id UpstreamID) View {
	if v.Kind != mesh.ProxyRouter || v.Dialect == mesh.DialectGRPC {
		return View{}
	}
	p := narrow(in, v, id.Host, id.Port)
	p.Kind, p.Dialect, p.Inbound = v.Kind, v.Dialect, v.Inbound
	if at, ok := findServed(in, v, id.Host, id.Port); ok && resolves(at.service) {
		p = withSelection(in, v, p, id, at)
	}
	return p
}

// sniUpstream makes the upstream to which an east-west gateway passes the
// connections for a server name. It has no TLS of its own: the stream is mTLS
// already, between the workloads at its ends.
func sniUpstream(in Inputs, v View, id UpstreamID) *clusterv3.Cluster {
	x, ok := findUpstream(in, v, id)
	if !ok || x.service.Lead.MeshExternal {
		return nil
	}
	if !ServesPassthrough(in, v) || strings.Contains(string(id.Host), "*") {
		return nil
	}
	d := x.draft(in, v, id)
	switch {
	case passesThrough(x.policy):
		d.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST}
	case resolves(x.service):
		resolved(in, v, d.Cluster, x.service.Lead.Resolution, planFor(in, v, id, x.served))
	default:
		assigned(d.Cluster)
	}
	d.applyPolicy(in, x)
	d.tune(v.Tuning.dial, mesh.ProtocolTCP)
	return d.finish()
}
