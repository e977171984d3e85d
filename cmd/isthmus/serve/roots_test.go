package serve

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// hold is as long as giving back a Lease takes where nobody answers.
const hold = 10 * time.Second

// tending is a world of clusters whose writers note what happens.
type tending struct {
	mu      sync.Mutex
	clients map[mesh.ClusterID]kubernetes.Interface
	ours    map[kubernetes.Interface]func(context.Context) (bool, error) // yes if missing
	slow    map[kubernetes.Interface]bool                                // its writers take their time to end
	said    []string
	at      map[string]time.Time // when it was said last
}

func (w *tending) note(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.said, w.at[what] = append(w.said, what), time.Now()
}

func (w *tending) set(id mesh.ClusterID, client kubernetes.Interface) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if client == nil {
		delete(w.clients, id)
		return
	}
	w.clients[id] = client
}

func (w *tending) list() map[mesh.ClusterID]kubernetes.Interface {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := map[mesh.ClusterID]kubernetes.Interface{}
	for id, c := range w.clients {
		out[id] = c
	}
	return out
}

func (w *tending) roots() *roots {
	return &roots{log: zap.NewNop(), primary: "east", clients: w.list,
		ask: func(ctx context.Context, c kubernetes.Interface) (bool, error) {
			w.mu.Lock()
			answer := w.ours[c]
			w.mu.Unlock()
			if answer == nil {
				return true, nil
			}
			return answer(ctx)
		},
		write: func(ctx context.Context, id mesh.ClusterID, c kubernetes.Interface) {
			w.note("begins " + string(id))
			<-ctx.Done()
			w.mu.Lock()
			slow := w.slow[c]
			w.mu.Unlock()
			if slow {
				time.Sleep(hold)
			}
			w.note("ends " + string(id))
		},
		left: func(id mesh.ClusterID) { w.note("left " + string(id)) },
	}
}

func newTending() *tending {
	return &tending{clients: map[mesh.ClusterID]kubernetes.Interface{}, ours: map[kubernetes.Interface]func(context.Context) (bool, error){},
		slow: map[kubernetes.Interface]bool{}, at: map[string]time.Time{}}
}

// A cluster whose writers take ten seconds to give back what they hold, or that
// does not answer when it is asked, holds up no other; its own next writers wait.
func TestRootsHoldUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTending()
		east, west, later, south, mute := fake.NewClientset(), fake.NewClientset(), fake.NewClientset(), fake.NewClientset(), fake.NewClientset()
		w.slow[west], w.slow[mute] = true, true
		w.ours[mute] = func(ctx context.Context) (bool, error) {
			<-ctx.Done()
			return false, ctx.Err()
		}
		w.set("east", east)
		w.set("west", west)
		w.set("mute", mute)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- w.roots().run(ctx) }()
		time.Sleep(rootsLook)
		synctest.Wait()
		require.ElementsMatch(t, []string{"begins east", "begins west"}, w.said)

		// west gets other credentials, mute leaves and south comes at the same time.
		start := time.Now()
		w.set("west", later)
		w.set("south", south)
		w.set("mute", nil)
		time.Sleep(2 * hold)
		synctest.Wait()
		require.LessOrEqual(t, w.at["begins south"].Sub(start), rootsLook, "south waits for nobody")
		require.GreaterOrEqual(t, w.at["begins west"].Sub(start), hold, "west's own next writers wait for its last")
		require.Less(t, slices.Index(w.said, "ends west"), len(w.said)-1-slices.Index(reversed(w.said), "begins west"))
		require.Contains(t, w.said, "left mute")
		require.NotContains(t, w.said, "begins mute")

		// One that leaves is forgotten once nothing writes any more, and may come back before.
		w.slow[south] = true
		start = time.Now()
		w.set("south", nil)
		time.Sleep(2 * rootsLook)
		w.set("south", south)
		time.Sleep(2 * hold)
		synctest.Wait()
		require.NotContains(t, w.said, "left south")
		require.GreaterOrEqual(t, w.at["begins south"].Sub(start), hold)

		// All end side by side.
		w.slow[east], w.slow[later] = true, true
		start = time.Now()
		cancel()
		require.NoError(t, <-done)
		require.Equal(t, hold, time.Since(start))
	})
}

func reversed(s []string) []string {
	s = slices.Clone(s)
	slices.Reverse(s)
	return s
}

// A remote that no longer names us is left, one that cannot be asked is not.
func TestRootsAsk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTending()
		west := fake.NewClientset()
		w.set("west", west)
		answer := func(ours bool, err error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.ours[west] = func(context.Context) (bool, error) { return ours, err }
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		answer(false, nil)
		go func() { done <- w.roots().run(ctx) }()
		for _, step := range []struct {
			ours bool
			err  error
			said []string
		}{
			{false, nil, nil},
			{true, nil, []string{"begins west"}},
			{false, errors.New("no answer"), []string{"begins west"}},
			{false, nil, []string{"begins west", "ends west"}},
			{true, nil, []string{"begins west", "ends west", "begins west"}},
		} {
			answer(step.ours, step.err)
			time.Sleep(rootsAsk + rootsLook)
			synctest.Wait()
			require.Equal(t, step.said, w.said)
		}
		cancel()
		require.NoError(t, <-done)
	})
}
