package mtls

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/isthmus-mesh/isthmus/ca"
	"github.com/isthmus-mesh/isthmus/xds"
)

const floodMethod = "/isthmus.test.Flood/Hold"

// port is a server on TLS with the transport options of ADS. Calls of
// floodMethod are held until they are let go; whether their caller is still
// there they do not ask, as a call that is busy.
type port struct {
	addr  string
	roots *x509.CertPool
	letGo chan struct{}

	handled, running, most atomic.Int64
}

func newPort(t *testing.T) *port {
	t.Helper()
	tr := newTrust(t)
	serving, err := ca.NewServing(ca.ServingConfig{Authority: tr.authority, DNSNames: ca.ServingNames("istio-system", "")})
	require.NoError(t, err)
	run(t, serving.Run)
	require.Eventually(t, serving.Ready, patience, time.Millisecond)
	p := &port{roots: tr.authority.Roots(), letGo: make(chan struct{})}
	srv := grpc.NewServer(append(xds.ServerOptions(xds.Transport{}),
		grpc.Creds(credentials.NewTLS(serving.TLSConfig())), grpc.UnknownServiceHandler(p.hold))...)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p.addr = l.Addr().String()
	serve(t, srv, l)
	return p
}

func (p *port) hold(_ any, s grpc.ServerStream) error {
	if called, _ := grpc.MethodFromServerStream(s); called != floodMethod {
		return nil
	}
	now := p.running.Add(1)
	for most := p.most.Load(); now > most && !p.most.CompareAndSwap(most, now); most = p.most.Load() {
	}
	<-p.letGo
	p.running.Add(-1)
	p.handled.Add(1)
	return nil
}

// connect opens a connection on which a test writes frames itself.
func (p *port) connect(t *testing.T) (net.Conn, *http2.Framer) {
	t.Helper()
	d := tls.Dialer{Config: &tls.Config{RootCAs: p.roots, ServerName: "istiod.istio-system.svc", NextProtos: []string{"h2"}}}
	conn, err := d.DialContext(within(t), "tcp", p.addr)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	_, err = conn.Write([]byte(http2.ClientPreface))
	require.NoError(t, err)
	f := http2.NewFramer(conn, conn)
	require.NoError(t, f.WriteSettings())
	return conn, f
}

// Row 39: who pings without end is told to calm down and is cut off.
func TestRow39PingFlood(t *testing.T) {
	p := newPort(t)
	conn, f := p.connect(t)
	require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
	for i := range 20 {
		if f.WritePing(false, [8]byte{byte(i)}) != nil {
			break // cut off already
		}
	}
	var why *http2.GoAwayFrame
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			require.NotErrorIs(t, err, os.ErrDeadlineExceeded, "the connection is still open")
			break
		}
		if g, ok := frame.(*http2.GoAwayFrame); ok && why == nil {
			require.Equal(t, http2.ErrCodeEnhanceYourCalm, g.ErrCode)
			why = g
		}
	}
	require.NotNil(t, why, "cut off without a word")
}

// Row 39: who opens streams and resets them at once makes the server run no
// more calls than one connection may have, and delays nobody else.
func TestRow39RapidReset(t *testing.T) {
	const floods, bound = 1000, 100
	p := newPort(t)
	letGo := sync.OnceFunc(func() { close(p.letGo) })
	t.Cleanup(letGo) // before the server stops, which waits for its calls
	conn, f := p.connect(t)
	var reading sync.WaitGroup
	reading.Go(func() {
		for {
			if _, err := f.ReadFrame(); err != nil {
				return
			}
		}
	})
	var head bytes.Buffer
	enc := hpack.NewEncoder(&head)
	for i := range uint32(floods) {
		head.Reset()
		for _, h := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":path", floodMethod}, {":authority", "istiod"},
			{"content-type", "application/grpc"}, {"te", "trailers"}} {
			require.NoError(t, enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}))
		}
		require.NoError(t, f.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: head.Bytes(), EndHeaders: true}))
		require.NoError(t, f.WriteRSTStream(2*i+1, http2.ErrCodeCancel))
	}
	require.Eventually(t, func() bool { return p.running.Load() == bound }, patience, time.Millisecond)

	other, err := grpc.NewClient(p.addr, grpc.WithTransportCredentials(credentials.NewClientTLSFromCert(p.roots, "istiod.istio-system.svc")))
	require.NoError(t, err)
	defer func() { require.NoError(t, other.Close()) }()
	s, err := other.NewStream(context.WithoutCancel(within(t)), &grpc.StreamDesc{ServerStreams: true}, "/isthmus.test.Flood/Other")
	require.NoError(t, err)
	require.ErrorIs(t, s.RecvMsg(nil), io.EOF, "the call of another connection ends well")

	letGo()
	require.Eventually(t, func() bool { return p.handled.Load() == floods }, patience, time.Millisecond)
	require.EqualValues(t, bound, p.most.Load())
	require.NoError(t, conn.Close())
	reading.Wait()
}
