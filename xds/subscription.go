package xds

import (
	"cmp"
	"slices"
)

// wildcard is the name that stands for everything of a type.
const wildcard = "*"

// selection is what a proxy is subscribed to of one type. It is comparable.
type selection struct {
	all   bool // everything there is
	names *NameSet
}

func (s selection) empty() bool { return !s.all && s.names.Len() == 0 }

// subscription is the protocol state of one type on one stream: which names
// the proxy wants and where the exchange of responses stands. It decides what
// a request means; it knows nothing of resources, sockets or time. Both
// protocols are framings of it: they differ in how a request names what it wants.
type subscription struct {
	delta bool
	// legacy: a first request without names means everything (CDS and LDS).
	legacy bool

	started bool
	// named: the proxy has named something, so naming nothing means nothing from now on.
	named bool
	sel   selection
	// sent is the nonce of the last response, acked that of the last accepted one; 0 for none.
	sent, acked uint64
	// waiting: the response sent last is neither accepted nor rejected yet.
	waiting bool
	// rejected is why the proxy refused the response with nonce sent, "" if it did not.
	rejected string
}

// verdict is what a request says about the last response.
type verdict uint8

const (
	verdictNone  verdict = iota
	verdictStale         // about a response that is not the last: ignored
	verdictACK
	verdictNACK
)

// outcome is what a request means.
type outcome struct {
	verdict verdict
	// from and to are the selections before and after the request.
	from, to selection
	// first: the stream's first request for the type; everything selected is owed.
	first bool
	// again are names that were subscribed to before and are owed nevertheless,
	// because the proxy asks for them once more.
	again []string
	// restart: everything selected is owed again.
	restart bool
}

func (o *outcome) changed() bool { return o.from != o.to }

// handle takes a request in and changes the state accordingly.
func (s *subscription) handle(r *request) outcome {
	if s.sel.names == nil {
		s.sel.names = emptySet
	}
	out := outcome{from: s.sel}
	if s.delta {
		s.handleDelta(r, &out)
	} else {
		s.handleSotW(r, &out)
	}
	out.to = s.sel
	return out
}

// handleSotW: a request names all that the proxy wants. One that answers a
// response other than the last is void as a whole; the proxy will repeat its
// names when it answers the last.
func (s *subscription) handleSotW(r *request, out *outcome) {
	switch {
	case !s.started:
		// A nonce here is from an earlier stream and means nothing.
		out.first, s.started = true, true
	case r.nonce == "":
		out.restart = !r.failed
	default:
		if out.verdict = s.judge(r); out.verdict == verdictStale {
			return
		}
	}
	if r.sameNames {
		return
	}
	s.named = s.named || r.names.Len() > 0
	switch {
	case r.names.Len() == 0:
		// Without names: everything if that is all the proxy ever said, else nothing.
		s.sel = selection{all: s.legacy && !s.named, names: emptySet}
	case r.names.Has(wildcard):
		s.sel = selection{all: true, names: r.sets.edit(r.names, nil, []string{wildcard})}
	default:
		s.sel = selection{names: r.names}
	}
}

// handleDelta: a request names what changes. Changes count whatever the nonce
// says, for they are not repeated.
func (s *subscription) handleDelta(r *request, out *outcome) {
	if !s.started {
		out.first, s.started = true, true
		s.sel.all = s.legacy && r.names.Len() == 0 && len(r.unsubscribe) == 0
	} else if r.nonce != "" {
		out.verdict = s.judge(r)
	}
	if r.names.Len() == 0 && len(r.unsubscribe) == 0 {
		return
	}
	add := r.names
	if add.Has(wildcard) {
		out.restart = !out.first && s.sel.all
		s.sel.all = true
		add = r.sets.edit(add, nil, []string{wildcard})
	}
	if !out.first && s.sel.names.Len() > 0 {
		for _, n := range add.Names() {
			if s.sel.names.Has(n) {
				out.again = append(out.again, n)
			}
		}
	}
	if s.sel.names.Len() == 0 && len(r.unsubscribe) == 0 {
		s.sel.names = add
		return
	}
	if slices.Contains(r.unsubscribe, wildcard) {
		s.sel.all = false
	}
	had := s.sel.names
	s.sel.names = r.sets.edit(had, add.Names(), r.unsubscribe)
	if s.sel.all {
		// A name given up that the wildcard still covers: tell how it stands.
		for _, n := range r.unsubscribe {
			if had.Has(n) && !s.sel.names.Has(n) {
				out.again = append(out.again, n)
			}
		}
	}
}

// judge reads what a request says about the last response.
func (s *subscription) judge(r *request) verdict {
	nonce, ok := parseHex16(r.nonce)
	if !ok || s.sent == 0 || nonce != s.sent {
		return verdictStale
	}
	if !s.waiting {
		// Said before; what counts in this request are its names.
		return verdictNone
	}
	s.waiting = false
	if r.failed {
		s.rejected = cmp.Or(r.message, "no reason given")
		return verdictNACK
	}
	s.rejected, s.acked = "", nonce
	return verdictACK
}

// respond notes that a response with the nonce is on its way.
func (s *subscription) respond(nonce uint64) {
	s.sent, s.waiting = nonce, true
}
