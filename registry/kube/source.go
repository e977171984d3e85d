package kube

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// DefaultKindTimeout is how long a kind that the API server refuses to give may
// hold up the others.
const DefaultKindTimeout = 10 * time.Second

// trustDomainInterval is how often [Config.TrustDomain] is asked when nothing
// else happens.
const trustDomainInterval = 5 * time.Second

// Config configures a [Source].
type Config struct {
	Cluster mesh.ClusterID
	// REST says how to reach the API server; see [RESTDefaults].
	REST *rest.Config
	// Client is used for the built-in kinds if it is set. Without it one client
	// and one connection, made from REST, serve all kinds.
	Client kubernetes.Interface
	// Primary says that the cluster's configuration counts: the kinds of
	// registry/config and Gateways of class istio-remote are read.
	Primary bool
	// Namespace is the system namespace, Domain the cluster's DNS domain, Revision
	// the one of the control plane; see [TranslatorConfig].
	Namespace, Domain, Revision string
	// TrustDomain, if set, is used instead of the one in the cluster's mesh
	// ConfigMap, unless it returns "". It is asked often and must return at once.
	TrustDomain func() string
	// KindTimeout is how long a kind that the API server refuses to give (403,
	// 404) may hold up the others; [DefaultKindTimeout] if zero. A kind that is
	// slow or unreachable holds them up for ever: unknown is not empty.
	KindTimeout time.Duration
	// OnStatus is called with every change of the source's state, one call after
	// the other. It must return at once.
	OnStatus func(Status)
	// Problems lists objects and kinds that are not served; nil for none.
	Problems *registry.Problems
	// Log is for what happens; nil for none.
	Log *zap.Logger
	// Metrics takes the source's metrics; nil for none. Several sources may share it.
	Metrics prometheus.Registerer
	// Clock is time.Now if nil.
	Clock func() time.Time
}

// Source reads one cluster from its API server.
type Source struct {
	cfg     Config
	log     *zap.Logger
	http    *http.Client // nil if the clients are not ours
	readers []*reader
	metrics *metrics
	poke    chan struct{} // holds one token if there may be work

	mu         sync.Mutex // guards the translator and what readers put in it
	translator *Translator

	status statusBoard
}

// New returns a source; it does no I/O. [Source.Run] may be called once.
func New(c Config) (*Source, error) {
	if c.Cluster == "" {
		return nil, errors.New("make source of a cluster: no name; set Cluster")
	}
	if c.Client == nil && c.REST == nil {
		return nil, fmt.Errorf("make source of cluster %s: no way to reach it; set REST or Client", c.Cluster)
	}
	if c.KindTimeout == 0 {
		c.KindTimeout = DefaultKindTimeout
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	s := &Source{cfg: c, log: c.Log.With(zap.String("cluster", string(c.Cluster))), poke: make(chan struct{}, 1)}
	s.translator = NewTranslator(TranslatorConfig{Cluster: c.Cluster, Domain: c.Domain, Namespace: c.Namespace, Revision: c.Revision,
		Primary: c.Primary, Problems: c.Problems, Log: s.log})
	s.metrics = newMetrics(c.Metrics)
	if err := s.connect(); err != nil {
		return nil, fmt.Errorf("make client of cluster %s: %w", c.Cluster, err)
	}
	return s, nil
}

// connect makes the clients and with them the readers.
func (s *Source) connect() error {
	client := s.cfg.Client
	if s.cfg.REST == nil {
		s.readers = s.builtinReaders(client)
		return nil
	}
	cfg := rest.CopyConfig(s.cfg.REST)
	cfg.Timeout = 0 // it would end watches; requests are bounded one by one
	h, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return err
	}
	if client == nil {
		if client, err = kubernetes.NewForConfigAndClient(cfg, h); err != nil {
			return err
		}
	}
	dyn, err := dynamic.NewForConfigAndClient(JSONConfig(cfg), h)
	if err != nil {
		return err
	}
	s.http = h
	s.readers = append(s.builtinReaders(client), s.dynamicReaders(dyn)...)
	return nil
}

// Run reads the cluster until the context ends: it reports nothing until every
// kind has been read, then everything at once, then what changes. What it
// reported stays in the sink when it returns.
func (s *Source) Run(ctx context.Context, to registry.Sink) error {
	ctx, stop := context.WithCancel(klog.NewContext(ctx, klog.Logger{})) // client-go's own log says nothing that Status does not
	var wg sync.WaitGroup
	for _, r := range s.readers {
		wg.Go(func() { r.run(ctx) })
	}
	defer func() {
		stop()
		wg.Wait()
		if s.http != nil {
			utilnet.CloseIdleConnectionsFor(s.http.Transport)
		}
		s.metrics.forget(s.cfg.Cluster)
	}()
	if !s.awaitSync(ctx) {
		return nil
	}
	s.replace(to)
	var tick <-chan time.Time
	if s.cfg.TrustDomain != nil {
		t := time.NewTicker(trustDomainInterval)
		defer t.Stop()
		tick = t.C
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.poke:
		case <-tick:
		}
		s.apply(to)
	}
}

// awaitSync waits until every kind is read or known not to be had. It reports
// whether that happened before the context ended.
func (s *Source) awaitSync(ctx context.Context) bool {
	for {
		s.announce()
		wait, settled := s.status.settled(s.cfg.Clock(), s.cfg.KindTimeout)
		if settled {
			return ctx.Err() == nil
		}
		var timer <-chan time.Time
		if wait > 0 {
			timer = time.After(wait)
		}
		select {
		case <-ctx.Done():
			return false
		case <-s.poke:
		case <-timer:
		}
	}
}

// replace reports everything.
func (s *Source) replace(to registry.Sink) {
	s.mu.Lock()
	s.refresh()
	u := s.translator.Snapshot()
	s.translator.problems.sweep()
	pending := s.translator.Pending()
	s.mu.Unlock()
	to.Replace(u)
	s.status.synced(s.cfg.Clock())
	s.metrics.setPending(s.cfg.Cluster, pending)
	s.log.Info("cluster read", zap.Int("services", len(u.Services)), zap.Int("workloads", len(u.Workloads)), zap.Int("objects", len(u.Objects)))
	s.announce()
}

// apply reports what changed since the last time.
func (s *Source) apply(to registry.Sink) {
	s.mu.Lock()
	s.refresh()
	u, changed := s.translator.Flush()
	pending := s.translator.Pending()
	s.mu.Unlock()
	if changed {
		to.Apply(u)
	}
	s.metrics.setPending(s.cfg.Cluster, pending)
	s.announce()
}

// refresh brings in what the translator is told besides objects.
func (s *Source) refresh() {
	if s.cfg.TrustDomain != nil {
		s.translator.SetTrustDomain(s.cfg.TrustDomain())
	}
	// Once everything else is reported without pods, that lasts until they are
	// read: a changed answer alone is no reason to take endpoints away.
	s.translator.SetPodsUnknown(!s.status.read(resourcePods))
}

// wake lets the worker look for work.
func (s *Source) wake() {
	select {
	case s.poke <- struct{}{}:
	default:
	}
}

// announce tells OnStatus if the state changed. Only the goroutine of Run calls it.
func (s *Source) announce() {
	if st, changed := s.status.changed(); changed && s.cfg.OnStatus != nil {
		st.Cluster = s.cfg.Cluster
		s.cfg.OnStatus(st)
	}
}

// Status tells how reading goes. It may be called at any time.
func (s *Source) Status() Status {
	st := s.status.snapshot()
	st.Cluster = s.cfg.Cluster
	return st
}
