package multicluster

import (
	"context"
	"encoding/pem"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

func TestCheckAddr(t *testing.T) {
	for addr, want := range map[string]struct{ plain, withLoopback, withLinkLocal bool }{
		"10.0.0.1":                 {true, true, true},
		"203.0.113.9":              {true, true, true},
		"fd00::1":                  {true, true, true},
		"127.0.0.1":                {false, true, false},
		"127.8.8.8":                {false, true, false},
		"::1":                      {false, true, false},
		"0.0.0.0":                  {false, true, false},
		"::":                       {false, true, false},
		"::ffff:127.0.0.1":         {false, true, false},
		"169.254.169.254":          {false, false, true},
		"::ffff:169.254.169.254":   {false, false, true},
		"64:ff9b::169.254.169.254": {false, false, true},
		"64:ff9b::10.0.0.1":        {true, true, true},
		"fe80::1":                  {false, false, true},
		"fe80::1%eth0":             {false, false, true},
		"fd00:ec2::254":            {false, false, true},
		"fd20:ce::254":             {false, false, true},
		"100.100.100.200":          {false, false, true},
		"168.63.129.16":            {false, false, true},
		"224.0.0.1":                {false, false, false},
		"ff02::1":                  {false, false, false},
	} {
		a := netip.MustParseAddr(addr)
		require.Equal(t, want.plain, checkAddr(a, false, false) == nil, addr)
		require.Equal(t, want.withLoopback, checkAddr(a, true, false) == nil, addr+" with loopback")
		require.Equal(t, want.withLinkLocal, checkAddr(a, false, true) == nil, addr+" with link-local")
	}
}

func TestDialRefuses(t *testing.T) { // row 5
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = listener.Close() }()
	_, port, err := net.SplitHostPort(listener.Addr().String())
	require.NoError(t, err)

	// As if api.example.com resolved to these: the check sees what was resolved.
	dial := newDialer(Options{}, "api.example.com")
	for _, to := range []string{"127.0.0.1:" + port, "localhost:" + port} {
		_, err = dial(t.Context(), "tcp", to)
		require.ErrorContains(t, err, "loopback", to)
	}
	for _, to := range []string{"169.254.169.254:80", "[fe80::1%1]:80"} {
		_, err = dial(t.Context(), "tcp", to)
		require.ErrorContains(t, err, "refused to connect to link-local", to)
	}
	for _, dial := range []dialFunc{
		newDialer(Options{}, "127.0.0.1"), newDialer(Options{}, "LocalHost."), newDialer(Options{}, "::1"), newDialer(Options{}, "0.0.0.0"),
		newDialer(Options{Loopback: true}, "api.example.com"),
	} {
		conn, err := dial(t.Context(), "tcp", "127.0.0.1:"+port)
		require.NoError(t, err)
		require.NoError(t, conn.Close())
	}
}

// TestClientOfSanitizedConfig uses a kubeconfig against a real TLS server.
func TestClientOfSanitizedConfig(t *testing.T) {
	var seen []string
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = append(seen, r.URL.Path+" "+r.Header.Get("Authorization"))
		if strings.Contains(r.URL.Path, "moved") {
			http.Redirect(w, r, "http://169.254.169.254/latest", http.StatusFound)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"kind":"Namespace","apiVersion":"v1","metadata":{"name":"a","uid":"u"}}`))
	}))
	defer server.Close()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	cfg, err := Sanitize([]byte(withCluster(`{server: "`+server.URL+`", certificate-authority-data: `+b64(string(ca))+`}`)), Options{})
	require.NoError(t, err)
	conns := newConnections(cfg.Dial)
	defer conns.close()
	cfg.Dial = conns.dialContext
	client, err := kubernetes.NewForConfig(cfg)
	require.NoError(t, err)
	ns, err := client.CoreV1().Namespaces().Get(t.Context(), "a", metav1.GetOptions{})
	require.NoError(t, err)
	require.EqualValues(t, "u", ns.UID)
	_, err = client.CoreV1().Namespaces().Get(t.Context(), "moved", metav1.GetOptions{})
	require.ErrorContains(t, err, "refused to follow a redirect")
	require.Equal(t, []string{"/api/v1/namespaces/a Bearer " + secretToken, "/api/v1/namespaces/moved Bearer " + secretToken}, seen)
}

// TestClosedConnectionsWaitForNobody: what still uses the client of an instance
// that was superseded fails at once, also where the server does not answer; so
// does what is being dialled.
func TestClosedConnectionsWaitForNobody(t *testing.T) {
	dials, begun := 0, make(chan struct{})
	c := newConnections(func(ctx context.Context, _, _ string) (net.Conn, error) {
		dials++
		close(begun)
		<-ctx.Done() // a server that does not answer
		return nil, ctx.Err()
	})
	failed := make(chan error)
	go func() {
		_, err := c.dialContext(t.Context(), "tcp", "192.0.2.1:443")
		failed <- err
	}()
	<-begun
	c.close()
	require.ErrorIs(t, <-failed, context.Canceled)
	_, err := c.dialContext(t.Context(), "tcp", "192.0.2.1:443")
	require.ErrorIs(t, err, errRetired)
	require.Equal(t, 1, dials)
}
