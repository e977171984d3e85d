package xds

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestSubscription tells what requests mean, as stories. In a step, nonce "ok"
// stands for the last response's, "old" for another one.
func TestSubscription(t *testing.T) {
	type step struct {
		names, drop []string
		nonce       string
		failed      bool
		respond     bool // a response is sent before the request

		verdict        verdict
		first, restart bool
		all            bool
		want           []string
		again          []string
	}
	for name, tt := range map[string]struct {
		delta, legacy bool
		steps         []step
	}{
		"sotw: no name at first means everything": {legacy: true, steps: []step{
			{first: true, all: true},
			{respond: true, nonce: "ok", verdict: verdictACK, all: true},
		}},
		"sotw: no name at first means nothing for other types": {steps: []step{{first: true}}},
		"sotw: once named, no name means nothing": {legacy: true, steps: []step{
			{first: true, all: true},
			{respond: true, nonce: "ok", names: []string{"a"}, verdict: verdictACK, want: []string{"a"}},
			{nonce: "ok", verdict: verdictNone},
		}},
		"sotw: an explicit star and a name": {legacy: true, steps: []step{
			{names: []string{"*", "a"}, first: true, all: true, want: []string{"a"}},
			{respond: true, nonce: "ok", names: []string{"a"}, verdict: verdictACK, want: []string{"a"}},
		}},
		"sotw: a stale request is void, names included": {steps: []step{
			{names: []string{"a"}, first: true, want: []string{"a"}},
			{respond: true, nonce: "old", names: []string{"b"}, verdict: verdictStale, want: []string{"a"}},
			{nonce: "ok", names: []string{"b"}, verdict: verdictACK, want: []string{"b"}},
		}},
		"sotw: rejected, and then another name with the same nonce": {steps: []step{
			{names: []string{"a"}, first: true, want: []string{"a"}},
			{respond: true, nonce: "ok", names: []string{"a"}, failed: true, verdict: verdictNACK, want: []string{"a"}},
			{nonce: "ok", names: []string{"a", "b"}, verdict: verdictNone, want: []string{"a", "b"}},
		}},
		"sotw: a nonce of another stream on the first request": {steps: []step{
			{names: []string{"a"}, nonce: "old", first: true, want: []string{"a"}},
		}},
		"sotw: without a nonce the proxy starts again": {steps: []step{
			{names: []string{"a"}, first: true, want: []string{"a"}},
			{respond: true, names: []string{"a"}, restart: true, want: []string{"a"}},
		}},
		"delta: no name at first means everything, names come on top": {delta: true, legacy: true, steps: []step{
			{first: true, all: true},
			{respond: true, nonce: "ok", verdict: verdictACK, all: true},
			{names: []string{"a"}, all: true, want: []string{"a"}},
			{drop: []string{"a"}, all: true, again: []string{"a"}},
			{drop: []string{"*"}},
		}},
		"delta: names at first mean those": {delta: true, legacy: true, steps: []step{
			{names: []string{"a"}, first: true, want: []string{"a"}},
			{names: []string{"*"}, all: true, want: []string{"a"}},
			{names: []string{"*"}, all: true, want: []string{"a"}, restart: true},
		}},
		"delta: what is asked for again is owed again": {delta: true, steps: []step{
			{names: []string{"a", "b"}, first: true, want: []string{"a", "b"}},
			{names: []string{"b", "c"}, want: []string{"a", "b", "c"}, again: []string{"b"}},
			{drop: []string{"a", "x"}, want: []string{"b", "c"}},
		}},
		"delta: changes count whatever the nonce says": {delta: true, steps: []step{
			{names: []string{"a"}, first: true, want: []string{"a"}},
			{respond: true, nonce: "old", names: []string{"b"}, verdict: verdictStale, want: []string{"a", "b"}},
			{nonce: "ok", failed: true, drop: []string{"a"}, verdict: verdictNACK, want: []string{"b"}},
			{nonce: "ok", verdict: verdictNone, want: []string{"b"}},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			sets := newNameSets()
			s := subscription{delta: tt.delta, legacy: tt.legacy}
			nonce := uint64(41)
			for i, st := range tt.steps {
				if st.respond {
					nonce++
					s.respond(nonce)
				}
				r := &request{delta: tt.delta, sets: sets, names: sets.of(st.names), unsubscribe: st.drop, failed: st.failed}
				switch st.nonce {
				case "ok":
					r.nonce = hex16(nonce)
				case "old":
					r.nonce = hex16(nonce - 1)
				}
				out := s.handle(r)
				require.Equal(t, st.verdict, out.verdict, "step %d", i)
				require.Equal(t, st.first, out.first, "step %d", i)
				require.Equal(t, st.restart, out.restart, "step %d", i)
				require.Equal(t, st.all, out.to.all, "step %d", i)
				require.ElementsMatch(t, st.want, out.to.names.Names(), "step %d", i)
				require.Equal(t, st.again, out.again, "step %d", i)
				require.Equal(t, out.to, s.sel, "step %d", i)
			}
		})
	}
}

func TestNameSetsAreInterned(t *testing.T) {
	sets := newNameSets()
	a, b := sets.of([]string{"x", "y", "x"}), sets.of([]string{"y", "x"})
	require.Same(t, a, b)
	require.Same(t, emptySet, sets.of(nil))
	require.Same(t, a, sets.edit(sets.of([]string{"x", "z"}), []string{"y"}, []string{"z"}))
	require.Equal(t, []string{"y"}, a.minus(sets.of([]string{"a", "x", "z"})))
	require.True(t, a.Has("x"))
	require.False(t, a.Has("w"))
}

func TestMentions(t *testing.T) {
	for message, want := range map[string]bool{
		"Error adding/updating listener(s) 0.0.0.0_80: bad": true,
		"listener 0.0.0.0_80":                               true,
		"listener '0.0.0.0_80'.":                            true,
		"listener 0.0.0.0_8080: bad":                        false,
		"listener 10.0.0.0_80: bad":                         false,
		"":                                                  false,
	} {
		require.Equal(t, want, mentions(message, "0.0.0.0_80"), message)
	}
	require.False(t, mentions("cluster outbound|80||a.b.c rejected", "outbound|80||a.b"))
	require.True(t, mentions("cluster outbound|80||a.b. And more", "outbound|80||a.b"))
	require.False(t, mentions("anything", ""))
}
