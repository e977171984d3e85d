package mtls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/isthmus-mesh/isthmus/ca"
)

// BenchmarkMTLSHandshake: full mTLS connections per second, both ends in this
// process, nothing resumed: TCP, handshake with both certificates verified, one
// octet each way, end.
//
//	workloads      pod to pod
//	gateway        the same through HAProxy
//	control-plane  a proxy with a client certificate to the port of ADS and CA
func BenchmarkMTLSHandshake(b *testing.B) {
	tr := newTrust(b)
	client, echo := tr.issue("east", "client"), tr.issue("west", "echo")
	server := mutual(b, echo)
	pair, err := server.GetClientCertificate(nil)
	require.NoError(b, err)
	roots := x509.NewCertPool()
	require.True(b, roots.AppendCertsFromPEM(echo.roots))
	podTLS := &tls.Config{Certificates: []tls.Certificate{*pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots, NextProtos: []string{"h2"}}
	b.Run("workloads", func(b *testing.B) {
		handshakesPerSecond(b, answerOctets(b, "127.0.0.1:0", podTLS), mutual(b, client))
	})
	b.Run("gateway", func(b *testing.B) {
		w := newWorld(b)
		answerOctets(b, w.echo.String(), podTLS)
		handshakesPerSecond(b, w.gateway.String(), mutual(b, client))
	})
	b.Run("control-plane", func(b *testing.B) {
		serving, err := ca.NewServing(ca.ServingConfig{Authority: tr.authority, DNSNames: ca.ServingNames("istio-system", "")})
		require.NoError(b, err)
		run(b, serving.Run)
		require.Eventually(b, serving.Ready, patience, time.Millisecond)
		hello := mutual(b, client)
		hello.InsecureSkipVerify, hello.VerifyConnection = false, nil
		hello.RootCAs, hello.ServerName = roots, "istiod.istio-system.svc"
		handshakesPerSecond(b, answerOctets(b, "127.0.0.1:0", serving.TLSConfig()), hello)
	})
}

// handshakesPerSecond connects from all processors at once.
func handshakesPerSecond(b *testing.B, addr string, hello *tls.Config) {
	b.Helper()
	dialer := tls.Dialer{Config: hello}
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := connect(b.Context(), &dialer, addr); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "connections/s")
}

// connect waits for an answer: only then has the server verified the client.
func connect(ctx context.Context, d *tls.Dialer, addr string) error {
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	var octet [1]byte
	if _, err = conn.Write(octet[:]); err == nil {
		_, err = conn.Read(octet[:])
	}
	_ = conn.Close()
	return err
}

// answerOctets answers every octet with itself until the benchmark ends.
func answerOctets(b *testing.B, addr string, config *tls.Config) string {
	b.Helper()
	l, err := tls.Listen("tcp", addr, config)
	require.NoError(b, err)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { answerOctet(conn) })
		}
	})
	b.Cleanup(func() { _ = l.Close(); all.Wait() })
	return l.Addr().String()
}

func answerOctet(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	var octet [1]byte
	for {
		if _, err := conn.Read(octet[:]); err != nil {
			return
		}
		if _, err := conn.Write(octet[:]); err != nil {
			return
		}
	}
}
