package deploy

import (
	"time"

	"github.com/isthmus-mesh/isthmus/registry/gatewayapi"
)

// history is what a term knows of a Gateway's objects.
type history struct {
	written map[string]*written // by key of the kind
	told    map[string]bool     // what users were told, until it is different
}

// written is what was applied last: what it said, and how the object was then.
type written struct {
	said, seen string
	next       time.Time
	wait       time.Duration
}

// due reports whether an object may be applied now. What is new may at once; what
// is put back again and again waits longer every time. in is how long to wait.
func (w *written) due(said string, now time.Time) (ok bool, in time.Duration) {
	switch {
	case w.said != said || now.Sub(w.next) > calm:
		w.wait = retryMin
	case now.Before(w.next):
		return false, w.next.Sub(now)
	default:
		w.wait = min(2*w.wait, retryMax)
	}
	w.said, w.seen, w.next = said, "", now.Add(w.wait)
	return true, 0
}

func (t *term) history(n gatewayapi.Name) *history {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.records[n]
	if r == nil {
		r = &history{written: map[string]*written{}, told: map[string]bool{}}
		t.records[n] = r
	}
	return r
}

// drop forgets what was written for a Gateway that is not ours to care for, of
// which nothing is known.
func (t *term) drop(n gatewayapi.Name) {
	t.mu.Lock()
	delete(t.records, n)
	t.mu.Unlock()
	t.say(n, gatewayapi.Infrastructure{})
}

// say notes what is known of a Gateway's routers, and tells if it is new.
func (t *term) say(n gatewayapi.Name, i gatewayapi.Infrastructure) {
	if t.c.know(n, i) {
		t.changed()
	}
}
