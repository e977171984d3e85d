package conformance

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"sigs.k8s.io/gateway-api/conformance/utils/roundtripper"

	"github.com/isthmus-mesh/isthmus/testenv/simulate"
	"github.com/isthmus-mesh/isthmus/xds/build"
)

// The suite's tests of the mesh run a client in a pod. Pods here run nothing: the
// suite speaks to the API server through a gate that answers for the client what
// becomes of its requests by what the pod's sidecar is given, and hands on the
// rest.

var (
	errNoPod    = errors.New("there is no such pod")
	errCommand  = errors.New("is no command that is known here")
	errNoHost   = errors.New("no Service has the name")
	errNoStream = errors.New("the client has not opened its streams")
)

// execProtocol is the version of the protocol of exec that is spoken.
const execProtocol = "v4.channel.k8s.io"

// gate starts the gate; it returns how to get through it.
func (w *world) gate(t *testing.T) *rest.Config {
	t.Helper()
	inside := rest.CopyConfig(w.cluster.REST())
	transport, err := rest.TransportFor(inside)
	require.NoError(t, err)
	to, _, err := rest.DefaultServerUrlFor(inside)
	require.NoError(t, err)
	proxy := &httputil.ReverseProxy{Transport: transport, FlushInterval: -1, Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }}
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		part := strings.Split(strings.Trim(r.URL.Path, "/"), "/") // api/v1/namespaces/NS/pods/NAME/exec
		if len(part) == 7 && part[6] == "exec" {
			if err := w.exec(rw, r, part[3], part[5]); err != nil {
				w.log(fmt.Sprintf("exec in pod %s/%s: %v", part[3], part[5], err))
			}
			return
		}
		proxy.ServeHTTP(rw, r)
	}))
	t.Cleanup(s.Close)
	return &rest.Config{Host: s.URL, QPS: -1}
}

// exec runs a command in a pod.
func (w *world) exec(rw http.ResponseWriter, r *http.Request, namespace, name string) error {
	said, failed := w.command(r.Context(), namespace, name, r.URL.Query()["command"])
	if _, err := httpstream.Handshake(r, rw, []string{execProtocol}); err != nil {
		return err
	}
	streams := make(chan httpstream.Stream, 4) // error, stdin, stdout, stderr
	conn := spdy.NewResponseUpgrader().UpgradeResponse(rw, r, func(s httpstream.Stream, _ <-chan struct{}) error {
		streams <- s
		return nil
	})
	if conn == nil {
		return errNoStream
	}
	defer conn.Close()
	status := `{"metadata":{},"status":"Success"}`
	if failed != nil {
		status = fmt.Sprintf(`{"metadata":{},"status":"Failure","message":%q}`, failed.Error())
	}
	opened := map[string]httpstream.Stream{}
	for range 3 {
		select {
		case s := <-streams:
			opened[s.Headers().Get(corev1.StreamType)] = s
		case <-time.After(requestTimeout):
			return errNoStream
		}
	}
	for _, part := range [][2]string{{"stdout", said}, {"stderr", ""}, {"error", status}} { // the last one is the end
		s := opened[part[0]]
		if s == nil {
			return errNoStream
		}
		if _, err := io.WriteString(s, part[1]); err != nil {
			return err
		}
		if err := s.Close(); err != nil {
			return err
		}
	}
	select { // the client goes when it has read everything
	case <-conn.CloseChan():
	case <-time.After(requestTimeout):
	}
	return nil
}

// command is what the suite's client says in a pod: client URL [--method=METHOD]
// [-H NAME:VALUE]... [--count=N].
func (w *world) command(ctx context.Context, namespace, name string, args []string) (string, error) {
	p := w.standIns.podCalled(namespace, name)
	if p == nil {
		return "", errNoPod
	}
	if len(args) < 2 || args[0] != "client" {
		return "", fmt.Errorf("%q: %w", args, errCommand)
	}
	to, err := url.Parse(args[1])
	if err != nil {
		return "", err
	}
	q, count := roundtripper.Request{URL: *to, Method: http.MethodGet, Headers: map[string][]string{}}, 1
	for i := 2; i < len(args); i++ {
		if method, ok := strings.CutPrefix(args[i], "--method="); ok {
			q.Method = method
		} else if n, ok := strings.CutPrefix(args[i], "--count="); ok {
			if count, err = strconv.Atoi(n); err != nil {
				return "", err
			}
		} else if args[i] == "-H" && i+1 < len(args) {
			i++
			k, v, _ := strings.Cut(args[i], ":")
			q.Headers[http.CanonicalHeaderKey(k)] = []string{v}
		} else {
			return "", fmt.Errorf("%q: %w", args, errCommand)
		}
	}
	if to.Scheme == "grpc" {
		q.URL.Scheme, q.URL.Path, q.Method, q.Protocol = "http", "/proto.EchoTestService/Echo", http.MethodPost, roundtripper.H2CPriorKnowledgeProtocol
		q.Headers["Content-Type"] = []string{"application/grpc"}
	}
	var out []string
	for range count {
		text, err := w.fromPod(ctx, p, q)
		if err != nil {
			return "", err
		}
		out = append(out, text)
	}
	return strings.Join(out, "\n\n"), nil
}

// fromPod makes a request from a pod, and tells the answer as the client does.
func (w *world) fromPod(ctx context.Context, pod *corev1.Pod, q roundtripper.Request) (string, error) {
	at, err := w.resolve(ctx, pod.Namespace, q.URL.Hostname())
	if err != nil {
		return "", err
	}
	p, err := w.routers.sidecar(pod)
	if err != nil {
		return "", err
	}
	host := q.URL.Host
	if q.URL.Port() == "" {
		q.URL.Host = net.JoinHostPort(at.String(), "80")
	} else {
		q.URL.Host = net.JoinHostPort(at.String(), q.URL.Port())
	}
	q.Host = host
	if h := q.Headers["Host"]; len(h) > 0 {
		q.Host = h[0]
		delete(q.Headers, "Host")
	}
	c, err := connection(&q)
	if err != nil {
		return "", err
	}
	c.Direct, c.From = false, netip.MustParseAddr(pod.Status.PodIP)
	a, err := p.Ask(c)
	if err != nil {
		return "", err
	}
	r := roundTripper{w}
	got, answer, err := &roundtripper.CapturedRequest{}, (*roundtripper.CapturedResponse)(nil), error(nil)
	switch {
	case a.Status != 0:
		_, answer, err = respond(&q, a.Status, a.Location)
	case len(a.Upstreams) == 1 && a.Upstream() == build.UpstreamPassthrough:
		got, answer, err = r.straight(ctx, &q, &c)
	default:
		got, answer, err = r.forward(ctx, p, &q, a, &c)
	}
	if err != nil {
		return "", err
	}
	return told(&q, got, answer), nil
}

// straight is the answer of a pod that is dialled by its address.
func (r roundTripper) straight(ctx context.Context, q *roundtripper.Request, c *simulate.Connection) (*roundtripper.CapturedRequest, *roundtripper.CapturedResponse, error) {
	b, err := r.w.backendAt(ctx, c.To.String())
	if err != nil {
		return nil, nil, err
	}
	if b.tls != nil {
		return nil, nil, errPlain
	}
	return captured(q, c.Request, b, c.Request.Path, tls.ConnectionState{}), &roundtripper.CapturedResponse{StatusCode: http.StatusOK, Headers: map[string][]string{}}, nil
}

// told is an answer in the words of the suite's client.
func told(q *roundtripper.Request, got *roundtripper.CapturedRequest, answer *roundtripper.CapturedResponse) string {
	lines := []string{"Url=" + q.URL.String(), fmt.Sprintf("StatusCode=%d", answer.StatusCode)}
	for k, list := range answer.Headers {
		for _, v := range list {
			lines = append(lines, fmt.Sprintf("ResponseHeader=%s:%s", k, v))
		}
	}
	if got.Pod != "" {
		lines = append(lines, "Method="+got.Method, "Host="+got.Host, "URL="+got.Path, "Hostname="+got.Pod)
		for k, list := range got.Headers {
			for _, v := range list {
				lines = append(lines, fmt.Sprintf("RequestHeader=%s:%s", k, v))
			}
		}
	}
	return strings.Join(lines, "\n")
}

// resolve finds the address of a host as a pod of a namespace does: that of a
// Service, NAME or NAME.NAMESPACE with whatever follows.
func (w *world) resolve(ctx context.Context, namespace, host string) (netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return a, nil
	}
	part := strings.Split(host, ".")
	if len(part) > 1 {
		namespace = part[1]
	}
	s, err := w.cluster.Client().CoreV1().Services(namespace).Get(ctx, part[0], metav1.GetOptions{})
	if err != nil {
		return netip.Addr{}, fmt.Errorf("%s: %w: %w", host, errNoHost, err)
	}
	return netip.ParseAddr(s.Spec.ClusterIP)
}
