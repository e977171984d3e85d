package main

import (
	"bytes"
	"context"
	"flag"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/serve"
)

var update = flag.Bool("update", false, "rewrite golden files")

func TestMain(m *testing.M) {
	flag.Parse()
	goleak.VerifyTestMain(m)
}

// result is what one command line printed and returned.
type result struct {
	code     int
	out, err string
}

func runCommand(ctx context.Context, args ...string) result {
	var out, complaint bytes.Buffer
	e := environment{out: &out, err: &complaint, getenv: func(string) string { return "" },
		build: serve.Build{Version: "v1.2.3", Revision: "abc", Status: "Clean"}}
	code := e.run(ctx, args)
	return result{code, out.String(), complaint.String()}
}

// controlPlane answers as one does, from files.
func controlPlane(t *testing.T) string {
	t.Helper()
	mux := http.NewServeMux()
	answer := func(file string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			body, err := os.ReadFile(filepath.Join("testdata", file))
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			_, _ = w.Write(body)
		}
	}
	mux.HandleFunc("/debug/overview", answer("overview.json"))
	mux.HandleFunc("/debug/explain", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if q.Get("proxy") != "web-v1-0.shop-1" || q.Get("host") != "checkout.shop.svc.cluster.local" || q.Get("port") != "80" {
			http.Error(w, "unexpected question "+r.URL.RawQuery, http.StatusBadRequest)
			return
		}
		answer("explain.json")(w, r)
	})
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	return srv.URL
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(got), 0o600))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err, "rewrite with -update")
	require.Equal(t, string(want), got)
}
