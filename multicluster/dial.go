package multicluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// dialTimeout bounds the making of one connection, resolution included.
const dialTimeout = 10 * time.Second

type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// newDialer returns a dial function that looks at every address after names
// were resolved and directly before it connects, so that neither a name that
// resolves to a forbidden address nor one that changes its mind between check
// and use gets through. hosts are those that the kubeconfig names literally.
func newDialer(o Options, hosts ...string) dialFunc {
	loopback := o.Loopback || slices.ContainsFunc(hosts, isLoopbackName)
	d := &net.Dialer{
		Timeout:   dialTimeout,
		KeepAlive: 15 * time.Second,
		ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
			to, err := netip.ParseAddrPort(address)
			if err != nil {
				return fmt.Errorf("dial %s: not an address", printable(address))
			}
			return checkAddr(to.Addr(), loopback, o.LinkLocal)
		},
	}
	return d.DialContext
}

// checkAddr refuses addresses behind which the control plane's own machine or
// its cloud provider's metadata service answers.
func checkAddr(a netip.Addr, loopback, linkLocal bool) error {
	switch to := embedded(a.WithZone("").Unmap()); {
	case (to.IsLoopback() || to.IsUnspecified()) && !loopback:
		return fmt.Errorf("refused to connect to loopback address %s: no kubeconfig may lead to the control plane itself", a)
	case to.IsMulticast():
		return fmt.Errorf("refused to connect to multicast address %s", a)
	case (to.IsLinkLocalUnicast() || slices.Contains(metadataAddrs(), to)) && !linkLocal:
		return fmt.Errorf("refused to connect to link-local or metadata address %s", a)
	}
	return nil
}

// metadataAddrs are the metadata services that are not at link-local addresses:
// AWS and Google over IPv6, Azure, Alibaba, Oracle.
func metadataAddrs() []netip.Addr {
	return []netip.Addr{
		netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x00, 2: 0x0e, 3: 0xc2, 14: 0x02, 15: 0x54}),
		netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x20, 3: 0xce, 14: 0x02, 15: 0x54}),
		netip.AddrFrom4([4]byte{168, 63, 129, 16}),
		netip.AddrFrom4([4]byte{100, 100, 100, 200}),
		netip.AddrFrom4([4]byte{192, 0, 0, 192}),
	}
}

// embedded returns the IPv4 address that a NAT64 gateway would take out of an
// address of the well-known prefix 64:ff9b::/96, else the address itself.
func embedded(a netip.Addr) netip.Addr {
	if !a.Is6() {
		return a
	}
	b := a.As16()
	if [12]byte(b[:12]) == [12]byte{0x00, 0x64, 0xff, 0x9b} {
		return netip.AddrFrom4([4]byte(b[12:]))
	}
	return a
}

// checkLiteral refuses a host that is written as a forbidden address, so that
// the mistake shows when the kubeconfig is read and not when it is used.
func checkLiteral(host string, o Options) error {
	a, err := netip.ParseAddr(host)
	if err != nil {
		return nil
	}
	return checkAddr(a, true, o.LinkLocal)
}

// isLoopbackName reports whether a host is written as this machine.
func isLoopbackName(host string) bool {
	if strings.EqualFold(strings.TrimSuffix(host, "."), "localhost") {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && (a.Unmap().IsLoopback() || a.IsUnspecified())
}

// noRedirects refuses to be sent elsewhere: an API server has no reason to, and
// the place would see the credential.
type noRedirects struct{ next http.RoundTripper }

func (n noRedirects) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := n.next.RoundTrip(r)
	if err != nil {
		return resp, err
	}
	switch resp.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
		http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		_ = resp.Body.Close() // nothing of it is read
		return nil, errors.New("refused to follow a redirect of the server: write its final address into the kubeconfig")
	}
	return resp, nil
}

// WrappedRoundTripper lets client-go find the transport below.
func (n noRedirects) WrappedRoundTripper() http.RoundTripper { return n.next }

// errRetired is no network error on purpose: clients try those again.
var errRetired = errors.New("the credentials that this client was made from are no longer used")

// connections are those of one source instance. After close none is left and
// none is made: what a superseded instance held is given back at once.
type connections struct {
	dial dialFunc
	// over ends when they are closed, and with it what is being dialled.
	over context.Context
	end  context.CancelFunc

	mu   sync.Mutex
	open map[*trackedConn]struct{} // nil once closed
}

func newConnections(dial dialFunc) *connections {
	if dial == nil {
		dial = (&net.Dialer{Timeout: dialTimeout}).DialContext
	}
	c := &connections{dial: dial, open: map[*trackedConn]struct{}{}}
	c.over, c.end = context.WithCancel(context.Background())
	return c
}

func (c *connections) dialContext(ctx context.Context, network, address string) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.over, cancel)()
	if c.over.Err() != nil { // a server that does not answer would be waited for
		return nil, fmt.Errorf("dial %s: %w", address, errRetired)
	}
	conn, err := c.dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	t := &trackedConn{Conn: conn, all: c}
	c.mu.Lock()
	closed := c.open == nil
	if !closed {
		c.open[t] = struct{}{}
	}
	c.mu.Unlock()
	if closed {
		_ = conn.Close()
		return nil, fmt.Errorf("dial %s: %w", address, errRetired)
	}
	return t, nil
}

func (c *connections) close() {
	c.end()
	c.mu.Lock()
	open := c.open
	c.open = nil
	c.mu.Unlock()
	for t := range open {
		_ = t.Conn.Close()
	}
}

type trackedConn struct {
	net.Conn
	all *connections
}

func (t *trackedConn) Close() error {
	t.all.mu.Lock()
	delete(t.all.open, t)
	t.all.mu.Unlock()
	return t.Conn.Close()
}
