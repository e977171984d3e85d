// Package xds tells every proxy what it hears: it is the ADS server.
//
// It owns streams and their subscriptions, the views of connected proxies, the
// cache of encoded resources and the dispatch of changes. It does not know what
// is in a resource (package xds/build does), where the catalog comes from
// (package registry) or how a caller proves who it is (the Authenticate function).
//
// A change of the Store goes this way: the dispatcher collects changes in two
// lanes (endpoints at once, definitions debounced); the graph works one into
// entries, each built and encoded once for all proxies whose view projects to
// the same, and marks what really changed in the streams that are subscribed;
// workers send each marked stream its newest state, joined from shared bytes.
package xds

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/xds/build"
)

// The types of the core protocol.
const (
	TypeCDS = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	TypeEDS = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	TypeLDS = "type.googleapis.com/envoy.config.listener.v3.Listener"
	TypeRDS = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
)

// Store is what the server reads of a [registry.Store].
type Store interface {
	build.Endpoints
	Catalog() *registry.Catalog
	Workload(registry.WorkloadKey) *mesh.Workload
	WorkloadOf(id mesh.ClusterID, addrs []netip.Addr, namespace, name string) *mesh.Workload
	OnChange(func(registry.Change)) (cancel func())
}

// Config configures a [Server].
type Config struct {
	// Store is what there is to tell.
	Store Store
	// Generators make the resources, in push order: CDS, EDS, LDS, RDS, ECDS.
	Generators []build.Generator
	// DeriveView reduces a proxy to what its configuration depends on.
	DeriveView func(build.Inputs, *mesh.Proxy, *mesh.Workload) build.View
	// ViewConcerned tells whether a change may alter a proxy's view. It is asked
	// for all proxies if settings or objects changed, else for those with the address
	// of a changed workload or in the namespace of a changed service. nil means yes.
	ViewConcerned func(*mesh.Proxy, *registry.Change) bool
	// Authenticate runs on a stream's first request, with the context of the call.
	// It may complete what the proxy says of itself. An error ends the stream; one
	// without a gRPC status becomes Unauthenticated. nil accepts everybody.
	Authenticate func(context.Context, *mesh.Proxy) (Credential, error)
	// Ready reports whether the Store is complete; until then streams are refused
	// as Unavailable, so that no proxy is told of an empty mesh. nil means always.
	Ready func() bool
	// PerProxy serves further types, by type URL, with answers that depend on the
	// single proxy. A key that ends in "/" stands for all types with that prefix.
	PerProxy map[string]PerProxy
	// Completers add to resources of the generators, by type URL, what only single
	// proxies may have. It is for types that are asked for by name.
	Completers map[string]Completer
	// Reports takes what proxies report of themselves, by type URL: requests that
	// are never answered. It is called on the stream's goroutine and must return
	// at once.
	Reports map[string]func(*mesh.Proxy, Report)
	// Identifier is put into every response, so that a client can tell who answered.
	Identifier string
	// Build is what istioctl is told of this control plane.
	Build BuildInfo
	// DebugCaller says whose proxies istioctl is shown (see [TypeDebugSyncz]): those
	// of a namespace, or all. The context is that of [PerProxy.Respond]. Without it,
	// or with an error, the stream ends as Unauthenticated unless the error says else.
	DebugCaller func(ctx context.Context) (namespace string, all bool, err error)
	// Debug serves the paths below /debug/ to istioctl, see [TypeDebug]. Callers are
	// checked before it is asked. nil knows none.
	Debug    http.Handler
	Settings Settings

	// Problem takes note of a part of an object that resources are made without,
	// see [build.Inputs]; nil ignores it.
	Problem func(object *mesh.Object, field, message string)
	Log     *zap.Logger           // nil: none
	Metrics prometheus.Registerer // nil: not registered
	Clock   func() time.Time      // nil: time.Now
}

// Server serves ADS. Create it with [New], register it with a gRPC server made
// with [ServerOptions], and keep [Server.Run] running.
type Server struct {
	cfg      Config
	log      *zap.Logger
	metrics  *metrics
	kinds    kinds
	graph    *graph
	sets     *nameSets
	queue    *queue
	pending  *pending
	snapshot *snapshot
	catchUp  catchUp

	admission chan struct{}
	stopped   chan struct{} // closed when Run ends
	running   atomic.Bool
	serial    atomic.Uint64
	// debugIdentifier stands for cfg.Identifier in answers to istioctl.
	debugIdentifier string

	mu      sync.Mutex // guards streams and closed
	streams map[*stream]struct{}
	closed  bool
}

// kinds are the types in push order.
type kinds struct {
	list     []*kind
	byURL    map[string]*kind
	cds, eds *kind // nil if not served
}

// refersToClusters reports whether resources of the kind may name upstreams.
func (k *kinds) refersToClusters(x *kind) bool { return x.typeURL == TypeLDS || x.typeURL == TypeRDS }

// New returns a server that serves nothing until Run is called.
func New(c Config) (*Server, error) {
	if c.Store == nil || c.DeriveView == nil || len(c.Generators) == 0 {
		return nil, errors.New("create ADS server: Store, DeriveView and Generators are required")
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Identifier == "" {
		c.Identifier = "isthmus"
	}
	c.Settings = c.Settings.withDefaults()
	srv := &Server{cfg: c, log: c.Log, sets: newNameSets(), queue: newQueue(c.Settings.Workers), pending: newPending(c.Store), snapshot: &snapshot{report: c.Problem},
		admission: make(chan struct{}, c.Settings.Admission), stopped: make(chan struct{}), streams: map[*stream]struct{}{}}
	b := &builder{inputs: srv.snapshot.inputs, report: srv.reportBuild}
	srv.graph = newGraph(b, srv.snapshot)
	srv.metrics = newMetrics(c.Metrics, srv.graph)
	b.metrics = srv.metrics
	if err := srv.addKinds(); err != nil {
		return nil, fmt.Errorf("create ADS server: %w", err)
	}
	if err := srv.serveDebugTypes(); err != nil {
		return nil, fmt.Errorf("create ADS server: %w", err)
	}
	srv.graph.derive, srv.graph.concerned, srv.graph.workload = c.DeriveView, c.ViewConcerned, c.Store.WorkloadOf
	return srv, nil
}

func (srv *Server) addKinds() error {
	srv.kinds.byURL = map[string]*kind{}
	for i, gen := range srv.cfg.Generators {
		url := gen.TypeURL()
		if srv.kinds.byURL[url] != nil {
			return fmt.Errorf("two generators for %s", url)
		}
		k := &kind{index: i, typeURL: url, short: shortName(url), gen: gen, legacy: url == TypeCDS || url == TypeLDS}
		k.encoder, _ = gen.(Encoder)
		if w, ok := gen.(Wildcarder); ok {
			k.legacy = w.Wildcard()
		}
		for d := range k.heads {
			k.heads[d] = responseHead(url, srv.cfg.Identifier, d == 1)
		}
		k.builds, k.pushes = srv.metrics.builds.WithLabelValues(k.short), srv.metrics.pushes.WithLabelValues(k.short)
		k.rejects, k.rejectsX = srv.metrics.rejects.WithLabelValues(k.short), srv.metrics.rejectsOf[k.short]
		k.expired, k.sizes = srv.metrics.expiredNonce.WithLabelValues(k.short), srv.metrics.configSize.WithLabelValues(k.short)
		srv.kinds.list = append(srv.kinds.list, k)
		srv.kinds.byURL[url] = k
	}
	for url, c := range srv.cfg.Completers {
		k := srv.kinds.byURL[url]
		if k == nil || k.legacy {
			return fmt.Errorf("a completer for %s: it is for types that are served, and asked for by name", url)
		}
		k.completer = c
	}
	srv.kinds.cds, srv.kinds.eds = srv.kinds.byURL[TypeCDS], srv.kinds.byURL[TypeEDS]
	srv.graph.setKinds(srv.kinds.list)
	return nil
}

// shortName is how istiod's metrics call a type.
func shortName(url string) string {
	switch url {
	case TypeCDS:
		return "cds"
	case TypeEDS:
		return "eds"
	case TypeLDS:
		return "lds"
	case TypeRDS:
		return "rds"
	case "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret":
		return "sds"
	case "type.googleapis.com/istio.networking.nds.v1.NameTable":
		return "nds"
	case "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig":
		return "ecds"
	}
	return url[strings.LastIndexByte(url, '/')+1:]
}

// Run dispatches changes and sends until the context ends; then it ends all
// streams as Unavailable, so that their proxies connect elsewhere.
func (srv *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer srv.start()()
	var wg sync.WaitGroup
	for range srv.cfg.Settings.Workers {
		wg.Go(func() { srv.work(ctx) })
	}
	wg.Go(func() { srv.sweep(ctx) })
	wg.Go(func() { srv.dispatch(ctx) })
	srv.running.Store(true)
	<-ctx.Done()
	srv.shutdown()
	wg.Wait()
	return nil
}

func (srv *Server) shutdown() {
	srv.running.Store(false)
	close(srv.stopped)
	srv.mu.Lock()
	srv.closed = true
	list := make([]*stream, 0, len(srv.streams))
	for s := range srv.streams {
		list = append(list, s)
	}
	srv.mu.Unlock()
	for _, s := range list {
		s.abort(codes.Unavailable, "the control plane is shutting down")
	}
}

// admit waits for its turn to work out a subscription.
func (srv *Server) admit(ctx context.Context) (release func(), err error) {
	select {
	case srv.admission <- struct{}{}:
		return srv.release, nil
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
}

func (srv *Server) release() { <-srv.admission }

func (srv *Server) refuse(reason string, code codes.Code, format string, args ...any) error {
	srv.metrics.refusedStreams.WithLabelValues(reason).Inc()
	return status.Errorf(code, format, args...)
}

// serve runs one stream.
func (srv *Server) serve(tr transport, delta bool) (err error) {
	defer func() {
		if p := recover(); p != nil {
			srv.panicked("serve stream", p)
			err = status.Error(codes.Internal, "internal error")
		}
	}()
	if !srv.running.Load() || srv.cfg.Ready != nil && !srv.cfg.Ready() {
		return srv.refuse("not_ready", codes.Unavailable, "the control plane has not read the mesh yet")
	}
	newest := func() uint64 { return srv.cfg.Store.Catalog().Revision }
	if !srv.catchUp.wait(tr.Context(), srv.stopped, srv.snapshot.revision, newest, srv.pending.hurry) {
		return srv.refuse("shutdown", codes.Unavailable, "the stream or the control plane is ending")
	}
	s := &stream{srv: srv, tr: tr, delta: delta, connected: srv.cfg.Clock(), types: make([]typeState, len(srv.kinds.list))}
	for i, k := range srv.kinds.list {
		s.types[i].sub.delta, s.types[i].sub.legacy = delta, k.legacy
	}
	r := &request{delta: delta, sets: srv.sets, known: s.known}
	if err := srv.greet(s, r); err != nil {
		return err
	}
	if err := srv.admitStream(s); err != nil {
		return err
	}
	defer srv.forget(s)
	defer s.others.close()
	defer s.endWithCredential()()
	return s.run(r)
}

// greet reads the first request and finds out who is calling.
func (srv *Server) greet(s *stream, r *request) error {
	timer := time.AfterFunc(srv.cfg.Settings.FirstRequest, func() {
		s.abort(codes.DeadlineExceeded, "no request in "+srv.cfg.Settings.FirstRequest.String())
	})
	err := s.tr.Recv(r)
	timer.Stop()
	if err != nil {
		return err
	}
	s.proxy, err = ParseNode(r.node, cmp.Or(srv.cfg.Settings.DefaultCluster, srv.cfg.Store.Catalog().Primary))
	if err != nil {
		return srv.refuse("bad_node", codes.InvalidArgument, "%v", err)
	}
	r.node = nil
	if srv.cfg.Authenticate != nil {
		if s.credential, err = srv.cfg.Authenticate(s.tr.Context(), s.proxy); err != nil {
			st, ok := status.FromError(err)
			if !ok {
				st = status.New(codes.Unauthenticated, err.Error())
			}
			return srv.refuse("unauthenticated", st.Code(), "%s", st.Message())
		}
	}
	if p, ok := peer.FromContext(s.tr.Context()); ok {
		s.peer = p.Addr.String()
	}
	s.id = fmt.Sprintf("%s-%d", s.proxy.ID, srv.serial.Add(1))
	return nil
}

// admitStream makes a stream known to everybody.
func (srv *Server) admitStream(s *stream) error {
	srv.mu.Lock()
	full := srv.cfg.Settings.MaxStreams > 0 && len(srv.streams) >= srv.cfg.Settings.MaxStreams
	closed := srv.closed
	if !full && !closed {
		srv.streams[s] = struct{}{}
	}
	srv.mu.Unlock()
	switch {
	case closed:
		return srv.refuse("shutdown", codes.Unavailable, "the control plane is shutting down")
	case full:
		return srv.refuse("too_many", codes.ResourceExhausted, "the control plane has its maximum of %d streams", srv.cfg.Settings.MaxStreams)
	}
	if err := srv.graph.add(s); err != nil {
		srv.mu.Lock()
		delete(srv.streams, s)
		srv.mu.Unlock()
		srv.log.Error("proxy refused", zap.String("proxy", s.proxy.ID), zap.Error(err))
		return srv.refuse("internal", codes.Internal, "derive view: internal error")
	}
	srv.metrics.connected.WithLabelValues(s.version()).Inc()
	srv.log.Debug("proxy connected", zap.String("proxy", s.id), zap.String("cluster", string(s.proxy.Cluster)), zap.Bool("delta", s.delta))
	return nil
}

func (srv *Server) forget(s *stream) {
	srv.mu.Lock()
	delete(srv.streams, s)
	srv.mu.Unlock()
	srv.graph.remove(s)
	srv.metrics.connected.WithLabelValues(s.version()).Dec()
	srv.log.Debug("proxy disconnected", zap.String("proxy", s.id))
}

// version labels the metric of connected proxies. It is bounded, because a
// proxy says what it likes.
func (s *stream) version() string {
	if v := s.proxy.IstioVersion; v != "" && len(v) <= 32 {
		return v
	}
	return "unknown"
}

func (srv *Server) all() []*stream {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	list := make([]*stream, 0, len(srv.streams))
	for s := range srv.streams {
		list = append(list, s)
	}
	return list
}

func (srv *Server) panicked(what string, p any) {
	srv.metrics.internalErrors.Inc()
	srv.log.Error("internal error", zap.String("during", what), zap.Any("panic", p), zap.ByteString("stack", debug.Stack()))
}

func (srv *Server) reportBuild(e *entry, err error) {
	k := e.slot.kind
	srv.metrics.buildErrors.WithLabelValues(k.short).Inc()
	fields := []zap.Field{zap.Error(err), zap.String("type", k.short), zap.String("resource", e.name)}
	var p *panicError
	if errors.As(err, &p) {
		fields = append(fields, zap.ByteString("stack", p.stack))
	}
	srv.log.Error("resource not built; proxies keep what they have", fields...)
}

// Register registers the ADS service.
func (srv *Server) Register(r grpc.ServiceRegistrar) { r.RegisterService(srv.serviceDesc(), srv) }
