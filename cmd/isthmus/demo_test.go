package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/serve"
)

const demoWorld = "../../manifests/demo"

// demoPatience bounds what the demo may take here; it is far more than it does.
const demoPatience = 60 * time.Second

func TestDemoOnce(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), demoPatience)
	defer cancel()
	r := runCommand(ctx, "demo", "--once", "--files", demoWorld, "--primary", "north")
	require.Zero(t, r.code, r.err)
	require.Empty(t, r.err)
	require.Regexp(t, `^3 clusters and 7 services read from .*, 3 proxies connected, after \d+ ms\npage  http://127\.0\.0\.1:\d+/debug/\n`, r.out)
	_, answers, found := strings.Cut(r.out, "and why:\n")
	require.True(t, found, r.out)
	golden(t, "demo.golden", answers)
}

// A demo that listens on all addresses is found at the local one.
func TestDemoOnAllAddresses(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), demoPatience)
	defer cancel()
	r := runCommand(ctx, "demo", "--once", "--files", demoWorld, "--primary", "north", "--httpAddr", ":0", "--grpcAddr", "0.0.0.0:0")
	require.Zero(t, r.code, r.err)
	require.Regexp(t, `page  http://127\.0\.0\.1:\d+/debug/\nADS   127\.0\.0\.1:\d+ `, r.out)
}

// liveDemo is a demo that runs on a copy of the world.
type liveDemo struct {
	t     *testing.T
	world string
	lines chan string
}

func startDemo(t *testing.T) *liveDemo {
	d := &liveDemo{t: t, world: filepath.Join(t.TempDir(), "world"), lines: make(chan string, 1000)}
	require.NoError(t, os.CopyFS(d.world, os.DirFS(demoWorld)))
	ctx, stop := context.WithTimeout(t.Context(), demoPatience)
	r, w := io.Pipe()
	ended := make(chan int, 1)
	var complaint bytes.Buffer
	e := environment{out: w, err: &complaint, getenv: func(string) string { return "" }, build: serve.Build{Version: "test"}}
	go func() {
		code := e.run(ctx, []string{"demo", "--files", d.world, "--primary", "north"})
		_ = w.Close()
		ended <- code
	}()
	go func() {
		defer close(d.lines)
		for s := bufio.NewScanner(r); s.Scan(); {
			d.lines <- s.Text()
		}
	}()
	t.Cleanup(func() {
		stop()
		for range d.lines { // let it print until it ends
		}
		require.Zero(t, <-ended, complaint.String())
	})
	return d
}

// until reads lines up to one that matches, and returns it.
func (d *liveDemo) until(pattern string) string {
	d.t.Helper()
	re := regexp.MustCompile(pattern)
	var seen []string
	for line := range d.lines {
		if re.MatchString(line) {
			return line
		}
		seen = append(seen, line)
	}
	require.Failf(d.t, "not printed", "%s\n%s", pattern, strings.Join(seen, "\n"))
	return ""
}

func (d *liveDemo) edit(file string, change func(string) string) {
	d.t.Helper()
	path := filepath.Join(d.world, file)
	before, err := os.ReadFile(path)
	require.NoError(d.t, err)
	after := change(string(before))
	require.NotEqual(d.t, string(before), after, "the edit changes nothing")
	require.NoError(d.t, os.WriteFile(path, []byte(after), 0o600))
}

// What the demo's README promises happens, and is printed as it happens.
func TestDemoFollowsEdits(t *testing.T) {
	d := startDemo(t)
	d.until(`^End with Ctrl-C`)

	shop := filepath.Join("island", "shop.yaml")
	d.edit(shop, func(s string) string { // delete a pod
		docs := strings.Split(s, "---\n")
		for i, doc := range docs {
			if strings.Contains(doc, "name: checkout-v2-2\n") {
				return strings.Join(append(docs[:i:i], docs[i+1:]...), "---\n")
			}
		}
		return s
	})
	d.until(`^    - → 198\.51\.100\.20:15443 +weight 3 .*checkout-v2-2`)
	d.until(`^    \+ → 198\.51\.100\.20:15443 +weight 2 `)

	d.edit(filepath.Join("north", "gateway.yaml"), func(s string) string { return strings.Replace(s, "    - ip: 203.0.113.11\n", "", 1) })
	d.until(`^    - → 203\.0\.113\.11:15443`)

	d.edit(filepath.Join("south", "shop.yaml"), func(s string) string { return "nonsense: [\n" + s })
	d.until(`^    \+ ✕ .*shop\.yaml`)
}
