package multicluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// DefaultTimeout is how long a cluster may keep the control plane from being ready.
const DefaultTimeout = 30 * time.Second

// lookInterval is how often the health of all clusters is looked at.
const lookInterval = 5 * time.Second

// EventRecorder writes Kubernetes Events; record.EventRecorder of client-go is one.
type EventRecorder interface {
	Event(object runtime.Object, eventtype, reason, message string)
}

// Config configures a [Manager].
type Config struct {
	// Primary is the cluster that the control plane belongs to. No kubeconfig may
	// claim its ID, nor one of Aliases, which are other names of it.
	Primary mesh.ClusterID
	Aliases []mesh.ClusterID
	// PrimaryStatus tells how the primary is, for [Manager.Clusters]; nil counts
	// as synced.
	PrimaryStatus func() PrimaryStatus
	// Client reads the Secrets of Namespace in the primary, and is what ClientFor
	// returns for it. It may be nil if Directory is set or there are no remotes.
	Client    kubernetes.Interface
	Namespace string
	// Secrets reads the Secrets instead of Client, for a control plane that runs
	// outside of the cluster that holds its configuration; nil is Client.
	Secrets kubernetes.Interface
	// Directory, if set, holds one kubeconfig per remote cluster in its files
	// *.yaml, *.yml and *.json, and no Secrets are read.
	Directory string
	// Options are what kubeconfigs may do beyond the usual.
	Options Options
	// Timeout is how long a kubeconfig may take until its cluster has been read
	// once, before the control plane is ready without it. It goes on trying then.
	// 0 means DefaultTimeout, negative to wait for ever.
	Timeout time.Duration
	// NewSource returns a source that reads the cluster. It must not do any I/O.
	// The configuration is the source's to keep; its connections are closed when
	// the source is stopped. The source may implement [StatusReporter].
	NewSource func(id mesh.ClusterID, cfg *rest.Config) (registry.Source, error)
	// NewSink returns the sink of a new source instance, as Store.NewSink does.
	NewSink func(id mesh.ClusterID) registry.Sink
	// NewClient makes the clients that ClientFor returns; kubernetes.NewForConfig if nil.
	NewClient func(cfg *rest.Config) (kubernetes.Interface, error)
	// Left is called after a remote has left and its sink was closed with Drop, for
	// what else is kept by cluster; it must return at once. May be nil.
	Left func(id mesh.ClusterID)
	// SetWeights is called with the weights that the Secrets give their clusters,
	// whenever those change, as Store.SetSecretWeights takes them; may be nil.
	SetWeights func(map[mesh.ClusterID]mesh.Weight)
	// WeightOf tells the weight of a cluster that is in force, for
	// [Manager.Clusters]; may be nil.
	WeightOf func(mesh.ClusterID) mesh.Weight
	// Problems lists Secrets with an annotation that cannot be read; nil for none.
	Problems *registry.Problems
	// Events receives an Event for every refused Secret; may be nil.
	Events EventRecorder
	// Log, Metrics and Clock may be nil.
	Log     *zap.Logger
	Metrics prometheus.Registerer
	Clock   func() time.Time
	Backoff Backoff
}

// Manager keeps one running source for every cluster that a kubeconfig names.
// All methods may be called from any goroutine.
type Manager struct {
	cfg     Config
	log     *zap.Logger
	now     func() time.Time
	feed    feed
	metrics *metrics

	started atomic.Bool
	poke    chan struct{} // one slot: something happened
	ready   chan struct{}
	view    atomic.Pointer[view]

	mu       sync.Mutex
	pending  *snapshot // newest, not yet taken by the loop
	feedFail string

	loop loop
}

// loop is what only the goroutine of Run touches.
type loop struct {
	listed     bool
	objects    []object
	parsed     map[string]parsed // by content
	remotes    map[mesh.ClusterID]*remote
	refused    map[Refusal]struct{}
	refusals   []Refusal
	generation uint64
	// awaited are the clusters of the first listing that readiness still waits
	// for, until awaitedUntil (zero: for ever); nil once ready.
	awaited      map[mesh.ClusterID]struct{}
	awaitedUntil time.Time
	nextLook     time.Time
	feedFail     string
	weights      weights
	running      sync.WaitGroup
	closed       bool
}

// parsed is a kubeconfig as Sanitize left it.
type parsed struct {
	cfg *rest.Config
	err error
}

// New returns a manager. It does no I/O; [Manager.Run] does the work.
func New(c Config) (*Manager, error) {
	if c.Primary == "" {
		return nil, errors.New("new multicluster manager: Primary is missing")
	}
	if c.NewSource == nil || c.NewSink == nil {
		return nil, errors.New("new multicluster manager: NewSource and NewSink are needed")
	}
	if c.Directory == "" && (c.Client != nil || c.Secrets != nil) && c.Namespace == "" {
		return nil, errors.New("new multicluster manager: Namespace is missing")
	}
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	if c.NewClient == nil {
		c.NewClient = func(cfg *rest.Config) (kubernetes.Interface, error) { return kubernetes.NewForConfig(cfg) }
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Problems == nil {
		c.Problems = registry.NewProblems(c.Clock)
	}
	c.Backoff = c.Backoff.withDefaults()
	m := &Manager{
		cfg: c, log: c.Log, now: c.Clock,
		poke: make(chan struct{}, 1), ready: make(chan struct{}),
		loop: loop{parsed: map[string]parsed{}, remotes: map[mesh.ClusterID]*remote{}, refused: map[Refusal]struct{}{}},
	}
	switch {
	case c.Directory != "":
		m.feed = newDirectory(c.Directory, m.log)
	case c.Secrets != nil:
		m.feed = newSecrets(c.Secrets, c.Namespace)
	case c.Client != nil:
		m.feed = newSecrets(c.Client, c.Namespace)
	default:
		m.feed = nothing{}
	}
	m.view.Store(&view{})
	m.metrics = newMetrics()
	if c.Metrics != nil {
		if err := c.Metrics.Register(collector{m}); err != nil {
			return nil, fmt.Errorf("register metrics of multicluster: %w", err)
		}
	}
	return m, nil
}

// Ready is closed when the kubeconfigs were listed once and every cluster found
// then has been read once, has left, cannot be used, or took longer than the
// timeout. Clusters that come later never reopen it.
func (m *Manager) Ready() <-chan struct{} { return m.ready }

// HasSynced reports whether Ready is closed.
func (m *Manager) HasSynced() bool {
	select {
	case <-m.ready:
		return true
	default:
		return false
	}
}

// ClientFor returns the client of a cluster by its ID: of the primary (also by
// an alias), or of a remote that has been read once and is still claimed. The
// client changes with every rotation, so look it up for each use.
func (m *Manager) ClientFor(id mesh.ClusterID) (kubernetes.Interface, bool) {
	if id == m.cfg.Primary || slices.Contains(m.cfg.Aliases, id) {
		return m.cfg.Client, m.cfg.Client != nil
	}
	if r := m.view.Load().find(id); r != nil && r.serving != nil {
		return r.serving.client, true
	}
	return nil, false
}

// Run does the work until ctx ends. It returns after all sources have returned.
// What they reported stays in their sinks. It may be called once.
func (m *Manager) Run(ctx context.Context) error {
	if m.started.Swap(true) {
		return errors.New("run multicluster manager: it was run before")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, 1)
	go func() { failed <- m.feed.run(ctx, m.observe, m.observeFailure) }()

	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			m.close()
			if err := <-failed; err != nil { // what ends because it was told to has not failed
				m.log.Debug("feed of kubeconfigs ended", zap.Error(err))
			}
			return nil
		case err := <-failed: // it ends before its time only with an error
			stopped := ctx.Err() != nil
			cancel()
			m.close()
			if err == nil || stopped {
				return nil
			}
			return fmt.Errorf("run multicluster manager: %w", err)
		case <-m.poke:
		case <-timer.C:
		}
		now := m.now()
		timer.Reset(max(m.reconcile(ctx, now).Sub(now), 0))
	}
}

// observe takes everything that the feed knows. It is called by the feed.
func (m *Manager) observe(s snapshot) {
	m.mu.Lock()
	m.pending, m.feedFail = &s, ""
	m.mu.Unlock()
	m.wake()
}

// observeFailure takes why the feed cannot read at the moment, "" if it can.
func (m *Manager) observeFailure(message string) {
	m.mu.Lock()
	same := m.feedFail == message
	m.feedFail = message
	m.mu.Unlock()
	if !same {
		m.wake()
	}
}

func (m *Manager) wake() {
	select {
	case m.poke <- struct{}{}:
	default:
	}
}

// close ends all sources, keeping what they reported, and waits for them.
func (m *Manager) close() {
	l := &m.loop
	for _, r := range l.remotes {
		for _, i := range []*instance{r.candidate, r.serving} {
			if i != nil {
				i.stop(registry.Keep)
			}
		}
	}
	l.closed = true
	m.publish()
	l.running.Wait()
}
