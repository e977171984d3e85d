package xds

import (
	"context"
	"strings"

	"github.com/cespare/xxhash/v2"
	"go.uber.org/zap"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// PerProxy answers requests for a type whose resources depend on the single
// proxy and are not shared: secrets, debug output. names is what the proxy is
// subscribed to, empty for everything. A resource without a name takes no part
// in deltas but is sent as it is. An error is logged and nothing is sent.
type PerProxy interface {
	Respond(ctx context.Context, p *mesh.Proxy, typeURL string, names []string) ([]NamedAny, error)
}

// NamedAny is a resource with its name.
type NamedAny struct {
	Name string
	Any  *anypb.Any
}

// perProxyType finds who serves a type: by its URL, or by a prefix that ends in "/".
func (srv *Server) perProxyType(url string) PerProxy {
	if p := srv.cfg.PerProxy[url]; p != nil {
		return p
	}
	for prefix, p := range srv.cfg.PerProxy {
		if strings.HasSuffix(prefix, "/") && strings.HasPrefix(url, prefix) {
			return p
		}
	}
	return nil
}

// receiveOther answers a request for a type that is not shared. A type that
// nobody serves is not an error: proxies ask for more than they need.
func (s *stream) receiveOther(r *request) error {
	p := s.srv.perProxyType(r.typeURL)
	if p == nil {
		s.srv.log.Debug("type is not served", zap.String("proxy", s.id), zap.String("type", truncate(r.typeURL, 256)))
		return nil
	}
	if s.others == nil {
		s.others = map[string]*subscription{}
	}
	sub := s.others[r.typeURL]
	if sub == nil {
		sub = &subscription{delta: s.delta, legacy: true}
		s.others[r.typeURL] = sub
	}
	out := sub.handle(r)
	if out.verdict == verdictNACK {
		s.srv.log.Warn("proxy rejected a response", zap.String("proxy", s.id), zap.String("type", r.typeURL),
			zap.String("error", truncate(r.message, maxLoggedMessage)))
	}
	if !out.first && !out.restart && !out.changed() && len(out.again) == 0 || out.to.empty() {
		return nil
	}
	list, err := p.Respond(s.tr.Context(), s.proxy, r.typeURL, out.to.names.Names())
	if err != nil {
		s.srv.log.Warn("request not answered", zap.String("proxy", s.id), zap.String("type", r.typeURL), zap.Error(err))
		return nil
	}
	return s.sendOther(r.typeURL, sub, list)
}

func (s *stream) sendOther(typeURL string, sub *subscription, list []NamedAny) error {
	data := mem.BufferSlice{responseHead(typeURL, s.srv.cfg.Identifier, s.delta)}
	var version uint64
	for _, x := range list {
		version += xxhash.Sum64(x.Any.Value)
		data = append(data, mem.SliceBuffer(s.record(x)))
	}
	nonce := newNonce()
	sub.respond(nonce)
	data = append(data, mem.SliceBuffer(appendTail(nil, nil, version, nonce)))
	s.sending.Lock()
	defer s.sending.Unlock()
	s.resp = response{data: data, size: data.Len()}
	err := s.tr.Send(&s.resp)
	s.resp = response{}
	return err
}

// record encodes a resource, whose type may differ from the one asked for.
func (s *stream) record(x NamedAny) []byte {
	r := newResource(x.Any.TypeUrl, x.Name, 0, x.Any.Value)
	if s.delta {
		return r.Body
	}
	return r.Body[r.sotw:]
}
