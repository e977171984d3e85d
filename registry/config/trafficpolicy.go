package config

import (
	"math"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
)

// portPolicy is what the policy of a whole host and that of one of its ports
// have in common.
type portPolicy interface {
	GetLoadBalancer() *networking.LoadBalancerSettings
	GetConnectionPool() *networking.ConnectionPoolSettings
	GetOutlierDetection() *networking.OutlierDetection
	GetTls() *networking.ClientTLSSettings
}

func isEmptyPolicy(p portPolicy) bool {
	return p.GetLoadBalancer() == nil && p.GetConnectionPool() == nil && p.GetOutlierDetection() == nil && p.GetTls() == nil
}

func validateTrafficPolicy(c *checker, p *networking.TrafficPolicy) {
	if p == nil {
		return
	}
	if isEmptyPolicy(p) && len(p.GetPortLevelSettings()) == 0 && p.GetTunnel() == nil && p.GetProxyProtocol() == nil && p.GetRetryBudget() == nil {
		c.failf("is empty; remove it or give a setting")
	}
	if p.GetTunnel() != nil && p.GetProxyProtocol() != nil {
		c.at("proxyProtocol").failf("is set beside tunnel; keep one")
	}
	validatePortPolicy(c, p)
	for i, s := range p.GetPortLevelSettings() {
		at := c.index("portLevelSettings", i)
		if s.GetPort() == nil {
			at.at("port").failf("is missing; give the number of a port")
		}
		if isEmptyPolicy(s) {
			at.failf("is empty; remove it or give a setting")
		}
		validatePortPolicy(at, s)
	}
	if t := p.GetTunnel(); t != nil {
		at := c.at("tunnel")
		if x := t.GetProtocol(); x != "" && x != "CONNECT" && x != "POST" {
			at.at("protocol").failf("%q is not known; use CONNECT or POST", clip(x))
		}
		at.at("targetHost").address(t.GetTargetHost())
		at.at("targetPort").port(int64(t.GetTargetPort()))
	}
	if b := p.GetRetryBudget(); b != nil {
		if v := b.GetPercent().GetValue(); !(v >= 0 && v <= 100) {
			c.at("retryBudget.percent").failf("%v is not a percentage; use 0-100", v)
		}
	}
}

func validatePortPolicy(c *checker, p portPolicy) {
	validateOutlierDetection(c.at("outlierDetection"), p.GetOutlierDetection())
	validateConnectionPool(c.at("connectionPool"), p.GetConnectionPool())
	validateLoadBalancer(c.at("loadBalancer"), p.GetLoadBalancer(), p.GetOutlierDetection() != nil)
	validateClientTLS(c.at("tls"), p.GetTls())
}

func validateOutlierDetection(c *checker, o *networking.OutlierDetection) {
	c.at("baseEjectionTime").millis(o.GetBaseEjectionTime())
	c.at("interval").millis(o.GetInterval())
	if o.GetConsecutiveErrors() != 0 { //nolint:staticcheck // deprecated, and that is what is said
		c.at("consecutiveErrors").warnf("is deprecated; use consecutiveGatewayErrors or consecutive5xxErrors")
	}
	if !o.GetSplitExternalLocalOriginErrors() && o.GetConsecutiveLocalOriginFailures().GetValue() > 0 {
		c.at("consecutiveLocalOriginFailures").failf("has no effect without splitExternalLocalOriginErrors; set that to true")
	}
	c.at("maxEjectionPercent").percent(int64(o.GetMaxEjectionPercent()))
	c.at("minHealthPercent").percent(int64(o.GetMinHealthPercent()))
}

func validateConnectionPool(c *checker, p *networking.ConnectionPoolSettings) {
	if p == nil {
		return
	}
	if p.GetHttp() == nil && p.GetTcp() == nil {
		c.failf("is empty; give http or tcp")
	}
	if h := p.GetHttp(); h != nil {
		at := c.at("http")
		at.at("http1MaxPendingRequests").notNegative(int64(h.GetHttp1MaxPendingRequests()))
		at.at("http2MaxRequests").notNegative(int64(h.GetHttp2MaxRequests()))
		at.at("maxRequestsPerConnection").notNegative(int64(h.GetMaxRequestsPerConnection()))
		at.at("maxRetries").notNegative(int64(h.GetMaxRetries()))
		at.at("maxConcurrentStreams").notNegative(int64(h.GetMaxConcurrentStreams()))
		at.at("idleTimeout").millis(h.GetIdleTimeout())
		at.at("http2KeepAlive.interval").millis(h.GetHttp2KeepAlive().GetInterval())
		at.at("http2KeepAlive.timeout").millis(h.GetHttp2KeepAlive().GetTimeout())
		if h.GetUseClientProtocol() && h.GetH2UpgradePolicy() == networking.ConnectionPoolSettings_HTTPSettings_UPGRADE {
			at.at("useClientProtocol").failf("is set beside h2UpgradePolicy UPGRADE; keep one")
		}
	}
	if t := p.GetTcp(); t != nil {
		at := c.at("tcp")
		at.at("maxConnections").notNegative(int64(t.GetMaxConnections()))
		at.at("connectTimeout").millis(t.GetConnectTimeout())
		at.at("maxConnectionDuration").millis(t.GetMaxConnectionDuration())
		if i := t.GetIdleTimeout(); i.AsDuration().Milliseconds() != 0 { // 0 turns it off
			at.at("idleTimeout").millis(i)
		}
		at.at("tcpKeepalive.time").millis(t.GetTcpKeepalive().GetTime())
		at.at("tcpKeepalive.interval").millis(t.GetTcpKeepalive().GetInterval())
	}
}

func validateLoadBalancer(c *checker, l *networking.LoadBalancerSettings, outlier bool) {
	if h := l.GetConsistentHash(); h != nil {
		validateConsistentHash(c.at("consistentHash"), h)
	}
	validateLocality(c.at("localityLbSetting"), l.GetLocalityLbSetting(), outlier)
	if l.GetZoneAwareLbSetting().GetEnabled().GetValue() {
		c.at("zoneAwareLbSetting").warnf("is not served: requests are spread as if it were not there; use localityLbSetting to keep them near")
	}
	if d := l.GetWarmupDurationSecs(); d != nil { //nolint:staticcheck // deprecated, and that is what is said
		c.at("warmupDurationSecs").millis(d)
		c.at("warmupDurationSecs").warnf("is deprecated; use warmup.duration")
	}
	w := l.GetWarmup()
	if w == nil {
		return
	}
	at := c.at("warmup")
	if w.GetDuration() == nil {
		at.at("duration").failf("is missing; say how long the warm-up takes")
	}
	at.at("duration").millis(w.GetDuration())
	if v := w.GetMinimumPercent().GetValue(); !(v >= 0 && v <= 100) {
		at.at("minimumPercent").failf("%v is not a percentage; use 0-100", v)
	}
	if a := w.GetAggression(); a != nil && !(a.GetValue() > 0) {
		at.at("aggression").failf("%v is not above 0; use 1 for a straight line, more for a steep start", a.GetValue())
	}
}

func validateConsistentHash(c *checker, h *networking.LoadBalancerSettings_ConsistentHashLB) {
	if k := h.GetHttpCookie(); k != nil && k.GetName() == "" {
		c.at("httpCookie.name").failf("is empty; name the cookie")
	}
	if h.GetMinimumRingSize() != 0 { //nolint:staticcheck // deprecated, and that is what is said
		c.at("minimumRingSize").warnf("is deprecated; use ringHash.minimumRingSize")
		if h.GetHashAlgorithm() != nil {
			c.at("minimumRingSize").failf("is set beside ringHash or maglev; keep one")
		}
	}
	if m := h.GetMaglev(); m != nil {
		const most = 5000011
		switch n := m.GetTableSize(); {
		case n == 0:
			c.at("maglev.tableSize").failf("is 0; give a prime number such as 65537")
		case n >= most:
			c.at("maglev.tableSize").failf("%d is too large; use a prime number below %d", n, most)
		case !isPrime(n):
			c.at("maglev.tableSize").failf("%d is not a prime number; use one such as 65537", n)
		}
	}
}

func isPrime(n uint64) bool {
	if n < 4 {
		return n > 0 // as proxies have it
	}
	if n%2 == 0 {
		return false
	}
	for f, root := uint64(3), uint64(math.Sqrt(float64(n))); f <= root; f += 2 {
		if n%f == 0 {
			return false
		}
	}
	return true
}

// validateClientTLS checks how proxies connect.
func validateClientTLS(c *checker, t *networking.ClientTLSSettings) {
	simple := t.GetMode() == networking.ClientTLSSettings_SIMPLE
	mutual := t.GetMode() == networking.ClientTLSSettings_MUTUAL
	if !simple && !mutual {
		return
	}
	if t.GetInsecureSkipVerify().GetValue() {
		switch at := c.at("insecureSkipVerify"); {
		case t.GetCaCertificates() != "" || len(t.GetSubjectAltNames()) > 0:
			at.failf("is set beside caCertificates or subjectAltNames, which it would make useless; keep one")
		case simple && t.GetCredentialName() != "":
			at.failf("is set beside credentialName, which it would make useless; keep one")
		}
	}
	if name := t.GetCredentialName(); name != "" {
		if t.GetClientCertificate() != "" || t.GetCaCertificates() != "" || t.GetPrivateKey() != "" || t.GetCaCrl() != "" {
			c.at("credentialName").failf("is set beside files; keep one")
		}
		validateCredential(c.at("credentialName"), name)
		return
	}
	if mutual && t.GetClientCertificate() == "" {
		c.at("clientCertificate").failf("is empty; mode MUTUAL needs it, or credentialName")
	}
	if mutual && t.GetPrivateKey() == "" {
		c.at("privateKey").failf("is empty; mode MUTUAL needs it, or credentialName")
	}
}

// validateCredential refuses a ConfigMap of another namespace: whoever writes
// the rule could read it.
func validateCredential(c *checker, name string) {
	rest, ok := strings.CutPrefix(name, "configmap://")
	if !ok {
		return
	}
	if ns, object, ok := strings.Cut(rest, "/"); !ok || object == "" || ns != c.namespace || ns == "" {
		c.failf("%q is not a ConfigMap of the own namespace; write configmap://%s/NAME", clip(name), clip(c.namespace))
	}
}
