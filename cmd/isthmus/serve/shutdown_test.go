package serve

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	admissionv1 "k8s.io/api/admission/v1"

	"github.com/isthmus-mesh/isthmus/xds/build"
)

// leaving is a control plane that can be told to end, and whose time to drain
// ends when the test says so.
type leaving struct {
	*testing.T
	control *Control
	tell    func()             // to end, as a signal does
	asked   chan time.Duration // the time that it wants to drain
	over    chan time.Time
	done    chan error
	reviews http.Client
}

func startLeaving(t *testing.T) *leaving {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "east"), 0o750))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "east", "all.yaml"), []byte(twoServices+"\n---\n"+injectorConfigMap(t, "metadata: {annotations: {from: us}}")), 0o600))
	s := Defaults(func(name string) string { return map[string]string{"KUBERNETES_SERVICE_HOST": "10.96.0.1"}[name] })
	s.Files, s.Primary = dir, "east"
	s.GRPCAddr, s.SecureGRPCAddr, s.HTTPAddr, s.MonitoringAddr, s.HTTPSAddr = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	s.Security.CADir = filepath.Join(dir, "no-ca")
	c, err := New(s, Build{Version: "test"}, zap.NewNop())
	require.NoError(t, err)
	l := &leaving{T: t, control: c, asked: make(chan time.Duration, 1), over: make(chan time.Time), done: make(chan error, 1)}
	c.after = func(d time.Duration) <-chan time.Time { l.asked <- d; return l.over }
	require.NoError(t, c.Listen())
	var ctx context.Context
	ctx, l.tell = context.WithCancel(context.Background())
	go func() { l.done <- c.Run(ctx) }()
	require.Eventually(t, func() bool { return c.NotReady() == "" }, time.Minute, 10*time.Millisecond)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(c.RootsPEM()))
	// API servers speak HTTP/1.1 to webhooks and keep their connections.
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "istiod.istio-system.svc", MinVersion: tls.VersionTLS12}, ExpectContinueTimeout: time.Hour}
	l.reviews.Transport = transport
	t.Cleanup(transport.CloseIdleConnections)
	return l
}

func (l *leaving) ready() int {
	l.Helper()
	resp, err := http.Get("http://" + l.control.HTTPAddr() + "/ready")
	require.NoError(l, err)
	require.NoError(l, resp.Body.Close())
	return resp.StatusCode
}

// review asks for injection; keep says whether the server keeps the connection.
func (l *leaving) review(ctx context.Context, body io.Reader, header http.Header) (keep bool) {
	l.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+l.control.WebhookAddr()+"/inject", body)
	require.NoError(l, err)
	req.Header = header
	req.Header.Set("Content-Type", "application/json")
	resp, err := l.reviews.Do(req)
	require.NoError(l, err)
	text, err := io.ReadAll(resp.Body)
	require.NoError(l, err)
	require.NoError(l, resp.Body.Close())
	require.Equal(l, http.StatusOK, resp.StatusCode, string(text))
	var review admissionv1.AdmissionReview
	require.NoError(l, json.Unmarshal(text, &review))
	require.True(l, review.Response.Allowed)
	require.NotEmpty(l, review.Response.Patch)
	return !resp.Close
}

// proxy opens a stream of its own and hears of the mesh's upstreams.
func (l *leaving) proxy() (grpc.BidiStreamingClient[discoveryv3.DiscoveryRequest, discoveryv3.DiscoveryResponse], func()) {
	l.Helper()
	conn, err := grpc.NewClient(l.control.GRPCAddr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(l, err)
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(l.Context())
	require.NoError(l, err)
	require.NoError(l, stream.Send(&discoveryv3.DiscoveryRequest{TypeUrl: build.TypeUpstream, Node: &corev3.Node{Id: "sidecar~192.0.2.2~web-1.shop~shop.svc.cluster.local"}}))
	resp, err := stream.Recv()
	require.NoError(l, err)
	require.NotEmpty(l, resp.GetResources())
	return stream, func() { require.NoError(l, conn.Close()) }
}

// TestLeavingServesUntilNobodyComes: told to end, a replica is not ready any more
// and yet answers whoever comes, old connections and new ones, until its time to
// drain is over. What is under way then is answered, and streams end as
// unavailable, for which proxies connect anew.
func TestLeavingServesUntilNobodyComes(t *testing.T) {
	l := startLeaving(t)
	require.Equal(t, http.StatusOK, l.ready())
	require.True(t, l.review(t.Context(), strings.NewReader(reviewOfWeb), http.Header{}), "connections are kept")
	old, closeOld := l.proxy()
	defer closeOld()

	l.tell()
	select {
	case d := <-l.asked:
		require.Equal(t, defaultDrain, d)
	case err := <-l.done:
		t.Fatalf("ended at once: %v", err)
	}
	require.Equal(t, http.StatusServiceUnavailable, l.ready(), "readiness goes first")
	for range 20 {
		require.False(t, l.review(t.Context(), strings.NewReader(reviewOfWeb), http.Header{}), "the next request goes elsewhere")
		_, closed := l.proxy()
		closed()
	}
	// The old stream lives.
	require.NoError(t, old.Send(&discoveryv3.DiscoveryRequest{TypeUrl: build.TypeListener}))
	resp, err := old.Recv()
	require.NoError(t, err)
	require.Equal(t, build.TypeListener, resp.GetTypeUrl())

	// A review whose body is still being read when the time is over.
	reading, body := make(chan struct{}), make(chan io.Reader, 1)
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got100Continue: func() { close(reading) }})
		l.review(ctx, &late{from: body}, http.Header{"Expect": {"100-continue"}})
	}()
	<-reading
	close(l.over)
	require.Eventually(t, func() bool {
		conn, err := net.Dial("tcp", l.control.WebhookAddr())
		if err == nil {
			_ = conn.Close() // only whether somebody listens
		}
		return err != nil
	}, time.Minute, time.Millisecond, "the listener closes")
	body <- strings.NewReader(reviewOfWeb)
	<-answered
	_, err = old.Recv()
	require.Equal(t, codes.Unavailable, status.Code(err), "%v", err)
	require.NoError(t, <-l.done)
}

// late is a body that comes when it is there.
type late struct {
	from chan io.Reader
	r    io.Reader
}

func (b *late) Read(p []byte) (int, error) {
	if b.r == nil {
		b.r = <-b.from
	}
	return b.r.Read(p)
}

// TestLeavingAtOnce: who runs it by hand waits for nothing, and neither does a
// replica that never was ready or lost a part.
func TestLeavingAtOnce(t *testing.T) {
	require.Zero(t, Defaults(func(string) string { return "" }).DrainDuration)

	for what, change := range map[string]func(*Control){
		"no time to drain": func(c *Control) { close(c.ready) },
		"never ready":      func(c *Control) { c.settings.DrainDuration = time.Hour },
	} {
		c := filesControl(t)
		c.after = func(time.Duration) <-chan time.Time { t.Error(what + ": waits"); return nil }
		change(c)
		told, tell := context.WithCancel(t.Context())
		tell()
		require.NoError(t, c.leave(told)(t.Context()), what)
		require.Equal(t, "shutting down", c.NotReady(), what)
	}

	c := filesControl(t)
	c.settings.DrainDuration = time.Hour
	close(c.ready)
	err := runAll(t.Context(), []part{{"shutdown", c.leave(t.Context())}, {"broken", func(context.Context) error { return io.ErrUnexpectedEOF }}})
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.Equal(t, "shutting down", c.NotReady())
}
