package xds

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/anypb"
)

// Bounds of one question for an HTTP endpoint.
const (
	maxDebugPaths  = 16
	maxDebugPath   = 4096
	maxDebugAnswer = 64 << 20
	debugTimeout   = time.Minute
)

// endpoints answers with the bytes of HTTP endpoints, one resource for each path.
func (d *istioDebug) endpoints(ctx context.Context, who asker, paths []string) []NamedAny {
	if len(paths) == 0 {
		paths = []string{""}
	}
	var out []NamedAny
	for _, p := range paths[:min(len(paths), maxDebugPaths)] {
		out = append(out, NamedAny{Name: p, Any: &anypb.Any{TypeUrl: TypeDebug, Value: d.endpoint(ctx, who, p)}})
	}
	return out
}

// endpoint asks the debug handler for one path. Whatever is wrong with the
// question is said in the answer, because istioctl prints that.
func (d *istioDebug) endpoint(ctx context.Context, who asker, name string) []byte {
	u, err := url.Parse("/debug/" + strings.TrimPrefix(name, "/"))
	if err != nil || len(name) > maxDebugPath {
		return []byte("400 not a path with a query\n")
	}
	if u.Path = cleanPath(u.Path); d.handler == nil || !strings.HasPrefix(u.Path, "/debug/") {
		return []byte("404 page not found\n")
	}
	if refusal := d.restrict(who, u); refusal != "" {
		return []byte(refusal)
	}
	ctx, cancel := context.WithTimeout(ctx, debugTimeout)
	defer cancel()
	// The caller was let in by whoever asked: to the handler the question is local.
	r := (&http.Request{Method: http.MethodGet, URL: u, Host: "localhost", RemoteAddr: "127.0.0.1:0", RequestURI: u.RequestURI(),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{}, Body: http.NoBody}).WithContext(ctx)
	c := &capture{header: http.Header{}}
	d.handler.ServeHTTP(c, r)
	if c.full {
		return fmt.Appendf(nil, "the answer has more than %d MB: ask the HTTP port for it\n", maxDebugAnswer>>20)
	}
	return c.body.Bytes()
}

// cleanPath takes dots out of a path, so that it cannot lead elsewhere.
func cleanPath(p string) string {
	clean := path.Clean(p)
	if strings.HasSuffix(p, "/") && clean != "/" {
		clean += "/"
	}
	return clean
}

// restrict limits a caller who may not see everything to what concerns the
// proxies of its namespace. It returns why a question is refused, "" if it is not.
func (d *istioDebug) restrict(who asker, u *url.URL) string {
	if who.all {
		return ""
	}
	q := u.Query()
	switch strings.TrimPrefix(u.Path, "/debug/") {
	case "syncz":
		q.Set("namespace", who.namespace)
		u.RawQuery = q.Encode()
		return ""
	case "config_dump", "edsz", "ndsz":
		id := proxyID(q)
		for _, s := range d.srv.all() {
			if (s.proxy.ID == id || s.id == id) && !who.sees(s.proxy.Namespace) {
				return notConnected(id) // the caller does not learn that it is
			}
		}
		return ""
	}
	return "403 callers outside the system namespaces may ask for syncz, and for config_dump, edsz and ndsz of proxies of their own namespace\n"
}

// capture is a response in memory.
type capture struct {
	header http.Header
	body   bytes.Buffer
	full   bool
}

func (c *capture) Header() http.Header { return c.header }
func (c *capture) WriteHeader(int)     {}

func (c *capture) Write(b []byte) (int, error) {
	if c.full = c.full || c.body.Len()+len(b) > maxDebugAnswer; c.full {
		return 0, errors.New("answer is too large")
	}
	return c.body.Write(b)
}
