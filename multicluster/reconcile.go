package multicluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// reconcile brings what runs in line with the kubeconfigs as they are now. It
// looks at everything, so it does not matter which events came, in which order
// or whether some were missed. It returns when it has to be called again.
func (m *Manager) reconcile(ctx context.Context, now time.Time) time.Time {
	l := &m.loop
	m.takeSnapshot()
	if l.nextLook.IsZero() || !now.Before(l.nextLook) {
		l.nextLook = now.Add(lookInterval)
	}
	next := l.nextLook
	if l.listed {
		d := decide(m.claims(), append([]mesh.ClusterID{m.cfg.Primary}, m.cfg.Aliases...)...)
		m.announce(d.refusals)
		m.weigh(d.owners) // before anything of a cluster is served
		next = earlier(next, m.converge(ctx, d.owners, now))
		m.forgetWeights(d.owners) // after its endpoints are gone: a drained cluster leaves drained
		next = earlier(next, m.expire(now))
		m.checkReady(now)
	}
	m.look(now)
	m.publish()
	return next
}

// takeSnapshot takes the newest set of kubeconfigs and counts what changed.
func (m *Manager) takeSnapshot() {
	l := &m.loop
	m.mu.Lock()
	s, fail := m.pending, m.feedFail
	m.pending = nil
	m.mu.Unlock()
	if fail != l.feedFail {
		l.feedFail = fail
		if fail != "" {
			m.log.Error("cannot read the kubeconfigs of remote clusters; what is known of them stays", zap.String("error", fail))
		}
	}
	if s == nil {
		return
	}
	before := make(map[string]string, len(l.objects))
	for _, o := range l.objects {
		before[o.origin.String()] = o.version
	}
	for _, o := range s.objects {
		switch old, had := before[o.origin.String()]; {
		case !had:
			m.metrics.secretEvents.WithLabelValues("add").Inc()
		case old != o.version:
			m.metrics.secretEvents.WithLabelValues("update").Inc()
		}
		delete(before, o.origin.String())
	}
	m.metrics.secretEvents.WithLabelValues("delete").Add(float64(len(before)))
	l.objects, l.listed = s.objects, true
}

// claims reads all kubeconfigs, each content once, and forgets contents that
// nobody offers and nothing may be restarted with.
func (m *Manager) claims() []claim {
	l := &m.loop
	keep := map[string]parsed{}
	for _, r := range l.remotes {
		if p, ok := l.parsed[r.target.content]; ok {
			keep[r.target.content] = p
		}
	}
	var out []claim
	for _, o := range l.objects {
		for _, e := range o.entries {
			c := claim{id: e.id, origin: o.origin, content: e.content, problem: e.problem, weight: o.weight}
			c.origin.Key = e.key
			if c.problem == "" {
				p, ok := l.parsed[e.content]
				if !ok {
					p.cfg, p.err = Sanitize(e.raw, m.cfg.Options)
				}
				keep[e.content] = p
				if p.err != nil {
					c.problem = p.err.Error()
				}
			}
			out = append(out, c)
		}
	}
	l.parsed = keep
	return out
}

// announce logs every refusal once, with an Event at the Secret.
func (m *Manager) announce(refusals []Refusal) {
	l := &m.loop
	seen := make(map[Refusal]struct{}, len(refusals))
	for _, r := range refusals {
		seen[r] = struct{}{}
		if _, known := l.refused[r]; known {
			continue
		}
		m.log.Warn("kubeconfig refused", zap.String("cluster", string(r.ID)), zap.String("origin", r.Origin.String()),
			zap.String("reason", r.Reason), zap.String("message", r.Message))
		m.warn(r.Origin, r.Reason, r.Message)
	}
	l.refused, l.refusals = seen, refusals
}

// warn writes an Event about a Secret.
func (m *Manager) warn(o Origin, reason, message string) {
	if m.cfg.Events == nil || o.Namespace == "" {
		return
	}
	m.cfg.Events.Event(&corev1.ObjectReference{
		APIVersion: "v1", Kind: "Secret", Namespace: o.Namespace, Name: o.Name, UID: types.UID(o.UID),
	}, corev1.EventTypeWarning, reason, message)
}

// converge plans and carries the plan out.
func (m *Manager) converge(ctx context.Context, owners map[mesh.ClusterID]claim, now time.Time) time.Time {
	l := &m.loop
	running := make(map[mesh.ClusterID]clusterState, len(l.remotes))
	for id, r := range l.remotes {
		m.accountExits(r, now)
		running[id] = r.state()
	}
	for id, owner := range owners {
		r := l.remotes[id]
		if r == nil {
			r = &remote{id: id, since: now, healthSince: now}
			l.remotes[id] = r
		}
		r.owner = owner
		if owner.problem == "" {
			r.target = owner
		}
	}
	actions, next := plan(owners, running, now)
	var skip mesh.ClusterID
	for _, a := range actions {
		if a.id == skip {
			continue
		}
		if !m.act(ctx, a, now) {
			skip = a.id // it reported in this moment, and has poked the loop
		}
	}
	if l.awaited == nil && !m.HasSynced() { // the first listing
		l.awaited = make(map[mesh.ClusterID]struct{}, len(owners))
		for id := range owners {
			l.awaited[id] = struct{}{}
		}
		if m.cfg.Timeout > 0 {
			l.awaitedUntil = now.Add(m.cfg.Timeout)
		}
	}
	for _, r := range l.remotes {
		if r.candidate == nil && r.retryAt.After(now) { // a start that failed has its own due time
			next = earlier(next, r.retryAt)
		}
		if r.candidate == nil && r.serving != nil && r.serving.content == r.target.content && r.serving.exit.Load() == nil {
			r.attempt = attempt{} // a rotation that was taken back
		}
	}
	return next
}

// accountExits deals once with every instance that ended by itself.
func (m *Manager) accountExits(r *remote, now time.Time) {
	for _, i := range []*instance{r.serving, r.candidate} {
		if i == nil || i.accounted {
			continue
		}
		e := i.exit.Load()
		if e == nil {
			continue
		}
		i.accounted = true
		if e.at.Sub(i.started) >= m.cfg.Backoff.Max {
			r.failures = 0
		}
		m.failed(r, i.content, e.err, now)
	}
}

// failed records that a kubeconfig's source ended or did not start.
func (m *Manager) failed(r *remote, content string, err error, now time.Time) {
	if r.failed != content {
		r.failures = 0
	}
	r.failures++
	delay := m.cfg.Backoff.delay(r.failures)
	r.failed, r.retryAt = content, now.Add(delay)
	r.lastError, r.lastErrorAt = bounded(err.Error()), now
	m.log.Warn("source of cluster failed; what is known of the cluster stays", zap.String("cluster", string(r.id)),
		zap.String("origin", r.target.origin.describe()), zap.Duration("retryIn", delay), zap.Error(err))
}

// act carries one action out; false if the moment for it has passed.
func (m *Manager) act(ctx context.Context, a action, now time.Time) bool {
	l := &m.loop
	r := l.remotes[a.id]
	log := m.log.With(zap.String("cluster", string(a.id)), zap.Uint64("generation", a.generation))
	switch a.verb {
	case verbDrop:
		// The candidate goes first: only the sink that owns the cluster removes it,
		// and whichever that is, it is removed once.
		for _, i := range []*instance{r.candidate, r.serving} {
			if i != nil {
				i.stop(registry.Drop)
			}
		}
		delete(l.remotes, a.id)
		m.metrics.timeouts.DeleteLabelValues(string(a.id))
		if m.cfg.Left != nil {
			m.cfg.Left(a.id)
		}
		log.Info("cluster left")
	case verbPromote:
		old := r.serving
		r.serving, r.candidate, r.attempt = r.candidate, nil, attempt{}
		if old != nil {
			old.stop(registry.Keep)
		}
		log.Info("cluster synced", zap.String("origin", r.serving.origin.describe()), zap.String("server", r.serving.server))
	case verbAbandon:
		if !r.candidate.abandon() {
			return false
		}
		r.candidate = nil
	case verbStart:
		if r.attempt.content != a.claim.content {
			r.attempt = attempt{content: a.claim.content, since: now}
		}
		if err := m.start(ctx, r, a.claim, now); err != nil {
			m.failed(r, a.claim.content, err, now)
		}
	}
	return true
}

// start starts a candidate.
func (m *Manager) start(ctx context.Context, r *remote, c claim, now time.Time) error {
	l := &m.loop
	p, ok := l.parsed[c.content]
	if !ok || p.cfg == nil {
		return errors.New("start source: its kubeconfig is gone")
	}
	cfg := rest.CopyConfig(p.cfg)
	conns := newConnections(cfg.Dial)
	cfg.Dial = conns.dialContext
	client, err := m.cfg.NewClient(cfg)
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	source, err := m.cfg.NewSource(r.id, rest.CopyConfig(cfg))
	if err != nil {
		return fmt.Errorf("make source: %w", err)
	}
	l.generation++
	i := &instance{
		generation: l.generation, content: c.content, origin: c.origin, server: serverHost(cfg.Host),
		client: client, source: source, conns: conns, started: now,
		gate: &gate{sink: m.cfg.NewSink(r.id), now: m.now, notify: m.wake},
	}
	r.candidate = i
	m.log.Info("reading cluster", zap.String("cluster", string(r.id)), zap.Uint64("generation", i.generation),
		zap.String("origin", c.origin.describe()), zap.String("server", i.server))
	l.running.Add(1)
	i.start(ctx, m.now, func() {
		l.running.Done()
		m.wake()
	})
	return nil
}

// expire marks attempts that took longer than the timeout; they go on.
func (m *Manager) expire(now time.Time) (next time.Time) {
	if m.cfg.Timeout < 0 {
		return time.Time{}
	}
	for _, r := range m.loop.remotes {
		if r.attempt.since.IsZero() || r.attempt.timedOut {
			continue
		}
		if due := r.attempt.since.Add(m.cfg.Timeout); now.Before(due) {
			next = earlier(next, due)
			continue
		}
		r.attempt.timedOut = true
		m.metrics.timeouts.WithLabelValues(string(r.id)).Inc()
		m.log.Warn("cluster has not synced in time; trying on", zap.String("cluster", string(r.id)),
			zap.Duration("timeout", m.cfg.Timeout), zap.String("origin", r.target.origin.describe()), zap.String("error", m.why(r)))
	}
	if len(m.loop.awaited) > 0 && now.Before(m.loop.awaitedUntil) {
		next = earlier(next, m.loop.awaitedUntil)
	}
	return next
}

// why is the newest error of an attempt, for the log.
func (m *Manager) why(r *remote) string {
	if r.candidate != nil {
		if s := r.candidate.report(); s != nil {
			if errs := s.errors(); len(errs) > 0 {
				return strings.Join(errs, "; ")
			}
		}
	}
	return r.lastError
}

// checkReady closes Ready when no cluster of the first listing is waited for.
func (m *Manager) checkReady(now time.Time) {
	l := &m.loop
	if m.HasSynced() {
		return
	}
	late := !l.awaitedUntil.IsZero() && !now.Before(l.awaitedUntil)
	maps.DeleteFunc(l.awaited, func(id mesh.ClusterID, _ struct{}) bool {
		r := l.remotes[id]
		return late || r == nil || r.serving != nil || r.target.content == "" || r.attempt.timedOut
	})
	if len(l.awaited) == 0 {
		close(m.ready)
	}
}

// look evaluates the health of all clusters and logs what became different.
func (m *Manager) look(now time.Time) {
	for _, r := range m.loop.remotes {
		s := r.view().status(now, false)
		if s.Health == r.health {
			continue
		}
		if level := m.log.Info; r.health != "" {
			if s.Health == HealthDegraded || s.Health == HealthUnreachable {
				level = m.log.Warn
			}
			level("health of cluster changed", zap.String("cluster", string(r.id)), zap.String("from", string(r.health)),
				zap.String("to", string(s.Health)), zap.String("reason", s.Reason))
		}
		r.health, r.healthSince = s.Health, now
	}
}

// publish makes the loop's state visible to readers.
func (m *Manager) publish() {
	l := &m.loop
	v := &view{listed: l.listed, closed: l.closed, feedFail: l.feedFail, refusals: slices.Clone(l.refusals)}
	for _, r := range l.remotes {
		v.remotes = append(v.remotes, r.view())
	}
	slices.SortFunc(v.remotes, func(a, b *remoteView) int { return cmp.Compare(a.id, b.id) })
	m.view.Store(v)
}
