package validate

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Snapshot is all that one proxy has. The zero value is empty and ready to use.
type Snapshot struct {
	Options
	// Bootstrap names upstreams that the proxy has without being told. Those of
	// Istio's agent need not be named.
	Bootstrap []string

	upstreams   map[string]*clusterv3.Cluster
	assignments map[string]*endpointv3.ClusterLoadAssignment
	listeners   map[string]*listenerv3.Listener
	routes      map[string]*routev3.RouteConfiguration
}

// agentUpstreams are in the bootstrap configuration that Istio's agent writes.
func agentUpstreams() []string {
	return []string{"sds-grpc", "xds-grpc", "agent", "prometheus_stats"}
}

// AddAny adds resources as they travel.
func (s *Snapshot) AddAny(list ...*anypb.Any) error {
	for _, a := range list {
		m, err := a.UnmarshalNew()
		if err != nil {
			return fmt.Errorf("decode resource %s: %w", a.GetTypeUrl(), err)
		}
		if err := s.Add(m); err != nil {
			return err
		}
	}
	return nil
}

// Add adds resources; one of a name that is there already replaces it.
func (s *Snapshot) Add(list ...proto.Message) error {
	for _, m := range list {
		switch m := m.(type) {
		case *clusterv3.Cluster:
			put(&s.upstreams, m.GetName(), m)
		case *endpointv3.ClusterLoadAssignment:
			put(&s.assignments, m.GetClusterName(), m)
		case *listenerv3.Listener:
			put(&s.listeners, m.GetName(), m)
		case *routev3.RouteConfiguration:
			put(&s.routes, m.GetName(), m)
		default:
			return fmt.Errorf("add resource %s: not a resource of a proxy's configuration", m.ProtoReflect().Descriptor().FullName())
		}
	}
	return nil
}

func put[M any](to *map[string]M, name string, m M) {
	if *to == nil {
		*to = map[string]M{}
	}
	(*to)[name] = m
}

// Check checks every resource, that no two listeners have one address, that what
// resources refer to is there (routes of listeners, upstreams of listeners and
// routes, assignments of upstreams), and that names are looked up where upstreams
// take them from.
func (s *Snapshot) Check() error {
	errs := []error{s.addresses(), s.caches()}
	for _, n := range slices.Sorted(maps.Keys(s.listeners)) {
		errs = append(errs, s.one(s.listeners[n]))
	}
	for _, n := range slices.Sorted(maps.Keys(s.routes)) {
		errs = append(errs, s.one(s.routes[n]))
	}
	for _, n := range slices.Sorted(maps.Keys(s.upstreams)) {
		errs = append(errs, s.one(s.upstreams[n]))
	}
	for _, n := range slices.Sorted(maps.Keys(s.assignments)) {
		errs = append(errs, s.one(s.assignments[n]))
	}
	return errors.Join(errs...)
}

// one checks a resource and what it refers to.
func (s *Snapshot) one(m proto.Message) error {
	c := &check{options: s.Options, resource: title(m)}
	c.run(m)
	walk(m, &references{snapshot: s, check: c})
	return c.err()
}

// addresses checks that no two listeners have an address in common: Envoy
// refuses the second, whether it binds or not.
func (s *Snapshot) addresses() error {
	c := &check{resource: "Listeners"}
	owner := map[string]string{}
	for _, n := range slices.Sorted(maps.Keys(s.listeners)) {
		l := s.listeners[n]
		if l.GetApiListener() != nil {
			continue
		}
		all := []string{addressText(l.GetAddress())}
		for _, a := range l.GetAdditionalAddresses() {
			all = append(all, addressText(a.GetAddress()))
		}
		for _, a := range all {
			if other, ok := owner[a]; ok {
				c.add("", "%s and %s both have address %s", other, n, a)
			}
			owner[a] = n
		}
	}
	return c.err()
}

// references checks what a resource refers to.
type references struct {
	snapshot *Snapshot
	check    *check
}

func (r *references) opened(string, proto.Message) {}
func (r *references) field(string, field)          {}
func (r *references) problem(string, string)       {} // reported by the check itself

func (r *references) message(path string, m proto.Message) {
	switch m := m.(type) {
	case *hcmv3.Rds:
		if _, ok := r.snapshot.routes[m.GetRouteConfigName()]; !ok {
			r.check.add(path, "route configuration %q is not there", m.GetRouteConfigName())
		}
	case *listenerv3.FilterChain:
		r.streamLookups(path, m)
	case *hcmv3.HttpConnectionManager:
		r.httpLookups(path, m)
	case *tcpproxyv3.TcpProxy:
		r.upstream(path, m.GetCluster())
		for _, w := range m.GetWeightedClusters().GetClusters() {
			r.upstream(path, w.GetName())
		}
	case *routev3.RouteAction:
		r.upstream(path, m.GetCluster())
		for _, w := range m.GetWeightedClusters().GetClusters() {
			if m.GetClusterNotFoundResponseCode() == routev3.RouteAction_INTERNAL_SERVER_ERROR && strings.HasSuffix(w.GetName(), ".invalid") {
				continue // a share of the requests is to fail, and says how
			}
			r.upstream(path, w.GetName())
		}
		for _, p := range m.GetRequestMirrorPolicies() {
			r.upstream(path, p.GetCluster())
		}
	case *clusterv3.Cluster:
		if m.GetType() != clusterv3.Cluster_EDS {
			return
		}
		name := m.GetEdsClusterConfig().GetServiceName()
		if name == "" {
			name = m.GetName()
		}
		if _, ok := r.snapshot.assignments[name]; !ok {
			r.check.add(path, "assignment %q is not there", name)
		}
	}
}

func (r *references) upstream(path, name string) {
	if name == "" || slices.Contains(r.snapshot.Bootstrap, name) || slices.Contains(agentUpstreams(), name) {
		return
	}
	if _, ok := r.snapshot.upstreams[name]; !ok {
		r.check.add(path, "upstream %q is not there", name)
	}
}

// RouteNames lists the route configurations that a listener refers to, sorted.
func RouteNames(l *listenerv3.Listener) []string {
	c := &routeNames{}
	walk(l, c)
	slices.Sort(c.names)
	return slices.Compact(c.names)
}

type routeNames struct{ names []string }

func (*routeNames) opened(string, proto.Message) {}
func (*routeNames) field(string, field)          {}
func (*routeNames) problem(string, string)       {}

func (r *routeNames) message(_ string, m proto.Message) {
	if m, ok := m.(*hcmv3.Rds); ok {
		r.names = append(r.names, m.GetRouteConfigName())
	}
}
