package agent

import (
	"context"
	"fmt"
	"slices"
	"sync"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

// Types that an agent asks for, in its own name or in Envoy's.
const (
	CDS    = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	EDS    = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	LDS    = "type.googleapis.com/envoy.config.listener.v3.Listener"
	RDS    = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	SDS    = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
	NDS    = "type.googleapis.com/istio.networking.nds.v1.NameTable"
	PCDS   = "type.googleapis.com/istio.mesh.v1alpha1.ProxyConfig"
	Health = "type.googleapis.com/istio.v1.HealthInformation"
)

// Request is what a stream sends, in terms of both protocols: Names are all that
// are wanted in the state-of-the-world protocol, and those to add in delta.
type Request struct {
	Type    string
	Names   []string
	Version string // state of the world only
	Nonce   string
	// Initial are the versions that a reconnecting Envoy has; delta only.
	Initial map[string]string
	// Reject is why the response with Nonce is refused, "" if it is not.
	Reject string
}

// Response is what a stream received.
type Response struct {
	Type, Version, Nonce string
	// Names are those that delta gives; nil in the other protocol.
	Names     []string
	Resources []*anypb.Any
	Removed   []string
}

// Stream is an ADS stream that the agent opened for its Envoy.
type Stream struct {
	send  func(*corev3.Node, Request) error
	close func() error
	end   context.CancelFunc

	mu        sync.Mutex
	node      *corev3.Node // until the first request
	responses []Response
	taken     map[string]int // by type
	err       error          // why the stream ended
	changed   chan struct{}  // closed and replaced at every change
	done      chan struct{}
}

// Open opens a stream. The node goes with its first request.
func (a *Agent) Open(ctx context.Context, node *corev3.Node, delta bool) (*Stream, error) {
	ctx, cancel := context.WithCancel(a.headers(ctx))
	s := &Stream{node: node, end: cancel, taken: map[string]int{}, changed: make(chan struct{}), done: make(chan struct{})}
	client := discoveryv3.NewAggregatedDiscoveryServiceClient(a.conn)
	var receive func() (Response, error)
	if delta {
		st, err := client.DeltaAggregatedResources(ctx)
		if err != nil {
			cancel()
			return nil, err
		}
		s.close, s.send = st.CloseSend, func(n *corev3.Node, r Request) error { return st.Send(r.delta(n)) }
		receive = func() (Response, error) {
			m, err := st.Recv()
			return fromDelta(m), err
		}
	} else {
		st, err := client.StreamAggregatedResources(ctx)
		if err != nil {
			cancel()
			return nil, err
		}
		s.close, s.send = st.CloseSend, func(n *corev3.Node, r Request) error { return st.Send(r.sotw(n)) }
		receive = func() (Response, error) {
			m, err := st.Recv()
			return Response{Type: m.GetTypeUrl(), Version: m.GetVersionInfo(), Nonce: m.GetNonce(), Resources: m.GetResources()}, err
		}
	}
	go s.receive(receive)
	return s, nil
}

func (r Request) status() *rpcstatus.Status {
	if r.Reject == "" {
		return nil
	}
	return &rpcstatus.Status{Code: 13, Message: r.Reject}
}

func (r Request) delta(n *corev3.Node) *discoveryv3.DeltaDiscoveryRequest {
	return &discoveryv3.DeltaDiscoveryRequest{Node: n, TypeUrl: r.Type, ResourceNamesSubscribe: r.Names,
		InitialResourceVersions: r.Initial, ResponseNonce: r.Nonce, ErrorDetail: r.status()}
}

func (r Request) sotw(n *corev3.Node) *discoveryv3.DiscoveryRequest {
	return &discoveryv3.DiscoveryRequest{Node: n, TypeUrl: r.Type, ResourceNames: r.Names, VersionInfo: r.Version,
		ResponseNonce: r.Nonce, ErrorDetail: r.status()}
}

func fromDelta(m *discoveryv3.DeltaDiscoveryResponse) Response {
	r := Response{Type: m.GetTypeUrl(), Version: m.GetSystemVersionInfo(), Nonce: m.GetNonce(), Removed: m.GetRemovedResources()}
	for _, x := range m.GetResources() {
		r.Names, r.Resources = append(r.Names, x.GetName()), append(r.Resources, x.GetResource())
	}
	return r
}

func (s *Stream) receive(next func() (Response, error)) {
	defer close(s.done)
	for {
		r, err := next()
		s.mu.Lock()
		if err != nil {
			s.err = err
		} else {
			s.responses = append(s.responses, r)
		}
		close(s.changed)
		s.changed = make(chan struct{})
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// Ask sends a request.
func (s *Stream) Ask(r Request) error {
	node := s.node
	s.node = nil
	if err := s.send(node, r); err != nil {
		return fmt.Errorf("send request for %s: %w", r.Type, err)
	}
	return nil
}

// Ack accepts a response; names are what is wanted of the type, which only the
// state-of-the-world protocol repeats.
func (s *Stream) Ack(r Response, names ...string) error {
	req := Request{Type: r.Type, Nonce: r.Nonce, Version: r.Version}
	if r.Names == nil && len(r.Resources) > 0 { // not delta
		req.Names = names
	}
	return s.Ask(req)
}

// Nack rejects a response.
func (s *Stream) Nack(r Response, why string, names ...string) error {
	req := Request{Type: r.Type, Nonce: r.Nonce, Reject: why}
	if r.Names == nil && len(r.Resources) > 0 {
		req.Names = names
	}
	return s.Ask(req)
}

// Next waits for the next response of a type that was not taken yet. It fails
// when the stream ends, with its status.
func (s *Stream) Next(ctx context.Context, typeURL string) (Response, error) {
	for {
		s.mu.Lock()
		n := 0
		for _, r := range s.responses {
			if r.Type != typeURL {
				continue
			}
			if n++; n > s.taken[typeURL] {
				s.taken[typeURL]++
				s.mu.Unlock()
				return r, nil
			}
		}
		err, changed := s.err, s.changed
		s.mu.Unlock()
		if err != nil {
			return Response{}, err
		}
		select {
		case <-ctx.Done():
			return Response{}, fmt.Errorf("wait for a response of type %s: %w", typeURL, ctx.Err())
		case <-changed:
		}
	}
}

// Received returns all responses of a type so far.
func (s *Stream) Received(typeURL string) []Response {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(s.responses), func(r Response) bool { return r.Type != typeURL })
}

// Ended waits for the end of the stream and returns its status.
func (s *Stream) Ended(ctx context.Context) error {
	select {
	case <-s.done:
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.err
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of the stream: %w", ctx.Err())
	}
}

// Close ends the stream from this side.
func (s *Stream) Close() {
	_ = s.close() // it is over either way
	s.end()
	<-s.done
}
