package kube

import (
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// protocolOf chooses the protocol of a service port as Istio does: the
// transport first, then appProtocol, then the port's name up to its first dash.
// What says nothing is sniffed, except on ports whose server speaks first.
func protocolOf(p corev1.ServicePort) mesh.Protocol {
	switch p.Protocol {
	case corev1.ProtocolUDP:
		return mesh.ProtocolUDP
	case corev1.ProtocolSCTP:
		return mesh.ProtocolTCP
	}
	name := p.Name
	if p.AppProtocol != nil {
		name = *p.AppProtocol
		switch name {
		case "kubernetes.io/h2c":
			return mesh.ProtocolHTTP2
		case "kubernetes.io/ws":
			return mesh.ProtocolHTTP
		case "kubernetes.io/wss":
			return mesh.ProtocolHTTPS
		}
	}
	if proto, ok := protocolByName(name); ok {
		return proto
	}
	if serverFirst(p.Port) {
		return mesh.ProtocolTCP
	}
	return mesh.ProtocolAuto
}

// protocolByName reads a declared protocol, in any case, followed by nothing or
// by a dash and anything.
func protocolByName(name string) (mesh.Protocol, bool) {
	const grpcWeb = "grpc-web"
	if len(name) >= len(grpcWeb) && strings.EqualFold(name[:len(grpcWeb)], grpcWeb) {
		return mesh.ProtocolGRPCWeb, true
	}
	name, _, _ = strings.Cut(name, "-")
	return mesh.ParseProtocol(name)
}

// serverFirst reports whether the server of a well-known port speaks first, so
// that sniffing would wait for bytes that never come: SMTP, DNS, MySQL, MongoDB.
func serverFirst(port int32) bool {
	switch port {
	case 25, 53, 3306, 27017:
		return true
	}
	return false
}
