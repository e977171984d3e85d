// Package recorder is a proxy for tests: it speaks ADS as an Envoy does, in
// either framing, and records everything it hears.
//
// It asks in Envoy's order (upstreams, then the assignments of their EDS
// upstreams, then listeners, then the routes that the listeners name), ACKs
// what passes its check and NACKs what does not, resubscribes when the set of
// names changes, and keeps the state that an Envoy would have. It moves no
// traffic.
package recorder

import (
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

// Type URLs in the order in which a recorder asks.
const (
	Upstreams   = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	Assignments = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	Listeners   = "type.googleapis.com/envoy.config.listener.v3.Listener"
	Routes      = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
)

// Node describes the proxy that a recorder plays.
type Node struct {
	// Kind is "sidecar" (default) or "router".
	Kind string
	// Name and Namespace are those of the pod.
	Name, Namespace string
	Cluster         string
	Network         string
	IP              string
	Labels          map[string]string
	// Metadata is added to, and overrides, what the fields above give.
	Metadata map[string]any
}

// Proto renders the node as an Istio agent would send it.
func (n Node) Proto() (*corev3.Node, error) {
	kind := n.Kind
	if kind == "" {
		kind = "sidecar"
	}
	labels := map[string]any{}
	for k, v := range n.Labels {
		labels[k] = v
	}
	md := map[string]any{
		"CLUSTER_ID": n.Cluster, "NETWORK": n.Network, "NAMESPACE": n.Namespace, "NAME": n.Name,
		"INSTANCE_IPS": n.IP, "ISTIO_VERSION": "1.31.0", "LABELS": labels, "MESH_ID": "cluster.local",
		"INTERCEPTION_MODE": "REDIRECT",
	}
	for k, v := range n.Metadata {
		if v == nil {
			delete(md, k)
			continue
		}
		md[k] = v
	}
	s, err := structpb.NewStruct(md)
	if err != nil {
		return nil, err
	}
	id := strings.Join([]string{kind, n.IP, n.Name + "." + n.Namespace, n.Namespace + ".svc.cluster.local"}, "~")
	return &corev3.Node{Id: id, Cluster: n.Name + "." + n.Namespace, Metadata: s}, nil
}
