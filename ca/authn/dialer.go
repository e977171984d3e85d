package authn

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"
)

// ErrForbiddenAddress is returned for keys that are to be fetched from an
// address which no public key server has.
var ErrForbiddenAddress = errors.New("address is not allowed")

// CheckAddress refuses the addresses that a URL in a setting must not make us
// call: this machine's own services, cloud metadata services, and what is no
// host at all. IPv4 addresses in IPv6 clothes are taken as what they are.
func CheckAddress(a netip.Addr) error {
	a = unwrap(a)
	switch {
	case !a.IsValid(), a.IsUnspecified():
		return fmt.Errorf("%s: unspecified %w", a, ErrForbiddenAddress)
	case a.IsLoopback():
		return fmt.Errorf("%s: loopback %w", a, ErrForbiddenAddress)
	case a.IsLinkLocalUnicast():
		return fmt.Errorf("%s: link-local %w", a, ErrForbiddenAddress)
	case a.IsMulticast():
		return fmt.Errorf("%s: multicast %w", a, ErrForbiddenAddress)
	case a == netip.AddrFrom4([4]byte{255, 255, 255, 255}), a == awsMetadataIPv6():
		return fmt.Errorf("%s: %w", a, ErrForbiddenAddress)
	}
	return nil
}

// awsMetadataIPv6 is a metadata service outside the link-local range.
func awsMetadataIPv6() netip.Addr {
	return netip.AddrFrom16([16]byte{0xfd, 0x00, 0x0e, 0xc2, 14: 0x02, 15: 0x54})
}

// unwrap gives the IPv4 address inside an IPv4-mapped, NAT64 or 6to4 address.
func unwrap(a netip.Addr) netip.Addr {
	a = a.WithZone("").Unmap()
	if !a.Is6() {
		return a
	}
	b := a.As16()
	nat64 := [12]byte{0x00, 0x64, 0xff, 0x9b}
	switch {
	case [12]byte(b[:12]) == nat64:
		return netip.AddrFrom4([4]byte(b[12:]))
	case b[0] == 0x20 && b[1] == 0x02:
		return netip.AddrFrom4([4]byte(b[2:6]))
	}
	return a
}

// guardedClient returns an HTTP client for fetching public keys. Addresses are
// checked when a connection is made, so after DNS and at each redirect; there
// is no proxy, which would hide the address; redirects stay on https.
func guardedClient(check func(netip.Addr) error, timeout time.Duration, tlsClient *http.Transport) *http.Client {
	dialer := &net.Dialer{
		Timeout: timeout,
		ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
			ap, err := netip.ParseAddrPort(address)
			if err != nil {
				return fmt.Errorf("dial %s: %w", address, err)
			}
			return check(ap.Addr())
		},
	}
	tr := tlsClient
	if tr == nil {
		tr = &http.Transport{}
	}
	tr.Proxy = nil
	tr.DialContext = dialer.DialContext
	tr.ForceAttemptHTTP2 = true
	tr.DisableKeepAlives = true // one fetch in many minutes
	tr.TLSHandshakeTimeout = timeout
	tr.ResponseHeaderTimeout = timeout
	tr.MaxResponseHeaderBytes = 64 << 10
	return &http.Client{
		Transport: tr,
		Timeout:   timeout,
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if len(via) >= 3 {
				return errors.New("more than 3 redirects")
			}
			if req.URL.Scheme != "https" {
				return fmt.Errorf("redirect to %s: only https is allowed", req.URL.Redacted())
			}
			return nil
		},
	}
}
