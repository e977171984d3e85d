package conformance

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	pb "sigs.k8s.io/gateway-api/conformance/echo-basic/grpcechoserver"
	"sigs.k8s.io/gateway-api/conformance/utils/grpc"
	"sigs.k8s.io/gateway-api/conformance/utils/roundtripper"
)

// caller answers the suite's calls by what a router was given.
type caller struct{ roundTripper }

// SendRPC implements [grpc.Client].
func (c caller) SendRPC(t *testing.T, address string, want grpc.ExpectedResponse, timeout time.Duration) (*grpc.Response, error) {
	t.Helper()
	method := "EchoThree"
	switch {
	case want.EchoRequest != nil:
		method = "Echo"
	case want.EchoTwoRequest != nil:
		method = "EchoTwo"
	}
	path := "/gateway_api_conformance.echo_basic.grpcecho.GrpcEcho/" + method
	q := roundtripper.Request{URL: url.URL{Scheme: "http", Host: address, Path: path}, Method: http.MethodPost,
		Protocol: roundtripper.H2CPriorKnowledgeProtocol, Headers: map[string][]string{"Content-Type": {"application/grpc"}, "Te": {"trailers"}}}
	if m := want.RequestMetadata; m != nil {
		q.Host = m.Authority
		for k, v := range m.Metadata {
			q.Headers[http.CanonicalHeaderKey(k)] = []string{v}
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	got, out, err := c.ask(ctx, q)
	if err != nil {
		return &grpc.Response{Code: codes.Unavailable}, nil //nolint:nilerr // this is what a client makes of it
	}
	if out.StatusCode != http.StatusOK {
		return &grpc.Response{Code: codeOf(out.StatusCode)}, nil
	}
	return &grpc.Response{Code: codes.OK, Response: &pb.EchoResponse{Assertions: &pb.Assertions{
		FullyQualifiedMethod: got.Path, Authority: got.Host,
		Context: &pb.Context{Namespace: got.Namespace, Pod: got.Pod},
	}}}, nil
}

// Close implements [grpc.Client].
func (caller) Close() {}

// codeOf is the code that a client makes of an answer that is not one of gRPC's.
//
// Source: https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md
func codeOf(status int) codes.Code {
	switch status {
	case http.StatusBadRequest:
		return codes.Internal
	case http.StatusUnauthorized:
		return codes.Unauthenticated
	case http.StatusForbidden:
		return codes.PermissionDenied
	case http.StatusNotFound:
		return codes.Unimplemented
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return codes.Unavailable
	}
	return codes.Unknown
}

// lower puts the names of headers as they are on the wire.
func lower(h map[string][]string) map[string]string {
	out := map[string]string{}
	for k, v := range h {
		out[strings.ToLower(k)] = strings.Join(v, ",")
	}
	return out
}
