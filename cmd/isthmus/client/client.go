// Package client reads /debug of a running control plane over HTTP. It owns the
// requests and their bounds, and turns what goes wrong into errors that say
// what to do. What the answers mean is known to the packages that give them.
package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/serve"
	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/multicluster"
	"github.com/isthmus-mesh/isthmus/xds"
	"github.com/isthmus-mesh/isthmus/xds/build"
	"github.com/isthmus-mesh/isthmus/xds/match"
)

// DefaultAddress is where a control plane on this machine, or one reached by
// kubectl port-forward, answers.
const DefaultAddress = "http://127.0.0.1:8080"

const (
	// timeout bounds one request and its answer.
	timeout = 30 * time.Second
	// maxAnswer bounds what is read of an answer, in bytes: an overview of 10,000
	// services is about 3 MB.
	maxAnswer = 256 << 20
	// maxError bounds what is shown of an error's text, in bytes.
	maxError = 2 << 10
)

// Client asks one control plane. It is safe for concurrent use.
type Client struct {
	base *url.URL
	http *http.Client
}

// New returns a client of the control plane at an address, which is a URL or
// HOST:PORT. It does no I/O.
func New(address string) (*Client, error) {
	if !strings.Contains(address, "://") {
		address = "http://" + address
	}
	u, err := url.Parse(address)
	if err != nil {
		return nil, fmt.Errorf("read address %q: %w", address, err)
	}
	if u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("read address %q: it is not like %s", address, DefaultAddress)
	}
	return &Client{base: u, http: &http.Client{Timeout: timeout, CheckRedirect: stayHere}}, nil
}

// stayHere follows redirects within the same server only.
func stayHere(r *http.Request, via []*http.Request) error {
	if len(via) > 3 || r.URL.Host != via[0].URL.Host {
		return fmt.Errorf("refuse redirect to %s", r.URL)
	}
	return nil
}

// Close frees the connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Overview reads the state of everything.
func (c *Client) Overview(ctx context.Context) (serve.Overview, error) {
	var o serve.Overview
	err := c.read(ctx, "debug/overview", nil, &o)
	return o, err
}

// Clusters reads how every cluster is.
func (c *Client) Clusters(ctx context.Context) (multicluster.Debug, error) {
	var d multicluster.Debug
	err := c.read(ctx, "debug/clusters", nil, &d)
	return d, err
}

// Explanation is [build.Explanation] as it crosses the wire: verdicts by name.
type Explanation struct {
	build.Explanation
	Candidates []Candidate `json:"candidates"`
}

// Candidate is one endpoint and what became of it.
type Candidate struct {
	build.ExplainedEndpoint
	Verdict string `json:"verdict"`
}

// FindProxy finds the connection of a proxy that is named POD.NAMESPACE, or
// CLUSTER/POD.NAMESPACE where several clusters have a pod of that name: the
// newest, if there are several of one pod.
func FindProxy(o serve.Overview, name string) (string, error) {
	var found *xds.ProxyStatus
	clusters, alike := map[mesh.ClusterID]bool{}, map[string]bool{}
	for i := range o.Proxies {
		p := &o.Proxies[i]
		if name != p.ID && name != string(p.Cluster)+"/"+p.ID && name != p.Connection {
			if pod, _, _ := strings.Cut(p.ID, "."); pod == name {
				alike[string(p.Cluster)+"/"+p.ID] = true
			}
			continue
		}
		clusters[p.Cluster] = true
		if found == nil || p.ConnectedAt.After(found.ConnectedAt) {
			found = p
		}
	}
	switch {
	case found == nil && len(alike) > 0:
		return "", fmt.Errorf("find proxy %q: the namespace is missing; name one of %s", name, strings.Join(slices.Sorted(maps.Keys(alike)), ", "))
	case found == nil:
		return "", fmt.Errorf("find proxy %q: it is not connected to this control plane; list those that are with: isthmus status", name)
	case len(clusters) > 1:
		var names []string
		for _, c := range slices.Sorted(maps.Keys(clusters)) {
			names = append(names, string(c)+"/"+found.ID)
		}
		return "", fmt.Errorf("find proxy %q: several clusters have one; name one of %s", name, strings.Join(names, ", "))
	}
	return found.Connection, nil
}

// Explain reads what a proxy dials for a host and port, and why. The proxy is
// named by its connection (see [FindProxy]) or as POD.NAMESPACE. The request
// decides which route is explained; it needs no host.
func (c *Client) Explain(ctx context.Context, proxy, host string, port uint16, r match.Request) (Explanation, error) {
	query := url.Values{"proxy": {proxy}, "host": {host}, "port": {strconv.Itoa(int(port))}, "path": {r.Path}, "method": {r.Method}}
	for name, value := range r.Headers {
		query.Add("header", name+":"+value)
	}
	var x Explanation
	err := c.read(ctx, "debug/explain", query, &x)
	return x, err
}

// readyPoll is how often readiness is asked for.
const readyPoll = 20 * time.Millisecond

// WaitReady returns when the control plane answers proxies, or when the context
// ends, with what it was waiting for.
func (c *Client) WaitReady(ctx context.Context) error {
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for {
		err := c.ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-tick.C:
		}
	}
}

func (c *Client) ready(ctx context.Context) error {
	return c.get(ctx, c.base.JoinPath("ready"), func(io.Reader) error { return nil })
}

func (c *Client) read(ctx context.Context, path string, query url.Values, into any) error {
	u := c.base.JoinPath(path)
	u.RawQuery = query.Encode()
	return c.get(ctx, u, func(body io.Reader) error {
		if err := json.NewDecoder(io.LimitReader(body, maxAnswer)).Decode(into); err != nil {
			return fmt.Errorf("read answer of %s: %w; is that an isthmus of about the same version?", u, err)
		}
		return nil
	})
}

// get asks for a URL and gives what is answered to take. Any answer but 200 is an
// error.
func (c *Client) get(ctx context.Context, u *url.URL, take func(io.Reader) error) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return fmt.Errorf("ask control plane: %w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.unreachable(err)
	}
	defer func() { _ = resp.Body.Close() }() // nothing was written
	if resp.StatusCode != http.StatusOK {
		return refused(u, resp)
	}
	return take(resp.Body)
}

func (c *Client) unreachable(err error) error {
	var network *net.OpError
	if errors.As(err, &network) && network.Op == "dial" {
		return fmt.Errorf("reach control plane at %s: %w\nStart one with: isthmus serve\nor forward the port of one in a cluster: "+
			"kubectl -n istio-system port-forward deploy/istiod 8080\nor name another with --address", c.base, err)
	}
	return fmt.Errorf("ask control plane at %s: %w", c.base, err)
}

// Refused is an answer that is not 200.
type Refused struct {
	Status int
	Text   string
	url    string
}

// Error says what was asked and what came back.
func (r *Refused) Error() string {
	return fmt.Sprintf("ask %s: %d %s", r.url, r.Status, r.Text)
}

func refused(u *url.URL, resp *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxError)) // half a message is better than none
	return &Refused{Status: resp.StatusCode, Text: strings.TrimSpace(string(text)), url: u.String()}
}
