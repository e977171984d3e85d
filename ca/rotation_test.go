package ca

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// issuerNamed is an issuer that lives long, with a root of its own.
func issuerNamed(name string, alsoTrusts ...string) Issuer {
	start := newClock().Now()
	return Issuer{
		ID: "issuer-" + name, Anchor: "root-" + name, Origin: "test",
		Roots: append([]string{"root-" + name}, alsoTrusts...), Under: []string{"root-" + name},
		NotBefore: start.Add(-time.Hour), NotAfter: start.Add(10000 * time.Hour),
	}
}

func testSettings() RotationSettings {
	return RotationSettings{
		MinDistribution: 10 * time.Minute, MaxLifetime: time.Hour, DefaultLifetime: 30 * time.Minute, Margin: 5 * time.Minute,
	}
}

// The world of the property test: replicas that lag behind the shared record,
// and proxies that get certificates from any of them.
type world struct {
	now      time.Time
	set      RotationSettings
	rec      RotationState
	reports  map[string]ReplicaReport
	offered  Issuer
	replicas []*modelReplica
	proxies  []*modelProxy
	names    int
}

type modelReplica struct {
	name    string
	applied RotationState
	stepped time.Time
	holders map[int]*modelProxy // by proxy, what this replica issued
}

type modelProxy struct {
	id      int
	replica int // that its stream is connected to
	anchor  string
	trust   []string
	from    time.Time
	until   time.Time
}

const modelTTL = 10 * time.Minute

// step is Keeper.step for one replica.
func (w *world) step(i int) {
	r := w.replicas[i]
	r.stepped = w.now
	own := ReplicaReport{Generation: r.applied.generation(), At: w.now}
	if w.rec.Next != nil && !w.rec.Distributed.IsZero() {
		own.Share = w.share(i, w.rec.Next.Anchor, w.rec.Distributed)
	}
	w.reports[r.name] = own
	in := RotationInputs{Now: w.now, Offered: &w.offered, CurrentUsable: true}
	in.Share, in.Adopted = combine(w.reports, w.rec.generation(), w.now, modelTTL)
	w.rec, _ = w.rec.Step(w.set, in)
	r.applied = w.rec
}

// share is Holders.Share of one replica.
func (w *world) share(i int, anchor string, since time.Time) Share {
	s := Share{Known: true}
	count := func(p *modelProxy, known bool) {
		s.Total++
		if known && slices.Contains(p.trust, anchor) && !p.from.Before(since) {
			s.Held++
		}
	}
	for id, issued := range w.replicas[i].holders {
		if !w.now.Before(issued.until) {
			delete(w.replicas[i].holders, id)
			continue
		}
		count(issued, true)
	}
	for _, p := range w.proxies {
		if _, known := w.replicas[i].holders[p.id]; p.replica == i && !known {
			count(p, false)
		}
	}
	return s
}

// issue gives a proxy a certificate and the roots of a replica, as it is now.
func (w *world) issue(p *modelProxy, i int, life time.Duration) {
	st := w.replicas[i].applied
	p.anchor, p.trust, p.from, p.until = st.Current.Anchor, st.trusted(), w.now, w.now.Add(life)
	issued := *p
	w.replicas[i].holders[p.id] = &issued
}

func (w *world) advance(d time.Duration) {
	for end := w.now.Add(d); w.now.Before(end); {
		w.now = w.now.Add(min(end.Sub(w.now), time.Minute))
		w.proxies = slices.DeleteFunc(w.proxies, func(p *modelProxy) bool { return !w.now.Before(p.until) })
		for i, r := range w.replicas {
			if w.now.Sub(r.stepped) >= modelTTL-time.Minute { // a replica that lives looks that often at least
				w.step(i)
			}
		}
	}
}

// broken names two proxies of which one refuses the other.
func (w *world) broken() string {
	for _, client := range w.proxies {
		for _, server := range w.proxies {
			if !slices.Contains(server.trust, client.anchor) {
				return fmt.Sprintf("proxy %d trusts %v and refuses proxy %d of %s", server.id, server.trust, client.id, client.anchor)
			}
		}
	}
	return ""
}

func newWorld(t *rapid.T) *world {
	w := &world{now: newClock().Now(), set: testSettings(), reports: map[string]ReplicaReport{}, offered: issuerNamed("0")}
	w.set.MinDistribution = time.Minute // shorter than replicas lag
	for i := range rapid.IntRange(1, 3).Draw(t, "replicas") {
		w.replicas = append(w.replicas, &modelReplica{name: fmt.Sprint(i), holders: map[int]*modelProxy{}})
		w.step(i)
	}
	return w
}

// Row 30: whatever happens in whatever order, no two proxies ever refuse one
// another: renewals by any replica, replicas that lag or restart, offers of new
// issuers and of old ones in the middle of a rotation. And in the end every
// rotation comes to an end.
func TestRow30NoHandshakeEverFails(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		lives := rapid.Custom(func(t *rapid.T) time.Duration {
			return time.Duration(rapid.IntRange(1, 60).Draw(t, "minutes")) * time.Minute
		})
		replica := rapid.IntRange(0, len(w.replicas)-1)
		var issuers []Issuer
		for range 150 {
			switch rapid.IntRange(0, 11).Draw(t, "op") {
			case 0, 1, 2:
				w.advance(time.Duration(rapid.IntRange(1, 12).Draw(t, "advance")) * time.Minute)
			case 3, 4:
				if len(w.proxies) < 6 {
					w.names++
					p := &modelProxy{id: w.names, replica: replica.Draw(t, "connect")}
					w.issue(p, replica.Draw(t, "ca"), lives.Draw(t, "life"))
					w.proxies = append(w.proxies, p)
				}
			case 5, 6, 7:
				if len(w.proxies) > 0 {
					p := rapid.SampledFrom(w.proxies).Draw(t, "proxy")
					w.issue(p, replica.Draw(t, "ca"), lives.Draw(t, "life"))
				}
			case 8, 9:
				w.step(replica.Draw(t, "step"))
			case 10:
				r := w.replicas[replica.Draw(t, "restart")]
				r.applied, r.holders = w.rec, map[int]*modelProxy{}
			case 11:
				if len(issuers) > 1 && rapid.Bool().Draw(t, "old") {
					w.offered = rapid.SampledFrom(issuers).Draw(t, "issuer")
				} else {
					w.names++
					w.offered = issuerNamed(fmt.Sprint(w.names))
				}
				issuers = append(issuers, w.offered)
			}
			if b := w.broken(); b != "" {
				t.Fatalf("at %s in phase %s: %s", w.now.Format(time.TimeOnly), w.rec.Phase(), b)
			}
		}
		for range 40 {
			w.advance(10 * time.Minute)
			if b := w.broken(); b != "" {
				t.Fatalf("at the end: %s", b)
			}
		}
		if w.rec.Phase() != PhaseIdle || w.rec.Current.ID != w.offered.ID {
			t.Fatalf("rotation does not end: %s with %s, offered is %s", w.rec.Phase(), w.rec.Current.ID, w.offered.ID)
		}
		if got := w.rec.trusted(); !slices.Equal(got, w.offered.Roots) {
			t.Fatalf("roots in the end: %v", got)
		}
	})
}

// script drives one replica by hand.
type script struct {
	t   *testing.T
	now time.Time
	st  RotationState
	set RotationSettings
}

func (s *script) step(in RotationInputs) string {
	s.t.Helper()
	in.Now = s.now
	var did []string
	s.st, did = s.st.Step(s.set, in)
	return strings.Join(did, "; ")
}

func TestRotationStory(t *testing.T) {
	a, b := issuerNamed("a"), issuerNamed("b")
	s := &script{t: t, now: newClock().Now(), set: testSettings()}
	in := RotationInputs{Offered: &a, CurrentUsable: true}
	require.Contains(t, s.step(in), "issuer-a")
	require.Equal(t, PhaseIdle, s.st.Phase())

	in.Offered = &b
	in.Adopted = true // of the state before
	require.Contains(t, s.step(in), "is being distributed")
	require.Equal(t, PhaseDistributing, s.st.Phase())
	require.True(t, s.st.Distributed.IsZero(), "nobody can have adopted it yet")
	require.Equal(t, []string{"root-a", "root-b"}, s.st.trusted())
	require.Equal(t, "issuer-a", s.st.Current.ID, "the old issuer goes on signing")

	s.now = s.now.Add(time.Minute)
	require.Empty(t, s.step(in))
	require.Equal(t, s.now, s.st.Distributed)
	in.Share = Share{Known: true, Held: 9, Total: 10}
	s.now = s.now.Add(10 * time.Minute)
	require.Empty(t, s.step(in), "nine of ten are not enough")
	in.Share = Share{Held: 10, Total: 10}
	require.Empty(t, s.step(in), "unknown is not enough")
	in.Share.Known = true
	require.Contains(t, s.step(in), "10 of 10 proxies hold its root")
	require.Equal(t, "issuer-b", s.st.Current.ID)
	require.Equal(t, PhaseRetiring, s.st.Phase())
	require.Equal(t, []string{"root-b", "root-a"}, s.st.trusted())
	require.True(t, s.st.Retiring[0].Until.IsZero(), "another replica may still sign with the old one")

	in.Adopted = false
	s.now = s.now.Add(10 * time.Hour)
	require.Empty(t, s.step(in))
	in.Adopted = true
	require.Empty(t, s.step(in))
	s.now = s.now.Add(64 * time.Minute)
	require.Empty(t, s.step(in))
	s.now = s.now.Add(time.Minute)
	require.Contains(t, s.step(in), "root root-a is retired")
	require.Equal(t, PhaseIdle, s.st.Phase())
	require.Equal(t, []string{"root-b"}, s.st.trusted())
}

func TestRotationDecisions(t *testing.T) {
	a, b, c := issuerNamed("a"), issuerNamed("b"), issuerNamed("c")
	renewed := a
	renewed.ID, renewed.Roots, renewed.Under = "issuer-a2", []string{"root-a2"}, []string{"root-a2"}
	distributing := func(t *testing.T) *script {
		s := &script{t: t, now: newClock().Now(), set: testSettings()}
		s.step(RotationInputs{Offered: &a, CurrentUsable: true})
		s.step(RotationInputs{Offered: &b, CurrentUsable: true})
		s.step(RotationInputs{Offered: &b, CurrentUsable: true, Adopted: true})
		require.Equal(t, PhaseDistributing, s.st.Phase())
		return s
	}
	t.Run("an unknown offer changes nothing", func(t *testing.T) {
		s := distributing(t)
		before := s.st
		require.Empty(t, s.step(RotationInputs{CurrentUsable: true}))
		require.Equal(t, before.generation(), s.st.generation())
	})
	t.Run("unknown share waits for the last certificate", func(t *testing.T) {
		s := distributing(t)
		s.now = s.now.Add(64 * time.Minute)
		require.Empty(t, s.step(RotationInputs{Offered: &b, CurrentUsable: true}))
		s.now = s.now.Add(time.Minute)
		require.Contains(t, s.step(RotationInputs{Offered: &b, CurrentUsable: true}), "every certificate from before has ended")
	})
	t.Run("going back is ignored for a while, then cancels", func(t *testing.T) {
		s := distributing(t)
		require.Empty(t, s.step(RotationInputs{Offered: &a, CurrentUsable: true}), "a mount that lags")
		s.now = s.now.Add(offerSettle)
		require.Contains(t, s.step(RotationInputs{Offered: &a, CurrentUsable: true}), "cancelled")
		require.Equal(t, []string{"root-a"}, s.st.trusted())
	})
	t.Run("a third issuer starts over", func(t *testing.T) {
		s := distributing(t)
		s.step(RotationInputs{Offered: &c, CurrentUsable: true, Adopted: true, Share: Share{Known: true}})
		require.Equal(t, "issuer-c", s.st.Next.ID)
		require.True(t, s.st.Distributed.IsZero())
		require.Equal(t, []string{"root-a", "root-c"}, s.st.trusted())
	})
	t.Run("the same root needs no rotation", func(t *testing.T) {
		s := &script{t: t, now: newClock().Now(), set: testSettings()}
		s.step(RotationInputs{Offered: &a, CurrentUsable: true})
		require.Contains(t, s.step(RotationInputs{Offered: &renewed, CurrentUsable: true}), "under the same root")
		require.Equal(t, PhaseIdle, s.st.Phase())
		require.Equal(t, []string{"root-a2"}, s.st.trusted())
	})
	t.Run("a lost key switches at once and keeps the root", func(t *testing.T) {
		s := &script{t: t, now: newClock().Now(), set: testSettings()}
		s.step(RotationInputs{Offered: &a, CurrentUsable: true})
		require.Contains(t, s.step(RotationInputs{Offered: &b}), "key of the current issuer is lost")
		require.Equal(t, []string{"root-b", "root-a"}, s.st.trusted())
	})
	t.Run("an issuer about to expire is replaced in time", func(t *testing.T) {
		s := distributing(t)
		s.now = s.st.Current.NotAfter.Add(-30 * time.Minute)
		s.st.Next.NotAfter = s.now.Add(1000 * time.Hour)
		s.st.Distributed = time.Time{}
		require.Contains(t, s.step(RotationInputs{CurrentUsable: true}), "about to expire")
	})
	t.Run("a next issuer that is not valid never signs", func(t *testing.T) {
		s := distributing(t)
		s.st.Next.NotBefore = s.now.Add(1000 * time.Hour)
		s.now = s.now.Add(500 * time.Hour)
		require.Empty(t, s.step(RotationInputs{Adopted: true, Share: Share{Known: true}}))
		require.Equal(t, "issuer-a", s.st.Current.ID)
	})
	t.Run("immediate drops the old root at once", func(t *testing.T) {
		s := distributing(t)
		s.set.Immediate = true
		require.Contains(t, s.step(RotationInputs{Offered: &b, CurrentUsable: true}), "immediate")
		require.Equal(t, []string{"root-b"}, s.st.trusted())
	})
	t.Run("an extra root that the operator drops is gone", func(t *testing.T) {
		withX := issuerNamed("a", "root-x")
		s := &script{t: t, now: newClock().Now(), set: testSettings()}
		s.step(RotationInputs{Offered: &withX, CurrentUsable: true})
		require.Equal(t, []string{"root-a", "root-x"}, s.st.trusted())
		s.step(RotationInputs{Offered: &a, CurrentUsable: true})
		require.Equal(t, []string{"root-a"}, s.st.trusted())
	})
	t.Run("a retired root comes back", func(t *testing.T) {
		s := distributing(t)
		s.now = s.now.Add(10 * time.Minute)
		all := Share{Known: true, Held: 1, Total: 1}
		s.step(RotationInputs{Offered: &b, CurrentUsable: true, Adopted: true, Share: all})
		require.Equal(t, "issuer-b", s.st.Current.ID)
		s.now = s.now.Add(offerSettle)
		s.step(RotationInputs{Offered: &a, CurrentUsable: true})
		require.Equal(t, "issuer-a", s.st.Next.ID)
		require.Equal(t, []string{"root-b", "root-a"}, s.st.trusted())
	})
}

// Shortly after a switch the source offers the previous issuer again. With the
// current one in order that is a mount that lags, and is ignored for three
// minutes. If the key of the current one is lost it is the way back, and is
// taken at once; both roots stay trusted all the while.
func TestReturnToThePreviousIssuer(t *testing.T) {
	a, b := issuerNamed("a"), issuerNamed("b")
	switched := func(t *testing.T) *script {
		s := &script{t: t, now: newClock().Now(), set: testSettings()}
		s.step(RotationInputs{Offered: &a, CurrentUsable: true})
		s.step(RotationInputs{Offered: &b, CurrentUsable: true})
		s.step(RotationInputs{Offered: &b, CurrentUsable: true, Adopted: true})
		s.now = s.now.Add(10 * time.Minute)
		s.step(RotationInputs{Offered: &b, CurrentUsable: true, Adopted: true, Share: Share{Known: true}})
		require.Equal(t, "issuer-b", s.st.Current.ID)
		require.Equal(t, "issuer-a", s.st.Previous)
		return s
	}
	t.Run("usable", func(t *testing.T) {
		s := switched(t)
		before := s.st.generation()
		s.now = s.now.Add(3*time.Minute - time.Nanosecond)
		require.Empty(t, s.step(RotationInputs{Offered: &a, CurrentUsable: true}))
		require.Equal(t, before, s.st.generation())
		s.now = s.now.Add(time.Nanosecond)
		require.Contains(t, s.step(RotationInputs{Offered: &a, CurrentUsable: true}), "is being distributed")
		require.Equal(t, "issuer-b", s.st.Current.ID, "and then in the usual two phases")
	})
	t.Run("unusable", func(t *testing.T) {
		for _, after := range []time.Duration{0, time.Second, 3*time.Minute - time.Nanosecond, 3 * time.Minute} {
			s := switched(t)
			s.now = s.now.Add(after)
			require.Contains(t, s.step(RotationInputs{Offered: &a}), "the key of the current issuer is lost", after)
			require.Equal(t, "issuer-a", s.st.Current.ID, after)
			require.Equal(t, "issuer-b", s.st.Previous, after)
			require.Nil(t, s.st.Next, after)
			require.ElementsMatch(t, []string{"root-a", "root-b"}, s.st.trusted(), after)
			// No replica thinks better of it while the source says the same.
			require.Empty(t, s.step(RotationInputs{Offered: &a, CurrentUsable: true}), after)
			require.Equal(t, "issuer-a", s.st.Current.ID, after)
		}
	})
	t.Run("unusable, and the source says nothing", func(t *testing.T) {
		s := switched(t)
		require.Empty(t, s.step(RotationInputs{}))
		require.Equal(t, "issuer-b", s.st.Current.ID)
	})
}

func TestCombineReports(t *testing.T) {
	now := newClock().Now()
	ok := func(held, total int) ReplicaReport {
		return ReplicaReport{Generation: "g", At: now, Share: Share{Held: held, Total: total, Known: true}}
	}
	gone := ok(0, 100)
	gone.At = now.Add(-modelTTL - time.Second)
	behind := ok(5, 5)
	behind.Generation = "f"
	blind := ok(0, 0)
	blind.Share.Known = false
	for name, tc := range map[string]struct {
		reports map[string]ReplicaReport
		share   Share
		adopted bool
	}{
		"none":         {nil, Share{}, false},
		"one":          {map[string]ReplicaReport{"a": ok(3, 4)}, Share{3, 4, true}, true},
		"sum":          {map[string]ReplicaReport{"a": ok(3, 4), "b": ok(1, 1)}, Share{4, 5, true}, true},
		"gone":         {map[string]ReplicaReport{"a": ok(3, 4), "b": gone}, Share{3, 4, true}, true},
		"only gone":    {map[string]ReplicaReport{"b": gone}, Share{}, false},
		"one behind":   {map[string]ReplicaReport{"a": ok(3, 4), "b": behind}, Share{}, false},
		"one is blind": {map[string]ReplicaReport{"a": ok(3, 4), "b": blind}, Share{3, 4, false}, true},
	} {
		t.Run(name, func(t *testing.T) {
			share, adopted := combine(tc.reports, "g", now, modelTTL)
			require.Equal(t, tc.share, share)
			require.Equal(t, tc.adopted, adopted)
		})
	}
}
