package agent

import (
	"fmt"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

// Node is a pod as its agent describes it.
type Node struct {
	// Router is a gateway, otherwise it is a sidecar.
	Router                      bool
	Name, Namespace, Cluster    string
	ServiceAccount, Network, IP string
	// Extra metadata, over the usual.
	Extra map[string]any
}

// Proto renders the node of a first request with everything that an agent puts
// into it.
func (n Node) Proto() (*corev3.Node, error) {
	kind := "sidecar"
	if n.Router {
		kind = "router"
	}
	md := map[string]any{
		"ANNOTATIONS":    map[string]any{"istio.io/rev": "default", "prometheus.io/port": "15020"},
		"APP_CONTAINERS": "app", "CLUSTER_ID": n.Cluster, "DNS_CAPTURE": "true", "DNS_PROXY_ADDR": "127.0.0.1:25053",
		"ENVOY_PROMETHEUS_PORT": 15090, "ENVOY_SKIP_DEPRECATED_LOGS": "true", "ENVOY_STATUS_PORT": 15021,
		"INSTANCE_IPS": n.IP + ",192.0.2.2,fd00::2", "INTERCEPTION_MODE": "REDIRECT", "ISTIO_VERSION": "1.30.0",
		"LABELS": map[string]any{"app": n.Name, "version": "v1", "security.istio.io/tlsMode": "istio",
			"service.istio.io/canonical-name": n.Name, "service.istio.io/canonical-revision": "v1", "topology.istio.io/network": n.Network},
		"MESH_ID": "mesh1", "METADATA_DISCOVERY": "false", "NAME": n.Name, "NAMESPACE": n.Namespace, "NETWORK": n.Network, "NODE_NAME": "node1",
		"OWNER":     "kubernetes://apis/apps/v1/namespaces/" + n.Namespace + "/deployments/web",
		"PILOT_SAN": []any{DefaultServerName},
		"POD_PORTS": `[{"name":"http","containerPort":8080,"protocol":""}]`,
		"PROXY_CONFIG": map[string]any{"concurrency": 2, "configPath": "./etc/istio/proxy", "controlPlaneAuthPolicy": "MUTUAL_TLS",
			"discoveryAddress": DefaultServerName + ":15012", "drainDuration": "45s", "meshId": "mesh1",
			"proxyMetadata":  map[string]any{"ISTIO_META_DNS_CAPTURE": "true"},
			"serviceCluster": "istio-proxy", "statNameLength": 189, "statusPort": 15020, "terminationDrainDuration": "5s"},
		"SERVICE_ACCOUNT": n.ServiceAccount, "WORKLOAD_IDENTITY_SOCKET_FILE": "socket", "WORKLOAD_NAME": "web",
	}
	for k, v := range n.Extra {
		if v == nil {
			delete(md, k)
			continue
		}
		md[k] = v
	}
	s, err := structpb.NewStruct(md)
	if err != nil {
		return nil, fmt.Errorf("make node of %s.%s: %w", n.Name, n.Namespace, err)
	}
	return &corev3.Node{Id: kind + "~" + n.IP + "~" + n.Name + "." + n.Namespace + "~" + n.Namespace + ".svc.cluster.local",
		Cluster: "web." + n.Namespace, Locality: &corev3.Locality{}, Metadata: s}, nil
}
