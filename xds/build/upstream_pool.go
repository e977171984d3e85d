package build

import (
	"slices"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// applyPool sets limits, timeouts and keepalives of an upstream's connections.
// Numbers that are not positive say nothing, as does a duration that proxies
// would reject.
func (d *draft) applyPool(in Inputs, pool *networking.ConnectionPoolSettings, budget *networking.TrafficPolicy_RetryBudget) {
	limits := d.CircuitBreakers.Thresholds[0]
	http, tcp := pool.GetHttp(), pool.GetTcp()
	limit(&limits.MaxRequests, http.GetHttp2MaxRequests())
	limit(&limits.MaxPendingRequests, http.GetHttp1MaxPendingRequests())
	limit(&limits.MaxRetries, http.GetMaxRetries())
	limit(&limits.MaxConnections, tcp.GetMaxConnections())
	if budget != nil {
		limits.RetryBudget = retryBudget(budget)
	}
	if t := tcp.GetConnectTimeout(); positive(t) {
		d.ConnectTimeout = t
	}
	d.applyKeepalive(in.Catalog.Settings.Mesh.GetTcpKeepalive(), tcp.GetTcpKeepalive())
	d.applyLifetimes(http, tcp)
	if http.GetUseClientProtocol() {
		d.likeDownstream()
	}
}

func limit(to **wrapperspb.UInt32Value, n int32) {
	if n > 0 {
		*to = u32(uint32(n))
	}
}

func retryBudget(b *networking.TrafficPolicy_RetryBudget) *clusterv3.CircuitBreakers_Thresholds_RetryBudget {
	out := &clusterv3.CircuitBreakers_Thresholds_RetryBudget{}
	if p := b.GetPercent(); p != nil && p.GetValue() >= 0 && p.GetValue() <= 100 {
		out.BudgetPercent = &typev3.Percent{Value: p.GetValue()}
	}
	if n := b.GetMinRetryConcurrency(); n > 0 {
		out.MinRetryConcurrency = u32(n)
	}
	if t := b.GetBudgetInterval(); positive(t) {
		out.BudgetInterval = t
	}
	return out
}

// applyLifetimes sets how long connections live, and how much they carry.
func (d *draft) applyLifetimes(http *networking.ConnectionPoolSettings_HTTPSettings, tcp *networking.ConnectionPoolSettings_TCPSettings) {
	idle := http.GetIdleTimeout()
	if idle == nil {
		idle = tcp.GetIdleTimeout()
	}
	if measurable(idle) {
		d.common().IdleTimeout = idle // 0 switches it off
	}
	if t := tcp.GetMaxConnectionDuration(); positive(t) {
		d.common().MaxConnectionDuration = t
	}
	if n := http.GetMaxRequestsPerConnection(); n > 0 {
		d.common().MaxRequestsPerConnection = u32(uint32(n))
	}
}

// applyHTTP2 sets what the upstream does if it speaks HTTP/2, once it is known
// whether it does.
func (d *draft) applyHTTP2(http *networking.ConnectionPoolSettings_HTTPSettings) {
	o := d.http2()
	if o == nil {
		return
	}
	if n := http.GetMaxConcurrentStreams(); n > 0 {
		o.MaxConcurrentStreams = u32(uint32(n))
	}
	if k := http.GetHttp2KeepAlive(); positive(k.GetInterval()) && positive(k.GetTimeout()) {
		o.ConnectionKeepalive = &corev3.KeepaliveSettings{Interval: k.GetInterval(), Timeout: k.GetTimeout()}
	}
}

// applyKeepalive switches TCP keepalive on if the mesh or the rule says
// anything about it, with what each says: the rule's word goes first.
func (d *draft) applyKeepalive(list ...*networking.ConnectionPoolSettings_TCPSettings_TcpKeepalive) {
	if !slices.ContainsFunc(list, func(k *networking.ConnectionPoolSettings_TCPSettings_TcpKeepalive) bool { return k != nil }) {
		return
	}
	out := &corev3.TcpKeepalive{}
	for _, k := range list {
		if n := k.GetProbes(); n > 0 {
			out.KeepaliveProbes = u32(n)
		}
		if t := k.GetTime(); positive(t) {
			out.KeepaliveTime = seconds(t)
		}
		if t := k.GetInterval(); positive(t) {
			out.KeepaliveInterval = seconds(t)
		}
	}
	d.UpstreamConnectionOptions = &clusterv3.UpstreamConnectionOptions{TcpKeepalive: out}
}

// seconds rounds up to whole seconds.
func seconds(t *durationpb.Duration) *wrapperspb.UInt32Value {
	return u32(saturate(uint64((t.AsDuration() + time.Second - 1) / time.Second)))
}

// upgrades reports whether requests that come as HTTP/1.1 go on as HTTP/2. A
// rule decides for any port; the mesh's setting only for ports that are known
// to speak HTTP, where the other side has not been sniffed.
func upgrades(in Inputs, p mesh.Protocol, http *networking.ConnectionPoolSettings_HTTPSettings) bool {
	switch http.GetH2UpgradePolicy() {
	case networking.ConnectionPoolSettings_HTTPSettings_UPGRADE:
		return true
	case networking.ConnectionPoolSettings_HTTPSettings_DO_NOT_UPGRADE:
		return false
	}
	return p.IsHTTP() && in.Catalog.Settings.Mesh.GetH2UpgradePolicy() == meshconfig.MeshConfig_UPGRADE
}

// measurable reports whether proxies can take a duration.
func measurable(t *durationpb.Duration) bool {
	return t != nil && t.CheckValid() == nil && t.GetSeconds() >= 0 && t.GetNanos() >= 0 && t.GetSeconds() < forever
}

// positive reports whether proxies can take a duration that must not be 0. They
// count milliseconds.
func positive(t *durationpb.Duration) bool {
	return measurable(t) && t.AsDuration() >= time.Millisecond
}
