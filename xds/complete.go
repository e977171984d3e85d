package xds

import (
	"github.com/isthmus-mesh/isthmus/mesh"
)

// Completer adds to shared resources what only single proxies may have, above all
// credentials. What is shared, cached and shown by /debug stays without.
type Completer interface {
	// Complete returns what the proxy is sent of a resource: the message as it is,
	// or with something added, and a stamp that tells one addition from another,
	// "" for none. caller is who the proxy proved to be, nil if it proved nothing
	// (see [Credential]). It is called while a response is made, and must not wait:
	// known is false if it is not decided yet what the proxy may have. Nothing is
	// said of the resource then, until [Server.Completed] is told.
	Complete(p *mesh.Proxy, caller any, name string, message []byte) (out []byte, stamp string, known bool)
}

// Completed has a resource sent anew to the subscribed streams that match, with
// what a [Completer] has come to add to it. It returns at once.
func (srv *Server) Completed(typeURL, name string, match func(p *mesh.Proxy, caller any) bool) {
	k := srv.kinds.byURL[typeURL]
	if k == nil {
		return
	}
	now := srv.cfg.Clock()
	var touched []*stream
	for _, s := range srv.all() {
		s.mu.Lock()
		gr := s.types[k.index].group
		s.mu.Unlock()
		if gr == nil || gr.find(name) == nil || !match(s.proxy, s.credential.Caller) {
			continue
		}
		s.mark(k, name, now)
		if !s.queued.Swap(true) {
			touched = append(touched, s)
		}
	}
	srv.queue.push(touched)
}

// resource is what the stream's proxy is sent of an entry; nil if that is not
// known.
func (s *stream) resource(j *job, e *entry) *Resource {
	r := e.get(s.srv.graph.builder)
	c := j.kind.completer
	if c == nil || !r.exists() {
		return r
	}
	message, stamp, known := c.Complete(s.proxy, s.credential.Caller, r.Name, r.Message())
	switch {
	case !known:
		j.withheld = true
		return nil
	case stamp == "":
		return r
	}
	return completed(j.kind.typeURL, r, message, stamp)
}
