package build

import (
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/isthmus-mesh/isthmus/mesh"
)

const httpOptionsName = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

// passthroughIdle ends HTTP connections of the passthrough upstreams that
// nobody uses.
const passthroughIdle = 5 * time.Minute

// draft is an upstream in the making: its HTTP options are packed at the end.
type draft struct {
	*clusterv3.Cluster
	// http is nil while nothing is said about HTTP.
	http *httpv3.HttpProtocolOptions
}

// options returns the HTTP options to add to.
func (d *draft) options() *httpv3.HttpProtocolOptions {
	if d.http == nil {
		d.http = &httpv3.HttpProtocolOptions{}
	}
	return d.http
}

// common returns the options of all versions of HTTP to add to.
func (d *draft) common() *corev3.HttpProtocolOptions {
	o := d.options()
	if o.CommonHttpProtocolOptions == nil {
		o.CommonHttpProtocolOptions = &corev3.HttpProtocolOptions{}
	}
	return o.CommonHttpProtocolOptions
}

// http2Only makes the upstream speak HTTP/2 from the first byte.
func (d *draft) http2Only() {
	d.options().UpstreamProtocolOptions = &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
		ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
				Http2ProtocolOptions: &corev3.Http2ProtocolOptions{},
			},
		},
	}
}

// likeDownstream makes the upstream speak the version of HTTP that the client
// speaks, as for ports whose protocol is found out by sniffing.
func (d *draft) likeDownstream() {
	d.options().UpstreamProtocolOptions = &httpv3.HttpProtocolOptions_UseDownstreamProtocolConfig{
		UseDownstreamProtocolConfig: &httpv3.HttpProtocolOptions_UseDownstreamHttpConfig{
			HttpProtocolOptions:  &corev3.Http1ProtocolOptions{},
			Http2ProtocolOptions: &corev3.Http2ProtocolOptions{},
		},
	}
}

// speaksHTTP2 reports whether the upstream speaks HTTP/2 and nothing else.
func (d *draft) speaksHTTP2() bool {
	return d.http.GetExplicitHttpConfig().GetHttp2ProtocolOptions() != nil
}

// http2 returns the options of HTTP/2 if the upstream may speak it, else nil.
func (d *draft) http2() *corev3.Http2ProtocolOptions {
	if o := d.http.GetExplicitHttpConfig().GetHttp2ProtocolOptions(); o != nil {
		return o
	}
	return d.http.GetUseDownstreamProtocolConfig().GetHttp2ProtocolOptions()
}

// tune applies a proxy's own settings.
func (d *draft) tune(t dialTuning, p mesh.Protocol) {
	if t.buffers {
		d.PerConnectionBufferLimitBytes = u32(t.buffer)
	}
	if !t.keepCase {
		return
	}
	switch o := d.http.GetUpstreamProtocolOptions().(type) {
	case *httpv3.HttpProtocolOptions_UseDownstreamProtocolConfig:
		o.UseDownstreamProtocolConfig.HttpProtocolOptions = &corev3.Http1ProtocolOptions{HeaderKeyFormat: preserveCase()}
	case nil:
		if p.IsHTTP() {
			d.options().UpstreamProtocolOptions = http1Only(&corev3.Http1ProtocolOptions{HeaderKeyFormat: preserveCase()})
		}
	}
}

func http1Only(o *corev3.Http1ProtocolOptions) *httpv3.HttpProtocolOptions_ExplicitHttpConfig_ {
	return &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
		ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{HttpProtocolOptions: o}}}
}

// finish packs the upstream. Envoy wants to be told a version of HTTP by whom
// says anything about it: HTTP/1.1 unless it is another.
func (d *draft) finish() *clusterv3.Cluster {
	if d.http == nil {
		return d.Cluster
	}
	if d.http.UpstreamProtocolOptions == nil {
		d.http.UpstreamProtocolOptions = http1Only(&corev3.Http1ProtocolOptions{})
	}
	d.TypedExtensionProtocolOptions = map[string]*anypb.Any{httpOptionsName: mustAny(d.http)}
	return d.Cluster
}
