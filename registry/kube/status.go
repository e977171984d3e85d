package kube

import (
	"strings"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Status is how the reading of a cluster goes.
type Status struct {
	Cluster mesh.ClusterID
	// SyncedAt is when everything had been read and was reported, zero before.
	SyncedAt time.Time
	// Reachable: the API server answers, be it with an error.
	Reachable bool
	// LastEvent is when an object or a bookmark was last read, LastContact when
	// the server last answered anything.
	LastEvent, LastContact time.Time
	// Error says why the server is not reachable, "" if it is.
	Error string
	// Kinds are ordered as they are read.
	Kinds []KindStatus
}

// KindStatus is how the reading of one kind goes.
type KindStatus struct {
	// Kind is the resource, with its group unless it is built in: "pods",
	// "gateways.networking.istio.io".
	Kind string
	// Synced: it has been read completely once, or the server does not have it
	// and need not (Absent).
	Synced, Absent bool
	// Connected: it is being watched.
	Connected bool
	// Refused: the server does not give it (403, or 404 for what it must have).
	Refused bool
	Objects int
	// LastEvent is when an object, a bookmark or a list was last read; LastList
	// when it was last read as a whole.
	LastEvent, LastList time.Time
	// Error is why it cannot be read at the moment, "" if it can.
	Error string
}

// Staleness is how long what was read may have been out of date: the longest
// time since the last sign of life of a kind that was read once and cannot be
// read now. 0 means up to date.
func (s Status) Staleness(now time.Time) time.Duration {
	var out time.Duration
	for _, k := range s.Kinds {
		if k.Synced && !k.Absent && k.Error != "" {
			out = max(out, now.Sub(k.LastEvent))
		}
	}
	return out
}

// statusBoard collects the status from all readers.
type statusBoard struct {
	mu          sync.Mutex
	kinds       []*kindState
	syncedAt    time.Time
	answered    bool // the newest answer was one, not a failure to get one
	lastContact time.Time
	failure     string
	last        string // what changed last compared
}

// kindState is the state of one kind; the board's mutex guards it.
type kindState struct {
	KindStatus
	// essential kinds cannot be done without: a cluster without its Services or
	// slices would look empty, and unknown is not empty.
	essential bool
	// refusedSince is when the server first refused it, zero if it does not.
	refusedSince time.Time
}

func (b *statusBoard) add(kind string, essential bool) *kindState {
	k := &kindState{KindStatus: KindStatus{Kind: kind}, essential: essential}
	b.kinds = append(b.kinds, k)
	return k
}

// settled reports whether everything that can be had has been read. If not,
// wait is when to look again, 0 if only when something happens.
func (b *statusBoard) settled(now time.Time, timeout time.Duration) (wait time.Duration, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	ok = true
	for _, k := range b.kinds {
		switch {
		case k.Synced:
			continue
		case k.essential || k.refusedSince.IsZero():
		default:
			left := k.refusedSince.Add(timeout).Sub(now)
			if left <= 0 {
				continue
			}
			if wait == 0 || left < wait {
				wait = left
			}
		}
		ok = false
	}
	return wait, ok
}

// read reports whether a kind was read once.
func (b *statusBoard) read(kind string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, k := range b.kinds {
		if k.Kind == kind {
			return k.Synced
		}
	}
	return false
}

func (b *statusBoard) synced(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.syncedAt = now
}

func (b *statusBoard) snapshot() Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := Status{SyncedAt: b.syncedAt, Reachable: b.answered, LastContact: b.lastContact, Kinds: make([]KindStatus, len(b.kinds))}
	for i, k := range b.kinds {
		s.Kinds[i] = k.KindStatus
		s.Reachable = s.Reachable || k.Connected
		if k.LastEvent.After(s.LastEvent) {
			s.LastEvent = k.LastEvent
		}
	}
	if !s.Reachable {
		s.Error = b.failure
	}
	return s
}

// changed returns the status if anything but times and counts is new since the
// last call.
func (b *statusBoard) changed() (Status, bool) {
	s := b.snapshot()
	var sig strings.Builder
	sig.WriteString(s.SyncedAt.String())
	sig.WriteString(s.Error)
	for _, k := range s.Kinds {
		for _, x := range []bool{s.Reachable, k.Synced, k.Absent, k.Connected, k.Refused} {
			if x {
				sig.WriteByte('1')
			} else {
				sig.WriteByte('0')
			}
		}
		sig.WriteString(k.Error)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if sig.String() == b.last {
		return s, false
	}
	b.last = sig.String()
	return s, true
}
