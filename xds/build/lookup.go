package build

import (
	"slices"

	dnscachev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/dynamic_forward_proxy/v3"
	httplookupv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/dynamic_forward_proxy/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// A ServiceEntry with resolution DYNAMIC_DNS stands for all names within a
// wildcard: the proxy looks up the one that a request (Host header) or TLS
// connection (server name) asks for, and dials it. Three parts do that together:
// a filter that looks the name up, an upstream that dials what was found, and a
// cache of names that both know by its name.
//
// What looks up any name that it is asked for is an open proxy, so every name is
// held to the wildcard: filter chains by their server names, routes by a
// condition on the Host header, which holds it to the ports of the service too.
// Only outboundTrafficPolicy ALLOW_ANY_DYNAMIC_DNS lets a sidecar look up
// everything that its workload asks for.
//
// Each wildcard has a cache of its own, so that the names of one, which clients
// choose, cannot push out those of another. Filters for requests are off but for
// the virtual hosts that lead to their wildcard: each that is on looks up every
// name that goes to any upstream of the kind.

const (
	lookupUpstreamType  = "envoy.clusters.dynamic_forward_proxy"
	lookupFilterName    = "envoy.filters.http.dynamic_forward_proxy"
	sniLookupFilterName = "envoy.filters.network.sni_dynamic_forward_proxy"
	// lookupCacheSuffix follows the wildcard in the name of its cache.
	lookupCacheSuffix = "_dfp_dns_cache"
)

// byRequest reports whether proxies look up the name that each request asks for.
func byRequest(s *mesh.Service) bool { return s != nil && s.Lead.Resolution.ByRequest() }

// lookupCache is the cache of what was looked up for a wildcard. A proxy that has
// a cache of the name keeps it, and refuses whatever names it with other
// settings, for as long as it runs: nothing that may change may be in it. A
// proxy's addresses do not.
func lookupCache(v View, name string) *dnscachev3.DnsCacheConfig {
	return &dnscachev3.DnsCacheConfig{Name: name + lookupCacheSuffix, DnsLookupFamily: lookupFamily(v), TypedDnsResolverConfig: nameResolver()}
}

// lookupFilter is the name of the filter that looks up the names of a wildcard.
func lookupFilter(name string) string { return lookupFilterName + "|" + name }

// lookupFilters are the filters that look up what requests may ask for, each off
// until a virtual host asks for it. The routes of one service lead to others by
// rules only.
func (f *filters) lookupFilters(routes string) []*hcmv3.HttpFilter {
	if f.dir != DirectionOutbound {
		return nil
	}
	var names []string
	if routes == routeHTTPProxy && f.v.Kind == mesh.ProxySidecar {
		names = lookupNamesAnywhere(f.in, f.v)
		if looksUpAny(f.in, f.v) {
			names = append(names, UpstreamAnyLookup)
		}
	} else if _, all := parsePort(routes); all && f.v.Kind == mesh.ProxySidecar {
		names = lookupNames(f.in, f.v, f.port)
		if looksUpAny(f.in, f.v) {
			names = append(names, UpstreamAnyLookup)
		}
	} else {
		names = ledLookups(f.in, f.v)
	}
	var out []*hcmv3.HttpFilter
	for _, name := range names {
		x := httpFilter(lookupFilter(name), &httplookupv3.FilterConfig{
			ImplementationSpecifier: &httplookupv3.FilterConfig_DnsCacheConfig{DnsCacheConfig: lookupCache(f.v, name)}})
		x.Disabled = true
		out = append(out, x)
	}
	return out
}

// lookupNames lists, sorted, the wildcards whose names requests to a port of a
// sidecar may ask for: those that are served there, and those that rules lead to.
func lookupNames(in Inputs, v View, port uint16) []string {
	out := ledLookups(in, v)
	for _, s := range in.Catalog.OnPort(port) {
		if byRequest(s) && speaks(in, v, s, port) {
			out = append(out, string(s.Key.Hostname))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// ledLookups lists, sorted, the wildcards that rules lead to.
func ledLookups(in Inputs, v View) []string {
	var out []string
	x := ruleTables(in)
	for _, host := range x.wildTargets {
		if s := knownAs(in, v, host); byRequest(s) && slices.ContainsFunc(x.leading[host], func(vs *virtualService) bool { return inForceFor(in, v, vs) }) {
			out = append(out, string(host))
		}
	}
	slices.Sort(out)
	return out
}

// inForceFor reports whether a VirtualService may be in force for a view: on
// sidecars or on routers, and visible.
func inForceFor(in Inputs, v View, vs *virtualService) bool {
	return exportRank(in, v.Namespace, vs) != ruleHidden && slices.ContainsFunc(vs.gateways, func(g string) bool {
		return (g == meshGateway) == (v.Kind == mesh.ProxySidecar)
	})
}

// lookupsChanged reports whether a change may alter which filters look up names
// on ports that it is not about: those of rules that lead to a wildcard.
func lookupsChanged(in Inputs, c *registry.Change) bool {
	for k, s := range c.Services {
		if s.Aspects.Has(registry.AspectDefinition) && (byRequest(s.Before) || byRequest(s.After)) && len(ruleTables(in).leading[k.Hostname]) > 0 {
			return true
		}
	}
	for k, o := range c.Objects {
		if k.Kind == mesh.KindVirtualService && slices.ContainsFunc(destinationsChanged(in, o), isWild) {
			return true
		}
	}
	return false
}

// looksUpAny reports whether requests for hosts that the mesh does not know are
// looked up by the host that they name: by MeshConfig, unless the Sidecar has a
// policy of its own, which knows nothing of the kind.
func looksUpAny(in Inputs, v View) bool {
	if v.Kind != mesh.ProxySidecar || v.Dialect == mesh.DialectGRPC {
		return false
	}
	if s := sidecarOf(in, v); s != nil && s.spec.GetOutboundTrafficPolicy() != nil {
		return false
	}
	return in.Catalog.Settings.Mesh.GetOutboundTrafficPolicy().GetMode() == meshconfig.MeshConfig_OutboundTrafficPolicy_ALLOW_ANY_DYNAMIC_DNS
}
