package xds

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/xds/build"
)

// SyncStatus says how far a proxy has taken what it was sent of one type.
type SyncStatus string

// The states of one type of one proxy, as istioctl calls them.
const (
	// StatusSynced: the proxy accepted the newest.
	StatusSynced SyncStatus = "SYNCED"
	// StatusStale: something newer is on its way or waits for the proxy.
	StatusStale SyncStatus = "STALE"
	// StatusError: the proxy rejected the newest.
	StatusError SyncStatus = "ERROR"
	// StatusNotSent: the proxy asked, and there is nothing to send.
	StatusNotSent SyncStatus = "NOT_SENT"
)

// ProxyStatus is a connected proxy and how far it has taken what it was sent.
type ProxyStatus struct {
	// ID is POD.NAMESPACE, Connection tells several streams of one proxy apart.
	ID          string         `json:"id"`
	Connection  string         `json:"connection"`
	Kind        mesh.ProxyKind `json:"kind"`
	Dialect     string         `json:"dialect"`
	Version     string         `json:"version,omitempty"`
	Cluster     mesh.ClusterID `json:"cluster"`
	Network     mesh.NetworkID `json:"network,omitempty"`
	Namespace   string         `json:"namespace"`
	Address     string         `json:"address,omitempty"` // of the other end of the connection
	Protocol    string         `json:"protocol"`          // "delta" or "sotw"
	ConnectedAt time.Time      `json:"connectedAt"`
	Types       []TypeStatus   `json:"types"`
	// View is all that the proxy's configuration depends on.
	View build.View `json:"-"`
}

// TypeStatus is one type that a proxy has subscribed to.
type TypeStatus struct {
	Name    string     `json:"name"` // "CDS"
	TypeURL string     `json:"typeURL"`
	Status  SyncStatus `json:"status"`
	// Error is why the proxy rejected what it was sent last, Rejected the resources.
	Error    string   `json:"error,omitempty"`
	Rejected []string `json:"rejected,omitempty"`
	// Wildcard: everything there is; Subscribed is the number of names besides,
	// Resources that of the resources they come to.
	Wildcard   bool `json:"wildcard"`
	Subscribed int  `json:"subscribed"`
	Resources  int  `json:"resources"`
	// Pending is the number of names that changed and were not sent yet.
	Pending      int       `json:"pending,omitempty"`
	SentNonce    string    `json:"sentNonce,omitempty"`
	SentVersion  string    `json:"sentVersion,omitempty"`
	SentAt       time.Time `json:"sentAt,omitzero"`
	AckedNonce   string    `json:"ackedNonce,omitempty"`
	AckedVersion string    `json:"ackedVersion,omitempty"`
	AckedAt      time.Time `json:"ackedAt,omitzero"`
}

// Proxies returns every connected proxy, ordered by ID.
func (srv *Server) Proxies() []ProxyStatus {
	streams := srv.sorted()
	out := make([]ProxyStatus, len(streams))
	for i, s := range streams {
		out[i] = s.status()
	}
	return out
}

// sorted returns the streams ordered by proxy and connection.
func (srv *Server) sorted() []*stream {
	list := srv.all()
	slices.SortFunc(list, func(a, b *stream) int {
		return cmp.Or(cmp.Compare(a.proxy.ID, b.proxy.ID), a.connected.Compare(b.connected), cmp.Compare(a.id, b.id))
	})
	return list
}

// find returns the newest stream of a proxy, by POD.NAMESPACE or connection.
func (srv *Server) find(id string) *stream {
	var found *stream
	for _, s := range srv.sorted() {
		if s.proxy.ID == id || s.id == id {
			found = s
		}
	}
	return found
}

// currentView returns the view that the stream has now: the zero value while it
// is on its way into the graph.
func (s *stream) currentView() build.View {
	s.srv.graph.mu.Lock()
	defer s.srv.graph.mu.Unlock()
	if s.view == nil {
		return build.View{}
	}
	return s.view.view
}

func (s *stream) protocol() string {
	if s.delta {
		return "delta"
	}
	return "sotw"
}

func (s *stream) status() ProxyStatus {
	p := ProxyStatus{ID: s.proxy.ID, Connection: s.id, Kind: s.proxy.Kind, Dialect: s.proxy.Dialect.String(), Version: s.proxy.IstioVersion,
		Cluster: s.proxy.Cluster, Namespace: s.proxy.Namespace, Address: s.peer, Protocol: s.protocol(), ConnectedAt: s.connected,
		View: s.currentView(), Types: []TypeStatus{}}
	p.Network = p.View.Network
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.srv.kinds.list {
		if t := &s.types[k.index]; t.sub.started {
			p.Types = append(p.Types, t.status(k))
		}
	}
	return p
}

// status is called with the stream's mu held.
func (t *typeState) status(k *kind) TypeStatus {
	x := TypeStatus{Name: strings.ToUpper(k.short), TypeURL: k.typeURL, Wildcard: t.sub.sel.all, Subscribed: t.sub.sel.names.Len(),
		Pending: t.dirty.len(), Error: truncate(t.sub.rejected, maxLoggedMessage), SentAt: t.sentAt, AckedAt: t.ackedAt}
	if t.group != nil {
		for _, f := range *t.group.facets.Load() {
			x.Resources += len(f.entries)
		}
	}
	for n := range t.rejected {
		x.Rejected = append(x.Rejected, n)
	}
	slices.Sort(x.Rejected)
	if t.sub.sent != 0 {
		x.SentNonce, x.SentVersion = hex16(t.sub.sent), hex16(t.sentVersion)
	}
	if t.sub.acked != 0 {
		x.AckedNonce, x.AckedVersion = hex16(t.sub.acked), hex16(t.ackedVersion)
	}
	switch {
	case t.sub.rejected != "":
		x.Status = StatusError
	case t.sub.waiting || !t.dirty.empty():
		x.Status = StatusStale
	case t.sub.sent == 0 && x.Resources == 0:
		x.Status = StatusNotSent
	default: // also a proxy that reconnected and had everything already
		x.Status = StatusSynced
	}
	return x
}
