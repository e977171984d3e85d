package build

import (
	"net/http"
	"slices"
	"strconv"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// routeScope says where rules for requests are to be in force. It is for one
// build: it remembers what it has read.
type routeScope struct {
	in Inputs
	v  View
	// gateway is "mesh" for sidecars, else the gateway as NAMESPACE/NAME.
	gateway string
	// port is the one that clients dial, and which a destination without a port has.
	port uint16
	// tls says that the proxy terminates TLS on the port.
	tls bool

	labels map[string]string
	read   bool
}

// selected reports whether the view's workloads have all the labels.
func (s *routeScope) selected(labels map[string]string) bool {
	if len(labels) == 0 {
		return true
	}
	if !s.read {
		s.labels, s.read = s.v.Labels.Map(), true
	}
	return selects(labels, s.labels)
}

// translateHTTP makes the routes of a VirtualService, in the order in which
// they are tried: one for each match of each rule that may hold in the scope. It
// ends with the first that takes every request. No routes means that the
// VirtualService says nothing about the scope.
func translateHTTP(s *routeScope, vs *virtualService) ([]*routev3.Route, error) {
	var out []*routev3.Route
	for _, rule := range vs.http {
		if !rule.inForce(s.in, vs) {
			continue
		}
		matches := rule.GetMatch()
		if len(matches) == 0 {
			matches = []*networking.HTTPMatchRequest{nil}
		}
		for _, m := range matches {
			if !s.holds(m, rule.from.Key.Namespace) {
				continue
			}
			r, err := s.route(vs, rule, m)
			if err != nil {
				return nil, err
			}
			if r == nil {
				continue
			}
			out = append(out, r)
			if catchesAll(r) {
				return out, nil
			}
		}
	}
	return out, nil
}

// holds decides what of a match is known before any request: port, gateway, and
// the labels and namespace of the client. A match that names gateways does not
// look at the client.
func (s *routeScope) holds(m *networking.HTTPMatchRequest, namespace string) bool {
	if m == nil {
		return true
	}
	if m.GetPort() != 0 && m.GetPort() != uint32(s.port) {
		return false
	}
	if len(m.GetGateways()) > 0 {
		return slices.ContainsFunc(m.GetGateways(), func(g string) bool { return fullGateway(g, namespace) == s.gateway })
	}
	return (m.GetSourceNamespace() == "" || m.GetSourceNamespace() == s.v.Namespace) && s.selected(m.GetSourceLabels())
}

// route makes the route of one match of a rule; nil if the rule leads nowhere.
func (s *routeScope) route(vs *virtualService, rule httpRule, m *networking.HTTPMatchRequest) (*routev3.Route, error) {
	headers := readHeaders(rule.GetHeaders())
	out := &routev3.Route{
		Name:                    rule.GetName(),
		Match:                   routeMatch(m),
		Metadata:                originMetadata(mesh.KindVirtualService, vs.name),
		StatPrefix:              m.GetStatPrefix(),
		RequestHeadersToAdd:     headers.addRequest,
		RequestHeadersToRemove:  headers.removeRequest,
		ResponseHeadersToAdd:    headers.addResponse,
		ResponseHeadersToRemove: headers.removeResponse,
	}
	if m.GetName() != "" {
		out.Name += "." + m.GetName()
	}
	switch {
	case rule.GetRedirect() != nil:
		out.Action = &routev3.Route_Redirect{Redirect: s.redirect(rule.GetRedirect())}
	case rule.GetDirectResponse() != nil:
		out.Action = &routev3.Route_DirectResponse{DirectResponse: directResponse(rule.GetDirectResponse())}
	default:
		a := s.action(rule, out, headers.authority)
		if a == nil {
			return nil, nil
		}
		out.Action = &routev3.Route_Route{Route: a}
	}
	if rule.routed != nil {
		asRouted(out, rule)
	}
	out.Decorator = &routev3.Decorator{Operation: operation(out, vs.name.Name, s.port)}
	return out, perRoute(out, rule.HTTPRoute)
}

// perRoute adds the settings that filters take from the route.
func perRoute(out *routev3.Route, rule *networking.HTTPRoute) error {
	set := func(name string, config *anypb.Any, err error) error {
		if err == nil {
			put(&out.TypedPerFilterConfig, name, config)
		}
		return err
	}
	if f := httpFault(rule.GetFault()); f != nil {
		config, err := toAny(f)
		if err := set(faultName, config, err); err != nil {
			return err
		}
	}
	if rule.GetCorsPolicy() != nil {
		config, err := toAny(corsPolicy(rule.GetCorsPolicy()))
		if err := set(corsName, config, err); err != nil {
			return err
		}
	}
	return nil
}

// put adds an entry to a map that is made when it is needed.
func put[K comparable, V any](m *map[K]V, k K, v V) {
	if *m == nil {
		*m = map[K]V{}
	}
	(*m)[k] = v
}

// operation names what a route does in traces: where it leads if that is one
// place, else the VirtualService, with the port and the path.
func operation(r *routev3.Route, name string, port uint16) string {
	path := "/*"
	switch p := r.GetMatch().GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Prefix:
		path = p.Prefix + "*"
	case *routev3.RouteMatch_Path:
		path = p.Path
	case *routev3.RouteMatch_SafeRegex:
		path = p.SafeRegex.GetRegex()
	}
	if id, ok := ParseUpstreamName(r.GetRoute().GetCluster()); ok {
		return string(id.Host) + ":" + strconv.Itoa(int(id.Port)) + path
	}
	return name + ":" + strconv.Itoa(int(port)) + path
}

// action makes what becomes of the requests of a rule that sends them somewhere.
// What the destinations do to headers goes into the route if there is one
// destination. nil if there is none.
func (s *routeScope) action(rule httpRule, out *routev3.Route, authority string) *routev3.RouteAction {
	a := &routev3.RouteAction{}
	setTimeout(a, rule.GetTimeout())
	if rw := rule.GetRewrite(); rw != nil {
		if x := rw.GetUriRegexRewrite(); x != nil {
			a.RegexRewrite = &matcherv3.RegexMatchAndSubstitute{Pattern: regexMatcher(x.GetMatch()), Substitution: x.GetRewrite()}
		} else {
			a.PrefixRewrite = rw.GetUri()
		}
		if rw.GetAuthority() != "" {
			authority = rw.GetAuthority()
		}
	}
	if authority != "" {
		a.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: authority}
	}
	a.AppendXForwardedHost = s.v.Tuning.routes.forwardedHost // where the host is rewritten
	s.mirrors(a, rule)
	sticky, ok := s.destinations(a, rule, out)
	if !ok {
		return nil
	}
	retries := rule.GetRetries()
	if retries == nil {
		retries = s.in.Catalog.Settings.Mesh.GetDefaultHttpRetryPolicy()
	}
	if retries != nil || s.v.Dialect != mesh.DialectGRPC { // gRPC has retries of its own
		a.RetryPolicy = retryPolicy(retries, sticky)
	}
	return a
}

// setTimeout bounds requests, and what gRPC clients may ask for; nil is no bound.
func setTimeout(a *routev3.RouteAction, t *durationpb.Duration) {
	if t == nil {
		t = duration(0)
	}
	a.Timeout = t
	a.MaxGrpcTimeout = t //nolint:staticcheck // what Istio's proxies of all versions read
}

// redirect sends the client elsewhere. The port is named only where the scheme
// does not imply it.
func (s *routeScope) redirect(r *networking.HTTPRedirect) *routev3.RedirectAction {
	out := &routev3.RedirectAction{
		HostRedirect:         r.GetAuthority(),
		PathRewriteSpecifier: &routev3.RedirectAction_PathRedirect{PathRedirect: r.GetUri()},
		ResponseCode:         redirectCode(r.GetRedirectCode()),
	}
	if r.GetPrefixRewrite() != "" {
		out.PathRewriteSpecifier = &routev3.RedirectAction_PrefixRewrite{PrefixRewrite: r.GetPrefixRewrite()}
	}
	if r.GetScheme() != "" {
		out.SchemeRewriteSpecifier = &routev3.RedirectAction_SchemeRedirect{SchemeRedirect: r.GetScheme()}
	}
	switch p := r.GetRedirectPort().(type) {
	case *networking.HTTPRedirect_DerivePort:
		if p.DerivePort == networking.HTTPRedirect_FROM_REQUEST_PORT {
			out.PortRedirect = uint32(s.port)
		}
	case *networking.HTTPRedirect_Port:
		out.PortRedirect = p.Port
	}
	scheme := r.GetScheme()
	if scheme == "" && s.tls {
		scheme = "https"
	}
	if out.PortRedirect == 443 && scheme == "https" || out.PortRedirect == 80 && (scheme == "http" || scheme == "") {
		out.PortRedirect = 0
	}
	return out
}

func redirectCode(n uint32) routev3.RedirectAction_RedirectResponseCode {
	switch n {
	case http.StatusFound:
		return routev3.RedirectAction_FOUND
	case http.StatusSeeOther:
		return routev3.RedirectAction_SEE_OTHER
	case http.StatusTemporaryRedirect:
		return routev3.RedirectAction_TEMPORARY_REDIRECT
	case http.StatusPermanentRedirect:
		return routev3.RedirectAction_PERMANENT_REDIRECT
	}
	return routev3.RedirectAction_MOVED_PERMANENTLY
}

// directResponse answers without asking anybody.
func directResponse(r *networking.HTTPDirectResponse) *routev3.DirectResponseAction {
	out := &routev3.DirectResponseAction{Status: r.GetStatus()}
	switch b := r.GetBody().GetSpecifier().(type) {
	case *networking.HTTPBody_String_:
		out.Body = &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: b.String_}}
	case *networking.HTTPBody_Bytes:
		out.Body = &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b.Bytes}}
	}
	return out
}
