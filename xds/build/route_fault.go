package build

import (
	"math"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	commonfaultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	networking "istio.io/api/networking/v1alpha3"
)

const corsName = "envoy.filters.http.cors"

// httpFault translates faults that are put in on purpose; nil if there are none.
// One without a percentage hits nobody.
func httpFault(f *networking.HTTPFaultInjection) *faultv3.HTTPFault {
	out := &faultv3.HTTPFault{}
	if d := f.GetDelay(); d.GetFixedDelay() != nil {
		out.Delay = &commonfaultv3.FaultDelay{
			FaultDelaySecifier: &commonfaultv3.FaultDelay_FixedDelay{FixedDelay: d.GetFixedDelay()},
			Percentage:         percent(d.GetPercent()), //nolint:staticcheck // users may still have it
		}
		if d.GetPercentage() != nil {
			out.Delay.Percentage = millionths(d.GetPercentage())
		}
	}
	if a := f.GetAbort(); a != nil {
		abort := &faultv3.FaultAbort{}
		if a.GetPercentage() != nil {
			abort.Percentage = millionths(a.GetPercentage())
		}
		switch x := a.GetErrorType().(type) {
		case *networking.HTTPFaultInjection_Abort_HttpStatus:
			abort.ErrorType = &faultv3.FaultAbort_HttpStatus{HttpStatus: uint32(x.HttpStatus)}
			out.Abort = abort
		case *networking.HTTPFaultInjection_Abort_GrpcStatus:
			if code, ok := grpcStatus(x.GrpcStatus); ok {
				abort.ErrorType = &faultv3.FaultAbort_GrpcStatus{GrpcStatus: code}
				out.Abort = abort
			}
		}
	}
	if out.Delay == nil && out.Abort == nil {
		return nil
	}
	return out
}

// grpcStatus reads the name of a gRPC status.
func grpcStatus(name string) (uint32, bool) {
	for i, n := range []string{"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
		"PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL",
		"UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"} {
		if n == name {
			return uint32(i), true
		}
	}
	return 0, false
}

// millionths is a percentage in the finest steps that Envoy has.
func millionths(p *networking.Percent) *typev3.FractionalPercent {
	n := math.Round(p.GetValue() * 10_000)
	return &typev3.FractionalPercent{Numerator: uint32(max(0, min(n, 1_000_000))), Denominator: typev3.FractionalPercent_MILLION}
}

// percent is a whole percentage.
func percent[N int32 | uint32](n N) *typev3.FractionalPercent {
	return &typev3.FractionalPercent{Numerator: uint32(max(0, min(n, 100))), Denominator: typev3.FractionalPercent_HUNDRED}
}

// corsPolicy translates what browsers of other origins may do.
func corsPolicy(c *networking.CorsPolicy) *corsv3.CorsPolicy {
	out := &corsv3.CorsPolicy{
		ForwardNotMatchingPreflights: boolean(c.GetUnmatchedPreflights() != networking.CorsPolicy_IGNORE),
		FilterEnabled:                &corev3.RuntimeFractionalPercent{DefaultValue: percent[uint32](100)},
		AllowCredentials:             c.GetAllowCredentials(),
		AllowHeaders:                 strings.Join(c.GetAllowHeaders(), ","),
		AllowMethods:                 strings.Join(c.GetAllowMethods(), ","),
		ExposeHeaders:                strings.Join(c.GetExposeHeaders(), ","),
	}
	if c.GetMaxAge() != nil {
		out.MaxAge = strconv.FormatInt(c.GetMaxAge().GetSeconds(), 10)
	}
	for _, o := range c.GetAllowOrigins() {
		if o.GetMatchType() != nil {
			out.AllowOriginStringMatch = append(out.AllowOriginStringMatch, stringMatcher(o))
		}
	}
	if c.GetAllowOrigins() == nil {
		for _, o := range c.GetAllowOrigin() { //nolint:staticcheck // users may still have it
			out.AllowOriginStringMatch = append(out.AllowOriginStringMatch,
				&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: o}})
		}
	}
	return out
}
