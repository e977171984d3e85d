package xds

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"runtime"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// The types that istioctl asks for over ADS: one question per stream, from a
// node that says that it is a sidecar of version 65536. It is answered once.
const (
	// TypeDebug: the bytes of an HTTP debug endpoint. The resource name is its path
	// below /debug/, with the query.
	TypeDebug = "istio.io/debug"
	// TypeDebugSyncz: a ClientConfig for every connected proxy.
	TypeDebugSyncz = "istio.io/debug/syncz"
	// TypeDebugConfigDump: what the named proxy (POD.NAMESPACE) was sent, in the
	// parts of Envoy's own dump.
	TypeDebugConfigDump = "istio.io/debug/config_dump"
)

// BuildInfo says what istioctl prints as the version of the control plane.
type BuildInfo struct {
	Version       string `json:"version"`
	Revision      string `json:"revision"`
	GolangVersion string `json:"golang_version"` // "": the running one
	Status        string `json:"status"`
	Tag           string `json:"tag"` // "": the version
}

// debugComponent is the name by which istioctl knows control planes.
const debugComponent = "istiod"

// debugIdentifier is the control plane's identifier in answers to istioctl, which
// tells the answers of several replicas apart by its ID.
func debugIdentifier(id string, b BuildInfo) (string, error) {
	if b.GolangVersion == "" {
		b.GolangVersion = runtime.Version()
	}
	if b.Tag == "" {
		b.Tag = b.Version
	}
	out, err := json.Marshal(struct {
		Component, ID string
		Info          BuildInfo
	}{debugComponent, id, b})
	if err != nil {
		return "", fmt.Errorf("encode identifier: %w", err)
	}
	return string(out), nil
}

// istioDebug answers istioctl.
type istioDebug struct {
	srv     *Server
	handler http.Handler // nil: there are no HTTP endpoints
}

// serveDebugTypes adds the types that istioctl asks for, unless the
// configuration has its own.
func (srv *Server) serveDebugTypes() error {
	var err error
	if srv.debugIdentifier, err = debugIdentifier(srv.cfg.Identifier, srv.cfg.Build); err != nil {
		return err
	}
	all := maps.Clone(srv.cfg.PerProxy)
	if all == nil {
		all = map[string]PerProxy{}
	}
	for _, url := range []string{TypeDebug, TypeDebugSyncz, TypeDebugConfigDump} {
		if srv.perProxyType(url) == nil {
			all[url] = &istioDebug{srv: srv, handler: srv.cfg.Debug}
		}
	}
	srv.cfg.PerProxy = all
	return nil
}

func isDebugType(url string) bool {
	return url == TypeDebug || strings.HasPrefix(url, TypeDebug+"/")
}

// identifier is who answers, in the words of whoever asks for the type.
func (srv *Server) identifier(url string) string {
	if isDebugType(url) {
		return srv.debugIdentifier
	}
	return srv.cfg.Identifier
}

// asker is who asks, and whose proxies are shown.
type asker struct {
	namespace string
	all       bool
}

func (a asker) sees(namespace string) bool { return a.all || namespace == a.namespace }

func (d *istioDebug) asker(ctx context.Context) (asker, error) {
	if d.srv.cfg.DebugCaller == nil {
		return asker{}, status.Error(codes.Unauthenticated, "authentication required: debug types need a caller who proves who it is")
	}
	ns, all, err := d.srv.cfg.DebugCaller(ctx)
	if err != nil {
		if st, ok := status.FromError(err); ok && st.Code() != codes.OK {
			return asker{}, err
		}
		return asker{}, status.Error(codes.Unauthenticated, "authentication required: "+err.Error())
	}
	if ns == "" && !all {
		return asker{}, status.Error(codes.Unauthenticated, "authentication required: the caller has no namespace")
	}
	return asker{ns, all}, nil
}

// Respond implements [PerProxy]. A caller who may not ask ends the stream.
func (d *istioDebug) Respond(ctx context.Context, _ *mesh.Proxy, typeURL string, names []string) ([]NamedAny, error) {
	who, err := d.asker(ctx)
	if err != nil {
		return nil, err
	}
	switch typeURL {
	case TypeDebugSyncz:
		return d.syncz(who)
	case TypeDebugConfigDump:
		return d.configDump(who, names)
	}
	return d.endpoints(ctx, who, names), nil
}

// endsStream reports whether an answer's error is for the caller: it is then
// the status that the stream ends with.
func endsStream(err error) bool {
	switch status.Code(err) {
	case codes.Unauthenticated, codes.PermissionDenied:
		return true
	}
	return false
}

// configDump gives the parts of a proxy's dump, each as a resource, in the order
// in which istioctl wants them. For a proxy that is not connected here there are
// none, so that istioctl looks at the other replicas' answers.
func (d *istioDebug) configDump(who asker, names []string) ([]NamedAny, error) {
	if len(names) == 0 {
		return nil, nil
	}
	s := d.srv.find(names[0])
	if s == nil || !who.sees(s.proxy.Namespace) {
		return nil, nil
	}
	var out []NamedAny
	for _, part := range []proto.Message{
		&adminv3.BootstrapConfigDump{}, clustersDump(s), listenersDump(s), &adminv3.ScopedRoutesConfigDump{},
		routesDump(s), &adminv3.SecretsConfigDump{}, extensionsDump(s),
	} {
		a, err := anypb.New(part)
		if err != nil {
			return nil, fmt.Errorf("encode dump of proxy %s: %w", s.proxy.ID, err)
		}
		out = append(out, NamedAny{Any: a})
	}
	return out, nil
}
