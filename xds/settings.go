package xds

import (
	"runtime"
	"time"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Settings are the server's limits and times. The zero value of a field means
// its default.
type Settings struct {
	// EndpointGap is the least time between two dispatches of endpoint changes: 1 ms.
	EndpointGap time.Duration
	// DebounceAfter is how long definitions have to be quiet before they are
	// dispatched: 10 ms. It doubles with every dispatch that follows another
	// within a second, up to half of DebounceMax.
	DebounceAfter time.Duration
	// DebounceMax is the longest that a definition waits: 1 s.
	DebounceMax time.Duration
	// DefaultCluster is the cluster of a proxy that names none: the Store's primary.
	DefaultCluster mesh.ClusterID
	// StuckAfter is how long a proxy may leave a response unanswered while more is
	// pending for it: 5 min. Negative: for ever.
	StuckAfter time.Duration
	// FirstRequest is how long a stream may stay silent at first: 30 s.
	FirstRequest time.Duration
	// MaxStreams bounds the streams of the server: 0 means no bound.
	MaxStreams int
	// MaxRequestRate is how many requests a stream may send in a second before it
	// is slowed down: 1,000.
	MaxRequestRate int
	// Admission is how many subscriptions are worked out at the same time: twice
	// the number of processors. It bounds memory and latency when many proxies
	// connect at once; nothing holds an admission while it sends.
	Admission int
	// Workers is the number of goroutines that send changes: one per processor.
	Workers int
}

func (s Settings) withDefaults() Settings {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&s.EndpointGap, time.Millisecond)
	def(&s.DebounceAfter, 10*time.Millisecond)
	def(&s.DebounceMax, time.Second)
	def(&s.StuckAfter, 5*time.Minute)
	def(&s.FirstRequest, 30*time.Second)
	if s.MaxRequestRate <= 0 {
		s.MaxRequestRate = 1000
	}
	if s.Workers <= 0 {
		s.Workers = runtime.GOMAXPROCS(0)
	}
	if s.Admission <= 0 {
		s.Admission = 2 * runtime.GOMAXPROCS(0)
	}
	return s
}
