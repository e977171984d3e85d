package build

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// metadataConfig is the key under which a resource names the object it was made from.
const metadataConfig = "config"

// originMetadata names the object that a resource, or a part of one, was made
// from, in the form that Istio's proxies and tools know.
func originMetadata(kind mesh.ObjectKind, n ObjectName) *corev3.Metadata {
	return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
		metadataIstio: structOf(map[string]*structpb.Value{metadataConfig: stringValue(originPath(kind, n))}),
	}}
}

// originPath renders /apis/GROUP/VERSION/namespaces/NAMESPACE/KIND/NAME with the
// kind in lower case and its words joined by hyphens.
func originPath(kind mesh.ObjectKind, n ObjectName) string {
	group := "networking.istio.io/v1"
	switch kind {
	case mesh.KindEnvoyFilter:
		group = "networking.istio.io/v1alpha3"
	case mesh.KindTelemetry:
		group = "telemetry.istio.io/v1"
	case mesh.KindWasmPlugin:
		group = "extensions.istio.io/v1alpha1"
	case mesh.KindAuthorizationPolicy, mesh.KindPeerAuthentication, mesh.KindRequestAuthentication:
		group = "security.istio.io/v1"
	}
	return "/apis/" + group + "/namespaces/" + n.Namespace + "/" + kebab(string(kind)) + "/" + n.Name
}

// kebab writes CamelCase as camel-case.
func kebab(s string) string {
	out := make([]byte, 0, len(s)+2)
	for i := range len(s) {
		c := s[i]
		if c >= 'A' && c <= 'Z' {
			if i > 0 {
				out = append(out, '-')
			}
			c += 'a' - 'A'
		}
		out = append(out, c)
	}
	return string(out)
}
