package conformance

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/testenv/simulate"
	"github.com/isthmus-mesh/isthmus/testenv/validate"
	"github.com/isthmus-mesh/isthmus/xds/build"
)

// routers are the proxies of Gateways, and the sidecars of pods, as they are at a revision of the Store.
type routers struct {
	w        *world
	mu       sync.Mutex
	revision uint64
	known    map[string]*simulate.Proxy
}

// of returns what the router of a Gateway, NAMESPACE/NAME, is given now.
// Endpoints are always those of the moment.
func (r *routers) of(gateway string) (*simulate.Proxy, error) {
	namespace, name, _ := strings.Cut(gateway, "/")
	return r.given(&mesh.Proxy{ID: name + "." + namespace, Kind: mesh.ProxyRouter, Dialect: mesh.DialectEnvoy, Cluster: primary, Namespace: namespace,
		Labels:    map[string]string{"gateway.networking.k8s.io/gateway-name": name},
		Addresses: []netip.Addr{netip.MustParseAddr("10.255.0.1")}, DNSDomain: namespace + ".svc." + build.DefaultDomain}, nil)
}

// sidecar returns what the sidecar of a pod is given now.
func (r *routers) sidecar(pod *corev1.Pod) (*simulate.Proxy, error) {
	p := &mesh.Proxy{ID: pod.Name + "." + pod.Namespace, Kind: mesh.ProxySidecar, Dialect: mesh.DialectIstio, Cluster: primary, Namespace: pod.Namespace,
		Labels: pod.Labels, Addresses: []netip.Addr{netip.MustParseAddr(pod.Status.PodIP)}, DNSDomain: pod.Namespace + ".svc." + build.DefaultDomain}
	return r.given(p, r.w.store.WorkloadOf(primary, p.Addresses, pod.Namespace, pod.Name))
}

func (r *routers) given(p *mesh.Proxy, w *mesh.Workload) (*simulate.Proxy, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	in := build.Inputs{Catalog: r.w.store.Catalog(), Endpoints: r.w.store}
	if in.Catalog.Revision != r.revision {
		r.revision, r.known = in.Catalog.Revision, map[string]*simulate.Proxy{}
	}
	if have := r.known[p.ID]; have != nil {
		return have, nil
	}
	out, err := buildAll(in, build.DeriveView(in, p, w))
	if err != nil {
		return nil, fmt.Errorf("build for %s: %w", p.ID, err)
	}
	r.known[p.ID] = out
	return out, nil
}

// buildAll builds everything that a proxy asks for, and checks that it would take it.
func buildAll(in build.Inputs, v build.View) (*simulate.Proxy, error) {
	var all []proto.Message
	var options validate.Options
	add := func(g build.Generator, names []string) ([]proto.Message, error) {
		var out []proto.Message
		for _, n := range names {
			m, err := g.Build(in, v, n)
			if err != nil {
				return nil, err
			}
			if m == nil {
				continue
			}
			if err := options.Message(m); err != nil {
				return nil, err
			}
			out = append(out, m)
		}
		all = append(all, out...)
		return out, nil
	}
	upstreams, err := add(build.Upstreams{}, build.Upstreams{}.List(in, v))
	if err != nil {
		return nil, err
	}
	var assigned, routes []string
	for _, m := range upstreams {
		if u := m.(*clusterv3.Cluster); u.GetType() == clusterv3.Cluster_EDS {
			assigned = append(assigned, u.GetName())
		}
	}
	if _, err := add(build.Assignments{}, assigned); err != nil {
		return nil, err
	}
	listeners, err := add(build.Listeners{}, build.Listeners{}.List(in, v))
	if err != nil {
		return nil, err
	}
	for _, m := range listeners {
		routes = append(routes, validate.RouteNames(m.(*listenerv3.Listener))...)
	}
	slices.Sort(routes)
	if _, err := add(build.Routes{}, slices.Compact(routes)); err != nil {
		return nil, err
	}
	return simulate.NewProxy(all...)
}
