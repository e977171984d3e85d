package main

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Types in the order in which a proxy asks for them.
const (
	typeUpstreams   = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	typeAssignments = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	typeListeners   = "type.googleapis.com/envoy.config.listener.v3.Listener"
	typeRoutes      = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
)

// demoProxy is a proxy without traffic: it asks for everything that the sidecar
// of a pod would, takes it, and remembers the assignments.
type demoProxy struct {
	workload *mesh.Workload
	changed  func()

	mu          sync.Mutex
	assignments map[string]*endpointv3.ClusterLoadAssignment
	missing     map[string]bool // asked for and not answered yet
	asked       bool            // the first upstreams have arrived
}

func newDemoProxy(w *mesh.Workload, changed func()) *demoProxy {
	return &demoProxy{workload: w, changed: changed, assignments: map[string]*endpointv3.ClusterLoadAssignment{}, missing: map[string]bool{}}
}

// id is the proxy's name within its cluster, POD.NAMESPACE.
func (p *demoProxy) id() string { return p.workload.Name + "." + p.workload.Namespace }

// ref names the proxy in the whole mesh.
func (p *demoProxy) ref() string { return string(p.workload.Cluster) + "/" + p.id() }

// node describes the proxy as an Istio agent does, but for the network: that is
// left to the control plane, so that moving a cluster shows.
func (p *demoProxy) node() (*corev3.Node, error) {
	w := p.workload
	labels := map[string]any{}
	for k, v := range w.Labels {
		labels[k] = v
	}
	addresses := make([]string, len(w.Addresses))
	for i, a := range w.Addresses {
		addresses[i] = a.String()
	}
	if len(addresses) == 0 {
		return nil, fmt.Errorf("describe proxy %s in cluster %s: its pod has no address", p.id(), w.Cluster)
	}
	md, err := structpb.NewStruct(map[string]any{
		"CLUSTER_ID": string(w.Cluster), "NAMESPACE": w.Namespace, "NAME": w.Name, "WORKLOAD_NAME": w.WorkloadName,
		"SERVICE_ACCOUNT": w.Identity.ServiceAccount, "INSTANCE_IPS": strings.Join(addresses, ","), "NODE_NAME": w.Node,
		"ISTIO_VERSION": "1.31.0", "LABELS": labels, "INTERCEPTION_MODE": "REDIRECT",
	})
	if err != nil {
		return nil, fmt.Errorf("describe proxy %s in cluster %s: %w", p.id(), w.Cluster, err)
	}
	id := strings.Join([]string{"sidecar", addresses[0], p.id(), w.Namespace + ".svc.cluster.local"}, "~")
	return &corev3.Node{Id: id, Cluster: w.WorkloadName + "." + w.Namespace, Metadata: md}, nil
}

// run asks and takes until the stream ends.
func (p *demoProxy) run(ctx context.Context, conn grpc.ClientConnInterface) error {
	node, err := p.node()
	if err != nil {
		return err
	}
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx, grpc.WaitForReady(true))
	if err != nil {
		return fmt.Errorf("open stream of proxy %s in cluster %s: %w", p.id(), p.workload.Cluster, err)
	}
	// The node goes with the first request only.
	first := &discoveryv3.DiscoveryRequest{Node: node, TypeUrl: typeUpstreams}
	for _, r := range []*discoveryv3.DiscoveryRequest{first, {TypeUrl: typeListeners}} {
		if err := stream.Send(r); err != nil {
			return fmt.Errorf("ask as proxy %s in cluster %s: %w", p.id(), p.workload.Cluster, err)
		}
	}
	names, nonces, versions := map[string][]string{}, map[string]string{}, map[string]string{}
	for {
		r, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("listen as proxy %s in cluster %s: %w", p.id(), p.workload.Cluster, err)
		}
		t := r.GetTypeUrl()
		nonces[t], versions[t] = r.GetNonce(), r.GetVersionInfo()
		ask := []string{t} // the next request of a type is its ACK
		if next, list := p.take(t, r.GetResources()); next != "" && !slices.Equal(names[next], list) {
			names[next] = list
			ask = append(ask, next)
		}
		for _, t := range ask {
			if err := stream.Send(&discoveryv3.DiscoveryRequest{TypeUrl: t, ResourceNames: names[t], ResponseNonce: nonces[t], VersionInfo: versions[t]}); err != nil {
				return fmt.Errorf("answer as proxy %s in cluster %s: %w", p.id(), p.workload.Cluster, err)
			}
		}
	}
}

// take stores a response and returns what it makes the proxy ask for by name.
func (p *demoProxy) take(typeURL string, list []*anypb.Any) (next string, names []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch typeURL {
	case typeUpstreams:
		names = assignmentNames(list)
		p.follow(names)
		p.asked = true
		p.changed()
		return typeAssignments, names
	case typeListeners:
		return typeRoutes, routeNames(list)
	case typeAssignments:
		for _, a := range list {
			var x endpointv3.ClusterLoadAssignment
			if a.UnmarshalTo(&x) == nil {
				p.assignments[x.GetClusterName()] = &x
				delete(p.missing, x.GetClusterName())
			}
		}
		p.changed()
	}
	return "", nil
}

// follow forgets assignments of upstreams that are gone and waits for new ones;
// mu is held.
func (p *demoProxy) follow(names []string) {
	maps.DeleteFunc(p.assignments, func(n string, _ *endpointv3.ClusterLoadAssignment) bool { return !slices.Contains(names, n) })
	clear(p.missing)
	for _, n := range names {
		if p.assignments[n] == nil {
			p.missing[n] = true
		}
	}
}

// complete reports whether everything that was asked for has been answered.
func (p *demoProxy) complete() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked && len(p.missing) == 0
}

// dialled is one address with its weight, summed over localities.
type dialled struct {
	addr   netip.AddrPort
	weight uint64
}

// dials lists what the proxy dials for an upstream in the order of addresses;
// ok is false if it has no such upstream.
func (p *demoProxy) dials(upstream string) (list []dialled, ok bool) {
	p.mu.Lock()
	a := p.assignments[upstream]
	p.mu.Unlock()
	sum := map[netip.AddrPort]uint64{}
	for _, group := range a.GetEndpoints() {
		for _, e := range group.GetLbEndpoints() {
			s := e.GetEndpoint().GetAddress().GetSocketAddress()
			addr, err := netip.ParseAddr(s.GetAddress())
			if err != nil {
				continue
			}
			sum[netip.AddrPortFrom(addr, uint16(s.GetPortValue()))] += uint64(max(e.GetLoadBalancingWeight().GetValue(), 1))
		}
	}
	for _, addr := range slices.SortedFunc(maps.Keys(sum), netip.AddrPort.Compare) {
		list = append(list, dialled{addr, sum[addr]})
	}
	return list, a != nil
}

func assignmentNames(list []*anypb.Any) []string {
	var out []string
	for _, a := range list {
		var c clusterv3.Cluster
		if a.UnmarshalTo(&c) != nil || c.GetType() != clusterv3.Cluster_EDS {
			continue
		}
		name := c.GetName()
		if s := c.GetEdsClusterConfig().GetServiceName(); s != "" {
			name = s
		}
		out = append(out, name)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func routeNames(list []*anypb.Any) []string {
	var out []string
	for _, a := range list {
		var l listenerv3.Listener
		if a.UnmarshalTo(&l) != nil {
			continue
		}
		for _, chain := range append(l.GetFilterChains(), l.GetDefaultFilterChain()) {
			for _, f := range chain.GetFilters() {
				var h hcmv3.HttpConnectionManager
				if f.GetTypedConfig() != nil && f.GetTypedConfig().UnmarshalTo(&h) == nil && h.GetRds() != nil {
					out = append(out, h.GetRds().GetRouteConfigName())
				}
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
