package status

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

const (
	// leaseName is the Lease's name, before a revision.
	leaseName = "isthmus-gateway-status"
	// Times of the election: a leader that is gone is replaced within leaseTime.
	leaseTime  = 15 * time.Second
	renewTime  = 10 * time.Second
	attemptGap = 2 * time.Second
)

// LeaseName is the name of the Lease of a revision.
func LeaseName(revision string) string {
	if revision == "" || revision == "default" {
		return leaseName
	}
	return leaseName + "-" + revision
}

// Run stands for election and writes while it leads, until the context ends.
// Call it once the primary has been read completely: before, much would seem to
// be missing.
func (w *Writer) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock: &resourcelock.LeaseLock{
				LeaseMeta:  metav1.ObjectMeta{Namespace: w.cfg.Namespace, Name: LeaseName(w.cfg.Revision)},
				Client:     w.cfg.Client.CoordinationV1(),
				LockConfig: resourcelock.ResourceLockConfig{Identity: w.cfg.Identity},
			},
			LeaseDuration: leaseTime, RenewDeadline: renewTime, RetryPeriod: attemptGap, ReleaseOnCancel: true,
			Name: LeaseName(w.cfg.Revision),
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(ctx context.Context) {
					w.leading.Lock() // the last term may not have ended yet
					defer w.leading.Unlock()
					w.lead(ctx)
				},
				OnStoppedLeading: func() {},
				OnNewLeader: func(id string) {
					w.log.Info("status of gateways and routes is written", zap.String("by", id))
				},
			},
		})
		if err != nil {
			return fmt.Errorf("make election of the writer of gateway status: %w", err)
		}
		elector.Run(ctx)
	}
	w.leading.Lock()
	defer w.leading.Unlock()
	return nil
}
