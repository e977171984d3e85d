package xds

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/isthmus-mesh/isthmus/mesh"
)

func nodeWith(t testing.TB, id string, md map[string]any) *corev3.Node {
	st, err := structpb.NewStruct(md)
	require.NoError(t, err)
	return &corev3.Node{Id: id, Metadata: st}
}

const goodID = "sidecar~10.0.0.1~web-1.shop~shop.svc.cluster.local"

func TestParseNode(t *testing.T) {
	n := nodeWith(t, goodID, map[string]any{
		"CLUSTER_ID": "west", "NETWORK": "n2", "NAMESPACE": "shop", "SERVICE_ACCOUNT": "web", "WORKLOAD_NAME": "web", "NODE_NAME": "k1",
		"ISTIO_VERSION": "1.30.1", "MESH_ID": "m", "INSTANCE_IPS": "10.0.0.9, fd00::9,junk", "INTERCEPTION_MODE": "tproxy", "DNS_CAPTURE": "true",
		"LABELS": map[string]any{"app": "web"}, "ANNOTATIONS": map[string]any{"a": "b"}, "REQUESTED_NETWORK_VIEW": []any{"n1", "n2"},
		"POD_PORTS":    `[{"name":"http","containerPort":8080,"protocol":"TCP"},{"containerPort":1}]`,
		"PROXY_CONFIG": map[string]any{"tracing": map[string]any{}}, "ENVOY_STATUS_PORT": 15021,
	})
	n.Locality = &corev3.Locality{Region: "r", Zone: "z", SubZone: "s"}
	p, err := ParseNode(n, "east")
	require.NoError(t, err)
	require.Equal(t, &mesh.Proxy{
		ID: "web-1.shop", Kind: mesh.ProxySidecar, DNSDomain: "shop.svc.cluster.local", Dialect: mesh.DialectIstio,
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.9"), netip.MustParseAddr("fd00::9")},
		Cluster:   "west", Network: "n2", NetworkView: []mesh.NetworkID{"n1", "n2"}, Namespace: "shop", ServiceAccount: "web", WorkloadName: "web",
		NodeName: "k1", IstioVersion: "1.30.1", MeshID: "m", Interception: mesh.InterceptTProxy, DNSCapture: true,
		Labels: map[string]string{"app": "web"}, Annotations: map[string]string{"a": "b"}, Locality: mesh.Locality{Region: "r", Zone: "z", SubZone: "s"},
		ContainerPorts: map[string]uint16{"http": 8080}, ProxyConfig: map[string]any{"tracing": map[string]any{}},
		Metadata: map[string]any{"ENVOY_STATUS_PORT": 15021.0},
	}, p)
}

func TestParseNodeDefaults(t *testing.T) {
	p, err := ParseNode(&corev3.Node{Id: "router~fd00::1~gw.with.dots.infra~x"}, "east")
	require.NoError(t, err)
	require.Equal(t, mesh.ClusterID("east"), p.Cluster)
	require.Equal(t, "infra", p.Namespace)
	require.Equal(t, mesh.DialectEnvoy, p.Dialect, "no ISTIO_VERSION: a plain Envoy")
	p, err = ParseNode(nodeWith(t, goodID, map[string]any{"GENERATOR": "grpc", "REQUESTED_NETWORK_VIEW": "a, b,"}), "east")
	require.NoError(t, err)
	require.Equal(t, mesh.DialectGRPC, p.Dialect)
	require.Equal(t, []mesh.NetworkID{"a", "b"}, p.NetworkView)
}

func TestParseNodeRefuses(t *testing.T) {
	deep := map[string]any{}
	for range 40 {
		deep = map[string]any{"x": deep}
	}
	many := map[string]any{}
	for i := range 1000 {
		many[fmt.Sprint(i)] = "x"
	}
	wide := make([]any, 9000)
	for i := range wide {
		wide[i] = true
	}
	for field, n := range map[string]*corev3.Node{
		"node.id: missing":                        nil,
		"node.id: empty":                          {},
		"node.id: 3 parts":                        {Id: "sidecar~1.2.3.4~a.b"},
		"node.id: 5 parts":                        {Id: goodID + "~x"},
		"node.id: type \"ztunnel\"":               {Id: strings.Replace(goodID, "sidecar", "ztunnel", 1)},
		"node.id: second part":                    {Id: "sidecar~nowhere~a.b~c"},
		"node.id: third part":                     {Id: "sidecar~1.2.3.4~~c"},
		"node.id: control":                        {Id: "sidecar~1.2.3.4~a\n.b~c"},
		"node.id: 2000 bytes":                     {Id: strings.Repeat("x", 2000)},
		"node.metadata: node of":                  nodeWith(t, goodID, map[string]any{"X": strings.Repeat("x", 300<<10)}),
		"node.metadata: nested":                   nodeWith(t, goodID, map[string]any{"X": deep}),
		"node.metadata: more than":                nodeWith(t, goodID, map[string]any{"X": wide}),
		"node.metadata.LABELS: 1000 entries":      nodeWith(t, goodID, map[string]any{"LABELS": many}),
		"node.metadata.POD_PORTS: not a JSON":     nodeWith(t, goodID, map[string]any{"POD_PORTS": "{"}),
		"node.metadata.INTERCEPTION_MODE":         nodeWith(t, goodID, map[string]any{"INTERCEPTION_MODE": "MAGIC"}),
		"node.metadata.NAMESPACE: 5000 bytes":     nodeWith(t, goodID, map[string]any{"NAMESPACE": strings.Repeat("x", 5000)}),
		"node.metadata.INSTANCE_IPS: 101 address": nodeWith(t, goodID, map[string]any{"INSTANCE_IPS": strings.Repeat("1.1.1.1,", 100)}),
	} {
		_, err := ParseNode(n, "east")
		require.ErrorContains(t, err, field)
	}
}

// FuzzNode: no node crashes the parser, and what it accepts is within bounds.
func FuzzNode(f *testing.F) {
	f.Add(marshal(f, nodeWith(f, goodID, map[string]any{"LABELS": map[string]any{"a": "b"}, "POD_PORTS": "[]", "REQUESTED_NETWORK_VIEW": "a,b", "INSTANCE_IPS": "::1"})))
	f.Add(marshal(f, &corev3.Node{Id: "router~~x~y", Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{"INSTANCE_IPS": nil, "PROXY_CONFIG": {}, "LABELS": structpb.NewNullValue()}}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var n corev3.Node
		if proto.Unmarshal(b, &n) != nil {
			return
		}
		p, err := ParseNode(&n, "east")
		if err != nil {
			require.ErrorContains(t, err, "node.")
			return
		}
		require.NotEmpty(t, p.ID)
		require.NotEmpty(t, p.Addresses)
		require.LessOrEqual(t, len(p.Addresses), maxAddresses)
		require.NotEmpty(t, p.Cluster)
	})
}
