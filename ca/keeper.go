package ca

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// KeeperConfig configures [NewKeeper].
type KeeperConfig struct {
	// Authority is fed. Required.
	Authority *Authority
	// Sources in order of preference; the first that exists counts. Required.
	Sources []Source
	// Client of the primary cluster, where replicas agree on a rotation, in the
	// system namespace; nil means that this is the only replica and that it
	// forgets.
	Client    kubernetes.Interface
	Cluster   mesh.ClusterID
	Namespace string
	// Replica is the name of this replica, unique among them (the pod's name).
	Replica string
	// Rotation are the operator's choices. Lifetimes are the authority's.
	Rotation RotationSettings
	// Share reports how many of the proxies of this replica were given the root
	// of an anchor since a moment; see [Holders.Share]. nil: nobody can tell, a
	// rotation then waits until every certificate from before has ended.
	Share func(anchor string, since time.Time) Share
	// Interval at which everything is looked at without a reason. Default 30 s.
	Interval time.Duration
	// Settle is the wait after a change, so that several files written one after
	// the other are read as one. Default 200 ms.
	Settle time.Duration
	// Warmup is how long after the start the replica's own share says nothing,
	// because its proxies have yet to connect. Default 5 min.
	Warmup time.Duration
	// Events publishes warnings; may be nil.
	Events EventFunc

	Logger     *zap.Logger
	Clock      func() time.Time
	Registerer prometheus.Registerer
}

// Keeper reads the sources, drives rotations and keeps the authority supplied.
// Whatever goes wrong, the authority keeps what it has.
type Keeper struct {
	cfg     KeeperConfig
	log     *zap.Logger
	now     func() time.Time
	store   rotationStore
	poke    chan struct{}
	bad     prometheus.Gauge
	badLoad prometheus.Counter

	// Used by the goroutine of Run only.
	started  time.Time
	rank     int                // index of the source in use, -1 if none yet
	material map[string]*Bundle // with keys, by issuer ID
	applied  string             // generation that the authority has
	digest   string             // of the bundle that the authority has
	lost     time.Time          // since when the current issuer's key is missing
	alarmed  time.Time          // last expiry alarm

	mu       sync.Mutex // guards what follows, for Progress
	progress Progress
}

// NewKeeper returns a keeper.
func NewKeeper(cfg KeeperConfig) (*Keeper, error) {
	if cfg.Authority == nil || len(cfg.Sources) == 0 {
		return nil, errors.New("new CA keeper: Authority and Sources are required")
	}
	if cfg.Client != nil && (cfg.Namespace == "" || cfg.Replica == "") {
		return nil, errors.New("new CA keeper: Namespace and Replica are required with a Client")
	}
	cfg.Interval = positiveOr(cfg.Interval, 30*time.Second)
	cfg.Settle = positiveOr(cfg.Settle, 200*time.Millisecond)
	cfg.Warmup = positiveOr(cfg.Warmup, 5*time.Minute)
	cfg.Rotation.MaxLifetime = cfg.Authority.cfg.MaxLifetime
	cfg.Rotation.DefaultLifetime = cfg.Authority.cfg.DefaultLifetime
	cfg.Rotation = cfg.Rotation.withDefaults()
	k := &Keeper{
		cfg: cfg, log: loggerOrNop(cfg.Logger), now: clockOrSystem(cfg.Clock),
		store: &memoryStore{}, poke: make(chan struct{}, 1), rank: -1, material: map[string]*Bundle{},
		bad: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "isthmus_ca_source_bad", Help: "1 while the source of issuing material is bad and an older state of it is used."}),
		badLoad: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "isthmus_ca_source_errors_total", Help: "Times that issuing material could not be taken over."}),
	}
	if cfg.Client != nil {
		k.store = newSecretStore(cfg.Client, cfg.Cluster, cfg.Namespace)
	}
	if cfg.Registerer != nil {
		for _, c := range []prometheus.Collector{k.bad, k.badLoad} {
			if err := cfg.Registerer.Register(c); err != nil {
				return nil, fmt.Errorf("register CA metrics: %w", err)
			}
		}
	}
	return k, nil
}

// Run feeds the authority until the context ends.
func (k *Keeper) Run(ctx context.Context) error {
	k.started = k.now()
	g, ctx := errgroup.WithContext(ctx)
	for _, s := range k.cfg.Sources {
		g.Go(func() error {
			if err := s.Watch(ctx, k.Poke); err != nil {
				k.log.Warn("source of the CA is looked at from time to time only", zap.String("source", s.Name()), zap.Error(err))
			}
			return nil
		})
	}
	g.Go(func() error { k.store.watch(ctx, k.Poke); return nil })
	g.Go(func() error { k.loop(ctx); return nil })
	return g.Wait()
}

// Poke makes the keeper look at everything soon.
func (k *Keeper) Poke() {
	select {
	case k.poke <- struct{}{}:
	default:
	}
}

func (k *Keeper) loop(ctx context.Context) {
	tick := time.NewTicker(k.cfg.Interval)
	defer tick.Stop()
	for {
		k.reconcile(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-k.poke:
			select {
			case <-ctx.Done():
				return
			case <-time.After(k.cfg.Settle):
			}
		}
		// What came while we waited is seen by the look that follows.
		select {
		case <-k.poke:
		default:
		}
	}
}

// reconcile looks at the sources and the record and brings both and the
// authority in line. It may be called at any time and any number of times.
func (k *Keeper) reconcile(ctx context.Context) {
	offered, source, err := k.offer(ctx)
	if ctx.Err() != nil {
		return
	}
	k.reportSource(source, err)
	for range 5 {
		err = k.step(ctx, offered, source)
		if !errors.Is(err, errStale) {
			break
		}
	}
	if err != nil && ctx.Err() == nil {
		k.badLoad.Inc()
		k.log.Error("rotation of the CA cannot go on; the authority keeps what it has", zap.Error(err))
		k.note(func(p *Progress) { p.Error = err.Error() })
	}
	k.alarm(source)
}

// offer loads the first source that exists. Once a source has been used, none
// of less preference replaces it while we run: that cacerts is gone is more
// likely a mistake than the wish for a self-signed root.
func (k *Keeper) offer(ctx context.Context) (*Bundle, Source, error) {
	for i, s := range k.cfg.Sources {
		b, err := s.Load(ctx)
		switch {
		case err == nil:
			k.rank = i
			k.material[b.ID()] = b
			return b, s, nil
		case !errors.Is(err, ErrNoBundle):
			return nil, s, err
		case i == k.rank:
			return nil, s, fmt.Errorf("%s has gone: restore it, or restart to fall back to the next source: %w", s.Name(), err)
		}
	}
	return nil, k.cfg.Sources[len(k.cfg.Sources)-1], fmt.Errorf("no source of a CA exists: %w", ErrNoBundle)
}

// reportSource says once when a source turns bad and once when it is good again.
func (k *Keeper) reportSource(s Source, err error) {
	text := ""
	if err != nil {
		text = err.Error()
		k.badLoad.Inc()
	}
	k.mu.Lock()
	before := k.progress.Problem
	k.progress.Problem, k.progress.Source = text, s.Name()
	k.mu.Unlock()
	switch text {
	case before:
	case "":
		k.bad.Set(0)
		k.log.Info("source of the CA is good again", zap.String("source", s.Name()))
	default:
		k.bad.Set(1)
		k.log.Error("source of the CA is bad; the authority keeps what it has", zap.String("source", s.Name()), zap.Error(err))
		k.event(s, "BadCABundle", text)
	}
}

func (k *Keeper) event(s Source, reason, message string) {
	if k.cfg.Events != nil {
		k.cfg.Events(s.Object(), reason, message)
	}
}

// step loads the record, makes the transitions that are due, saves them and
// takes them over. It fails with errStale if another replica was faster.
func (k *Keeper) step(ctx context.Context, offered *Bundle, source Source) error {
	rec, err := k.store.load(ctx)
	if err != nil {
		return err
	}
	for id, b := range rec.bundles {
		if k.material[id] == nil {
			k.material[id] = b
		}
	}
	wanted, err := k.wanted(ctx, rec.state, offered, source)
	if err != nil {
		return err
	}
	own := k.ownReport(rec.state)
	reports := liveReports(rec.reports, k.now(), k.reportTTL())
	reports[k.cfg.Replica] = own
	in := RotationInputs{Now: k.now(), CurrentUsable: k.usable(rec.state)}
	if wanted != nil {
		issuer := issuerOf(wanted)
		in.Offered = &issuer
	}
	in.Share, in.Adopted = combine(reports, rec.state.generation(), in.Now, k.reportTTL())
	next, did := rec.state.Step(k.cfg.Rotation, in)
	if next.Current.ID == "" {
		return nil // nothing is offered, nothing is known
	}
	if err := k.saveIfChanged(ctx, rec, next, reports, offered); err != nil {
		return err
	}
	for _, what := range did {
		k.log.Info("CA rotation: " + what)
	}
	return k.apply(rec, next, in.Share, reports)
}

// wanted is the bundle that is to sign in the end. A source that renews itself
// holds the current one until the switch and is then told of the next.
func (k *Keeper) wanted(ctx context.Context, st RotationState, offered *Bundle, source Source) (*Bundle, error) {
	self, ok := source.(renewingSource)
	if !ok || offered == nil || st.Current.ID == "" {
		return offered, nil
	}
	switch {
	case offered.ID() == st.Previous && st.Current.Origin == source.Name():
		current := k.material[st.Current.ID]
		if current == nil {
			return nil, fmt.Errorf("the key of issuer %s is in no source: restore %s", short(st.Current.ID), RotationSecret)
		}
		return current, self.commit(ctx, current, st.Previous)
	case offered.ID() != st.Current.ID:
		return offered, nil
	case st.Next != nil && st.Next.Origin == source.Name() && k.material[st.Next.ID] != nil:
		return k.material[st.Next.ID], nil
	}
	next, err := self.renew(offered, k.now())
	if err != nil || next == nil {
		return offered, err
	}
	k.material[next.ID()] = next
	return next, nil
}

// orphanGrace is how long we wait for another replica to hand over the key of
// the current issuer, which the source does not hold any more.
const orphanGrace = 15 * time.Second

// usable reports whether the current issuer can sign, or may yet.
func (k *Keeper) usable(st RotationState) bool {
	if st.Current.ID == "" || k.material[st.Current.ID] != nil {
		k.lost = time.Time{}
		return true
	}
	if k.lost.IsZero() {
		k.lost = k.now()
		k.log.Warn("the source holds another issuer than the one that signs; waiting for a replica that has its key",
			zap.String("issuer", short(st.Current.ID)), zap.Duration("grace", orphanGrace))
		time.AfterFunc(orphanGrace, k.Poke)
	}
	return k.now().Before(k.lost.Add(orphanGrace))
}

// reportTTL is how long a replica is believed to live after its last report.
func (k *Keeper) reportTTL() time.Duration { return max(10*time.Minute, 10*k.cfg.Interval) }

func (k *Keeper) ownReport(st RotationState) ReplicaReport {
	r := ReplicaReport{Generation: k.applied, At: k.now().UTC().Truncate(time.Second)}
	if st.Next != nil && !st.Distributed.IsZero() && k.cfg.Share != nil && !k.now().Before(k.started.Add(k.cfg.Warmup)) {
		// The moment is another replica's, whose clock may be behind ours.
		r.Share = k.cfg.Share(st.Next.Anchor, st.Distributed.Add(backdate))
	}
	return r
}

func liveReports(in map[string]ReplicaReport, now time.Time, ttl time.Duration) map[string]ReplicaReport {
	out := map[string]ReplicaReport{}
	for name, r := range in {
		if now.Sub(r.At) <= ttl {
			out[name] = r
		}
	}
	return out
}

// saveIfChanged writes the record if the state is new, or if a rotation is
// under way and our report is.
func (k *Keeper) saveIfChanged(ctx context.Context, rec *rotationRecord, next RotationState, reports map[string]ReplicaReport, offered *Bundle) error {
	out := &rotationRecord{state: next, secret: rec.secret, sequence: rec.sequence}
	had, isNew := rec.reports[k.cfg.Replica], !equalJSON(rec.state, next)
	own := reports[k.cfg.Replica]
	if next.Phase() == PhaseIdle {
		reports = nil
	}
	out.reports = reports
	out.bundles = k.keysToKeep(rec, next, offered)
	reported := reports == nil || (had.Generation == own.Generation && had.Share == own.Share && own.At.Sub(had.At) < k.reportTTL()/3)
	if !isNew && reported && sameKeys(rec.bundles, out.bundles) {
		return nil
	}
	var err error
	if out.roots, err = k.rootsOf(rec, next); err != nil {
		return err
	}
	return k.store.save(ctx, out)
}

// keysToKeep are the bundles whose keys the source does not hold: of the issuer
// that signs still, or of the one that will. While the source says nothing the
// record keeps what it has.
func (k *Keeper) keysToKeep(rec *rotationRecord, st RotationState, offered *Bundle) map[string]*Bundle {
	out := map[string]*Bundle{}
	for _, id := range st.issuers() {
		b := k.material[id]
		if b == nil || (offered != nil && offered.ID() == id) || (offered == nil && rec.bundles[id] == nil) {
			continue
		}
		out[id] = b
	}
	return out
}

func sameKeys(a, b map[string]*Bundle) bool {
	return maps.EqualFunc(a, b, func(x, y *Bundle) bool { return x.ID() == y.ID() })
}

// issuers are the IDs of the issuers that sign now or will.
func (s RotationState) issuers() []string {
	ids := []string{s.Current.ID}
	if s.Next != nil {
		ids = append(ids, s.Next.ID)
	}
	return ids
}

// rootsOf finds the certificates of all roots that a state names.
func (k *Keeper) rootsOf(rec *rotationRecord, st RotationState) (map[string]*x509.Certificate, error) {
	known := map[string]*x509.Certificate{}
	for _, b := range k.material {
		for _, c := range b.Roots {
			known[fingerprint(c)] = c
		}
	}
	out := map[string]*x509.Certificate{}
	for _, fp := range st.trusted() {
		if out[fp] = rec.roots[fp]; out[fp] == nil {
			out[fp] = known[fp]
		}
		if out[fp] == nil {
			return nil, fmt.Errorf("root %s of the rotation record is nowhere: restore %s", short(fp), RotationSecret)
		}
	}
	return out, nil
}

// apply hands the state to the authority and only then says so: whoever reads
// the progress may rely on the authority being as far.
func (k *Keeper) apply(rec *rotationRecord, st RotationState, share Share, reports map[string]ReplicaReport) error {
	if err := k.install(rec, st); err != nil {
		return err
	}
	k.note(func(p *Progress) {
		p.RotationState, p.Error, p.Share, p.Replicas = st, "", share, reports
	})
	return nil
}

// install hands the state to the authority if it differs from what it has.
func (k *Keeper) install(rec *rotationRecord, st RotationState) error {
	signer := k.material[st.Current.ID]
	if signer == nil {
		return nil // waiting for its key
	}
	if gen := st.generation(); gen != k.applied || signer.Digest() != k.digest {
		roots, err := k.rootsOf(rec, st)
		if err != nil {
			return err
		}
		var trust []*x509.Certificate
		for _, fp := range st.trusted() {
			trust = append(trust, roots[fp])
		}
		if err := k.cfg.Authority.install(signer, trust); err != nil {
			return err
		}
		k.applied, k.digest = gen, signer.Digest()
		k.log.Info("authority takes over issuing material", zap.String("issuer", short(st.Current.ID)),
			zap.String("source", signer.Origin), zap.Int("roots", len(trust)), zap.Time("expires", signer.NotAfter()))
		if st.Phase() != PhaseIdle {
			k.Poke() // to report it
		}
	}
	for id := range k.material {
		if !slices.Contains(st.issuers(), id) {
			delete(k.material, id)
		}
	}
	return nil
}

// alarm complains beforehand when the issuer nears its end: once a day in its
// last tenth, once an hour in its last day.
func (k *Keeper) alarm(s Source) {
	st := k.cfg.Authority.state.Load()
	if st == nil {
		return
	}
	now := k.now()
	left, life := st.notAfter.Sub(now), st.notAfter.Sub(st.signer.NotBefore())
	every := 24 * time.Hour
	if left < 24*time.Hour {
		every = time.Hour
	}
	if left > life/10 || now.Before(k.alarmed.Add(every)) {
		return
	}
	k.alarmed = now
	text := fmt.Sprintf("the issuing chain from %s ends at %s: replace it before, afterwards no certificate is issued",
		st.signer.Origin, st.notAfter.UTC().Format(time.RFC3339))
	k.log.Error("CA is about to expire", zap.String("detail", text), zap.Duration("left", left))
	k.event(s, "CAExpires", text)
}
