package xds

import (
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/stretchr/testify/require"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/xds/build"
)

// agentNode is the node of a sidecar's first request as an Istio agent sends it.
const agentNode = `{"id": "sidecar~10.1.0.10~web-0.shop~shop.svc.cluster.local", "cluster": "web.shop", "locality": {},
 "metadata": {"ANNOTATIONS": {"istio.io/rev": "default", "prometheus.io/port": "15020"}, "APP_CONTAINERS": "app", "CLUSTER_ID": "east",
  "DNS_CAPTURE": "true", "DNS_PROXY_ADDR": "127.0.0.1:25053", "ENVOY_PROMETHEUS_PORT": 15090, "ENVOY_SKIP_DEPRECATED_LOGS": "true", "ENVOY_STATUS_PORT": 15021,
  "INSTANCE_IPS": "10.1.0.10,192.0.2.2,fd00::2", "INTERCEPTION_MODE": "REDIRECT", "ISTIO_VERSION": "master-2026-08-22",
  "LABELS": {"app": "web", "version": "v1", "security.istio.io/tlsMode": "istio", "service.istio.io/canonical-name": "web",
   "service.istio.io/canonical-revision": "v1", "topology.istio.io/network": "net1"},
  "MESH_ID": "mesh1", "METADATA_DISCOVERY": "false", "NAME": "web-0", "NAMESPACE": "shop", "NETWORK": "net-east", "NODE_NAME": "node1",
  "OWNER": "kubernetes://apis/apps/v1/namespaces/shop/deployments/web", "PILOT_SAN": ["istiod.istio-system.svc"],
  "POD_PORTS": "[{\"name\":\"http\",\"containerPort\":8080,\"protocol\":\"\"}]",
  "PROXY_CONFIG": {"concurrency": 2, "configPath": "./etc/istio/proxy", "controlPlaneAuthPolicy": "MUTUAL_TLS", "drainDuration": "45s", "meshId": "mesh1",
   "proxyMetadata": {"ISTIO_META_DNS_CAPTURE": "true"}, "serviceCluster": "istio-proxy", "statNameLength": 189, "statusPort": 15020},
  "SERVICE_ACCOUNT": "web", "WORKLOAD_IDENTITY_SOCKET_FILE": "socket", "WORKLOAD_NAME": "web"}}`

func parseAgentNode(t *testing.T) *corev3.Node {
	n := &corev3.Node{}
	require.NoError(t, protojson.Unmarshal([]byte(agentNode), n))
	return n
}

func TestParseNodeOfAnAgent(t *testing.T) {
	p, err := ParseNode(parseAgentNode(t), "primary")
	require.NoError(t, err)
	require.Equal(t, "web-0.shop", p.ID)
	require.Equal(t, mesh.ClusterID("east"), p.Cluster)
	require.Equal(t, mesh.NetworkID("net-east"), p.Network)
	require.Equal(t, "shop/web on node1", p.Namespace+"/"+p.ServiceAccount+" on "+p.NodeName)
	require.Len(t, p.Addresses, 3)
	require.Len(t, p.Labels, 6)
	require.Equal(t, map[string]uint16{"http": 8080}, p.ContainerPorts)
	require.True(t, p.DNSCapture)
	require.Equal(t, "master-2026-08-22", p.IstioVersion)
	require.NotEmpty(t, p.ProxyConfig["proxyMetadata"])
}

// Types that an agent asks for besides Envoy's.
const (
	typeProxyConfig = "type.googleapis.com/istio.mesh.v1alpha1.ProxyConfig"
	typeHealth      = "type.googleapis.com/istio.v1.HealthInformation"
	typeExtension   = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
)

// TestAgentStream plays the order in which an agent and its Envoy ask. What we
// do not serve is met with silence, and so is every report of health; both may
// come at any time, repeatedly.
func TestAgentStream(t *testing.T) {
	bothProtocols(t, func(t *testing.T, delta bool) {
		w := newWorld(t, func(c *Config) { c.Generators = append(c.Generators, build.NameTables{}) })
		defer w.stop()
		w.put("east", "a", svc{pods: []string{"10.0.0.1/x"}})
		settle()
		c := w.client(delta, parseAgentNode(t))
		defer c.close()
		other := func(url, problem string) {
			var detail *rpcstatus.Status
			if problem != "" {
				detail = &rpcstatus.Status{Code: 13, Message: problem}
			}
			if delta {
				c.sendDelta(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: url, ErrorDetail: detail})
			} else {
				c.sendSotW(&discoveryv3.DiscoveryRequest{TypeUrl: url, ErrorDetail: detail})
			}
		}
		health := func() {
			other(typeHealth, "the probe failed")
			other(typeHealth, "")
		}
		c.subscribe(TypeCDS, true, nil, nil)
		settle(c)
		c.subscribe(TypeEDS, false, []string{assignment("a")}, nil)
		settle(c)
		c.subscribe(TypeLDS, true, nil, nil)
		settle(c)
		require.Equal(t, []string{"cds BlackHoleCluster," + assignment("a"), "eds " + assignment("a"), "lds svc_a.shop.svc.cluster.local,virtualInbound"}, c.log)

		other(build.TypeNameTable, "")
		other(typeProxyConfig, "")
		health()
		settle()
		require.NotNil(t, c.p.take())
		require.Nil(t, c.p.take(), "the table and nothing else")

		c.subscribe(TypeRDS, false, []string{"80"}, nil)
		c.subscribe(typeExtension, false, []string{"shop.filter"}, nil)
		health()
		settle(c)
		require.Equal(t, "rds 80", c.log[len(c.log)-1])
		require.Len(t, c.log, 4)
		health()
		w.put("east", "a", svc{pods: []string{"10.0.0.2/x"}})
		settle(c)
		require.Equal(t, "eds "+assignment("a"), c.log[len(c.log)-1], "the stream goes on")
		require.Len(t, c.log, 5)
	})
}

// TestFirstRequestMayRememberAnything: nonces, versions and resource versions of
// an earlier stream do not keep the first request from being answered.
func TestFirstRequestMayRememberAnything(t *testing.T) {
	bothProtocols(t, func(t *testing.T, delta bool) {
		w := newWorld(t, func(c *Config) { c.Generators = append(c.Generators, build.NameTables{}) })
		defer w.stop()
		w.put("east", "a", svc{pods: []string{"10.0.0.1/x"}})
		settle()
		for _, url := range []string{TypeCDS, TypeEDS, TypeLDS, TypeRDS, build.TypeNameTable} {
			c := w.client(delta, parseAgentNode(t))
			names := map[string][]string{TypeEDS: {assignment("a")}, TypeRDS: {"80"}}[url]
			var got int
			if delta {
				// istiod gave versions that are not ours.
				c.sendDelta(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: url, ResourceNamesSubscribe: names, ResponseNonce: "old",
					InitialResourceVersions: map[string]string{assignment("a"): "", "svc_a.shop.svc.cluster.local": "", "80": "", "": ""}})
				settle()
				var r discoveryv3.DeltaDiscoveryResponse
				require.NoError(t, proto.Unmarshal(c.p.take(), &r))
				got = len(r.Resources)
			} else {
				c.sendSotW(&discoveryv3.DiscoveryRequest{TypeUrl: url, ResourceNames: names, ResponseNonce: "0123456789abcdef", VersionInfo: "old"})
				settle()
				var r discoveryv3.DiscoveryResponse
				require.NoError(t, proto.Unmarshal(c.p.take(), &r))
				got = len(r.Resources)
			}
			require.Positive(t, got, url)
			c.close()
		}
	})
}
