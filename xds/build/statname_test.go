package build

import (
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"github.com/stretchr/testify/require"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// statNames lists under what names the TCP chains of a listener count.
func statNames(t *testing.T, l *listenerv3.Listener) []string {
	t.Helper()
	var out []string
	for _, c := range append(l.GetFilterChains(), l.GetDefaultFilterChain()) {
		for _, f := range c.GetFilters() {
			if p := new(tcpproxyv3.TcpProxy); f.GetTypedConfig().MessageIs(p) {
				require.NoError(t, f.GetTypedConfig().UnmarshalTo(p))
				out = append(out, p.GetStatPrefix())
			}
		}
	}
	return out
}

// TestStatNames: MeshConfig's patterns name what is counted, and nothing else.
func TestStatNames(t *testing.T) {
	pattern := "%SERVICE%/%SERVICE_NAME%/%SERVICE_FQDN%/%SERVICE_PORT%/%SERVICE_PORT_NAME%/%TARGET_PORT%/%SUBSET_NAME%"
	l := labShop(&meshconfig.MeshConfig{OutboundClusterStatName: "out " + pattern, InboundClusterStatName: "in " + pattern})
	l.objects(labRule("db", "shop", &networking.DestinationRule{Host: "db", Subsets: []*networking.Subset{{Name: "v1", Labels: map[string]string{"version": "v1"}}}}))
	l.services("c1", labService("outside", "shop", labPorts(labPort("tls", 443, mesh.ProtocolTLS)), []string{"10.0.0.9"}, func(d *mesh.Definition) { d.Origin.Kind = string(mesh.KindServiceEntry) }))
	v := labSidecar(func(v *View) {
		v.Inbound = MakeInbound(InboundSpec{Targets: []InboundTarget{
			{Hostname: "db.shop.svc.cluster.local", Name: "db", Namespace: "shop", PortName: "tcp", Port: 5432, Target: 15432, Protocol: string(mesh.ProtocolTCP)},
			{Hostname: "only.shop", Name: "only", Namespace: "shop", PortName: "p", Port: 9000, Target: 9000, Protocol: string(mesh.ProtocolTCP), Sidecar: "shop/only"},
		}})
	})
	const (
		db      = "out db.shop/db/db.shop.svc.cluster.local/5432/tcp/0/"
		outside = "out outside.shop.svc.cluster.local/outside.shop.svc.cluster.local/outside.shop.svc.cluster.local/443/tls/0/"
		in      = "in db.shop/db/db.shop.svc.cluster.local/5432/tcp/15432/"
		only    = "in only.shop/only.shop/only.shop/9000/p/9000/"
	)
	for name, want := range map[string]string{
		"outbound|5432||db.shop.svc.cluster.local":     db + ";",
		"outbound|5432|v1|db.shop.svc.cluster.local":   db + "v1;",
		"outbound|443||outside.shop.svc.cluster.local": outside + ";",
		"inbound|15432||":          in + ";",
		"inbound|9000||":           only + ";",
		UpstreamPassthrough:        UpstreamPassthrough + ";",
		UpstreamInboundPassthrough: UpstreamPassthrough + ";",
	} {
		u := l.upstream(t, v, name)
		require.Equal(t, name, u.GetName())
		require.Equal(t, want, u.GetAltStatName())
	}
	require.Equal(t, []string{db}, statNames(t, l.listener(t, v, "10.0.0.2_5432").(*listenerv3.Listener)))
	inbound := statNames(t, l.listener(t, v, ListenerVirtualInbound).(*listenerv3.Listener))
	require.Contains(t, inbound, in)
	require.Contains(t, inbound, only)
	require.Contains(t, inbound, UpstreamInboundPassthrough)
}

// TestStatNamesOfPassthrough: east-west gateways count under the same names.
func TestStatNamesOfPassthrough(t *testing.T) {
	l := labShop(&meshconfig.MeshConfig{OutboundClusterStatName: "%SERVICE%_%SERVICE_PORT%"})
	l.objects(labGateway("ew", 15443, networking.ServerTLSSettings_AUTO_PASSTHROUGH, "*.local"))
	v := labRouter(map[string]string{"istio": "eastwest"})
	require.Contains(t, statNames(t, l.listener(t, v, "0.0.0.0_15443").(*listenerv3.Listener)), "db.shop_5432")
	require.Equal(t, "db.shop_5432;", l.upstream(t, v, "outbound_.5432_._.db.shop.svc.cluster.local").GetAltStatName())
}

// TestWorkloadsOnLocalhost: MeshConfig may have workloads dialled there, but where a
// Sidecar says otherwise.
func TestWorkloadsOnLocalhost(t *testing.T) {
	l := labShop(&meshconfig.MeshConfig{InboundTrafficPolicy: &meshconfig.MeshConfig_InboundTrafficPolicy{Mode: meshconfig.MeshConfig_InboundTrafficPolicy_LOCALHOST}})
	view := func(v4 bool) View {
		return labSidecar(func(v *View) {
			v.IPv4, v.IPv6 = v4, !v4
			v.Inbound = MakeInbound(InboundSpec{Targets: []InboundTarget{
				{Hostname: "web.shop.svc.cluster.local", Name: "web", Namespace: "shop", Port: 80, Target: 8080, Protocol: string(mesh.ProtocolHTTP)},
				{Hostname: "s.shop", Name: "s", Namespace: "shop", Port: 9000, Target: 9000, Protocol: string(mesh.ProtocolTCP), Sidecar: "shop/s"},
			}})
		})
	}
	for v4, want := range map[bool]string{true: "127.0.0.1", false: "::1"} {
		u := l.upstream(t, view(v4), "inbound|8080||")
		require.Equal(t, clusterv3.Cluster_STATIC, u.GetType())
		require.Nil(t, u.GetUpstreamBindConfig(), "or the workload would take it for a passage")
		at := u.GetLoadAssignment().GetEndpoints()[0].GetLbEndpoints()[0].GetEndpoint().GetAddress().GetSocketAddress()
		require.Equal(t, want, at.GetAddress())
		require.EqualValues(t, 8080, at.GetPortValue())
		require.Equal(t, clusterv3.Cluster_ORIGINAL_DST, l.upstream(t, view(v4), "inbound|9000||").GetType(), "the Sidecar's")
		require.Equal(t, clusterv3.Cluster_ORIGINAL_DST, l.upstream(t, view(v4), UpstreamInboundPassthrough).GetType())
	}
}
