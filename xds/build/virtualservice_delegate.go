package build

import (
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// A rule may leave requests to the rules of another VirtualService, one without
// hosts. Those rules then stand in its place, narrowed by what it matches and
// with whatever it sets that they do not set themselves. A rule that matches
// what the one that delegates to it cannot is left out. Delegates do not
// delegate in turn, so there are no cycles: such a rule is left out too.

// readRules lists the rules of an object for requests, with those of its
// delegates in place, and whom it delegates to, be they there or not.
func readRules(o *mesh.Object, spec *networking.VirtualService, byName map[ObjectName]*mesh.Object) ([]httpRule, []ObjectName) {
	out := make([]httpRule, 0, len(spec.GetHttp()))
	var delegates []ObjectName
	for i, r := range spec.GetHttp() {
		d := r.GetDelegate()
		if d == nil {
			out = append(out, httpRule{r, o, gatewayRule(o, i)})
			continue
		}
		name := ObjectName{d.GetNamespace(), d.GetName()}
		if name.Namespace == "" {
			name.Namespace = o.Key.Namespace
		}
		if !slices.Contains(delegates, name) {
			delegates = append(delegates, name)
		}
		to := byName[name]
		if to == nil {
			continue
		}
		s, ok := to.Spec.(*networking.VirtualService)
		if !ok || len(s.GetHosts()) > 0 {
			continue
		}
		for _, sub := range s.GetHttp() {
			if sub.GetDelegate() != nil {
				continue
			}
			if merged := mergeRule(withGateways(r, o.Key.Namespace), withGateways(sub, to.Key.Namespace)); merged != nil {
				out = append(out, httpRule{merged, to, nil})
			}
		}
	}
	return out, delegates
}

// inForce reports whether a rule counts: what stands in another object does if
// that is exported to the one that delegates to it.
func (r httpRule) inForce(in Inputs, vs *virtualService) bool {
	if r.from == vs.object {
		return true
	}
	spec, ok := r.from.Spec.(*networking.VirtualService)
	if !ok {
		return false
	}
	export := spec.GetExportTo()
	if len(export) == 0 {
		export = in.Catalog.Settings.Mesh.GetDefaultVirtualServiceExportTo()
	}
	return exported(export, r.from.Key.Namespace, vs.name.Namespace)
}

// withGateways copies a rule and completes the gateways in its matches.
func withGateways(r *networking.HTTPRoute, namespace string) *networking.HTTPRoute {
	r = proto.CloneOf(r)
	for _, m := range r.GetMatch() {
		for i, g := range m.GetGateways() {
			m.Gateways[i] = fullGateway(g, namespace)
		}
	}
	return r
}

// mergeRule puts a delegate's rule in place of the one that delegates to it; nil
// if they cannot both match. It takes both over.
func mergeRule(root, out *networking.HTTPRoute) *networking.HTTPRoute {
	match, ok := mergeMatches(root.GetMatch(), out.GetMatch())
	if !ok {
		return nil
	}
	out.Match = match
	out.Name = joinNames(root.GetName(), out.GetName())
	if out.Rewrite == nil {
		out.Rewrite = root.Rewrite
	}
	if out.Timeout == nil {
		out.Timeout = root.Timeout
	}
	if out.Retries == nil {
		out.Retries = root.Retries
	}
	if out.Fault == nil {
		out.Fault = root.Fault
	}
	if out.Mirror == nil {
		out.Mirror = root.Mirror
	}
	if out.MirrorPercent == nil { //nolint:staticcheck // users may still have it
		out.MirrorPercent = root.MirrorPercent //nolint:staticcheck // as above
	}
	if out.MirrorPercentage == nil {
		out.MirrorPercentage = root.MirrorPercentage
	}
	if len(out.Mirrors) == 0 {
		out.Mirrors = root.Mirrors
	}
	if out.CorsPolicy == nil {
		out.CorsPolicy = root.CorsPolicy
	}
	if out.Headers == nil {
		out.Headers = root.Headers
	}
	return out
}

func joinNames(root, sub string) string {
	switch {
	case sub == "":
		return root
	case root == "":
		return sub
	}
	return root + "-" + sub
}

// mergeMatches combines every match of a delegate with every one of the root's
// that it may be narrowed from. Each must find one; false if one does not.
func mergeMatches(root, sub []*networking.HTTPMatchRequest) ([]*networking.HTTPMatchRequest, bool) {
	var out []*networking.HTTPMatchRequest
	switch {
	case len(root) == 0:
		return sub, true
	case len(sub) == 0:
		return root, true
	}
	for _, s := range sub {
		found := false
		for _, r := range root {
			if matchesConflict(r, s) {
				continue
			}
			out, found = append(out, mergeMatch(r, s)), true
		}
		if !found {
			return nil, false
		}
	}
	return out, true
}

func mergeMatch(root, sub *networking.HTTPMatchRequest) *networking.HTTPMatchRequest {
	out, root := proto.CloneOf(sub), proto.CloneOf(root)
	out.Name = joinNames(root.GetName(), sub.GetName())
	if out.Uri == nil {
		out.Uri = root.Uri
	}
	if out.Scheme == nil {
		out.Scheme = root.Scheme
	}
	if out.Method == nil {
		out.Method = root.Method
	}
	if out.Authority == nil {
		out.Authority = root.Authority
	}
	out.Headers = mergeMaps(root.Headers, out.Headers)
	out.WithoutHeaders = mergeMaps(root.WithoutHeaders, out.WithoutHeaders)
	out.QueryParams = mergeMaps(root.QueryParams, out.QueryParams)
	out.SourceLabels = mergeMaps(root.SourceLabels, out.SourceLabels)
	if out.Port == 0 {
		out.Port = root.Port
	}
	if out.SourceNamespace == "" {
		out.SourceNamespace = root.SourceNamespace
	}
	if len(out.Gateways) == 0 {
		out.Gateways = root.Gateways
	}
	if out.StatPrefix == "" {
		out.StatPrefix = root.StatPrefix
	}
	return out
}

func mergeMaps[V any](root, sub map[string]V) map[string]V {
	if len(root) == 0 {
		return sub
	}
	maps.Copy(root, sub)
	return root
}

// matchesConflict reports whether a delegate's match is not within the root's.
func matchesConflict(root, sub *networking.HTTPMatchRequest) bool {
	if textsConflict(root.GetUri(), sub.GetUri()) || textsConflict(root.GetScheme(), sub.GetScheme()) ||
		textsConflict(root.GetMethod(), sub.GetMethod()) || textsConflict(root.GetAuthority(), sub.GetAuthority()) {
		return true
	}
	if mapsConflict(root.GetHeaders(), sub.GetHeaders()) || mapsConflict(root.GetWithoutHeaders(), sub.GetWithoutHeaders()) ||
		mapsConflict(root.GetQueryParams(), sub.GetQueryParams()) || root.GetIgnoreUriCase() != sub.GetIgnoreUriCase() {
		return true
	}
	if root.GetPort() != 0 && sub.GetPort() != 0 && root.GetPort() != sub.GetPort() ||
		root.GetSourceNamespace() != "" && sub.GetSourceNamespace() != "" && root.GetSourceNamespace() != sub.GetSourceNamespace() {
		return true
	}
	for k, want := range sub.GetSourceLabels() {
		if have, ok := root.GetSourceLabels()[k]; ok && have != want {
			return true
		}
	}
	if len(root.GetGateways()) > 0 {
		return slices.ContainsFunc(sub.GetGateways(), func(g string) bool { return !slices.Contains(root.GetGateways(), g) })
	}
	return false
}

func mapsConflict(root, sub map[string]*networking.StringMatch) bool {
	for k, s := range sub {
		if textsConflict(root[k], s) {
			return true
		}
	}
	return false
}

// textsConflict reports whether what a delegate matches a text by is not within
// what the root does. Regular expressions are not compared.
func textsConflict(root, sub *networking.StringMatch) bool {
	if root == nil || sub == nil {
		return false
	}
	if root.GetRegex() != "" || sub.GetRegex() != "" {
		return true
	}
	if exact := root.GetExact(); exact != "" {
		return sub.GetExact() != exact
	}
	if prefix := root.GetPrefix(); prefix != "" {
		narrower := sub.GetExact()
		if narrower == "" {
			narrower = sub.GetPrefix()
		}
		return !strings.HasPrefix(narrower, prefix)
	}
	return true
}
