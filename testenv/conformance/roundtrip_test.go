package conformance

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"sigs.k8s.io/gateway-api/conformance/utils/roundtripper"

	"github.com/isthmus-mesh/isthmus/testenv/simulate"
	"github.com/isthmus-mesh/isthmus/xds/build"
)

var errNoGateway = errors.New("no gateway has the address")

// roundTripper answers the suite's requests by what a router was given.
type roundTripper struct{ w *world }

// CaptureRoundTrip implements [roundtripper.RoundTripper].
func (r roundTripper) CaptureRoundTrip(q roundtripper.Request) (*roundtripper.CapturedRequest, *roundtripper.CapturedResponse, error) {
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
	if a.Status != 0 {
		return respond(&q, a.Status, a.Location)
	}
	return r.forward(p, &q, a, c.Request)
}

// connection is the connection and request that an HTTP client would make.
func connection(q *roundtripper.Request) (simulate.Connection, error) {
	port := uint64(80)
	tls := q.URL.Scheme == "https" || q.Protocol == roundtripper.HTTPSProtocol
	if tls {
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
	headers := map[string]string{}
	for k, v := range q.Headers {
		headers[strings.ToLower(k)] = strings.Join(v, ",")
	}
	host := q.Host
	if host == "" {
		host = q.URL.Host
	}
	sni := q.ServerName
	if tls && sni == "" {
		sni = strings.Split(host, ":")[0]
	}
	path := q.URL.RequestURI()
	method := q.Method
	if method == "" {
		method = http.MethodGet
	}
	scheme := "http"
	if tls {
		scheme = "https"
	}
	headers[":scheme"] = scheme
	return simulate.Connection{To: netip.AddrPortFrom(addr, uint16(port)), Direct: true, TLS: tls, SNI: sni,
		Request: &simulate.Request{Method: method, Host: host, Path: path, Headers: headers}}, nil
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
func (r roundTripper) forward(p *simulate.Proxy, q *roundtripper.Request, a *simulate.Answer, asked *simulate.Request) (*roundtripper.CapturedRequest, *roundtripper.CapturedResponse, error) {
	upstream := pick(a.Upstreams)
	if p.Upstreams[upstream] == nil {
		status := uint32(http.StatusServiceUnavailable)
		if a.Action.GetClusterNotFoundResponseCode() == routev3.RouteAction_INTERNAL_SERVER_ERROR {
			status = http.StatusInternalServerError
		}
		return respond(q, status, "")
	}
	endpoints, err := p.Endpoints(upstream)
	if err != nil {
		return nil, nil, err
	}
	if len(endpoints) == 0 {
		return respond(q, http.StatusServiceUnavailable, "")
	}
	path, err := simulate.Rewritten(a, asked)
	if err != nil {
		return nil, nil, err
	}
	got := &roundtripper.CapturedRequest{Path: path, Host: asked.Host, Method: asked.Method, Protocol: "HTTP/1.1", Headers: map[string][]string{}}
	for k, v := range q.Headers {
		got.Headers[http.CanonicalHeaderKey(k)] = append([]string(nil), v...)
	}
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
	return got, out, r.name(got, upstream, pick(endpoints))
}

// name tells which pod of which namespace has the endpoint.
func (r roundTripper) name(got *roundtripper.CapturedRequest, upstream, endpoint string) error {
	id, ok := build.ParseUpstreamName(upstream)
	addr, err := netip.ParseAddrPort(endpoint)
	if !ok || err != nil {
		return fmt.Errorf("upstream %s has endpoint %s: %w", upstream, endpoint, err)
	}
	for _, s := range r.w.store.Catalog().Host(id.Host) {
		for e := range r.w.store.Endpoints(s.Key).All() {
			if e.Addr == addr.Addr() {
				got.Pod, got.Namespace = e.Workload.Name, e.Workload.Namespace
			}
		}
	}
	return nil
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
