package ca

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/structpb"
	securityapi "istio.io/api/security/v1alpha1"

	"github.com/isthmus-mesh/isthmus/ca/authn"
	"github.com/isthmus-mesh/isthmus/mesh"
)

// serviceWorld is a CSR service with an authority, a log to look into and a
// caller that a test sets.
type serviceWorld struct {
	clock   *clock
	auth    *asCaller
	service *Service
	logs    *observer.ObservedLogs
	holders *Holders
	metrics *prometheus.Registry
	root    *Bundle
}

func newServiceWorld(t testing.TB, change func(*ServiceConfig)) *serviceWorld {
	t.Helper()
	core, logs := observer.New(zapcore.DebugLevel)
	w := &serviceWorld{clock: newClock(), logs: logs, metrics: prometheus.NewRegistry()}
	w.auth = &asCaller{caller: authn.Caller{
		Identity: workload("shop", "web"), Cluster: "c1", Source: authn.SourceToken,
		PodName: "web-0", PodUID: "uid-1", Node: "node1", Expiry: w.clock.Now().Add(time.Hour),
	}}
	w.root = newRoot(t, "cluster.local", w.clock.Now(), 3650*24*time.Hour)
	w.holders = NewHolders(w.clock.Now)
	cfg := ServiceConfig{
		Authority: newAuthority(t, w.clock, w.root), Authenticator: w.auth, Holders: w.holders,
		Logger: zap.New(core), Clock: w.clock.Now, Registerer: w.metrics,
	}
	if change != nil {
		change(&cfg)
	}
	var err error
	w.service, err = NewService(cfg)
	require.NoError(t, err)
	return w
}

func fromPeer(addr string) context.Context {
	return peer.NewContext(context.Background(), &peer.Peer{Addr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr))})
}

func (w *serviceWorld) ask(t testing.TB, change func(*securityapi.IstioCertificateRequest)) (*securityapi.IstioCertificateResponse, error) {
	t.Helper()
	req := &securityapi.IstioCertificateRequest{
		Csr: string(agentCSR(t, ecKey(t), "spiffe://cluster.local/ns/shop/sa/web")), ValidityDuration: 86400,
		Metadata: meta(t, map[string]any{metaCertSigner: ""}),
	}
	if change != nil {
		change(req)
	}
	return w.service.CreateCertificate(fromPeer("10.1.0.10:4711"), req)
}

func meta(t testing.TB, m map[string]any) *structpb.Struct {
	t.Helper()
	s, err := structpb.NewStruct(m)
	require.NoError(t, err)
	return s
}

func TestCreateCertificate(t *testing.T) {
	w := newServiceWorld(t, nil)
	resp, err := w.ask(t, nil)
	require.NoError(t, err)
	require.Len(t, resp.CertChain, 2)
	leaf := verifies(t, resp.CertChain, w.clock.Now())

	lines := w.logs.FilterMessage("certificate issued").All()
	require.Len(t, lines, 1)
	require.Equal(t, "audit", lines[0].LoggerName)
	audit := lines[0].ContextMap()
	require.Equal(t, "spiffe://cluster.local/ns/shop/sa/web", audit["identity"])
	require.Equal(t, "c1", audit["cluster"])
	require.Equal(t, fmt.Sprintf("%032x", leaf.SerialNumber), audit["serial"])
	require.True(t, leaf.NotAfter.Equal(audit["notAfter"].(time.Time)))
	require.Equal(t, "spiffe://cluster.local/ns/shop/sa/web", audit["askedBy"])
	require.Equal(t, "10.1.0.10", audit["peer"])

	m := metricValues(t, w.metrics)
	require.InDelta(t, 1, m["citadel_server_csr_count"], 0)
	require.InDelta(t, 1, m["citadel_server_success_cert_issuance_count"], 0)

	anchor := anchorOf(w.root.Cert)
	require.Equal(t, Share{Held: 1, Total: 2, Known: true}, w.holders.Share([]string{"c1/uid-1", "c1/uid-2"}, anchor, w.clock.Now()))
	require.Equal(t, Share{Total: 1, Known: true}, w.holders.Share(nil, anchor, w.clock.Now().Add(time.Second)))
	w.clock.Add(25 * time.Hour)
	require.Equal(t, Share{Known: true}, w.holders.Share(nil, anchor, w.clock.Now()))
}

// The service behaves on the wire as agents expect: the path, the codes.
func TestCreateCertificateOverGRPC(t *testing.T) {
	w := newServiceWorld(t, nil)
	lis := bufconn.Listen(1 << 16)
	server := grpc.NewServer()
	w.service.Register(server)
	go func() { _ = server.Serve(lis) }()
	defer server.Stop()
	conn, err := grpc.NewClient("passthrough:x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	req := &securityapi.IstioCertificateRequest{Csr: string(agentCSR(t, ecKey(t), "x:y"))}
	var resp securityapi.IstioCertificateResponse
	const method = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
	require.NoError(t, conn.Invoke(t.Context(), method, req, &resp))
	verifies(t, resp.CertChain, w.clock.Now())
	w.auth.err = authn.ErrUnauthenticated
	require.Equal(t, codes.Unauthenticated, status.Code(conn.Invoke(t.Context(), method, req, &resp)))
}

func TestCreateCertificateCodes(t *testing.T) {
	type change func(*testing.T, *serviceWorld, *securityapi.IstioCertificateRequest)
	for name, tc := range map[string]struct {
		change change
		code   codes.Code
		says   string
		metric string
	}{
		"no credential": {func(_ *testing.T, w *serviceWorld, _ *securityapi.IstioCertificateRequest) {
			w.auth.err = fmt.Errorf("x: %w", authn.ErrNoCredential)
		}, codes.Unauthenticated, "authentication required", "citadel_server_authentication_failure_count"},
		"bad credential": {func(_ *testing.T, w *serviceWorld, _ *securityapi.IstioCertificateRequest) {
			w.auth.err = fmt.Errorf("cluster c7 is secret: %w", authn.ErrUnauthenticated)
		}, codes.Unauthenticated, "check the audience", "citadel_server_authentication_failure_count"},
		"row 22: review hangs": {func(_ *testing.T, w *serviceWorld, _ *securityapi.IstioCertificateRequest) {
			w.auth.err = fmt.Errorf("cluster c7 is secret: %w", authn.ErrUnavailable)
		}, codes.Unavailable, "try again", "citadel_server_authentication_failure_count"},
		"row 25: RSA-1024": {func(t *testing.T, _ *serviceWorld, r *securityapi.IstioCertificateRequest) {
			r.Csr = string(agentCSR(t, weakRSA(t), "x:y"))
		}, codes.InvalidArgument, "RSA key of 1024 bits is not supported: use 2048", "citadel_server_csr_parsing_err_count"},
		"row 25: bad signature": {func(t *testing.T, _ *serviceWorld, r *securityapi.IstioCertificateRequest) {
			r.Csr = string(forgedCSR(t))
		}, codes.InvalidArgument, "its signature does not verify", "citadel_server_csr_parsing_err_count"},
		"no CSR": {func(_ *testing.T, _ *serviceWorld, r *securityapi.IstioCertificateRequest) {
			r.Csr = ""
		}, codes.InvalidArgument, "exactly one PEM block", "citadel_server_csr_parsing_err_count"},
		"row 28: issuer expired": {func(_ *testing.T, w *serviceWorld, _ *securityapi.IstioCertificateRequest) {
			w.clock.Add(11 * 365 * 24 * time.Hour)
		}, codes.Unavailable, "cannot issue certificates now", "citadel_server_csr_sign_err_count"},
		"cert signer": {func(t *testing.T, _ *serviceWorld, r *securityapi.IstioCertificateRequest) {
			r.Metadata = meta(t, map[string]any{metaCertSigner: "vault"})
		}, codes.InvalidArgument, "ISTIO_META_CERT_SIGNER", "citadel_server_csr_parsing_err_count"},
		"impersonation, nobody may": {func(t *testing.T, _ *serviceWorld, r *securityapi.IstioCertificateRequest) {
			r.Metadata = meta(t, map[string]any{metaImpersonated: "spiffe://cluster.local/ns/shop/sa/db"})
		}, codes.PermissionDenied, "not allowed to ask for this identity", "citadel_server_id_extraction_err_count"},
		"impersonation, not a string": {func(t *testing.T, _ *serviceWorld, r *securityapi.IstioCertificateRequest) {
			r.Metadata = meta(t, map[string]any{metaImpersonated: 7})
		}, codes.PermissionDenied, "not allowed", "citadel_server_id_extraction_err_count"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newServiceWorld(t, nil)
			_, err := w.ask(t, func(r *securityapi.IstioCertificateRequest) { tc.change(t, w, r) })
			require.Equal(t, tc.code, status.Code(err), "%v", err)
			require.ErrorContains(t, err, tc.says)
			require.NotContains(t, err.Error(), "secret")
			require.InDelta(t, 1, metricValues(t, w.metrics)[tc.metric], 0)
			require.Zero(t, w.logs.FilterMessage("certificate issued").Len())
			require.NotZero(t, w.logs.Len()+boolInt(name == "cert signer"), "a refusal is logged")
		})
	}
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// forgedCSR carries somebody else's key.
func forgedCSR(t testing.TB) []byte {
	block, _ := pem.Decode(agentCSR(t, ecKey(t), "spiffe://cluster.local/ns/shop/sa/web"))
	require.NotNil(t, block)
	der := append([]byte{}, block.Bytes...)
	der[len(der)-1] ^= 1
	return pemOf(pemCSR, der)
}

func TestPanicBecomesInternal(t *testing.T) {
	w := newServiceWorld(t, func(c *ServiceConfig) { c.Authenticator = panics{} })
	_, err := w.ask(t, nil)
	require.Equal(t, codes.Internal, status.Code(err))
}

type panics struct{}

func (panics) Authenticate(context.Context, authn.Request) (authn.Caller, error) {
	panic("nil somewhere")
}

// Row 37, for certificate requests: a flood from one address or one identity is
// refused before it costs anything, others are served.
func TestRow37RateLimits(t *testing.T) {
	w := newServiceWorld(t, func(c *ServiceConfig) { c.PeerRate, c.PeerBurst = 1, 3 })
	csr := string(agentCSR(t, ecKey(t), "x:y"))
	call := func(addr string) codes.Code {
		_, err := w.service.CreateCertificate(fromPeer(addr), &securityapi.IstioCertificateRequest{Csr: csr})
		return status.Code(err)
	}
	for range 3 {
		require.Equal(t, codes.OK, call("10.0.0.1:1"))
	}
	require.Equal(t, codes.ResourceExhausted, call("10.0.0.1:2"))
	require.Equal(t, codes.OK, call("10.0.0.2:1"))
	for i := range 3 {
		require.Equal(t, codes.OK, call(fmt.Sprintf("[2001:db8::%d]:1", i)))
	}
	require.Equal(t, codes.ResourceExhausted, call("[2001:db8::9]:1"), "a host may choose any address of its /64")
	w.clock.Add(time.Second)
	require.Equal(t, codes.OK, call("10.0.0.1:1"))

	w = newServiceWorld(t, func(c *ServiceConfig) { c.PeerRate = -1; c.IdentityRate, c.IdentityBurst = 1, 1 })
	require.Equal(t, codes.OK, call("10.0.0.1:1"))
	require.Equal(t, codes.ResourceExhausted, call("10.0.0.2:1"))
	w.auth.caller.Identity = workload("shop", "other")
	require.Equal(t, codes.OK, call("10.0.0.1:1"))
}

func TestLimiterIsBounded(t *testing.T) {
	l := newKeyedLimiter[int](1, 1)
	l.max = 10
	now := newClock().Now()
	for i := range 10 {
		require.True(t, l.allow(i, now))
	}
	require.True(t, l.allow(100, now), "the shared bucket")
	require.False(t, l.allow(101, now), "is empty")
	require.Len(t, l.buckets, 10)
	now = now.Add(2 * time.Second)
	require.True(t, l.allow(102, now))
	require.Len(t, l.buckets, 1, "full buckets are forgotten")
}

// fakePods knows some pods.
type fakePods map[string]PodFacts

func (f fakePods) Pod(cluster mesh.ClusterID, ns, name string) (PodFacts, bool) {
	p, ok := f[string(cluster)+"/"+ns+"/"+name]
	return p, ok
}

func (f fakePods) RunsOnNode(cluster mesh.ClusterID, node, ns, sa string) bool {
	for key, p := range f {
		if len(key) > len(cluster) && key[:len(cluster)] == string(cluster) && p.Node == node && p.ServiceAccount == sa && p.Live &&
			key[len(cluster)+1:len(cluster)+1+len(ns)] == ns {
			return true
		}
	}
	return false
}

// Row 27: a node proxy gets the identities of its own node, cluster and trust
// domain as the pod that it is, and nothing else; it hears no reason.
func TestRow27Impersonation(t *testing.T) {
	pods := func() fakePods {
		return fakePods{
			"c1/istio-system/ztunnel-1": {UID: "zt-1", Node: "node1", ServiceAccount: "ztunnel", Live: true},
			"c1/shop/web-0":             {UID: "w-0", Node: "node1", ServiceAccount: "web", Live: true},
			"c1/shop/db-0":              {UID: "d-0", Node: "node2", ServiceAccount: "db", Live: true},
			"c2/shop/cart-0":            {UID: "c-0", Node: "node1", ServiceAccount: "cart", Live: true},
			"c1/shop/old-0":             {UID: "o-0", Node: "node1", ServiceAccount: "old"},
		}
	}
	const web = "spiffe://cluster.local/ns/shop/sa/web"
	for name, tc := range map[string]struct {
		wanted string
		change func(*authn.Caller, fakePods, *ServiceConfig)
		ok     bool
	}{
		"own node":                    {wanted: web, ok: true},
		"other node":                  {wanted: "spiffe://cluster.local/ns/shop/sa/db"},
		"other cluster's pod":         {wanted: "spiffe://cluster.local/ns/shop/sa/cart"},
		"other trust domain":          {wanted: "spiffe://evil/ns/shop/sa/web"},
		"finished pod":                {wanted: "spiffe://cluster.local/ns/shop/sa/old"},
		"empty segment":               {wanted: "spiffe://cluster.local/ns//sa/web"},
		"path tricks":                 {wanted: "spiffe://cluster.local/ns/../sa/web"},
		"not SPIFFE":                  {wanted: "https://cluster.local/ns/shop/sa/web"},
		"stale UID":                   {wanted: web, change: func(c *authn.Caller, _ fakePods, _ *ServiceConfig) { c.PodUID = "zt-0" }},
		"says another node":           {wanted: web, change: func(c *authn.Caller, _ fakePods, _ *ServiceConfig) { c.Node = "node2" }},
		"token not bound to a pod":    {wanted: web, change: func(c *authn.Caller, _ fakePods, _ *ServiceConfig) { c.PodUID, c.PodName = "", "" }},
		"by certificate":              {wanted: web, change: func(c *authn.Caller, _ fakePods, _ *ServiceConfig) { c.Source, c.Cluster = authn.SourceMTLS, "" }},
		"same account, other cluster": {wanted: web, change: func(c *authn.Caller, _ fakePods, _ *ServiceConfig) { c.Cluster = "c2" }},
		"untrusted account":           {wanted: web, change: func(c *authn.Caller, _ fakePods, _ *ServiceConfig) { c.Identity.ServiceAccount = "web" }},
		"nobody trusted":              {wanted: web, change: func(_ *authn.Caller, _ fakePods, s *ServiceConfig) { s.NodeAccounts = nil }},
		"own pod is being deleted": {wanted: web, change: func(_ *authn.Caller, p fakePods, _ *ServiceConfig) {
			z := p["c1/istio-system/ztunnel-1"]
			z.Live = false
			p["c1/istio-system/ztunnel-1"] = z
		}},
	} {
		t.Run(name, func(t *testing.T) {
			caller := authn.Caller{Identity: workload("istio-system", "ztunnel"), Cluster: "c1", Source: authn.SourceToken,
				PodName: "ztunnel-1", PodUID: "zt-1", Node: "node1", Expiry: newClock().Now().Add(time.Hour)}
			p := pods()
			w := newServiceWorld(t, func(c *ServiceConfig) {
				var err error
				c.NodeAccounts, err = ParseNodeAccounts("istio-system/ztunnel")
				require.NoError(t, err)
				c.Pods = p
				if tc.change != nil {
					tc.change(&caller, p, c)
				}
			})
			w.auth.caller = caller
			resp, err := w.ask(t, func(r *securityapi.IstioCertificateRequest) {
				r.Metadata = meta(t, map[string]any{metaImpersonated: tc.wanted})
			})
			if tc.ok {
				require.NoError(t, err)
				leaf := verifies(t, resp.CertChain, w.clock.Now())
				require.Equal(t, tc.wanted, leaf.URIs[0].String())
				audit := w.logs.FilterMessage("certificate issued").All()[0].ContextMap()
				require.Equal(t, "spiffe://cluster.local/ns/istio-system/sa/ztunnel", audit["askedBy"])
				return
			}
			require.Equal(t, codes.PermissionDenied, status.Code(err))
			require.Equal(t, "not allowed to ask for this identity", status.Convert(err).Message())
			lines := w.logs.FilterMessage("certificate request: impersonation denied").All()
			require.Len(t, lines, 1)
			require.NotEmpty(t, lines[0].ContextMap()["error"])
		})
	}
}

func TestParseNodeAccounts(t *testing.T) {
	got, err := ParseNodeAccounts("")
	require.NoError(t, err)
	require.Empty(t, got)
	got, err = ParseNodeAccounts(" a/b, c/d,")
	require.NoError(t, err)
	require.Equal(t, []NodeAccount{{"a", "b"}, {"c", "d"}}, got)
	for _, bad := range []string{"a", "/b", "a/", "a/b/c"} {
		_, err = ParseNodeAccounts(bad)
		require.Error(t, err, bad)
	}
}

func TestSignErrorIsOpaque(t *testing.T) {
	w := newServiceWorld(t, nil)
	err := w.service.signError(authn.Caller{}, errors.New("key at /secret/path"))
	require.Equal(t, "signing failed", status.Convert(err).Message())
}
