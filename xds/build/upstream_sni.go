package build

import (
	"slices"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// projectSNI reduces a view for an SNI-DNAT upstream. Whether there is one
// depends on the router's labels and namespace; what it is, on the dialect.
func projectSNI(in Inputs, v View, id UpstreamID) View {
	if v.Kind != mesh.ProxyRouter || v.Dialect == mesh.DialectGRPC {
		return View{}
	}
	return View{Kind: v.Kind, Dialect: v.Dialect, Inbound: v.Inbound, Namespace: scope(in, v, id.Host, id.Port)}
}

// sniUpstream makes the upstream to which an east-west gateway passes the
// connections for a server name. It has no TLS of its own: the stream is mTLS
// already, between the workloads at its ends.
func sniUpstream(in Inputs, v View, id UpstreamID) *clusterv3.Cluster {
	at, ok := findServed(in, v, id.Host, id.Port)
	if !ok || at.service.Lead.MeshExternal {
		return nil
	}
	if !slices.ContainsFunc(passthroughServers(in, v), func(s passthroughServer) bool { return s.serves(at.service) }) {
		return nil
	}
	u := newUpstream(in, id.String())
	assigned(u)
	u.LbPolicy = clusterv3.Cluster_LEAST_REQUEST
	u.CommonLbConfig = neverPanic()
	u.CircuitBreakers = noLimits()
	u.Metadata = serviceMetadata(string(at.service.Key.Hostname), at.service.Lead.Name, at.service.Key.Namespace)
	u.Filters = peerExchange(v.Dialect)
	return u
}
