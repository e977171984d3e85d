package recorder

import (
	"maps"
	"slices"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// sotwStream asks by state of the world.
type sotwStream struct {
	p       *Proxy
	stream  discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient
	node    *corev3.Node
	version map[string]string // last accepted, by type
}

func (s *sotwStream) run() error {
	for _, f := range s.p.begin() {
		if err := s.ask(f.typeURL, f.names, "", nil); err != nil {
			return err
		}
	}
	for {
		r, err := s.stream.Recv()
		if err != nil {
			return err
		}
		bad := s.p.check(r.GetTypeUrl(), r.GetResources())
		if bad == nil {
			s.version[r.GetTypeUrl()] = r.GetVersionInfo()
		}
		next := s.p.takeAll(r, bad)
		if err := s.ask(r.GetTypeUrl(), s.p.names(r.GetTypeUrl()), r.GetNonce(), bad); err != nil {
			return err
		}
		for _, f := range next {
			if err := s.ask(f.typeURL, f.names, s.nonce(f.typeURL), nil); err != nil {
				return err
			}
		}
	}
}

func (s *sotwStream) nonce(typeURL string) string {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	for _, push := range slices.Backward(s.p.pushes) {
		if push.TypeURL == typeURL {
			return push.Nonce
		}
	}
	return ""
}

func (s *sotwStream) ask(typeURL string, names []string, nonce string, bad error) error {
	req := &discoveryv3.DiscoveryRequest{Node: s.node, TypeUrl: typeURL, ResourceNames: names,
		VersionInfo: s.version[typeURL], ResponseNonce: nonce, ErrorDetail: nack(bad)}
	s.node = nil
	return s.stream.Send(req)
}

// deltaStream asks by incremental xDS.
type deltaStream struct {
	p      *Proxy
	stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	node   *corev3.Node
	begun  map[string]bool
}

func (s *deltaStream) run() error {
	s.begun = map[string]bool{}
	for _, f := range s.p.begin() {
		if err := s.subscribe(f.typeURL, f.names, nil); err != nil {
			return err
		}
	}
	for {
		r, err := s.stream.Recv()
		if err != nil {
			return err
		}
		bodies := make([]*anypb.Any, len(r.GetResources()))
		for i, x := range r.GetResources() {
			bodies[i] = x.GetResource()
		}
		bad := s.p.check(r.GetTypeUrl(), bodies)
		next := s.p.takeDelta(r, bad)
		ack := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce(), ErrorDetail: nack(bad)}
		if err := s.stream.Send(ack); err != nil {
			return err
		}
		for _, f := range next {
			if err := s.subscribe(f.typeURL, f.added, f.gone); err != nil {
				return err
			}
		}
	}
}

func (s *deltaStream) subscribe(typeURL string, names, gone []string) error {
	req := &discoveryv3.DeltaDiscoveryRequest{Node: s.node, TypeUrl: typeURL, ResourceNamesSubscribe: names, ResourceNamesUnsubscribe: gone}
	if !s.begun[typeURL] {
		req.InitialResourceVersions = s.p.opt.Known[typeURL]
	}
	s.node, s.begun[typeURL] = nil, true
	return s.stream.Send(req)
}

// takeAll records a state-of-the-world response and returns what to ask for
// next. Both are one step, so that [Proxy.Ready] never sees the one without the
// other.
func (p *Proxy) takeAll(r *discoveryv3.DiscoveryResponse, bad error) []request {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := r.GetTypeUrl()
	got := map[string]*anypb.Any{}
	for _, a := range r.GetResources() {
		got[nameOf(a)] = a
	}
	p.record(Push{TypeURL: t, Names: slices.Sorted(maps.Keys(got)), Nonce: r.GetNonce()}, bad)
	if bad != nil {
		return p.follow(t)
	}
	if t == Upstreams || t == Listeners || p.state[t] == nil {
		p.state[t] = map[string]*anypb.Any{}
	}
	maps.Copy(p.state[t], got)
	return p.follow(t)
}

// takeDelta is takeAll for an incremental response.
func (p *Proxy) takeDelta(r *discoveryv3.DeltaDiscoveryResponse, bad error) []request {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := r.GetTypeUrl()
	push := Push{TypeURL: t, Removed: slices.Sorted(slices.Values(r.GetRemovedResources())), Nonce: r.GetNonce()}
	for _, x := range r.GetResources() {
		push.Names = append(push.Names, x.GetName())
	}
	slices.Sort(push.Names)
	p.record(push, bad)
	if bad != nil {
		return p.follow(t)
	}
	if p.state[t] == nil {
		p.state[t], p.versions[t] = map[string]*anypb.Any{}, map[string]string{}
	}
	for _, x := range r.GetResources() {
		p.state[t][x.GetName()] = x.GetResource()
		p.versions[t][x.GetName()] = x.GetVersion()
	}
	for _, n := range r.GetRemovedResources() {
		delete(p.state[t], n)
		delete(p.versions[t], n)
	}
	return p.follow(t)
}

// record notes a push and which names it answers; mu is held.
func (p *Proxy) record(push Push, bad error) {
	push.At = time.Now()
	if bad != nil {
		push.Nacked = bad.Error()
	}
	p.pushes = append(p.pushes, push)
	if p.answered[push.TypeURL] == nil {
		p.answered[push.TypeURL] = map[string]bool{}
	}
	for _, n := range slices.Concat(push.Names, push.Removed) {
		p.answered[push.TypeURL][n] = true
	}
	p.signal()
}

func (p *Proxy) names(typeURL string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked[typeURL]
}

// request is a subscription that follows from what was received.
type request struct {
	typeURL            string
	names, added, gone []string
}

// begin says what to ask for first: upstreams, and all that an earlier stream
// asked for.
func (p *Proxy) begin() []request {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := []request{{typeURL: Upstreams}}
	for _, t := range []string{Assignments, Listeners, Routes} {
		if names, asked := p.asked[t]; asked {
			out = append(out, request{typeURL: t, names: names})
		}
	}
	return out
}

// follow says what to ask for after a response of a type: assignments after
// upstreams, listeners after the first assignments, routes after listeners. mu
// is held.
func (p *Proxy) follow(typeURL string) []request {
	var out []request
	ask := func(t string, names []string) {
		slices.Sort(names)
		names = slices.Compact(names)
		old, begun := p.asked[t]
		if begun && slices.Equal(old, names) || !begun && len(names) == 0 {
			return
		}
		p.asked[t] = names
		out = append(out, request{t, names, without(names, old), without(old, names)})
	}
	switch typeURL {
	case Upstreams:
		ask(Assignments, assignmentsOf(p.state[Upstreams]))
	case Listeners:
		ask(Routes, routesOf(p.state[Listeners]))
	}
	if _, begun := p.asked[Listeners]; !begun && typeURL != Listeners && p.hasAll(Assignments) {
		p.asked[Listeners] = []string{}
		out = append(out, request{typeURL: Listeners})
	}
	for _, gone := range out {
		for _, n := range gone.gone {
			delete(p.state[gone.typeURL], n)
			delete(p.versions[gone.typeURL], n)
		}
	}
	return out
}

// hasAll reports whether every name asked for was answered; mu is held.
func (p *Proxy) hasAll(typeURL string) bool {
	for _, n := range p.asked[typeURL] {
		if !p.answered[typeURL][n] {
			return false
		}
	}
	return true
}

func without(a, b []string) []string {
	var out []string
	for _, x := range a {
		if _, ok := slices.BinarySearch(b, x); !ok {
			out = append(out, x)
		}
	}
	return out
}
