package load

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

const (
	typeCDS = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	typeEDS = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	typeLDS = "type.googleapis.com/envoy.config.listener.v3.Listener"
	typeRDS = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"

	deltaMethod = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
)

// Fleet is a number of simulated sidecars, each on a connection of its own.
type Fleet struct {
	topology Topology
	addr     string
	window   int32
	names    nameCache
	watch    []bool // proxies that see the marked endpoint itself, not a gateway
	watchers int

	messages, bytes, last atomic.Int64 // last: when a message came, Unix nanoseconds

	mu      sync.Mutex
	ready   int
	marks   []int // newest change per proxy, -1 before the first
	changes map[int]*change
	arrived chan struct{}
}

// change is when one change of the marked endpoint was made, and when it was
// heard. A proxy that hears a later one has heard it too.
type change struct {
	made, first, last time.Time
	heard             int
}

// Stats counts what a fleet received.
type Stats struct{ Messages, Bytes int64 }

// NewFleet prepares n proxies of a mesh for a server at addr. window is the
// initial HTTP/2 window of their connections in bytes; 0 is grpc's own, 64 KiB
// that grows as needed.
func NewFleet(t Topology, addr string, n int, window int32) *Fleet {
	f := &Fleet{topology: t, addr: addr, window: window, marks: make([]int, n), watch: make([]bool, n), changes: map[int]*change{}, arrived: make(chan struct{}, 1)}
	for i := range n {
		_, e := t.proxyOf(i)
		f.marks[i], f.watch[i] = -1, e%2 == 0
		if f.watch[i] {
			f.watchers++
		}
	}
	return f
}

// Run connects all proxies and keeps them connected until the context ends.
func (f *Fleet) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for i := range f.marks {
		wg.Go(func() { f.keep(ctx, i) })
	}
	wg.Wait()
}

// keep runs one proxy and reconnects it with Envoy's backoff.
func (f *Fleet) keep(ctx context.Context, i int) {
	backoff := 500 * time.Millisecond
	for ctx.Err() == nil {
		p := &proxy{fleet: f, index: i}
		_ = p.run(ctx)
		if p.isReady {
			backoff = 500 * time.Millisecond
			f.note(func() bool { f.ready--; return true })
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(rand.Int64N(int64(backoff)))):
		}
		backoff = min(2*backoff, 30*time.Second)
	}
}

// note changes what the fleet knows; record reports whether a waiter should look.
func (f *Fleet) note(record func() bool) {
	f.mu.Lock()
	tell := record()
	f.mu.Unlock()
	if !tell {
		return
	}
	select {
	case f.arrived <- struct{}{}:
	default:
	}
}

// Ready is the number of proxies that have everything they asked for.
func (f *Fleet) Ready() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ready
}

// Stats returns what was received so far.
func (f *Fleet) Stats() Stats {
	return Stats{Messages: f.messages.Load(), Bytes: f.bytes.Load()}
}

// begin notes that change n is being made now.
func (f *Fleet) begin(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.changes[n] = &change{made: time.Now()}
}

// heard notes that a proxy's newest change is n now.
func (f *Fleet) heard(proxy, n int) {
	now := time.Now()
	f.note(func() bool {
		before := f.marks[proxy]
		if n <= before {
			return false
		}
		f.marks[proxy] = n
		done := false
		for k := before + 1; k <= n; k++ {
			c := f.changes[k]
			if c == nil || !f.watch[proxy] {
				continue
			}
			if c.heard++; c.heard == 1 {
				c.first = now
			}
			if c.heard == f.watchers {
				c.last, done = now, true
			}
		}
		return done
	})
}

// delays is how long changes from up to and without to took to the first and to
// the last proxy; all of them must have been heard by all.
func (f *Fleet) delays(from, to int) (first, last []time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for n := from; n < to; n++ {
		if c := f.changes[n]; c != nil && !c.last.IsZero() {
			first, last = append(first, c.first.Sub(c.made)), append(last, c.last.Sub(c.made))
		}
	}
	return first, last
}

// wait returns when ok holds of the fleet; ok is called under its lock.
func (f *Fleet) wait(ctx context.Context, ok func() bool) error {
	for {
		f.mu.Lock()
		done := ok()
		f.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-f.arrived:
		}
	}
}

// quiet returns when nothing was received for d.
func (f *Fleet) quiet(ctx context.Context, d time.Duration) error {
	for {
		left := d - time.Since(time.Unix(0, f.last.Load()))
		if left <= 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(left):
		}
	}
}

// proxy is one stream.
type proxy struct {
	fleet    *Fleet
	index    int
	eds, rds answers
	lds      bool // asked for
	haveLDS  bool
	isReady  bool
	stream   grpc.ClientStream
	tap      func(response, []byte) // sees every response, after it was taken
}

// answers is what a proxy asked for by name and what was answered.
type answers struct{ asked, got nameSet }

func (a *answers) complete() bool { return a.got.covers(&a.asked) }

func (p *proxy) node() *corev3.Node {
	t := p.fleet.topology
	s, e := t.proxyOf(p.index)
	ns, ip := t.namespace(s), t.podIP(s, e).String()
	md, err := structpb.NewStruct(map[string]any{
		"CLUSTER_ID": Cluster, "NETWORK": t.network(e), "NAMESPACE": ns, "INSTANCE_IPS": ip, "ISTIO_VERSION": "1.31.0",
		"NODE_NAME": fmt.Sprintf("node-%d", e%3), "SERVICE_ACCOUNT": "default", "MESH_ID": "cluster.local",
		"LABELS": map[string]any{"app": t.service(s), "version": "v1", "topology.istio.io/network": t.network(e), "service.istio.io/canonical-name": t.service(s)},
	})
	if err != nil {
		panic(err) // strings only
	}
	return &corev3.Node{Id: fmt.Sprintf("sidecar~%s~%s.%s~%s.svc.cluster.local", ip, t.pod(s, e), ns, ns), Metadata: md,
		Locality: &corev3.Locality{Region: "region1", Zone: "zone0"}}
}

func (p *proxy) run(ctx context.Context) error {
	options := []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(codec{}), grpc.MaxCallRecvMsgSize(64<<20))}
	if w := p.fleet.window; w > 0 {
		options = append(options, grpc.WithInitialWindowSize(w), grpc.WithInitialConnWindowSize(w))
	}
	conn, err := grpc.NewClient("passthrough:///"+p.fleet.addr, options...)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if p.stream, err = conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, deltaMethod); err != nil {
		return err
	}
	if err := p.stream.SendMsg(&discoveryv3.DeltaDiscoveryRequest{Node: p.node(), TypeUrl: typeCDS}); err != nil {
		return err
	}
	for {
		var f frame
		if err := p.stream.RecvMsg(&f); err != nil {
			return err
		}
		err := p.take(f.body)
		f.buf.Free()
		if err != nil {
			return err
		}
	}
}

// take ACKs one response and asks for what follows from it, as Envoy does.
func (p *proxy) take(body []byte) error {
	r, err := parseResponse(body)
	if err != nil {
		return err
	}
	p.fleet.messages.Add(1)
	p.fleet.bytes.Add(int64(len(body)))
	p.fleet.last.Store(time.Now().UnixNano())
	if err := p.stream.SendMsg(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.typeURL, ResponseNonce: r.nonce}); err != nil {
		return err
	}
	if err := p.follow(r); err != nil {
		return err
	}
	if p.tap != nil {
		p.tap(r, body)
	}
	if !p.isReady && p.haveLDS && p.eds.complete() && p.rds.complete() {
		p.isReady = true
		p.fleet.note(func() bool { p.fleet.ready++; return true })
	}
	return nil
}

// follow notes what was answered and asks for what follows from it.
func (p *proxy) follow(r response) error {
	names := &p.fleet.names
	switch r.typeURL {
	case typeCDS:
		if err := p.subscribe(typeEDS, &p.eds.asked, names.follow(r)); err != nil {
			return err
		}
	case typeEDS:
		for _, x := range r.resources {
			if n := markIn(x.body); n >= 0 {
				p.fleet.heard(p.index, n)
			}
			p.eds.got.add(names.id(x.name))
		}
		for _, name := range r.removed {
			p.eds.got.add(names.id(name))
		}
	case typeLDS:
		p.haveLDS = true
		return p.subscribe(typeRDS, &p.rds.asked, names.follow(r))
	case typeRDS:
		for _, x := range r.resources {
			p.rds.got.add(names.id(x.name))
		}
		for _, name := range r.removed {
			p.rds.got.add(names.id(name))
		}
	}
	if p.lds || !p.eds.complete() {
		return nil
	}
	p.lds = true
	return p.stream.SendMsg(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeLDS})
}

func (p *proxy) subscribe(typeURL string, asked *nameSet, all []uint32) error {
	var names []string
	for _, id := range all {
		if asked.add(id) {
			names = append(names, p.fleet.names.name(id))
		}
	}
	if len(names) == 0 {
		return nil
	}
	return p.stream.SendMsg(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL, ResourceNamesSubscribe: names})
}

// namesIn lists the EDS names of an upstream or the route names of a listener.
func namesIn(typeURL string, body []byte) []string {
	if typeURL == typeCDS {
		var c clusterv3.Cluster
		if proto.Unmarshal(body, &c) != nil || c.GetType() != clusterv3.Cluster_EDS {
			return nil
		}
		if n := c.GetEdsClusterConfig().GetServiceName(); n != "" {
			return []string{n}
		}
		return []string{c.GetName()}
	}
	var l listenerv3.Listener
	if proto.Unmarshal(body, &l) != nil {
		return nil
	}
	var out []string
	for _, chain := range append(l.GetFilterChains(), l.GetDefaultFilterChain()) {
		for _, f := range chain.GetFilters() {
			var h hcmv3.HttpConnectionManager
			if f.GetTypedConfig() != nil && f.GetTypedConfig().UnmarshalTo(&h) == nil && h.GetRds() != nil {
				out = append(out, h.GetRds().GetRouteConfigName())
			}
		}
	}
	return out
}
