package build

import (
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	preservecasev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/header_formatters/preserve_case/v3"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	meshconfig "istio.io/api/mesh/v1alpha1"
)

// tune applies a proxy's own settings to a connection manager.
func (f *filters) tune(h *hcmv3.HttpConnectionManager) {
	headers := f.own.GetProxyHeaders()
	if f.v.Tuning.idles {
		commonOptions(h).IdleTimeout = duration(f.v.Tuning.idle)
	}
	if f.v.Tuning.http10 {
		http1Options(h).AcceptHttp_10 = true
	}
	if headers.GetPreserveHttp1HeaderCase().GetValue() {
		http1Options(h).HeaderKeyFormat = preserveCase()
	}
	if s := headers.GetServer(); s.GetDisabled().GetValue() {
		h.ServerName, h.ServerHeaderTransformation = "", hcmv3.HttpConnectionManager_PASS_THROUGH
	} else if s.GetValue() != "" {
		h.ServerName = s.GetValue()
	}
	if headers.GetRequestId().GetDisabled().GetValue() {
		h.GenerateRequestId = boolean(false)
	}
	h.AppendXForwardedPort = headers.GetXForwardedPort().GetEnabled().GetValue()
	if f.dir == DirectionInbound {
		tellCertificate(h, headers)
	}
	f.tuneConnections(h)
}

// tellCertificate says what the workload is told of the certificates of its
// clients.
func tellCertificate(h *hcmv3.HttpConnectionManager, headers *meshconfig.ProxyConfig_ProxyHeaders) {
	h.ForwardClientCertDetails = forwardDetails(headers.GetForwardedClientCert(), hcmv3.HttpConnectionManager_APPEND_FORWARD)
	told := func(b *wrapperspb.BoolValue, otherwise bool) bool {
		if b == nil {
			return otherwise
		}
		return b.GetValue()
	}
	s := headers.GetSetCurrentClientCertDetails()
	h.SetCurrentClientCertDetails = &hcmv3.HttpConnectionManager_SetCurrentClientCertDetails{
		Subject: boolean(told(s.GetSubject(), true)), Uri: told(s.GetUri(), true), Dns: told(s.GetDns(), true),
		Cert: told(s.GetCert(), false), Chain: told(s.GetChain(), false),
	}
}

func forwardDetails(d meshconfig.ForwardClientCertDetails, otherwise hcmv3.HttpConnectionManager_ForwardClientCertDetails) hcmv3.HttpConnectionManager_ForwardClientCertDetails {
	switch d {
	case meshconfig.ForwardClientCertDetails_SANITIZE:
		return hcmv3.HttpConnectionManager_SANITIZE
	case meshconfig.ForwardClientCertDetails_FORWARD_ONLY:
		return hcmv3.HttpConnectionManager_FORWARD_ONLY
	case meshconfig.ForwardClientCertDetails_APPEND_FORWARD:
		return hcmv3.HttpConnectionManager_APPEND_FORWARD
	case meshconfig.ForwardClientCertDetails_SANITIZE_SET:
		return hcmv3.HttpConnectionManager_SANITIZE_SET
	case meshconfig.ForwardClientCertDetails_ALWAYS_FORWARD_ONLY:
		return hcmv3.HttpConnectionManager_ALWAYS_FORWARD_ONLY
	}
	return otherwise
}

// atEdgeProfile fills in what the profile for the edge of a mesh says where the
// settings say nothing. Source: Envoy's best practices for an edge proxy, as the
// reference of ProxyConfig.ConnectionSettings lists them.
func atEdgeProfile(c *meshconfig.ProxyConfig_ConnectionSettings) *meshconfig.ProxyConfig_ConnectionSettings {
	if c.GetProfile() != meshconfig.ProxyConfig_ConnectionSettings_EDGE {
		return c
	}
	number := func(n int32) *wrapperspb.Int32Value { return wrapperspb.Int32(n) }
	out := &meshconfig.ProxyConfig_ConnectionSettings{
		ListenerPerConnectionBufferLimitBytes: number(32 << 10),
		ClusterPerConnectionBufferLimitBytes:  number(32 << 10),
		HttpIdleTimeout:                       duration(time.Hour),
		HttpStreamIdleTimeout:                 duration(5 * time.Minute),
		HttpRequestTimeout:                    duration(5 * time.Minute),
		HttpRequestHeadersTimeout:             duration(time.Minute),
		HttpMaxConcurrentStreams:              number(100),
		Http2InitialStreamWindowSize:          number(64 << 10),
		Http2InitialConnectionWindowSize:      number(1 << 20),
		HttpHeadersWithUnderscoresAction:      meshconfig.ProxyConfig_ConnectionSettings_HEADERS_WITH_UNDERSCORES_REJECT_REQUEST,
		HttpMergeSlashes:                      boolean(true),
		HttpPathWithEscapedSlashesAction:      meshconfig.ProxyConfig_ConnectionSettings_UNESCAPE_AND_REDIRECT,
	}
	c.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, given protoreflect.Value) bool {
		out.ProtoReflect().Set(f, given)
		return true
	})
	return out
}

// tuneConnections applies connection settings.
func (f *filters) tuneConnections(h *hcmv3.HttpConnectionManager) {
	c := f.own.GetConnectionSettings()
	if c == nil {
		return
	}
	for _, t := range []struct {
		to    func() **durationpb.Duration // made only if there is something to set
		value *durationpb.Duration
	}{
		{func() **durationpb.Duration { return &commonOptions(h).IdleTimeout }, c.GetHttpIdleTimeout()},
		{func() **durationpb.Duration { return &commonOptions(h).MaxConnectionDuration }, c.GetHttpMaxConnectionDuration()},
		{func() **durationpb.Duration { return &commonOptions(h).MaxStreamDuration }, c.GetHttpMaxStreamDuration()},
		{func() **durationpb.Duration { return &h.StreamIdleTimeout }, c.GetHttpStreamIdleTimeout()},
		{func() **durationpb.Duration { return &h.RequestTimeout }, c.GetHttpRequestTimeout()},
		{func() **durationpb.Duration { return &h.RequestHeadersTimeout }, c.GetHttpRequestHeadersTimeout()},
		{func() **durationpb.Duration { return &h.DrainTimeout }, c.GetHttpDrainTimeout()},
	} {
		if measurable(t.value) {
			*t.to() = t.value
		}
	}
	for _, n := range []struct {
		to    func() **wrapperspb.UInt32Value
		value *wrapperspb.Int32Value
		least int32
	}{
		{func() **wrapperspb.UInt32Value { return &http2Options(h).MaxConcurrentStreams }, c.GetHttpMaxConcurrentStreams(), 1},
		{func() **wrapperspb.UInt32Value { return &http2Options(h).InitialStreamWindowSize }, c.GetHttp2InitialStreamWindowSize(), leastWindow},
		{func() **wrapperspb.UInt32Value { return &http2Options(h).InitialConnectionWindowSize }, c.GetHttp2InitialConnectionWindowSize(), leastWindow},
	} {
		if n.value != nil && n.value.GetValue() >= n.least {
			*n.to() = u32(uint32(n.value.GetValue()))
		}
	}
	tuneRequests(h, c)
}

// tuneRequests applies what connection settings say of headers and paths: of the
// latter before what MeshConfig says.
func tuneRequests(h *hcmv3.HttpConnectionManager, c *meshconfig.ProxyConfig_ConnectionSettings) {
	switch c.GetHttpHeadersWithUnderscoresAction() {
	case meshconfig.ProxyConfig_ConnectionSettings_HEADERS_WITH_UNDERSCORES_REJECT_REQUEST:
		commonOptions(h).HeadersWithUnderscoresAction = corev3.HttpProtocolOptions_REJECT_REQUEST
	case meshconfig.ProxyConfig_ConnectionSettings_HEADERS_WITH_UNDERSCORES_DROP_HEADER:
		commonOptions(h).HeadersWithUnderscoresAction = corev3.HttpProtocolOptions_DROP_HEADER
	}
	if m := c.GetHttpMergeSlashes(); m != nil {
		h.MergeSlashes = m.GetValue()
	}
	switch c.GetHttpPathWithEscapedSlashesAction() {
	case meshconfig.ProxyConfig_ConnectionSettings_KEEP_UNCHANGED:
		h.PathWithEscapedSlashesAction = hcmv3.HttpConnectionManager_KEEP_UNCHANGED
	case meshconfig.ProxyConfig_ConnectionSettings_REJECT_REQUEST:
		h.PathWithEscapedSlashesAction = hcmv3.HttpConnectionManager_REJECT_REQUEST
	case meshconfig.ProxyConfig_ConnectionSettings_UNESCAPE_AND_REDIRECT:
		h.PathWithEscapedSlashesAction = hcmv3.HttpConnectionManager_UNESCAPE_AND_REDIRECT
	case meshconfig.ProxyConfig_ConnectionSettings_UNESCAPE_AND_FORWARD:
		h.PathWithEscapedSlashesAction = hcmv3.HttpConnectionManager_UNESCAPE_AND_FORWARD
	}
}

// leastWindow is the smallest window that HTTP/2 knows, in bytes.
const leastWindow = 65535

// tuneListener applies a proxy's own settings to a listener.
func tuneListener(v View, l *listenerv3.Listener) {
	if n := v.Tuning.config().GetConnectionSettings().GetListenerPerConnectionBufferLimitBytes(); n != nil && n.GetValue() >= 0 {
		l.PerConnectionBufferLimitBytes = u32(uint32(n.GetValue()))
	}
	inbound := l.GetTrafficDirection() == inboundTraffic
	if inbound && v.Tuning.balancedIn || !inbound && v.Tuning.balancedOut && l.GetName() != ListenerVirtualOutbound {
		l.ConnectionBalanceConfig = &listenerv3.Listener_ConnectionBalanceConfig{
			BalanceType: &listenerv3.Listener_ConnectionBalanceConfig_ExactBalance_{
				ExactBalance: &listenerv3.Listener_ConnectionBalanceConfig_ExactBalance{}}}
	}
}

func commonOptions(h *hcmv3.HttpConnectionManager) *corev3.HttpProtocolOptions {
	if h.CommonHttpProtocolOptions == nil {
		h.CommonHttpProtocolOptions = &corev3.HttpProtocolOptions{}
	}
	return h.CommonHttpProtocolOptions
}

func http1Options(h *hcmv3.HttpConnectionManager) *corev3.Http1ProtocolOptions {
	if h.HttpProtocolOptions == nil {
		h.HttpProtocolOptions = &corev3.Http1ProtocolOptions{}
	}
	return h.HttpProtocolOptions
}

func http2Options(h *hcmv3.HttpConnectionManager) *corev3.Http2ProtocolOptions {
	if h.Http2ProtocolOptions == nil {
		h.Http2ProtocolOptions = &corev3.Http2ProtocolOptions{}
	}
	return h.Http2ProtocolOptions
}

// preserveCase keeps the names of HTTP/1 headers as they came.
func preserveCase() *corev3.Http1ProtocolOptions_HeaderKeyFormat {
	return &corev3.Http1ProtocolOptions_HeaderKeyFormat{
		HeaderFormat: &corev3.Http1ProtocolOptions_HeaderKeyFormat_StatefulFormatter{StatefulFormatter: &corev3.TypedExtensionConfig{
			Name:        "envoy.http.stateful_header_formatters.preserve_case",
			TypedConfig: mustAny(&preservecasev3.PreserveCaseFormatterConfig{}),
		}},
	}
}
