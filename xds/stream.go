package xds

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// transport is one bidirectional stream as the engine needs it. Send and Abort
// may be called while Recv waits, Abort also while Send does.
type transport interface {
	Context() context.Context
	Recv(*request) error
	Send(*response) error
	// Abort ends the stream with a status; Recv and Send then return.
	Abort(*status.Status)
}

// stream is one connected proxy.
type stream struct {
	// Set once.
	srv       *Server
	tr        transport
	delta     bool
	proxy     *mesh.Proxy
	peer      string
	id        string
	connected time.Time
	// credential is what the proxy was let in by.
	credential Credential

	view *liveView // guarded by graph.mu

	queued atomic.Bool // in the workers' queue
	// sending is held while a response is made and handed over. Workers only try
	// it, and never call Send when it might wait; the stream's own goroutine may.
	sending sync.Mutex
	// sendingSince is when the Send under way began, in ns, 0 if there is none.
	sendingSince atomic.Int64
	again        atomic.Bool // somebody failed to get sending: whoever has it looks again
	resp         response    // guarded by sending

	others others // types that are not shared

	mu       sync.Mutex // guards what follows
	types    []typeState
	inFlight int // bytes sent and not answered
}

// typeState is where a stream stands with one type.
type typeState struct {
	sub   subscription
	group *group // nil: nothing selected; written under graph.mu and stream.mu
	dirty dirtySet
	since time.Time // when the oldest change that is marked and not sent began
	// initial are the versions a proxy said it has when it reconnected, until the
	// first response has taken them into account.
	initial map[string]string
	flight  flight
	// rejected are the contents that the proxy refused, by name.
	rejected map[string]uint64
	// namesHash is of the names in the last request, for recognising them.
	namesHash uint64

	sentVersion, ackedVersion uint64
	sentAt, ackedAt           time.Time
}

// flight is a response that the proxy has not answered yet.
type flight struct {
	sent    []*Resource // what was in it
	removed []string
	whole   bool // it was everything selected
	bytes   int
	since   time.Time
}

// mark notes that the proxy has to be told about a name.
func (s *stream) mark(k *kind, name string, since time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := &s.types[k.index]
	t.dirty.add(name, false)
	if t.since.IsZero() {
		t.since = since
	}
}

// owe marks what a request entitles the proxy to.
func (t *typeState) owe(delta bool, k *kind, out outcome) {
	if t.group == nil {
		t.dirty = dirtySet{}
		return
	}
	switch {
	case out.first:
		// A proxy that brings versions gets what differs, any other an answer.
		t.dirty.all, t.dirty.answer = true, len(t.initial) == 0
	case out.restart, out.to.all && !out.from.all, !delta && !out.to.all && out.from.all:
		t.dirty.all, t.dirty.answer = true, true
	default:
		added := out.to.names.minus(out.from.names)
		for _, n := range added {
			t.dirty.add(n, true)
		}
		for _, n := range out.again {
			t.dirty.add(n, true)
		}
		if len(added) > 0 && !delta && k.legacy {
			t.dirty.answer = true // that it is absent is an answer, too
		}
	}
}

// run serves the stream until the proxy or the server ends it.
func (s *stream) run(first *request) error {
	pace := newPace(s.srv.cfg.Settings.MaxRequestRate, s.srv.cfg.Clock)
	r := first
	for {
		if err := s.receive(r); err != nil {
			return err
		}
		s.flush()
		if err := s.tr.Recv(r); err != nil {
			return err
		}
		if err := pace.wait(s.tr.Context()); err != nil {
			return status.FromContextError(err).Err()
		}
	}
}

// receive takes one request in.
func (s *stream) receive(r *request) error {
	k, ok := s.srv.kinds.byURL[r.typeURL]
	if !ok {
		return s.receiveOther(r)
	}
	s.mu.Lock()
	t := &s.types[k.index]
	out := t.sub.handle(r)
	var nacked []string
	switch out.verdict {
	case verdictACK:
		s.accepted(t)
	case verdictNACK:
		nacked = s.refused(t, r.message)
	case verdictStale:
		k.expired.Inc()
	}
	if !r.sameNames && (out.verdict != verdictStale || s.delta) {
		t.namesHash = r.namesHash
	}
	if out.first {
		t.initial = r.initial
	}
	s.mu.Unlock()
	if out.verdict == verdictNACK {
		s.reportNACK(k, nacked, r.message)
	}
	if out.first || out.restart || out.changed() || len(out.again) > 0 {
		release, err := s.srv.admit(s.tr.Context())
		if err != nil {
			return err
		}
		defer release()
		s.srv.graph.subscribe(s, k, out)
	}
	return nil
}

// known recognises a type and the names last received for it.
func (s *stream) known(typeURL []byte) (hash uint64, url string, ok bool) {
	k, found := s.srv.kinds.byURL[string(typeURL)]
	if !found {
		return 0, "", false
	}
	// Only this goroutine writes these two.
	t := &s.types[k.index]
	return t.namesHash, k.typeURL, t.sub.started
}

// accepted settles the response in flight. s.mu is held.
func (s *stream) accepted(t *typeState) {
	now := s.srv.cfg.Clock()
	if t.flight.whole || len(t.rejected) == 0 {
		t.rejected = nil
	} else {
		t.forgive()
	}
	t.ackedAt, t.ackedVersion = now, t.sentVersion
	if !t.flight.since.IsZero() {
		s.srv.metrics.convergence.Observe(now.Sub(t.flight.since).Seconds())
	}
	s.land(t)
}

// land ends the flight. s.mu is held.
func (s *stream) land(t *typeState) {
	s.inFlight -= t.flight.bytes
	t.flight = flight{}
}

// refused settles the response in flight, and remembers what was refused so
// that it is not sent again. It returns the names that the proxy complains of,
// all that were in the response if it names none. s.mu is held.
func (s *stream) refused(t *typeState, message string) []string {
	bad := make([]*Resource, 0, 1)
	for _, r := range t.flight.sent {
		if mentions(message, r.Name) {
			bad = append(bad, r)
		}
	}
	if len(bad) == 0 {
		bad = t.flight.sent
	}
	if t.rejected == nil {
		t.rejected = map[string]uint64{}
	}
	names := make([]string, len(bad))
	for i, r := range bad {
		names[i] = r.Name
		t.rejected[r.Name] = r.hash
	}
	s.land(t)
	return names
}

// forgive forgets rejections of what the response in flight brought anew.
func (t *typeState) forgive() {
	for _, r := range t.flight.sent {
		delete(t.rejected, r.Name)
	}
	for _, n := range t.flight.removed {
		delete(t.rejected, n)
	}
}

// mentions reports whether an error message names a resource, and not just one
// whose name is longer.
func mentions(message, name string) bool {
	if name == "" {
		return false
	}
	for from := 0; ; {
		i := strings.Index(message[from:], name)
		if i < 0 {
			return false
		}
		start, end := from+i, from+i+len(name)
		if (start == 0 || !inName(message[start-1])) && endsName(message[end:]) {
			return true
		}
		from = start + 1
	}
}

func inName(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '|' || c == '-'
}

func endsName(rest string) bool {
	if rest == "" {
		return true
	}
	if rest[0] == '.' || rest[0] == ':' {
		return len(rest) == 1 || !inName(rest[1])
	}
	return !inName(rest[0])
}

// maxLogged bounds what a proxy can put into a log line.
const (
	maxLoggedNames   = 10
	maxLoggedMessage = 1024
)

func (s *stream) reportNACK(k *kind, names []string, message string) {
	k.rejects.Inc()
	if k.rejectsX != nil {
		k.rejectsX.Inc()
	}
	s.srv.log.Warn("proxy rejected a response; it is not sent again until the resources change",
		zap.String("proxy", s.proxy.ID), zap.String("cluster", string(s.proxy.Cluster)), zap.String("type", k.short),
		zap.Strings("resources", names[:min(len(names), maxLoggedNames)]), zap.Int("count", len(names)),
		zap.String("error", truncate(message, maxLoggedMessage)))
}

func truncate(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "..."
}

// abort ends the stream from outside.
func (s *stream) abort(code codes.Code, why string) { s.tr.Abort(status.New(code, why)) }

// pace slows down a proxy that sends more requests than a proxy has reason to.
type pace struct {
	limit int
	clock func() time.Time
	start time.Time
	count int
}

func newPace(limit int, clock func() time.Time) *pace { return &pace{limit: limit, clock: clock} }

func (p *pace) wait(ctx context.Context) error {
	p.count++
	if p.count < p.limit {
		return nil
	}
	rest := time.Second - p.clock().Sub(p.start)
	p.count = 0
	if rest > 0 && !p.start.IsZero() {
		timer := time.NewTimer(rest)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	p.start = p.clock()
	return nil
}
