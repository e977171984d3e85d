package build

import (
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// TestProtocolFilters: what a port speaks brings filters of its own on both sides.
// The listener of an HTTP port is for all services there: the oldest decides.
func TestProtocolFilters(t *testing.T) {
	l := newLab(nil)
	l.services("c1",
		labService("web", "shop", labPorts(labPort("grpc-web", 80, mesh.ProtocolGRPCWeb), labPort("mongo", 27017, mesh.ProtocolMongo)), []string{"10.0.0.1"}, labAge(2020)),
		labService("plain", "shop", labPorts(labPort("http", 80, mesh.ProtocolHTTP), labPort("http-81", 81, mesh.ProtocolHTTP)), []string{"10.0.0.2"}, labAge(2021)),
		labService("younger", "shop", labPorts(labPort("grpc-web", 81, mesh.ProtocolGRPCWeb)), []string{"10.0.0.3"}, labAge(2022)),
		labService("hidden", "other", labPorts(labPort("grpc-web", 81, mesh.ProtocolGRPCWeb)), []string{"10.0.0.4"}, labAge(2019), labExport(".")),
	)
	v := labSidecar(func(v *View) {
		v.Inbound = MakeInbound(InboundSpec{Targets: []InboundTarget{
			{Hostname: "web.shop.svc.cluster.local", Name: "web", Namespace: "shop", Port: 80, Target: 80, Protocol: string(mesh.ProtocolGRPCWeb)},
			{Hostname: "web.shop.svc.cluster.local", Name: "web", Namespace: "shop", Port: 27017, Target: 27017, Protocol: string(mesh.ProtocolMongo)},
		}})
	})
	const web, mongo = "envoy.filters.http.grpc_web", "envoy.filters.network.mongo_proxy"
	for _, c := range []struct {
		listener string
		port     uint32 // of the chain, 0 for all chains
		filter   string
		there    bool
	}{
		{"0.0.0.0_80", 0, web, true},
		{"0.0.0.0_81", 0, web, false},
		{"10.0.0.1_27017", 0, mongo, true},
		{ListenerVirtualInbound, 80, web, true},
		{ListenerVirtualInbound, 27017, mongo, true},
		{ListenerVirtualInbound, 27017, web, false},
	} {
		m := l.listener(t, v, c.listener)
		require.NotNil(t, m, c.listener)
		require.Equal(t, c.there, hasFilter(t, m.(*listenerv3.Listener), c.port, c.filter), "%s %d %s", c.listener, c.port, c.filter)
		require.True(t, proto.Equal(m, l.listener(t, Listeners{}.Project(l.in(), v, c.listener), c.listener)), c.listener)
	}
	l.services("c1", registry.ServiceState{Key: mesh.ServiceKey{Namespace: "shop", Hostname: "web.shop.svc.cluster.local"}})
	require.False(t, hasFilter(t, l.listener(t, v, "0.0.0.0_80").(*listenerv3.Listener), 0, web))
	require.Contains(t, Listeners{}.Affected(l.in(), v, &l.last).Names, "0.0.0.0_80")
}

// hasFilter reports whether the chains for a port have a network or HTTP filter.
func hasFilter(t *testing.T, l *listenerv3.Listener, port uint32, name string) bool {
	t.Helper()
	for _, c := range l.GetFilterChains() {
		if port != 0 && c.GetFilterChainMatch().GetDestinationPort().GetValue() != port {
			continue
		}
		for _, f := range c.GetFilters() {
			if f.GetName() == name {
				return true
			}
			if f.GetName() != hcmName {
				continue
			}
			h := &hcmv3.HttpConnectionManager{}
			require.NoError(t, f.GetTypedConfig().UnmarshalTo(h))
			for _, x := range h.GetHttpFilters() {
				if x.GetName() == name {
					return true
				}
			}
		}
	}
	return false
}
