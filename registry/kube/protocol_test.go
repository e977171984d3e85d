package kube

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

func TestProtocolOf(t *testing.T) {
	tests := []struct {
		transport corev1.Protocol
		name, app string
		port      int32
		want      mesh.Protocol
	}{
		{name: "http", want: mesh.ProtocolHTTP},
		{name: "http-web", want: mesh.ProtocolHTTP},
		{name: "HTTP-web", want: mesh.ProtocolHTTP},
		{name: "http2-x", want: mesh.ProtocolHTTP2},
		{name: "https-x", want: mesh.ProtocolHTTPS},
		{name: "http_proxy", want: mesh.ProtocolHTTPProxy},
		{name: "grpc", want: mesh.ProtocolGRPC},
		{name: "grpc-web", want: mesh.ProtocolGRPCWeb},
		{name: "gRPC-Web-ui", want: mesh.ProtocolGRPCWeb},
		{name: "grpc-webby", want: mesh.ProtocolGRPCWeb},
		{name: "grpc-wex", want: mesh.ProtocolGRPC},
		{name: "tcp-x", want: mesh.ProtocolTCP},
		{name: "tls", want: mesh.ProtocolTLS},
		{name: "mongo", want: mesh.ProtocolMongo},
		{name: "redis-x", want: mesh.ProtocolRedis},
		{name: "mysql", want: mesh.ProtocolMySQL},
		{name: "hbone", want: mesh.ProtocolHBONE},
		{name: "udp-x", want: mesh.ProtocolUDP},
		{name: "httpx", want: mesh.ProtocolAuto},
		{name: "web-http", want: mesh.ProtocolAuto},
		{name: "", port: 80, want: mesh.ProtocolAuto},
		{name: "", port: 25, want: mesh.ProtocolTCP},
		{name: "x", port: 53, want: mesh.ProtocolTCP},
		{name: "x", port: 3306, want: mesh.ProtocolTCP},
		{name: "x", port: 27017, want: mesh.ProtocolTCP},
		{name: "http", port: 3306, want: mesh.ProtocolHTTP},
		{name: "tcp", app: "http", want: mesh.ProtocolHTTP},
		{name: "http", app: "kubernetes.io/h2c", want: mesh.ProtocolHTTP2},
		{name: "http", app: "kubernetes.io/ws", want: mesh.ProtocolHTTP},
		{name: "http", app: "kubernetes.io/wss", want: mesh.ProtocolHTTPS},
		{name: "http", app: "example.com/own", want: mesh.ProtocolAuto},
		{name: "kubernetes.io/h2c", want: mesh.ProtocolAuto},
		{name: "http", app: "other", port: 3306, want: mesh.ProtocolTCP},
		{transport: corev1.ProtocolUDP, name: "http", app: "http", want: mesh.ProtocolUDP},
		{transport: corev1.ProtocolSCTP, name: "http", want: mesh.ProtocolTCP},
	}
	for _, tt := range tests {
		p := corev1.ServicePort{Protocol: tt.transport, Name: tt.name, Port: tt.port}
		if tt.app != "" {
			p.AppProtocol = &tt.app
		}
		require.Equal(t, tt.want, protocolOf(p), "%+v", tt)
	}
}
