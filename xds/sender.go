package xds

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
)

// maxUnanswered is how many bytes a stream may have in flight for a worker to
// send on it. gRPC makes Send wait only when 64 KB of the stream are not on the
// wire yet; what the proxy has answered is on the wire. Nonces cannot be
// guessed, so a proxy cannot claim to have read what it has not, and a worker
// never waits. What does not fit now is sent when the proxy answers, by the
// stream's own goroutine.
const maxUnanswered = 48 << 10

// flush sends what is pending. It is called by the stream's own goroutine, and
// may wait for the proxy to read.
func (s *stream) flush() {
	for {
		s.sending.Lock()
		s.again.Store(false)
		s.sendPending(true)
		s.sending.Unlock()
		if !s.again.Load() {
			return
		}
	}
}

// poke sends what is pending if that can be done at once. It is called by workers.
func (s *stream) poke() {
	s.again.Store(true)
	for s.again.Load() && s.sending.TryLock() {
		s.again.Store(false)
		s.sendPending(false)
		s.sending.Unlock()
	}
}

// job is one response to be made.
type job struct {
	kind     *kind
	group    *group
	dirty    dirtySet
	initial  map[string]string
	rejected map[string]uint64
	since    time.Time

	// The result.
	data    mem.BufferSlice
	sent    []*Resource // what is in it
	removed []string
	updated []string // upstreams that the proxy had before
	whole   bool     // everything selected
	version uint64
	// withheld: of something it is not known yet what the proxy may have.
	withheld bool
}

// sendPending sends one response of each type that has something pending and
// none in flight. s.sending is held.
func (s *stream) sendPending(mayWait bool) {
	clustersHeld := false
	for _, k := range s.srv.kinds.list {
		j, state := s.next(k, mayWait, clustersHeld)
		switch state {
		case nextFull:
			return
		case nextHeld:
			clustersHeld = clustersHeld || k == s.srv.kinds.cds
			continue
		case nextIdle:
			continue
		}
		if !s.make(&j) {
			continue
		}
		if err := s.send(&j); err != nil {
			return // the stream is over; its own goroutine learns that from Recv
		}
	}
}

type nextState uint8

const (
	nextIdle nextState = iota
	nextHeld           // waits for the proxy's answer
	nextFull           // nothing may be sent without waiting
	nextReady
)

// next takes what is pending of a type off the stream, if it may be sent now.
func (s *stream) next(k *kind, mayWait, clustersHeld bool) (j job, state nextState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := &s.types[k.index]
	switch {
	case t.group == nil || t.dirty.empty():
		return j, nextIdle
	case t.sub.waiting:
		return j, nextHeld
	case clustersHeld && s.srv.kinds.refersToClusters(k):
		// Routes to an upstream come after the upstream.
		return j, nextHeld
	case !mayWait && s.inFlight >= maxUnanswered:
		return j, nextFull
	}
	j = job{kind: k, group: t.group, dirty: t.dirty, initial: t.initial, rejected: t.rejected, since: t.since}
	t.dirty, t.initial, t.since = dirtySet{}, nil, time.Time{}
	return j, nextReady
}

// make assembles a response. It reports false if there is nothing to say. What is
// withheld is an answer when it comes.
func (s *stream) make(j *job) bool {
	if j.dirty.all {
		release, err := s.srv.admit(s.tr.Context())
		if err != nil {
			return false
		}
		defer release()
	}
	facets := *j.group.facets.Load()
	j.data = append(j.data, j.kind.heads[b2i(s.delta)])
	switch {
	case j.dirty.all:
		s.makeAll(j, facets)
	case !s.delta && j.kind.legacy:
		if !j.dirty.answer && !s.worthTelling(j, facets) {
			return false
		}
		s.makeAll(j, facets)
		for n := range j.dirty.each {
			j.updated = append(j.updated, n)
		}
	default:
		s.makeNames(j, facets)
	}
	return len(j.data) > 1 || len(j.removed) > 0 || j.dirty.answer && !j.withheld || s.whole(j)
}

// whole reports whether the response has to be sent even though it is empty:
// it replaces all that the proxy has.
func (s *stream) whole(j *job) bool { return !s.delta && j.kind.legacy }

// makeAll puts everything selected into the response, except what a
// reconnecting proxy already has.
func (s *stream) makeAll(j *job, facets []*facet) {
	n := 2
	for _, f := range facets {
		n += len(f.entries)
	}
	j.data, j.sent = slices.Grow(j.data, n), slices.Grow(j.sent, n-2)
	j.whole = true
	asked := j.group.key.sel.names
	for _, f := range facets {
		for _, e := range f.entries {
			r := s.resource(j, e)
			had, known := j.initial[e.name]
			switch {
			case r == nil:
				// Not known: nothing is said about it.
			case r == absent:
				if s.delta && (known || asked.Has(e.name) || j.dirty.has(e.name)) {
					s.gone(j, e.name)
				}
			case known && had == r.Version && !j.dirty.has(e.name):
				// The proxy has it.
			default:
				s.put(j, r)
				if known {
					j.updated = append(j.updated, e.name)
				}
			}
		}
	}
	if s.delta && j.group.key.sel.all {
		for n := range j.initial {
			if findIn(facets, n) == nil {
				s.gone(j, n)
			}
		}
		for n := range j.dirty.each {
			if _, known := j.initial[n]; !known && findIn(facets, n) == nil {
				s.gone(j, n)
			}
		}
	}
	slices.Sort(j.removed)
}

// makeNames puts the marked names into the response.
func (s *stream) makeNames(j *job, facets []*facet) {
	for n, explicit := range j.dirty.each {
		e := findIn(facets, n)
		if e == nil {
			if s.delta && j.group.key.sel.all {
				s.gone(j, n)
			}
			continue // no longer wanted
		}
		switch r := s.resource(j, e); {
		case r == nil:
		case r == absent:
			if s.delta {
				s.gone(j, n)
			}
		case !explicit && j.refused(r):
		default:
			s.put(j, r)
			if !explicit {
				j.updated = append(j.updated, n)
			}
		}
	}
	slices.Sort(j.removed)
}

// worthTelling reports whether any marked name is news to the proxy.
func (s *stream) worthTelling(j *job, facets []*facet) bool {
	for n := range j.dirty.each {
		e := findIn(facets, n)
		if e == nil {
			return true
		}
		if r := s.resource(j, e); r != nil && !j.refused(r) {
			return true
		}
	}
	return false
}

// refused reports whether the proxy rejected exactly this content.
func (j *job) refused(r *Resource) bool {
	h, ok := j.rejected[r.Name]
	return ok && r.exists() && h == r.hash
}

func (s *stream) put(j *job, r *Resource) {
	if s.delta {
		j.data = append(j.data, r.deltaRecord)
	} else {
		j.data = append(j.data, r.sotwRecord)
	}
	j.sent = append(j.sent, r)
	j.version += r.hash
}

func (s *stream) gone(j *job, name string) {
	j.removed = append(j.removed, name)
	j.version += ^xxhash.Sum64String(name)
}

// send hands a response over to the transport. s.sending is held.
func (s *stream) send(j *job) error {
	nonce := newNonce()
	size := tailSize
	for _, n := range j.removed {
		size += sizeBytes(len(n))
	}
	tail := appendTail(make([]byte, 0, size), j.removed, j.version, nonce)
	s.resp.data = append(j.data, mem.SliceBuffer(tail))
	s.resp.size = s.resp.data.Len()

	begin := s.srv.cfg.Clock()
	f := flight{sent: j.sent, removed: j.removed, whole: j.whole, bytes: s.resp.size, since: j.since}
	s.mu.Lock()
	t := &s.types[j.kind.index]
	t.sub.respond(nonce)
	t.flight = f
	t.sentAt, t.sentVersion = begin, j.version
	s.inFlight += f.bytes
	if j.kind == s.srv.kinds.cds {
		s.warm(j)
	}
	s.mu.Unlock()

	s.sendingSince.Store(begin.UnixNano())
	err := s.tr.Send(&s.resp)
	s.sendingSince.Store(0)
	s.resp = response{}
	j.kind.pushes.Inc()
	j.kind.sizes.Observe(float64(f.bytes))
	s.srv.metrics.pushTime.Observe(s.srv.cfg.Clock().Sub(begin).Seconds())
	return err
}

// warm marks the assignments of upstreams that changed: an Envoy that takes a
// changed upstream in waits for its endpoints, and does not ask for them if it
// had them before. s.mu is held.
func (s *stream) warm(j *job) {
	eds := s.srv.kinds.eds
	if eds == nil {
		return
	}
	t := &s.types[eds.index]
	for _, n := range j.updated {
		if t.group == nil {
			// Reconnecting: the subscription follows, and says that it has them.
			if j.initial == nil {
				return
			}
		} else if t.group.find(n) == nil {
			continue
		}
		t.dirty.add(n, false)
	}
}

// newNonce returns a nonce that nobody can guess.
func newNonce() uint64 {
	for {
		if n := rand.Uint64(); n != 0 {
			return n
		}
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// queue hands streams to the workers.
type queue struct {
	mu   sync.Mutex
	list []*stream
	wake chan struct{}
}

func newQueue(workers int) *queue { return &queue{wake: make(chan struct{}, workers)} }

// push adds streams that are not in the queue.
func (q *queue) push(streams []*stream) {
	if len(streams) == 0 {
		return
	}
	q.mu.Lock()
	q.list = append(q.list, streams...)
	q.mu.Unlock()
	for range min(cap(q.wake), len(streams)) {
		select {
		case q.wake <- struct{}{}:
		default:
			return
		}
	}
}

func (q *queue) pop() *stream {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.list) == 0 {
		return nil
	}
	s := q.list[0]
	q.list[0] = nil
	if q.list = q.list[1:]; len(q.list) == 0 {
		q.list = nil
	}
	return s
}

// work pokes queued streams until the context ends.
func (srv *Server) work(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-srv.queue.wake:
		}
		for ctx.Err() == nil {
			s := srv.queue.pop()
			if s == nil {
				break
			}
			s.queued.Store(false)
			srv.pokeSafely(s)
		}
	}
}

func (srv *Server) pokeSafely(s *stream) {
	defer func() {
		if p := recover(); p != nil {
			srv.panicked("send to proxy "+s.id, p)
			s.abort(codes.Internal, "internal error")
		}
	}()
	s.poke()
}
