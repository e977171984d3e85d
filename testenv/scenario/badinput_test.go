package scenario

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/isthmus-mesh/isthmus/multicluster"
	"github.com/isthmus-mesh/isthmus/testenv/recorder"
	"github.com/isthmus-mesh/isthmus/testenv/validate"
	"github.com/isthmus-mesh/isthmus/xds"
)

// kubeconfig writes one by hand.
func kubeconfig(cluster, user string) []byte {
	return fmt.Appendf(nil, `{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}],
clusters: [{name: c, cluster: {%s}}], users: [{name: u, user: {%s}}]}`, cluster, user)
}

// TestRefusedKubeconfigs is rows 1 to 5 and 7: each is refused by its name and
// with an Event, nothing is run or read, and what served before goes on.
func TestRefusedKubeconfigs(t *testing.T) {
	w := NewWorld(t, "east", "west")
	w.Apply("west", Service("web")+Pods("web", true, "10.2.0.1"))
	good := w.Reader("west", "reader")
	w.Secret("all", map[string][]byte{"west": good})
	w.Serve()
	p := w.Proxy("east", "", true)
	w.Hears(p, Upstream("web"), "10.2.0.1:8080 1")
	mark := len(p.Pushes())

	trap := filepath.Join(t.TempDir(), "executed")
	token := writeFile(t, t.TempDir(), "token", []byte("not to be read"))
	server := "server: " + w.Clusters["west"].URL()
	bad := map[string][]byte{
		"west":      []byte("\x00 garbage"),
		"empty":     {},
		"exec":      kubeconfig(server, fmt.Sprintf("exec: {apiVersion: client.authentication.k8s.io/v1, command: touch, args: [%q]}", trap)),
		"provider":  kubeconfig(server, "auth-provider: {name: gcp, config: {cmd-path: touch}}"),
		"file":      kubeconfig(server, "tokenFile: "+token),
		"insecure":  kubeconfig(server+", insecure-skip-tls-verify: true", "token: t"),
		"http":      kubeconfig("server: "+strings.Replace(w.Clusters["west"].URL(), "https", "http", 1), "token: t"),
		"linklocal": kubeconfig(`server: "https://169.254.169.254"`, "token: t"),
		"east":      good,
	}
	w.Secret("all", bad)
	w.Eventually("all are refused", func() bool { return len(w.Plane.Refusals()) == len(bad) })
	for _, r := range w.Plane.Refusals() {
		require.Contains(t, r.Message, "secret istio-system/all key "+string(r.ID))
		require.NotContains(t, r.Message, "not to be read")
	}
	for key := range bad {
		w.awaitEvent("all", "key "+key+":")
	}
	require.NoFileExists(t, trap)
	require.Equal(t, multicluster.HealthDegraded, w.Plane.Status("west").Health)
	w.Apply("west", Pods("web", true, "10.2.0.2"))
	w.Hears(p, Upstream("web"), "10.2.0.2:8080 1")
	onlyAbout(t, p, mark, Upstream("web"))
	if _, err := os.Stat(trap); !errors.Is(err, os.ErrNotExist) {
		t.Fatal("a kubeconfig ran a program")
	}
}

// TestPoisonObject is row 43: an object that makes no sense is quarantined by
// name, everything else is served, and mending it is enough.
func TestPoisonObject(t *testing.T) {
	gateway := func(servers string) string {
		return fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: poison, namespace: istio-system}
spec: {selector: {istio: eastwest}, servers: %s}
`, servers)
	}
	w := NewWorld(t, "east")
	w.Apply("east", Service("web")+Pods("web", true, "10.1.0.1")+gateway(`"none"`))
	w.Serve()
	p := w.Proxy("east", "", true)
	w.Hears(p, Upstream("web"), "10.1.0.1:8080 1")
	require.Equal(t, []string{"Gateway poison"}, w.problems("east"))
	mark := len(p.Pushes())
	w.Apply("east", gateway(`[{port: {number: 15443, name: tls, protocol: TLS}, tls: {mode: AUTO_PASSTHROUGH}, hosts: ["*.local"]}]`))
	w.Eventually("nothing is quarantined", func() bool { return len(w.problems("east")) == 0 })
	w.Apply("east", gateway(`[{port: {number: -1}}]`))
	w.Eventually("it is again", func() bool { return len(w.problems("east")) == 1 })
	w.Apply("east", Pods("web", true, "10.1.0.2"))
	w.Hears(p, Upstream("web"), "10.1.0.2:8080 1")
	onlyAbout(t, p, mark, Upstream("web"))
}

// TestPerpetualNACK is row 42: a proxy that refuses one upstream's endpoints
// gets each change once, is told of everything else, and the object is named.
func TestPerpetualNACK(t *testing.T) {
	w := NewWorld(t, "east")
	w.Apply("east", fence("10.1.9.1", "10.1.9.2", "10.1.9.3")+Service("web")+Pods("web", true, "10.1.0.1"))
	w.Serve()
	for i, delta := range []bool{true, false} {
		w.Apply("east", Pods("web", true, "10.1.0.1"))
		p := w.Connect(w.Plane, client("east", ""), recorder.Options{Delta: delta, Check: func(typeURL string, body *anypb.Any) error {
			var a endpointv3.ClusterLoadAssignment
			if typeURL == recorder.Assignments && body.UnmarshalTo(&a) == nil && strings.Contains(a.String(), "10.1.0.66") {
				return fmt.Errorf("%s: I do not like it", a.GetClusterName())
			}
			return validate.Resource(typeURL, body)
		}})
		mark := len(p.Pushes())
		w.Apply("east", Pods("web", true, "10.1.0.66"))
		w.await(p, "the refused push", func() bool { return len(p.Since(mark)) > 0 })
		w.Eventually("the object is named", func() bool {
			return slices.Equal(w.rejected(), []string{Upstream("web")})
		})
		w.settle("east", []string{"10.1.9.2", "10.1.9.3"}[i], p)
		refused := 0
		for _, push := range p.Since(mark) {
			if push.Nacked != "" {
				refused++
			}
		}
		require.Equal(t, 1, refused, "one send per change: %+v", p.Since(mark))
		require.Equal(t, []string{"10.1.0.1:8080 1"}, p.Endpoints(Upstream("web")))
		w.Apply("east", Pods("web", true, "10.1.0.2"))
		w.Hears(p, Upstream("web"), "10.1.0.2:8080 1")
		w.Eventually("the refusal is over", func() bool { return len(w.rejected()) == 0 })
		p.Close()
		w.Eventually("the proxy is gone", func() bool {
			var list []xds.ProxyStatus
			w.debug("proxies", &list)
			return len(list) == 0
		})
	}
}

// rejected lists what proxies refuse, as /debug/proxies names it.
func (w *World) rejected() []string {
	w.t.Helper()
	var list []xds.ProxyStatus
	w.debug("proxies", &list)
	var out []string
	for _, p := range list {
		for _, t := range p.Types {
			out = append(out, t.Rejected...)
		}
	}
	return out
}

// TestBadClients is rows 32, 38 and 41, by streams that no proxy would open.
func TestBadClients(t *testing.T) {
	w := NewWorld(t, "east")
	w.Apply("east", fence("10.1.9.1", "10.1.9.2"))
	w.Serve()
	well := w.Proxy("east", "", false)
	mark := len(well.Pushes())
	conn, err := grpc.NewClient(w.Plane.GRPCAddr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	open := func() discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient {
		s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(w.ctx)
		require.NoError(t, err)
		return s
	}
	node, err := client("east", "").Proto()
	require.NoError(t, err)
	padded := &corev3.Node{Id: node.GetId(), Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
		"PADDING": structpb.NewStringValue(string(bytes.Repeat([]byte("x"), 300<<10)))}}}
	for name, tc := range map[string]struct {
		first *discoveryv3.DiscoveryRequest
		code  codes.Code
	}{
		"no node":        {&discoveryv3.DiscoveryRequest{TypeUrl: recorder.Upstreams}, codes.InvalidArgument},
		"oversized node": {&discoveryv3.DiscoveryRequest{TypeUrl: recorder.Upstreams, Node: padded}, codes.InvalidArgument},
		"5 MiB request":  {&discoveryv3.DiscoveryRequest{TypeUrl: recorder.Assignments, Node: node, ResourceNames: []string{strings.Repeat("x", 5<<20)}}, codes.ResourceExhausted},
	} {
		s := open()
		_ = s.Send(tc.first) // it may be refused before it is sent as a whole
		_, err := s.Recv()
		require.Equal(t, tc.code, status.Code(err), "%s: %v", name, err)
	}

	s := open()
	name := Upstream("fence")
	require.NoError(t, s.Send(&discoveryv3.DiscoveryRequest{TypeUrl: recorder.Assignments, Node: node, ResourceNames: []string{name}}))
	first, err := s.Recv()
	require.NoError(t, err)
	for _, nonce := range []string{"", "ffffffffffffffff"} { // neither answers anything
		require.NoError(t, s.Send(&discoveryv3.DiscoveryRequest{TypeUrl: recorder.Assignments, VersionInfo: first.GetVersionInfo(),
			ResponseNonce: nonce + "stale", ResourceNames: []string{"nothing"}}))
	}
	require.NoError(t, s.Send(&discoveryv3.DiscoveryRequest{TypeUrl: recorder.Assignments, VersionInfo: first.GetVersionInfo(),
		ResponseNonce: first.GetNonce(), ResourceNames: []string{name}}))
	w.settle("east", "10.1.9.2", well)
	second, err := s.Recv()
	require.NoError(t, err)
	require.Len(t, second.GetResources(), 1)
	var a endpointv3.ClusterLoadAssignment
	require.NoError(t, second.GetResources()[0].UnmarshalTo(&a))
	require.Contains(t, a.String(), "10.1.9.2", "the next thing heard is the change, not an answer to a stale request")
	require.NoError(t, s.CloseSend())
	onlyAbout(t, well, mark, name)
}
