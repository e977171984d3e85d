package serve

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/time/rate"

	"github.com/isthmus-mesh/isthmus/ca/authn"
	"github.com/isthmus-mesh/isthmus/xds"
)

// fromAfar makes every connection of a listener one from another machine.
type fromAfar struct{ net.Listener }

func (l fromAfar) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return afar{conn}, nil
}

type afar struct{ net.Conn }

func (afar) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(203, 0, 113, 9), Port: 40000} }

// debugWorld is a control plane whose debug ports are called from another
// machine, with a proxy of namespace shop and one of namespace bank.
func debugWorld(t *testing.T, reach func(*Control)) *running {
	r := run(t, func(c *Control) {
		c.access.chain = authn.Chain{knows{}}
		c.access.refusals = rate.NewLimiter(rate.Inf, 1)
		reach(c)
	})
	r.proxy(xds.TypeCDS)
	_, err := r.stream("sidecar~10.1.0.11~till-0.bank~bank.svc.cluster.local", xds.TypeCDS,
		map[string]any{"CLUSTER_ID": "east", "NAMESPACE": "bank", "ISTIO_VERSION": "1.30.0"})
	require.NoError(t, err)
	return r
}

// call asks over HTTP with a token, saying that it comes from this machine.
func (r *running) call(addr, path, token string) (int, http.Header, string) {
	req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, "http://"+addr+path, nil)
	require.NoError(r, err)
	req.Host = "localhost"
	req.Header.Set("X-Forwarded-For", "127.0.0.1")
	req.Header.Set("Forwarded", "for=127.0.0.1")
	req.Header.Set("X-Real-Ip", "127.0.0.1")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	transport := &http.Transport{DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(req)
	require.NoError(r, err)
	defer func() { require.NoError(r, resp.Body.Close()) }()
	body, err := io.ReadAll(resp.Body)
	require.NoError(r, err)
	return resp.StatusCode, resp.Header, string(body)
}

// Row 49 over HTTP, on both ports: a caller from another machine without
// credentials is not answered, one of another namespace sees its own proxies
// only, and the system namespace sees everything.
func TestRow49DebugOverHTTP(t *testing.T) {
	r := debugWorld(t, func(c *Control) {
		for _, name := range []string{"http", "monitoring"} {
			c.listeners[name] = fromAfar{c.listeners[name]}
		}
	})
	for name, addr := range map[string]string{"http": r.control.HTTPAddr(), "monitoring": r.control.MonitoringAddr()} {
		t.Run(name, func(t *testing.T) {
			r := &running{TB: t, control: r.control}
			var paths []string
			for _, h := range r.control.debugHandlers() {
				paths = append(paths, "/debug/"+h.name)
			}
			require.Contains(t, paths, "/debug/ca")
			paths = append(paths, "/debug/", "/debug/list", "/debug/nonsense", "/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/cmdline",
				"//debug/overview", "/debug/config_dump?proxyID=till-0.bank")
			for _, path := range paths {
				for _, token := range []string{"", "bad"} {
					code, header, body := r.call(addr, path, token)
					require.Equal(t, http.StatusUnauthorized, code, "%s with token %q", path, token)
					require.Equal(t, "Bearer", header.Get("WWW-Authenticate"), path)
					require.Contains(t, body, "authentication required", path)
					require.NotContains(t, body, "web-0", path)
				}
				code, _, _ := r.call(addr, path, "down")
				require.Equal(t, http.StatusServiceUnavailable, code, path)
			}
			r.tenant(addr, paths)

			code, _, body := r.call(addr, "/debug/overview", "istio-system")
			require.Equal(t, http.StatusOK, code)
			require.Contains(t, body, "web-0.shop")
			require.Contains(t, body, "till-0.bank")
			require.Contains(t, body, `"ca":`)
			code, _, _ = r.call(addr, "/debug/config_dump?proxyID=web-0.shop", "istio-system")
			require.Equal(t, http.StatusOK, code)
		})
	}
	// What is no debug view stays as open as before.
	for addr, path := range map[string]string{r.control.HTTPAddr(): "/ready", r.control.MonitoringAddr(): "/metrics"} {
		code, _, _ := r.call(addr, path, "")
		require.Equal(t, http.StatusOK, code, path)
	}
}

// tenant asks as somebody of namespace bank.
func (r *running) tenant(addr string, paths []string) {
	for _, path := range paths {
		name, _, _ := strings.Cut(strings.TrimLeft(path, "/"), "?")
		if name == "debug/syncz" || name == "debug/config_dump" || name == "debug/edsz" || name == "debug/ndsz" {
			continue
		}
		code, _, body := r.call(addr, path, "bank")
		require.Equal(r, http.StatusForbidden, code, path)
		require.Contains(r, body, "from namespace bank only", path)
	}
	for _, query := range []string{"", "?namespace=shop", "?namespace=shop&namespace="} {
		code, _, body := r.call(addr, "/debug/syncz"+query, "bank")
		require.Equal(r, http.StatusOK, code, query)
		require.Contains(r, body, "till-0.bank", query)
		require.NotContains(r, body, "shop", query)
	}
	for _, view := range []string{"config_dump", "edsz", "ndsz"} {
		code, _, _ := r.call(addr, "/debug/"+view+"?proxyID=till-0.bank", "bank")
		require.Equal(r, http.StatusOK, code, view)
		for _, query := range []string{"", "?proxyID=web-0.shop", "?proxyID=web-0.shop&proxyID=till-0.bank", "?proxyID=nobody.bank", "?proxyID="} {
			code, _, body := r.call(addr, "/debug/"+view+query, "bank")
			require.Equal(r, http.StatusForbidden, code, view+query)
			require.NotContains(r, body, "web-0", view+query)
		}
	}
}

// The same by a connection that really does not come from loopback: over an
// address that this machine has on a network.
func TestRow49DebugFromThisMachinesOwnAddress(t *testing.T) {
	own := ownAddress(t)
	r := debugWorld(t, func(c *Control) {
		l, err := net.Listen("tcp", net.JoinHostPort(own, "0"))
		require.NoError(t, err)
		require.NoError(t, c.listeners["monitoring"].Close())
		c.listeners["monitoring"] = l
	})
	addr := r.control.MonitoringAddr()
	for token, want := range map[string]int{"": http.StatusUnauthorized, "bank": http.StatusForbidden, "istio-system": http.StatusOK} {
		code, _, _ := r.call(addr, "/debug/overview", token)
		require.Equal(t, want, code, token)
	}
}

// ownAddress is an address of this machine that is not loopback.
func ownAddress(t *testing.T) string {
	addrs, err := net.InterfaceAddrs()
	require.NoError(t, err)
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() && n.IP.To4() != nil {
			return n.IP.String()
		}
	}
	t.Skip("this machine has no network")
	return ""
}
