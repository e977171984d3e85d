package build

import (
	"strconv"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	caresv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/network/dns_resolver/cares/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/isthmus-mesh/isthmus/mesh"
)

const (
	// dnsJitter spreads the lookups of proxies that started together.
	dnsJitter = 100 * time.Millisecond
	// dnsRefresh is how often names are looked up whose answer names no time and
	// MeshConfig neither.
	dnsRefresh = time.Minute
	// dnsQueries is after how many lookups the resolver takes another UDP socket.
	dnsQueries = 100
	// socketPrefix begins the paths of Unix domain sockets.
	socketPrefix = "unix://"
)

// resolved makes an upstream find its endpoints by names that the proxy looks
// up. The endpoints stand in the upstream itself, so that what [Select] depends
// on it depends on too. One that looks up a single name has exactly one
// endpoint; where there is none it is an upstream of the other kind, which may
// be empty: it is there, and refuses what is sent to it.
func resolved(in Inputs, v View, u *clusterv3.Cluster, r mesh.Resolution, p *plan) {
	kind := clusterv3.Cluster_STRICT_DNS
	if r == mesh.ResolutionDNSRoundRobin && p.first() {
		kind = clusterv3.Cluster_LOGICAL_DNS
	}
	lookedUp(u, kind, p)
	u.LbPolicy = clusterv3.Cluster_LEAST_REQUEST
	u.DnsLookupFamily = lookupFamily(v)
	refresh := duration(dnsRefresh)
	if d := in.Catalog.Settings.Mesh.GetDnsRefreshRate(); d.AsDuration() > time.Millisecond {
		refresh = d
	}
	// The extension that is to replace these fields is unknown to older proxies.
	u.RespectDnsTtl, u.DnsJitter, u.DnsRefreshRate = true, duration(dnsJitter), refresh //nolint:staticcheck // as above
	u.TypedDnsResolverConfig = nameResolver()
}

// nameResolver is who looks names up for a proxy.
func nameResolver() *corev3.TypedExtensionConfig {
	return &corev3.TypedExtensionConfig{Name: "envoy.network.dns_resolver.cares",
		TypedConfig: mustAny(&caresv3.CaresDnsResolverConfig{UdpMaxQueries: u32(dnsQueries)})}
}

// lookedUp puts what an upstream dials into the upstream.
func lookedUp(u *clusterv3.Cluster, kind clusterv3.Cluster_DiscoveryType, p *plan) {
	u.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: kind}
	u.LoadAssignment = &endpointv3.ClusterLoadAssignment{ClusterName: u.Name}
	for i := range p.groups {
		u.LoadAssignment.Endpoints = append(u.LoadAssignment.Endpoints, p.locality(&p.groups[i]))
	}
}

// markExternal tells telemetry that an upstream is outside the mesh.
func markExternal(u *clusterv3.Cluster) {
	u.Metadata.FilterMetadata[metadataIstio].Fields["external"] = structpb.NewBoolValue(true)
}

// lookupFamily is which addresses a proxy looks up: of the families that it has
// itself.
func lookupFamily(v View) clusterv3.Cluster_DnsLookupFamily {
	switch {
	case v.IPv4 == v.IPv6:
		return clusterv3.Cluster_ALL
	case v.IPv6:
		return clusterv3.Cluster_V6_ONLY
	}
	return clusterv3.Cluster_V4_ONLY
}

// first keeps the first endpoint of a plan, and reports whether there is one.
func (p *plan) first() bool {
	for i := range p.groups {
		if g := p.groups[i]; len(g.picks) > 0 {
			g.picks = g.picks[:1]
			p.groups = []planned{g}
			return true
		}
	}
	return false
}

// address is what is dialled, as Envoy writes it: an IP address, a name or the
// path of a socket.
func (e *Entry) address() *corev3.Address {
	if e.Gateway != nil || e.Endpoint.Addr.IsValid() {
		a := e.Address()
		return addrAddress(a.Addr(), a.Port())
	}
	host := e.Endpoint.Workload.Host
	if path, ok := strings.CutPrefix(host, socketPrefix); ok {
		return &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: path}}}
	}
	return socketAddress(host, e.Endpoint.Port)
}

// endpointText is an endpoint's address for humans.
func endpointText(e mesh.Endpoint) string {
	switch {
	case e.Addr.IsValid():
		return addrPortText(e.Addr, e.Port)
	case e.Workload.Host == "":
		return "no address"
	case strings.HasPrefix(e.Workload.Host, socketPrefix):
		return e.Workload.Host
	}
	return e.Workload.Host + ":" + strconv.Itoa(int(e.Port))
}
