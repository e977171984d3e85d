package multicluster

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/isthmus-mesh/isthmus/registry"
)

// recordingSink counts what gets through a gate.
type recordingSink struct {
	replaced, applied int
	closed            []registry.Disposition
}

func (s *recordingSink) Replace(registry.Update)      { s.replaced++ }
func (s *recordingSink) Apply(registry.Update)        { s.applied++ }
func (s *recordingSink) Close(d registry.Disposition) { s.closed = append(s.closed, d) }

func newGate(s registry.Sink, notify func()) *gate {
	return &gate{sink: s, now: time.Now, notify: notify}
}

func TestGate(t *testing.T) {
	var sink recordingSink
	notified := 0
	g := newGate(&sink, func() { notified++ })
	require.Zero(t, g.syncedAt())
	g.Replace(registry.Update{})
	g.Replace(registry.Update{})
	g.Apply(registry.Update{})
	g.Close(registry.Drop) // not the source's to decide
	require.Equal(t, recordingSink{replaced: 2, applied: 1}, sink)
	require.Equal(t, 1, notified)
	require.NotZero(t, g.syncedAt())
	require.False(t, g.shutUnsynced(), "a source that owns the cluster cannot be abandoned")
	g.shut(registry.Drop)
	g.shut(registry.Keep)
	g.Replace(registry.Update{})
	g.Apply(registry.Update{})
	require.Equal(t, recordingSink{replaced: 2, applied: 1, closed: []registry.Disposition{registry.Drop}}, sink)
}

func TestGateOfAbandonedSourceStaysShut(t *testing.T) {
	var sink recordingSink
	g := newGate(&sink, func() { t.Error("notified") })
	require.True(t, g.shutUnsynced())
	g.Replace(registry.Update{})
	require.Equal(t, recordingSink{closed: []registry.Disposition{registry.Keep}}, sink)
	require.Zero(t, g.syncedAt())
}

func TestBackoffDelays(t *testing.T) {
	b := Backoff{}.withDefaults()
	for n, want := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 7: time.Minute, 1 << 30: time.Minute} {
		for range 100 {
			d := b.delay(n)
			require.LessOrEqual(t, d, want)
			require.GreaterOrEqual(t, d, want*8/10)
		}
	}
	require.Equal(t, Backoff{Initial: time.Hour, Max: time.Hour}, Backoff{Initial: time.Hour, Jitter: -1}.withDefaults())
}

func TestConnectionsEndWithTheInstance(t *testing.T) {
	var far []net.Conn
	during := func() {}
	c := newConnections(func(context.Context, string, string) (net.Conn, error) {
		a, b := net.Pipe()
		far = append(far, b)
		during()
		return a, nil
	})
	first, err := c.dialContext(t.Context(), "tcp", "x")
	require.NoError(t, err)
	_, err = c.dialContext(t.Context(), "tcp", "x")
	require.NoError(t, err)
	require.NoError(t, first.Close())
	require.Len(t, c.open, 1, "a closed connection is forgotten")
	during = c.close
	_, err = c.dialContext(t.Context(), "tcp", "x")
	require.ErrorIs(t, err, errRetired)
	_, err = far[1].Write([]byte("x"))
	require.Error(t, err, "the other end sees it closed")
	_, err = far[2].Write([]byte("x"))
	require.Error(t, err, "a late connection does not stay open")
}
