package xds

import (
	"cmp"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/isthmus-mesh/isthmus/xds/build"
	"github.com/isthmus-mesh/isthmus/xds/match"
)

// ExplainFunc says what a proxy with a view dials for a host and port, and why,
// and which rule takes a request there.
type ExplainFunc func(in build.Inputs, v build.View, host string, port uint16, r match.Request) any

// DebugHandlers returns this package's views of itself by their names under
// /debug, with the shapes that istiod's have where it has the same. All answer
// a GET with JSON, indented if the query has "pretty". explain may be nil. Who
// may ask is the caller's business.
func (srv *Server) DebugHandlers(explain ExplainFunc) map[string]http.HandlerFunc {
	h := map[string]http.HandlerFunc{
		"syncz": srv.serveSyncz, "adsz": srv.serveAdsz, "connections": srv.serveConnections,
		"edsz": srv.serveEdsz, "ndsz": srv.serveNdsz, "config_dump": srv.serveConfigDump, "cachez": srv.serveCachez, "proxies": srv.serveProxies,
	}
	if explain != nil {
		h["explain"] = func(w http.ResponseWriter, r *http.Request) { srv.serveExplain(w, r, explain) }
	}
	return h
}

func writeJSON(w http.ResponseWriter, r *http.Request, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	enc := json.NewEncoder(w)
	if r.URL.Query().Has("pretty") {
		enc.SetIndent("", "  ")
	}
	_ = enc.Encode(v) // the caller went away
}

func writeProto(w http.ResponseWriter, r *http.Request, m proto.Message) {
	o := protojson.MarshalOptions{}
	if r.URL.Query().Has("pretty") {
		o.Multiline, o.Indent = true, "  "
	}
	b, err := o.Marshal(m)
	if err != nil {
		http.Error(w, "render as JSON: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write(b) // the caller went away
}

// proxyID is which proxy a query is about, "" if it does not say.
func proxyID(q url.Values) string { return cmp.Or(q.Get("proxyID"), q.Get("proxy")) }

// proxyOf finds the proxy that a request names, or answers that it cannot.
func (srv *Server) proxyOf(w http.ResponseWriter, r *http.Request) *stream {
	id := proxyID(r.URL.Query())
	if id == "" {
		// istioctl looks for the first words.
		http.Error(w, "You must provide a proxyID in the query string: ?proxyID=POD.NAMESPACE (/debug/connections lists them)", http.StatusBadRequest)
		return nil
	}
	s := srv.find(id)
	if s == nil {
		http.Error(w, notConnected(id), http.StatusNotFound)
	}
	return s
}

func notConnected(id string) string {
	return "proxy " + strconv.Quote(truncate(id, 256)) + " is not connected to this instance (/debug/connections lists those that are)"
}

func (srv *Server) serveProxies(w http.ResponseWriter, r *http.Request) {
	writeJSON(w, r, srv.Proxies())
}

// synczType is one type in istiod's syncz.
type synczType struct {
	Sent      string    `json:"sent,omitempty"`
	Acked     string    `json:"acked,omitempty"`
	SentTime  time.Time `json:"sentTime,omitzero"`
	LastError string    `json:"lastError,omitempty"`
}

// serveSyncz tells nonces sent and accepted, for istioctl proxy-status.
func (srv *Server) serveSyncz(w http.ResponseWriter, r *http.Request) {
	namespace := r.URL.Query().Get("namespace")
	out := []map[string]any{}
	for _, p := range srv.Proxies() {
		if namespace != "" && p.Namespace != namespace {
			continue
		}
		x := map[string]any{"cluster_id": p.Cluster, "proxy": p.ID, "proxy_type": p.Kind, "proxy_version": p.Version, "istio_version": p.Version}
		types := map[string]synczType{}
		for _, t := range p.Types {
			if t.Status == StatusError {
				t.AckedNonce = "" // what counts is the last answer
			}
			types[t.TypeURL] = synczType{t.SentNonce, t.AckedNonce, t.SentAt, t.Error}
			if prefix := synczPrefix(t.TypeURL); prefix != "" && t.SentNonce != "" {
				x[prefix+"_sent"] = t.SentNonce
				if t.AckedNonce != "" {
					x[prefix+"_acked"] = t.AckedNonce
				}
			}
		}
		x["resources"] = types
		out = append(out, x)
	}
	writeJSON(w, r, out)
}

func synczPrefix(url string) string {
	switch url {
	case TypeCDS:
		return "cluster"
	case TypeEDS:
		return "endpoint"
	case TypeLDS:
		return "listener"
	case TypeRDS:
		return "route"
	case build.TypeExtension:
		return "extensionconfig"
	}
	return ""
}

// connection is a stream in istiod's adsz and connections.
type connection struct {
	ConnectionID string              `json:"connectionId"`
	ConnectedAt  time.Time           `json:"connectedAt"`
	Address      string              `json:"address"`
	Labels       map[string]string   `json:"labels,omitempty"`
	Metadata     map[string]any      `json:"metadata,omitempty"`
	Locality     map[string]string   `json:"locality,omitempty"`
	Watches      map[string][]string `json:"watches,omitempty"`
}

type connections struct {
	TotalClients int          `json:"totalClients"`
	Clients      []connection `json:"clients"`
}

func (srv *Server) serveConnections(w http.ResponseWriter, r *http.Request) {
	out := connections{Clients: []connection{}}
	for _, s := range srv.sorted() {
		out.Clients = append(out.Clients, connection{ConnectionID: s.id, ConnectedAt: s.connected, Address: s.peer})
	}
	out.TotalClients = len(out.Clients)
	writeJSON(w, r, out)
}

func (srv *Server) serveAdsz(w http.ResponseWriter, r *http.Request) {
	out := connections{Clients: []connection{}}
	for _, s := range srv.sorted() {
		p := s.proxy
		c := connection{ConnectionID: s.id, ConnectedAt: s.connected, Address: s.peer, Labels: p.Labels, Watches: s.watches(), Metadata: map[string]any{
			"CLUSTER_ID": p.Cluster, "NETWORK": p.Network, "NAMESPACE": p.Namespace, "SERVICE_ACCOUNT": p.ServiceAccount,
			"WORKLOAD_NAME": p.WorkloadName, "NODE_NAME": p.NodeName, "ISTIO_VERSION": p.IstioVersion, "MESH_ID": p.MeshID}}
		if l := p.Locality; !l.IsZero() {
			c.Locality = map[string]string{"region": l.Region, "zone": l.Zone, "subZone": l.SubZone}
		}
		out.Clients = append(out.Clients, c)
	}
	out.TotalClients = len(out.Clients)
	writeJSON(w, r, out)
}

// watches lists the names subscribed to, by type. A wildcard has none.
func (s *stream) watches() map[string][]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string][]string{}
	for _, k := range s.srv.kinds.list {
		if t := &s.types[k.index]; t.sub.started {
			out[k.typeURL] = append([]string{}, t.sub.sel.names.Names()...)
		}
	}
	return out
}

// serveCachez tells what is alive in the cache.
func (srv *Server) serveCachez(w http.ResponseWriter, r *http.Request) {
	type kindSize struct {
		Groups    int `json:"groups"`
		Views     int `json:"views"` // projected
		Resources int `json:"resources"`
		Bytes     int `json:"bytes"`
		Failed    int `json:"failed"`
	}
	g := srv.graph
	out := map[string]any{}
	g.mu.Lock()
	out["views"], out["streams"] = len(g.views), len(g.streams)
	var entries []*entry
	for i, k := range g.kinds {
		x := &kindSize{Groups: len(g.groups[i]), Views: len(g.slots[i])}
		for _, s := range g.slots[i] {
			for _, e := range s.entries {
				entries = append(entries, e)
				if res := e.current.Load(); res.exists() {
					x.Resources++
					x.Bytes += len(res.Body)
				}
			}
		}
		out[k.short] = x
	}
	g.mu.Unlock()
	failures := map[string]string{}
	for _, e := range entries {
		if msg := e.failure(); msg != "" {
			failures[e.name] = msg
			out[e.slot.kind.short].(*kindSize).Failed++
		}
	}
	if len(failures) > 0 {
		out["failures"] = failures
	}
	writeJSON(w, r, out)
}

func (srv *Server) serveExplain(w http.ResponseWriter, r *http.Request, explain ExplainFunc) {
	s := srv.proxyOf(w, r)
	if s == nil {
		return
	}
	q := r.URL.Query()
	host := q.Get("host")
	port, err := strconv.ParseUint(q.Get("port"), 10, 16)
	if q.Get("port") == "" {
		port, err = 0, nil
	}
	if host == "" || err != nil {
		http.Error(w, "want ?proxy=POD.NAMESPACE&host=HOST&port=PORT", http.StatusBadRequest)
		return
	}
	in, v := srv.snapshot.inputs(), s.currentView()
	host = srv.qualify(in, v, host)
	writeJSON(w, r, explain(in, v, host, uint16(port), requestOf(q, host)))
}

// requestOf reads the request that is asked about: path, method, and headers as
// NAME:VALUE.
func requestOf(q url.Values, host string) match.Request {
	r := match.Request{Host: host, Path: q.Get("path"), Method: strings.ToUpper(q.Get("method")), Headers: map[string]string{}}
	for _, h := range q["header"] {
		name, value, _ := strings.Cut(h, ":")
		r.Headers[strings.ToLower(strings.TrimSpace(name))] = strings.TrimSpace(value)
	}
	return r
}

// qualify completes a short host name as the proxy's own lookups would be.
func (srv *Server) qualify(in build.Inputs, v build.View, host string) string {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	domain := v.Domain
	if domain == "" {
		domain = "cluster.local"
	}
	candidates := []string{host, host + "." + v.Namespace + ".svc." + domain, host + ".svc." + domain, host + "." + domain}
	i := slices.IndexFunc(candidates, func(h string) bool { return known(in, h) })
	if i < 0 {
		return host
	}
	return candidates[i]
}
