package serve

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"github.com/isthmus-mesh/isthmus/ca"
	"github.com/isthmus-mesh/isthmus/ca/authn"
	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/xds"
)

func TestParseSecretName(t *testing.T) {
	for in, want := range map[string]secretName{
		"kubernetes://a":                     {"shop", "a", false},
		"kubernetes://a-cacert":              {"shop", "a-cacert", true},
		"kubernetes://other/a":               {"other", "a", false},
		"kubernetes-gateway://shop/a-cacert": {"shop", "a-cacert", true},
	} {
		got, err := parseSecretName(in, "shop")
		require.NoError(t, err, in)
		require.Equal(t, want, got, in)
	}
	for _, bad := range []string{"", "default", "ROOTCA", "kubernetes://", "kubernetes:///a", "kubernetes://a/", "kubernetes://a/b/c",
		"kubernetes-gateway://a", "kubernetes://a,metadata.namespace=b", "kubernetes://../a", "file:///etc/passwd"} {
		_, err := parseSecretName(bad, "shop")
		require.Error(t, err, bad)
	}
}

func FuzzParseSecretName(f *testing.F) {
	f.Add("kubernetes://a", "shop")
	f.Add("kubernetes-gateway://shop/a-cacert", "shop")
	f.Add("kubernetes://-cacert", "shop")
	f.Fuzz(func(t *testing.T, resource, namespace string) {
		n, err := parseSecretName(resource, namespace)
		if err != nil {
			return
		}
		for _, k := range n.places("c2", "c1") {
			if k.namespace == "" || k.name == "" || k.namespace != n.namespace {
				t.Fatalf("%q is looked for in %v", resource, k)
			}
		}
	})
}

// The proxy's cluster comes first, then the primary; roots have a Secret of
// their own first.
func TestSecretPlaces(t *testing.T) {
	n := secretName{"shop", "a-cacert", true}
	require.Equal(t, []secretKey{{"c2", "shop", "a-cacert", false}, {"c2", "shop", "a", false}, {"c1", "shop", "a-cacert", false}, {"c1", "shop", "a", false}}, n.places("c2", "c1"))
	require.Equal(t, []secretKey{{"c1", "shop", "a", false}}, secretName{"shop", "a", false}.places("c1", "c1"))
	require.Equal(t, []secretKey{{"c1", "shop", "-cacert", false}}, secretName{"shop", "-cacert", true}.places("c1", "c1"))
}

// Who has proven nothing hears of no secret, and nobody is asked about it.
func TestNoSecretWithoutCaller(t *testing.T) {
	g := newGatewaySecrets(&Control{log: zap.NewNop()})
	_, err := g.Respond(t.Context(), &mesh.Proxy{Namespace: "shop"}, typeSecret, []string{"kubernetes://a"})
	require.ErrorIs(t, err, xds.ErrWithheld)
}

func TestProxyMayBe(t *testing.T) {
	caller := authn.Caller{Identity: mesh.Identity{TrustDomain: "td", Namespace: "shop", ServiceAccount: "web"}, Cluster: "c1"}
	proxy := func(ns, sa string, c mesh.ClusterID) *mesh.Proxy {
		return &mesh.Proxy{Namespace: ns, ServiceAccount: sa, Cluster: c}
	}
	require.NoError(t, mayBe(caller, proxy("shop", "web", "c1")))
	require.NoError(t, mayBe(caller, proxy("shop", "", "c1")))
	require.EqualError(t, mayBe(caller, proxy("shop", "other", "c1")), "no identities ([spiffe://td/ns/shop/sa/web]) matched shop/other")
	require.Error(t, mayBe(caller, proxy("", "web", "c1")))
	require.Error(t, mayBe(caller, proxy("shop", "web", "c2")))
	caller.Cluster = "" // a client certificate names no cluster
	require.NoError(t, mayBe(caller, proxy("shop", "web", "c2")))
}

// knows authenticates a request by its token, which is a namespace.
type knows struct{}

func (knows) Authenticate(_ context.Context, r authn.Request) (authn.Caller, error) {
	switch r.Token {
	case "":
		return authn.Caller{}, authn.ErrNoCredential
	case "down":
		return authn.Caller{}, authn.ErrUnavailable
	case "bad":
		return authn.Caller{}, authn.ErrUnauthenticated
	}
	return authn.Caller{Identity: mesh.Identity{TrustDomain: "td", Namespace: r.Token, ServiceAccount: "x"}, Expiry: farFuture()}, nil
}

// Row 49: who sees what of /debug.
func TestDebugGuard(t *testing.T) {
	c := filesControl(t)
	c.access.chain = authn.Chain{knows{}}
	c.access.refusals = rate.NewLimiter(rate.Inf, 1)
	var seen string
	guarded := c.debugGuard(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen = r.URL.RequestURI() }))
	for _, x := range []struct {
		name, remote, host, token, path string
		code                            int
		seen                            string
	}{
		{"this machine", "127.0.0.1:1", "localhost:15014", "", "/debug/overview", 200, "/debug/overview"},
		{"this machine over IPv6", "[::1]:1", "[::1]:15014", "", "/debug/overview", 200, "/debug/overview"},
		{"a name that resolves to loopback", "127.0.0.1:1", "evil.example", "", "/debug/overview", 403, ""},
		{"nobody", "10.0.0.1:1", "localhost", "", "/debug/overview", 401, ""},
		{"an address that cannot be read", "@", "localhost", "", "/debug/overview", 401, ""},
		{"a bad token", "10.0.0.1:1", "istiod", "bad", "/debug/overview", 401, ""},
		{"a token that cannot be checked", "10.0.0.1:1", "istiod", "down", "/debug/overview", 503, ""},
		{"the system namespace", "10.0.0.1:1", "istiod", "istio-system", "/debug/pprof/heap", 200, "/debug/pprof/heap"},
		{"an allowed namespace", "10.0.0.1:1", "istiod", "ops", "/debug/overview", 200, "/debug/overview"},
		{"a tenant", "10.0.0.1:1", "istiod", "shop", "/debug/overview", 403, ""},
		{"a tenant's profile", "10.0.0.1:1", "istiod", "shop", "/debug/pprof/heap", 403, ""},
		{"a tenant's syncz", "10.0.0.1:1", "istiod", "shop", "/debug/syncz?namespace=bank", 200, "/debug/syncz?namespace=shop"},
		{"a tenant's dump of a proxy that is not there", "10.0.0.1:1", "istiod", "shop", "/debug/config_dump?proxyID=a.bank", 403, ""},
	} {
		t.Run(x.name, func(t *testing.T) {
			seen = ""
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, x.path, nil)
			r.RemoteAddr, r.Host = x.remote, x.host
			r.Header.Set("X-Forwarded-For", "127.0.0.1")
			if x.token != "" {
				r.Header.Set("Authorization", "Bearer "+x.token)
			}
			w := httptest.NewRecorder()
			guarded.ServeHTTP(w, r)
			require.Equal(t, x.code, w.Code)
			require.Equal(t, x.seen, seen)
		})
	}
}

func TestSecuritySettings(t *testing.T) {
	env := map[string]string{"DEFAULT_WORKLOAD_CERT_TTL": "1h", "TOKEN_AUDIENCES": "a, b", "ISTIOD_CUSTOM_HOST": "x.example,y.example"}
	s := securityDefaults(func(k string) string { return env[k] })
	require.Equal(t, "1h0m0s", s.CertTTL.String())
	require.Equal(t, []string{"a", "b"}, s.Audiences)
	require.Equal(t, []string{"x.example", "y.example"}, s.CustomHosts)
	require.NoError(t, s.validate())
	for _, change := range []func(*Security){
		func(s *Security) { s.MinTLS = "1.1" },
		func(s *Security) { s.JWTRule = "{" },
		func(s *Security) { s.NodeAccounts = "ztunnel" },
		func(s *Security) { s.MaxCertTTL = -1 },
		func(s *Security) { s.JWTRule = `{"issuer":"https://i","audiences":["a"]}` }, // of which cluster?
		func(s *Security) { s.TLSCertFile = "tls.crt" },
		func(s *Security) { s.TLSCertFile, s.TLSKeyFile = "tls.crt", "tls.key" },
		func(s *Security) { s.CACertFile = "ca.crt" },
	} {
		bad := s
		change(&bad)
		require.Error(t, bad.validate())
	}
	require.Equal(t, "istiod.istio-system.svc", discoveryHost("istiod.istio-system.svc:15012"))
	require.Empty(t, discoveryHost("192.0.2.1:15012"))
	require.Empty(t, discoveryHost(""))
}

// The certificate to serve TLS with: what flags name, else what is mounted where
// istiod looks, else one of our own CA.
func TestServingFiles(t *testing.T) {
	s := securityDefaults(func(string) string { return "" })
	require.False(t, s.UseCACerts)
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	s.bind(fs)
	mounted := func(paths ...string) func(string) bool {
		return func(p string) bool { return slices.Contains(paths, p) }
	}
	require.Nil(t, s.servingFiles(mounted()))
	require.Nil(t, s.servingFiles(mounted(mountedTLSCert, mountedTLSKey)), "nobody could verify it")
	require.Nil(t, s.servingFiles(mounted(mountedCA)))
	require.Equal(t, &ca.ServingFiles{Cert: mountedTLSCert, Key: mountedTLSKey, Roots: mountedCA},
		s.servingFiles(mounted(mountedTLSCert, mountedTLSKey, mountedCA, mountedCAToo)))
	require.Equal(t, &ca.ServingFiles{Cert: mountedTLSCert, Key: mountedTLSKey, Roots: mountedCAToo},
		s.servingFiles(mounted(mountedTLSCert, mountedTLSKey, mountedCAToo)))
	require.NoError(t, fs.Parse([]string{"--caCertFile=a", "--tlsCertFile=b", "--tlsKeyFile=c"}))
	require.NoError(t, s.validate())
	require.Equal(t, &ca.ServingFiles{Cert: "b", Key: "c", Roots: "a"}, s.servingFiles(mounted(mountedTLSCert, mountedTLSKey, mountedCA)))

	for value, want := range map[string]bool{"true": true, "1": true, "false": false, "": false, "yes please": false} {
		s := securityDefaults(func(k string) string { return map[string]string{"USE_CACERTS_FOR_SELF_SIGNED_CA": value}[k] })
		require.Equal(t, want, s.UseCACerts, value)
	}
}

// Without Kubernetes the CA is in memory, and ADS over TLS asks for a
// certificate of it.
func TestFilesServeTLS(t *testing.T) {
	c := filesControl(t)
	require.NoError(t, c.Listen())
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	defer func() {
		stop()
		require.NoError(t, <-done)
	}()
	select {
	case <-c.ready:
	case <-time.After(time.Minute):
		t.Fatal("not ready: ", c.NotReady())
	}
	require.Empty(t, c.NotReady())
	require.NotEmpty(t, c.RootsPEM())
	require.True(t, c.trust.serving.Load().Ready())
	w := httptest.NewRecorder()
	c.trust.ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, "/debug/ca", nil))
	require.Contains(t, w.Body.String(), "self-signed CA in memory")
}

// With flags that name a certificate of another issuer, that is what proxies see
// on the secure port, and what they are told to trust verifies it.
func TestServeWithAnothersCertificate(t *testing.T) {
	outside := newOutsideRoot(t, "outside")
	key, err := x509.MarshalECPrivateKey(outside.key)
	require.NoError(t, err)
	dir := t.TempDir()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(3), DNSNames: []string{"istiod.istio-system.svc"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, outside.cert, outside.key.Public(), outside.key)
	require.NoError(t, err)
	for name, text := range map[string][]byte{"tls.crt": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		"tls.key": pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: key}), "ca.crt": outside.pem()} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), text, 0o600))
	}
	r := runWith(t, func(s *Settings) {
		s.Security.TLSCertFile, s.Security.TLSKeyFile, s.Security.CACertFile = dir+"/tls.crt", dir+"/tls.key", dir+"/ca.crt"
	})
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(r.control.RootsPEM()))
	conn, err := tls.Dial("tcp", r.control.SecureGRPCAddr(), &tls.Config{RootCAs: roots, ServerName: "istiod.istio-system.svc", NextProtos: []string{"h2"}})
	require.NoError(t, err)
	require.Equal(t, "outside", conn.ConnectionState().PeerCertificates[0].Issuer.CommonName)
	require.NoError(t, conn.Close())
	require.Equal(t, 2, strings.Count(string(r.control.RootsPEM()), "BEGIN CERTIFICATE"), "and ours")
}
