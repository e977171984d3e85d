package recorder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/anypb"
)

// Options change how a recorder asks.
type Options struct {
	// Delta asks by incremental xDS.
	Delta bool
	// Known are resource versions from an earlier stream, by type and name
	// (delta only): what a reconnecting proxy sends.
	Known map[string]map[string]string
	// Resume is an earlier stream, closed or not, that this one goes on from, as an
	// Envoy does whose connection was lost: with what it had, asking for all of it
	// at once and, in delta, naming the versions. Known is not used then.
	Resume *Proxy
	// Check decides whether a resource is taken; nil takes everything. An error
	// makes the recorder NACK the response with its text.
	Check func(typeURL string, resource *anypb.Any) error
	// Dial are further options, such as transport credentials; plaintext if none.
	Dial []grpc.DialOption
	// Header is sent with the stream.
	Header map[string]string
}

// Push is one response as it arrived.
type Push struct {
	TypeURL string
	// Names of the resources in the response, sorted.
	Names   []string
	Removed []string
	At      time.Time
	Nonce   string
	// Nacked is the reason if the recorder refused the response.
	Nacked string
}

// Proxy is one recording stream. It is safe for concurrent use.
type Proxy struct {
	opt    Options
	conn   *grpc.ClientConn
	cancel context.CancelFunc
	done   chan struct{}

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced whenever the state changes
	state    map[string]map[string]*anypb.Any
	versions map[string]map[string]string
	asked    map[string][]string
	answered map[string]map[string]bool
	pushes   []Push
	err      error
}

// Dial connects and starts to ask. Close ends the stream and waits for it.
func Dial(ctx context.Context, addr string, n Node, opt Options) (*Proxy, error) {
	node, err := n.Proto()
	if err != nil {
		return nil, fmt.Errorf("describe proxy %s: %w", n.Name, err)
	}
	if len(opt.Dial) == 0 {
		opt.Dial = []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}
	}
	conn, err := grpc.NewClient(addr, opt.Dial...)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	ctx, cancel := context.WithCancel(metadata.NewOutgoingContext(ctx, metadata.New(opt.Header)))
	p := &Proxy{opt: opt, conn: conn, cancel: cancel, done: make(chan struct{}), changed: make(chan struct{}),
		state: map[string]map[string]*anypb.Any{}, versions: map[string]map[string]string{},
		asked: map[string][]string{}, answered: map[string]map[string]bool{}}
	if opt.Resume != nil {
		p.resume(opt.Resume)
	}
	client := discoveryv3.NewAggregatedDiscoveryServiceClient(conn)
	wait := grpc.WaitForReady(true)
	var run func() error
	if opt.Delta {
		s, err := client.DeltaAggregatedResources(ctx, wait)
		if err != nil {
			return nil, p.abandon(err)
		}
		run = (&deltaStream{p: p, stream: s, node: node}).run
	} else {
		s, err := client.StreamAggregatedResources(ctx, wait)
		if err != nil {
			return nil, p.abandon(err)
		}
		run = (&sotwStream{p: p, stream: s, node: node, version: map[string]string{}}).run
	}
	go func() {
		defer close(p.done)
		err := run()
		p.mu.Lock()
		defer p.mu.Unlock()
		if errors.Is(err, io.EOF) {
			err = errors.New("stream ended by the server")
		}
		p.err = err
		p.signal()
	}()
	return p, nil
}

// resume takes over the state of an earlier stream.
func (p *Proxy) resume(from *Proxy) {
	from.mu.Lock()
	defer from.mu.Unlock()
	for t, state := range from.state {
		p.state[t] = maps.Clone(state)
	}
	for t, answered := range from.answered {
		p.answered[t] = maps.Clone(answered)
	}
	p.opt.Known = map[string]map[string]string{}
	for t, v := range from.versions {
		p.versions[t], p.opt.Known[t] = maps.Clone(v), maps.Clone(v)
	}
	maps.Copy(p.asked, from.asked)
}

func (p *Proxy) abandon(err error) error {
	p.cancel()
	_ = p.conn.Close()
	return fmt.Errorf("open stream: %w", err)
}

// Close ends the stream.
func (p *Proxy) Close() {
	p.cancel()
	<-p.done
	_ = p.conn.Close()
}

// Done is closed when the stream has ended.
func (p *Proxy) Done() <-chan struct{} { return p.done }

// Err is why the stream ended, nil while it runs.
func (p *Proxy) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// Pushes returns what arrived so far, in order. Use the length as a mark for
// [Proxy.Since].
func (p *Proxy) Pushes() []Push {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.pushes)
}

// Since returns the pushes after the first n.
func (p *Proxy) Since(n int) []Push { return p.Pushes()[n:] }

// Resources returns the current state of a type by name. The map is a copy.
func (p *Proxy) Resources(typeURL string) map[string]*anypb.Any {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.state[typeURL])
}

// Versions returns the current version of every resource (delta only), for
// [Options.Known] of the next stream.
func (p *Proxy) Versions() map[string]map[string]string {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := map[string]map[string]string{}
	for t, v := range p.versions {
		out[t] = maps.Clone(v)
	}
	return out
}

// Wait returns when ok is true of the proxy's state, or with an error when the
// context or the stream ends first. what names the condition in the error.
func (p *Proxy) Wait(ctx context.Context, what string, ok func(*Proxy) bool) error {
	for {
		p.mu.Lock()
		changed := p.changed
		p.mu.Unlock()
		if ok(p) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, ctx.Err())
		case <-p.done:
			if ok(p) {
				return nil
			}
			return fmt.Errorf("wait for %s: %w", what, p.Err())
		case <-changed:
		}
	}
}

// Ready waits until everything that was asked for has been answered: upstreams
// and listeners had, every assignment and every route known or refused.
func (p *Proxy) Ready(ctx context.Context) error {
	return p.Wait(ctx, "initial configuration", func(p *Proxy) bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, t := range []string{Upstreams, Listeners} {
			if p.answered[t] == nil {
				return false
			}
		}
		for _, t := range []string{Assignments, Routes} {
			for _, n := range p.asked[t] {
				if !p.answered[t][n] {
					return false
				}
			}
		}
		return true
	})
}

// signal wakes waiters; mu is held.
func (p *Proxy) signal() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// check runs the options' check over resources.
func (p *Proxy) check(typeURL string, list []*anypb.Any) error {
	if p.opt.Check == nil {
		return nil
	}
	for _, a := range list {
		if err := p.opt.Check(typeURL, a); err != nil {
			return err
		}
	}
	return nil
}

func nack(err error) *status.Status {
	if err == nil {
		return nil
	}
	return &status.Status{Code: int32(codes.InvalidArgument), Message: err.Error()}
}
