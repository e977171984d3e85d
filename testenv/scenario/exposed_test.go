package scenario

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/serve"
	"github.com/isthmus-mesh/isthmus/manifests"
	"github.com/isthmus-mesh/isthmus/testenv/plane"
	"github.com/isthmus-mesh/isthmus/testenv/recorder"
	"github.com/isthmus-mesh/isthmus/testenv/simulate"
	"github.com/isthmus-mesh/isthmus/testenv/validate"
)

// planes are two replicas of the control plane as a cluster has them, and a
// cluster of another network.
const planes = `
apiVersion: v1
kind: Namespace
metadata: {name: istio-system, labels: {topology.istio.io/network: network-1}}
---
apiVersion: v1
kind: Service
metadata: {name: istiod, namespace: istio-system}
spec:
  clusterIP: 10.0.0.7
  selector: {app: istiod}
  ports:
  - {name: grpc-xds, port: 15010}
  - {name: https-dns, port: 15012}
  - {name: https-webhook, port: 443, targetPort: 15017}
  - {name: http-monitoring, port: 15014}
---
apiVersion: v1
kind: Pod
metadata: {name: istiod-0, namespace: istio-system, labels: {app: istiod}}
spec: {containers: [{name: discovery, image: x}]}
status: {phase: Running, podIP: 10.1.0.7, podIPs: [{ip: 10.1.0.7}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: istiod-1, namespace: istio-system, labels: {app: istiod}}
spec: {containers: [{name: discovery, image: x}]}
status: {phase: Running, podIP: 10.1.0.8, podIPs: [{ip: 10.1.0.8}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: istiod-1, namespace: istio-system, labels: {kubernetes.io/service-name: istiod}}
addressType: IPv4
endpoints:
- {addresses: [10.1.0.7], conditions: {ready: true}, targetRef: {kind: Pod, name: istiod-0, namespace: istio-system}}
- {addresses: [10.1.0.8], conditions: {ready: true}, targetRef: {kind: Pod, name: istiod-1, namespace: istio-system}}
ports:
- {name: grpc-xds, port: 15010}
- {name: https-dns, port: 15012}
- {name: https-webhook, port: 15017}
- {name: http-monitoring, port: 15014}
`

// TestExposedControlPlane renders the east-west gateway with the control plane
// exposed and asks where connections go that reach it: those for the control
// plane's names to its replicas, on both ports, as they are; others nowhere.
func TestExposedControlPlane(t *testing.T) {
	for _, exposed := range []bool{true, false} {
		router := routerOf(t, map[string]any{"networkGateway": "network-1",
			"controlPlane": map[string]any{"expose": exposed, "hosts": []any{"mesh.example.com"}}})
		for _, c := range []struct {
			port uint16
			sni  string
			want []string // nil: nowhere
		}{
			{15012, "istiod.istio-system.svc", []string{"10.1.0.7:15012 1", "10.1.0.8:15012 1"}},
			{15012, "ISTIOD.istio-system.svc", []string{"10.1.0.7:15012 1", "10.1.0.8:15012 1"}},
			{15012, "istiod-remote.istio-system.svc", []string{"10.1.0.7:15012 1", "10.1.0.8:15012 1"}},
			{15012, "mesh.example.com", []string{"10.1.0.7:15012 1", "10.1.0.8:15012 1"}},
			{15017, "istiod.istio-system.svc", []string{"10.1.0.7:15017 1", "10.1.0.8:15017 1"}},
			{15012, "web.shop.svc", nil},
			{15012, "", nil},
			{15017, "web.shop.svc", nil},
			{15010, "istiod.istio-system.svc", nil},
			{15014, "istiod.istio-system.svc", nil},
		} {
			got, err := router.sim.Ask(simulate.Connection{To: netip.AddrPortFrom(netip.MustParseAddr("10.1.8.1"), c.port), Direct: true, SNI: c.sni, TLS: true})
			require.NoError(t, err)
			if !exposed || c.want == nil {
				require.NotEmpty(t, got.Dropped, "exposed %v: %+v: %+v", exposed, c, got)
				continue
			}
			require.Empty(t, got.Dropped, "%+v", c)
			require.Equal(t, c.want, router.Endpoints(got.Upstream()), "%+v", c)
			require.Empty(t, router.tlsModes(got.Upstream()), "TLS is between the caller and the control plane: the gateway adds none")
		}
	}
}

// router is an east-west gateway with what it was given.
type router struct {
	*recorder.Proxy
	sim *simulate.Proxy
}

// tlsModes are the modes of TLS in which endpoints of an upstream are dialled;
// those without one are dialled as they are.
func (r router) tlsModes(upstream string) []string {
	var a endpointv3.ClusterLoadAssignment
	r.Get(recorder.Assignments, upstream, &a)
	var out []string
	for _, group := range a.GetEndpoints() {
		for _, e := range group.GetLbEndpoints() {
			if mode := e.GetMetadata().GetFilterMetadata()["envoy.transport_socket_match"].GetFields()["tlsMode"].GetStringValue(); mode != "" {
				out = append(out, mode)
			}
		}
	}
	return out
}

// routerOf serves a folder with the control plane's Service and a rendered
// gateway, and connects that gateway.
func routerOf(t *testing.T, values map[string]any) router {
	t.Helper()
	objects, err := manifests.Render(manifests.Options{Chart: manifests.EastWest, Values: values})
	require.NoError(t, err)
	rendered, err := manifests.Encode(objects)
	require.NoError(t, err)
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "east"), 0o755))
	writeFile(t, filepath.Join(dir, "east"), "planes.yaml", []byte(planes))
	writeFile(t, filepath.Join(dir, "east"), "gateway.yaml", rendered)

	w := &World{t: t, ctx: t.Context()}
	w.Plane = plane.Start(t, func(s *serve.Settings) { s.Files, s.Primary = dir, "east" })
	w.Eventually("control plane is ready", func() bool { return w.Plane.NotReady() == "" })
	p := w.Connect(w.Plane, recorder.Node{Kind: "router", Name: "gateway-0", Namespace: "istio-system", Cluster: "east", Network: "network-1", IP: "10.1.8.1",
		Labels:   map[string]string{"app": "istio-eastwestgateway", "istio": "eastwestgateway"},
		Metadata: map[string]any{"REQUESTED_NETWORK_VIEW": "network-1", "ROUTER_MODE": "sni-dnat"}}, recorder.Options{Check: validate.Resource})
	var all []proto.Message
	for _, typeURL := range []string{recorder.Listeners, recorder.Upstreams} {
		for _, body := range p.Resources(typeURL) {
			m, err := body.UnmarshalNew()
			require.NoError(t, err)
			all = append(all, m)
		}
	}
	sim, err := simulate.NewProxy(all...)
	require.NoError(t, err)
	return router{p, sim}
}
