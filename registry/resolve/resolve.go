// Package resolve keeps the addresses of network gateways that are known by
// host name up to date.
//
// It owns when a name is asked for again and what is done with a failure. It
// does not own which gateways there are (the Store does), and it never takes an
// address away because a question failed: the last known addresses stay until
// there are newer ones.
package resolve

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

const (
	// minTTL and maxTTL bound how long an answer is taken for true.
	minTTL = 5 * time.Second
	maxTTL = 5 * time.Minute
	// minRetry and maxRetry bound the pause after a failure.
	minRetry = time.Second
	maxRetry = 30 * time.Second
	// lookupTimeout bounds one question with all its search domains and servers.
	lookupTimeout = 10 * time.Second
	// maxLookups bounds how many questions are open at once.
	maxLookups = 8
	// maxAddrs bounds how many addresses of one name are used.
	maxAddrs = 32
)

// Store is what the resolver reads the host names from and reports addresses
// to; [registry.Store] implements it.
type Store interface {
	Catalog() *registry.Catalog
	OnChange(func(registry.Change)) (cancel func())
	SetResolved(host string, addrs []netip.Addr)
}

// Lookup finds the addresses of a host name and how long they may be taken for
// true. Addresses beside an error are a partial answer: they are used only as
// long as nothing better is known.
type Lookup func(ctx context.Context, host string) ([]netip.Addr, time.Duration, error)

// Config configures a [Resolver].
type Config struct {
	// Store has the gateways and takes the addresses.
	Store Store
	// Lookup asks for a name; [System] if nil.
	Lookup Lookup
	// Problems lists names that cannot be resolved; nil for none.
	Problems *registry.Problems
	// Clock tells the time; time.Now if nil.
	Clock func() time.Time
	// Log tells when a name fails and when it is back; nil for none.
	Log *zap.Logger
	// Metrics takes the age of the answers and counts of questions; nil for none.
	Metrics prometheus.Registerer
}

// Resolver resolves the host names of network gateways.
type Resolver struct {
	cfg     Config
	now     func() time.Time
	log     *zap.Logger
	metrics *metrics
	poke    chan struct{}
	answers chan answer

	// hosts and open belong to the goroutine of Run.
	hosts map[string]*host
	open  int
}

// host is one name that some gateway has.
type host struct {
	name    string
	problem mesh.ObjectRef
	due     time.Time
	asking  bool
	known   bool // a whole answer was taken
	failed  int  // failures since the last whole answer
}

type answer struct {
	host  *host
	addrs []netip.Addr
	ttl   time.Duration
	err   error
}

// New returns a resolver; it asks nothing before [Resolver.Run].
func New(c Config) (*Resolver, error) {
	if c.Store == nil {
		return nil, errors.New("make gateway resolver: no store")
	}
	if c.Lookup == nil {
		c.Lookup = System()
	}
	if c.Problems == nil {
		c.Problems = registry.NewProblems(c.Clock)
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	r := &Resolver{cfg: c, now: c.Clock, log: c.Log.Named("resolve"), metrics: newMetrics(c.Clock), poke: make(chan struct{}, 1),
		answers: make(chan answer, maxLookups), hosts: map[string]*host{}}
	if c.Metrics != nil {
		if err := r.metrics.register(c.Metrics); err != nil {
			return nil, fmt.Errorf("register resolver metrics: %w", err)
		}
	}
	return r, nil
}

// Run resolves until the context ends. It returns when all questions are closed.
func (r *Resolver) Run(ctx context.Context) error {
	// The callback runs while the Store is locked: it only pokes.
	cancel := r.cfg.Store.OnChange(func(c registry.Change) {
		if c.Scope.Has(registry.ScopeNetworks) {
			select {
			case r.poke <- struct{}{}:
			default:
			}
		}
	})
	defer cancel()
	ctx, stop := context.WithCancel(ctx)
	defer func() {
		stop()
		for ; r.open > 0; r.open-- {
			<-r.answers
		}
	}()
	r.refresh()
	for {
		next := time.NewTimer(r.ask(ctx))
		select {
		case <-ctx.Done():
			next.Stop()
			return nil
		case <-r.poke:
			r.refresh()
		case a := <-r.answers:
			r.open--
			if ctx.Err() == nil {
				r.take(a)
			}
		case <-next.C:
		}
		next.Stop()
	}
}

// refresh takes over the host names that the gateways have now.
func (r *Resolver) refresh() {
	c := r.cfg.Store.Catalog()
	there := map[string]mesh.ObjectRef{}
	for _, n := range c.Networks() {
		for _, g := range c.Gateways(n) {
			if _, err := netip.ParseAddr(g.Host); err == nil || g.Host == "" {
				continue
			}
			if _, had := there[g.Host]; !had {
				there[g.Host] = mesh.ObjectRef{Cluster: g.Origin.Cluster, Kind: "GatewayHost", Name: g.Host}
			}
		}
	}
	for name, ref := range there {
		if r.hosts[name] == nil {
			r.hosts[name] = &host{name: name, problem: ref, due: r.now()}
		}
	}
	for name, h := range r.hosts {
		if _, still := there[name]; !still {
			delete(r.hosts, name) // an open question ends in take, which knows that the host is gone
			r.cfg.Problems.Clear(h.problem)
			r.metrics.forget(name)
		}
	}
}

// ask starts the questions that are due and returns the time to the next one.
func (r *Resolver) ask(ctx context.Context) time.Duration {
	wait, now := maxTTL, r.now()
	for _, h := range r.hosts {
		if h.asking {
			continue
		}
		if d := h.due.Sub(now); d > 0 {
			wait = min(wait, d)
			continue
		}
		if r.open == maxLookups {
			continue // the next answer comes back here
		}
		h.asking = true
		r.open++
		go func() {
			limited, cancel := context.WithTimeout(ctx, lookupTimeout)
			defer cancel()
			addrs, ttl, err := r.cfg.Lookup(limited, h.name)
			r.answers <- answer{h, clean(addrs), ttl, err}
		}()
	}
	return wait
}

// take uses an answer and decides when to ask again.
func (r *Resolver) take(a answer) {
	h := a.host
	h.asking = false
	if r.hosts[h.name] != h {
		return // no gateway has the name any more
	}
	if a.err == nil && len(a.addrs) == 0 {
		a.err = errors.New("the answer has no usable address")
	}
	r.metrics.asked(h.name, a.err == nil)
	if a.err != nil {
		r.fail(h, a)
		return
	}
	if h.failed > 0 {
		r.log.Info("gateway host resolves again", zap.String("host", h.name), zap.Int("failures", h.failed))
		r.cfg.Problems.Clear(h.problem)
	}
	h.known, h.failed = true, 0
	h.due = r.now().Add(jitter(min(max(a.ttl, minTTL), maxTTL), 0.1))
	r.cfg.Store.SetResolved(h.name, a.addrs)
}

func (r *Resolver) fail(h *host, a answer) {
	pause := maxRetry
	if h.failed < 5 {
		pause = min(minRetry<<h.failed, maxRetry)
	}
	h.failed++
	h.due = r.now().Add(jitter(pause, -0.5))
	kept := "endpoints behind it cannot be reached until it resolves"
	switch {
	case h.known:
		kept = "its last known addresses stay in use"
	case len(a.addrs) > 0:
		kept = "the part of the answer that came is in use"
		r.cfg.Store.SetResolved(h.name, a.addrs)
	}
	if r.cfg.Problems.Set(h.problem, "", fmt.Sprintf("cannot resolve gateway host %s; %s", h.name, kept)) {
		r.log.Warn("cannot resolve gateway host: "+kept, zap.String("host", h.name),
			zap.String("cluster", string(h.problem.Cluster)), zap.Error(a.err))
	}
}

// clean sorts the addresses and leaves out repetitions and what cannot be a
// gateway's.
func clean(in []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range in {
		if a = a.Unmap().WithZone(""); a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	out = slices.Compact(out)
	return out[:min(len(out), maxAddrs)]
}

// jitter moves a duration by a random share of up to part of it, so that names
// and replicas do not ask at the same moment.
func jitter(d time.Duration, part float64) time.Duration {
	return d + time.Duration(rand.Float64()*part*float64(d))
}
