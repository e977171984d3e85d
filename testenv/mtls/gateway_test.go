package mtls

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/isthmus-mesh/isthmus/testenv/recorder"
)

// requireHAProxy skips where there is none.
func requireHAProxy(t testing.TB) string {
	t.Helper()
	for _, name := range []string{"haproxy", "/usr/sbin/haproxy"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Skip("skipped: no haproxy to stand as the gateway; Debian has it as haproxy")
	return ""
}

// startGateway hears what the gateway's pod is told over ADS, turns it into
// HAProxy's configuration and starts HAProxy with it.
func (w *world) startGateway(certificate func() material) {
	w.t.Helper()
	node := recorder.Node{
		Kind: "router", Name: "istio-eastwestgateway-0", Namespace: "istio-system", Cluster: "west", Network: "net-west",
		IP: gatewayIP, Labels: map[string]string{"app": "istio-eastwestgateway"},
	}
	addr, opt := w.ads, recorder.Options{Delta: true}
	if w.secure != "" {
		addr, opt.Dial = w.secure, []grpc.DialOption{grpc.WithTransportCredentials(credentials.NewTLS(toControlPlane(w.t, certificate())))}
	}
	p, err := recorder.Dial(w.t.Context(), addr, node, opt)
	require.NoError(w.t, err)
	defer p.Close()
	name := fmt.Sprintf("0.0.0.0_%d", w.gateway.Port())
	var l listenerv3.Listener
	require.NoError(w.t, p.Wait(within(w.t), "the gateway's listener and endpoints", func(p *recorder.Proxy) bool {
		return p.Get(recorder.Listeners, name, &l) && len(p.Endpoints(passed)) > 0
	}))
	text, err := haproxyConfig(&l, w.gateway.Addr(), func(upstream string) *endpointv3.ClusterLoadAssignment {
		var a endpointv3.ClusterLoadAssignment
		if !p.Get(recorder.Assignments, upstream, &a) {
			return nil
		}
		return &a
	})
	require.NoError(w.t, err)
	w.runHAProxy(text)
}

// haproxyConfig turns a passthrough listener into a configuration of HAProxy:
// a filter chain becomes a rule by server name and protocol, its upstream a
// backend. It refuses what would open a stream, and all that it does not know.
func haproxyConfig(l *listenerv3.Listener, bind netip.Addr, assignment func(string) *endpointv3.ClusterLoadAssignment) (string, error) {
	var front, back strings.Builder
	fmt.Fprintf(&front, `global
  maxconn 2000
defaults
  mode tcp
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend gateway
  bind %s:%d
  tcp-request inspect-delay 5s
  tcp-request content reject if !{ req.ssl_hello_type 1 }
`, bind, l.GetAddress().GetSocketAddress().GetPortValue())
	for i, chain := range l.GetFilterChains() {
		m := chain.GetFilterChainMatch()
		if chain.GetTransportSocket() != nil {
			return "", fmt.Errorf("filter chain of %v has a transport socket: it would open the stream", m.GetServerNames())
		}
		if len(m.GetServerNames()) == 0 || len(m.GetApplicationProtocols()) == 0 {
			return "", errors.New("a filter chain does not match on server name and protocol")
		}
		if n := len(chain.GetFilters()); n == 0 {
			return "", fmt.Errorf("filter chain of %v has no filter", m.GetServerNames())
		}
		var tcp tcpproxyv3.TcpProxy
		last := chain.GetFilters()[len(chain.GetFilters())-1]
		if err := last.GetTypedConfig().UnmarshalTo(&tcp); err != nil {
			return "", fmt.Errorf("filter chain of %v does not end in a TCP proxy: %w", m.GetServerNames(), err)
		}
		// gRPC offers "h2" and cannot be told to offer anything else, so that a
		// gateway that matches what the chain says refuses it. Envoys offer a
		// protocol of the mesh.
		protocols := append(slices.Clone(m.GetApplicationProtocols()), "h2")
		for j, p := range protocols {
			protocols[j] = strings.ReplaceAll(p, ".", `\.`)
		}
		fmt.Fprintf(&front, "  acl name_%d req.ssl_sni -i %s\n", i, strings.Join(m.GetServerNames(), " "))
		fmt.Fprintf(&front, "  acl protocol_%d req.ssl_alpn -m reg '(^|,)(%s)(,|$)'\n", i, strings.Join(protocols, "|"))
		fmt.Fprintf(&front, "  use_backend upstream_%d if name_%d protocol_%d\n", i, i, i)
		fmt.Fprintf(&back, "backend upstream_%d # %s\n", i, tcp.GetCluster())
		for _, group := range assignment(tcp.GetCluster()).GetEndpoints() {
			for n, e := range group.GetLbEndpoints() {
				at := e.GetEndpoint().GetAddress().GetSocketAddress()
				fmt.Fprintf(&back, "  server s%d %s:%d weight %d\n", n, at.GetAddress(), at.GetPortValue(), e.GetLoadBalancingWeight().GetValue())
			}
		}
	}
	return front.String() + back.String(), nil
}

// runHAProxy runs HAProxy until the test ends and waits until it listens.
func (w *world) runHAProxy(config string) {
	w.t.Helper()
	file := filepath.Join(w.t.TempDir(), "haproxy.cfg")
	require.NoError(w.t, os.WriteFile(file, []byte(config), 0o600))
	var out bytes.Buffer
	ctx, kill := context.WithCancel(context.WithoutCancel(w.t.Context()))
	cmd := exec.CommandContext(ctx, requireHAProxy(w.t), "-db", "-f", file)
	cmd.Stdout, cmd.Stderr = &out, &out
	require.NoError(w.t, cmd.Start())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	w.t.Cleanup(func() { kill(); <-ended })
	require.Eventually(w.t, func() bool {
		select {
		case <-ended:
			require.FailNow(w.t, "haproxy ended", "%s\n%s", out.String(), config)
		default:
		}
		conn, err := net.DialTimeout("tcp", w.gateway.String(), time.Second)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	}, patience, 10*time.Millisecond)
}
