package validate

import (
	"regexp"
	"slices"
	"strconv"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
)

// rules are what Envoy checks beyond the constraints in its API.
func (c *check) rules(path string, m proto.Message) {
	switch m := m.(type) {
	case *matcherv3.RegexMatcher:
		if _, err := regexp.Compile(m.GetRegex()); err != nil {
			c.add(path, "not a regular expression: %v", err)
		}
	case *matcherv3.RegexMatchAndSubstitute:
		c.substitution(path, m)
	case *routev3.RouteConfiguration:
		c.virtualHosts(path, m)
	case *routev3.WeightedCluster:
		c.weights(path, m)
	case *hcmv3.HttpConnectionManager:
		c.httpFilters(path, m)
	case *listenerv3.Listener:
		c.listener(path, m)
	case *endpointv3.ClusterLoadAssignment:
		c.assignment(path, m)
	case *clusterv3.Cluster:
		c.upstream(path, m)
	case *tlsv3.CommonTlsContext:
		c.grpcTLS(path, m)
	}
}

// substitution checks that a replacement refers to groups that exist.
func (c *check) substitution(path string, m *matcherv3.RegexMatchAndSubstitute) {
	re, err := regexp.Compile(m.GetPattern().GetRegex())
	if err != nil {
		return // reported at the pattern
	}
	s := m.GetSubstitution()
	for i := 0; i+1 < len(s); i++ {
		if s[i] != '\\' {
			continue
		}
		i++
		if n, err := strconv.Atoi(s[i : i+1]); err == nil && n > re.NumSubexp() {
			c.add(path, `substitution \%d: the pattern has %d groups`, n, re.NumSubexp())
		}
	}
}

// virtualHosts checks that names and domains are unique and that domains have a
// wildcard only at one end. Envoy compares domains without regard to case.
func (c *check) virtualHosts(path string, r *routev3.RouteConfiguration) {
	names, domains := map[string]bool{}, map[string]string{}
	for _, h := range r.GetVirtualHosts() {
		if names[h.GetName()] {
			c.add(path, "virtual host %q twice", h.GetName())
		}
		names[h.GetName()] = true
		for _, d := range h.GetDomains() {
			d = strings.ToLower(d)
			if other, ok := domains[d]; ok {
				c.add(path, "domain %q in virtual hosts %q and %q", d, other, h.GetName())
			}
			domains[d] = h.GetName()
			if inner := strings.TrimSuffix(strings.TrimPrefix(d, "*"), "*"); strings.Contains(inner, "*") ||
				len(d) > 1 && strings.HasPrefix(d, "*") && strings.HasSuffix(d, "*") {
				c.add(path, "domain %q of virtual host %q: a wildcard stands at the beginning or at the end", d, h.GetName())
			}
		}
	}
}

// weights checks that a split has something to split.
func (c *check) weights(path string, w *routev3.WeightedCluster) {
	var sum uint64
	for _, x := range w.GetClusters() {
		sum += uint64(x.GetWeight().GetValue())
	}
	if sum == 0 || sum > 1<<32-1 {
		c.add(path, "weights add up to %d", sum)
	}
}

const (
	routerURL   = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
	hcmURL      = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
	tcpProxyURL = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
)

// httpFilters checks that requests end at a router, and nowhere before.
func (c *check) httpFilters(path string, h *hcmv3.HttpConnectionManager) {
	list := h.GetHttpFilters()
	if len(list) == 0 {
		c.add(path, "no HTTP filters: the last must be the router")
	}
	names := map[string]bool{}
	for i, f := range list {
		if last := i == len(list)-1; last != (f.GetTypedConfig().GetTypeUrl() == routerURL) {
			c.add(path, "HTTP filter %q at place %d of %d: the router, and only it, is last", f.GetName(), i+1, len(list))
		}
		if names[f.GetName()] && c.options.GRPC {
			c.add(path, "HTTP filter %q twice, which gRPC refuses", f.GetName())
		}
		names[f.GetName()] = true
	}
	if h.GetRouteSpecifier() == nil {
		c.add(path, "no routes")
	}
}

// assignment checks the endpoints of an upstream.
func (c *check) assignment(path string, a *endpointv3.ClusterLoadAssignment) {
	priorities := map[uint32]bool{}
	addresses, localities := map[string]bool{}, map[string]bool{}
	sums := map[uint32]uint64{}
	for _, g := range a.GetEndpoints() {
		p := g.GetPriority()
		priorities[p] = true
		sums[p] += uint64(g.GetLoadBalancingWeight().GetValue())
		l := g.GetLocality()
		key := strings.Join([]string{strconv.Itoa(int(p)), l.GetRegion(), l.GetZone(), l.GetSubZone()}, "/")
		if localities[key] && c.options.GRPC {
			c.add(path, "locality %s twice, which gRPC refuses", key)
		}
		localities[key] = true
		var within uint64
		for _, e := range g.GetLbEndpoints() {
			within += uint64(e.GetLoadBalancingWeight().GetValue())
			addr := e.GetEndpoint().GetAddress()
			if text := addr.String(); addresses[text] && c.options.GRPC {
				c.add(path, "address %s twice, which gRPC refuses", addressText(addr))
			} else {
				addresses[text] = true
			}
		}
		if within > 1<<32-1 {
			c.add(path, "weights of locality %s add up to %d", key, within)
		}
	}
	for p := range priorities {
		if p > 0 && !priorities[p-1] {
			c.add(path, "priority %d without priority %d", p, p-1)
		}
		if sums[p] > 1<<32-1 {
			c.add(path, "locality weights of priority %d add up to %d", p, sums[p])
		}
	}
}

// upstream checks that the parts of an upstream fit its type.
func (c *check) upstream(path string, u *clusterv3.Cluster) {
	kind := u.GetType()
	if (kind == clusterv3.Cluster_EDS) != (u.GetEdsClusterConfig() != nil) {
		c.add(path, "type %s with eds_cluster_config: %t", kind, u.GetEdsClusterConfig() != nil)
	}
	c.lookupUpstream(path, u)
	if own := kind == clusterv3.Cluster_ORIGINAL_DST || lookupConfig(u) != nil; own != (u.GetLbPolicy() == clusterv3.Cluster_CLUSTER_PROVIDED) && u.GetLoadBalancingPolicy() == nil {
		c.add(path, "type %s with lb_policy %s: ORIGINAL_DST or a dynamic forward proxy and CLUSTER_PROVIDED go together", kind, u.GetLbPolicy())
	}
	inline := u.GetLoadAssignment() != nil
	switch kind {
	case clusterv3.Cluster_EDS, clusterv3.Cluster_ORIGINAL_DST:
		if inline {
			c.add(path, "type %s with load_assignment", kind)
		}
	case clusterv3.Cluster_LOGICAL_DNS:
		if g := u.GetLoadAssignment().GetEndpoints(); len(g) != 1 || len(g[0].GetLbEndpoints()) != 1 {
			c.add(path, "LOGICAL_DNS wants exactly one endpoint")
		}
	}
	var names []string
	for _, m := range u.GetTransportSocketMatches() {
		if slices.Contains(names, m.GetName()) {
			c.add(path, "transport socket match %q twice", m.GetName())
		}
		names = append(names, m.GetName())
	}
	if c.options.GRPC && len(names) > 0 {
		c.add(path, "transport_socket_matches, which gRPC refuses")
	}
}

// grpcTLS checks that certificates come from where gRPC can take them.
func (c *check) grpcTLS(path string, t *tlsv3.CommonTlsContext) {
	if c.options.GRPC && (len(t.GetTlsCertificateSdsSecretConfigs()) > 0 || t.GetValidationContextSdsSecretConfig() != nil ||
		t.GetCombinedValidationContext().GetValidationContextSdsSecretConfig() != nil || t.GetTlsParams() != nil) {
		c.add(path, "certificates by SDS or tls_params, which gRPC refuses")
	}
}
