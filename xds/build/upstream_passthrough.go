package build

import (
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Source addresses from which a sidecar dials its own workload, so that the
// iptables rules of the agent do not intercept the connection a second time.
const (
	inboundSource4 = "127.0.0.6"
	inboundSource6 = "::6"
)

// projectStatic reduces a view for an upstream that every proxy of a kind has.
func projectStatic(v View, name string) View {
	switch {
	case v.Dialect == mesh.DialectGRPC:
		return View{Dialect: v.Dialect}
	case name == UpstreamBlackHole:
		return View{}
	case v.Kind == mesh.ProxyRouter:
		return View{Kind: v.Kind}
	case name == UpstreamPassthrough:
		return View{Dialect: v.Dialect}
	}
	return View{IPv4: v.IPv4, IPv6: v.IPv6}
}

// staticUpstream makes an upstream that does not depend on services.
func staticUpstream(in Inputs, v View, name string) *clusterv3.Cluster {
	if v.Dialect == mesh.DialectGRPC || v.Kind == mesh.ProxyRouter && name != UpstreamBlackHole {
		return nil
	}
	u := &draft{Cluster: newUpstream(in, name, name)}
	if name == UpstreamBlackHole {
		u.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
		return u.finish()
	}
	// Both share their statistics.
	u.AltStatName = UpstreamPassthrough + ";"
	u.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST}
	u.LbPolicy = clusterv3.Cluster_CLUSTER_PROVIDED
	u.CircuitBreakers = noLimits()
	u.common().IdleTimeout = duration(passthroughIdle)
	u.likeDownstream()
	pool := inMesh(in, nil).GetConnectionPool()
	u.applyPool(in, pool, nil)
	u.applyHTTP2(pool.GetHttp())
	if name == UpstreamPassthrough {
		u.Filters = peerExchange(v.Dialect)
	} else {
		u.UpstreamBindConfig = inboundSource(v)
	}
	u.tune(v.Tuning.dial, mesh.ProtocolAuto)
	return u.finish()
}

// inboundSource binds connections to the workload to the agent's loopback
// addresses of the families that the proxy has.
func inboundSource(v View) *corev3.BindConfig {
	from := func(a string) *corev3.SocketAddress {
		return &corev3.SocketAddress{Address: a, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 0}}
	}
	switch {
	case v.IPv6 && !v.IPv4:
		return &corev3.BindConfig{SourceAddress: from(inboundSource6)}
	case v.IPv6:
		return &corev3.BindConfig{SourceAddress: from(inboundSource4),
			ExtraSourceAddresses: []*corev3.ExtraSourceAddress{{Address: from(inboundSource6)}}}
	}
	return &corev3.BindConfig{SourceAddress: from(inboundSource4)}
}
