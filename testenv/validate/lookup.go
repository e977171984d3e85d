package validate

import (
	"fmt"
	"maps"
	"slices"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	lookupv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dynamic_forward_proxy/v3"
	dnscachev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/dynamic_forward_proxy/v3"
	httplookupv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/dynamic_forward_proxy/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	snilookupv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/sni_dynamic_forward_proxy/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Upstreams that dial names which a filter has looked up (dynamic forward proxy):
// what Envoy refuses of them, and what would not work or be an open proxy.

const httpOptionsName = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

// lookupConfig opens the configuration of such an upstream; nil for any other.
func lookupConfig(u *clusterv3.Cluster) *lookupv3.ClusterConfig {
	out := &lookupv3.ClusterConfig{}
	if !opens(u.GetClusterType().GetTypedConfig(), out) {
		return nil
	}
	return out
}

// opens unpacks a message if it is of the type.
func opens(a *anypb.Any, into proto.Message) bool {
	return a != nil && a.MessageIs(into) && a.UnmarshalTo(into) == nil
}

// lookupUpstream checks that an upstream says so if it does not verify that
// servers are who was asked for.
func (c *check) lookupUpstream(path string, u *clusterv3.Cluster) {
	config := lookupConfig(u)
	if config == nil || config.GetAllowInsecureClusterOptions() {
		return
	}
	options := &httpv3.HttpProtocolOptions{}
	if a, ok := u.GetTypedExtensionProtocolOptions()[httpOptionsName]; ok {
		if !opens(a, options) {
			return // reported where it stands
		}
	} else {
		return // Envoy fills in what it wants
	}
	if o := options.GetUpstreamHttpProtocolOptions(); !o.GetAutoSni() || !o.GetAutoSanValidation() {
		c.add(path, "a dynamic forward proxy without auto_sni and auto_san_validation, and without allow_insecure_cluster_options")
	}
}

// caches checks that all that names one cache of looked up names has the same
// settings for it: Envoy refuses the second.
func (s *Snapshot) caches() error {
	c := &check{resource: "DNS caches"}
	found := &cacheVisitor{check: c, seen: map[string]*dnscachev3.DnsCacheConfig{}}
	for _, n := range slices.Sorted(maps.Keys(s.upstreams)) {
		found.in = "upstream " + n
		walk(s.upstreams[n], found)
	}
	for _, n := range slices.Sorted(maps.Keys(s.listeners)) {
		found.in = "listener " + n
		walk(s.listeners[n], found)
	}
	return c.err()
}

type cacheVisitor struct {
	check *check
	in    string
	seen  map[string]*dnscachev3.DnsCacheConfig
}

func (*cacheVisitor) opened(string, proto.Message) {}
func (*cacheVisitor) field(string, field)          {}
func (*cacheVisitor) problem(string, string)       {}

func (v *cacheVisitor) message(path string, m proto.Message) {
	c, ok := m.(*dnscachev3.DnsCacheConfig)
	if !ok {
		return
	}
	if first, ok := v.seen[c.GetName()]; !ok {
		v.seen[c.GetName()] = c
	} else if !proto.Equal(first, c) {
		v.check.add(v.in+": "+path, "DNS cache %q has other settings elsewhere", c.GetName())
	}
}

// cacheOf is the cache from which an upstream takes what it dials, "" if it takes
// it from elsewhere.
func (s *Snapshot) cacheOf(upstream string) string {
	return lookupConfig(s.upstreams[upstream]).GetDnsCacheConfig().GetName()
}

// streamLookups checks the chains that pass connections to such an upstream: the
// server name is looked up first, into the same cache, and it is not any.
func (r *references) streamLookups(path string, f *listenerv3.FilterChain) {
	looked := ""
	for _, x := range f.GetFilters() {
		sni, tcp := &snilookupv3.FilterConfig{}, &tcpproxyv3.TcpProxy{}
		switch a := x.GetTypedConfig(); {
		case opens(a, sni):
			looked = sni.GetDnsCacheConfig().GetName()
		case opens(a, tcp):
			names := []string{tcp.GetCluster()}
			for _, w := range tcp.GetWeightedClusters().GetClusters() {
				names = append(names, w.GetName())
			}
			for _, n := range names {
				if want := r.snapshot.cacheOf(n); want != looked {
					r.check.add(path, "upstream %q takes what it dials from DNS cache %q, the server name is looked up into %q", n, want, looked)
				}
			}
			if looked != "" && len(f.GetFilterChainMatch().GetServerNames()) == 0 {
				r.check.add(path, "looks up any server name")
			}
		}
	}
}

// httpLookups checks that requests to such an upstream have passed a filter that
// looks up their host into the same cache.
func (r *references) httpLookups(path string, h *hcmv3.HttpConnectionManager) {
	filters := map[string]*hcmv3.HttpFilter{} // by cache
	for _, f := range h.GetHttpFilters() {
		if c := (&httplookupv3.FilterConfig{}); opens(f.GetTypedConfig(), c) {
			filters[c.GetDnsCacheConfig().GetName()] = f
		}
	}
	routes := h.GetRouteConfig()
	if n := h.GetRds().GetRouteConfigName(); n != "" {
		routes = r.snapshot.routes[n]
	}
	for _, vh := range routes.GetVirtualHosts() {
		for i, route := range vh.GetRoutes() {
			for _, u := range routeUpstreams(route.GetRoute()) {
				cache := r.snapshot.cacheOf(u)
				if cache == "" {
					continue
				}
				f := filters[cache]
				_, inHost := vh.GetTypedPerFilterConfig()[f.GetName()]
				_, inRoute := route.GetTypedPerFilterConfig()[f.GetName()]
				if f == nil || f.GetDisabled() && !inHost && !inRoute {
					r.check.add(path, "%s of virtual host %q leads to %q, and no filter that is on looks the host up into DNS cache %q",
						fmt.Sprintf("route %d", i), vh.GetName(), u, cache)
				}
			}
		}
	}
}

func routeUpstreams(a *routev3.RouteAction) []string {
	out := []string{a.GetCluster()}
	for _, w := range a.GetWeightedClusters().GetClusters() {
		out = append(out, w.GetName())
	}
	return out
}
