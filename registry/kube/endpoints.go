package kube

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// slice is what is read of an EndpointSlice. The value lives as long as the
// object, so that indexes may point to it; its content is replaced.
type slice struct {
	key types.NamespacedName
	// service is the Service that the slice belongs to.
	service   types.NamespacedName
	ports     []slicePort
	endpoints []sliceEndpoint
}

type slicePort struct {
	name   string
	number uint16
}

type sliceEndpoint struct {
	addrs []netip.Addr
	// pod is the pod behind the addresses; its Name is "" if none is named.
	pod    types.NamespacedName
	node   string
	health mesh.Health
}

func (t *Translator) setSlice(o *discoveryv1.EndpointSlice) {
	k := types.NamespacedName{Namespace: o.Namespace, Name: o.Name}
	next, f := readSlice(o)
	t.problems.report(KindEndpointSlice, o.Namespace, o.Name, f)
	if next.service.Name == "" {
		t.deleteSlice(k)
		return
	}
	s := t.slices[k]
	if s == nil {
		s = &slice{key: k, service: next.service}
		t.slices[k] = s
		t.linkSlice(s)
	} else if s.service != next.service {
		t.unlinkSlice(s)
		s.service = next.service
		t.linkSlice(s)
	}
	t.reindexSlice(s, next.endpoints)
	s.ports, s.endpoints = next.ports, next.endpoints
	t.touch(s.service)
}

func (t *Translator) deleteSlice(k types.NamespacedName) {
	s := t.slices[k]
	if s == nil {
		return
	}
	t.reindexSlice(s, nil)
	t.unlinkSlice(s)
	delete(t.slices, k)
}

// linkSlice adds a slice to its service; unlinkSlice takes it away.
func (t *Translator) linkSlice(s *slice) {
	list := append(t.index.slicesOf[s.service], s)
	slices.SortFunc(list, func(a, b *slice) int { return compareNames(a.key, b.key) })
	t.index.slicesOf[s.service] = list
}

func (t *Translator) unlinkSlice(s *slice) {
	removeRef(t.index.slicesOf, s.service, s)
	t.touch(s.service)
}

// reindexSlice makes the pods and addresses of the new endpoints lead to the
// slice, and those that only the old ones had no longer.
func (t *Translator) reindexSlice(s *slice, next []sliceEndpoint) {
	pods, addrs := map[types.NamespacedName]struct{}{}, map[netip.Addr]struct{}{}
	for _, e := range next {
		if e.pod.Name != "" {
			pods[e.pod] = struct{}{}
			addRef(t.index.slicesByPod, e.pod, s)
			continue
		}
		for _, a := range e.addrs {
			addrs[a] = struct{}{}
			addRef(t.index.slicesByAddr, a, s)
		}
	}
	for _, e := range s.endpoints {
		if e.pod.Name != "" {
			if _, keep := pods[e.pod]; !keep {
				removeRef(t.index.slicesByPod, e.pod, s)
			}
			continue
		}
		for _, a := range e.addrs {
			if _, keep := addrs[a]; !keep {
				removeRef(t.index.slicesByAddr, a, s)
			}
		}
	}
}

// readSlice reads an EndpointSlice; faulty parts are left out.
func readSlice(o *discoveryv1.EndpointSlice) (slice, faults) {
	var f faults
	s := slice{service: types.NamespacedName{Namespace: o.Namespace, Name: o.Labels[discoveryv1.LabelServiceName]}}
	if o.AddressType == discoveryv1.AddressTypeFQDN {
		f.add("addressType", "FQDN is not served; use a ServiceEntry with resolution DNS")
		return slice{}, f
	}
	for i, p := range o.Ports {
		if p.Port == nil {
			continue // means all ports: nothing to dial
		}
		n, ok := portNumber(*p.Port)
		var name string
		if p.Name != nil {
			name = *p.Name
		}
		if !ok || !clean(name) {
			f.add(fmt.Sprintf("ports[%d]", i), "has no valid name and number and is left out")
			continue
		}
		s.ports = append(s.ports, slicePort{name, n})
	}
	s.endpoints = make([]sliceEndpoint, 0, len(o.Endpoints))
	for i := range o.Endpoints {
		if e, ok := readEndpoint(o, i, &f); ok {
			s.endpoints = append(s.endpoints, e)
		}
	}
	return s, f
}

func readEndpoint(o *discoveryv1.EndpointSlice, i int, f *faults) (sliceEndpoint, bool) {
	in := &o.Endpoints[i]
	health, serving := healthOf(in.Conditions)
	if !serving {
		return sliceEndpoint{}, false
	}
	e := sliceEndpoint{health: health}
	if in.NodeName != nil && clean(*in.NodeName) {
		e.node = *in.NodeName
	}
	if r := in.TargetRef; r != nil && r.Kind == string(KindPod) && r.Name != "" {
		e.pod = types.NamespacedName{Namespace: cmp.Or(r.Namespace, o.Namespace), Name: r.Name}
	}
	e.addrs = make([]netip.Addr, 0, len(in.Addresses))
	for _, s := range in.Addresses {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
			f.add(fmt.Sprintf("endpoints[%d].addresses", i), fmt.Sprintf("%q is not an IP address and is left out", printable(s)))
			continue
		}
		e.addrs = append(e.addrs, a.Unmap())
	}
	return e, len(e.addrs) > 0
}

// healthOf reads the conditions of an endpoint; an unknown ready means ready. An
// endpoint that terminates and no longer serves never comes back: it counts as
// gone.
func healthOf(c discoveryv1.EndpointConditions) (h mesh.Health, serving bool) {
	switch {
	case c.Ready == nil || *c.Ready:
		return mesh.HealthReady, true
	case c.Terminating == nil || !*c.Terminating:
		return mesh.HealthNotReady, true
	case c.Serving != nil && *c.Serving:
		return mesh.HealthDraining, true
	}
	return mesh.HealthNotReady, false
}

// endpoints makes the endpoints of one service: a function of its slices, their
// pods, and those pods' nodes.
func (t *Translator) endpoints(k types.NamespacedName, svc *ksvc) []mesh.Endpoint {
	list := t.index.slicesOf[k]
	pending := 0
	var out []mesh.Endpoint
	switch {
	case svc.base.Resolution == mesh.ResolutionAlias:
	case len(list) > 0:
		b := sliceBuilder{t: t, publishNotReady: svc.base.PublishNotReady, out: make([]mesh.Endpoint, 0, capacity(list))}
		for _, s := range list {
			b.add(s)
		}
		out, pending = b.out, b.pending
	case t.cfg.DeriveEndpoints:
		out = t.derive(k, svc)
	}
	if pending > 0 {
		t.pending[k] = pending
	} else {
		delete(t.pending, k)
	}
	return settle(out)
}

func capacity(list []*slice) int {
	n := 0
	for _, s := range list {
		n += len(s.endpoints) * len(s.ports)
	}
	return n
}

// sliceBuilder makes endpoints of slices.
type sliceBuilder struct {
	t               *Translator
	publishNotReady bool
	out             []mesh.Endpoint
	pending         int
}

func (b *sliceBuilder) add(s *slice) {
	for i := range s.endpoints {
		e := &s.endpoints[i]
		health := e.health
		if b.publishNotReady && health == mesh.HealthNotReady {
			health = mesh.HealthReady
		}
		for _, addr := range e.addrs {
			w := b.t.workloadBehind(s, e, addr)
			if w == nil {
				b.pending++
				continue
			}
			for _, p := range s.ports {
				b.out = append(b.out, mesh.Endpoint{Addr: addr, Port: p.number, PortName: p.name, Health: health, Workload: w})
			}
		}
	}
}

// workloadBehind finds the workload of a slice's address, or nil if the slice
// names a pod that is not known yet. An address that names no pod is that of a
// pod in the slice's namespace if one has it, else it stands for itself.
func (t *Translator) workloadBehind(s *slice, e *sliceEndpoint, addr netip.Addr) *mesh.Workload {
	if e.pod.Name != "" {
		if p := t.pods[e.pod]; p != nil {
			return p.workload
		}
		if !t.podsUnknown {
			return nil
		}
	} else {
		for _, p := range t.index.podsByAddr[addr] {
			if p.key.Namespace == s.key.Namespace {
				return p.workload
			}
		}
	}
	return &mesh.Workload{Cluster: t.cfg.Cluster, Namespace: s.key.Namespace, Addresses: []netip.Addr{addr}, Node: e.node}
}

// settle sorts endpoints and keeps one of those that several slices repeat
// while the slice controller moves them: the healthiest.
func settle(list []mesh.Endpoint) []mesh.Endpoint {
	slices.SortFunc(list, func(a, b mesh.Endpoint) int {
		if c := cmp.Compare(a.PortName, b.PortName); c != 0 {
			return c
		}
		if c := a.Addr.Compare(b.Addr); c != 0 {
			return c
		}
		return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(rank(b.Health), rank(a.Health)),
			cmp.Compare(a.Workload.Name, b.Workload.Name))
	})
	list = slices.CompactFunc(list, func(a, b mesh.Endpoint) bool {
		return a.PortName == b.PortName && a.Addr == b.Addr && a.Port == b.Port
	})
	// Within one locality this is already the order of the mesh.
	if !slices.IsSortedFunc(list, mesh.Endpoint.Compare) {
		slices.SortFunc(list, mesh.Endpoint.Compare)
	}
	return slices.Clip(list)
}

// rank orders the states of an endpoint that is listed twice, best highest.
func rank(h mesh.Health) int {
	switch h {
	case mesh.HealthReady:
		return 3
	case mesh.HealthUnknown:
		return 2
	case mesh.HealthDraining:
		return 1
	}
	return 0
}

// derive makes the endpoints of a service without slices from the pods that it
// selects, as the slice controller of a cluster would.
func (t *Translator) derive(k types.NamespacedName, svc *ksvc) []mesh.Endpoint {
	if len(svc.base.Selector) == 0 {
		return nil
	}
	var out []mesh.Endpoint
	for _, p := range t.index.podsIn[k.Namespace] {
		if p.gone || !matches(svc.base.Selector, p.workload.Labels) {
			continue
		}
		health := p.health
		if svc.base.PublishNotReady {
			health = mesh.HealthReady
		}
		for _, addr := range inFamilies(p.workload.Addresses, svc) {
			for _, port := range svc.base.Ports {
				target := port.TargetPort
				if port.TargetName != "" {
					target = p.workload.ContainerPorts[port.TargetName]
				}
				if target != 0 {
					out = append(out, mesh.Endpoint{Addr: addr, Port: target, PortName: port.Name, Health: health, Workload: p.workload})
				}
			}
		}
	}
	return out
}

// inFamilies picks those of a pod's addresses that a service uses: of the IP
// families of its virtual IPs, else of its ipFamilies, else of the first address.
func inFamilies(addrs []netip.Addr, svc *ksvc) []netip.Addr {
	var v4, v6 bool
	for _, a := range svc.base.Addresses {
		v4, v6 = v4 || a.Is4(), v6 || a.Is6()
	}
	if !v4 && !v6 {
		for _, f := range svc.families {
			v4, v6 = v4 || f == corev1.IPv4Protocol, v6 || f == corev1.IPv6Protocol
		}
	}
	if !v4 && !v6 && len(addrs) > 0 {
		v4, v6 = addrs[0].Is4(), addrs[0].Is6()
	}
	var out []netip.Addr
	for _, a := range addrs {
		if v4 && a.Is4() || v6 && a.Is6() {
			out = append(out, a)
		}
	}
	return out
}
