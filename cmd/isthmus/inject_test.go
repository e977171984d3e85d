package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// injectArgs inject the objects of the tests with a small template.
func injectArgs(more ...string) []string {
	return append([]string{"inject", "-f", "testdata/inject/objects.yaml", "--injectConfigFile", "testdata/inject/injector.yaml",
		"--meshConfigFile", "testdata/inject/mesh.yaml", "--cluster", "west", "--network", "net2"}, more...)
}

func TestInject(t *testing.T) {
	r := runCommand(t.Context(), injectArgs()...)
	require.Zero(t, r.code, r.err)
	golden(t, "inject/objects.golden", r.out)
	require.Equal(t, "Pod default/h: not injected: the pod uses the network of its node, whose traffic must not be redirected\n", r.err)

	r = runCommand(t.Context(), injectArgs("--diff")...)
	require.Zero(t, r.code, r.err)
	golden(t, "inject/diff.golden", r.out)
}

// What was printed comes out unchanged, with the templates of Isthmus too.
func TestInjectAgain(t *testing.T) {
	for name, args := range map[string][]string{"given": injectArgs(), "own": {"inject", "-f", "testdata/inject/objects.yaml", "--native-sidecars", "-r", "canary"}} {
		t.Run(name, func(t *testing.T) {
			first := runCommand(t.Context(), args...)
			require.Zero(t, first.code, first.err)
			file := filepath.Join(t.TempDir(), "injected.yaml")
			require.NoError(t, os.WriteFile(file, []byte(first.out), 0o600))
			args[2] = file
			again := runCommand(t.Context(), append(args, "--diff")...)
			require.Zero(t, again.code, again.err)
			require.Empty(t, again.out)
		})
	}
}

// What is odd about the templates is said, and hinders nobody else.
func TestInjectWarns(t *testing.T) {
	config := filepath.Join(t.TempDir(), "config.yaml")
	require.NoError(t, os.WriteFile(config, []byte("policy: enabled\ntemplates: {sidecar: 'metadata: {labels: {a: b}}', other: '{{ nosuch }}'}"), 0o600))
	r := runCommand(t.Context(), "inject", "-f", "testdata/inject/objects.yaml", "--injectConfigFile", config)
	require.Zero(t, r.code, r.err)
	require.Contains(t, r.err, `warning: key config: template "other", line 1: function "nosuch" not defined`)
	require.Contains(t, r.out, "a: b")
}

func TestInjectErrors(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	bad := file("bad.yaml", "kind: Pod\nmetadata: {name: a, annotations: {inject.istio.io/templates: x}}\n---\na: [\n---\nkind: Deployment\nmetadata: {name: d}\n")
	for name, tc := range map[string]struct {
		args []string
		code int
		says []string
	}{
		"no file":     {[]string{"inject"}, exitUsage, []string{"-f FILE"}},
		"not there":   {[]string{"inject", "-f", dir + "/nosuch"}, exitFailed, []string{"nosuch"}},
		"all at once": {[]string{"inject", "-f", bad}, exitFailed, []string{"document 1: inject pod default/a: there is no template", "document 2: not YAML", "document 3: read Deployment default/d: spec: there is none"}},
		"templates":   {[]string{"inject", "-f", bad, "--injectConfigFile", file("t", "policy: enabled\ntemplates: {a: '{{ x }}'}")}, exitFailed, []string{`template "a", line 1`}},
		"values":      {[]string{"inject", "-f", bad, "--valuesFile", file("v", "a: [")}, exitFailed, []string{"key values"}},
		"mesh":        {[]string{"inject", "-f", bad, "--meshConfigFile", file("m", "trustDomain: [1]")}, exitFailed, []string{"--meshConfigFile"}},
		"too many":    {[]string{"inject", "x"}, exitUsage, []string{"takes no arguments"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := runCommand(t.Context(), tc.args...)
			require.Equal(t, tc.code, r.code)
			require.Empty(t, r.out)
			for _, want := range tc.says {
				require.Contains(t, r.err, want)
			}
		})
	}
}

// A diff takes the first text to the second.
func TestUnifiedDiff(t *testing.T) {
	require.Empty(t, unifiedDiff("a", "b", "x\n", "x\n"))
	require.Equal(t, "--- a\n+++ b\n@@ -1,3 +1,3 @@\n 1\n-2\n+two\n 3\n", unifiedDiff("a", "b", "1\n2\n3\n", "1\ntwo\n3\n"))
	line := rapid.SampledFrom([]string{"a", "b", "c", "d"})
	rapid.Check(t, func(rt *rapid.T) {
		a, b := rapid.SliceOfN(line, 1, 40).Draw(rt, "a"), rapid.SliceOfN(line, 1, 40).Draw(rt, "b")
		var first, second []string
		changed := 0
		for _, l := range diffLines(a, b) {
			if l.mark != '+' {
				first = append(first, l.text)
			}
			if l.mark != '-' {
				second = append(second, l.text)
			}
			if l.mark != ' ' {
				changed++
			}
		}
		require.Equal(rt, a, first)
		require.Equal(rt, b, second)
		// Every changed line is in the hunks, once.
		marked := 0
		for i, l := range strings.Split(unifiedDiff("x", "y", strings.Join(a, "\n"), strings.Join(b, "\n")), "\n") {
			if i > 1 && (strings.HasPrefix(l, "+") || strings.HasPrefix(l, "-")) {
				marked++
			}
		}
		require.Equal(rt, changed, marked)
	})
}
