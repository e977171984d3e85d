package resolve

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/dns/dnsmessage"
)

// nameserver answers over UDP and TCP on a port of its own.
type nameserver struct {
	udp net.PacketConn
	tcp net.Listener
	// answer fills in a response; truncate makes UDP answers say so.
	answer   func(q dnsmessage.Question, b *dnsmessage.Builder) dnsmessage.RCode
	truncate bool
}

func serve(t *testing.T, n *nameserver) system {
	var err error
	n.udp, err = net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	n.tcp, err = net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{}, 2)
	go func() { n.packets(); done <- struct{}{} }()
	go func() { n.streams(); done <- struct{}{} }()
	t.Cleanup(func() {
		_, _ = n.udp.Close(), n.tcp.Close()
		<-done
		<-done
	})
	return system{dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		to := n.udp.LocalAddr().String()
		if network[:3] == "tcp" {
			to = n.tcp.Addr().String()
		}
		return (&net.Dialer{}).DialContext(ctx, network, to)
	}}
}

func (n *nameserver) packets() {
	buf := make([]byte, 4096)
	for {
		size, from, err := n.udp.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = n.udp.WriteTo(n.respond(buf[:size], n.truncate), from)
	}
}

func (n *nameserver) streams() {
	for {
		c, err := n.tcp.Accept()
		if err != nil {
			return
		}
		var size [2]byte
		if _, err := io.ReadFull(c, size[:]); err == nil {
			q := make([]byte, binary.BigEndian.Uint16(size[:]))
			if _, err := io.ReadFull(c, q); err == nil {
				a := n.respond(q, false)
				_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(a))), a...))
			}
		}
		_ = c.Close()
	}
}

func (n *nameserver) respond(msg []byte, truncate bool) []byte {
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	if err != nil {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return nil
	}
	build := func(rcode dnsmessage.RCode) (*dnsmessage.Builder, dnsmessage.RCode) {
		b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: h.ID, Response: true, RecursionAvailable: true, Truncated: truncate, RCode: rcode})
		_ = b.StartQuestions()
		_ = b.Question(q)
		_ = b.StartAnswers()
		if truncate {
			return &b, rcode
		}
		return &b, n.answer(q, &b)
	}
	b, rcode := build(dnsmessage.RCodeSuccess)
	if rcode != dnsmessage.RCodeSuccess {
		b, _ = build(rcode)
	}
	out, err := b.Finish()
	if err != nil {
		return nil
	}
	return out
}

func record(q dnsmessage.Question, ttl uint32) dnsmessage.ResourceHeader {
	return dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: ttl}
}

// both answers with one address of each family and a CNAME that lives shorter.
func both(q dnsmessage.Question, b *dnsmessage.Builder) dnsmessage.RCode {
	target := dnsmessage.MustNewName("real.example.")
	_ = b.CNAMEResource(record(q, 40), dnsmessage.CNAMEResource{CNAME: target})
	h := record(q, 60)
	h.Name = target
	switch q.Type {
	case dnsmessage.TypeA:
		_ = b.AResource(h, dnsmessage.AResource{A: [4]byte{203, 0, 113, 1}})
	case dnsmessage.TypeAAAA:
		_ = b.AAAAResource(h, dnsmessage.AAAAResource{AAAA: netip.MustParseAddr("2001:db8::1").As16()})
	}
	return dnsmessage.RCodeSuccess
}

func TestSystemReadsAddressesAndTTL(t *testing.T) {
	for name, truncate := range map[string]bool{"over UDP": false, "over TCP": true} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, &nameserver{answer: both, truncate: truncate})
			addrs, ttl, err := s.lookup(t.Context(), "lb.example.")
			require.NoError(t, err)
			require.ElementsMatch(t, []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::1")}, clean(addrs))
			require.Equal(t, 40*time.Second, ttl, "the shortest of the chain")
		})
	}
}

func TestSystemTellsAPartialAnswer(t *testing.T) {
	s := serve(t, &nameserver{answer: func(q dnsmessage.Question, b *dnsmessage.Builder) dnsmessage.RCode {
		if q.Type == dnsmessage.TypeAAAA {
			return dnsmessage.RCodeServerFailure
		}
		return both(q, b)
	}})
	addrs, _, err := s.lookup(t.Context(), "lb.example.")
	require.Error(t, err)
	require.Equal(t, []netip.Addr{netip.MustParseAddr("203.0.113.1")}, clean(addrs))
}

func TestSystemTellsThatThereIsNoSuchName(t *testing.T) {
	s := serve(t, &nameserver{answer: func(dnsmessage.Question, *dnsmessage.Builder) dnsmessage.RCode { return dnsmessage.RCodeNameError }})
	addrs, _, err := s.lookup(t.Context(), "lb.example.")
	require.ErrorContains(t, err, "no such host")
	require.Empty(t, addrs)
}

func FuzzObserver(f *testing.F) {
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{Response: true})
	q := dnsmessage.Question{Name: dnsmessage.MustNewName("lb.example."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}
	_ = b.StartQuestions()
	_ = b.Question(q)
	_ = b.StartAnswers()
	both(q, &b)
	good, err := b.Finish()
	require.NoError(f, err)
	f.Add(good)
	f.Add(good[:20])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, msg []byte) {
		o := &observer{}
		o.message(msg) // never panics
		if ttl := o.ttl(); ttl != 0 && !o.any {
			t.Fatalf("ttl %s out of nothing", ttl)
		}
	})
}
