package simulate

import (
	"fmt"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
)

// matchKey is the key of an endpoint's metadata by which a transport socket is
// chosen.
const matchKey = "envoy.transport_socket_match"

// opens is how a filter chain opens TLS; nil if it passes on what it gets.
func opens(c *listenerv3.FilterChain) (*tlsv3.DownstreamTlsContext, error) {
	var out tlsv3.DownstreamTlsContext
	config := c.GetTransportSocket().GetTypedConfig()
	if !config.MessageIs(&out) {
		return nil, nil
	}
	if err := config.UnmarshalTo(&out); err != nil {
		return nil, fmt.Errorf("decode TLS of filter chain %s: %w", c.GetName(), err)
	}
	return &out, nil
}

// Secures tells how an upstream's connection to one of its endpoints, ADDRESS:PORT,
// is secured; nil if it is plain.
//
// Source: transport_socket_matches in the message Cluster of Envoy's documentation:
// the first match that the endpoint's metadata has counts, else the upstream's own.
func (p *Proxy) Secures(upstream, endpoint string) (*tlsv3.UpstreamTlsContext, error) {
	u := p.Upstreams[upstream]
	a, err := p.assignment(upstream)
	if err != nil {
		return nil, err
	}
	socket := u.GetTransportSocket()
	meta := metadataOf(a, endpoint)
	for _, m := range u.GetTransportSocketMatches() {
		if has(meta, m.GetMatch().GetFields()) {
			socket = m.GetTransportSocket()
			break
		}
	}
	var out tlsv3.UpstreamTlsContext
	if !socket.GetTypedConfig().MessageIs(&out) {
		return nil, nil
	}
	if err := socket.GetTypedConfig().UnmarshalTo(&out); err != nil {
		return nil, fmt.Errorf("decode TLS of upstream %s: %w", upstream, err)
	}
	return &out, nil
}

func metadataOf(a *endpointv3.ClusterLoadAssignment, endpoint string) *corev3.Metadata {
	for _, l := range a.GetEndpoints() {
		for _, e := range l.GetLbEndpoints() {
			if address(e) == endpoint {
				return e.GetMetadata()
			}
		}
	}
	return nil
}

// has reports whether an endpoint's metadata has all wanted values.
func has[T proto.Message](m *corev3.Metadata, want map[string]T) bool {
	fields := m.GetFilterMetadata()[matchKey].GetFields()
	for k, v := range want {
		if have, ok := fields[k]; !ok || !proto.Equal(have, v) {
			return false
		}
	}
	return true
}
