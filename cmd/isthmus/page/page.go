// Package page is the page that people look at: an overview of the mesh in a
// browser. It owns HTML, styles and scripts, embedded in the binary, and serves
// them with headers that keep anything else out. What the page shows it reads
// itself from /debug/overview and /debug/explain; it takes part in no decision
// and changes nothing.
package page

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"mime"
	"net/http"
	"path"
	"strconv"
)

//go:embed static
var static embed.FS

// policy lets the page load its own files and ask its own server, nothing else:
// no inline script or style, no other host, no frame around it, no form target.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// Page serves the page at /debug/ and its files below /debug/page/.
type Page struct{ files map[string]file }

type file struct {
	body      []byte
	kind, tag string
}

// New returns the page.
func New() *Page {
	p := &Page{files: map[string]file{}}
	list, _ := static.ReadDir("static") // reading what is embedded does not fail
	for _, d := range list {
		body, _ := static.ReadFile("static/" + d.Name())
		sum := sha256.Sum256(body)
		f := file{body: body, kind: kindOf(d.Name()), tag: strconv.Quote(hex.EncodeToString(sum[:8]))}
		if d.Name() == "index.html" {
			p.files["/debug/"] = f
		} else {
			p.files["/debug/page/"+d.Name()] = f
		}
	}
	return p
}

// kindOf does not ask the machine's tables: they differ.
func kindOf(name string) string {
	switch path.Ext(name) {
	case ".html":
		return "text/html; charset=utf-8"
	case ".css":
		return "text/css; charset=utf-8"
	case ".js":
		return "text/javascript; charset=utf-8"
	case ".svg":
		return "image/svg+xml"
	}
	return mime.TypeByExtension(path.Ext(name))
}

// ServeHTTP answers GET and HEAD. A path that is not the page's gets the plain
// 404 text by which istioctl recognises that a debug view does not exist.
func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f, ok := p.files[r.URL.Path]
	if !ok {
		http.NotFound(w, r)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "the page can only be read", http.StatusMethodNotAllowed)
		return
	}
	h := w.Header()
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cache-Control", "no-cache")
	h.Set("ETag", f.tag)
	if r.Header.Get("If-None-Match") == f.tag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h.Set("Content-Type", f.kind)
	h.Set("Content-Length", strconv.Itoa(len(f.body)))
	if r.Method == http.MethodGet {
		_, _ = w.Write(f.body) // the browser went away: nobody to tell
	}
}
