package xds

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
)

// Credential is what a stream was let in by.
type Credential struct {
	// Caller is who the proxy proved to be, in the words of whoever authenticated
	// it; nil if it proved nothing. The engine only hands it on, see [CallerFrom].
	Caller any
	// Expiry is when the credential ends, and the stream with it; zero is never.
	Expiry time.Time
}

// callerKey is the key of a caller in a context.
type callerKey struct{}

// CallerFrom returns who asks, within [PerProxy.Respond]: the Caller of the
// stream's [Credential], nil if the proxy proved nothing.
func CallerFrom(ctx context.Context) any { return ctx.Value(callerKey{}) }

// Callers returns who is connected, one for every stream that proved something.
func (srv *Server) Callers() []any {
	var out []any
	for _, s := range srv.all() {
		if c := s.credential.Caller; c != nil {
			out = append(out, c)
		}
	}
	return out
}

// endWithCredential ends the stream when its credential does. The proxy then
// connects anew with the credential that it has by then.
func (s *stream) endWithCredential() (stop func()) {
	if s.credential.Expiry.IsZero() {
		return func() {}
	}
	timer := time.AfterFunc(s.credential.Expiry.Sub(s.srv.cfg.Clock()), func() {
		s.srv.metrics.refusedStreams.WithLabelValues("expired").Inc()
		s.abort(codes.Unauthenticated, "the credential of this stream has expired: connect again with a new one")
	})
	return func() { timer.Stop() }
}
