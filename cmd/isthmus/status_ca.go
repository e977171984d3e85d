package main

import (
	"fmt"
	"time"

	"github.com/isthmus-mesh/isthmus/ca"
)

// certificates lists the issuers and roots of the CA, and tells of a rotation:
// its phase, how many proxies hold the new root, what it waits for.
func (r report) certificates() *table {
	t := head("certificate", "id", "ends", "from")
	p := r.o.CA
	if p == nil {
		return t
	}
	add := func(role, id string, end time.Time, from string) { t.add(role, shortID(id), r.ends(end), from) }
	if p.Current.ID != "" {
		add("issuer", p.Current.ID, p.Current.NotAfter, p.Current.Origin)
	} else {
		add("issuer", "none yet", time.Time{}, p.Source)
	}
	if p.Next != nil {
		add("next issuer", p.Next.ID, p.Next.NotAfter, p.Next.Origin)
	}
	for _, old := range p.Retiring {
		end := old.IssuerEnd
		if !old.Until.IsZero() && old.Until.Before(end) {
			end = old.Until
		}
		add("old root, still trusted", old.Root, end, "")
	}
	if p.Phase != ca.PhaseIdle {
		t.note(rotationText(p))
	}
	for _, problem := range []string{p.Problem, p.Error} {
		if problem != "" {
			t.note(oneLine(problem))
		}
	}
	return t
}

// rotationText tells of a rotation in one line.
func rotationText(p *ca.Progress) string {
	text := "rotation of the root: " + string(p.Phase)
	if p.Phase == ca.PhaseDistributing && p.Share.Known {
		text += fmt.Sprintf(", %d of %d proxies hold the new root (%.0f %% must)", p.Share.Held, p.Share.Total, 100*p.Threshold)
	}
	if p.Waits != "" {
		text += "; waits: " + oneLine(p.Waits)
	}
	return text
}

// ends says when something ends and how long that is from when the overview was
// made.
func (r report) ends(t time.Time) string {
	switch left := t.Sub(r.o.At); {
	case t.IsZero():
		return ""
	case left < 0:
		return "ended " + age(-left) + " ago"
	default:
		return "in " + age(left)
	}
}

// shortID is enough of a fingerprint to tell certificates apart.
func shortID(id string) string { return id[:min(len(id), 12)] }
