package config

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestHostSet: the set finds what comparing each with each finds.
func TestHostSet(t *testing.T) {
	within := func(h, of string) bool {
		x, wild := strings.CutPrefix(h, "*")
		y, wildOf := strings.CutPrefix(of, "*")
		switch {
		case !wildOf:
			return h == of
		case wild:
			return strings.HasSuffix(x, y)
		}
		return strings.HasSuffix(h, y)
	}
	rapid.Check(t, func(t *rapid.T) {
		host := rapid.SampledFrom([]string{"*", "*.b", "*.a.b", "*b", "a.b", "b", "x.a.b", "*-x.b", "y-x.b", "c"})
		hosts := rapid.SliceOfN(host, 0, 6).Draw(t, "hosts")
		h := host.Draw(t, "host")
		want := false
		for _, of := range hosts {
			want = want || within(h, of)
		}
		i, ok := newHostSet(hosts).around(h, -1)
		if ok != want || ok && !within(h, hosts[i]) {
			t.Fatalf("%q in %q: %d, %t", h, hosts, i, ok)
		}
	})
}

// TestLargeObjects: an object of any shape that fits into a request is judged in
// a time that grows with its size, not with its square. The test ends at all.
func TestLargeObjects(t *testing.T) {
	const n = 30_000
	list := func(format string) string {
		parts := make([]string, n)
		for i := range parts {
			parts[i] = fmt.Sprintf(format, i)
		}
		return strings.Join(parts, ",")
	}
	for kind, spec := range map[string]string{
		"VirtualService":  `{"hosts":[` + list(`"h%d.example"`) + `],"exportTo":[` + list(`"n%d"`) + `],"tls":[{"match":[{"sniHosts":[` + list(`"h%d.example"`) + `]}],"route":[{"destination":{"host":"a"}}]}]}`,
		"DestinationRule": `{"host":"a","subsets":[` + list(`{"name":"s%d"}`) + `]}`,
		"Gateway":         `{"servers":[{"port":{"number":1,"name":"a","protocol":"TLS"},"hosts":["*"],"tls":{"mode":"SIMPLE","credentialName":"c","cipherSuites":[` + list(`"C%d"`) + `]}}]}`,
		"ServiceEntry":    `{"hosts":["a.example"],"resolution":"STATIC","ports":[{"number":1,"name":"a"}],"endpoints":[{"address":"10.0.0.1","ports":{` + list(`"p%d":1`) + `}}]}`,
		"WasmPlugin":      `{"url":"a","vmConfig":{"env":[` + list(`{"name":"E%d"}`) + `]}}`,
	} {
		k := kindNamed(t, kind)
		warnings, err := Review("east", k, objectJSON(t, k, json.RawMessage(spec)))
		require.LessOrEqual(t, len(warnings), maxErrors)
		require.LessOrEqual(t, len(FieldErrors(err)), maxErrors)
	}
}
