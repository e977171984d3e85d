package resolve

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// System returns a lookup that asks as every Go program does: /etc/hosts, then
// the servers of /etc/resolv.conf with its search domains and options, over UDP
// and TCP. The standard resolver keeps the time to live of an answer to itself,
// so it is read off the messages as they pass through its connections; all else
// is left to the code that is best tested. A name from /etc/hosts has none.
//
// A question is answered as a whole (both families, or an error): a server that
// fails for AAAA once must not take the IPv6 addresses away. If it always fails,
// the other family comes as a partial answer.
func System() Lookup { return system{dial: (&net.Dialer{}).DialContext}.lookup }

type system struct {
	dial func(ctx context.Context, network, address string) (net.Conn, error)
}

func (s system) lookup(ctx context.Context, host string) ([]netip.Addr, time.Duration, error) {
	addrs, ttl, err := s.ask(ctx, host, true)
	if dns := (*net.DNSError)(nil); err == nil || errors.As(err, &dns) && dns.IsNotFound || ctx.Err() != nil {
		return addrs, ttl, err
	}
	partial, ttl, _ := s.ask(ctx, host, false)
	return partial, ttl, err
}

func (s system) ask(ctx context.Context, host string, strict bool) ([]netip.Addr, time.Duration, error) {
	seen := &observer{}
	r := &net.Resolver{PreferGo: true, StrictErrors: strict, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := s.dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		if u, ok := c.(*net.UDPConn); ok {
			return &observedPackets{u, seen}, nil
		}
		return &observedStream{Conn: c, seen: seen}, nil
	}}
	addrs, err := r.LookupNetIP(ctx, "ip", host)
	return addrs, seen.ttl(), err
}

// observer remembers the shortest time to live of the answers that pass by.
type observer struct {
	mu   sync.Mutex
	any  bool
	secs uint32
}

func (o *observer) ttl() time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	return time.Duration(o.secs) * time.Second
}

// message looks at one DNS message. What it cannot read the resolver cannot
// either, and says so.
func (o *observer) message(b []byte) {
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil || !h.Response || h.Truncated || h.RCode != dnsmessage.RCodeSuccess || p.SkipAllQuestions() != nil {
		return
	}
	for {
		rr, err := p.AnswerHeader()
		if err != nil {
			return
		}
		switch rr.Type {
		case dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypeCNAME:
			o.mu.Lock()
			if !o.any || rr.TTL < o.secs {
				o.any, o.secs = true, rr.TTL
			}
			o.mu.Unlock()
		}
		if p.SkipAnswer() != nil {
			return
		}
	}
}

// observedPackets is a UDP connection: every read is one message. The resolver
// tells it from a stream by its being a net.PacketConn.
type observedPackets struct {
	*net.UDPConn
	seen *observer
}

// Read reads one message.
func (c *observedPackets) Read(b []byte) (int, error) {
	n, err := c.UDPConn.Read(b)
	if err == nil {
		c.seen.message(b[:n])
	}
	return n, err
}

// observedStream is a TCP connection: messages have a length of two bytes before them.
type observedStream struct {
	net.Conn
	seen *observer
	buf  []byte
}

// Read reads a part of the stream.
func (c *observedStream) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.buf = append(c.buf, b[:n]...)
	for len(c.buf) >= 2 {
		end := 2 + int(binary.BigEndian.Uint16(c.buf))
		if len(c.buf) < end {
			break
		}
		c.seen.message(c.buf[2:end])
		c.buf = c.buf[end:]
	}
	return n, err
}
