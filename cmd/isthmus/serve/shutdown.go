package serve

import (
	"context"
	"net/http"
	"time"

	"go.uber.org/zap"
)

// defaultDrain is [Settings.DrainDuration] of a pod: endpoints are taken out of
// a Service's rules on every node within a few seconds. With it and
// [Settings.ShutdownDuration] a pod ends well within Kubernetes' usual 30 s.
const defaultDrain = 5 * time.Second

// drainDefault is what an environment says of draining: outside of a pod nobody
// has to be told that this replica goes.
func drainDefault(getenv func(string) string) time.Duration {
	if getenv("KUBERNETES_SERVICE_HOST") == "" {
		return 0
	}
	return defaultDrain
}

// leave is the part that ends all others after the process was told to end. It
// goes out of the Service first: readiness says so at once, while everything is
// served as before to whoever has not heard of it yet. Who was never ready goes
// at once; so do all when a part fails.
func (c *Control) leave(told context.Context) func(context.Context) error {
	return func(ctx context.Context) error {
		select {
		case <-told.Done():
		case <-ctx.Done():
		}
		c.stopping.Store(true)
		drain := c.settings.DrainDuration
		select {
		case <-c.ready:
		default:
			drain = 0
		}
		if drain <= 0 {
			return nil
		}
		c.log.Info("shutting down: no longer ready, still serving", zap.Duration("for", drain))
		select {
		case <-c.after(drain):
		case <-ctx.Done():
		}
		return nil
	}
}

// sendElsewhere has clients open a new connection for their next request once
// this replica is on its way out. API servers keep theirs to webhooks, past the
// rules of the Service; a request on one that is closed meanwhile would fail.
func (c *Control) sendElsewhere(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c.stopping.Load() {
			w.Header().Set("Connection", "close")
		}
		h.ServeHTTP(w, r)
	})
}
