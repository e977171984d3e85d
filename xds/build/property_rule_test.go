package build

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"
	typebeta "istio.io/api/type/v1beta1"
	"pgregory.net/rapid"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

const mixRoot = "istio-system"

// mixSubsets are the names of all subsets in a mix.
func mixSubsets() []string { return []string{"v1", "east"} }

func mixHash(t *rapid.T) *networking.LoadBalancerSettings {
	h := &networking.LoadBalancerSettings_ConsistentHashLB{HashKey: &networking.LoadBalancerSettings_ConsistentHashLB_UseSourceIp{UseSourceIp: true}}
	switch rapid.IntRange(0, 3).Draw(t, "key") {
	case 0:
		h.HashKey = &networking.LoadBalancerSettings_ConsistentHashLB_HttpCookie{
			HttpCookie: &networking.LoadBalancerSettings_ConsistentHashLB_HTTPCookie{Name: "user", Path: "/", Ttl: mixDuration(t)}}
	case 1:
		h.HashKey = &networking.LoadBalancerSettings_ConsistentHashLB_HttpHeaderName{HttpHeaderName: "x-user"}
	}
	switch rapid.IntRange(0, 3).Draw(t, "hash") {
	case 0:
		h.MinimumRingSize = rapid.SampledFrom([]uint64{0, 7, 1 << 40}).Draw(t, "ring") //nolint:staticcheck // still read
	case 1:
		h.HashAlgorithm = &networking.LoadBalancerSettings_ConsistentHashLB_Maglev{
			Maglev: &networking.LoadBalancerSettings_ConsistentHashLB_MagLev{TableSize: rapid.SampledFrom([]uint64{0, 4, 65537, 1 << 40}).Draw(t, "table")}}
	case 2:
		h.HashAlgorithm = &networking.LoadBalancerSettings_ConsistentHashLB_RingHash_{
			RingHash: &networking.LoadBalancerSettings_ConsistentHashLB_RingHash{MinimumRingSize: rapid.SampledFrom([]uint64{0, 5}).Draw(t, "ring")}}
	}
	return &networking.LoadBalancerSettings{LbPolicy: &networking.LoadBalancerSettings_ConsistentHash{ConsistentHash: h}}
}

func mixBalancer(t *rapid.T) *networking.LoadBalancerSettings {
	if rapid.IntRange(0, 2).Draw(t, "no balancer") == 0 {
		return nil
	}
	if rapid.IntRange(0, 3).Draw(t, "hashed") == 0 {
		return mixHash(t)
	}
	lb := &networking.LoadBalancerSettings{LbPolicy: &networking.LoadBalancerSettings_Simple{
		Simple: networking.LoadBalancerSettings_SimpleLB(rapid.IntRange(0, 6).Draw(t, "simple"))}}
	switch rapid.IntRange(0, 4).Draw(t, "warm-up") {
	case 0:
		lb.WarmupDurationSecs = mixDuration(t) //nolint:staticcheck // still read
	case 1:
		lb.Warmup = &networking.WarmupConfiguration{Duration: mixDuration(t),
			Aggression: mixOf(t, "aggression", nil, wrapperspb.Double(2), wrapperspb.Double(-1)), MinimumPercent: mixOf(t, "percent", nil, wrapperspb.Double(150))}
	}
	if rapid.IntRange(0, 4).Draw(t, "locality setting") == 0 {
		lb.LocalityLbSetting = &networking.LocalityLoadBalancerSetting{FailoverPriority: mixOf(t, "failover priority", []string{"app"}, []string{labelRegion, "tier=1"})}
	}
	return lb
}

// mixDuration is any that may be in an object that was never validated.
func mixDuration(t *rapid.T) *durationpb.Duration {
	return mixOf(t, "duration", nil, durationpb.New(0), durationpb.New(time.Second), durationpb.New(-time.Second),
		durationpb.New(time.Microsecond), &durationpb.Duration{Seconds: 1 << 40}, &durationpb.Duration{Seconds: 1, Nanos: -5})
}

func mixNumber(t *rapid.T) int32 { return mixOf(t, "number", int32(0), 5, -1, 1<<31-1) }

func mixCount(t *rapid.T) *wrapperspb.UInt32Value {
	return mixOf(t, "count", nil, wrapperspb.UInt32(0), wrapperspb.UInt32(3))
}

func mixPool(t *rapid.T) *networking.ConnectionPoolSettings {
	if rapid.Bool().Draw(t, "no pool") {
		return nil
	}
	p := &networking.ConnectionPoolSettings{}
	if rapid.Bool().Draw(t, "tcp pool") {
		p.Tcp = &networking.ConnectionPoolSettings_TCPSettings{MaxConnections: mixNumber(t), ConnectTimeout: mixDuration(t),
			MaxConnectionDuration: mixDuration(t), IdleTimeout: mixDuration(t)}
		if rapid.Bool().Draw(t, "keepalive") {
			p.Tcp.TcpKeepalive = &networking.ConnectionPoolSettings_TCPSettings_TcpKeepalive{Probes: 3, Time: mixDuration(t), Interval: mixDuration(t)}
		}
	}
	if rapid.Bool().Draw(t, "http pool") {
		p.Http = &networking.ConnectionPoolSettings_HTTPSettings{Http1MaxPendingRequests: mixNumber(t), Http2MaxRequests: mixNumber(t),
			MaxRequestsPerConnection: mixNumber(t), MaxRetries: mixNumber(t), IdleTimeout: mixDuration(t), MaxConcurrentStreams: mixNumber(t),
			UseClientProtocol: rapid.Bool().Draw(t, "client's protocol"),
			H2UpgradePolicy:   networking.ConnectionPoolSettings_HTTPSettings_H2UpgradePolicy(rapid.IntRange(0, 2).Draw(t, "upgrade")),
			Http2KeepAlive:    &networking.ConnectionPoolSettings_HTTPSettings_ConnectionKeepalive{Interval: mixDuration(t), Timeout: mixDuration(t)}}
	}
	return p
}

func mixOutliers(t *rapid.T) *networking.OutlierDetection {
	if rapid.Bool().Draw(t, "no outliers") {
		return nil
	}
	return &networking.OutlierDetection{Consecutive_5XxErrors: mixCount(t), ConsecutiveGatewayErrors: mixCount(t), ConsecutiveLocalOriginFailures: mixCount(t),
		SplitExternalLocalOriginErrors: rapid.Bool().Draw(t, "split"), Interval: mixDuration(t), BaseEjectionTime: mixDuration(t),
		MaxEjectionPercent: mixNumber(t), MinHealthPercent: mixNumber(t), OutlierDetectionHttpErrorCodes: mixOf(t, "codes", nil, []uint32{429}, []uint32{503, 429, 503})}
}

func mixTLS(t *rapid.T) *networking.ClientTLSSettings {
	if rapid.Bool().Draw(t, "no TLS") {
		return nil
	}
	return &networking.ClientTLSSettings{Mode: networking.ClientTLSSettings_TLSmode(rapid.IntRange(0, 3).Draw(t, "mode")),
		ClientCertificate: "/etc/cert.pem", PrivateKey: "/etc/key.pem", CaCertificates: mixOf(t, "roots", "", "/etc/ca.pem"), CaCrl: mixOf(t, "CRL", "", "/etc/crl.pem"),
		CredentialName: mixOf(t, "credential", "", "", "mine", "builtin://", "configmap://a/b"), Sni: mixOf(t, "SNI", "", "name.example"),
		SubjectAltNames: mixOf(t, "SANs", nil, []string{"name.example"}), InsecureSkipVerify: mixOf(t, "insecure", nil, wrapperspb.Bool(true))}
}

func mixPolicy(t *rapid.T) *networking.TrafficPolicy {
	if rapid.IntRange(0, 3).Draw(t, "no policy") == 0 {
		return nil
	}
	p := &networking.TrafficPolicy{LoadBalancer: mixBalancer(t), ConnectionPool: mixPool(t), OutlierDetection: mixOutliers(t), Tls: mixTLS(t)}
	if rapid.Bool().Draw(t, "tunnel") {
		p.Tunnel = &networking.TrafficPolicy_TunnelSettings{Protocol: mixOf(t, "method", "", "POST"), TargetHost: mixOf(t, "target", "", "far.example", "fd00::1"), TargetPort: 443}
	}
	if rapid.Bool().Draw(t, "PROXY") {
		p.ProxyProtocol = &networking.TrafficPolicy_ProxyProtocol{Version: networking.TrafficPolicy_ProxyProtocol_VERSION(rapid.IntRange(0, 1).Draw(t, "version"))}
	}
	if rapid.Bool().Draw(t, "budget") {
		p.RetryBudget = &networking.TrafficPolicy_RetryBudget{Percent: mixOf(t, "percent", nil, wrapperspb.Double(20), wrapperspb.Double(-3)), MinRetryConcurrency: 3}
	}
	if rapid.Bool().Draw(t, "port level") {
		p.PortLevelSettings = []*networking.TrafficPolicy_PortTrafficPolicy{{Port: &networking.PortSelector{Number: uint32(mixNumbers[0])},
			LoadBalancer: mixBalancer(t), ConnectionPool: mixPool(t), OutlierDetection: mixOutliers(t), Tls: mixTLS(t)}}
	}
	return p
}

// mixRule draws a DestinationRule, or the end of one.
func mixRule(t *rapid.T) registry.ObjectState {
	k := mesh.ObjectKey{Kind: mesh.KindDestinationRule, Namespace: mixOf(t, "rule namespace", "a", "b", mixRoot), Name: mixOf(t, "rule", "r1", "r2")}
	if rapid.IntRange(0, 4).Draw(t, "rule gone") == 0 {
		return registry.ObjectState{Key: k}
	}
	r := &networking.DestinationRule{
		Host:          mixOf(t, "rule host", "x", "x.a.svc.cluster.local", "*.a.svc.cluster.local", "*.local", "*"),
		TrafficPolicy: mixPolicy(t),
		ExportTo:      mixOf(t, "rule exportTo", nil, nil, []string{"*"}, []string{"."}, []string{"b"}, []string{"b", "."}),
	}
	if rapid.IntRange(0, 3).Draw(t, "selective") == 0 {
		r.WorkloadSelector = &typebeta.WorkloadSelector{MatchLabels: map[string]string{"app": mixOf(t, "selected", "x", "y")}}
	}
	for _, s := range []*networking.Subset{
		{Name: "v1", Labels: map[string]string{"version": "v1"}, TrafficPolicy: mixPolicy(t)},
		{Name: "east", Labels: map[string]string{labelCluster: "c2", labelRegion: "r1"}},
	} {
		if rapid.Bool().Draw(t, "subset "+s.Name) {
			r.Subsets = append(r.Subsets, s)
		}
	}
	o := &mesh.Object{Key: k, Version: strconv.Itoa(rapid.IntRange(0, 1<<30).Draw(t, "version")), Spec: r,
		Origin:  mesh.ObjectRef{Cluster: "c1", Kind: string(k.Kind), Namespace: k.Namespace, Name: k.Name},
		Created: time.Unix(int64(rapid.IntRange(0, 2).Draw(t, "age")), 0)}
	return registry.ObjectState{Key: k, Object: o}
}

// mixSidecar draws the Sidecar a/s, or its end.
func mixSidecar(t *rapid.T) registry.ObjectState {
	k := mesh.ObjectKey{Kind: mesh.KindSidecar, Namespace: "a", Name: "s"}
	if rapid.IntRange(0, 3).Draw(t, "Sidecar gone") == 0 {
		return registry.ObjectState{Key: k}
	}
	s := &networking.Sidecar{}
	for range rapid.IntRange(0, 2).Draw(t, "egress") {
		e := &networking.IstioEgressListener{Hosts: mixOf(t, "imports", []string{"*/*"}, []string{"./*"}, []string{"a/x.a.svc.cluster.local"}, []string{"~/*"}, []string{"b/*.local"}, []string{"*/*", "~a/*"}, []string{"*/*", "~/x.a.svc.cluster.local"})}
		if rapid.Bool().Draw(t, "one port") {
			e.Port = &networking.SidecarPort{Number: uint32(mixOf(t, "egress port", mixNumbers...)), Protocol: "HTTP", Name: "http"}
		}
		s.Egress = append(s.Egress, e)
	}
	if rapid.Bool().Draw(t, "inbound pool") {
		s.InboundConnectionPool = mixPool(t)
	}
	return registry.ObjectState{Key: k, Object: &mesh.Object{Key: k, Version: strconv.Itoa(rapid.IntRange(0, 1<<30).Draw(t, "version")), Spec: s}}
}

// mixServes are the names of the inbound upstreams of a view that the services
// of the catalog account for: when a service goes or gets other ports, views are
// derived anew.
func mixServes(in Inputs, v View) map[string]bool {
	out := map[string]bool{}
	for _, port := range inboundPorts(v) {
		targets := targetsAt(v, port)
		if len(targets) == 0 {
			continue // routers and gRPC serve none
		}
		first := targets[0]
		s := in.Catalog.Service(mesh.ServiceKey{Namespace: first.Namespace, Hostname: mesh.Hostname(first.Hostname)})
		name := UpstreamName(DirectionInbound, port, "", "")
		out[name] = s != nil && slices.Contains(servingNames(in, nil, s), name)
	}
	return out
}

func mixInbound(name string) bool { return strings.HasPrefix(name, string(DirectionInbound)) }

// TestRulesAreFoundAlike: whoever gets a rule from the same objects gets the same
// pointer, whatever was asked before; and the merged rule has every subset once.
func TestRulesAreFoundAlike(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l, v := mixLab(t), mixView(t)
		for range 4 {
			l.sinks["c1"].Apply(registry.Update{Objects: []registry.ObjectState{mixRule(t)}})
		}
		in := l.in()
		for s := range in.Catalog.Services() {
			r := ruleFor(in, v, s)
			if again := ruleFor(in, v, s); again != r {
				t.Fatalf("two rules for %v", s.Key)
			}
			if r == nil {
				continue
			}
			if ns := r.origin.Key.Namespace; ns != v.Namespace && ns != s.Key.Namespace && ns != mixRoot {
				t.Fatalf("the rule of %s for %s is not its client's", r.origin.Key, s.Key)
			}
			if _, ok := hostRank(string(r.host), s.Key.Hostname); !ok {
				t.Fatalf("rule for %s about %s", r.host, s.Key)
			}
			seen := map[string]bool{}
			for _, sub := range r.subsets {
				if seen[sub.GetName()] {
					t.Fatalf("subset %s twice", sub.GetName())
				}
				seen[sub.GetName()] = true
			}
		}
	})
}

// TestPolicyOfAPortHasNoPortsLeft, and what is worked out is what Istio documents.
func TestPolicyOfAPortHasNoPortsLeft(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := mixRule(t)
		if o.Object == nil {
			return
		}
		spec := o.Object.Spec.(*networking.DestinationRule)
		before := proto.Clone(spec)
		rule := mergeRules("h", []*ruleObject{{object: o.Object, spec: spec}})
		for _, name := range append(mixSubsets(), "") {
			port := rapid.SampledFrom(mixNumbers).Draw(t, "port")
			p := rule.policyFor(port, name)
			top := spec.GetTrafficPolicy()
			ported := len(top.GetPortLevelSettings()) > 0 && port == mixNumbers[0]
			if sub := rule.subset(name).GetTrafficPolicy(); sub == nil && ported && p.GetTls() != top.GetPortLevelSettings()[0].GetTls() {
				t.Fatal("a port's settings stand in for those of all ports")
			} else if sub == nil && !ported && p != top {
				t.Fatal("without settings of its own the policy is the service's")
			} else if sub.GetTls() != nil && len(sub.GetPortLevelSettings()) == 0 && p.GetTls() != sub.GetTls() {
				t.Fatal("a subset's settings override the service's")
			}
		}
		if !proto.Equal(before, spec) {
			t.Fatal("the object was changed")
		}
	})
}
