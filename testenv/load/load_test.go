package load

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestDelaysAreExact: a change has been heard by the first and by the last
// watching proxy at the moment they heard it or a later one, to the nanosecond;
// proxies that see a gateway instead do not count.
func TestDelaysAreExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFleet(Topology{Services: 10, Endpoints: 2, Namespaces: 1}, "", 4, 0)
		require.Equal(t, []bool{true, false, true, false}, f.watch)
		f.begin(1)
		time.Sleep(3 * time.Millisecond)
		f.heard(0, 1)
		f.heard(1, 1) // not a watcher
		f.heard(0, 1) // again
		require.Equal(t, 1, f.changes[1].heard)
		f.begin(2)
		time.Sleep(4 * time.Millisecond)
		f.heard(2, 2) // and with it the first
		first, last := f.delays(1, 3)
		require.Equal(t, []time.Duration{3 * time.Millisecond}, first)
		require.Equal(t, []time.Duration{7 * time.Millisecond}, last)
		time.Sleep(time.Millisecond)
		f.heard(0, 2)
		first, last = f.delays(1, 3)
		require.Equal(t, []time.Duration{3 * time.Millisecond, 4 * time.Millisecond}, first)
		require.Equal(t, []time.Duration{7 * time.Millisecond, 5 * time.Millisecond}, last)
		require.NoError(t, f.reached(t.Context(), 2))
	})
}

func TestMarkIn(t *testing.T) {
	for text, want := range map[string]int{
		"\n\x0a10.250.1.2\x10": 1<<8 | 2, "10.250.0.255": 255, "10.250.": -1, "10.64.0.1": -1, "": -1, "10.250.3": -1,
	} {
		require.Equal(t, want, markIn([]byte(text)), "%q", text)
	}
	for _, n := range []int{0, 1, 255, 256, 5000, 65535} {
		require.Equal(t, n, markIn([]byte(Mark(n).String())))
	}
}

func TestNameSet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ids := rapid.SliceOf(rapid.Uint32Range(0, 300))
		var a, b nameSet
		in, of := map[uint32]bool{}, map[uint32]bool{}
		for _, id := range ids.Draw(t, "a") {
			require.Equal(t, !in[id], a.add(id))
			in[id] = true
		}
		covered := true
		for _, id := range ids.Draw(t, "b") {
			require.Equal(t, !of[id], b.add(id))
			of[id] = true
		}
		for id := range of {
			covered = covered && in[id]
		}
		require.Equal(t, covered, a.covers(&b))
	})
}
