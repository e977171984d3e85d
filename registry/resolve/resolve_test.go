package resolve

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server answers questions and remembers when they came.
type server struct {
	mu      sync.Mutex
	answers map[string]reply
	asked   []time.Time
	open    int
	most    int
}

type reply struct {
	addrs []netip.Addr
	ttl   time.Duration
	err   error
	takes time.Duration
}

func (s *server) set(host string, r reply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.answers == nil {
		s.answers = map[string]reply{}
	}
	s.answers[host] = r
}

func (s *server) lookup(ctx context.Context, host string) ([]netip.Addr, time.Duration, error) {
	s.mu.Lock()
	r := s.answers[host]
	s.asked = append(s.asked, time.Now())
	s.open++
	s.most = max(s.most, s.open)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.open--
		s.mu.Unlock()
	}()
	select {
	case <-ctx.Done():
		return nil, 0, ctx.Err()
	case <-time.After(r.takes):
	}
	return r.addrs, r.ttl, r.err
}

// times returns when questions came.
func (s *server) times() []time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

// pauses returns the time between the questions so far.
func (s *server) pauses() []time.Duration {
	var out []time.Duration
	asked := s.times()
	for i := 1; i < len(asked); i++ {
		out = append(out, asked[i].Sub(asked[i-1]))
	}
	return out
}

func ips(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

type bed struct {
	*server
	store     *registry.Store
	sink      registry.Sink
	problems  *registry.Problems
	metrics   *prometheus.Registry
	published atomic.Int64
}

// run starts a resolver over a store whose cluster has gateways of the names.
func run(t *testing.T, answers map[string]reply, f func(b *bed)) {
	synctest.Test(t, func(t *testing.T) {
		b := &bed{server: &server{answers: answers}, store: registry.NewStore(registry.Config{Primary: "east"}),
			problems: registry.NewProblems(nil), metrics: prometheus.NewRegistry()}
		b.sink = b.store.NewSink("east")
		r, err := New(Config{Store: b.store, Lookup: b.lookup, Problems: b.problems, Metrics: b.metrics})
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		b.store.OnChange(func(registry.Change) { b.published.Add(1) })
		go func() { done <- r.Run(ctx) }()
		synctest.Wait()
		f(b)
		cancel()
		require.NoError(t, <-done)
	})
}

func (b *bed) gateways(hosts ...string) {
	st := &registry.ClusterState{Network: "n"}
	for _, h := range hosts {
		st.Gateways = append(st.Gateways, mesh.NetworkGateway{Network: "n", Cluster: "east", Host: h, Port: 15443,
			Origin: mesh.ObjectRef{Cluster: "east", Kind: "Service", Namespace: "istio-system", Name: "gw"}})
	}
	b.sink.Replace(registry.Update{Cluster: st})
	synctest.Wait()
}

func (b *bed) dialled() []netip.Addr {
	var out []netip.Addr
	for _, g := range b.store.Catalog().GatewaysFor("n", "east") {
		out = append(out, g.Addr)
	}
	return out
}

// ages returns the ages that the metrics tell.
func (b *bed) ages(t *testing.T) (out []float64) {
	all, err := b.metrics.Gather()
	require.NoError(t, err)
	for _, f := range all {
		for _, m := range f.GetMetric() {
			if f.GetName() == "isthmus_gateway_host_age_seconds" {
				out = append(out, m.GetGauge().GetValue())
			}
		}
	}
	return out
}

func pass(d time.Duration) {
	time.Sleep(d) // the bubble's clock: no time passes outside
	synctest.Wait()
}

func TestResolvesWhenAGatewayAppearsAndAgainByTTL(t *testing.T) {
	run(t, map[string]reply{"lb.example": {addrs: ips("203.0.113.2", "203.0.113.1", "203.0.113.2", "0.0.0.0"), ttl: time.Minute}}, func(b *bed) {
		require.Empty(t, b.times(), "nothing is asked without a name")
		b.gateways("lb.example", "203.0.113.9")
		require.Len(t, b.times(), 1, "an address needs no question")
		require.Equal(t, ips("203.0.113.1", "203.0.113.2", "203.0.113.9"), b.dialled())

		published := b.published.Load()
		pass(10 * time.Minute)
		for _, p := range b.pauses() {
			require.GreaterOrEqual(t, p, time.Minute)
			require.LessOrEqual(t, p, 66*time.Second)
		}
		require.GreaterOrEqual(t, len(b.pauses()), 9)
		require.Equal(t, published, b.published.Load(), "the same answer publishes nothing")

		b.set("lb.example", reply{addrs: ips("203.0.113.3"), ttl: time.Minute})
		pass(66 * time.Second)
		require.Equal(t, ips("203.0.113.3", "203.0.113.9"), b.dialled())
	})
}

func TestTTLIsClamped(t *testing.T) {
	for name, tt := range map[string]struct{ ttl, low, high time.Duration }{
		"none": {0, minTTL, minTTL * 11 / 10}, "long": {24 * time.Hour, maxTTL, maxTTL * 11 / 10},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, map[string]reply{"lb.example": {addrs: ips("203.0.113.1"), ttl: tt.ttl}}, func(b *bed) {
				b.gateways("lb.example")
				pass(4 * maxTTL)
				require.NotEmpty(t, b.pauses())
				for _, p := range b.pauses() {
					require.GreaterOrEqual(t, p, tt.low)
					require.LessOrEqual(t, p, tt.high)
				}
			})
		})
	}
}

func TestFailureKeepsTheLastKnownAddresses(t *testing.T) {
	run(t, map[string]reply{"lb.example": {addrs: ips("203.0.113.1"), ttl: minTTL}}, func(b *bed) {
		b.gateways("lb.example")
		for _, bad := range []reply{{err: errors.New("SERVFAIL")}, {}, {addrs: ips("203.0.113.7"), err: errors.New("half")}, {takes: time.Hour}} {
			b.set("lb.example", bad)
			pass(2 * time.Minute)
			require.Equal(t, ips("203.0.113.1"), b.dialled())
			require.Len(t, b.problems.List(), 1)
			require.Contains(t, b.problems.List()[0].Message, "cannot resolve gateway host lb.example; its last known addresses stay in use")
		}
		b.set("lb.example", reply{addrs: ips("203.0.113.5"), ttl: minTTL})
		pass(maxRetry + lookupTimeout)
		require.Equal(t, ips("203.0.113.5"), b.dialled())
		require.Empty(t, b.problems.List())
	})
}

func TestFailureBacksOff(t *testing.T) {
	run(t, map[string]reply{"lb.example": {err: errors.New("SERVFAIL")}}, func(b *bed) {
		b.gateways("lb.example")
		require.Contains(t, b.problems.List()[0].Message, "endpoints behind it cannot be reached")
		pass(10 * time.Minute)
		p := b.pauses()
		require.Greater(t, len(p), 10)
		for i, d := range p {
			full := maxRetry
			if i < 5 {
				full = minRetry << i
			}
			require.LessOrEqual(t, d, full)
			require.GreaterOrEqual(t, d, full/2)
		}
	})
}

func TestPartialAnswerIsBetterThanNone(t *testing.T) {
	run(t, map[string]reply{"lb.example": {addrs: ips("203.0.113.1"), err: errors.New("AAAA: SERVFAIL")}}, func(b *bed) {
		b.gateways("lb.example")
		require.Equal(t, ips("203.0.113.1"), b.dialled())
		require.Contains(t, b.problems.List()[0].Message, "the part of the answer that came is in use")
		b.set("lb.example", reply{addrs: ips("203.0.113.1", "2001:db8::1"), ttl: time.Minute})
		pass(maxRetry)
		require.Equal(t, ips("203.0.113.1", "2001:db8::1"), b.dialled())
	})
}

func TestGoneHostIsForgotten(t *testing.T) {
	run(t, map[string]reply{"bad.example": {err: errors.New("NXDOMAIN")}, "slow.example": {addrs: ips("203.0.113.1"), takes: 5 * time.Second}}, func(b *bed) {
		b.gateways("bad.example", "slow.example")
		require.Len(t, b.problems.List(), 1)
		b.gateways()
		require.Empty(t, b.problems.List())
		asked := len(b.times())
		pass(time.Hour)
		require.Len(t, b.times(), asked)
		require.Empty(t, b.ages(t))
	})
}

func TestAgeGrowsWhileAnswersFail(t *testing.T) {
	run(t, map[string]reply{"lb.example": {addrs: ips("203.0.113.1"), ttl: time.Hour}}, func(b *bed) {
		b.gateways("lb.example")
		b.set("lb.example", reply{err: errors.New("SERVFAIL")})
		pass(time.Hour)
		require.Len(t, b.ages(t), 1)
		require.InDelta(t, time.Hour.Seconds(), b.ages(t)[0], 1)
	})
}

func TestOpenQuestionsAreBounded(t *testing.T) {
	answers, hosts := map[string]reply{}, []string{}
	for i := range 3 * maxLookups {
		h := string(rune('a'+i)) + ".example"
		answers[h], hosts = reply{addrs: ips("203.0.113.1"), takes: time.Second, ttl: time.Hour}, append(hosts, h)
	}
	run(t, answers, func(b *bed) {
		b.gateways(hosts...)
		pass(4 * time.Second)
		b.mu.Lock()
		require.Equal(t, maxLookups, b.most)
		b.mu.Unlock()
		require.Len(t, b.times(), len(hosts))
	})
}

func TestNewRefusesNoStore(t *testing.T) {
	_, err := New(Config{})
	require.ErrorContains(t, err, "no store")
}
