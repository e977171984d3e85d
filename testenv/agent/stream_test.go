package agent

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/isthmus-mesh/isthmus/ca"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/serve"
	"github.com/isthmus-mesh/isthmus/testenv/plane"
)

// assignmentsOf names what an Envoy asks for after upstreams.
func assignmentsOf(t *testing.T, r Response) []string {
	t.Helper()
	var names []string
	for _, x := range r.Resources {
		var c clusterv3.Cluster
		require.NoError(t, x.UnmarshalTo(&c))
		if c.GetType() == clusterv3.Cluster_EDS {
			names = append(names, c.GetName())
		}
	}
	require.NotEmpty(t, names)
	return names
}

// Checks 10 to 13: the recorded order of an agent with its Envoy. Everything is
// answered, what answers an answer is not, a health report never is.
func TestRecordedOrder(t *testing.T) {
	l := newLab(t)
	web := l.web()
	bothProtocols(t, func(t *testing.T, delta bool) {
		l := l.in(t)
		s := l.open(web, webNode(), delta)
		l.ask(s, Request{Type: CDS})
		upstreams := l.next(s, CDS)
		require.NoError(t, s.Ack(upstreams))
		names := assignmentsOf(t, upstreams)
		l.ask(s, Request{Type: EDS, Names: names[:1]})
		first := l.next(s, EDS)
		require.NoError(t, s.Ack(first, names[:1]...))
		l.ask(s, Request{Type: LDS})
		l.ask(s, Request{Type: NDS})
		l.ask(s, Request{Type: PCDS})
		l.ask(s, Request{Type: Health, Reject: "Envoy's admin port is closed"})
		l.ask(s, Request{Type: Health})
		listeners := l.next(s, LDS)
		require.NotEmpty(t, listeners.Resources)
		require.NoError(t, s.Ack(listeners))
		l.ask(s, Request{Type: RDS, Names: []string{"80"}})
		routes := l.next(s, RDS)
		require.Len(t, routes.Resources, 1)
		require.NoError(t, s.Ack(routes, "80"))
		if all := names; len(all) > 1 { // a request with more names is answered, its ACK before was not
			more := Request{Type: EDS, Names: all[1:]}
			if !delta {
				more = Request{Type: EDS, Names: all, Nonce: first.Nonce, Version: first.Version}
			}
			l.ask(s, more)
			l.next(s, EDS)
			require.Len(t, s.Received(EDS), 2)
		}
		require.Len(t, s.Received(CDS), 1)
		require.Len(t, s.Received(LDS), 1)
		require.Len(t, s.Received(RDS), 1)
		require.Empty(t, s.Received(Health))
	})
}

// Check 14: what a reconnecting Envoy or istioctl brings means nothing.
func TestForeignNonceAndVersions(t *testing.T) {
	l := newLab(t)
	web := l.web()
	bothProtocols(t, func(t *testing.T, delta bool) {
		l := l.in(t)
		s := l.open(web, webNode(), delta)
		l.ask(s, Request{Type: CDS, Nonce: "2026-11-22 10:56:40.006501997 +0000 UTC", Version: "old", Initial: map[string]string{"BlackHoleCluster": ""}})
		require.NotEmpty(t, l.next(s, CDS).Resources)
	})
}

// Check 15: what was rejected is not sent again until it changes.
func TestRejectedIsNotSentAgain(t *testing.T) {
	l := newLab(t)
	web := l.web()
	bothProtocols(t, func(t *testing.T, delta bool) {
		l := l.in(t)
		s := l.open(web, webNode(), delta)
		l.ask(s, Request{Type: CDS})
		require.NoError(t, s.Nack(l.next(s, CDS), "no"))
		l.ask(s, Request{Type: LDS})
		l.next(s, LDS)
		require.Len(t, s.Received(CDS), 1)
		require.Contains(t, plane.Get(l.t, l.plane.HTTPAddr(), "/debug/syncz"), `"lastError":"no"`)
	})
}

// Check 16, and the cluster of the credential.
func TestProxyIsWhoItsCredentialSays(t *testing.T) {
	l := newLab(t)
	web := l.web()
	for _, c := range []struct {
		name string
		node Node
		says string
	}{
		{"another account", webNode(func(n *Node) { n.ServiceAccount = "other" }),
			"authorization failed: no identities ([" + spiffe("shop", "web") + "]) matched shop/other"},
		{"another namespace", webNode(func(n *Node) { n.Namespace = "bank" }), "matched bank/web"},
		{"another cluster", webNode(func(n *Node) { n.Cluster = "c2" }), "the credential is of cluster c1, the proxy says CLUSTER_ID c2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := l.in(t)
			s := l.open(web, c.node, true)
			l.ask(s, Request{Type: CDS})
			_, err := s.Next(l.ctx, CDS)
			require.Equal(t, codes.PermissionDenied, status.Code(err), "%v", err)
			require.ErrorContains(t, err, c.says)
		})
	}
	t.Run("no account", func(t *testing.T) {
		l := l.in(t)
		s := l.open(web, webNode(func(n *Node) { n.Extra = map[string]any{"SERVICE_ACCOUNT": nil} }), true)
		l.ask(s, Request{Type: CDS})
		require.NotEmpty(t, l.next(s, CDS).Resources)
	})
	t.Run("nobody", func(t *testing.T) {
		l := l.in(t)
		s := l.open(l.agent(), webNode(), true)
		l.ask(s, Request{Type: CDS})
		_, err := s.Next(l.ctx, CDS)
		require.Equal(t, codes.Unauthenticated, status.Code(err), "%v", err)
	})
	t.Run("plaintext on the secure port", func(t *testing.T) {
		l := l.in(t)
		node, err := webNode().Proto()
		require.NoError(t, err)
		_, err = l.agent(func(c *Config) { c.Plaintext = true }).Open(l.ctx, node, true)
		require.Equal(t, codes.Unavailable, status.Code(err), "%v", err)
	})
	t.Run("a foreign root", func(t *testing.T) {
		l := l.in(t)
		dir := t.TempDir()
		makeIntermediate(t, dir)
		l.refused(l.web(func(c *Config) { c.Roots = readFile(t, dir+"/root/root-cert.pem") }), codes.Unavailable, "unknown authority")
	})
}

// Row 36: a stream ends with the certificate that opened it.
func TestStreamEndsWithItsCertificate(t *testing.T) {
	l := newLab(t)
	short, err := l.web().Certificate(l.ctx, CSR{ECDSA: true, Lifetime: 3 * time.Second})
	require.NoError(t, err)
	s := l.open(l.agent(func(c *Config) { c.Certificate = short.TLS() }), webNode(), true)
	l.ask(s, Request{Type: CDS})
	l.next(s, CDS)
	ended := s.Ended(l.ctx)
	require.Equal(t, codes.Unauthenticated, status.Code(ended), "%v", ended)
	require.ErrorContains(t, ended, "expired")
	require.False(t, time.Now().Before(short.Leaf.NotAfter))
}

// Row 37: one address cannot take every stream.
func TestStreamsPerAddress(t *testing.T) {
	l := newLab(t, func(s *serve.Settings) { s.Security.StreamsPerPeer = 2 })
	web := l.web()
	for range 2 {
		s := l.open(web, webNode(), true)
		l.ask(s, Request{Type: CDS})
		l.next(s, CDS)
	}
	s := l.open(web, webNode(), true)
	require.Equal(t, codes.ResourceExhausted, status.Code(s.Ended(l.ctx)))
}

// Check 17, its second half: at the connection's age the stream ends, and the
// next one is as good.
func TestConnectionAge(t *testing.T) {
	l := newLab(t, func(s *serve.Settings) { s.MaxConnectionAge = time.Second })
	web := l.web()
	s := l.open(web, webNode(), true)
	l.ask(s, Request{Type: CDS})
	l.next(s, CDS)
	require.Equal(t, codes.Unavailable, status.Code(s.Ended(l.ctx)))
	s = l.open(web, webNode(), true)
	l.ask(s, Request{Type: CDS})
	require.NotEmpty(t, l.next(s, CDS).Resources)
}

// Check 18.
func TestShutdown(t *testing.T) {
	l := newLab(t)
	s := l.open(l.web(), webNode(), true)
	l.ask(s, Request{Type: CDS})
	l.next(s, CDS)
	l.plane.Halt()
	require.Equal(t, codes.Unavailable, status.Code(s.Ended(l.ctx)))
	require.Equal(t, "shutting down", l.plane.NotReady())
}

// gateway is a router in namespace shop with service account web.
func gateway() Node { return webNode(func(n *Node) { n.Router = true }) }

// Check 19: secrets of a gateway.
func TestGatewaySecrets(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	makeIntermediate(t, dir)
	cert, key := readFile(t, dir+"/c1/ca-cert.pem"), readFile(t, dir+"/c1/ca-key.pem")
	put := func(name string, data map[string][]byte) {
		t.Helper()
		secrets := l.c1.Client().CoreV1().Secrets("shop")
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: data}
		if _, err := secrets.Create(l.ctx, s, metav1.CreateOptions{}); err != nil {
			_, err = secrets.Update(l.ctx, s, metav1.UpdateOptions{})
			require.NoError(t, err)
		}
	}
	put("a-cert", map[string][]byte{"tls.crt": cert, "tls.key": key, "ca.crt": cert})
	l.mayListSecrets(false)

	names := []string{"kubernetes://a-cert", "kubernetes-gateway://shop/a-cert-cacert", "kubernetes-gateway://istio-system/" + ca.SelfSignedSecret, "kubernetes://later"}
	plain := l.open(l.agent(func(c *Config) { c.Address, c.Plaintext = l.plane.GRPCAddr(), true }), gateway(), true)
	s := l.open(l.web(), gateway(), true)
	for _, x := range []*Stream{plain, s} {
		l.ask(x, Request{Type: SDS, Names: names})
		l.ask(x, Request{Type: CDS})
		l.next(x, CDS)
	}
	require.Empty(t, s.Received(SDS), "its account may not list secrets")

	l.mayListSecrets(true)
	got := l.next(s, SDS)
	require.ElementsMatch(t, names[:2], got.Names, "another namespace's is left out, its siblings come")
	require.NoError(t, s.Ack(got))
	for i, x := range got.Resources {
		var secret tlsv3.Secret
		require.NoError(t, x.UnmarshalTo(&secret))
		require.Equal(t, got.Names[i], secret.Name)
		if secret.Name == names[0] {
			require.Equal(t, key, secret.GetTlsCertificate().GetPrivateKey().GetInlineBytes())
		} else {
			require.Equal(t, cert, secret.GetValidationContext().GetTrustedCa().GetInlineBytes())
		}
	}

	put("later", map[string][]byte{"cert": cert, "key": key})
	got = l.next(s, SDS)
	require.Equal(t, []string{names[3]}, got.Names, "a change is pushed, and only it")
	put("later", map[string][]byte{"cert": cert, "key": []byte("half written")})
	put("a-cert", map[string][]byte{"tls.crt": append(slices.Clone(cert), '\n'), "tls.key": key, "ca.crt": cert})
	got = l.next(s, SDS)
	require.Equal(t, names[:1], got.Names, "a broken one is not")
	require.Empty(t, got.Removed)
	require.Empty(t, plain.Received(SDS), "never over plaintext")
}

// mayListSecrets gives service account web in shop of c1 the right, or takes it.
func (l *lab) mayListSecrets(may bool) {
	l.t.Helper()
	rbac := l.c1.Client().RbacV1()
	meta := metav1.ObjectMeta{Name: "secrets", Namespace: "shop"}
	_ = rbac.RoleBindings("shop").Delete(l.ctx, "secrets", metav1.DeleteOptions{})
	_ = rbac.Roles("shop").Delete(l.ctx, "secrets", metav1.DeleteOptions{})
	if !may {
		return
	}
	_, err := rbac.Roles("shop").Create(l.ctx, &rbacv1.Role{ObjectMeta: meta,
		Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: []string{"get", "list", "watch"}}}}, metav1.CreateOptions{})
	require.NoError(l.t, err)
	_, err = rbac.RoleBindings("shop").Create(l.ctx, &rbacv1.RoleBinding{ObjectMeta: meta,
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "secrets"},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: "shop", Name: "web"}}}, metav1.CreateOptions{})
	require.NoError(l.t, err)
}

// Check 20: nothing that an agent says of itself is lost or refused.
func TestNodeIsReadWhole(t *testing.T) {
	l := newLab(t)
	s := l.open(l.web(), webNode(func(n *Node) {
		n.Extra = map[string]any{"SOMETHING_NEW": map[string]any{"a": []any{1, "two", nil}}, "ENVOY_STATUS_PORT": "15021", "DNS_CAPTURE": true}
	}), true)
	l.ask(s, Request{Type: CDS})
	l.next(s, CDS)
	dump := plane.Get(l.t, l.plane.HTTPAddr(), "/debug/adsz")
	for _, says := range []string{`"CLUSTER_ID":"c1"`, `"NETWORK":"net1"`, `"SERVICE_ACCOUNT":"web"`, `"ISTIO_VERSION":"1.30.0"`, `"MESH_ID":"mesh1"`} {
		require.Contains(t, dump, says)
	}
}

// Check 32: ready only with a certificate to serve with.
func TestReadyOnlyWithACertificate(t *testing.T) {
	l := newLab(t)
	l.plane.Halt()
	require.NoError(t, l.c1.Client().CoreV1().Secrets("istio-system").Delete(l.ctx, ca.SelfSignedSecret, metav1.DeleteOptions{}))
	require.NoError(t, l.c1.Client().CoreV1().Secrets("istio-system").Delete(l.ctx, ca.RotationSecret, metav1.DeleteOptions{}))
	bad := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: ca.PluggedInSecret}, Data: map[string][]byte{"ca-cert.pem": []byte("half")}}
	secrets := l.c1.Client().CoreV1().Secrets("istio-system")
	_, err := secrets.Create(l.ctx, bad, metav1.CreateOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { _ = secrets.Delete(context.WithoutCancel(l.ctx), ca.PluggedInSecret, metav1.DeleteOptions{}) })
	l.begin()
	l.eventually("the reason is said", func() bool {
		resp, err := http.Get("http://" + l.plane.HTTPAddr() + "/ready")
		if err != nil {
			return false
		}
		defer func() { _ = resp.Body.Close() }()
		return resp.StatusCode == http.StatusServiceUnavailable &&
			strings.Contains(l.plane.NotReady(), "no certificate to serve with: ") && strings.Contains(l.plane.NotReady(), ca.PluggedInSecret)
	})
	require.NoError(t, secrets.Delete(l.ctx, ca.PluggedInSecret, metav1.DeleteOptions{}))
	l.eventually("ready", func() bool { return l.plane.NotReady() == "" })
}
