package kube

import (
	"context"
	"net"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
)

// Defaults of the connection to an API server.
const (
	defaultQPS       = 80
	defaultBurst     = 160
	defaultUserAgent = "isthmus"
	dialTimeout      = 10 * time.Second
	// A TCP connection that is dead is given up after keepAliveIdle +
	// keepAliveCount * keepAliveInterval: 45 s.
	keepAliveIdle     = 15 * time.Second
	keepAliveInterval = 10 * time.Second
	keepAliveCount    = 3
)

// RESTDefaults prepares a client configuration for reading a cluster. It sets
// what is not set: protobuf where the server has it, requests per second, a
// user agent, and a dialer with deadlines.
//
// It leaves Timeout alone, because that would end watches too: instead a
// [Source] bounds every list and every start of a watch by itself. A watch over
// a dead connection is noticed within 45 s, twice over: client-go pings HTTP/2
// connections that were silent for 30 s and waits 15 s for the answer (the
// environment variables HTTP2_READ_IDLE_TIMEOUT_SECONDS and
// HTTP2_PING_TIMEOUT_SECONDS change that), and the dialer's TCP keep-alive does
// the same for HTTP/1.1.
func RESTDefaults(c *rest.Config) {
	if c.ContentType == "" && c.AcceptContentTypes == "" {
		c.ContentType = runtime.ContentTypeProtobuf
		c.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	}
	if c.QPS == 0 {
		c.QPS = defaultQPS
	}
	if c.Burst == 0 {
		c.Burst = defaultBurst
	}
	if c.UserAgent == "" {
		c.UserAgent = defaultUserAgent
	}
	if c.Dial == nil {
		c.Dial = dial
	}
}

// JSONConfig returns a copy of a client configuration for kinds that only have a
// JSON form (custom resources).
func JSONConfig(c *rest.Config) *rest.Config {
	out := rest.CopyConfig(c)
	out.ContentType, out.AcceptContentTypes = runtime.ContentTypeJSON, runtime.ContentTypeJSON
	return out
}

func dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout, KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: keepAliveIdle, Interval: keepAliveInterval, Count: keepAliveCount}}
	return d.DialContext(ctx, network, address)
}
