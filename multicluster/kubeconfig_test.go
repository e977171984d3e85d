package multicluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// withUser returns a kubeconfig that is good but for the fields of its user.
func withUser(fields string) string {
	return `{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}],
 clusters: [{name: c, cluster: {server: "https://10.1.2.3:6443"}}], users: [{name: u, user: {` + fields + `}}]}`
}

// withCluster returns a kubeconfig that is good but for its cluster.
func withCluster(cluster string) string {
	return `{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}],
 clusters: [{name: c, cluster: ` + cluster + `}], users: [{name: u, user: {token: ` + secretToken + `}}]}`
}

// selfSigned returns a certificate and its key in PEM form.
func selfSigned(t testing.TB) (cert, key string) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	require.NoError(t, err)
	raw, err := x509.MarshalECPrivateKey(k)
	require.NoError(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw}))
}

func TestSanitizeKeepsWhatIsAllowed(t *testing.T) {
	cert, key := selfSigned(t)
	raw := `apiVersion: v1
kind: Config
current-context: two
preferences: {}
extensions: [{name: x, extension: {a: b}}]
contexts:
- {name: one, context: {cluster: evil, user: evil}}
- {name: two, context: {cluster: c, user: u, namespace: n}}
clusters:
- {name: evil, cluster: {server: "http://169.254.169.254"}}
- name: c
  cluster:
    server: https://api.example.com:6443/k8s/clusters/c-1
    tls-server-name: kubernetes.default
    certificate-authority-data: ` + b64(cert) + `
    disable-compression: true
users:
- {name: evil, user: {exec: {command: evil}}}
- name: u
  user:
    token: ` + secretToken + `
    client-certificate-data: ` + b64(cert) + `
    client-key-data: ` + b64(key) + `
    as: reader
    as-uid: "7"
    as-groups: [g1, g2]
    as-user-extra: {scopes: [view]}
`
	cfg, err := Sanitize([]byte(raw), Options{})
	require.NoError(t, err)
	require.NotNil(t, cfg.Dial)
	require.NotNil(t, cfg.WrapTransport)
	cfg.Dial, cfg.WrapTransport = nil, nil
	require.Equal(t, &rest.Config{
		Host: "https://api.example.com:6443/k8s/clusters/c-1", BearerToken: secretToken, DisableCompression: true,
		TLSClientConfig: rest.TLSClientConfig{ServerName: "kubernetes.default", CAData: []byte(cert), CertData: []byte(cert), KeyData: []byte(key)},
		Impersonate: rest.ImpersonationConfig{UserName: "reader", UID: "7", Groups: []string{"g1", "g2"},
			Extra: map[string][]string{"scopes": {"view"}}},
	}, cfg, "field by field, and nothing else")
}

func TestSanitizeRefuses(t *testing.T) {
	cert, key := selfSigned(t)
	otherCert, _ := selfSigned(t)
	tests := []struct{ name, raw, field, fix string }{
		{"empty", " \n", "", "it is empty"},
		{"too large", strings.Repeat("#", MaxKubeconfig+1), "", "limit"},
		{"garbage", "\x00\xff", "", "not a YAML document"},
		{"syntax", "a: b\nc: [", "", "not valid YAML at line"},
		{"a list", "[1, 2]", "", "not a YAML document"},
		{"duplicate field", "kind: Config\nkind: Config\n", "", "line 2"},
		{"wrong type", "clusters: {}", "clusters", "must be a list"},
		{"wrong type inside", "users: [{user: {token: [a]}}]", "users.user.token", "must be a string"},
		{"wrong type of user", "users: [{user: [a]}]", "users.user", "must be a mapping"},
		{"another kind", "apiVersion: v1\nkind: Secret\n", "kind", "Config"},
		{"no context", "kind: Config", "current-context", "missing"},
		{"ambiguous context", "contexts: [{name: a}, {name: b}]", "current-context", "2 contexts"},
		{"unknown context", "current-context: x", "current-context", "not in contexts"},
		{"unknown cluster", "contexts: [{name: a, context: {cluster: x}}]", "contexts[a].context.cluster", "not in clusters"},
		{"unknown user", "contexts: [{name: a, context: {cluster: x}}]\nclusters: [{name: x}]", "contexts[a].context.user", "not in users"},

		{"no server", withCluster(`{}`), "clusters[c].cluster.server", "missing"},
		{"no scheme", withCluster(`{server: "api.example.com:6443"}`), "clusters[c].cluster.server", "https://"},
		{"plain http", withCluster(`{server: "http://api.example.com"}`), "clusters[c].cluster.server", `"http"`},
		{"unix", withCluster(`{server: "unix:///run/x"}`), "clusters[c].cluster.server", "https://"},
		{"scheme unknown", withCluster(`{server: "ftp://h"}`), "clusters[c].cluster.server", "https://"},
		{"no host", withCluster(`{server: "https://:443"}`), "clusters[c].cluster.server", "https://"},
		{"user in URL", withCluster(`{server: "https://` + secretToken + `:x@h"}`), "clusters[c].cluster.server", "users[].user.token"},
		{"query", withCluster(`{server: "https://h/?a=b"}`), "clusters[c].cluster.server", "query"},
		{"metadata", withCluster(`{server: "https://169.254.169.254"}`), "clusters[c].cluster.server", "link-local"},
		{"metadata in IPv6", withCluster(`{server: "https://[::ffff:169.254.169.254]"}`), "clusters[c].cluster.server", "link-local"},
		{"insecure", withCluster(`{server: "https://h", insecure-skip-tls-verify: true}`), "clusters[c].cluster.insecure-skip-tls-verify", "certificate-authority-data"},
		{"CA path", withCluster(`{server: "https://h", certificate-authority: /etc/ca}`), "clusters[c].cluster.certificate-authority", "certificate-authority-data"},
		{"CA not base64", withCluster(`{server: "https://h", certificate-authority-data: "%%%"}`), "clusters[c].cluster.certificate-authority-data", "base64"},
		{"CA not PEM", withCluster(`{server: "https://h", certificate-authority-data: YWJj}`), "clusters[c].cluster.certificate-authority-data", "PEM"},
		{"proxy", withCluster(`{server: "https://h", proxy-url: "http://p"}`), "clusters[c].cluster.proxy-url", `"proxy-url"`},
		{"server name", withCluster(`{server: "https://h", tls-server-name: "a b"}`), "clusters[c].cluster.tls-server-name", "white space"},

		{"no credential", withUser(``), "users[u].user", "token"},
		{"exec", withUser(`token: x, exec: {command: /bin/sh}`), "users[u].user.exec", "create-remote-secret"},
		{"exec in other case", withUser(`token: x, Exec: {command: /bin/sh}`), "users[u].user.exec", "create-remote-secret"},
		{"auth-provider", withUser(`auth-provider: {name: oidc}`), "users[u].user.auth-provider", "create-remote-secret"},
		{"token file", withUser(`token: x, tokenFile: /etc/t`), "users[u].user.tokenFile", "token"},
		{"certificate path", withUser(`client-certificate: /etc/c`), "users[u].user.client-certificate", "client-certificate-data"},
		{"key path", withUser(`client-key: /etc/k`), "users[u].user.client-key", "client-key-data"},
		{"password", withUser(`username: u, password: ` + secretToken), "users[u].user.username", "token"},
		{"password only", withUser(`token: x, password: ` + secretToken), "users[u].user.username", "token"},
		{"token with line break", withUser(`token: "` + secretToken + `\n"`), "users[u].user.token", "alone"},
		{"certificate without key", withUser(`client-certificate-data: ` + b64(cert)), "users[u].user.client-key-data", "missing"},
		{"key without certificate", withUser(`token: x, client-key-data: ` + b64(key)), "users[u].user.client-certificate-data", "missing"},
		{"another's key", withUser(`client-certificate-data: ` + b64(otherCert) + `, client-key-data: ` + b64(key)), "users[u].user.client-certificate-data", "does not belong"},
		{"groups without user", withUser(`token: x, as-groups: [system:masters]`), "users[u].user.as", "missing"},
		{"header injection", withUser(`token: x, as: "a\r\nX: y"`), "users[u].user.as", "control"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg, err := Sanitize([]byte(tt.raw), Options{})
			require.Error(t, err)
			require.Nil(t, cfg)
			prefix := "read kubeconfig: "
			if tt.field != "" {
				prefix += tt.field + ": "
			}
			require.True(t, strings.HasPrefix(err.Error(), prefix), err.Error())
			require.Contains(t, err.Error(), tt.fix)
			require.NotContains(t, err.Error(), secretToken)
			require.Less(t, len(err.Error()), 600)
		})
	}
}

func TestErrorsNeverShowTheDocument(t *testing.T) {
	for _, raw := range []string{
		"token: *" + secretToken,
		"users: [{user: {token: {" + secretToken + ": x}}}]",
		"users: [{user: " + secretToken + "}]",
		secretToken,
		"!!" + secretToken + " x",
		"clusters:\n- " + secretToken + "\n  x: {",
	} {
		_, err := Sanitize([]byte(raw), Options{})
		require.Error(t, err)
		require.NotContains(t, err.Error(), secretToken)
	}
}

func TestSanitizeWithOptions(t *testing.T) {
	sanitize := func(words, raw string) (*rest.Config, error) {
		o, err := ParseOptions(words)
		require.NoError(t, err)
		return Sanitize([]byte(raw), o)
	}
	cfg, err := sanitize("exec", withUser(`exec: {apiVersion: v1, command: aws, args: [a], env: [{name: N, value: V}], interactiveMode: Always}`))
	require.NoError(t, err)
	require.Equal(t, "aws", cfg.ExecProvider.Command)
	require.EqualValues(t, "Never", cfg.ExecProvider.InteractiveMode)
	_, err = sanitize("exec,oidc", withUser(`exec: {command: a}, auth-provider: {name: oidc}`))
	require.ErrorContains(t, err, "contradicts")
	cfg, err = sanitize("auth_provider", withUser(`auth-provider: {name: oidc, config: {a: b}}`))
	require.NoError(t, err)
	require.Equal(t, map[string]string{"a": "b"}, cfg.AuthProvider.Config)
	_, err = sanitize("oidc,gcp", withUser(`auth-provider: {name: gcp}`))
	require.ErrorContains(t, err, "only oidc")
	cfg, err = sanitize("tokenFile", withUser(`tokenFile: /etc/t`))
	require.NoError(t, err)
	require.Equal(t, "/etc/t", cfg.BearerTokenFile)
	_, err = sanitize("tokenFile", withUser(`tokenFile: etc/t`))
	require.ErrorContains(t, err, "absolute")
	cfg, err = sanitize("clientCertificate, client-key", withUser(`client-certificate: /c, client-key: /k`))
	require.NoError(t, err)
	require.Equal(t, []string{"/c", "/k"}, []string{cfg.CertFile, cfg.KeyFile})
	cfg, err = sanitize("certificate-authority", withCluster(`{server: "https://h", certificate-authority: /ca}`))
	require.NoError(t, err)
	require.Equal(t, "/ca", cfg.CAFile)
	cfg, err = sanitize("insecureSkipTLSVerify", withCluster(`{server: "https://h", insecure-skip-tls-verify: true}`))
	require.NoError(t, err)
	require.True(t, cfg.Insecure)
	_, err = sanitize("insecureSkipTLSVerify,certificateAuthority", withCluster(`{server: "https://h", insecure-skip-tls-verify: true, certificate-authority: /ca}`))
	require.ErrorContains(t, err, "contradicts")
	cfg, err = sanitize("HTTP", withCluster(`{server: "http://h"}`))
	require.NoError(t, err)
	require.Equal(t, "http://h", cfg.Host)
	cfg, err = sanitize("proxy-url", withCluster(`{server: "https://h", proxy-url: "http://p:1"}`))
	require.NoError(t, err)
	u, err := cfg.Proxy(&http.Request{})
	require.NoError(t, err)
	require.Equal(t, "http://p:1", u.String())
	for _, proxy := range []string{"ftp://p", "http://169.254.169.254", "::"} {
		_, err = sanitize("proxy-url", withCluster(`{server: "https://h", proxy-url: "`+proxy+`"}`))
		require.ErrorContains(t, err, "clusters[c].cluster.proxy-url: ")
	}
	cfg, err = sanitize("basic", withUser(`username: u, password: p`))
	require.NoError(t, err)
	require.Equal(t, []string{"u", "p"}, []string{cfg.Username, cfg.Password})
	_, err = sanitize("link-local", withCluster(`{server: "https://169.254.1.1"}`))
	require.NoError(t, err)
}

func TestParseOptions(t *testing.T) {
	o, err := ParseOptions(" gcp, azure,openstack ,,")
	require.NoError(t, err)
	require.Zero(t, o, "words for plugins that are gone allow nothing")
	_, err = ParseOptions("exec,exce")
	require.ErrorContains(t, err, `unknown option "exce"`)
	require.ErrorContains(t, err, "tokenFile")
	all := ""
	for _, k := range options() {
		all += k.name + ","
	}
	o, err = ParseOptions(all)
	require.NoError(t, err)
	require.Equal(t, Options{true, true, true, true, true, true, true, true, true, true, true, true}, o, "every option has a word")
}

// TestNothingIsExecutedOrRead hands over kubeconfigs that a client built by
// clientcmd would act upon, and looks for the traces.
func TestNothingIsExecutedOrRead(t *testing.T) { // rows 2, 3
	dir := t.TempDir()
	marker := filepath.Join(dir, "executed")
	script := filepath.Join(dir, "plugin")
	require.NoError(t, os.WriteFile(script, []byte("#!/bin/sh\ntouch "+marker+"\n"), 0o700))
	_, err := Sanitize([]byte(withUser(`exec: {apiVersion: client.authentication.k8s.io/v1, command: `+script+`, interactiveMode: Never}`)), Options{})
	require.ErrorContains(t, err, "users[u].user.exec: refused")
	require.NoFileExists(t, marker)

	// Had a file been opened, the refusal would not be the same for one that is
	// not there and one that is.
	file := filepath.Join(dir, "token")
	before := func() error {
		_, err := Sanitize([]byte(withUser(`tokenFile: `+file)), Options{})
		return err
	}
	missing := before()
	require.NoError(t, os.WriteFile(file, []byte(secretToken), 0o600))
	require.Equal(t, missing, before())

	// What is built from an accepted one names no file and no program either, so
	// client-go has none to open.
	cfg, err := Sanitize([]byte(goodKubeconfig("1")), Options{})
	require.NoError(t, err)
	requireInert(t, cfg)
	_, err = kubernetes.NewForConfig(cfg)
	require.NoError(t, err)
}

func requireInert(t testing.TB, cfg *rest.Config) {
	t.Helper()
	require.Empty(t, cfg.CAFile+cfg.CertFile+cfg.KeyFile+cfg.BearerTokenFile+cfg.Username+cfg.Password)
	require.Nil(t, cfg.ExecProvider)
	require.Nil(t, cfg.AuthProvider)
	require.Nil(t, cfg.Proxy)
	require.False(t, cfg.Insecure)
	require.True(t, strings.HasPrefix(cfg.Host, "https://"), cfg.Host)
}

func FuzzKubeconfig(f *testing.F) {
	f.Add([]byte(goodKubeconfig("")))
	f.Add([]byte(withUser(`exec: {command: /bin/true}`)))
	f.Add([]byte(withUser(`client-certificate-data: YQ==, client-key-data: YQ==`)))
	f.Add([]byte(withCluster(`{server: "https://[fe80::1%25eth0]:1", insecure-skip-tls-verify: true}`)))
	f.Add([]byte("a: &a [x]\nb: [*a, *a]"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		cfg, err := Sanitize(raw, Options{})
		if err == nil {
			requireInert(t, cfg)
			_, _ = kubernetes.NewForConfig(cfg) // client-go may be pickier, but must not crash
			return
		}
		require.Nil(t, cfg)
		require.True(t, strings.HasPrefix(err.Error(), "read kubeconfig: "))
		require.LessOrEqual(t, len(err.Error()), 4096)
	})
}
