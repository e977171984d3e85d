package xds

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/xds/build"
)

// TestHostNetworkProxies: pods on the network of one node share an address, and
// each has the configuration of its own workload.
func TestHostNetworkProxies(t *testing.T) {
	bothProtocols(t, func(t *testing.T, delta bool) {
		w := twoServices(t, nil)
		defer w.stop()
		node := netip.MustParseAddr("192.0.2.1")
		var pods []registry.WorkloadState
		for _, app := range []string{"x", "y"} {
			pods = append(pods, registry.WorkloadState{Key: "shop/" + app, Workload: &mesh.Workload{Cluster: "east", Namespace: "shop", Name: app,
				HostNetwork: true, Addresses: []netip.Addr{node}, Labels: map[string]string{"app": app}}})
		}
		w.sinks["east"].Apply(registry.Update{Workloads: pods})
		settle()
		served := map[string]build.Inbound{}
		for _, app := range []string{"x", "y", "unknown"} {
			n := labNode(node.String(), "east", "net-east", "shop", nil)
			n.Id = strings.Replace(n.Id, "~pod-"+node.String()+".shop~", "~"+app+".shop~", 1)
			c := w.client(delta, n)
			defer c.close()
			c.subscribe(TypeCDS, true, nil, nil)
			settle(c)
			served[app] = w.srv.find(app + ".shop").currentView().Inbound
		}
		for _, app := range []string{"x", "y"} {
			require.Equal(t, app, served[app].Spec().CanonicalName)
		}
		require.Equal(t, build.Inbound{}, served["unknown"], "nobody's workload is taken for one that is not known yet")
	})
}
