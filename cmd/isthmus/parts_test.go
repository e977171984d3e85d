package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/serve"
	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

func TestUnknownFlags(t *testing.T) {
	fs := pflag.NewFlagSet("x", pflag.ContinueOnError)
	fs.String("known", "", "")
	fs.BoolP("yes", "y", false, "")
	fs.StringP("name", "n", "", "")
	for _, c := range []struct {
		args string
		want []string
	}{
		{"serve --known v --yes", nil},
		{"serve --unknown v --known=v", []string{"--unknown"}},
		{"--known --unknown", nil}, // the value of --known, as the parser sees it
		{"--a --b=1 -y -n v -q", []string{"--a", "--b", "-q"}},
		{"--yes --zzz", []string{"--zzz"}},
		{"-- --after", nil},
		{"- -", nil},
		{"", nil},
	} {
		require.Equal(t, c.want, unknownFlags(fs, strings.Fields(c.args)), c.args)
	}
}

func TestLogLevels(t *testing.T) {
	for _, c := range []struct {
		flag string
		want map[string]zapcore.Level
	}{
		{"info", map[string]zapcore.Level{"": zap.InfoLevel, "ads": zap.InfoLevel}},
		{"default:info", map[string]zapcore.Level{"": zap.InfoLevel, "ads": zap.InfoLevel}},
		{"default:warn,ads:debug", map[string]zapcore.Level{"": zap.WarnLevel, "ads": zap.DebugLevel, "ads.sub": zap.DebugLevel, "adsx": zap.WarnLevel}},
		{"all:error, delta:info", map[string]zapcore.Level{"kube": zap.ErrorLevel, "delta": zap.InfoLevel}},
		{"none", map[string]zapcore.Level{"": levelNone}},
		{"ads:none", map[string]zapcore.Level{"ads": levelNone, "kube": zap.InfoLevel}},
		{"", map[string]zapcore.Level{"": zap.InfoLevel}},
	} {
		levels, err := parseLevels(c.flag)
		require.NoError(t, err, c.flag)
		for name, want := range c.want {
			require.Equal(t, want, levels.of(name), "%q of %q", c.flag, name)
		}
	}
	for _, bad := range []string{"loud", "default:", "ads:INFO", "default:info,ads:7"} {
		_, err := parseLevels(bad)
		require.Error(t, err, bad)
	}
}

func TestLogger(t *testing.T) {
	var out bytes.Buffer
	o := logOptions{level: "default:warn,ads:debug"}
	log, err := o.logger(&out)
	require.NoError(t, err)
	log.Info("hidden")
	log.Named("kube").Info("hidden")
	log.Named("ads").With(zap.String("proxy", "web")).Debug("shown to people")
	log.Warn("plaintext ADS on 127.0.0.1:15010")
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	require.Len(t, lines, 2, out.String())
	require.Regexp(t, `^\d{4}-.*  debug  ads  shown to people  \{"proxy": "web"\}$`, lines[0])
	require.True(t, strings.HasSuffix(lines[1], "  warn  plaintext ADS on 127.0.0.1:15010"), lines[1])

	out.Reset()
	o.json = true
	log, err = o.logger(&out)
	require.NoError(t, err)
	log.Named("ads").Info("one", zap.Int("n", 1))
	var line map[string]any
	require.NoError(t, json.Unmarshal(out.Bytes(), &line))
	delete(line, "time")
	require.Equal(t, map[string]any{"level": "info", "scope": "ads", "msg": "one", "n": 1.0}, line)
}

func TestFindHost(t *testing.T) {
	service := func(ns string, h mesh.Hostname, ports ...string) registry.ServiceOverview {
		return registry.ServiceOverview{Namespace: ns, Hostname: h, Ports: ports}
	}
	o := serve.Overview{Registry: registry.Overview{Services: []registry.ServiceOverview{
		service("shop", "cart.shop.svc.cluster.local", "http:80/HTTP", "grpc:9000/GRPC"),
		service("bank", "cart.bank.svc.cluster.local", ":80/TCP"),
		service("bank", "ledger.bank.svc.cluster.local"),
	}}}
	for _, c := range []struct{ proxy, host, want, wrong string }{
		{"web.shop", "cart", "cart.shop.svc.cluster.local", ""},
		{"north/web.bank", "cart", "cart.bank.svc.cluster.local", ""},
		{"web.shop", "CART.bank", "cart.bank.svc.cluster.local", ""},
		{"web.shop", "ledger", "ledger.bank.svc.cluster.local", ""},
		{"web.other", "cart", "", "cart.shop.svc.cluster.local, cart.bank.svc.cluster.local"},
		{"web.shop", "car", "", "no cluster"},
		{"web.shop", "cart.shop.svc.cluster.local.", "cart.shop.svc.cluster.local", ""},
	} {
		got, err := findHost(o, c.proxy, c.host)
		if c.wrong != "" {
			require.ErrorContains(t, err, c.wrong)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, c.want, got)
	}
	ports, err := portsToExplain(o, "cart.shop.svc.cluster.local", nil)
	require.NoError(t, err)
	require.Equal(t, []uint16{80, 9000}, ports)
	_, err = portsToExplain(o, "ledger.bank.svc.cluster.local", nil)
	require.ErrorContains(t, err, "name the port")
	for _, bad := range []string{"0", "65536", "-1", "http", ""} {
		_, err = portsToExplain(o, "x", []string{bad})
		require.ErrorAs(t, err, &usageError{}, bad)
	}
}

func TestAge(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 59 * time.Second: "59s", 61 * time.Second: "1m1s", 3 * time.Hour: "3h0m", 50 * time.Hour: "2d2h",
	} {
		require.Equal(t, want, age(d))
	}
	require.Empty(t, since(time.Now(), time.Time{}))
}

// A proxy or an object cannot steer the terminal of whoever looks at it.
func TestTableIsHarmless(t *testing.T) {
	tab := head("name", "state")
	tab.add("\x1b[31mred\x1b[0m", "a\nb\u202e")
	tab.note("\x07bell")
	var out bytes.Buffer
	require.NoError(t, tab.print(&out, ""))
	require.Equal(t, "name          state\n?[31mred?[0m  a?b?\n  ! ?bell\n", out.String())
}

func TestScreenShowsDifferences(t *testing.T) {
	var out bytes.Buffer
	s := newScreen(&out, func(string) string { return "" })
	at := time.Date(2026, 11, 22, 3, 12, 0, 0, time.UTC)
	one := answer{proxy: "north  web", title: "cart:80", lines: []string{"→ a", "→ b"}}
	two := answer{proxy: "south  web", title: "cart:80", lines: []string{"→ c"}}
	require.NoError(t, s.show(at, []answer{one, two}))
	require.Contains(t, out.String(), "→ a")

	out.Reset()
	require.NoError(t, s.show(at, []answer{one, two}))
	require.Empty(t, out.String(), "nothing changed, nothing is printed")

	require.NoError(t, s.show(at, []answer{{proxy: one.proxy, title: one.title, lines: []string{"→ b", "→ d"}}}))
	require.Equal(t, `
03:12:00.000  the answer has changed
  north  web  cart:80
    - → a
    + → d
  south  web  cart:80
    - → c
`, out.String())

	out.Reset()
	require.NoError(t, s.show(at, []answer{two}))
	require.Contains(t, out.String(), "    - → b\n    - → d\n")
	require.Contains(t, out.String(), "    + → c\n")
}
