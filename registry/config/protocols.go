package config

import (
	"slices"
	"strings"
)

// protocols lists what a port may speak; the documented names come first.
func protocols() []string {
	return []string{"HTTP", "HTTPS", "GRPC", "GRPC-WEB", "HTTP2", "MONGO", "TCP", "TLS",
		"HTTP_PROXY", "REDIS", "MYSQL", "HBONE", "UDP"}
}

// protocol checks the protocol of a port; an empty one, where it is allowed, is
// found out by the proxy.
func (c *checker) protocol(p string, optional bool) {
	if p == "" && optional {
		return
	}
	if !slices.Contains(protocols(), strings.ToUpper(p)) {
		c.failf("%q is not known; use one of %s", clip(p), strings.Join(protocols()[:8], ", "))
	}
}

func speaksHTTP(p string) bool {
	return slices.Contains([]string{"HTTP", "HTTP2", "GRPC", "GRPC-WEB", "HTTP_PROXY"}, strings.ToUpper(p))
}

func speaksTLS(p string) bool { return slices.Contains([]string{"HTTPS", "TLS"}, strings.ToUpper(p)) }
