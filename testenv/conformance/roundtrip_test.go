package conformance

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"sigs.k8s.io/gateway-api/conformance/utils/roundtripper"

	"github.com/isthmus-mesh/isthmus/testenv/simulate"
)

var (
	errNoGateway  = errors.New("no gateway has the address")
	errPlain      = errors.New("one side speaks TLS and the other does not")
	errOtherHTTP  = errors.New("the backend speaks HTTP/2 and the router does not")
	errTurnedAway = errors.New("the connection is turned away")
)

// h2cPort is the port on which the suite's backends speak nothing but HTTP/2.
const h2cPort = ":3001"

// delay is how long the echo server is to take, as the request says.
func delay(r *simulate.Request) time.Duration {
	_, query, _ := strings.Cut(r.Path, "?")
	values, err := url.ParseQuery(query)
	if err != nil {
		return 0
	}
	d, err := time.ParseDuration(values.Get("delay"))
	if err != nil {
		return 0
	}
	return d
}

// requestTimeout bounds a request.
const requestTimeout = 10 * time.Second

// roundTripper answers the suite's requests by what a router was given.
type roundTripper struct{ w *world }

// CaptureRoundTrip implements [roundtripper.RoundTripper].
func (r roundTripper) CaptureRoundTrip(q roundtripper.Request) (*roundtripper.CapturedRequest, *roundtripper.CapturedResponse, error) {
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	return r.ask(ctx, q)
}

// ask makes a request.
func (r roundTripper) ask(ctx context.Context, q roundtripper.Request) (*roundtripper.CapturedRequest, *roundtripper.CapturedResponse, error) {
	gateway := r.w.standIns.gatewayAt(q.URL.Hostname())
	if gateway == "" {
		return nil, nil, fmt.Errorf("%w %s", errNoGateway, q.URL.Host)
	}
	p, err := r.w.routers.of(gateway)
	if err != nil {
		return nil, nil, err
	}
	c, err := connection(&q)
	if err != nil {
		return nil, nil, err
	}
	a, err := p.Ask(c)
	if err != nil {
		return nil, nil, err
	}
	if a.Listener == "" || a.Chain == "" && a.Dropped != "" && a.Status == 0 {
		return nil, nil, errors.New(a.Dropped)
	}
	if a.TLS != nil {
		if err := r.enter(ctx, &q, &c, a); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", a.Listener, err)
		}
	}
	if a.Status != 0 {
		return respond(&q, a.Status, a.Location)
	}
	return r.forward(ctx, p, &q, a, &c)
}

// enter opens the client's TLS as the router does.
func (r roundTripper) enter(ctx context.Context, q *roundtripper.Request, c *simulate.Connection, a *simulate.Answer) error {
	if !c.TLS {
		return errPlain
	}
	server, err := r.w.server(ctx, a.TLS)
	if err != nil {
		return err
	}
	_, err = handshake(ctx, visitor(q, c.SNI), server)
	return err
}

// connection is the connection and request that an HTTP client would make.
func connection(q *roundtripper.Request) (simulate.Connection, error) {
	port := uint64(80)
	secure := q.URL.Scheme == "https" || q.Protocol == roundtripper.HTTPSProtocol || q.Protocol == roundtripper.H2Protocol
	if secure {
		port = 443
	}
	if s := q.URL.Port(); s != "" {
		var err error
		if port, err = strconv.ParseUint(s, 10, 16); err != nil {
			return simulate.Connection{}, err
		}
	}
	addr, err := netip.ParseAddr(q.URL.Hostname())
	if err != nil {
		return simulate.Connection{}, err
	}
	headers := lower(q.Headers)
	host := q.Host
	if host == "" {
		host = q.URL.Host
	}
	sni := q.ServerName
	if secure && sni == "" {
		sni = strings.Split(host, ":")[0]
	}
	path := q.URL.RequestURI()
	method := q.Method
	if method == "" {
		method = http.MethodGet
	}
	scheme := "http"
	if secure {
		scheme = "https"
	}
	headers[":scheme"] = scheme
	return simulate.Connection{To: netip.AddrPortFrom(addr, uint16(port)), Direct: true, TLS: secure, SNI: sni,
		Request: &simulate.Request{Method: method, Host: host, Path: path, Headers: headers, HTTP2: q.Protocol == roundtripper.H2Protocol || q.Protocol == roundtripper.H2CPriorKnowledgeProtocol}}, nil
}

// respond is an answer that the router gives itself.
func respond(q *roundtripper.Request, status uint32, location string) (*roundtripper.CapturedRequest, *roundtripper.CapturedResponse, error) {
	out := &roundtripper.CapturedResponse{StatusCode: int(status), Protocol: "HTTP/1.1", Headers: map[string][]string{}}
	if location != "" {
		u, err := url.Parse(location)
		if err != nil {
			return nil, nil, err
		}
		out.Headers["Location"] = []string{location}
		out.RedirectRequest = &roundtripper.RedirectRequest{Scheme: u.Scheme, Host: u.Hostname(), Port: u.Port(), Path: u.Path}
	}
	return &roundtripper.CapturedRequest{}, out, nil
}

// forward is the answer of the echo server that the request reaches.
func (r roundTripper) forward(ctx context.Context, p *simulate.Proxy, q *roundtripper.Request, a *simulate.Answer, c *simulate.Connection) (*roundtripper.CapturedRequest, *roundtripper.CapturedResponse, error) {
	upstream, asked := pick(a.Upstreams), c.Request
	failed := func(status uint32) (*roundtripper.CapturedRequest, *roundtripper.CapturedResponse, error) {
		if a.Action == nil { // nobody is there to answer in HTTP
			return nil, nil, errTurnedAway
		}
		return respond(q, status, "")
	}
	if p.Upstreams[upstream] == nil {
		if a.Action.GetClusterNotFoundResponseCode() == routev3.RouteAction_INTERNAL_SERVER_ERROR {
			return failed(http.StatusInternalServerError)
		}
		return failed(http.StatusServiceUnavailable)
	}
	endpoints, err := p.Endpoints(upstream)
	if err != nil {
		return nil, nil, err
	}
	if len(endpoints) == 0 {
		return failed(http.StatusServiceUnavailable)
	}
	endpoint := pick(endpoints)
	b, err := r.w.backendAt(ctx, endpoint)
	if err != nil {
		return nil, nil, err
	}
	state, err := r.reach(ctx, p, q, a, c, upstream, endpoint, b)
	if err != nil {
		return failed(http.StatusServiceUnavailable)
	}
	if p := a.Patience(); a.Action != nil && p > 0 && delay(c.Request) > p {
		return failed(http.StatusGatewayTimeout)
	}
	path, err := simulate.Rewritten(a, asked)
	if err != nil {
		return nil, nil, err
	}
	got := captured(q, asked, b, path, state)
	if h := a.Action.GetHostRewriteLiteral(); h != "" {
		got.Host = h
	}
	out := &roundtripper.CapturedResponse{StatusCode: http.StatusOK, Protocol: "HTTP/1.1", Headers: map[string][]string{}}
	for _, list := range q.Headers["X-Echo-Set-Header"] { // what the echo server is to send back
		for s := range strings.SplitSeq(list, ",") {
			if k, v, ok := strings.Cut(s, ":"); ok {
				out.Headers[http.CanonicalHeaderKey(strings.TrimSpace(k))] = []string{strings.TrimSpace(v)}
			}
		}
	}
	change(got.Headers, a.Matched.GetRequestHeadersToAdd(), a.Matched.GetRequestHeadersToRemove())
	change(out.Headers, a.Matched.GetResponseHeadersToAdd(), a.Matched.GetResponseHeadersToRemove())
	for _, c := range a.Action.GetWeightedClusters().GetClusters() {
		if c.GetName() == upstream {
			change(got.Headers, c.GetRequestHeadersToAdd(), c.GetRequestHeadersToRemove())
			change(out.Headers, c.GetResponseHeadersToAdd(), c.GetResponseHeadersToRemove())
			break
		}
	}
	return got, out, nil
}

// captured is a request as an echo server tells it.
func captured(q *roundtripper.Request, asked *simulate.Request, b *backend, path string, state tls.ConnectionState) *roundtripper.CapturedRequest {
	got := &roundtripper.CapturedRequest{Path: path, Host: asked.Host, Method: asked.Method, Protocol: "HTTP/1.1", Headers: map[string][]string{},
		Pod: b.pod.Name, Namespace: b.pod.Namespace, TLS: roundtripper.TLS{ServerName: state.ServerName, PeerCertificates: peers(state)}}
	for k, v := range q.Headers {
		got.Headers[http.CanonicalHeaderKey(k)] = append([]string(nil), v...)
	}
	return got
}

// reach connects to a backend, by whoever speaks TLS with it: the router, or the
// client through it.
func (r roundTripper) reach(ctx context.Context, p *simulate.Proxy, q *roundtripper.Request, a *simulate.Answer, c *simulate.Connection, upstream, endpoint string, b *backend) (tls.ConnectionState, error) {
	var speaks *tls.Config
	secured, err := p.Secures(upstream, endpoint)
	switch {
	case err != nil:
		return tls.ConnectionState{}, err
	case secured != nil:
		if speaks, err = r.w.client(ctx, secured); err != nil {
			return tls.ConnectionState{}, err
		}
	case a.Action == nil && a.TLS == nil && c.TLS:
		speaks = visitor(q, c.SNI)
	}
	if (speaks == nil) != (b.tls == nil) {
		return tls.ConnectionState{}, errPlain
	}
	if a.Action != nil && strings.HasSuffix(endpoint, h2cPort) {
		if two, err := p.HTTP2(upstream, c.Request.HTTP2); err != nil || !two {
			return tls.ConnectionState{}, errors.Join(errOtherHTTP, err)
		}
	}
	if speaks == nil {
		return tls.ConnectionState{}, nil
	}
	return handshake(ctx, speaks, b.tls)
}

// pick draws one by its share.
func pick(list []simulate.Share) string {
	at := rand.Float64() * 100
	for _, s := range list {
		if at -= s.Percent; at < 0 {
			return s.Name
		}
	}
	if len(list) == 0 {
		return ""
	}
	return list[len(list)-1].Name
}

// change does to headers what a route says.
func change(h map[string][]string, add []*corev3.HeaderValueOption, remove []string) {
	for _, k := range remove {
		delete(h, http.CanonicalHeaderKey(k))
	}
	for _, o := range add {
		k, v := http.CanonicalHeaderKey(o.GetHeader().GetKey()), o.GetHeader().GetValue()
		if o.GetAppendAction() == corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD {
			h[k] = []string{v}
		} else if len(h[k]) > 0 {
			h[k] = append(h[k], v)
		} else {
			h[k] = []string{v}
		}
	}
}
