package config

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestRow44LongExpressions is row 44 of the fault table: an expression of 100,000
// characters is refused for its length. It is not even parsed: that it has a
// parenthesis too many is not what is said of it.
func TestRow44LongExpressions(t *testing.T) {
	long := "(" + strings.Repeat("a", 100_000)
	route := func(field string) string {
		return `{"hosts":["a.example.com"],"http":[{` + field + `,"route":[{"destination":{"host":"a"}}]}]}`
	}
	for name, x := range map[string]struct{ kind, spec string }{
		"path":      {"VirtualService", route(`"match":[{"uri":{"regex":"LONG"}}]`)},
		"header":    {"VirtualService", route(`"match":[{"headers":{"x":{"regex":"LONG"}}}]`)},
		"no header": {"VirtualService", route(`"match":[{"withoutHeaders":{"x":{"regex":"LONG"}}}]`)},
		"query":     {"VirtualService", route(`"match":[{"queryParams":{"x":{"regex":"LONG"}}}]`)},
		"authority": {"VirtualService", route(`"match":[{"authority":{"regex":"LONG"}}]`)},
		"rewrite":   {"VirtualService", route(`"rewrite":{"uriRegexRewrite":{"match":"LONG","rewrite":"/"}}`)},
		"origin":    {"VirtualService", route(`"corsPolicy":{"allowOrigins":[{"regex":"LONG"}]}`)},
		"proxy":     {"EnvoyFilter", `{"configPatches":[{"applyTo":"CLUSTER","match":{"proxy":{"proxyVersion":"LONG"}},"patch":{"operation":"REMOVE"}}]}`},
	} {
		t.Run(name, func(t *testing.T) {
			k := kindNamed(t, x.kind)
			doc := objectJSON(t, k, nil)
			doc = []byte(strings.Replace(string(doc), `"spec":null`, `"spec":`+strings.ReplaceAll(x.spec, "LONG", long), 1))
			_, err := Review("east", k, doc)
			require.ErrorContains(t, err, "is 100001 characters long")
			require.Less(t, len(err.Error()), 1000, "the answer does not repeat it")
		})
	}
}
