package ca

import (
	"sync"
	"time"
)

// maxHolders bounds how many proxies are remembered.
const maxHolders = 1 << 18

// Holders remembers which roots each proxy was given last. A root rotation
// waits for it. It knows only what this replica issued: a proxy that it does
// not know has the new roots or has not, so that it counts as not.
type Holders struct {
	now func() time.Time

	mu sync.Mutex
	by map[string]holding
}

// holding is what one proxy was given when, until its certificate ends.
type holding struct {
	anchors     map[string]bool
	from, until time.Time
}

// NewHolders returns an empty memory; clock may be nil.
func NewHolders(clock func() time.Time) *Holders {
	return &Holders{now: clockOrSystem(clock), by: map[string]holding{}}
}

func (h *Holders) record(key string, cert *Certificate) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, known := h.by[key]; !known && len(h.by) >= maxHolders {
		h.sweep()
		if len(h.by) >= maxHolders {
			return // unknown counts as not holding: the rotation waits longer
		}
	}
	h.by[key] = holding{anchors: cert.anchors, from: h.now(), until: cert.NotAfter}
}

// sweep forgets proxies whose certificate has ended; the caller holds mu.
func (h *Holders) sweep() {
	now := h.now()
	for k, e := range h.by {
		if !now.Before(e.until) {
			delete(h.by, k)
		}
	}
}

// Share counts who was given the root of an anchor since a moment: of all
// proxies whose certificate has not ended, and of those connected now, given by
// their keys ([authn.Caller.Key]).
//
// The moment is that from which on every replica hands the root out: what was
// given before may have been taken back by another replica since. A pod that is
// gone counts until its certificate ends, because one that only lost its way to
// us looks the same from here.
func (h *Holders) Share(connected []string, anchor string, since time.Time) Share {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sweep()
	s := Share{Known: true, Total: len(h.by)}
	for _, e := range h.by {
		if e.anchors[anchor] && !e.from.Before(since) {
			s.Held++
		}
	}
	for _, k := range connected {
		if _, known := h.by[k]; !known {
			s.Total++
		}
	}
	return s
}

// Share is how many proxies hold a root.
type Share struct {
	Held  int `json:"held"`
	Total int `json:"total"`
	// Known is false if nobody can tell.
	Known bool `json:"known"`
}
