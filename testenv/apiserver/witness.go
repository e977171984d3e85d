package apiserver

import (
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"

	"k8s.io/client-go/rest"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Witness stands between a client and the API server and notes what is refused
// for want of rights. The API server's own counters do not tell: requests that
// its authorizer turns away are not among those that it counts by resource.
type Witness struct {
	cluster   *Cluster
	server    *httptest.Server
	transport http.RoundTripper

	mu      sync.Mutex
	refused map[string]int
}

// Witness starts one; Close ends it.
func (c *Cluster) Witness() (*Witness, error) {
	to, err := url.Parse(c.url)
	if err != nil {
		return nil, fmt.Errorf("start witness of %s: %w", c.cfg.Name, err)
	}
	anonymous := rest.AnonymousClientConfig(c.rest)
	w := &Witness{cluster: c, refused: map[string]int{}}
	if w.transport, err = rest.TransportFor(anonymous); err != nil {
		return nil, fmt.Errorf("start witness of %s: %w", c.cfg.Name, err)
	}
	w.server = httptest.NewUnstartedServer(&httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(to) },
		Transport:     w.transport,
		FlushInterval: -1, // watches
		ModifyResponse: func(r *http.Response) error {
			if r.StatusCode == http.StatusForbidden {
				w.note(r.Request)
			}
			return nil
		},
		ErrorLog: log.New(io.Discard, "", 0),
	})
	w.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	w.server.StartTLS()
	return w, nil
}

// Kubeconfig leads to the API server past the witness, as whoever has the token.
func (w *Witness) Kubeconfig(user, token string) ([]byte, error) {
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.server.Certificate().Raw})
	return writeKubeconfig(w.cluster.cfg.Name, user,
		&clientcmdapi.Cluster{Server: w.server.URL, CertificateAuthorityData: ca}, &clientcmdapi.AuthInfo{Token: token})
}

// Refused are the requests that were refused, each as "VERB resource" or "VERB
// resource/subresource", with their number.
func (w *Witness) Refused() map[string]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.refused)
}

// Close breaks all connections.
func (w *Witness) Close() {
	w.server.CloseClientConnections()
	w.server.Close()
	if t, ok := w.transport.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
}

func (w *Witness) note(r *http.Request) {
	what := r.Method + " " + resourceOf(r.URL.Path)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refused[what]++
}

// resourceOf is the resource in a path of the API: api/VERSION or
// apis/GROUP/VERSION, then namespaces/NAME if it is in one, then the resource,
// a name, a subresource. The path itself if it is none of these.
func resourceOf(path string) string {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	switch {
	case parts[0] == "api" && len(parts) > 2:
		parts = parts[2:]
	case parts[0] == "apis" && len(parts) > 3:
		parts = parts[3:]
	default:
		return path
	}
	if parts[0] == "namespaces" && len(parts) > 2 && !slices.Contains([]string{"status", "finalize"}, parts[2]) {
		parts = parts[2:]
	}
	if len(parts) > 2 {
		return parts[0] + "/" + parts[2]
	}
	return parts[0]
}
