package ca

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// election is an API server that allows what a test says.
type election struct {
	api     *fake.Clientset
	denied  map[string]*atomic.Bool // by resource
	refused map[string]*atomic.Int64
}

func newElection(denied ...string) *election {
	e := &election{api: fake.NewClientset(), denied: map[string]*atomic.Bool{}, refused: map[string]*atomic.Int64{}}
	for _, resource := range []string{"leases", "configmaps"} {
		no, count := &atomic.Bool{}, &atomic.Int64{}
		e.denied[resource], e.refused[resource] = no, count
		e.api.PrependReactor("*", resource, func(clienttesting.Action) (bool, runtime.Object, error) {
			if !no.Load() {
				return false, nil, nil
			}
			count.Add(1)
			return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: resource}, "x", errors.New("no role"))
		})
	}
	for _, resource := range denied {
		e.denied[resource].Store(true)
	}
	return e
}

// stand stands for election as a replica; leads hears whenever it begins to lead.
func (e *election) stand(ctx context.Context, t *testing.T, replica string, leads chan<- string, report func(string)) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error)
	elect := LeaseElector(ElectionConfig{Client: e.api, Cluster: "west", Namespace: systemNS, Name: RootLease, Replica: replica,
		Report: func(about mesh.ObjectRef, problem string) {
			require.Equal(t, mesh.ObjectRef{Cluster: "west", Kind: "Lease", Namespace: systemNS, Name: RootLease}, about)
			report(problem)
		}})
	go func() {
		done <- elect(ctx, func(ctx context.Context) {
			leads <- replica
			<-ctx.Done()
		})
	}()
	return func() {
		cancel()
		require.NoError(t, <-done)
	}
}

// Where Leases are not allowed a ConfigMap decides: one replica leads, the next
// takes over at once, and the API server is asked for a Lease once by each.
func TestElectByConfigMap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newElection("leases")
		leads := make(chan string, 8)
		none := func(problem string) { require.Empty(t, problem) }
		stopA := e.stand(t.Context(), t, "a", leads, none)
		require.Equal(t, "a", <-leads)
		stopB := e.stand(t.Context(), t, "b", leads, none)
		time.Sleep(10 * time.Minute)
		require.Empty(t, leads, "a leads and renews")
		cm, err := e.api.CoreV1().ConfigMaps(systemNS).Get(t.Context(), RootLease, metav1.GetOptions{})
		require.NoError(t, err)
		require.Contains(t, cm.Annotations[resourcelock.LeaderElectionRecordAnnotationKey], `"holderIdentity":"a"`)
		stopA()
		require.Equal(t, "b", <-leads)
		stopB()
		require.Empty(t, leads)
		require.EqualValues(t, 2, e.refused["leases"].Load())
	})
}

// A Lease that is refused in the middle of a term is replaced without a pause.
func TestElectLeaseTakenAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newElection()
		leads := make(chan string, 8)
		stop := e.stand(t.Context(), t, "a", leads, func(problem string) { require.Empty(t, problem) })
		require.Equal(t, "a", <-leads)
		e.denied["leases"].Store(true)
		time.Sleep(time.Minute)
		require.Empty(t, leads, "the term goes on")
		_, err := e.api.CoreV1().ConfigMaps(systemNS).Get(t.Context(), RootLease, metav1.GetOptions{})
		require.NoError(t, err)
		require.EqualValues(t, 1, e.refused["leases"].Load())
		stop()
	})
}

// Who may use no lock says so once, asks rarely, and leads when it may.
func TestElectDenied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newElection("leases", "configmaps")
		leads := make(chan string, 8)
		var problems []string
		stop := e.stand(t.Context(), t, "a", leads, func(problem string) { problems = append(problems, problem) })
		time.Sleep(time.Hour + time.Minute)
		synctest.Wait()
		require.Len(t, problems, 1)
		require.Contains(t, problems[0], "grant get, create and update on leases.coordination.k8s.io (or on configmaps) in namespace istio-system")
		// At once, after 5 s, 10 s and so on up to five minutes, then eleven times in an hour.
		require.EqualValues(t, 18, e.refused["leases"].Load())
		require.EqualValues(t, 18, e.refused["configmaps"].Load())
		require.Empty(t, leads)
		e.denied["leases"].Store(false)
		require.Equal(t, "a", <-leads)
		synctest.Wait()
		require.Empty(t, problems[1])
		require.Len(t, problems, 2)
		stop()
	})
}
