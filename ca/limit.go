package ca

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxLimiterKeys bounds the memory of a limiter, whatever strangers send.
const maxLimiterKeys = 1 << 16

// keyedLimiter is one token bucket per key. When there are too many keys, full
// buckets are forgotten (they say nothing), and if that does not help all new
// keys share one bucket.
type keyedLimiter[K comparable] struct {
	rate  rate.Limit
	burst int
	max   int

	mu       sync.Mutex
	buckets  map[K]*rate.Limiter
	overflow *rate.Limiter
	swept    time.Time
}

// newKeyedLimiter returns a limiter of perSecond events per key after a burst;
// nil, which allows everything, if perSecond is negative.
func newKeyedLimiter[K comparable](perSecond float64, burst int) *keyedLimiter[K] {
	if perSecond < 0 {
		return nil
	}
	return &keyedLimiter[K]{
		rate: rate.Limit(perSecond), burst: burst, max: maxLimiterKeys,
		buckets: map[K]*rate.Limiter{}, overflow: rate.NewLimiter(rate.Limit(perSecond), burst),
	}
}

func (l *keyedLimiter[K]) allow(key K, now time.Time) bool {
	if l == nil {
		return true
	}
	l.mu.Lock()
	b, ok := l.buckets[key]
	if !ok {
		if len(l.buckets) >= l.max {
			l.sweep(now)
		}
		if len(l.buckets) >= l.max {
			b = l.overflow
		} else {
			b = rate.NewLimiter(l.rate, l.burst)
			l.buckets[key] = b
		}
	}
	l.mu.Unlock()
	return b.AllowN(now, 1)
}

// sweep forgets full buckets, once a second at most; the caller holds mu.
func (l *keyedLimiter[K]) sweep(now time.Time) {
	if now.Sub(l.swept) < time.Second {
		return
	}
	l.swept = now
	for k, b := range l.buckets {
		if b.TokensAt(now) >= float64(l.burst) {
			delete(l.buckets, k)
		}
	}
}
