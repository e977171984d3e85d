package agent

import (
	"context"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/isthmus-mesh/isthmus/testenv/apiserver"
)

// A remote has a trust domain of its own, in its mesh ConfigMap: its workloads
// get identities of it, and proxies elsewhere expect both domains of a service
// that both clusters have.
func TestTrustDomainOfARemote(t *testing.T) {
	l := newLab(t)
	configs := l.c2.Client().CoreV1().ConfigMaps("istio-system")
	_, err := configs.Create(l.ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "istio"},
		Data: map[string]string{"mesh": "trustDomain: two.example"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { _ = configs.Delete(context.WithoutCancel(l.ctx), "istio", metav1.DeleteOptions{}) })
	l.join()

	token := l.podToken(l.c2, "istio-ca")
	remote := l.agent(func(c *Config) { c.Token, c.Cluster = token, "c2" })
	var got *Issued
	l.eventually("its trust domain has been read", func() bool {
		got, err = remote.Certificate(l.ctx, CSR{URI: spiffe("shop", "web"), ECDSA: true})
		return err == nil && got.Leaf.URIs[0].String() == "spiffe://two.example/ns/shop/sa/web"
	})
	verify(t, got)
	first, err := l.web().Certificate(l.ctx, CSR{ECDSA: true})
	require.NoError(t, err)
	require.Equal(t, spiffe("shop", "web"), first.Leaf.URIs[0].String(), "the primary's stays")

	// The certificate of the other domain lets its owner in.
	renewing := l.agent(func(c *Config) { c.Certificate = got.TLS() })
	again, err := renewing.Certificate(l.ctx, CSR{ECDSA: true})
	require.NoError(t, err)
	require.Equal(t, "spiffe://two.example/ns/shop/sa/web", again.Leaf.URIs[0].String())

	in := func(cluster string) Node { return webNode(func(n *Node) { n.Cluster = cluster }) }
	own := l.open(renewing, in("c2"), true)
	l.ask(own, Request{Type: CDS})
	require.NotEmpty(t, l.next(own, CDS).Resources)
	foreign := l.open(renewing, in("c1"), true)
	l.ask(foreign, Request{Type: CDS})
	ended := foreign.Ended(l.ctx)
	require.Equal(t, codes.PermissionDenied, status.Code(ended))
	require.ErrorContains(t, ended, "of trust domain two.example")

	// The identities of endpoints are what other proxies expect.
	l.makeEndpoint(l.c1, "10.1.0.10")
	l.makeEndpoint(l.c2, "10.2.0.10")
	s := l.open(l.web(), webNode(), false)
	want := []string{spiffe("shop", "web"), "spiffe://two.example/ns/shop/sa/web"}
	var names []string
	l.ask(s, Request{Type: CDS})
	for {
		r := l.next(s, CDS)
		require.NoError(t, s.Ack(r))
		if names = expectedNames(t, r); len(names) == len(want) {
			break
		}
	}
	require.ElementsMatch(t, want, names)
}

// makeEndpoint makes a pod of service web that is ready, for the time of the test.
func (l *lab) makeEndpoint(c *apiserver.Cluster, ip string) {
	l.t.Helper()
	require.NoError(l.t, c.Apply(l.ctx, []byte(`
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web, security.istio.io/tlsMode: istio}}
spec:
  serviceAccountName: web
  nodeName: node1
  containers: [{name: app, image: app, ports: [{containerPort: 8080}]}]
status: {phase: Running, podIP: `+ip+`, podIPs: [{ip: `+ip+`}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [`+ip+`], conditions: {ready: true}, targetRef: {kind: Pod, name: web-1, namespace: shop}}]
`)))
	l.t.Cleanup(func() {
		zero := int64(0)
		ctx := context.WithoutCancel(l.ctx)
		_ = c.Client().CoreV1().Pods("shop").Delete(ctx, "web-1", metav1.DeleteOptions{GracePeriodSeconds: &zero})
		_ = c.Client().DiscoveryV1().EndpointSlices("shop").Delete(ctx, "web-1", metav1.DeleteOptions{})
	})
}

// expectedNames are the identities that a proxy accepts of service web.
func expectedNames(t *testing.T, r Response) []string {
	t.Helper()
	var names []string
	for _, x := range r.Resources {
		var c clusterv3.Cluster
		require.NoError(t, x.UnmarshalTo(&c))
		if c.GetName() != "outbound|80||web.shop.svc.cluster.local" {
			continue
		}
		for _, m := range c.GetTransportSocketMatches() {
			if m.GetName() != "tlsMode-istio" {
				continue
			}
			var up tlsv3.UpstreamTlsContext
			require.NoError(t, m.GetTransportSocket().GetTypedConfig().UnmarshalTo(&up))
			for _, n := range up.GetCommonTlsContext().GetCombinedValidationContext().GetDefaultValidationContext().GetMatchSubjectAltNames() { //nolint:staticcheck // Istio's clients read this field
				names = append(names, n.GetExact())
			}
		}
	}
	return names
}
