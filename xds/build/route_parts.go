package build

import (
	"strconv"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	previoushostsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/isthmus-mesh/isthmus/mesh"
)

const (
	// maxDirectResponse bounds bodies of direct responses, in bytes.
	maxDirectResponse = 1 << 20
	// retryOn are the failures after which a request is safe to send again.
	retryOn = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
	// hostAttempts is how often a retry may look for a host not tried before.
	hostAttempts = 5
	// blockedStatus answers requests to hosts outside the mesh where only known
	// ones are allowed.
	blockedStatus = 502

	defaultRoute = "default"
	allowAny     = "allow_any"
	blockAll     = "block_all"
)

func routeConfiguration(name string, hosts []*routev3.VirtualHost) *routev3.RouteConfiguration {
	return &routev3.RouteConfiguration{
		Name:                           name,
		VirtualHosts:                   hosts,
		ValidateClusters:               boolean(false), // an upstream may come after its route
		MaxDirectResponseBodySizeBytes: u32(maxDirectResponse),
		IgnorePortInHostMatching:       true,
	}
}

// routeBuilder makes virtual hosts that share their constant parts. The parts
// are never changed after they are made.
type routeBuilder struct {
	everything *routev3.RouteMatch
	retry      *routev3.RetryPolicy
	zero       *durationpb.Duration
}

func newRouteBuilder() *routeBuilder {
	return &routeBuilder{
		everything: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
		zero:       duration(0),
		retry: &routev3.RetryPolicy{
			RetryOn:                       retryOn,
			NumRetries:                    u32(2),
			HostSelectionRetryMaxAttempts: hostAttempts,
			RetryHostPredicate: []*routev3.RetryPolicy_RetryHostPredicate{{
				Name: "envoy.retry_host_predicates.previous_hosts",
				ConfigType: &routev3.RetryPolicy_RetryHostPredicate_TypedConfig{
					TypedConfig: mustAny(&previoushostsv3.PreviousHostsPredicate{}),
				},
			}},
		},
	}
}

// virtualHost routes everything for some domains to a service's port; nil if
// no domain is left for it.
func (b *routeBuilder) virtualHost(host mesh.Hostname, port uint16, domains []string) *routev3.VirtualHost {
	if len(domains) == 0 {
		return nil
	}
	operation := string(host) + ":" + strconv.Itoa(int(port)) + "/*"
	return &routev3.VirtualHost{
		Name:                       operation[:len(operation)-len("/*")],
		Domains:                    domains,
		IncludeRequestAttemptCount: true,
		Routes: []*routev3.Route{{
			Name:      defaultRoute,
			Match:     b.everything,
			Decorator: &routev3.Decorator{Operation: operation},
			Action: &routev3.Route_Route{Route: &routev3.RouteAction{
				ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: UpstreamName(DirectionOutbound, port, "", host)},
				Timeout:          b.zero,
				MaxGrpcTimeout:   b.zero, //nolint:staticcheck // what Istio's proxies of all versions read
				RetryPolicy:      b.retry,
			}},
		}},
	}
}

// catchAll is the virtual host for hosts that the mesh does not know: they are
// dialled as if there were no proxy, or refused if the mesh allows only what it
// knows.
func catchAll(in Inputs, v View) *routev3.VirtualHost {
	everything := &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}
	if registryOnly(in, v) {
		return &routev3.VirtualHost{
			Name: blockAll, Domains: []string{"*"}, IncludeRequestAttemptCount: true,
			Routes: []*routev3.Route{{Name: blockAll, Match: everything, Action: &routev3.Route_DirectResponse{
				DirectResponse: &routev3.DirectResponseAction{Status: blockedStatus},
			}}},
		}
	}
	return &routev3.VirtualHost{
		Name: allowAny, Domains: []string{"*"}, IncludeRequestAttemptCount: true,
		Routes: []*routev3.Route{{Name: allowAny, Match: everything, Action: &routev3.Route_Route{Route: &routev3.RouteAction{
			ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: elsewhere(in, v)},
			Timeout:          duration(0),
			MaxGrpcTimeout:   duration(0), //nolint:staticcheck // as above
		}}}},
	}
}
