package kube

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
)

// TestSilentServer is row 17 from where the old watch has died: a server that
// takes the connection and says nothing counts as unreachable after seconds,
// though the request goes on; an answer puts that right.
func TestSilentServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := New(Config{Cluster: "east", REST: &rest.Config{Host: "https://192.0.2.1"}})
		require.NoError(t, err)
		r := s.readers[0]
		r.answered(nil, true)
		require.True(t, s.Status().Reachable)
		answer := make(chan struct{})
		r.watch = func(ctx context.Context, _ metav1.ListOptions) (watch.Interface, error) {
			select {
			case <-answer:
				return watch.NewFake(), nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		start := func() <-chan error {
			done := make(chan error, 1)
			go func() {
				w, err := r.doWatch(t.Context(), metav1.ListOptions{})
				if err == nil {
					w.Stop()
				}
				done <- err
			}()
			return done
		}
		first := start()
		time.Sleep(watchStartLate - time.Nanosecond)
		synctest.Wait()
		require.True(t, s.Status().Reachable)
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		st := s.Status()
		require.False(t, st.Reachable)
		require.Equal(t, errWatchLate.Error(), st.Error)
		require.Empty(t, first, "the request goes on")
		require.ErrorIs(t, <-first, errWatchStart)
		require.Equal(t, errWatchStart.Error(), s.Status().Error)

		second := start()
		time.Sleep(watchStartLate)
		synctest.Wait()
		close(answer)
		require.NoError(t, <-second)
		require.True(t, s.Status().Reachable)
		time.Sleep(watchStartTimeout)
		synctest.Wait()
		require.True(t, s.Status().Reachable, "nothing is told after the answer")
	})
}
