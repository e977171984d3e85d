package mtls

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/isthmus-mesh/isthmus/ca"
)

// TestRotation: the root of the mesh is replaced while clients call without
// pause, each call soon on a connection of its own. Not one call and not one
// handshake fails, whoever has got its new certificate first.
func TestRotation(t *testing.T) {
	tr, w := newTrust(t), newWorld(t)
	clientAgent, echoAgent := newAgent(t, tr.issue("east", "client")), newAgent(t, tr.issue("west", "echo"))
	srv := w.startEcho(echoAgent, shortConnections())
	calls := w.startCalls(clientAgent, 3)
	before := echoAgent.held
	first := issuerOf(leafOf(t, before))
	renewClient := func() { clientAgent.put(tr.issue("east", "client")); clientAgent.settle() }
	renewEcho := func() { echoAgent.put(tr.issue("west", "echo")); echoAgent.settle() }
	calls.meet(srv, first, first)

	// Both roots are handed out; the old issuer signs.
	tr.mount.put(newRoot(t, "second"))
	tr.waitFor("both roots to be handed out", func(p ca.Progress) bool { return p.Phase == ca.PhaseDistributing && !p.Distributed.IsZero() })
	renewClient()
	calls.meet(srv, first, first)
	tr.clock.Advance(minDistribution)
	tr.keeper.Poke()
	tr.waitFor("the keeper to see that one of two holds the new root", func(p ca.Progress) bool {
		return p.Share == ca.Share{Held: 1, Total: 2, Known: true}
	})
	require.Equal(t, ca.PhaseDistributing, tr.keeper.Progress().Phase, "the server would refuse what the new issuer signs")
	renewEcho()
	calls.meet(srv, first, first)

	// Everybody holds both roots: the new issuer signs.
	tr.keeper.Poke()
	tr.waitFor("the new issuer to sign", func(p ca.Progress) bool {
		return p.Phase == ca.PhaseRetiring && len(p.Retiring) == 1 && !p.Retiring[0].Until.IsZero()
	})
	renewClient()
	second := issuerOf(leafOf(t, clientAgent.held))
	require.NotEqual(t, first, second)
	calls.meet(srv, second, first)
	renewEcho()
	calls.meet(srv, second, second)

	// Nothing of the old issuer can be alive: its root goes.
	tr.clock.Advance(maxLifetime + margin)
	tr.keeper.Poke()
	tr.waitFor("the old root to be retired", func(p ca.Progress) bool { return p.Phase == ca.PhaseIdle && len(p.Roots) == 1 })
	renewClient()
	calls.meet(srv, second, second)
	renewEcho()
	calls.meet(srv, second, second)

	total := calls.end()
	require.Empty(t, srv.failures())
	calls.close()
	require.Greater(t, total, 100)
	t.Logf("%d calls, %d connections, none failed", total, srv.with(first)+srv.with(second))

	// And what the old issuer signed is worth nothing any more.
	conn, err := grpc.NewClient("passthrough:///"+w.gateway.String(), grpc.WithTransportCredentials(insisting(t, before)))
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close()) }()
	_, _, err = call(t.Context(), conn)
	require.Equal(t, codes.Unavailable, status.Code(err), "%v", err)
	srv.refused(t, "certificate signed by unknown authority")
}

// TestRotationAtOnce: what a rotation without its first phase costs, which the
// setting says, and that the calls above would have noticed.
func TestRotationAtOnce(t *testing.T) {
	tr, w := newTrust(t, func(s *ca.RotationSettings) { s.Immediate = true }), newWorld(t)
	clientAgent, echoAgent := newAgent(t, tr.issue("east", "client")), newAgent(t, tr.issue("west", "echo"))
	srv := w.startEcho(echoAgent, shortConnections())
	calls := w.startCalls(clientAgent, 1)
	first := issuerOf(leafOf(t, echoAgent.held))
	calls.meet(srv, first, first)
	old := string(tr.authority.RootsPEM())
	tr.mount.put(newRoot(t, "second"))
	require.Eventually(t, func() bool { return string(tr.authority.RootsPEM()) != old }, patience, time.Millisecond)
	clientAgent.put(tr.issue("east", "client"))
	require.Eventually(t, func() bool { return calls.failed.Load() != nil }, patience, 5*time.Millisecond)
}

// leafOf is the first certificate of a chain.
func leafOf(t testing.TB, m material) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(m.chain)
	require.NotNil(t, block)
	c, err := x509.ParseCertificate(block.Bytes)
	require.NoError(t, err)
	return c
}

// shortConnections makes clients connect anew all the time, without failing a
// call for it.
func shortConnections() grpc.ServerOption {
	return grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: 20 * time.Millisecond, MaxConnectionAgeGrace: patience})
}

// calls are clients that call without pause.
type calls struct {
	t       testing.TB
	clients []*client
	stop    context.CancelFunc
	running sync.WaitGroup
	made    atomic.Int64
	failed  atomic.Pointer[error]
}

// startCalls starts clients that share the agent of one pod.
func (w *world) startCalls(a *agent, clients int) *calls {
	w.t.Helper()
	ctx, stop := context.WithCancel(context.WithoutCancel(w.t.Context()))
	c := &calls{t: w.t, stop: stop}
	for range clients {
		one := w.dialEcho(a)
		c.clients = append(c.clients, one)
		c.running.Go(func() {
			for ctx.Err() == nil {
				// Not under ctx: the last call is to end by itself.
				if _, _, err := call(context.WithoutCancel(ctx), one.conn); err != nil {
					c.failed.CompareAndSwap(nil, &err)
					return
				}
				c.made.Add(1)
			}
		})
	}
	w.t.Cleanup(func() { stop(); c.running.Wait() })
	return c
}

// meet waits until every client has connected several times more, with a
// certificate of one issuer to a server with one of another, and checks that
// nothing has failed.
func (c *calls) meet(srv *server, clientIssuer, serverIssuer string) {
	c.t.Helper()
	const more = 10
	want := srv.with(clientIssuer) + more*len(c.clients)
	wants := make([]int, len(c.clients))
	for i, one := range c.clients {
		wants[i] = one.with(serverIssuer) + more
	}
	require.Eventually(c.t, func() bool {
		c.check()
		for i, one := range c.clients {
			if one.with(serverIssuer) < wants[i] {
				return false
			}
		}
		return srv.with(clientIssuer) >= want
	}, patience, 5*time.Millisecond)
}

func (c *calls) check() {
	c.t.Helper()
	if err := c.failed.Load(); err != nil {
		require.NoError(c.t, *err, "a call failed after %d good ones", c.made.Load())
	}
	for _, one := range c.clients {
		require.Empty(c.t, one.failures())
	}
}

// end stops the calls and returns how many there were, all of them good.
func (c *calls) end() int {
	c.t.Helper()
	c.stop()
	c.running.Wait()
	c.check()
	return int(c.made.Load())
}

// close closes the connections, in the middle of a handshake perhaps.
func (c *calls) close() {
	c.t.Helper()
	for _, one := range c.clients {
		require.NoError(c.t, one.conn.Close())
	}
}
