package serve

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Bounds on HTTP requests. Debug answers may be large, so only reading is short.
const (
	httpReadTimeout  = 10 * time.Second
	httpWriteTimeout = 2 * time.Minute
	httpIdleTimeout  = 2 * time.Minute
	httpMaxHeader    = 64 << 10
)

// readyMux serves what port 8080 serves: readiness, the page and /debug.
func (c *Control) readyMux() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ready", c.serveReady)
	c.mountDebug(mux)
	return mux
}

// monitoringMux serves what port 15014 serves: metrics, version and /debug.
func (c *Control) monitoringMux() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(c.metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /version", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(c.build.Line()))
	})
	c.mountDebug(mux)
	return mux
}

func (c *Control) serveReady(w http.ResponseWriter, _ *http.Request) {
	if reason := c.notReady(); reason != "" {
		http.Error(w, reason, http.StatusServiceUnavailable)
		return
	}
	_, _ = w.Write([]byte("ready\n"))
}

// mountDebug adds every package's own debug views behind one guard.
func (c *Control) mountDebug(mux *http.ServeMux) {
	debug := http.NewServeMux()
	paths := c.debugHandlers()
	names := make([]string, 0, len(paths))
	for _, h := range paths {
		debug.Handle("/debug/"+h.name, h.handler)
		names = append(names, h.name)
	}
	slices.Sort(names)
	debug.HandleFunc("/debug/list", func(w http.ResponseWriter, r *http.Request) { writeJSON(w, r, names) })
	debug.HandleFunc("/debug/pprof/", pprof.Index)
	debug.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	debug.HandleFunc("/debug/pprof/profile", pprof.Profile)
	debug.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	debug.HandleFunc("/debug/pprof/trace", pprof.Trace)
	debug.Handle("/debug/", c.page)
	mux.Handle("/debug/", c.debugGuard(debug))
	mux.Handle("GET /debug", http.RedirectHandler("/debug/", http.StatusFound))
	mux.Handle("GET /{$}", http.RedirectHandler("/debug/", http.StatusFound))
}

// namedHandler is one view below /debug/.
type namedHandler struct {
	name, help string
	handler    http.Handler
}

func localHost(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	if host == "" || host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	a, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && a.Unmap().IsLoopback()
}

func writeJSON(w http.ResponseWriter, r *http.Request, v any) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	if r.URL.Query().Has("pretty") {
		enc.SetIndent("", "  ")
	}
	_ = enc.Encode(v) // the client went away: nobody to tell
}

// serveHTTP serves on a listener until the context ends.
func serveHTTP(l net.Listener, h http.Handler, grace time.Duration) func(context.Context) error {
	return func(ctx context.Context) error {
		srv := &http.Server{Handler: slashes(h), ReadHeaderTimeout: httpReadTimeout, ReadTimeout: httpReadTimeout,
			WriteTimeout: httpWriteTimeout, IdleTimeout: httpIdleTimeout, MaxHeaderBytes: httpMaxHeader}
		done := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			defer close(done)
			ended, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
			defer cancel()
			if srv.Shutdown(ended) != nil {
				_ = srv.Close()
			}
		})
		err := srv.Serve(l)
		if !stop() {
			<-done
		}
		if errors.Is(err, http.ErrServerClosed) {
			return nil
		}
		return err
	}
}

// slashes folds a doubled leading slash, which istioctl sends for /version.
func slashes(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for strings.HasPrefix(r.URL.Path, "//") {
			r.URL.Path = r.URL.Path[1:]
		}
		h.ServeHTTP(w, r)
	})
}
