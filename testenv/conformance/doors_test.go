package conformance

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"sigs.k8s.io/gateway-api/conformance/echo-basic/tcpserver"

	"github.com/isthmus-mesh/isthmus/testenv/simulate"
)

// doorTimeout bounds a connection.
const doorTimeout = time.Minute

// errLooked ends a handshake when the client's first words are known.
var errLooked = errors.New("looked")

// doors are the sockets of Gateways. The suite's tests of connections dial by
// themselves: what the simulator says becomes of a connection is acted out, with
// an echo server behind it.
type doors struct {
	w *world
	// shut says why none can be opened: see [mayOpen]. nil if they can.
	shut error

	mu   sync.Mutex
	open map[string]net.Listener // by ADDRESS:PORT
	all  sync.WaitGroup
}

// mayOpen tries whether this user may open doors: the suite dials port 80, which
// is for root alone on machines that net.ipv4.ip_unprivileged_port_start does not
// say otherwise of, and the addresses are those that Linux has by itself.
func mayOpen(ctx context.Context) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(gatewayAddress(0), "80"))
	if err != nil {
		return err
	}
	return l.Close()
}

// add opens a door to a Gateway.
func (d *doors) add(ctx context.Context, address string, port int32, gateway string) error {
	if d.shut != nil {
		return nil
	}
	at := net.JoinHostPort(address, strconv.Itoa(int(port)))
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open[at] != nil {
		return nil
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", at)
	if err != nil {
		return fmt.Errorf("open a door for Gateway %s: %w", gateway, err)
	}
	d.open[at] = l
	d.all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			d.all.Go(func() {
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(doorTimeout))
				stop := context.AfterFunc(ctx, func() { conn.Close() })
				defer stop()
				if err := d.through(ctx, conn, netip.MustParseAddrPort(at), gateway); err != nil {
					d.w.log(fmt.Sprintf("connection to %s of Gateway %s: %v", at, gateway, err))
				}
			})
		}
	})
	return nil
}

// close closes all doors; connections end with the world's context.
func (d *doors) close() {
	d.mu.Lock()
	for _, l := range d.open {
		l.Close()
	}
	d.mu.Unlock()
	d.all.Wait()
}

// through acts out what becomes of a connection.
func (d *doors) through(ctx context.Context, conn net.Conn, to netip.AddrPort, gateway string) error {
	p, err := d.w.routers.of(gateway)
	if err != nil {
		return err
	}
	c := simulate.Connection{To: to, Direct: true}
	if p.Inspects(c) {
		if conn, err = look(ctx, conn, &c); err != nil {
			return err
		}
	}
	a, err := p.Ask(c)
	if err != nil {
		return err
	}
	if a.Listener == "" {
		_, err := io.Copy(io.Discard, conn) // nobody listens: that is not the same as being turned away
		return err
	}
	endpoints, err := d.endpoints(p, a)
	if err != nil || len(endpoints) == 0 {
		return err
	}
	b, err := d.w.backendAt(ctx, pick(endpoints))
	if err != nil {
		return err
	}
	if a.TLS != nil {
		config, err := d.w.server(ctx, a.TLS)
		if err != nil {
			return err
		}
		conn = tls.Server(conn, config)
		if b.tls != nil {
			return fmt.Errorf("backend %s wants TLS", b.pod.Name)
		}
	} else if b.tls != nil {
		conn = tls.Server(conn, b.tls)
	}
	return echo(ctx, conn, b)
}

// endpoints are those that may get a connection; none if it is turned away.
func (d *doors) endpoints(p *simulate.Proxy, a *simulate.Answer) ([]simulate.Share, error) {
	upstream := pick(a.Upstreams)
	if upstream == "" || p.Upstreams[upstream] == nil {
		return nil, nil
	}
	return p.Endpoints(upstream)
}

// look reads what a TLS client says first; the connection that it returns says it
// again.
func look(ctx context.Context, conn net.Conn, c *simulate.Connection) (net.Conn, error) {
	heard := &listening{Conn: conn}
	err := tls.Server(heard, &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		c.TLS, c.SNI, c.ALPN = true, hello.ServerName, hello.SupportedProtos
		return nil, errLooked
	}}).HandshakeContext(ctx)
	heard.done = true
	if !errors.Is(err, errLooked) && heard.said.Len() == 0 {
		return nil, err
	}
	return heard, nil
}

// listening is a connection from which something was read that is to be read
// again, and to which nothing was written meanwhile.
type listening struct {
	net.Conn
	said bytes.Buffer
	done bool
}

func (l *listening) Read(b []byte) (int, error) {
	if l.done {
		if l.said.Len() > 0 {
			return l.said.Read(b)
		}
		return l.Conn.Read(b)
	}
	n, err := l.Conn.Read(b)
	l.said.Write(b[:n])
	return n, err
}

func (l *listening) Write(b []byte) (int, error) {
	if !l.done {
		return len(b), nil
	}
	return l.Conn.Write(b)
}

// Close does nothing while somebody only looks.
func (l *listening) Close() error {
	if !l.done {
		return nil
	}
	return l.Conn.Close()
}

// echo is the suite's echo server of connections, as one pod.
func echo(ctx context.Context, conn net.Conn, b *backend) error {
	defer conn.Close()
	said := &tcpserver.TCPAssertions{Context: tcpserver.Context{Namespace: b.pod.Namespace, Pod: b.pod.Name}}
	if t, ok := conn.(*tls.Conn); ok {
		if err := t.HandshakeContext(ctx); err != nil {
			return err
		}
		if said.IsTLS = b.tls != nil; said.IsTLS {
			s := t.ConnectionState()
			said.TLSAssertion = &tcpserver.TLSAssertions{ServerName: s.ServerName, Version: tls.VersionName(s.Version), NegotiatedProtocol: s.NegotiatedProtocol}
		}
	}
	if _, err := io.WriteString(conn, tcpserver.WelcomeMessage); err != nil {
		return err
	}
	text, err := json.Marshal(said)
	if err != nil {
		return err
	}
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		switch strings.TrimSpace(lines.Text()) {
		case "TEST":
			_, err = fmt.Fprintf(conn, "%s\n", text)
		case "IS_TLS":
			_, err = fmt.Fprintf(conn, "%t\n", said.IsTLS)
		case "PING":
			_, err = io.WriteString(conn, "PONG\n")
		}
		if err != nil {
			return err
		}
	}
	return nil
}
