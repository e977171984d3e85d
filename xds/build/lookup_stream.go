package build

import (
	"cmp"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	setstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	statev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	snilookupv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/sni_dynamic_forward_proxy/v3"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// sniLookup is the filter that looks up the server name of a connection.
func sniLookup(v View, at *served) (*listenerv3.Filter, error) {
	return networkFilter(sniLookupFilterName, &snilookupv3.FilterConfig{
		DnsCacheConfig: lookupCache(v, string(at.service.Key.Hostname)),
		PortSpecifier:  &snilookupv3.FilterConfig_PortValue{PortValue: uint32(cmp.Or(at.port.TargetPort, at.port.Number))},
	})
}

// lookupFilters are the filters of a chain whose connections go to names that are
// looked up. If a rule has the proxy speak TLS to them, the server is asked for by
// the name that the client asked for, and must have it in its certificate: what
// upstreams do by themselves they do for requests only.
func (t *streamTarget) lookupFilters(in Inputs, v View) ([]*listenerv3.Filter, error) {
	if t.lookup == nil {
		return nil, nil
	}
	look, err := sniLookup(v, t.lookup)
	if err != nil {
		return nil, err
	}
	policy, _ := trafficPolicy(in, v, *t.lookup, t.upstream.Subset)
	tls := policy.GetTls()
	if tls.GetSni() != "" || tls.GetMode() == networking.ClientTLSSettings_DISABLE {
		return []*listenerv3.Filter{look}, nil
	}
	state := &statev3.Config{OnNewConnection: []*setstatev3.FilterStateValue{serverNameAs("envoy.network.upstream_server_name")}}
	if len(tls.GetSubjectAltNames()) == 0 && !tls.GetInsecureSkipVerify().GetValue() {
		state.OnNewConnection = append(state.OnNewConnection, serverNameAs("envoy.network.upstream_subject_alt_names"))
	}
	set, err := networkFilter("envoy.filters.network.set_filter_state", state)
	return []*listenerv3.Filter{look, set}, err
}

// serverNameAs keeps the server name that a client asks for under a key.
func serverNameAs(key string) *setstatev3.FilterStateValue {
	return &setstatev3.FilterStateValue{Key: &setstatev3.FilterStateValue_ObjectKey{ObjectKey: key},
		Value: &setstatev3.FilterStateValue_FormatString{FormatString: &corev3.SubstitutionFormatString{
			Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3.DataSource{
				Specifier: &corev3.DataSource_InlineString{InlineString: "%REQUESTED_SERVER_NAME%"}}}}}}
}

// holdStream holds a route for connections to the wildcard that it leads to: of
// its server names, names if it has none of its own, those within it stay. What
// is not told by any, or may go elsewhere too, cannot be looked up and is dropped.
func (f *filters) holdStream(r streamRoute, names []string) streamRoute {
	if !slices.ContainsFunc(r.to, func(to streamTarget) bool { return isWild(to.upstream.Host) }) { // as nearly always
		return r
	}
	lookups := make([]served, len(r.to))
	held := false
	for i, to := range r.to {
		if !isWild(to.upstream.Host) {
			continue
		}
		if at, ok := findServed(f.in, f.v, to.upstream.Host, to.upstream.Port); ok && byRequest(at.service) {
			lookups[i], held = at, true
		}
	}
	if !held {
		return r
	}
	r.to = slices.Clone(r.to)
	var within []string
	if len(r.to) == 1 {
		for _, n := range names {
			if withinWildcard(n, r.to[0].upstream.Host) {
				within = append(within, n)
			}
		}
	}
	for i, at := range lookups {
		switch {
		case at.service == nil:
		case len(within) > 0:
			r.names, r.to[i].lookup = within, &at
		default:
			r.to[i].dropped = true
			f.unnamed(r.rule, at.service.Key.Hostname)
		}
	}
	return r
}

// unnamed reports a rule whose connections cannot be looked up.
func (f *filters) unnamed(vs *virtualService, host mesh.Hostname) {
	if f.in.Report != nil && vs != nil {
		f.in.Report(vs.object, "spec", "sends connections to "+string(host)+" (resolution DYNAMIC_DNS) that no server name within it tells apart, "+
			"or a share of them: they are dropped; match sniHosts within it, and send all to the one destination")
	}
}
