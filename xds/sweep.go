package xds

import (
	"context"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
)

// sweep ends streams whose proxies have stopped taking what is pending.
func (srv *Server) sweep(ctx context.Context) {
	limit := srv.cfg.Settings.StuckAfter
	if limit < 0 {
		return
	}
	tick := time.NewTicker(max(limit/10, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := srv.cfg.Clock()
		for _, s := range srv.all() {
			if s.stuck(now, limit) {
				srv.metrics.writeTimeout.Inc()
				srv.log.Warn("proxy does not take what is pending; its stream is closed",
					zap.String("proxy", s.id), zap.String("peer", s.peer), zap.Duration("after", limit))
				s.abort(codes.DeadlineExceeded, "responses were not answered in "+limit.String())
			}
		}
	}
}

// stuck reports whether the proxy does not read, or has left a response
// unanswered for too long while more of the type is pending.
func (s *stream) stuck(now time.Time, limit time.Duration) bool {
	if since := s.sendingSince.Load(); since != 0 && now.Sub(time.Unix(0, since)) > limit {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.types {
		t := &s.types[i]
		if t.sub.waiting && now.Sub(t.sentAt) > limit && !t.dirty.empty() {
			return true
		}
	}
	return false
}
