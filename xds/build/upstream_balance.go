package build

import (
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"
)

const (
	// usualRingSize is the least size of a hash ring unless a rule says another.
	usualRingSize = 1024
	// maxHashTable is the most that Envoy takes as size of a hash ring or table.
	maxHashTable = 8 << 20
	// maxMaglevTable is the most that Envoy takes as size of a Maglev table.
	maxMaglevTable = 5000011
	// warmupKey is the runtime key by which the aggression of a warm-up could be
	// changed in a proxy; Envoy wants one.
	warmupKey = "isthmus.warmup_aggression"
	// usualWarmupPercent is the share with which a warm-up begins, in percent.
	usualWarmupPercent = 10
)

// applyBalancer sets how an upstream chooses among its endpoints: the least
// loaded of two unless a rule says otherwise.
func (d *draft) applyBalancer(lb *networking.LoadBalancerSettings) {
	switch lb.GetSimple() {
	case networking.LoadBalancerSettings_RANDOM:
		d.LbPolicy = clusterv3.Cluster_RANDOM
	case networking.LoadBalancerSettings_ROUND_ROBIN:
		d.LbPolicy = clusterv3.Cluster_ROUND_ROBIN
		if c := warmup(lb); c != nil {
			d.LbConfig = &clusterv3.Cluster_RoundRobinLbConfig_{RoundRobinLbConfig: &clusterv3.Cluster_RoundRobinLbConfig{SlowStartConfig: c}}
		}
	default:
		d.LbPolicy = clusterv3.Cluster_LEAST_REQUEST
		if c := warmup(lb); c != nil {
			d.LbConfig = &clusterv3.Cluster_LeastRequestLbConfig_{LeastRequestLbConfig: &clusterv3.Cluster_LeastRequestLbConfig{SlowStartConfig: c}}
		}
	}
	if h := lb.GetConsistentHash(); h != nil {
		d.applyHash(h)
	}
}

// passesThrough reports whether a rule makes an upstream dial the address that
// the client asked for.
func passesThrough(p *networking.TrafficPolicy) bool {
	return p.GetLoadBalancer().GetSimple() == networking.LoadBalancerSettings_PASSTHROUGH
}

// applyHash makes requests stay with an endpoint by a hash. What is hashed is
// said by their routes.
func (d *draft) applyHash(h *networking.LoadBalancerSettings_ConsistentHashLB) {
	d.LbConfig = nil
	if h.GetMaglev() != nil {
		d.LbPolicy = clusterv3.Cluster_MAGLEV
		if n := h.GetMaglev().GetTableSize(); n > 0 && n <= maxMaglevTable && prime(n) {
			d.LbConfig = &clusterv3.Cluster_MaglevLbConfig_{MaglevLbConfig: &clusterv3.Cluster_MaglevLbConfig{TableSize: wrapperspb.UInt64(n)}}
		}
		return
	}
	d.LbPolicy = clusterv3.Cluster_RING_HASH
	size := h.GetMinimumRingSize() //nolint:staticcheck // still read
	if h.GetRingHash() != nil {
		size = h.GetRingHash().GetMinimumRingSize()
	} else if size == 0 {
		size = usualRingSize
	}
	if size > 0 {
		d.LbConfig = &clusterv3.Cluster_RingHashLbConfig_{RingHashLbConfig: &clusterv3.Cluster_RingHashLbConfig{
			MinimumRingSize: wrapperspb.UInt64(min(size, maxHashTable))}}
	}
}

// prime reports whether a number is prime. Envoy takes no other size for a
// Maglev table.
func prime(n uint64) bool {
	if n < 2 {
		return false
	}
	for i := uint64(2); i*i <= n; i++ {
		if n%i == 0 {
			return false
		}
	}
	return true
}

// warmup is how new endpoints get their share little by little, nil for at once.
func warmup(lb *networking.LoadBalancerSettings) *clusterv3.Cluster_SlowStartConfig {
	w := lb.GetWarmup()
	if w == nil {
		if t := lb.GetWarmupDurationSecs(); positive(t) { //nolint:staticcheck // still read
			return &clusterv3.Cluster_SlowStartConfig{SlowStartWindow: t}
		}
		return nil
	}
	if !positive(w.GetDuration()) {
		return nil
	}
	aggression, percent := 1.0, float64(usualWarmupPercent)
	if a := w.GetAggression(); a != nil && a.GetValue() > 0 {
		aggression = a.GetValue()
	}
	if p := w.GetMinimumPercent(); p != nil && p.GetValue() >= 0 && p.GetValue() <= 100 {
		percent = p.GetValue()
	}
	return &clusterv3.Cluster_SlowStartConfig{
		SlowStartWindow:  w.GetDuration(),
		Aggression:       &corev3.RuntimeDouble{DefaultValue: aggression, RuntimeKey: warmupKey},
		MinWeightPercent: &typev3.Percent{Value: percent},
	}
}
