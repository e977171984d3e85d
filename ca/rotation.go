package ca

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// A root is replaced in two phases so that no handshake between two proxies
// ever fails, whichever certificates they hold:
//
//  1. Distribute: the old issuer goes on signing, everybody is handed both roots.
//  2. Switch, once those who hold only the old root are few enough or their
//     certificates have ended: the new issuer signs, both roots stay trusted.
//
// and, when nothing signed by the old issuer can be alive any more, retire: the
// old root is no longer handed out. This file holds the decision alone, without
// I/O and clocks; the Keeper drives it.

// Issuer is what the rotation knows of issuing material.
type Issuer struct {
	// ID of the issuing certificate and its anchor.
	ID     string `json:"id"`
	Anchor string `json:"anchor"`
	// Roots are the fingerprints of the roots that come with it, Under those of
	// them that have its anchor.
	Roots []string `json:"roots"`
	Under []string `json:"under"`
	// NotBefore and NotAfter bound the whole chain.
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
	// Origin says where it came from.
	Origin string `json:"origin"`
}

// issuerOf describes a bundle.
func issuerOf(b *Bundle) Issuer {
	i := Issuer{ID: b.ID(), Anchor: anchorOf(b.Anchor), NotBefore: b.NotBefore().UTC(), NotAfter: b.NotAfter().UTC(), Origin: b.Origin}
	for _, r := range b.Roots {
		i.Roots = append(i.Roots, fingerprint(r))
		if anchorOf(r) == i.Anchor {
			i.Under = append(i.Under, fingerprint(r))
		}
	}
	return i
}

// Retiring is a root that no issuer of ours is under any more, still trusted
// because certificates under it may live.
type Retiring struct {
	// Root is the fingerprint, Anchor the anchor of the root.
	Root   string `json:"root"`
	Anchor string `json:"anchor"`
	// Since is when the last issuer under it was replaced.
	Since time.Time `json:"since"`
	// IssuerEnd is when that issuer ends, and all it signed with it.
	IssuerEnd time.Time `json:"issuerEnd"`
	// Until is when the root goes; zero until every replica signs with the new
	// issuer, because only then the last certificate under it is issued.
	Until time.Time `json:"until,omitzero"`
}

// RotationState is where a rotation stands. It is the same for all replicas.
type RotationState struct {
	// Current signs.
	Current Issuer `json:"current"`
	// Previous is the ID of the issuer that Current replaced, Switched when.
	Previous string    `json:"previous,omitempty"`
	Switched time.Time `json:"switched,omitzero"`
	// Next will sign; nil when no rotation is under way.
	Next *Issuer `json:"next,omitempty"`
	// Since is when Next was first seen.
	Since time.Time `json:"since,omitzero"`
	// Distributed is from when on every replica hands out Next's roots; zero
	// until then.
	Distributed time.Time `json:"distributed,omitzero"`
	// Retiring roots, oldest first.
	Retiring []Retiring `json:"retiring,omitempty"`
}

// Phase is a word for where a rotation stands.
type Phase string

// Phases of a rotation.
const (
	PhaseIdle         Phase = "idle"
	PhaseDistributing Phase = "distributing"
	PhaseRetiring     Phase = "retiring"
)

// Phase names the state.
func (s RotationState) Phase() Phase {
	switch {
	case s.Next != nil:
		return PhaseDistributing
	case len(s.Retiring) > 0:
		return PhaseRetiring
	}
	return PhaseIdle
}

// RotationSettings are the operator's choices. Zero values mean the defaults.
type RotationSettings struct {
	// Threshold is the share of proxies that must hold the new root before its
	// issuer signs, in (0, 1]. Default 1.
	Threshold float64
	// MinDistribution is how long both roots are distributed at least: mounted
	// ConfigMaps and proxies that just restart need it. Default 10 min.
	MinDistribution time.Duration
	// Immediate switches at once and drops the old root at once, at the price
	// of failing handshakes: for a key that was stolen.
	Immediate bool
	// MaxLifetime of workload certificates, as the authority has it.
	MaxLifetime time.Duration
	// DefaultLifetime likewise: the switch comes at least so long before the old
	// issuer ends.
	DefaultLifetime time.Duration
	// Margin is added to lifetimes for clocks that differ. Default 1 h.
	Margin time.Duration
}

func (s RotationSettings) withDefaults() RotationSettings {
	if s.Threshold <= 0 || s.Threshold > 1 {
		s.Threshold = 1
	}
	s.MinDistribution = positiveOr(s.MinDistribution, 10*time.Minute)
	s.MaxLifetime = positiveOr(s.MaxLifetime, defaultMaxLife)
	s.DefaultLifetime = positiveOr(s.DefaultLifetime, defaultLifetime)
	s.Margin = positiveOr(s.Margin, time.Hour)
	return s
}

func positiveOr(d, def time.Duration) time.Duration {
	if d <= 0 {
		return def
	}
	return d
}

// RotationInputs are what the decision depends on beside the state.
type RotationInputs struct {
	Now time.Time
	// Offered is what the source wants to sign with, nil if it cannot say now.
	Offered *Issuer
	// CurrentUsable is false if the key of the current issuer is lost.
	CurrentUsable bool
	// Share of the proxies that hold Next's root, over all replicas.
	Share Share
	// Adopted: every live replica has taken over the state as it is.
	Adopted bool
}

// Step makes the transitions that are due and says in words which.
func (s RotationState) Step(set RotationSettings, in RotationInputs) (RotationState, []string) {
	set = set.withDefaults()
	s.Retiring = slices.Clone(s.Retiring)
	before := s.generation()
	did := s.takeOffer(set, in)
	if s.generation() != before {
		// Nobody can have taken over what is decided only now.
		in.Adopted, in.Share = false, Share{}
	}
	if s.Next != nil {
		did = append(did, s.advance(set, in)...)
	}
	if s.generation() != before {
		in.Adopted = false
	}
	return s, append(did, s.retire(set, in)...)
}

// offerSettle is how long an offer to go back to what was is ignored: a replica
// whose mounted files are a little behind makes one without meaning it.
const offerSettle = 3 * time.Minute

// takeOffer compares what the source offers with what we have.
func (s *RotationState) takeOffer(set RotationSettings, in RotationInputs) []string {
	o := in.Offered
	switch {
	case o == nil:
		return nil
	case s.Current.ID == "":
		s.Current = *o
		return []string{fmt.Sprintf("issuer %s from %s signs", short(o.ID), o.Origin)}
	case o.ID == s.Previous && in.CurrentUsable && in.Now.Before(s.Switched.Add(offerSettle)):
		return nil
	case o.ID == s.Current.ID && s.Next == nil:
		s.Current = *o // its roots may have changed
		return nil
	case o.ID == s.Current.ID && in.Now.Before(s.Since.Add(offerSettle)):
		return nil
	case o.ID == s.Current.ID:
		s.Current = *o
		next := s.Next.ID
		s.dropNext()
		return []string{fmt.Sprintf("rotation to issuer %s cancelled: the source offers the current issuer again", short(next))}
	case o.Anchor == s.Current.Anchor:
		s.dropNext()
		s.Current, s.Previous, s.Switched = *o, s.Current.ID, in.Now
		return []string{fmt.Sprintf("issuer %s from %s signs, under the same root", short(o.ID), o.Origin)}
	case s.Next != nil && s.Next.ID == o.ID:
		if !slices.Equal(s.Next.Roots, o.Roots) {
			s.Distributed = time.Time{}
		}
		next := *o
		s.Next = &next
		return nil
	}
	next := *o
	s.Next, s.Since, s.Distributed = &next, in.Now, time.Time{}
	if set.Immediate {
		return nil
	}
	return []string{fmt.Sprintf("root of issuer %s from %s is being distributed beside the current one", short(o.ID), o.Origin)}
}

func (s *RotationState) dropNext() { s.Next, s.Since, s.Distributed = nil, time.Time{}, time.Time{} }

// advance switches the signer when it is time.
func (s *RotationState) advance(set RotationSettings, in RotationInputs) []string {
	if in.Now.Before(s.Next.NotBefore) || !in.Now.Before(s.Next.NotAfter) {
		return nil // nothing it signs would be valid
	}
	if s.Distributed.IsZero() && in.Adopted {
		s.Distributed = in.Now
	}
	why := s.dueTo(set, in)
	if why == "" {
		return nil
	}
	old := s.Current
	s.Current, s.Previous, s.Switched = *s.Next, old.ID, in.Now
	s.dropNext()
	if !set.Immediate {
		s.addRetiring(old, in.Now)
	}
	return []string{fmt.Sprintf("issuer %s signs in place of %s: %s", short(s.Current.ID), short(old.ID), why)}
}

// dueTo says why the signer may be switched now, "" if it may not.
func (s *RotationState) dueTo(set RotationSettings, in RotationInputs) string {
	switch {
	case set.Immediate:
		return "immediate rotation is set"
	case !in.CurrentUsable:
		return "the key of the current issuer is lost"
	case !in.Now.Before(s.Current.NotAfter.Add(-set.DefaultLifetime)):
		return "the current issuer is about to expire"
	case s.Distributed.IsZero():
		return ""
	}
	passed := in.Now.Sub(s.Distributed)
	switch {
	case passed >= set.MaxLifetime+set.Margin:
		return "every certificate from before has ended"
	case passed >= set.MinDistribution && in.Share.sufficient(set.Threshold):
		return fmt.Sprintf("%d of %d proxies hold its root", in.Share.Held, in.Share.Total)
	}
	return ""
}

func (s Share) sufficient(threshold float64) bool {
	return s.Known && float64(s.Held) >= threshold*float64(s.Total)
}

// addRetiring keeps the root of an issuer that signs no more. Other roots that
// came with it are gone if they do not come with the new one: the operator's
// will.
func (s *RotationState) addRetiring(old Issuer, now time.Time) {
	s.Retiring = slices.DeleteFunc(s.Retiring, func(r Retiring) bool { return r.Anchor == old.Anchor })
	for _, root := range old.Under {
		s.Retiring = append(s.Retiring, Retiring{Root: root, Anchor: old.Anchor, Since: now, IssuerEnd: old.NotAfter})
	}
}

// retire sets the end of retiring roots and drops those that have reached it.
func (s *RotationState) retire(set RotationSettings, in RotationInputs) []string {
	var did []string
	s.Retiring = slices.DeleteFunc(s.Retiring, func(r Retiring) bool {
		end := r.IssuerEnd
		if !r.Until.IsZero() {
			end = earlier(end, r.Until)
		}
		if in.Now.Before(end) {
			return false
		}
		did = append(did, fmt.Sprintf("root %s is retired", short(r.Root)))
		return true
	})
	for i := range s.Retiring {
		if r := &s.Retiring[i]; r.Until.IsZero() && in.Adopted {
			r.Until = in.Now.Add(set.MaxLifetime + set.Margin)
		}
	}
	return did
}

// trusted lists the fingerprints of all roots to hand out, the current issuer's
// first.
func (s RotationState) trusted() []string {
	out := slices.Clone(s.Current.Roots)
	if s.Next != nil {
		out = append(out, s.Next.Roots...)
	}
	for _, r := range s.Retiring {
		out = append(out, r.Root)
	}
	seen := map[string]bool{}
	return slices.DeleteFunc(out, func(fp string) bool {
		dup := seen[fp]
		seen[fp] = true
		return dup
	})
}

// generation changes with everything that a replica has to take over.
func (s RotationState) generation() string {
	roots := s.trusted()
	slices.Sort(roots)
	return s.Current.ID + "|" + fmt.Sprint(roots)
}

// ReplicaReport is what one replica says of itself during a rotation.
type ReplicaReport struct {
	// Generation of the state that it has taken over.
	Generation string `json:"generation"`
	// Share of its own proxies.
	Share Share     `json:"share"`
	At    time.Time `json:"at"`
}

// combine unites the reports of all replicas younger than ttl: what of the
// proxies hold Next's root, and whether every replica has taken over the state.
// No report at all says nothing.
func combine(reports map[string]ReplicaReport, generation string, now time.Time, ttl time.Duration) (all Share, adopted bool) {
	all.Known = true
	live := 0
	for _, name := range slices.Sorted(maps.Keys(reports)) {
		r := reports[name]
		if now.Sub(r.At) > ttl {
			continue
		}
		live++
		if r.Generation != generation {
			return Share{}, false // and its share is of another root
		}
		all.Known = all.Known && r.Share.Known
		all.Held += r.Share.Held
		all.Total += r.Share.Total
	}
	if live == 0 {
		return Share{}, false
	}
	return all, true
}

func short(id string) string {
	if len(id) > 12 {
		return id[:12]
	}
	return id
}
