package ca

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Times of an election. A leader that is gone is replaced within electionTerm.
const (
	electionTerm  = 15 * time.Second
	electionRenew = 10 * time.Second
	electionGap   = 2 * time.Second
	// How long a replica waits that may use no lock at all, at first and at most:
	// rights come by hand, and asking every two seconds would only fill logs.
	electionDenied     = 5 * time.Second
	electionDeniedMost = 5 * time.Minute
)

// Elector runs a function while we lead, and returns when the context ends. The
// function's context ends when we lead no more.
type Elector func(ctx context.Context, lead func(context.Context)) error

// ElectionConfig configures [LeaseElector].
type ElectionConfig struct {
	// Client of the cluster that holds the lock. Required.
	Client  kubernetes.Interface
	Cluster mesh.ClusterID
	// Namespace and Name are those of the lock, Replica is this replica's name in
	// it. All are required.
	Namespace, Name, Replica string
	// Report takes why this replica can never lead, and "" when it can again; it
	// goes on without. May be nil.
	Report func(about mesh.ObjectRef, problem string)
	Logger *zap.Logger
}

// LeaseElector elects by a Lease, or by a ConfigMap of the same name where Leases
// are not allowed. Who loses it stands again. Who may use neither waits for
// somebody to grant it, and says so once.
func LeaseElector(cfg ElectionConfig) Elector {
	cfg.Logger = loggerOrNop(cfg.Logger)
	return func(ctx context.Context, lead func(context.Context)) error {
		l, wait := newLock(cfg), electionDenied
		for ctx.Err() == nil {
			if err := stand(ctx, l, lead); err != nil {
				return fmt.Errorf("elect by lease %s/%s of cluster %s: %w", cfg.Namespace, cfg.Name, cfg.Cluster, err)
			}
			if !l.isDenied() {
				wait = electionDenied
				continue
			}
			select {
			case <-ctx.Done():
			case <-time.After(wait):
				l.retry()
			}
			wait = min(2*wait, electionDeniedMost)
		}
		return nil
	}
}

// stand stands for election once: until we have led and lead no more, may use no
// lock, or the context ends.
func stand(ctx context.Context, l *lock, lead func(context.Context)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l.giveUp = cancel
	started := make(chan context.Context, 1)
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: l, LeaseDuration: electionTerm, RenewDeadline: electionRenew, RetryPeriod: electionGap, ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(term context.Context) { started <- term },
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return err
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		elector.Run(ctx)
	}()
	// The work is done here and not in the callback, which nobody waits for: when
	// this function returns nothing is written any more.
	select {
	case term := <-started:
		lead(term)
		<-over
	case <-over:
	}
	return nil
}
