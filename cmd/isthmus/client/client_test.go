package client_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/client"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/serve"
	"github.com/isthmus-mesh/isthmus/xds"
	"github.com/isthmus-mesh/isthmus/xds/match"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func connect(t *testing.T, h http.HandlerFunc) *client.Client {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	c, err := client.New(srv.URL)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

func TestAddresses(t *testing.T) {
	for _, good := range []string{"127.0.0.1:8080", "http://127.0.0.1:8080", "http://[::1]:8080/", "https://x"} {
		_, err := client.New(good)
		require.NoError(t, err, good)
	}
	for _, bad := range []string{"", "http://", "ftp://x", "http://%zz"} {
		_, err := client.New(bad)
		require.Error(t, err, bad)
	}
}

func TestRefusalsAreQuoted(t *testing.T) {
	c := connect(t, func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "debug views are served to this machine only"+strings.Repeat("!", 1<<20), http.StatusUnauthorized)
	})
	_, err := c.Overview(t.Context())
	var refused *client.Refused
	require.ErrorAs(t, err, &refused)
	require.Equal(t, http.StatusUnauthorized, refused.Status)
	require.Contains(t, err.Error(), "/debug/overview: 401 debug views are served to this machine only")
	require.Less(t, len(err.Error()), 4096)
}

func TestNoRedirectToOtherServers(t *testing.T) {
	c := connect(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://192.0.2.1/debug/overview", http.StatusFound)
	})
	_, err := c.Overview(t.Context())
	require.ErrorContains(t, err, "refuse redirect")
}

func TestAnswerThatIsNotOurs(t *testing.T) {
	c := connect(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) })
	_, err := c.Overview(t.Context())
	require.ErrorContains(t, err, "is that an isthmus")
}

func TestExplainKeepsVerdictsByName(t *testing.T) {
	c := connect(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RawQuery != "header=user%3Ajo&host=h&method=GET&path=%2Fa&port=80&proxy=p-1" {
			http.Error(w, r.URL.RawQuery, http.StatusBadRequest)
			return
		}
		_, _ = w.Write([]byte(`{"host":"h","candidates":[{"address":"192.0.2.1:80","kept":true,"verdict":"ThroughGateway"}]}`))
	})
	x, err := c.Explain(t.Context(), "p-1", "h", 80, match.Request{Method: "GET", Path: "/a", Headers: map[string]string{"user": "jo"}})
	require.NoError(t, err)
	require.Len(t, x.Candidates, 1)
	require.Equal(t, "ThroughGateway", x.Candidates[0].Verdict)
	require.True(t, x.Candidates[0].Kept)
}

func TestWaitReady(t *testing.T) {
	var asked atomic.Int32
	c := connect(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/ready" || asked.Add(1) < 3 {
			http.Error(w, "remote clusters not read yet", http.StatusServiceUnavailable)
		}
	})
	require.NoError(t, c.WaitReady(t.Context()))
	require.EqualValues(t, 3, asked.Load())

	never := connect(t, func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "remote clusters not read yet", http.StatusServiceUnavailable)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := never.WaitReady(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestFindProxy(t *testing.T) {
	at := time.Unix(1000, 0)
	o := serve.Overview{Proxies: []xds.ProxyStatus{
		{ID: "web.shop", Cluster: "north", Connection: "web.shop-1", ConnectedAt: at},
		{ID: "web.shop", Cluster: "north", Connection: "web.shop-9", ConnectedAt: at.Add(time.Second)},
		{ID: "web.shop", Cluster: "south", Connection: "web.shop-2", ConnectedAt: at},
		{ID: "gate.shop", Cluster: "south", Connection: "gate.shop-3", ConnectedAt: at},
	}}
	for name, want := range map[string]string{
		"north/web.shop": "web.shop-9", // the newest of two streams of one pod
		"south/web.shop": "web.shop-2", "gate.shop": "gate.shop-3", "web.shop-1": "web.shop-1",
	} {
		got, err := client.FindProxy(o, name)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	_, err := client.FindProxy(o, "web.shop")
	require.ErrorContains(t, err, "north/web.shop, south/web.shop")
	_, err = client.FindProxy(o, "web")
	require.ErrorContains(t, err, "the namespace is missing; name one of north/web.shop, south/web.shop")
	_, err = client.FindProxy(o, "nope.shop")
	require.ErrorContains(t, err, "isthmus status")
}
