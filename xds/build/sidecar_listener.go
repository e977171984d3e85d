package build

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// boundListeners lists the names of the listeners that the view's Sidecar binds
// itself: those of egress listeners with a port and an address of their own that
// import anything.
func boundListeners(in Inputs, v View) []string {
	scope := sidecarOf(in, v)
	if scope == nil {
		return nil
	}
	var out []string
	for i := range scope.egress {
		e := &scope.egress[i]
		if at, ok := e.place(v); ok && e.binds(in, v) {
			out = append(out, listenerName(at.addr.String(), at.port))
		}
	}
	return out
}

// place is where an egress listener is bound; false if it is where its services are.
func (e *egress) place(v View) (place, bool) {
	if !e.fixed() {
		return place{}, false
	}
	addr, err := netip.ParseAddr(cmp.Or(e.bind, loopback(v)))
	return place{addr, e.port}, err == nil
}

func (e *egress) isAt(v View, at place) bool {
	p, ok := e.place(v)
	return ok && p == at
}

// dialled reports whether clients dial the listener itself.
func (e *egress) dialled(v View) bool { return e.direct || v.Interception == mesh.InterceptNone }

// bindable reports whether the proxy may listen on the port.
func (e *egress) bindable(in Inputs, v View) bool {
	return !reserved(in, e.port) && (!e.dialled(v) || v.Tuning.binds(e.port))
}

// binds reports whether the proxy listens where the listener says: it may, and
// there is something to serve.
func (e *egress) binds(in Inputs, v View) bool {
	return e.bindable(in, v) && len(e.services(in, v)) > 0
}

// boundEgress finds the egress listener that is bound to an address; nil if none
// is. One that serves nothing leaves its address to others.
func boundEgress(in Inputs, v View, at place) *egress {
	scope := sidecarOf(in, v)
	if scope == nil {
		return nil
	}
	for i := range scope.egress {
		if e := &scope.egress[i]; e.isAt(v, at) && e.binds(in, v) {
			return e
		}
	}
	return nil
}

// services lists the services whose port the listener imports, oldest first.
func (e *egress) services(in Inputs, v View) []*mesh.Service {
	var out []*mesh.Service
	for _, s := range in.Catalog.OnPort(e.port) {
		if _, ok := serves(in, v, s, e.port); ok && e.admits(in, v, s, e.port) {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, older)
	return out
}

// boundRoutes lists the ports of the egress listeners with an address of their own
// that ask for routes, whether or not a service speaks HTTP there.
func boundRoutes(in Inputs, v View) []uint16 {
	scope := sidecarOf(in, v)
	if scope == nil {
		return nil
	}
	var out []uint16
	for i := range scope.egress {
		if e := &scope.egress[i]; e.fixed() && e.protocol.IsHTTP() {
			out = append(out, e.port)
		}
	}
	return out
}

// boundListener makes the listener of an egress listener with an address of its
// own. The protocol that the Sidecar names decides: with HTTP requests are told
// apart by host, else all connections go to the oldest service.
func boundListener(in Inputs, v View, e *egress, at place) (*listenerv3.Listener, error) {
	f, err := newFilters(in, v, DirectionOutbound, at.port)
	if err != nil {
		return nil, err
	}
	addr := at.addr.String()
	var chains []*listenerv3.FilterChain
	if e.protocol.IsHTTP() {
		var filters []*listenerv3.Filter
		filters, err = f.http(outboundStat(addr, at.port), byRDS(strconv.Itoa(int(at.port))), e.protocol)
		chains = []*listenerv3.FilterChain{{Filters: filters, TransportSocketConnectTimeout: duration(connectTimeout)}}
	} else {
		found, _ := findServed(in, v, e.services(in, v)[0].Key.Hostname, at.port)
		chains, err = f.streamChains(found, nil, nil, chainSet{})
	}
	if err != nil {
		return nil, err
	}
	l := outboundListener(in, addr, at.port)
	if e.dialled(v) {
		l.BindToPort = nil
	}
	l.FilterChains = chains
	if named(chains) {
		l.ListenerFilters = []*listenerv3.ListenerFilter{tlsInspector(nil)}
	}
	return l, nil
}

// sidecarAffected tells what a change does to a view through its Sidecar: a
// changed Sidecar concerns everything; a changed VirtualService may have let in
// or shut out the services that it sends requests to, which then count as
// changed themselves.
func sidecarAffected(in Inputs, v View, c *registry.Change) (widened *registry.Change, all bool) {
	if v.Sidecar == (ObjectName{}) || len(c.Objects) == 0 {
		return c, false
	}
	var hosts []mesh.Hostname
	for k, o := range c.Objects {
		switch k.Kind {
		case mesh.KindSidecar:
			if (ObjectName{k.Namespace, k.Name}) == v.Sidecar {
				return c, true
			}
		case mesh.KindVirtualService:
			hosts = append(hosts, destinationsChanged(in, o)...)
		}
	}
	if len(hosts) == 0 {
		return c, false
	}
	wider := *c
	wider.Services = make(map[mesh.ServiceKey]registry.ServiceChange, len(c.Services)+len(hosts))
	for k, s := range c.Services {
		wider.Services[k] = s
	}
	for _, h := range hosts {
		for _, s := range in.Catalog.Host(h) {
			x, ok := wider.Services[s.Key]
			if !ok {
				set := in.Endpoints.Endpoints(s.Key)
				x = registry.ServiceChange{Before: s, After: s, EndpointsBefore: set, EndpointsAfter: set}
			}
			x.Aspects |= registry.AspectDefinition
			wider.Services[s.Key] = x
		}
	}
	return &wider, false
}

// destinationsChanged lists the hosts that a changed VirtualService, or those
// that delegate to it, send or sent requests to.
func destinationsChanged(in Inputs, o registry.ObjectChange) []mesh.Hostname {
	hosts := map[mesh.Hostname]struct{}{}
	for _, vs := range changedRules(in, o) {
		maps.Copy(hosts, vs.destinations())
	}
	for _, x := range []*mesh.Object{o.Before, o.After} { // of a delegate, what it was is in no rule any more
		if spec, ok := specOf[*networking.VirtualService](x); ok {
			eachDestination(spec, func(d *networking.Destination) { hosts[fullHost(d.GetHost(), x.Key.Namespace)] = struct{}{} })
		}
	}
	return slices.Collect(maps.Keys(hosts))
}
