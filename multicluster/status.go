package multicluster

import (
	"cmp"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// SyncStatus says whether a cluster has been read once, in istiod's words.
type SyncStatus string

// Sync states.
const (
	StatusSynced  SyncStatus = "synced"
	StatusSyncing SyncStatus = "syncing"
	// StatusTimeout: not read within the timeout; it is still being tried.
	StatusTimeout SyncStatus = "timeout"
	// StatusClosed: nothing tries to read it: its kubeconfig is refused, or the
	// manager has ended.
	StatusClosed SyncStatus = "closed"
)

func syncStatuses() []SyncStatus {
	return []SyncStatus{StatusSynced, StatusSyncing, StatusTimeout, StatusClosed}
}

// Health says how a cluster is now.
type Health string

// Health states, from good to bad.
const (
	HealthOK Health = "ok"
	// HealthStarting: it is being read for the first time and nothing went wrong yet.
	HealthStarting Health = "starting"
	// HealthDegraded: what is known of it is served, but something about it does
	// not work: some kinds, a rotation, the newest kubeconfig.
	HealthDegraded Health = "degraded"
	// HealthUnreachable: its API server does not answer.
	HealthUnreachable Health = "unreachable"
	// HealthRefused: its kubeconfig cannot be used and there was none before.
	HealthRefused Health = "refused"
)

// StatusReporter is implemented by sources that can tell how they are. Status
// must return at once and be safe for concurrent use.
type StatusReporter interface{ Status() SourceStatus }

// SourceStatus is how a source sees its cluster.
type SourceStatus struct {
	// Reachable: the API server answers, be it with an error.
	Reachable bool
	// LastEvent is when something was last read.
	LastEvent time.Time
	// LastContact is when the server last answered anything; LastEvent counts if zero.
	LastContact time.Time
	// Error says why the cluster is not reachable, "" if it is.
	Error string
	Kinds []KindStatus
}

// KindStatus is how the reading of one kind of objects goes.
type KindStatus struct {
	Kind string `json:"kind"`
	// Synced: it has been read completely once.
	Synced    bool      `json:"synced"`
	LastEvent time.Time `json:"lastEvent,omitzero"`
	// Error is the newest error if the kind cannot be read at the moment.
	Error string `json:"error,omitempty"`
}

// errors lists what is wrong.
func (s *SourceStatus) errors() []string {
	var out []string
	if s.Error != "" {
		out = append(out, s.Error)
	}
	for _, k := range s.Kinds {
		if k.Error != "" {
			out = append(out, k.Kind+": "+k.Error)
		}
	}
	return out
}

// PrimaryStatus is how the primary is.
type PrimaryStatus struct {
	Synced bool
	// Server is the host of its API server, or its URL.
	Server string
	// Source is nil if its source cannot tell.
	Source *SourceStatus
}

// Status is the state of one cluster.
type Status struct {
	ID      mesh.ClusterID `json:"id"`
	Primary bool           `json:"primary,omitempty"`
	// SecretName is "namespace/name" of the Secret that counts, or the path of the
	// file; "" for the primary. Key is the Secret's data key.
	SecretName string     `json:"secretName"`
	Key        string     `json:"key,omitempty"`
	SyncStatus SyncStatus `json:"syncStatus"`
	Health     Health     `json:"health"`
	// Reason says why Health is not ok.
	Reason string `json:"reason,omitempty"`
	// Since is when Health became what it is.
	Since time.Time `json:"since,omitzero"`
	// Server is the host of the API server that is read.
	Server string `json:"server,omitempty"`
	// Generation numbers the source instance whose data are served, 0 if none.
	// Candidate numbers the one that is to replace it, 0 if none.
	Generation uint64 `json:"generation,omitempty"`
	Candidate  uint64 `json:"candidate,omitempty"`
	// SyncedAt is when the serving instance had read everything.
	SyncedAt  time.Time `json:"syncedAt,omitzero"`
	LastEvent time.Time `json:"lastEvent,omitzero"`
	// LastError is the newest error with which a source of the cluster ended.
	LastError   string    `json:"lastError,omitempty"`
	LastErrorAt time.Time `json:"lastErrorAt,omitzero"`
	// StaleFor is how long what is served may have been out of date, or how long
	// the cluster has been claimed if nothing was ever read. 0 means up to date.
	StaleFor time.Duration `json:"-"`
	Kinds    []KindStatus  `json:"kinds,omitempty"`
	// Weight is nil unless something gives the cluster one.
	Weight *mesh.Weight `json:"weight,omitempty"`
}

// view is what readers see: the state after one turn of the loop. It is
// immutable but for the instances, which tell their own state at any time.
type view struct {
	listed, closed bool
	feedFail       string
	refusals       []Refusal
	remotes        []*remoteView // ordered by id
}

func (v *view) find(id mesh.ClusterID) *remoteView {
	i, ok := slices.BinarySearchFunc(v.remotes, id, func(r *remoteView, id mesh.ClusterID) int { return cmp.Compare(r.id, id) })
	if !ok {
		return nil
	}
	return v.remotes[i]
}

type remoteView struct {
	id                 mesh.ClusterID
	owner, target      claim
	serving, candidate *instance
	attempt            attempt
	since              time.Time
	lastError          string
	lastErrorAt        time.Time
	health             Health
	healthSince        time.Time
}

func (r *remote) view() *remoteView {
	return &remoteView{
		id: r.id, owner: r.owner, target: r.target, serving: r.serving, candidate: r.candidate, attempt: r.attempt,
		since: r.since, lastError: r.lastError, lastErrorAt: r.lastErrorAt, health: r.health, healthSince: r.healthSince,
	}
}

// Clusters returns the state of every cluster: the primary, then the remotes by ID.
func (m *Manager) Clusters() []Status {
	v, now := m.view.Load(), m.now()
	out := make([]Status, 0, len(v.remotes)+1)
	out = append(out, m.primaryStatus(now))
	for _, r := range v.remotes {
		out = append(out, r.status(now, v.closed))
	}
	if m.cfg.WeightOf != nil {
		for i := range out {
			out[i].Weight = m.cfg.WeightOf(out[i].ID).Given()
		}
	}
	return out
}

// Refusals returns every kubeconfig that is not used, ordered by precedence.
func (m *Manager) Refusals() []Refusal { return slices.Clone(m.view.Load().refusals) }

func (m *Manager) primaryStatus(now time.Time) Status {
	s := Status{ID: m.cfg.Primary, Primary: true, SyncStatus: StatusSynced, Health: HealthOK}
	if m.cfg.PrimaryStatus == nil {
		return s
	}
	p := m.cfg.PrimaryStatus()
	s.Server = cmp.Or(serverHost(p.Server), p.Server)
	if !p.Synced {
		s.SyncStatus, s.Health = StatusSyncing, HealthStarting
	}
	if p.Source != nil {
		s.judge(p.Source)
		if p.Synced {
			s.StaleFor = p.Source.staleFor(now, time.Time{})
		}
		s.LastEvent, s.Kinds = p.Source.LastEvent, p.Source.Kinds
	}
	return s
}

// status evaluates one remote.
func (r *remoteView) status(now time.Time, closed bool) Status {
	s := Status{
		ID: r.id, SecretName: r.owner.origin.String(), Key: r.owner.origin.Key, SyncStatus: r.syncStatus(closed),
		Health: HealthOK, LastError: r.lastError, LastErrorAt: r.lastErrorAt,
	}
	if r.serving == nil {
		r.judgeUnsynced(&s, now)
	} else {
		r.judgeServing(&s, now)
	}
	if s.Since = r.healthSince; s.Health != r.health {
		s.Since = now
	}
	return s
}

func (r *remoteView) syncStatus(closed bool) SyncStatus {
	switch {
	case closed:
		return StatusClosed
	case r.serving != nil:
		return StatusSynced
	case r.target.content == "":
		return StatusClosed
	case r.attempt.timedOut:
		return StatusTimeout
	}
	return StatusSyncing
}

// judgeUnsynced fills in what holds for a cluster that was never read.
func (r *remoteView) judgeUnsynced(s *Status, now time.Time) {
	s.StaleFor = now.Sub(r.since)
	if r.target.content == "" {
		s.worse(HealthRefused, r.owner.describeProblem())
		return
	}
	s.worse(HealthStarting, "")
	if r.owner.problem != "" {
		s.worse(HealthDegraded, r.owner.describeProblem()+"; the kubeconfig before it is being tried")
	}
	r.judgeAttempt(s)
}

// judgeServing fills in what holds for a cluster that was read.
func (r *remoteView) judgeServing(s *Status, now time.Time) {
	i := r.serving
	s.Server, s.Generation, s.SyncedAt = i.server, i.generation, i.gate.syncedAt()
	report := i.report()
	if e := i.exit.Load(); e != nil {
		s.worse(HealthDegraded, "its source ended: "+bounded(e.err.Error())+"; it is being restarted")
		s.StaleFor = max(now.Sub(e.at), 0)
	} else if report != nil {
		s.judge(report)
		s.StaleFor = report.staleFor(now, s.SyncedAt)
	}
	if report != nil {
		s.LastEvent, s.Kinds = report.LastEvent, report.Kinds
	}
	if r.owner.problem != "" {
		s.worse(HealthDegraded, r.owner.describeProblem()+"; the kubeconfig before it stays in use")
	}
	if r.attempt.content != "" && r.attempt.content != i.content {
		r.judgeAttempt(s)
	} else if r.candidate != nil {
		s.Candidate = r.candidate.generation
	}
}

// judgeAttempt fills in how it goes with a kubeconfig that has not reported.
func (r *remoteView) judgeAttempt(s *Status) {
	unread, bad := r.serving == nil, HealthDegraded
	prefix := ""
	if !unread {
		prefix = "the new kubeconfig of " + r.target.origin.describe() + " does not work and the one before it stays in use: "
	}
	known := false
	if i := r.candidate; i != nil {
		s.Candidate = i.generation
		if unread {
			s.Server = i.server
		}
		if report := i.report(); report != nil {
			if unread {
				s.LastEvent, s.Kinds = report.LastEvent, report.Kinds
				if !report.Reachable {
					bad = HealthUnreachable
				}
			}
			for _, e := range report.errors() {
				s.worse(bad, prefix+bounded(e))
				prefix, known = "", true
			}
		}
	}
	if !known && r.lastError != "" && !r.lastErrorAt.Before(r.attempt.since) {
		s.worse(bad, prefix+r.lastError)
		known = true
	}
	if r.attempt.timedOut {
		if unread && r.candidate == nil {
			bad = HealthUnreachable
		}
		if known {
			prefix = ""
		}
		s.worse(bad, prefix+"not read within the timeout")
	}
}

// judge fills in what a source says of itself.
func (s *Status) judge(report *SourceStatus) {
	if !report.Reachable {
		s.worse(HealthUnreachable, cmp.Or(bounded(report.Error), "its API server does not answer"))
	}
	for _, k := range report.Kinds {
		switch {
		case k.Error != "":
			s.worse(HealthDegraded, k.Kind+": "+bounded(k.Error))
		case !k.Synced && s.SyncStatus == StatusSynced:
			s.worse(HealthDegraded, k.Kind+": not read yet")
		}
	}
}

// staleFor is how long the source's data may have been out of date. A kind that
// was never read is missing, not stale.
func (s *SourceStatus) staleFor(now, synced time.Time) time.Duration {
	latest := func(ts ...time.Time) time.Duration {
		at := slices.MaxFunc(append(ts, synced), time.Time.Compare)
		if at.IsZero() {
			return 0
		}
		return max(now.Sub(at), 0)
	}
	if !s.Reachable {
		return latest(s.LastContact, s.LastEvent)
	}
	var stale time.Duration
	for _, k := range s.Kinds {
		if k.Error != "" && k.Synced {
			stale = max(stale, latest(k.LastEvent))
		}
	}
	return stale
}

// worse adds a reason; the worst health counts.
func (s *Status) worse(h Health, reason string) {
	order := []Health{HealthOK, HealthStarting, HealthDegraded, HealthUnreachable, HealthRefused}
	if slices.Index(order, h) > slices.Index(order, s.Health) {
		s.Health = h
	}
	switch {
	case reason == "":
	case s.Reason == "":
		s.Reason = reason
	case len(s.Reason) < maxReason:
		s.Reason += "; " + reason
	}
}

func (c claim) describeProblem() string { return c.origin.describe() + ": " + c.problem }

// maxReason bounds what is kept of error messages, in bytes.
const maxReason = 1024

func bounded(s string) string {
	if len(s) > maxReason {
		s = strings.ToValidUTF8(s[:maxReason], "") + "..."
	}
	return s
}

// serverHost is host and port of an API server's URL.
func serverHost(server string) string {
	u, err := url.Parse(server)
	if err != nil {
		return ""
	}
	return u.Host
}
