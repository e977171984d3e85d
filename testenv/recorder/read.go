package recorder

import (
	"fmt"
	"slices"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/isthmus-mesh/isthmus/testenv/validate"
)

// nameOf reads the name of a resource.
func nameOf(a *anypb.Any) string {
	m, err := a.UnmarshalNew()
	if err != nil {
		return ""
	}
	switch r := m.(type) {
	case *endpointv3.ClusterLoadAssignment:
		return r.GetClusterName()
	case interface{ GetName() string }:
		return r.GetName()
	}
	return ""
}

// assignmentsOf lists the EDS names of upstreams.
func assignmentsOf(state map[string]*anypb.Any) []string {
	var out []string
	for name, a := range state {
		var c clusterv3.Cluster
		if a.UnmarshalTo(&c) != nil || c.GetType() != clusterv3.Cluster_EDS {
			continue
		}
		if s := c.GetEdsClusterConfig().GetServiceName(); s != "" {
			name = s
		}
		out = append(out, name)
	}
	return out
}

// routesOf lists the route configurations that listeners ask for.
func routesOf(state map[string]*anypb.Any) []string {
	var out []string
	for _, a := range state {
		var l listenerv3.Listener
		if a.UnmarshalTo(&l) == nil {
			out = append(out, validate.RouteNames(&l)...)
		}
	}
	return out
}

// Get decodes one resource of the current state into m and reports whether the
// proxy has it.
func (p *Proxy) Get(typeURL, name string, m proto.Message) bool {
	p.mu.Lock()
	a := p.state[typeURL][name]
	p.mu.Unlock()
	return a != nil && a.UnmarshalTo(m) == nil
}

// Endpoints lists what the proxy would dial for an upstream, sorted, each as
// "address:port weight", with " unhealthy" or " draining" if so. It is nil if
// the proxy has no assignment of that name, and empty if it is empty.
func (p *Proxy) Endpoints(upstream string) []string {
	var a endpointv3.ClusterLoadAssignment
	if !p.Get(Assignments, upstream, &a) {
		return nil
	}
	out := []string{}
	for _, group := range a.GetEndpoints() {
		for _, e := range group.GetLbEndpoints() {
			s := e.GetEndpoint().GetAddress().GetSocketAddress()
			line := fmt.Sprintf("%s:%d %d", s.GetAddress(), s.GetPortValue(), e.GetLoadBalancingWeight().GetValue())
			switch h := e.GetHealthStatus().String(); h {
			case "UNHEALTHY":
				line += " unhealthy"
			case "DRAINING":
				line += " draining"
			}
			out = append(out, line)
		}
	}
	slices.Sort(out)
	return out
}
