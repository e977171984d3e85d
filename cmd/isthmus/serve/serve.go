package serve

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/multicluster"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/registry/config"
	"github.com/isthmus-mesh/isthmus/registry/config/admission"
	"github.com/isthmus-mesh/isthmus/registry/resolve"
	"github.com/isthmus-mesh/isthmus/xds"
	"github.com/isthmus-mesh/isthmus/xds/build"
	"github.com/isthmus-mesh/isthmus/xds/match"
)

// world is where clusters come from: folders of YAML, or API servers.
type world interface {
	// parts are what has to run.
	parts() []part
	// notReady says what is still missing before proxies may be answered, "" if nothing.
	notReady() string
	// clusters tells how every cluster is, the primary first.
	clusters() []multicluster.Status
	// refusals lists the kubeconfigs that are not used.
	refusals() []multicluster.Refusal
	// awaitSettings waits until the mesh's settings have been read; false if the
	// context ended before.
	awaitSettings(ctx context.Context) bool
	// debug lists the world's own views.
	debug() []namedHandler
}

// Control is one control plane: everything that runs in the process.
type Control struct {
	settings Settings
	build    Build
	log      *zap.Logger
	metrics  *prometheus.Registry

	store    *registry.Store
	problems *registry.Problems
	resolver *resolve.Resolver
	world    world
	kube     *kubeWorld // the same world, nil if it is one of folders
	trust    *trust
	access   *access
	secrets  *gatewaySecrets
	pulls    *pullSecrets
	leftOut  *leftOut
	machines *machines
	xds      *xds.Server
	// injection and validation are nil if the webhooks do not run.
	injection  *injection
	validation *admission.Handler
	page       http.Handler

	ready     chan struct{} // closed when the mesh has been read once
	stopping  atomic.Bool   // told to end
	after     func(time.Duration) <-chan time.Time
	listeners map[string]net.Listener
}

// New connects the parts. It does no I/O but for reading the credentials of the
// primary.
func New(s Settings, b Build, log *zap.Logger) (*Control, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	c := &Control{settings: s, build: b, log: log, metrics: prometheus.NewRegistry(), ready: make(chan struct{}), after: time.After, listeners: map[string]net.Listener{}}
	c.store = registry.NewStore(registry.Config{Primary: s.primary(), Settings: s.withEnvironment(config.Defaults())})
	c.registerMetrics()
	c.problems = registry.NewProblems(nil)
	var err error
	if c.resolver, err = resolve.New(resolve.Config{Store: c.store, Problems: c.problems, Log: log.Named("resolve"), Metrics: c.metrics}); err != nil {
		return nil, fmt.Errorf("prepare resolver: %w", err)
	}
	if c.world, err = c.newWorld(); err != nil {
		return nil, err
	}
	if err := c.newSecurity(); err != nil {
		return nil, err
	}
	if err := c.newWebhooks(); err != nil {
		return nil, err
	}
	if c.machines, err = c.newMachines(); err != nil {
		return nil, err
	}
	c.leftOut = newLeftOut(c.problems, func(k mesh.ObjectKey) *mesh.Object { return c.store.Catalog().Object(k) }, log.Named("ads"), c.metrics)
	c.store.OnChange(c.leftOut.changed) // before the ADS server hears of it
	c.xds, err = xds.New(xds.Config{
		Store:         c.store,
		Generators:    []build.Generator{build.Upstreams{}, build.Assignments{}, build.Listeners{}, build.Routes{}, build.Extensions{}, build.NameTables{}},
		DeriveView:    build.DeriveView,
		Ready:         func() bool { return c.unread() == "" },
		ViewConcerned: build.ViewConcerned,
		Authenticate:  c.admit,
		Reports:       c.reports(),
		PerProxy:      map[string]xds.PerProxy{typeSecret: c.secrets},
		Completers:    map[string]xds.Completer{build.TypeExtension: c.pulls},
		Problem:       c.leftOut.note,
		Identifier:    s.PodName,
		Build:         b.forIstioctl(),
		DebugCaller:   c.debugCaller,
		Debug:         http.HandlerFunc(c.debugOverADS),
		Settings:      xds.Settings{DebounceAfter: s.DebounceAfter, DebounceMax: s.DebounceMax, DefaultCluster: s.primary()},
		Log:           log.Named("ads"),
		Metrics:       c.metrics,
	})
	if err != nil {
		return nil, fmt.Errorf("prepare ADS server: %w", err)
	}
	c.page = newPage(c)
	return c, nil
}

func (c *Control) newWorld() (world, error) {
	if c.settings.Files != "" {
		return newFolders(c), nil
	}
	k, err := newKube(c)
	c.kube = k
	return k, err
}

// Store gives access to the registry, for tests and embedding.
func (c *Control) Store() *registry.Store { return c.store }

// setSettings puts settings of the mesh in force.
func (c *Control) setSettings(m mesh.Settings) { c.store.SetSettings(c.settings.withEnvironment(m)) }

// NotReady says why proxies cannot be answered yet, "" if they can.
func (c *Control) NotReady() string { return c.notReady() }

// Clusters tells how every cluster is, the primary first.
func (c *Control) Clusters() []multicluster.Status { return c.world.clusters() }

// Refusals lists the kubeconfigs that are not used.
func (c *Control) Refusals() []multicluster.Refusal { return c.world.refusals() }

// notReady says why this replica is not to be asked, "" if it is.
func (c *Control) notReady() string {
	if c.stopping.Load() {
		return "shutting down"
	}
	return c.unread()
}

// unread says what is missing to answer, "" if nothing.
func (c *Control) unread() string {
	if reason := c.world.notReady(); reason != "" || !c.secured() {
		return reason
	}
	if reason := c.injection.notReady(); reason != "" {
		return reason
	}
	return c.trust.notReady()
}

// Listen opens the listeners, so that their addresses are known. [Control.Run]
// serves on them and closes them.
func (c *Control) Listen() error {
	for _, l := range []struct{ name, addr string }{
		{"plaintext ADS", c.settings.GRPCAddr},
		{"secure ADS and CA", c.settings.SecureGRPCAddr},
		{"http", c.settings.HTTPAddr},
		{"monitoring", c.settings.MonitoringAddr},
	} {
		if l.addr == "" {
			continue
		}
		open, err := net.Listen("tcp", l.addr)
		if err != nil {
			c.closeListeners()
			return fmt.Errorf("listen for %s: %w", l.name, err)
		}
		c.listeners[l.name] = open
		c.log.Info(fmt.Sprintf("%s on %s", l.name, open.Addr()))
	}
	if err := c.listenWebhooks(); err != nil {
		c.closeListeners()
		return err
	}
	return nil
}

func (c *Control) closeListeners() {
	for _, l := range c.listeners {
		_ = l.Close()
	}
}

// GRPCAddr is where plaintext ADS listens, "" if it does not.
func (c *Control) GRPCAddr() string { return c.addr("plaintext ADS") }

// SecureGRPCAddr is where ADS and the CA listen over TLS, "" if they do not.
func (c *Control) SecureGRPCAddr() string { return c.addr("secure ADS and CA") }

// HTTPAddr is where /ready and /debug listen, "" if they do not.
func (c *Control) HTTPAddr() string { return c.addr("http") }

// MonitoringAddr is where /metrics and /debug listen, "" if they do not.
func (c *Control) MonitoringAddr() string { return c.addr("monitoring") }

func (c *Control) addr(name string) string {
	if l := c.listeners[name]; l != nil {
		return l.Addr().String()
	}
	return ""
}

// Run listens unless [Control.Listen] was called, and serves until the context
// ends, and for the time of [Settings.DrainDuration] after that, or until a part
// fails.
func (c *Control) Run(ctx context.Context) error {
	if len(c.listeners) == 0 {
		if err := c.Listen(); err != nil {
			return err
		}
	}
	defer c.closeListeners()
	parts := append(c.world.parts(),
		part{"resolver", c.resolver.Run},
		part{"dispatch", c.xds.Run},
		part{"readiness", c.awaitReady},
		part{"shutdown", c.leave(ctx)})
	security, err := c.securityParts()
	if err != nil {
		return err
	}
	parts = append(parts, security...)
	parts = append(parts, c.webhookParts()...)
	parts = append(parts, c.machineParts()...)
	gateways, err := c.gatewayParts()
	if err != nil {
		return err
	}
	parts = append(parts, gateways...)
	told, err := c.statusParts()
	if err != nil {
		return err
	}
	parts = append(parts, told...)
	if l := c.listeners["plaintext ADS"]; l != nil {
		parts = append(parts, part{"plaintext ADS", c.servePlaintext(l)})
	}
	if l := c.listeners["secure ADS and CA"]; l != nil {
		parts = append(parts, part{"secure ADS and CA", c.serveSecure(l)})
	}
	if l := c.listeners["http"]; l != nil {
		parts = append(parts, part{"http", serveHTTP(l, c.sendElsewhere(c.readyMux()), c.settings.ShutdownDuration)})
	}
	if l := c.listeners["monitoring"]; l != nil {
		parts = append(parts, part{"monitoring", serveHTTP(l, c.sendElsewhere(c.monitoringMux()), c.settings.ShutdownDuration)})
	}
	return runAll(context.WithoutCancel(ctx), parts)
}

// serveGRPC serves a gRPC server until the context ends; then open streams get a
// GOAWAY and end within the shutdown time. Connections that arrive
// before the mesh has been read wait in the listener's queue: a proxy that waits
// a moment is better off than one that is refused and backs off.
func (c *Control) serveGRPC(l net.Listener, server func([]grpc.ServerOption) (*grpc.Server, error)) func(context.Context) error {
	return func(ctx context.Context) error {
		select {
		case <-c.ready:
		case <-ctx.Done():
			return nil
		}
		srv, err := server(xds.ServerOptions(xds.Transport{MaxConnectionAge: connectionAge(c.settings.MaxConnectionAge)}))
		if err != nil {
			return err
		}
		done := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			defer close(done)
			// Streams never end by themselves: the grace is for the GOAWAY to arrive.
			kill := time.AfterFunc(min(c.settings.ShutdownDuration, time.Second), srv.Stop)
			defer kill.Stop()
			srv.GracefulStop()
		})
		err = srv.Serve(l)
		if !stop() {
			<-done
		}
		return err
	}
}

// connectionAge renders istiod's "no age, no limit" for package xds.
func connectionAge(d time.Duration) time.Duration {
	if d <= 0 {
		return -1
	}
	return d
}

// awaitReady opens the gates when everything has been read once, and says what
// is known then.
func (c *Control) awaitReady(ctx context.Context) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	begin, last := time.Now(), ""
	for {
		reason := c.notReady()
		if reason == "" {
			close(c.ready)
			cat := c.store.Catalog()
			c.log.Info("ready", zap.Int("clusters", len(cat.Clusters())), zap.Int("services", cat.Len()), zap.Duration("after", time.Since(begin)))
			<-ctx.Done()
			return nil
		}
		if reason != last {
			c.log.Info("not ready yet", zap.String("because", reason))
			last = reason
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// debugHandlers lists the views of all packages.
func (c *Control) debugHandlers() []namedHandler {
	reg := registry.NewDebug(c.store, c.problems)
	out := c.world.debug()
	for name, h := range reg.Handlers() {
		if name == "overview" {
			continue // the process has a wider one
		}
		out = append(out, namedHandler{name: name, handler: h})
	}
	for name, h := range c.xds.DebugHandlers(explain) {
		out = append(out, namedHandler{name: name, handler: h})
	}
	if c.secured() {
		out = append(out, namedHandler{name: "ca", help: "the CA, its roots and a rotation under way", handler: c.trust})
	}
	if c.injection != nil {
		out = append(out, namedHandler{name: "inject", help: "the injection configuration in force, and why a newer one is not", handler: c.injection})
	}
	return append(out, namedHandler{name: "overview", help: "everything the page shows",
		handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { writeJSON(w, r, c.Overview()) })})
}

func explain(in build.Inputs, v build.View, host string, port uint16, r match.Request) any {
	x := build.Explain(in, v, mesh.Hostname(host), port)
	var err error
	if x.Route, err = build.ExplainRoute(in, v, r, port); err != nil {
		x.Notes = append(x.Notes, err.Error())
	}
	return x
}
