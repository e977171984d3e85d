package build

import (
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry/gatewayapi"
)

// Objects of the Kubernetes Gateway API come as the Istio objects that they were
// translated into (registry/gatewayapi). What these cannot say is added here:
// paths are matched by whole segments, what leads nowhere is answered with 500,
// and Gateways are for the routers of one namespace.

// metadataRoute is the key under which a route names the route of the Gateway API
// that it was made from.
const metadataRoute = "route"

// gatewayRule returns what a rule of a derived VirtualService cannot say, nil for
// one that a user wrote.
func gatewayRule(o *mesh.Object, i int) *gatewayapi.Rule {
	if all, ok := o.Value.(gatewayapi.Rules); ok && i < len(all) {
		return &all[i]
	}
	return nil
}

// boundTo reports whether a Gateway may be for a router: one of the Gateway API
// is for those of one namespace.
func boundTo(o *mesh.Object, v View) bool {
	b, ok := o.Value.(*gatewayapi.Binding)
	return !ok || b.Namespace == v.Namespace
}

// asRouted makes a route mean what the Gateway API wants.
func asRouted(out *routev3.Route, rule httpRule) {
	if p := out.GetMatch().GetPrefix(); p != "" && p != "/" {
		out.Match.PathSpecifier = &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: p}
	}
	if a := out.GetRoute(); a != nil {
		a.ClusterNotFoundResponseCode = routev3.RouteAction_INTERNAL_SERVER_ERROR
	}
	if a := out.GetRedirect(); a != nil {
		if x := rule.routed.RedirectPath(a.GetPrefixRewrite()); x != nil {
			a.PathRewriteSpecifier = &routev3.RedirectAction_RegexRewrite{RegexRewrite: regexRewrite(x)}
		}
	}
	origin := rule.routed.Origin
	out.Metadata.FilterMetadata[metadataIstio].Fields[metadataRoute] =
		stringValue("/apis/gateway.networking.k8s.io/v1/namespaces/" + origin.Namespace + "/" + strings.ToLower(string(origin.Kind)) + "/" + origin.Name)
}

func regexRewrite(x *networking.RegexRewrite) *matcherv3.RegexMatchAndSubstitute {
	return &matcherv3.RegexMatchAndSubstitute{Pattern: regexMatcher(x.GetMatch()), Substitution: x.GetRewrite()}
}
