package load

import (
	"context"
	"fmt"
	"net"
	"sync"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Floor is the least that a control plane on grpc-go can cost: it recorded what
// one sidecar of each network is told and sends exactly those bytes to every
// stream. It builds, checks and authenticates nothing.
type Floor struct {
	topology Topology
	bodies   map[string]map[string][]byte // network -> type -> encoded response without nonce

	mu      sync.Mutex
	streams map[grpc.ServerStream]*floorStream
}

type floorStream struct {
	network string
	out     chan []byte
}

// Record asks a running server what sidecars of the mesh hear.
func Record(ctx context.Context, t Topology, addr string) (*Floor, error) {
	fl := &Floor{topology: t, bodies: map[string]map[string][]byte{}, streams: map[grpc.ServerStream]*floorStream{}}
	for i := range 2 {
		f := NewFleet(t, addr, 1, 0)
		f.marks, f.watch = make([]int, i+1), make([]bool, i+1)
		p := &proxy{fleet: f, index: i}
		got, err := p.record(ctx)
		if err != nil {
			return nil, fmt.Errorf("record from %s: %w", addr, err)
		}
		_, e := t.proxyOf(i)
		fl.bodies[t.network(e)] = got
	}
	return fl, nil
}

// record runs a proxy until it is ready and keeps every response by type.
func (p *proxy) record(ctx context.Context) (map[string][]byte, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	got := map[string][]byte{}
	p.tap = func(r response, body []byte) {
		got[r.typeURL] = append(got[r.typeURL], resourcesOnly(body)...)
		if p.haveLDS && p.rds.complete() && r.typeURL == typeRDS {
			cancel()
		}
	}
	err := p.run(ctx)
	if len(got[typeRDS]) == 0 {
		return nil, err
	}
	for t := range got {
		got[t] = protowire.AppendString(protowire.AppendTag(got[t], responseTypeURL, protowire.BytesType), t)
	}
	return got, nil
}

// resourcesOnly keeps the resources of an encoded response.
func resourcesOnly(body []byte) []byte {
	var out []byte
	_ = fields(body, func(n protowire.Number, v []byte) {
		if n == responseResources {
			out = protowire.AppendBytes(protowire.AppendTag(out, n, protowire.BytesType), v)
		}
	})
	return out
}

// Serve answers ADS streams on a listener until the context ends.
func (fl *Floor) Serve(ctx context.Context, l net.Listener) error {
	srv := grpc.NewServer(grpc.ForceServerCodecV2(codec{}), grpc.InitialWindowSize(1<<20), grpc.InitialConnWindowSize(1<<20), grpc.WriteBufferSize(64<<10))
	srv.RegisterService(&grpc.ServiceDesc{ServiceName: "envoy.service.discovery.v3.AggregatedDiscoveryService", HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{{StreamName: "DeltaAggregatedResources", ServerStreams: true, ClientStreams: true, Handler: fl.handle}}}, fl)
	stop := context.AfterFunc(ctx, srv.Stop)
	defer stop()
	return srv.Serve(l)
}

func (fl *Floor) handle(_ any, s grpc.ServerStream) error {
	st := &floorStream{out: make(chan []byte, 64)}
	errs := make(chan error, 1)
	go func() { errs <- fl.receive(s, st) }()
	nonce := 0
	for {
		select {
		case err := <-errs:
			fl.forget(s)
			return err
		case body := <-st.out:
			nonce++
			n := protowire.AppendString(protowire.AppendTag(nil, responseNonce, protowire.BytesType), fmt.Sprint(nonce))
			if err := s.SendMsg(&frame{body: body, tail: n}); err != nil {
				fl.forget(s)
				return err
			}
		}
	}
}

func (fl *Floor) receive(s grpc.ServerStream, st *floorStream) error {
	for {
		var r discoveryv3.DeltaDiscoveryRequest
		if err := s.RecvMsg(&r); err != nil {
			return err
		}
		if r.GetNode() != nil {
			st.network = networkOf(r.GetNode())
			fl.mu.Lock()
			fl.streams[s] = st
			fl.mu.Unlock()
		}
		if r.GetResponseNonce() == "" {
			st.out <- fl.bodies[st.network][r.GetTypeUrl()]
		}
	}
}

func (fl *Floor) forget(s grpc.ServerStream) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	delete(fl.streams, s)
}

func networkOf(n *corev3.Node) string {
	return n.GetMetadata().GetFields()["NETWORK"].GetStringValue()
}

// Move sends change number n to every stream that watches the marked endpoint.
func (fl *Floor) Move(n int) error {
	body, err := fl.moved(n)
	if err != nil {
		return err
	}
	fl.mu.Lock()
	defer fl.mu.Unlock()
	for _, st := range fl.streams {
		if st.network == fl.topology.network(0) {
			st.out <- body
		}
	}
	return nil
}

// moved is the recorded assignment of the first service with another address.
func (fl *Floor) moved(n int) ([]byte, error) {
	name := "outbound|80||" + fl.topology.host(0)
	var found []byte
	_ = fields(fl.bodies[fl.topology.network(0)][typeEDS], func(f protowire.Number, v []byte) {
		if r := parseResource(v); f == responseResources && string(r.name) == name {
			found = r.body
		}
	})
	var a endpointv3.ClusterLoadAssignment
	if err := proto.Unmarshal(found, &a); err != nil || len(a.GetEndpoints()) == 0 {
		return nil, fmt.Errorf("move marked endpoint: no recorded assignment %s", name)
	}
	a.Endpoints[0].LbEndpoints[0].GetEndpoint().Address.GetSocketAddress().Address = Mark(n).String()
	packed, err := anypb.New(&a)
	if err != nil {
		return nil, fmt.Errorf("move marked endpoint: %w", err)
	}
	return proto.Marshal(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: typeEDS,
		Resources: []*discoveryv3.Resource{{Name: name, Version: fmt.Sprint(n), Resource: packed}}})
}
