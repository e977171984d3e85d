package simulate

import (
	"fmt"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
)

// defaultPatience is how long a proxy waits for an answer if a route says nothing.
const defaultPatience = 15 * time.Second

// Patience is how long a proxy waits for an upstream before it answers 504 by
// itself, for one attempt; 0 is for ever.
//
// Source: timeout and per_try_timeout in the message RouteAction of Envoy's
// documentation.
func (a *Answer) Patience() time.Duration {
	out := defaultPatience
	if t := a.Action.GetTimeout(); t != nil {
		out = t.AsDuration()
	}
	if t := a.Action.GetRetryPolicy().GetPerTryTimeout().AsDuration(); t > 0 && (out == 0 || t < out) {
		out = t
	}
	return out
}

// HTTP2 reports whether a proxy speaks HTTP/2 to an upstream, for a client that
// does or does not.
func (p *Proxy) HTTP2(upstream string, client bool) (bool, error) {
	config := p.Upstreams[upstream].GetTypedExtensionProtocolOptions()["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"]
	if config == nil {
		return oldHTTP2(p.Upstreams[upstream]), nil
	}
	var o httpv3.HttpProtocolOptions
	if err := config.UnmarshalTo(&o); err != nil {
		return false, fmt.Errorf("decode HTTP options of upstream %s: %w", upstream, err)
	}
	if o.GetUseDownstreamProtocolConfig() != nil {
		return client, nil
	}
	return o.GetExplicitHttpConfig().GetHttp2ProtocolOptions() != nil, nil
}

// oldHTTP2 looks at the field that was there before the options.
func oldHTTP2(u *clusterv3.Cluster) bool {
	return u.GetHttp2ProtocolOptions() != nil //nolint:staticcheck // Envoy still reads it
}
