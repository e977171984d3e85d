package build

import (
	"slices"
	"strconv"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/matcher/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	typematcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"
)

// always enforces an ejection in all cases, in percent.
const always = 100

// applyOutliers ejects endpoints that fail from the choice for a while.
//
// A gateway is one endpoint however many pods are behind it, and ejecting it
// takes all of them away. So it is ejected by errors in a row only, which a few
// bad pods among many do not cause; never by a comparison of its success rate
// with that of single pods, which they would.
func (d *draft) applyOutliers(o *networking.OutlierDetection) {
	if o == nil {
		return
	}
	out := &clusterv3.OutlierDetection{EnforcingSuccessRate: u32(0)}
	if e := o.GetConsecutive_5XxErrors(); e != nil {
		out.Consecutive_5Xx, out.EnforcingConsecutive_5Xx = u32(e.GetValue()), enforced(e)
	}
	if e := o.GetConsecutiveGatewayErrors(); e != nil {
		out.ConsecutiveGatewayFailure, out.EnforcingConsecutiveGatewayFailure = u32(e.GetValue()), enforced(e)
	}
	if t := o.GetInterval(); positive(t) {
		out.Interval = t
	}
	if t := o.GetBaseEjectionTime(); positive(t) {
		out.BaseEjectionTime = t
	}
	if n := o.GetMaxEjectionPercent(); n > 0 {
		out.MaxEjectionPercent = u32(min(uint32(n), 100))
	}
	if o.GetSplitExternalLocalOriginErrors() {
		out.SplitExternalLocalOriginErrors = true
		out.EnforcingLocalOriginSuccessRate = u32(0)
		if e := o.GetConsecutiveLocalOriginFailures(); e.GetValue() > 0 {
			out.ConsecutiveLocalOriginFailure, out.EnforcingConsecutiveLocalOriginFailure = u32(e.GetValue()), enforced(e)
		}
	}
	d.OutlierDetection = out
	if n := o.GetMinHealthPercent(); n >= 0 {
		d.CommonLbConfig.HealthyPanicThreshold = &typev3.Percent{Value: float64(min(n, 100))}
	}
	if codes := o.GetOutlierDetectionHttpErrorCodes(); len(codes) > 0 {
		d.options().OutlierDetection = &httpv3.HttpProtocolOptions_OutlierDetection{ErrorMatcher: anyStatus(codes)}
	}
}

// enforced says whether a number of errors leads to an ejection: 0 switches it off.
func enforced(n *wrapperspb.UInt32Value) *wrapperspb.UInt32Value {
	if n.GetValue() == 0 {
		return u32(0)
	}
	return u32(always)
}

// anyStatus matches responses by their status.
func anyStatus(codes []uint32) *matcherv3.MatchPredicate {
	codes = slices.Compact(slices.Sorted(slices.Values(codes)))
	var rules []*matcherv3.MatchPredicate
	for _, c := range codes {
		rules = append(rules, &matcherv3.MatchPredicate{Rule: &matcherv3.MatchPredicate_HttpResponseHeadersMatch{
			HttpResponseHeadersMatch: &matcherv3.HttpHeadersMatch{Headers: []*routev3.HeaderMatcher{{
				Name: ":status",
				HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: &typematcher.StringMatcher{
					MatchPattern: &typematcher.StringMatcher_Exact{Exact: strconv.FormatUint(uint64(c), 10)}}},
			}}},
		}})
	}
	if len(rules) == 1 {
		return rules[0]
	}
	return &matcherv3.MatchPredicate{Rule: &matcherv3.MatchPredicate_OrMatch{OrMatch: &matcherv3.MatchPredicate_MatchSet{Rules: rules}}}
}
