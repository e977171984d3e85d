package ca

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A rotation from its beginning to its end says at every moment what it waits
// for.
func TestWaits(t *testing.T) {
	a, b := issuerNamed("a"), issuerNamed("b")
	s := &script{t: t, now: newClock().Now(), set: testSettings()}
	begin := s.now
	says := func(want string, share Share, reports map[string]ReplicaReport) {
		t.Helper()
		require.Equal(t, want, s.st.waits(s.set, s.now, share, reports))
	}
	at := func(d time.Duration) string { return clockText(begin.Add(d)) }
	in := RotationInputs{Offered: &a, CurrentUsable: true}
	s.step(in)
	says("", Share{}, nil)

	in.Offered = &b
	s.step(in)
	old, mine := ReplicaReport{Generation: "of before"}, ReplicaReport{Generation: s.st.generation()}
	says("1 of 2 replicas hand out both roots, all must", Share{}, map[string]ReplicaReport{"x": old, "y": mine})
	in.Adopted = true
	s.step(in)
	says("both roots are handed out until "+at(10*time.Minute)+" at least", Share{}, nil)
	s.now = s.now.Add(10 * time.Minute)
	says("how many proxies hold the new root is not known yet; the signer switches by "+at(65*time.Minute)+" at the latest", Share{Held: 1, Total: 1}, nil)
	s.set.Threshold = 0.9
	says("1 more of 20 proxies must hold the new root; the signer switches by "+at(65*time.Minute)+" at the latest", Share{Held: 17, Total: 20, Known: true}, nil)
	says("the next look of a replica", Share{Held: 18, Total: 20, Known: true}, nil)

	in.Share = Share{Held: 18, Total: 20, Known: true}
	s.step(in)
	require.Equal(t, PhaseRetiring, s.st.Phase())
	says("0 of 1 replicas sign with the new issuer, all must", Share{}, map[string]ReplicaReport{"x": mine})
	in.Adopted = true
	s.step(in)
	says("the last certificate under the old root ends by "+at(75*time.Minute), Share{}, nil)
	s.now = s.now.Add(65 * time.Minute)
	s.step(in)
	says("", Share{}, nil)
}

func TestWaitsForTheNextIssuerItself(t *testing.T) {
	a, b := issuerNamed("a"), issuerNamed("b")
	s := &script{t: t, now: newClock().Now(), set: testSettings()}
	b.NotBefore = s.now.Add(time.Hour)
	b.NotAfter = s.now.Add(2 * time.Hour)
	s.step(RotationInputs{Offered: &a, CurrentUsable: true})
	s.step(RotationInputs{Offered: &b, CurrentUsable: true})
	require.Equal(t, "the next issuer is not valid before "+clockText(b.NotBefore), s.st.waits(s.set, s.now, Share{}, nil))
	s.now = b.NotAfter
	require.Equal(t, "the next issuer ended at "+clockText(b.NotAfter)+": replace it", s.st.waits(s.set, s.now, Share{}, nil))
}
