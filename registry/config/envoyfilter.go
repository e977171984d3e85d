package config

import (
	"errors"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	networking "istio.io/api/networking/v1alpha3"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry/config/envoypatch"
)

func envoyFilterKind() descriptor {
	kind := Kind{Kind: mesh.KindEnvoyFilter, Group: "networking.istio.io", Version: "v1alpha3", Resource: "envoyfilters"}
	versions := []string{"v1alpha3"}
	return descriptor{
		Kind: kind, versions: versions,
		newSpec:  func() proto.Message { return &networking.EnvoyFilter{} },
		typed:    typedAs(func(o *networkingv1alpha3.EnvoyFilter) proto.Message { return &o.Spec }),
		validate: checks(validateEnvoyFilter),
	}
}

func validateEnvoyFilter(c *checker, f *networking.EnvoyFilter) {
	c.warnf("changes what proxies are told by hand: it may mean something else, or nothing, after an upgrade")
	c.workloads(f.GetWorkloadSelector())
	if f.GetWorkloadSelector() != nil && len(f.GetTargetRefs()) > 0 {
		c.at("targetRefs").failf("is set beside workloadSelector; keep one")
	}
	for i, t := range f.GetTargetRefs() {
		c.index("targetRefs", i).target(t)
	}
	for i, p := range f.GetConfigPatches() {
		validatePatch(c.index("configPatches", i), p)
	}
}

func validatePatch(c *checker, p *networking.EnvoyFilter_EnvoyConfigObjectPatch) {
	op := p.GetPatch().GetOperation()
	switch {
	case p.GetApplyTo() == networking.EnvoyFilter_INVALID:
		c.at("applyTo").failf("is missing; say what to change, as in HTTP_FILTER")
		return
	case p.GetPatch() == nil:
		c.at("patch").failf("is missing; give operation and value")
		return
	case op == networking.EnvoyFilter_Patch_INVALID:
		c.at("patch.operation").failf("is missing; say what to do, as in MERGE or INSERT_BEFORE")
		return
	case op != networking.EnvoyFilter_Patch_REMOVE && p.GetPatch().GetValue() == nil:
		c.at("patch.value").failf("is missing; operation %s needs it", op)
		return
	}
	if v := p.GetMatch().GetProxy().GetProxyVersion(); v != "" {
		c.at("match.proxy.proxyVersion").regex(v)
	}
	validatePatchMatch(c.at("match"), p)
	at := c.at("patch.value")
	d, err := envoypatch.Decode(p.GetApplyTo(), p.GetPatch().GetValue())
	if err != nil {
		at.failf("is not a %s of Envoy: %v", p.GetApplyTo(), errors.Unwrap(err))
		return
	}
	if len(d.Unknown) > 0 {
		at.warnf("has types that are not known and passed on unchecked: %s", clip(strings.Join(d.Unknown, ", ")))
	}
	if d.Strict != nil {
		at.warnf("has something that is not known and left out: %v", d.Strict)
	}
	if d.Message != nil {
		for _, n := range untyped(d.Message.ProtoReflect(), 0) {
			at.warnf("configures %q by its name only, which proxies no longer take; add typed_config with its @type", clip(n))
		}
	}
}

// validatePatchMatch checks that a patch is matched by what it changes.
func validatePatchMatch(c *checker, p *networking.EnvoyFilter_EnvoyConfigObjectPatch) {
	m := p.GetMatch()
	if m.GetObjectTypes() == nil {
		return
	}
	if m.GetWaypoint() != nil && m.GetContext() != networking.EnvoyFilter_WAYPOINT {
		c.at("waypoint").failf("is set with context %s; use context WAYPOINT", m.GetContext())
	}
	to := p.GetApplyTo()
	switch to {
	case networking.EnvoyFilter_LISTENER, networking.EnvoyFilter_FILTER_CHAIN, networking.EnvoyFilter_NETWORK_FILTER, networking.EnvoyFilter_HTTP_FILTER:
		switch {
		case m.GetListener() != nil:
			validateListenerMatch(c.at("listener"), m.GetListener(), to)
		case m.GetWaypoint() == nil:
			c.failf("has no listener, but applyTo is %s; match by listener", to)
		}
	case networking.EnvoyFilter_ROUTE_CONFIGURATION, networking.EnvoyFilter_VIRTUAL_HOST, networking.EnvoyFilter_HTTP_ROUTE:
		if m.GetRouteConfiguration() == nil && m.GetWaypoint() == nil {
			c.failf("has no routeConfiguration, but applyTo is %s; match by routeConfiguration", to)
		}
	case networking.EnvoyFilter_CLUSTER:
		if m.GetCluster() == nil && m.GetWaypoint() == nil {
			c.failf("has no cluster, but applyTo is %s; match by cluster", to)
		}
	}
}

// nameHCM is the network filter that HTTP filters are in, and its former name.
const (
	nameHCM    = "envoy.filters.network.http_connection_manager"
	oldNameHCM = "envoy.http_connection_manager"
)

func validateListenerMatch(c *checker, l *networking.EnvoyFilter_ListenerMatch, to networking.EnvoyFilter_ApplyTo) {
	f := l.GetFilterChain().GetFilter()
	if f == nil {
		return
	}
	at := c.at("filterChain.filter")
	if to == networking.EnvoyFilter_LISTENER || to == networking.EnvoyFilter_FILTER_CHAIN {
		at.warnf("has no effect with applyTo %s", to)
	}
	if f.GetName() == "" {
		at.at("name").failf("is empty; name the filter")
		return
	}
	if s := f.GetSubFilter(); s != nil {
		switch of := at.at("subFilter"); {
		case to != networking.EnvoyFilter_HTTP_FILTER:
			of.failf("is set with applyTo %s; only HTTP filters are in another filter", to)
		case f.GetName() != nameHCM && f.GetName() != oldNameHCM:
			of.failf("is set in filter %q; HTTP filters are in %s", clip(f.GetName()), nameHCM)
		case s.GetName() == "":
			of.at("name").failf("is empty; name the filter")
		}
	}
	for _, n := range []string{f.GetName(), f.GetSubFilter().GetName()} {
		if now := formerNames()[n]; now != "" {
			at.warnf("%q is the former name of a filter; write %s", n, now)
		}
	}
}

// formerNames maps names that filters once had to those of today.
func formerNames() map[string]string {
	return map[string]string{
		"envoy.buffer": "envoy.filters.http.buffer", "envoy.cors": "envoy.filters.http.cors", "envoy.csrf": "envoy.filters.http.csrf",
		"envoy.ext_authz": "envoy.filters.http.ext_authz", "envoy.fault": "envoy.filters.http.fault",
		"envoy.grpc_http1_bridge": "envoy.filters.http.grpc_http1_bridge", "envoy.grpc_json_transcoder": "envoy.filters.http.grpc_json_transcoder",
		"envoy.grpc_web": "envoy.filters.http.grpc_web", "envoy.gzip": "envoy.filters.http.gzip", "envoy.health_check": "envoy.filters.http.health_check",
		oldNameHCM: nameHCM, "envoy.ip_tagging": "envoy.filters.http.ip_tagging", "envoy.lua": "envoy.filters.http.lua",
		"envoy.rate_limit": "envoy.filters.http.ratelimit", "envoy.router": "envoy.filters.http.router", "envoy.squash": "envoy.filters.http.squash",
		"envoy.client_ssl_auth": "envoy.filters.network.client_ssl_auth", "envoy.echo": "envoy.filters.network.echo",
		"envoy.mongo_proxy": "envoy.filters.network.mongo_proxy", "envoy.ratelimit": "envoy.filters.network.ratelimit",
		"envoy.redis_proxy": "envoy.filters.network.redis_proxy", "envoy.tcp_proxy": "envoy.filters.network.tcp_proxy",
		"envoy.listener.http_inspector": "envoy.filters.listener.http_inspector", "envoy.listener.original_dst": "envoy.filters.listener.original_dst",
		"envoy.listener.original_src": "envoy.filters.listener.original_src", "envoy.listener.proxy_protocol": "envoy.filters.listener.proxy_protocol",
		"envoy.listener.tls_inspector": "envoy.filters.listener.tls_inspector",
	}
}

// untyped names the extensions of a message that have no configuration.
func untyped(m protoreflect.Message, depth int) []string {
	if depth > maxDepth {
		return nil
	}
	var out []string
	fields := m.Descriptor().Fields()
	typed, named := fields.ByName("typed_config"), fields.ByName("name")
	if typed != nil && named != nil && named.Kind() == protoreflect.StringKind && m.Get(named).String() != "" && !m.Has(typed) {
		if d := fields.ByName("config_discovery"); d == nil || !m.Has(d) {
			out = append(out, m.Get(named).String())
		}
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap() || fd.Message() == nil:
		case fd.IsList():
			for i := range v.List().Len() {
				out = append(out, untyped(v.List().Get(i).Message(), depth+1)...)
			}
		default:
			out = append(out, untyped(v.Message(), depth+1)...)
		}
		return len(out) < maxErrors
	})
	return out
}
