package xds

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/xds/build"
)

func TestMain(m *testing.M) {
	flag.Parse()
	goleak.VerifyTestMain(m)
}

// The generators of this package's tests: small, but with everything that the
// engine has to cope with. Upstreams depend on identities and, for one label, on
// the network; a "local" service projects to the node; headless services have a
// listener per endpoint; a label makes a service fail or panic.
func labGenerators() []build.Generator {
	return []build.Generator{labUpstreams{}, labAssignments{}, labListeners{}, labRoutes{}}
}

func upstreamName(s *mesh.Service, p mesh.Port) string {
	return "outbound|" + strconv.Itoa(int(p.Number)) + "||" + string(s.Key.Hostname)
}

func find(in build.Inputs, name string) (*mesh.Service, mesh.Port, bool) {
	parts := strings.Split(name, "|")
	if len(parts) != 4 || parts[0] != "outbound" {
		return nil, mesh.Port{}, false
	}
	n, _ := strconv.Atoi(parts[1])
	for _, s := range in.Catalog.Host(mesh.Hostname(parts[3])) {
		p, ok := s.Port(uint16(n))
		return s, p, ok
	}
	return nil, mesh.Port{}, false
}

func sees(v build.View, s *mesh.Service) bool { return s.VisibleTo(v.Namespace, nil) }

func namesOf(s *mesh.Service, names []string) []string {
	if s != nil {
		for _, p := range s.Ports {
			names = append(names, upstreamName(s, p))
		}
	}
	return names
}

func affectedUpstreams(c *registry.Change, aspects registry.Aspect) build.Affected {
	if c.Scope != 0 {
		return build.Affected{All: true}
	}
	var names []string
	for _, s := range c.Services {
		if s.Aspects.Has(aspects) {
			names = namesOf(s.After, namesOf(s.Before, names))
		}
	}
	return build.Affected{Names: names}
}

type labUpstreams struct{}

func (labUpstreams) TypeURL() string { return TypeCDS }

func (labUpstreams) List(in build.Inputs, v build.View) []string {
	names := []string{"BlackHoleCluster"}
	for s := range in.Catalog.Services() {
		if sees(v, s) {
			names = namesOf(s, names)
		}
	}
	if v.Inbound != (build.Inbound{}) {
		names = append(names, "inbound|8080||")
	}
	slices.Sort(names)
	return names
}

func (labUpstreams) ListView(v build.View) build.View {
	return build.View{Namespace: v.Namespace, Inbound: v.Inbound}
}

func (labUpstreams) Project(in build.Inputs, v build.View, name string) build.View {
	if name == "inbound|8080||" {
		return build.View{Inbound: v.Inbound}
	}
	s, _, ok := find(in, name)
	if !ok {
		return build.View{}
	}
	p := build.View{}
	if len(s.Lead.ExportTo) > 0 {
		p.Namespace = v.Namespace
	}
	if s.Lead.Labels["split"] != "" {
		p.Network = v.Network
	}
	return p
}

func (labUpstreams) Build(in build.Inputs, v build.View, name string) (proto.Message, error) {
	switch name {
	case "BlackHoleCluster":
		return &clusterv3.Cluster{Name: name, AltStatName: fmt.Sprint(len(in.Catalog.Settings.Networks.GetNetworks()))}, nil
	case "inbound|8080||":
		if v.Inbound == (build.Inbound{}) {
			return nil, nil
		}
		return &clusterv3.Cluster{Name: name, AltStatName: v.Inbound.Spec().CanonicalName}, nil
	}
	s, _, ok := find(in, name)
	if !ok || !sees(v, s) {
		return nil, nil
	}
	switch s.Lead.Labels["fault"] {
	case "error":
		return nil, fmt.Errorf("service %s: label fault: not acceptable", s.Key)
	case "panic":
		panic("generator bug")
	}
	alt := fmt.Sprint(s.Lead.Labels["v"], in.Endpoints.Endpoints(s.Key).Identities())
	if s.Lead.Labels["split"] != "" {
		alt += string(v.Network)
	}
	return &clusterv3.Cluster{Name: name, AltStatName: alt}, nil
}

func (labUpstreams) Affected(_ build.Inputs, _ build.View, c *registry.Change) build.Affected {
	return affectedUpstreams(c, registry.AspectDefinition|registry.AspectIdentities)
}

type labAssignments struct{}

func (labAssignments) TypeURL() string                        { return TypeEDS }
func (labAssignments) List(build.Inputs, build.View) []string { return nil }
func (labAssignments) ListView(build.View) build.View         { return build.View{} }
func (labAssignments) AffectedView(build.View) build.View     { return build.View{} }
func (labAssignments) Project(in build.Inputs, v build.View, name string) build.View {
	s, _, ok := find(in, name)
	if !ok {
		return build.View{}
	}
	p := build.View{Network: v.Network}
	if s.Lead.NodeLocal {
		p.Node = v.Node
	}
	return p
}

func (a labAssignments) Build(in build.Inputs, v build.View, name string) (proto.Message, error) {
	s, p, ok := find(in, name)
	if !ok {
		return nil, nil
	}
	out := &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{{}}}
	for _, e := range in.Endpoints.Endpoints(s.Key).Port(p.Name) {
		if e.Network != "" && e.Network != v.Network || s.Lead.NodeLocal && e.Workload.Node != v.Node {
			continue
		}
		out.Endpoints[0].LbEndpoints = append(out.Endpoints[0].LbEndpoints, &endpointv3.LbEndpoint{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{
			Endpoint: &endpointv3.Endpoint{Hostname: e.Addr.String()}}})
	}
	return out, nil
}

func (a labAssignments) Encode(in build.Inputs, v build.View, name string, dst []byte) ([]byte, bool, error) {
	m, err := a.Build(in, v, name)
	if m == nil || err != nil {
		return dst, false, err
	}
	dst, err = proto.MarshalOptions{Deterministic: true}.MarshalAppend(dst, m)
	return dst, true, err
}

func (labAssignments) Affected(_ build.Inputs, _ build.View, c *registry.Change) build.Affected {
	return affectedUpstreams(c, registry.AspectDefinition|registry.AspectEndpoints)
}

type labListeners struct{}

func (labListeners) TypeURL() string { return TypeLDS }

func (labListeners) List(in build.Inputs, v build.View) []string {
	names := []string{"virtualInbound"}
	for s := range in.Catalog.Services() {
		if sees(v, s) {
			names = append(names, labListenerNames(s, in.Endpoints.Endpoints(s.Key))...)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func labListenerNames(s *mesh.Service, set *registry.EndpointSet) []string {
	if s == nil {
		return nil
	}
	var names []string
	if !s.Lead.Headless() {
		return []string{"svc_" + string(s.Key.Hostname)}
	}
	for e := range set.All() {
		names = append(names, string(s.Key.Hostname)+"_"+e.Addr.String())
	}
	return names
}

func (labListeners) ListView(v build.View) build.View { return build.View{Namespace: v.Namespace} }
func (labListeners) Project(_ build.Inputs, v build.View, name string) build.View {
	if name == "virtualInbound" {
		return build.View{Inbound: v.Inbound}
	}
	return build.View{Namespace: v.Namespace}
}

func (labListeners) Build(in build.Inputs, v build.View, name string) (proto.Message, error) {
	if name == "virtualInbound" {
		return &listenerv3.Listener{Name: name, StatPrefix: v.Inbound.Spec().CanonicalName}, nil
	}
	for s := range in.Catalog.Services() {
		if sees(v, s) && slices.Contains(labListenerNames(s, in.Endpoints.Endpoints(s.Key)), name) {
			return &listenerv3.Listener{Name: name, StatPrefix: s.Lead.Labels["v"]}, nil
		}
	}
	return nil, nil
}

func (labListeners) Affected(_ build.Inputs, _ build.View, c *registry.Change) build.Affected {
	var out build.Affected
	for _, s := range c.Services {
		out.Names = append(out.Names, labListenerNames(s.Before, s.EndpointsBefore)...)
		out.Names = append(out.Names, labListenerNames(s.After, s.EndpointsAfter)...)
		if b, a := s.Before, s.After; b != nil && a != nil && b.Lead.Headless() != a.Lead.Headless() {
			out.All = true
		}
	}
	return out
}

type labRoutes struct{}

func (labRoutes) TypeURL() string                        { return TypeRDS }
func (labRoutes) List(build.Inputs, build.View) []string { return nil }
func (labRoutes) ListView(build.View) build.View         { return build.View{} }
func (labRoutes) Project(_ build.Inputs, v build.View, _ string) build.View {
	return build.View{Namespace: v.Namespace}
}

func (labRoutes) Build(in build.Inputs, v build.View, name string) (proto.Message, error) {
	n, err := strconv.Atoi(name)
	if err != nil {
		return nil, nil
	}
	out := &routev3.RouteConfiguration{Name: name}
	for _, s := range in.Catalog.OnPort(uint16(n)) {
		if sees(v, s) {
			out.VirtualHosts = append(out.VirtualHosts, &routev3.VirtualHost{Name: string(s.Key.Hostname)})
		}
	}
	if len(out.VirtualHosts) == 0 {
		return nil, nil
	}
	return out, nil
}

func (labRoutes) Affected(_ build.Inputs, _ build.View, c *registry.Change) build.Affected {
	var out build.Affected
	for _, s := range c.Services {
		for _, x := range []*mesh.Service{s.Before, s.After} {
			if x != nil && s.Aspects.Has(registry.AspectDefinition) {
				for _, p := range x.Ports {
					out.Names = append(out.Names, strconv.Itoa(int(p.Number)))
				}
			}
		}
	}
	return out
}

// labView derives a view; the workload's label "app" stands for what a proxy serves.
func labView(_ build.Inputs, p *mesh.Proxy, w *mesh.Workload) build.View {
	v := build.View{Kind: p.Kind, Dialect: p.Dialect, Cluster: p.Cluster, Network: p.Network, Namespace: p.Namespace, Node: p.NodeName}
	if w != nil {
		v.Inbound = build.MakeInbound(build.InboundSpec{CanonicalName: w.Labels["app"]})
		if w.NetworkLabel != "" {
			v.Network = w.NetworkLabel
		}
	}
	return v
}

// tb is a test, a benchmark or a rapid check.
type tb interface {
	require.TestingT
	Fatalf(format string, args ...any)
}

// world is a store with one sink per cluster, and a server.
type world struct {
	t       tb
	store   *registry.Store
	sinks   map[mesh.ClusterID]registry.Sink
	srv     *Server
	metrics *prometheus.Registry
	stop    func()
}

func newWorld(t tb, tune func(*Config)) *world {
	w := &world{t: t, store: registry.NewStore(registry.Config{Primary: "east"}), sinks: map[mesh.ClusterID]registry.Sink{}, metrics: prometheus.NewRegistry()}
	for _, c := range []mesh.ClusterID{"east", "west"} {
		w.sinks[c] = w.store.NewSink(c)
		w.sinks[c].Replace(registry.Update{Cluster: &registry.ClusterState{Network: mesh.NetworkID("net-" + c)}})
	}
	cfg := Config{Store: w.store, Generators: labGenerators(), DeriveView: labView, Metrics: w.metrics}
	if tune != nil {
		tune(&cfg)
	}
	var err error
	w.srv, err = New(cfg)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.srv.Run(ctx) }()
	for !w.srv.running.Load() {
		time.Sleep(time.Millisecond)
	}
	w.stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(t, <-done)
	})
	return w
}

func svcKey(name string) mesh.ServiceKey {
	return mesh.ServiceKey{Namespace: "shop", Hostname: mesh.Hostname(name + ".shop.svc.cluster.local")}
}

// svc is a service to put into a cluster.
type svc struct {
	ports     []uint16
	labels    map[string]string
	headless  bool
	nodeLocal bool
	exportTo  []string
	pods      []string // IP, or IP/account, or IP/account/node
}

func (w *world) put(c mesh.ClusterID, name string, s svc) {
	w.sinks[c].Apply(registry.Update{Services: []registry.ServiceState{serviceState(c, name, s)}})
}

func (w *world) drop(c mesh.ClusterID, name string) {
	w.sinks[c].Apply(registry.Update{Services: []registry.ServiceState{{Key: svcKey(name)}}})
}

func serviceState(c mesh.ClusterID, name string, s svc) registry.ServiceState {
	d := &mesh.Definition{Name: name, Labels: s.labels, NodeLocal: s.nodeLocal, ExportTo: s.exportTo}
	if s.headless {
		d.Resolution = mesh.ResolutionPassthrough
	}
	if len(s.ports) == 0 {
		s.ports = []uint16{80}
	}
	st := registry.ServiceState{Key: svcKey(name), Definition: d}
	for _, p := range s.ports {
		d.Ports = append(d.Ports, mesh.Port{Name: fmt.Sprint("p", p), Number: p, Protocol: mesh.ProtocolHTTP})
	}
	for _, pod := range s.pods {
		f := strings.Split(pod+"//", "/")
		wl := &mesh.Workload{Cluster: c, Namespace: "shop", Name: pod, Addresses: []netip.Addr{netip.MustParseAddr(f[0])}, Node: f[2],
			Identity: mesh.Identity{TrustDomain: "td", Namespace: "shop", ServiceAccount: f[1]}}
		for _, p := range s.ports {
			st.Endpoints = append(st.Endpoints, mesh.Endpoint{Addr: wl.Addresses[0], Port: 8080, PortName: fmt.Sprint("p", p), Workload: wl, Health: mesh.HealthReady})
		}
	}
	return st
}

// workload says what the registry knows of a proxy's pod.
func (w *world) workload(c mesh.ClusterID, ip, app string) {
	wl := &mesh.Workload{Cluster: c, Namespace: "shop", Name: "pod-" + ip, Addresses: []netip.Addr{netip.MustParseAddr(ip)}, Labels: map[string]string{"app": app}}
	w.sinks[c].Apply(registry.Update{Workloads: []registry.WorkloadState{{Key: "shop/pod-" + ip, Workload: wl}}})
}

func labNode(ip string, cluster, network, ns string, more map[string]any) *corev3.Node {
	md := map[string]any{"CLUSTER_ID": cluster, "NETWORK": network, "NAMESPACE": ns, "ISTIO_VERSION": "1.30.0"}
	for k, v := range more {
		md[k] = v
	}
	st, err := structpb.NewStruct(md)
	if err != nil {
		panic(err)
	}
	return &corev3.Node{Id: "sidecar~" + ip + "~pod-" + ip + "." + ns + "~" + ns + ".svc.cluster.local", Metadata: st}
}

// pipe is a transport in memory. Requests and responses cross it as bytes.
type pipe struct {
	ctx    context.Context
	cancel context.CancelFunc
	in     chan []byte

	mu    sync.Mutex
	out   [][]byte
	ready chan struct{}
	ended *status.Status
}

func newPipe() *pipe {
	p := &pipe{in: make(chan []byte, 64), ready: make(chan struct{}, 1)}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

func (p *pipe) Context() context.Context { return p.ctx }

func (p *pipe) Recv(r *request) error {
	select {
	case b, ok := <-p.in:
		if !ok {
			return io.EOF
		}
		return r.decode(b)
	case <-p.ctx.Done():
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.ended != nil {
			return p.ended.Err()
		}
		return p.ctx.Err()
	}
}

func (p *pipe) Send(r *response) error {
	data, err := codec{}.Marshal(r)
	if err != nil {
		return err
	}
	if p.ctx.Err() != nil {
		return p.ctx.Err()
	}
	p.mu.Lock()
	p.out = append(p.out, data.Materialize())
	p.mu.Unlock()
	select {
	case p.ready <- struct{}{}:
	default:
	}
	return nil
}

func (p *pipe) Abort(st *status.Status) {
	p.mu.Lock()
	if p.ended == nil {
		p.ended = st
	}
	p.mu.Unlock()
	p.cancel()
}

func (p *pipe) take() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.out) == 0 {
		return nil
	}
	b := p.out[0]
	p.out = p.out[1:]
	return b
}

// client behaves like a proxy, in either protocol. It keeps what it accepted,
// and checks on the way what no server may do.
type client struct {
	t     tb
	delta bool
	node  *corev3.Node
	p     *pipe
	done  chan error
	first bool

	types map[string]*clientType
	// received counts responses by type; log is every response in order.
	log []string
	// reject decides about a response: what it returns is the error of a NACK.
	reject func(typeURL string, resources map[string]string, removed []string) string
	hold   bool // do not answer
	held   []func()
}

type clientType struct {
	wild      bool
	names     map[string]bool
	have      map[string]string // accepted resources: name -> encoded
	versions  map[string]string
	version   string
	nonce     string
	waiting   bool // a response is not answered
	responses int
	// refused are the contents of responses that were rejected, by name; "" for a removal.
	refused map[string]map[string]bool
}

func (w *world) client(delta bool, node *corev3.Node) *client {
	c := &client{t: w.t, delta: delta, node: node, types: map[string]*clientType{}}
	c.connect(w)
	return c
}

func (c *client) connect(w *world) {
	c.p, c.done, c.first, c.held = newPipe(), make(chan error, 1), true, nil
	p, done := c.p, c.done
	go func() { done <- w.srv.serve(p, c.delta); p.cancel() }()
}

func (c *client) close() {
	c.p.cancel()
	<-c.done //nolint:errcheck // why it ended was asserted before
}

func (c *client) of(url string) *clientType {
	t := c.types[url]
	if t == nil {
		t = &clientType{names: map[string]bool{}, have: map[string]string{}, versions: map[string]string{}, refused: map[string]map[string]bool{}}
		c.types[url] = t
	}
	return t
}

func (c *client) sendSotW(r *discoveryv3.DiscoveryRequest) {
	if c.first {
		r.Node, c.first = c.node, false
	}
	c.raw(r)
}

func (c *client) sendDelta(r *discoveryv3.DeltaDiscoveryRequest) {
	if c.first {
		r.Node, c.first = c.node, false
	}
	c.raw(r)
}

func (c *client) raw(m proto.Message) {
	b, err := proto.Marshal(m)
	require.NoError(c.t, err)
	select {
	case c.p.in <- b:
	case <-c.p.ctx.Done():
	}
}

// subscribe changes what the client wants; wild asks for everything.
func (c *client) subscribe(url string, wild bool, add, remove []string) {
	t := c.of(url)
	first := t.nonce == "" && !t.waiting && len(t.names) == 0 && !t.wild
	t.wild = t.wild || wild
	for _, n := range add {
		t.names[n] = true
	}
	for _, n := range remove {
		delete(t.names, n)
		delete(t.have, n)
		delete(t.versions, n)
	}
	if c.delta {
		r := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: url, ResourceNamesSubscribe: add, ResourceNamesUnsubscribe: remove}
		if wild && !first {
			r.ResourceNamesSubscribe = append(slices.Clone(add), "*")
		}
		c.sendDelta(r)
		return
	}
	held := c.hold
	c.release() // a request with the last nonce answers it
	c.hold = held
	c.sendSotW(&discoveryv3.DiscoveryRequest{TypeUrl: url, ResourceNames: t.list(), VersionInfo: t.version, ResponseNonce: t.nonce})
}

func (t *clientType) list() []string {
	var out []string
	for n := range t.names {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// resume opens the subscriptions again after a reconnect, as Envoy does.
func (c *client) resume(w *world) {
	c.connect(w)
	for _, url := range []string{TypeCDS, TypeEDS, TypeLDS, TypeRDS} {
		t, ok := c.types[url]
		if !ok {
			continue
		}
		t.nonce, t.waiting = "", false
		if c.delta {
			initial := map[string]string{}
			for n, v := range t.versions {
				initial[n] = v
			}
			c.sendDelta(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: url, ResourceNamesSubscribe: t.list(), InitialResourceVersions: initial})
		} else {
			c.sendSotW(&discoveryv3.DiscoveryRequest{TypeUrl: url, ResourceNames: t.list(), VersionInfo: t.version})
		}
	}
}

// pump takes in every response that has arrived and reports whether there was any.
func (c *client) pump() bool {
	any := false
	for {
		b := c.p.take()
		if b == nil {
			return any
		}
		any = true
		if c.delta {
			c.takeDelta(b)
		} else {
			c.takeSotW(b)
		}
	}
}

func (c *client) answer(f func()) {
	if c.hold {
		c.held = append(c.held, f)
		return
	}
	f()
}

func (c *client) release() {
	c.hold = false
	held := c.held
	c.held = nil
	for _, f := range held {
		f()
	}
}

func (c *client) note(url, nonce string, names map[string]string, removed []string) *clientType {
	t := c.of(url)
	require.False(c.t, t.waiting, "two unanswered responses of %s", url)
	require.NotEmpty(c.t, nonce)
	require.NotEqual(c.t, t.nonce, nonce)
	t.nonce, t.waiting = nonce, true
	t.responses++
	var sorted []string
	for n := range names {
		sorted = append(sorted, n)
	}
	slices.Sort(sorted)
	line := shortName(url) + " " + strings.Join(sorted, ",")
	if len(removed) > 0 {
		line += " -" + strings.Join(removed, ",")
	}
	c.log = append(c.log, line)
	return t
}

func (c *client) takeDelta(b []byte) {
	var r discoveryv3.DeltaDiscoveryResponse
	require.NoError(c.t, proto.Unmarshal(b, &r))
	require.Equal(c.t, "isthmus", r.ControlPlane.GetIdentifier())
	got := map[string]string{}
	for _, x := range r.Resources {
		require.Equal(c.t, r.TypeUrl, x.Resource.TypeUrl)
		require.NotContains(c.t, got, x.Name)
		require.NotEmpty(c.t, x.Version)
		got[x.Name] = string(x.Resource.Value)
	}
	t := c.note(r.TypeUrl, r.Nonce, got, r.RemovedResources)
	problem := ""
	if c.reject != nil {
		problem = c.reject(r.TypeUrl, got, r.RemovedResources)
	}
	if problem == "" {
		for _, x := range r.Resources {
			if t.wild || t.names[x.Name] {
				t.have[x.Name], t.versions[x.Name] = got[x.Name], x.Version
				delete(t.refused, x.Name)
			}
		}
		for _, n := range r.RemovedResources {
			delete(t.have, n)
			delete(t.versions, n)
			delete(t.refused, n)
		}
	} else {
		t.refuse(got, r.RemovedResources)
	}
	c.answer(func() {
		t.waiting = false
		a := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce}
		if problem != "" {
			a.ErrorDetail = &rpcstatus.Status{Code: 3, Message: problem}
		}
		c.sendDelta(a)
	})
}

func (t *clientType) refuse(got map[string]string, removed []string) {
	note := func(n, content string) {
		if t.refused[n] == nil {
			t.refused[n] = map[string]bool{}
		}
		t.refused[n][content] = true
	}
	for n, b := range got {
		note(n, b)
	}
	for _, n := range removed {
		note(n, "")
	}
}

func (c *client) takeSotW(b []byte) {
	var r discoveryv3.DiscoveryResponse
	require.NoError(c.t, proto.Unmarshal(b, &r))
	require.Equal(c.t, "isthmus", r.ControlPlane.GetIdentifier())
	got := map[string]string{}
	for _, x := range r.Resources {
		n := nameOf(c.t, r.TypeUrl, x.Value)
		require.NotContains(c.t, got, n)
		got[n] = string(x.Value)
	}
	t := c.note(r.TypeUrl, r.Nonce, got, nil)
	problem := ""
	if c.reject != nil {
		problem = c.reject(r.TypeUrl, got, nil)
	}
	if problem == "" {
		t.version = r.VersionInfo
		if r.TypeUrl == TypeCDS || r.TypeUrl == TypeLDS {
			t.have = map[string]string{}
		}
		for n, v := range got {
			if t.wild || t.names[n] {
				t.have[n] = v
				delete(t.refused, n)
			}
		}
	} else {
		t.refuse(got, nil)
	}
	c.answer(func() {
		t.waiting = false
		a := &discoveryv3.DiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce, VersionInfo: t.version, ResourceNames: t.list()}
		if problem != "" {
			a.ErrorDetail = &rpcstatus.Status{Code: 3, Message: problem}
		}
		c.sendSotW(a)
	})
}

func nameOf(t tb, url string, b []byte) string {
	var m interface {
		proto.Message
		GetName() string
	}
	switch url {
	case TypeCDS:
		m = &clusterv3.Cluster{}
	case TypeLDS:
		m = &listenerv3.Listener{}
	case TypeRDS:
		m = &routev3.RouteConfiguration{}
	default:
		var a endpointv3.ClusterLoadAssignment
		require.NoError(t, proto.Unmarshal(b, &a))
		return a.ClusterName
	}
	require.NoError(t, proto.Unmarshal(b, m))
	return m.GetName()
}
