// Package plane runs control planes within tests, with exactly the wiring that
// users run (cmd/isthmus/serve), and asks them what users ask: health, metrics,
// what is below /debug.
//
// It owns starting, ending and asking. Which clusters there are, and what a test
// expects, is the business of the worlds that use it.
package plane

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/serve"
	"github.com/isthmus-mesh/isthmus/multicluster"
)

// Patience is how long a test waits for something that must happen. It is
// generous because machines are: nothing is asserted about time.
const Patience = 2 * time.Minute

// look is the time between looks while waiting.
const look = 20 * time.Millisecond

// Plane is one running control plane. It ends with its test at the latest.
type Plane struct {
	*serve.Control
	t    testing.TB
	halt func()
}

// Start starts a control plane without waiting for anything. It listens on free
// ports for plaintext ADS, HTTP and monitoring, reads no mesh settings from files,
// and may be told otherwise. With -v it logs.
func Start(t testing.TB, change ...func(*serve.Settings)) *Plane {
	t.Helper()
	s := serve.Defaults(func(string) string { return "" })
	s.GRPCAddr, s.HTTPAddr, s.MonitoringAddr = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	s.SecureGRPCAddr, s.HTTPSAddr = "", ""
	s.MeshConfig, s.NetworksConfig = "", ""
	for _, f := range change {
		f(&s)
	}
	log := zap.NewNop()
	if testing.Verbose() {
		log = zaptest.NewLogger(t, zaptest.Level(zap.InfoLevel)).Named(s.PodName)
	}
	c, err := serve.New(s, serve.Build{Version: "test"}, log)
	require.NoError(t, err)
	require.NoError(t, c.Listen())
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	p := &Plane{Control: c, t: t}
	p.halt = sync.OnceFunc(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("control plane %s: %v", s.PodName, err)
		}
	})
	t.Cleanup(p.halt)
	return p
}

// Serve starts a control plane and waits until it is ready.
func Serve(t testing.TB, change ...func(*serve.Settings)) *Plane {
	t.Helper()
	p := Start(t, change...)
	p.AwaitReady()
	return p
}

// Halt ends the control plane and waits for it.
func (p *Plane) Halt() { p.halt() }

// AwaitReady waits until the control plane answers proxies.
func (p *Plane) AwaitReady() {
	p.t.Helper()
	if !Wait(p.t.Context(), func() bool { return p.NotReady() == "" }) {
		p.t.Fatalf("the control plane is not ready: %s", p.NotReady())
	}
}

// Status is what the control plane says of a cluster, the zero value if it knows
// of none.
func (p *Plane) Status(cluster string) multicluster.Status {
	for _, s := range p.Clusters() {
		if string(s.ID) == cluster {
			return s
		}
	}
	return multicluster.Status{}
}

// AwaitHealth waits until the control plane says that a cluster is so.
func (p *Plane) AwaitHealth(cluster string, h multicluster.Health) {
	p.t.Helper()
	if !Wait(p.t.Context(), func() bool { return p.Status(cluster).Health == h }) {
		p.t.Fatalf("cluster %s is not %s but %+v", cluster, h, p.Status(cluster))
	}
}

// Metric reads the value of a series as it is exposed, "" if there is none.
func (p *Plane) Metric(series string) string {
	p.t.Helper()
	for line := range strings.Lines(Get(p.t, p.MonitoringAddr(), "/metrics")) {
		if value, ok := strings.CutPrefix(line, series+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// Get asks an HTTP listener for a path and returns the body of its answer.
func Get(t testing.TB, addr, path string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+path, nil)
	require.NoError(t, err)
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }() // nothing was written
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode, "%s: %s", path, body)
	return string(body)
}

// Wait waits until ok holds; false if the context ends before, or after
// [Patience].
func Wait(ctx context.Context, ok func() bool) bool {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	tick := time.NewTicker(look)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
	return true
}
