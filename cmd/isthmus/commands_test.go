package main

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/serve"
)

func TestOutput(t *testing.T) {
	address := controlPlane(t)
	for name, args := range map[string][]string{
		"status.golden":       {"status"},
		"status-wide.golden":  {"status", "-o", "wide"},
		"explain.golden":      {"explain", "north/web-v1-0.shop", "checkout"},
		"explain-json.golden": {"explain", "north/web-v1-0.shop", "checkout.shop.svc.cluster.local.", "80", "-o", "json"},
		"version.golden":      {"version"},
	} {
		t.Run(name, func(t *testing.T) {
			r := runCommand(t.Context(), append(args, "--address", address)...)
			require.Equal(t, result{out: r.out}, r)
			golden(t, name, r.out)
		})
	}
}

// What status -o json prints is what the control plane said, for other tools.
func TestStatusJSONIsWhole(t *testing.T) {
	r := runCommand(t.Context(), "status", "-o", "json", "--address", controlPlane(t))
	require.Zero(t, r.code, r.err)
	want, err := os.ReadFile("testdata/overview.json")
	require.NoError(t, err)
	var a, b serve.Overview
	require.NoError(t, json.Unmarshal(want, &a))
	require.NoError(t, json.Unmarshal([]byte(r.out), &b))
	require.Equal(t, a, b)
	require.Len(t, b.Clusters, 4)
	require.Len(t, b.Proxies, 3)
}

func TestStatusOfNothing(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"primary":"north","notReady":"folders not listed yet"}`))
	}))
	defer srv.Close()
	r := runCommand(t.Context(), "status", "--address", srv.URL)
	require.Zero(t, r.code, r.err)
	golden(t, "status-empty.golden", r.out)
}

func TestErrorsSayWhatToDo(t *testing.T) {
	address := controlPlane(t)
	t.Setenv("KUBECONFIG", "")
	t.Setenv("HOME", t.TempDir())
	for _, c := range []struct {
		name string
		args []string
		code int
		says []string
	}{
		{"no such command", []string{"sync"}, exitUsage, []string{`unknown command "sync"`, "--help"}},
		{"no such flag", []string{"status", "--nope"}, exitUsage, []string{"--nope", "isthmus status --help"}},
		{"arguments", []string{"status", "x"}, exitUsage, []string{"isthmus: status takes no arguments"}},
		{"too few arguments", []string{"explain", "web"}, exitUsage, []string{`isthmus: explain needs PROXY, HOST and perhaps PORT, got ["web"]`}},
		{"no arguments", []string{"join"}, exitUsage, []string{"isthmus: join needs the name of the cluster\n"}},
		{"no kubeconfig", []string{"create-remote-secret"}, exitFailed, []string{"there is no kubeconfig", "--kubeconfig"}},
		{"nowhere to install", []string{"install"}, exitFailed, []string{"there is no kubeconfig", "--kubeconfig"}},
		{"format", []string{"status", "-o", "yaml", "--address", address}, exitUsage, []string{`"yaml"`, "table, wide, json"}},
		{"address", []string{"status", "--address", "ftp://x"}, exitUsage, []string{"http://127.0.0.1:8080"}},
		{"nobody there", []string{"status", "--address", "127.0.0.1:1"}, exitFailed, []string{"isthmus serve", "port-forward", "--address"}},
		{"proxy of several clusters", []string{"explain", "web-v1-0.shop", "checkout", "--address", address}, exitFailed, []string{"island/web-v1-0.shop, north/web-v1-0.shop"}},
		{"no such proxy", []string{"explain", "nope.shop", "checkout", "--address", address}, exitFailed, []string{"isthmus status"}},
		{"no such host", []string{"explain", "north/web-v1-0.shop", "nope", "--address", address}, exitFailed, []string{"isthmus status -o wide"}},
		{"port", []string{"explain", "north/web-v1-0.shop", "checkout", "http", "--address", address}, exitUsage, []string{"1 to 65535"}},
		{"log level", []string{"serve", "--log_output_level", "loud"}, exitUsage, []string{`"loud"`, "warn"}},
		{"world", []string{"serve", "--files", "nowhere"}, exitFailed, []string{"sub-folder"}},
		{"secret type", []string{"create-remote-secret", "--type", "other"}, exitUsage, []string{"remote, config"}},
		{"auth type", []string{"create-remote-secret", "--auth-type", "plugin"}, exitUsage, []string{"only bearer-token"}},
		{"token duration", []string{"create-remote-secret", "--token-duration", "1s"}, exitUsage, []string{"10m"}},
		{"kubeconfig", []string{"create-remote-secret", "--kubeconfig", "nowhere"}, exitFailed, []string{"--kubeconfig", "--context"}},
		{"drain of nothing", []string{"drain"}, exitUsage, []string{"needs the name of the cluster"}},
		{"drain weight", []string{"drain", "west", "--weight", "101"}, exitUsage, []string{"--weight 101 is not a percentage from 0 to 100"}},
		{"drain kubeconfig", []string{"undrain", "west", "--kubeconfig", "nowhere"}, exitFailed, []string{"the primary: find the cluster"}},
		{"demo without page", []string{"demo", "--httpAddr="}, exitUsage, []string{"--httpAddr"}},
		{"demo without pods", []string{"demo", "--files", "../../manifests/demo", "--from", "nope"}, exitFailed, []string{"--from"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := runCommand(t.Context(), c.args...)
			require.Equal(t, c.code, r.code, r.err)
			require.Empty(t, r.out)
			for _, s := range c.says {
				require.Contains(t, r.err, s)
			}
		})
	}
}

func everyCommand(c *cobra.Command, visit func(*cobra.Command)) {
	visit(c)
	for _, sub := range c.Commands() {
		if !sub.Hidden && sub.Name() != "help" && sub.Name() != "completion" {
			everyCommand(sub, visit)
		}
	}
}

func TestEveryCommandHasHelp(t *testing.T) {
	root := environment{getenv: func(string) string { return "" }}.root()
	n := 0
	everyCommand(root, func(c *cobra.Command) {
		n++
		require.NotEmpty(t, c.Short, c.CommandPath())
		require.NotEmpty(t, c.Long, c.CommandPath())
		require.Contains(t, c.Example, "isthmus", c.CommandPath())
		args := append(strings.Fields(c.CommandPath())[1:], "--help")
		r := runCommand(t.Context(), args...)
		require.Zero(t, r.code, r.err)
		require.Empty(t, r.err)
		require.Contains(t, r.out, strings.Split(c.Long, "\n")[0])
		require.Contains(t, r.out, "Usage:")
	})
	require.GreaterOrEqual(t, n, 16)
}

// ended is a context in which everything ends as soon as it has begun.
func ended(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

// The chart's arguments for istiod start isthmus; what is not known is named.
func TestChartArguments(t *testing.T) {
	chart := []string{"discovery", "--monitoringAddr=:15014", "--log_output_level=default:info", "--domain", "cluster.local",
		"--keepaliveMaxServerConnectionAge", "30m", "--unknownFlag", "x"}
	for _, name := range []string{"discovery", "serve"} {
		// Without Kubernetes and on free ports: the last of two equal flags counts.
		args := append([]string{name}, chart[1:]...)
		args = append(args, "--files", filepath.Join("..", "..", "manifests", "demo"), "--clusterID", "north",
			"--monitoringAddr=127.0.0.1:0", "--grpcAddr=127.0.0.1:0", "--httpAddr=127.0.0.1:0")
		r := runCommand(ended(t), args...)
		require.Zero(t, r.code, r.err)
		require.Regexp(t, `warn\s+flag is not known and is ignored\s+\{"flag": "--unknownFlag"\}`, r.err)
		require.Equal(t, 1, strings.Count(r.err, "not known"), r.err)
		require.Regexp(t, `plaintext ADS on 127\.0\.0\.1:[1-9]`, r.err, "users and the bench look for this line")
		require.Contains(t, r.err, "isthmus ended")
	}
}

func TestChartArgumentsHaveTheirValues(t *testing.T) {
	cmd := environment{getenv: func(string) string { return "" }}.serveCommand()
	require.NoError(t, cmd.ParseFlags([]string{"--monitoringAddr=:15099", "--log_output_level=default:info,ads:debug", "--domain", "mesh.local",
		"--unknownFlag", "x", "--keepaliveMaxServerConnectionAge", "45m", "--unknownBool", "--revision=canary"}))
	for name, want := range map[string]string{"monitoringAddr": ":15099", "domain": "mesh.local", "revision": "canary",
		"keepaliveMaxServerConnectionAge": "45m0s", "log_output_level": "default:info,ads:debug", "grpcAddr": ":15010"} {
		require.Equal(t, want, cmd.Flags().Lookup(name).Value.String(), name)
	}
}
