package load

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
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
	names    nameCache

	mu      sync.Mutex
	ready   int
	marks   []int // newest mark per proxy, -1 before the first
	watch   []bool
	arrived chan struct{}
	stats   Stats
}

// Stats counts what a fleet received.
type Stats struct {
	Messages, Bytes int64
	Reconnects      int
}

// NewFleet prepares n proxies of a mesh for a server at addr.
func NewFleet(t Topology, addr string, n int) *Fleet {
	f := &Fleet{topology: t, addr: addr, marks: make([]int, n), watch: make([]bool, n), arrived: make(chan struct{}, 1)}
	for i := range n {
		_, e := t.proxyOf(i)
		f.marks[i], f.watch[i] = -1, e%2 == 0
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
		p := &proxy{fleet: f, index: i, pending: map[string]map[string]bool{}, asked: map[string]bool{}}
		_ = p.run(ctx)
		if p.isReady {
			backoff = 500 * time.Millisecond
			f.count(func() { f.ready-- })
		}
		f.count(func() { f.stats.Reconnects++ })
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(rand.Int64N(int64(backoff)))):
		}
		backoff = min(2*backoff, 30*time.Second)
	}
}

func (f *Fleet) count(change func()) {
	f.mu.Lock()
	change()
	f.mu.Unlock()
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
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.stats
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

// proxy is one stream.
type proxy struct {
	fleet   *Fleet
	index   int
	pending map[string]map[string]bool // names asked for and not answered, by type
	asked   map[string]bool            // names ever asked for on this stream, as TYPE+NAME
	routes  bool
	isReady bool
	stream  grpc.ClientStream
	tap     func(response, []byte) // sees every response, after it was taken
}

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
	conn, err := grpc.NewClient(p.fleet.addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(codec{}), grpc.MaxCallRecvMsgSize(64<<20)),
		grpc.WithInitialWindowSize(1<<20), grpc.WithInitialConnWindowSize(1<<20))
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
		if err := p.take(f.body); err != nil {
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
	p.fleet.count(func() { p.fleet.stats.Messages++; p.fleet.stats.Bytes += int64(len(body)) })
	if err := p.stream.SendMsg(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.typeURL, ResponseNonce: r.nonce}); err != nil {
		return err
	}
	for _, x := range r.resources {
		delete(p.pending[r.typeURL], x.name)
		if r.typeURL == typeEDS && p.index < len(p.fleet.marks) {
			p.noteMark(x)
		}
	}
	if err := p.follow(r); err != nil {
		return err
	}
	if p.tap != nil {
		p.tap(r, body)
	}
	if !p.isReady && p.routes && len(p.pending[typeEDS])+len(p.pending[typeRDS]) == 0 {
		p.isReady = true
		p.fleet.count(func() { p.fleet.ready++ })
	}
	return nil
}

func (p *proxy) noteMark(x resource) {
	if n := markIn(x.body); n >= 0 {
		p.fleet.count(func() { p.fleet.marks[p.index] = n })
	}
}

func (p *proxy) follow(r response) error {
	switch r.typeURL {
	case typeCDS:
		return p.subscribe(typeEDS, p.fleet.names.of(r))
	case typeEDS:
		if p.pending[typeLDS] == nil && len(p.pending[typeEDS]) == 0 {
			p.pending[typeLDS] = map[string]bool{}
			return p.stream.SendMsg(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeLDS})
		}
	case typeLDS:
		p.routes = true
		return p.subscribe(typeRDS, p.fleet.names.of(r))
	}
	return nil
}

func (p *proxy) subscribe(typeURL string, all []string) error {
	if p.pending[typeURL] == nil {
		p.pending[typeURL] = map[string]bool{}
	}
	var names []string
	for _, n := range all {
		if key := typeURL + n; !p.asked[key] {
			p.asked[key], p.pending[typeURL][n] = true, true
			names = append(names, n)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return p.stream.SendMsg(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL, ResourceNamesSubscribe: names})
}

// nameCache remembers which names follow from a resource, by its content: the
// same bytes reach many proxies, and a load client must cost little.
type nameCache struct{ byHash sync.Map } // uint64 -> []string

func (c *nameCache) of(r response) []string {
	seen := map[string]bool{}
	var out []string
	for _, x := range r.resources {
		h := xxhash.Sum64(x.body)
		names, ok := c.byHash.Load(h)
		if !ok {
			names = namesIn(r.typeURL, x.body)
			c.byHash.Store(h, names)
		}
		for _, n := range names.([]string) {
			if !seen[n] {
				seen[n] = true
				out = append(out, n)
			}
		}
	}
	return out
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
