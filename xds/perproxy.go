package xds

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/cespare/xxhash/v2"
	"go.uber.org/zap"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// PerProxy answers requests for a type whose resources depend on the single
// proxy and are not shared: secrets, debug output. names is what the proxy is
// subscribed to, empty for everything. A resource without a name takes no part
// in deltas but is sent as it is. An error is logged and nothing is sent, until
// the proxy or [Server.Refresh] asks again; [ErrWithheld] is not even logged.
//
// Respond may take its time: it runs beside the stream, once at a time for each
// stream and type. Who asks is in the context, see [CallerFrom]; the context
// ends with the stream.
type PerProxy interface {
	Respond(ctx context.Context, p *mesh.Proxy, typeURL string, names []string) ([]NamedAny, error)
}

// ErrWithheld is what [PerProxy.Respond] returns to leave a request unanswered.
var ErrWithheld = errors.New("there is nothing to tell this proxy now")

// maxOthers bounds the types of a stream that are not shared: a proxy chooses
// their names.
const maxOthers = 64

// NamedAny is a resource with its name.
type NamedAny struct {
	Name string
	Any  *anypb.Any
}

// others are the types of a stream that are not shared.
type others struct {
	mu     sync.Mutex // guards what follows
	types  map[string]*other
	closed bool
	ctx    context.Context // nil until something is answered
	cancel context.CancelFunc

	answering sync.WaitGroup
}

// other is where a stream stands with one such type; guarded by others.mu.
type other struct {
	sub subscription
	// owed: somebody has to look what there is to tell. asked: the proxy asked,
	// so that an answer is due even if there is nothing new.
	owed, asked bool
	running     bool // a goroutine answers
	// sent is the content sent last, as hashes by name.
	sent map[string]uint64
}

// close ends what is being answered and waits for it.
func (o *others) close() {
	o.mu.Lock()
	o.closed = true
	if o.cancel != nil {
		o.cancel()
	}
	o.mu.Unlock()
	o.answering.Wait()
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

// Refresh asks a [PerProxy] type's answers anew for the subscribed streams that
// match, and sends those that have changed. It returns at once.
func (srv *Server) Refresh(typeURL string, match func(p *mesh.Proxy, names []string) bool) {
	for _, s := range srv.all() {
		s.others.mu.Lock()
		if o := s.others.types[typeURL]; o != nil && !o.sub.sel.empty() && match(s.proxy, o.sub.sel.names.Names()) {
			s.owe(typeURL, o)
		}
		s.others.mu.Unlock()
	}
}

// Subscribed calls visit for every stream that is subscribed to a [PerProxy]
// type, with what it is subscribed to. visit must not call the server.
func (srv *Server) Subscribed(typeURL string, visit func(p *mesh.Proxy, names []string)) {
	for _, s := range srv.all() {
		s.others.mu.Lock()
		if o := s.others.types[typeURL]; o != nil && !o.sub.sel.empty() {
			visit(s.proxy, o.sub.sel.names.Names())
		}
		s.others.mu.Unlock()
	}
}

// receiveOther takes in a request for a type that is not shared. A type that
// nobody serves is not an error: proxies ask for more than they need.
func (s *stream) receiveOther(r *request) error {
	if report := s.srv.cfg.Reports[r.typeURL]; report != nil {
		report(s.proxy, Report{Failed: r.failed, Message: truncate(r.message, maxLoggedMessage)})
		return nil
	}
	if s.srv.perProxyType(r.typeURL) == nil {
		s.srv.log.Debug("type is not served", zap.String("proxy", s.id), zap.String("type", truncate(r.typeURL, 256)))
		return nil
	}
	s.others.mu.Lock()
	defer s.others.mu.Unlock()
	o := s.others.types[r.typeURL]
	if o == nil {
		if len(s.others.types) >= maxOthers {
			s.srv.log.Debug("proxy asks for too many types", zap.String("proxy", s.id), zap.String("type", truncate(r.typeURL, 256)))
			return nil
		}
		if s.others.types == nil {
			s.others.types = map[string]*other{}
		}
		o = &other{sub: subscription{delta: s.delta, legacy: true}, sent: map[string]uint64{}}
		s.others.types[r.typeURL] = o
	}
	out := o.sub.handle(r)
	if out.verdict == verdictNACK {
		s.srv.log.Warn("proxy rejected a response", zap.String("proxy", s.id), zap.String("type", r.typeURL),
			zap.String("error", truncate(r.message, maxLoggedMessage)))
	}
	if !out.first && !out.restart && !out.changed() && len(out.again) == 0 || out.to.empty() {
		return nil
	}
	o.ask(out)
	s.owe(r.typeURL, o)
	return nil
}

// ask notes what a request entitles the proxy to.
func (o *other) ask(out outcome) {
	if out.restart {
		clear(o.sent)
	}
	for _, n := range out.again {
		delete(o.sent, n)
	}
	for n := range o.sent { // what is given up and asked for again is sent again
		if n != "" && !out.to.all && !out.to.names.Has(n) {
			delete(o.sent, n)
		}
	}
	delete(o.sent, "") // nameless resources answer every question
	// A subscription that only became smaller is owed nothing.
	o.asked = o.asked || out.first || out.restart || len(out.again) > 0 || out.to.all != out.from.all ||
		slices.ContainsFunc(out.to.names.Names(), func(n string) bool { return !out.from.names.Has(n) })
}

// owe sees to it that somebody looks. others.mu is held.
func (s *stream) owe(url string, o *other) {
	o.owed = true
	if o.running || s.others.closed {
		return
	}
	if s.others.ctx == nil {
		s.others.ctx, s.others.cancel = context.WithCancel(context.WithValue(s.tr.Context(), callerKey{}, s.credential.Caller)) //nolint:fatcontext // made once per stream
	}
	o.running = true
	s.others.answering.Go(func() { s.answer(s.others.ctx, url, o) })
}

// answer answers as long as something is owed.
func (s *stream) answer(ctx context.Context, url string, o *other) {
	for {
		s.others.mu.Lock()
		if !o.owed || s.others.closed {
			o.running = false
			s.others.mu.Unlock()
			return
		}
		o.owed = false
		names := o.sub.sel.names.Names()
		s.others.mu.Unlock()
		list, err := s.respond(ctx, url, names)
		switch {
		case errors.Is(err, ErrWithheld):
		case endsStream(err):
			s.abort(status.Code(err), status.Convert(err).Message())
		case err != nil && ctx.Err() == nil:
			s.srv.log.Warn("request not answered", zap.String("proxy", s.id), zap.String("type", url), zap.Error(err))
		case err == nil:
			s.tell(url, o, list)
		}
	}
}

func (s *stream) respond(ctx context.Context, url string, names []string) (list []NamedAny, err error) {
	defer func() {
		if p := recover(); p != nil {
			s.srv.panicked("answer a request for "+url, p)
			list, err = nil, fmt.Errorf("answer a request for %s: internal error", url)
		}
	}()
	return s.srv.perProxyType(url).Respond(ctx, s.proxy, url, names)
}

// tell sends what the proxy does not have: in delta what differs, in the other
// protocol everything as soon as something differs.
func (s *stream) tell(url string, o *other, list []NamedAny) {
	hashes := map[string]uint64{}
	for _, x := range list {
		hashes[x.Name] += xxhash.Sum64(x.Any.Value) + 1 // several may have no name
	}
	s.others.mu.Lock()
	changed := slices.DeleteFunc(slices.Clone(list), func(x NamedAny) bool { return o.sent[x.Name] == hashes[x.Name] })
	if !o.asked && len(changed) == 0 {
		s.others.mu.Unlock()
		return
	}
	if s.delta {
		list = changed
	}
	for n, h := range hashes {
		o.sent[n] = h
	}
	o.asked = false
	nonce := newNonce()
	o.sub.respond(nonce)
	s.others.mu.Unlock()
	if err := s.sendOther(url, list, nonce); err != nil {
		s.srv.log.Debug("response not sent", zap.String("proxy", s.id), zap.String("type", url), zap.Error(err))
	}
}

func (s *stream) sendOther(typeURL string, list []NamedAny, nonce uint64) error {
	data := mem.BufferSlice{responseHead(typeURL, s.srv.identifier(typeURL), s.delta)}
	var version uint64
	for _, x := range list {
		version += xxhash.Sum64(x.Any.Value)
		data = append(data, mem.SliceBuffer(s.record(x)))
	}
	data = append(data, mem.SliceBuffer(appendTail(nil, nil, version, nonce)))
	s.sending.Lock()
	defer s.sending.Unlock()
	s.sendingSince.Store(s.srv.cfg.Clock().UnixNano())
	defer s.sendingSince.Store(0)
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
