package page_test

import (
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/page"
)

func get(t *testing.T, method, path string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(method, path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	page.New().ServeHTTP(w, r)
	return w
}

// assets follows every reference of the page and of its files.
func assets(t *testing.T) map[string]string {
	t.Helper()
	index := get(t, http.MethodGet, "/debug/").Body.String()
	out := map[string]string{"/debug/": index}
	queue := []string{}
	for _, m := range regexp.MustCompile(`(?:src|href)="(page/[^"]+)"`).FindAllStringSubmatch(index, -1) {
		queue = append(queue, "/debug/"+m[1])
	}
	imports := regexp.MustCompile(`from "\./([^"]+)"`)
	for len(queue) > 0 {
		path := queue[0]
		queue = queue[1:]
		if _, seen := out[path]; seen {
			continue
		}
		r := get(t, http.MethodGet, path)
		require.Equal(t, http.StatusOK, r.Code, path)
		out[path] = r.Body.String()
		for _, m := range imports.FindAllStringSubmatch(out[path], -1) {
			queue = append(queue, "/debug/page/"+m[1])
		}
	}
	return out
}

func TestPageIsWhole(t *testing.T) {
	files := assets(t)
	for _, name := range []string{"app.js", "clusters.js", "dom.js", "explain.js", "map.js", "proxies.js", "services.js", "style.css", "icon.svg"} {
		require.NotEmpty(t, files["/debug/page/"+name], "%s is not reached from the page", name)
	}
}

func TestKinds(t *testing.T) {
	for path, kind := range map[string]string{
		"/debug/":               "text/html; charset=utf-8",
		"/debug/page/app.js":    "text/javascript; charset=utf-8",
		"/debug/page/style.css": "text/css; charset=utf-8",
		"/debug/page/icon.svg":  "image/svg+xml",
	} {
		require.Equal(t, kind, get(t, http.MethodGet, path).Header().Get("Content-Type"), path)
	}
}

func TestHeadersKeepOthersOut(t *testing.T) {
	for path := range assets(t) {
		h := get(t, http.MethodGet, path).Header()
		csp := h.Get("Content-Security-Policy")
		for _, rule := range []string{"default-src 'none'", "script-src 'self'", "connect-src 'self'", "frame-ancestors 'none'", "form-action 'none'", "base-uri 'none'"} {
			require.Contains(t, csp, rule, path)
		}
		require.NotContains(t, csp, "unsafe", path)
		require.NotContains(t, csp, "http", path)
		require.Equal(t, "nosniff", h.Get("X-Content-Type-Options"), path)
		require.Equal(t, "no-referrer", h.Get("Referrer-Policy"), path)
	}
}

// Everything comes from the binary: no file names another host, but for the
// name of the SVG namespace, which is never fetched.
func TestNothingFromElsewhere(t *testing.T) {
	other := regexp.MustCompile(`(?i)(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}`)
	for path, body := range assets(t) {
		body = strings.ReplaceAll(body, "http://www.w3.org/2000/svg", "")
		require.Empty(t, other.FindAllString(body, -1), path)
		require.NotRegexp(t, `@import|url\(\s*['"]?(?:http|//|data:)`, body, path)
	}
}

// Data gets into the page as text nodes and attributes; what would parse it as
// markup or run it does not occur.
func TestDataIsNeverMarkup(t *testing.T) {
	forbidden := regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|\beval\b|new Function|srcdoc|javascript:`)
	inline := regexp.MustCompile(`(?i)<script[^>]*>\s*[^<\s]|\sstyle="|\son[a-z]+="`)
	for path, body := range assets(t) {
		require.Empty(t, forbidden.FindAllString(body, -1), path)
		require.Empty(t, inline.FindAllString(body, -1), "%s has what its own policy blocks", path)
	}
}

func TestUnknownPathIsIstioctls404(t *testing.T) {
	for _, path := range []string{"/debug/nosuch", "/debug/page/", "/debug/page/index.html", "/debug/page/../page.go", "/debug/page/%2e%2e/page.go"} {
		r := get(t, http.MethodGet, path)
		require.Equal(t, http.StatusNotFound, r.Code, path)
		require.Contains(t, r.Body.String(), "404 page not found", path)
	}
}

func TestMethodsAndCaching(t *testing.T) {
	r := get(t, http.MethodPost, "/debug/")
	require.Equal(t, http.StatusMethodNotAllowed, r.Code)
	require.Equal(t, "GET, HEAD", r.Header().Get("Allow"))

	first := get(t, http.MethodGet, "/debug/page/app.js")
	require.Equal(t, "no-cache", first.Header().Get("Cache-Control"))
	again := get(t, http.MethodGet, "/debug/page/app.js", "If-None-Match", first.Header().Get("ETag"))
	require.Equal(t, http.StatusNotModified, again.Code)
	require.Empty(t, again.Body.String())
	other := get(t, http.MethodGet, "/debug/page/map.js", "If-None-Match", first.Header().Get("ETag"))
	require.Equal(t, http.StatusOK, other.Code)

	head := get(t, http.MethodHead, "/debug/")
	require.Equal(t, http.StatusOK, head.Code)
	require.Empty(t, head.Body.String())
	require.NotEqual(t, "0", head.Header().Get("Content-Length"))
}

// People who do not see colours, or the page at all, are told in words.
func TestLabels(t *testing.T) {
	index := assets(t)["/debug/"]
	require.Contains(t, index, `<html lang="en">`)
	require.Contains(t, index, `name="viewport"`)
	for _, m := range regexp.MustCompile(`<input id="([^"]+)"([^>]*)>`).FindAllStringSubmatch(index, -1) {
		labelled := strings.Contains(m[2], "aria-label") || regexp.MustCompile(`<label[^>]*>[^<]*<input id="`+m[1]+`"`).MatchString(index)
		require.True(t, labelled, "input %s has no label", m[1])
	}
}
