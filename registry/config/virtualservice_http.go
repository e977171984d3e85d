package config

import (
	"slices"
	"strconv"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
)

// validateHTTPRoute checks one route; delegate says that the virtual service is
// one that others delegate to.
func validateHTTPRoute(c *checker, r *networking.HTTPRoute, delegate bool) {
	validateRouteAction(c, r, delegate)
	for i, m := range r.GetMatch() {
		validateHTTPMatch(c.index("match", i), m)
	}
	validateHeaders(c.at("headers"), r.GetHeaders())
	validateCORS(c.at("corsPolicy"), r.GetCorsPolicy())
	validateFault(c.at("fault"), r.GetFault())
	validateMirrors(c, r)
	validateRedirect(c.at("redirect"), r.GetRedirect())
	validateDirectResponse(c.at("directResponse"), r.GetDirectResponse())
	validateRetries(c.at("retries"), r.GetRetries())
	validateRewrite(c.at("rewrite"), r.GetRewrite())
	validateAuthorityOnce(c, r)
	c.at("timeout").millis(r.GetTimeout())
	if d := r.GetDelegate(); d != nil && d.GetName() == "" {
		c.at("delegate.name").warnf("is empty; name the virtual service that decides")
	}
	var total int64
	for i, d := range r.GetRoute() {
		at := c.index("route", i)
		validateHeaders(at.at("headers"), d.GetHeaders())
		validateDestination(at.at("destination"), d.GetDestination(), true)
		at.at("weight").notNegative(int64(d.GetWeight()))
		total += int64(d.GetWeight())
	}
	c.at("route").someWeight(len(r.GetRoute()), total)
}

// someWeight checks the sum of the weights of several destinations.
func (c *checker) someWeight(destinations int, total int64) {
	if destinations > 1 && total == 0 {
		c.failf("has %d destinations of weight 0; give weights, 100 in all", destinations)
	}
}

// validateRouteAction checks that a route does one thing.
func validateRouteAction(c *checker, r *networking.HTTPRoute, delegate bool) {
	if r.GetDelegate() != nil {
		switch {
		case delegate:
			c.at("delegate").failf("is set in a virtual service without hosts, which others delegate to; delegate only once")
		case r.GetRedirect() != nil:
			c.at("redirect").failf("is set beside delegate; keep one")
			return
		case len(r.GetRoute()) > 0:
			c.at("route").failf("is set beside delegate; keep one")
			return
		default:
			return
		}
	}
	alone := ""
	switch {
	case r.GetRedirect() != nil:
		alone = "redirect"
		if r.GetDirectResponse() != nil {
			c.at("directResponse").failf("is set beside redirect; keep one")
		}
	case r.GetDirectResponse() != nil:
		alone = "directResponse"
	case len(r.GetRoute()) == 0:
		c.failf("does nothing with a request; give route, redirect or directResponse")
	}
	if alone == "" {
		return
	}
	if len(r.GetRoute()) > 0 {
		c.at("route").failf("is set beside %s; keep one", alone)
	}
	if r.GetFault() != nil {
		c.at("fault").failf("is set beside %s, which no fault can come before; remove it", alone)
	}
	if r.GetRewrite() != nil {
		c.at("rewrite").failf("is set beside %s; nothing is sent on, remove it", alone)
	}
}

func validateHTTPMatch(c *checker, m *networking.HTTPMatchRequest) {
	for _, k := range sortedKeys(m.GetHeaders()) {
		at := c.key("headers", k)
		at.matchedHeader(k)
		at.stringMatch(m.GetHeaders()[k], false)
	}
	for _, k := range sortedKeys(m.GetWithoutHeaders()) {
		at := c.key("withoutHeaders", k)
		at.matchedHeader(k)
		if v := m.GetWithoutHeaders()[k]; v.GetRegex() != "*" { // "*" means any value
			at.stringMatch(v, false)
		}
	}
	for _, k := range sortedKeys(m.GetQueryParams()) {
		c.key("queryParams", k).stringMatch(m.GetQueryParams()[k], false)
	}
	c.at("uri").stringMatch(m.GetUri(), true)
	c.at("scheme").stringMatch(m.GetScheme(), false)
	c.at("method").stringMatch(m.GetMethod(), false)
	c.at("authority").stringMatch(m.GetAuthority(), false)
	if m.GetPort() != 0 {
		c.at("port").port(int64(m.GetPort()))
	}
	c.labels("sourceLabels", m.GetSourceLabels())
	c.at("gateways").gatewayNames(m.GetGateways())
	if m.GetSourceNamespace() != "" {
		c.at("sourceNamespace").label(m.GetSourceNamespace(), "a namespace")
	}
}

// validateHeaders checks changes of headers. The authority may be set for what
// is sent on, by this or by rewrite.
func validateHeaders(c *checker, h *networking.Headers) {
	for _, d := range []struct {
		name string
		ops  *networking.Headers_HeaderOperations
	}{{"request", h.GetRequest()}, {"response", h.GetResponse()}} {
		at := c.at(d.name)
		for _, op := range []struct {
			name   string
			values map[string]string
		}{{"add", d.ops.GetAdd()}, {"set", d.ops.GetSet()}} {
			for _, k := range sortedKeys(op.values) {
				of := at.key(op.name, k)
				of.changedHeader(k, d.name == "request")
				of.headerValue(op.values[k])
			}
		}
		for i, k := range d.ops.GetRemove() {
			at.index("remove", i).changedHeader(k, false)
		}
	}
}

// validateAuthorityOnce checks that the authority is changed in one place.
func validateAuthorityOnce(c *checker, r *networking.HTTPRoute) {
	set := r.GetRewrite().GetAuthority() != ""
	ops := r.GetHeaders().GetRequest()
	for _, op := range []struct {
		name   string
		values map[string]string
	}{{"set", ops.GetSet()}, {"add", ops.GetAdd()}} {
		for _, k := range sortedKeys(op.values) {
			if !isAuthority(k) {
				continue
			}
			if set {
				c.at("headers.request").key(op.name, k).failf("changes the authority, which something else of the route does too; keep one")
			}
			set = true
		}
	}
}

func validateCORS(c *checker, p *networking.CorsPolicy) {
	for i, o := range p.GetAllowOrigins() {
		at := c.index("allowOrigins", i)
		if o.GetExact() == "" && o.GetPrefix() == "" && o.GetRegex() == "" {
			at.failf("is empty; give exact, prefix or regex")
			continue
		}
		at.stringMatch(o, false)
	}
	for i, m := range p.GetAllowMethods() {
		if !slices.Contains([]string{"*", "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE"}, m) {
			c.index("allowMethods", i).failf(`%q is not a method of HTTP; write it in capitals, or "*" for all`, clip(m))
		}
	}
	c.at("allowHeaders").headerNames(p.GetAllowHeaders())
	c.at("exposeHeaders").headerNames(p.GetExposeHeaders())
	c.at("maxAge").millis(p.GetMaxAge())
	if p.GetMaxAge().GetNanos() > 0 {
		c.at("maxAge").failf("is not whole seconds; round it")
	}
}

// headerNames checks a list of headers, of which "*" is any.
func (c *checker) headerNames(list []string) {
	for i, n := range list {
		if n != "*" {
			c.element(i).headerName(n)
		}
	}
}

func validateFault(c *checker, f *networking.HTTPFaultInjection) {
	if f == nil {
		return
	}
	if f.GetAbort() == nil && f.GetDelay() == nil {
		c.failf("is empty; give abort or delay")
	}
	if a := f.GetAbort(); a != nil {
		at := c.at("abort")
		at.at("percentage").fraction(a.GetPercentage())
		switch e := a.GetErrorType().(type) {
		case *networking.HTTPFaultInjection_Abort_HttpStatus:
			at.at("httpStatus").status(int64(e.HttpStatus))
		case *networking.HTTPFaultInjection_Abort_GrpcStatus:
			if !slices.Contains(grpcStatuses(), e.GrpcStatus) {
				at.at("grpcStatus").failf("%q is not a status of gRPC; use one of %s", clip(e.GrpcStatus), strings.Join(grpcStatuses(), ", "))
			}
		case *networking.HTTPFaultInjection_Abort_Http2Error:
			at.at("http2Error").failf("cannot be injected; use httpStatus or grpcStatus")
		default:
			at.warnf("does not say what to answer with; give httpStatus or grpcStatus")
		}
	}
	if d := f.GetDelay(); d != nil {
		at := c.at("delay")
		at.at("percentage").fraction(d.GetPercentage())
		switch t := d.GetHttpDelayType().(type) {
		case *networking.HTTPFaultInjection_Delay_FixedDelay:
			at.at("fixedDelay").millis(t.FixedDelay)
		case *networking.HTTPFaultInjection_Delay_ExponentialDelay:
			at.at("exponentialDelay").failf("cannot be injected; use fixedDelay")
		}
	}
}

func grpcStatuses() []string {
	return []string{"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
		"PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
		"INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"}
}

func validateMirrors(c *checker, r *networking.HTTPRoute) {
	validateDestination(c.at("mirror"), r.GetMirror(), false)
	if r.GetMirror() != nil && len(r.GetMirrors()) > 0 {
		c.at("mirror").failf("is set beside mirrors; move it there")
	}
	if p := r.GetMirrorPercent(); p != nil { //nolint:staticcheck // deprecated, and that is what is said
		c.at("mirrorPercent").percent(int64(p.GetValue()))
		c.at("mirrorPercent").warnf("is deprecated; use mirrorPercentage")
	}
	c.at("mirrorPercentage").share(r.GetMirrorPercentage())
	for i, m := range r.GetMirrors() {
		at := c.index("mirrors", i)
		validateDestination(at.at("destination"), m.GetDestination(), true)
		at.at("percentage").share(m.GetPercentage())
	}
}

// share checks a percentage of which any fraction is good.
func (c *checker) share(p *networking.Percent) {
	if v := p.GetValue(); !(v >= 0 && v <= 100) {
		c.at("value").failf("%v is not a percentage; use 0-100", v)
	}
}

func validateRedirect(c *checker, r *networking.HTTPRedirect) {
	if r == nil {
		return
	}
	if r.GetUri() == "" && r.GetAuthority() == "" && r.GetRedirectPort() == nil && r.GetScheme() == "" {
		c.failf("leads nowhere else; give uri, authority, scheme or port")
	}
	if n := r.GetRedirectCode(); n != 0 && (n < 300 || n > 399) {
		c.at("redirectCode").failf("%d is not the status of a redirect; use 300-399", n)
	}
	if s := r.GetScheme(); s != "" && s != "http" && s != "https" {
		c.at("scheme").failf("%q is not known; use http or https", clip(s))
	}
	if r.GetPort() > 0 {
		c.at("port").port(int64(r.GetPort()))
	}
}

func validateDirectResponse(c *checker, d *networking.HTTPDirectResponse) {
	if d == nil {
		return
	}
	const soft, hard = 100 << 10, 1 << 20
	switch n := max(len(d.GetBody().GetString_()), len(d.GetBody().GetBytes())); {
	case n > hard:
		c.at("body").failf("is %d bytes long; every proxy holds it, use at most %d", n, hard)
	case n > soft:
		c.at("body").warnf("is %d bytes long; every proxy holds it", n)
	}
	c.at("status").status(int64(d.GetStatus()))
}

func validateRetries(c *checker, r *networking.HTTPRetry) {
	if r == nil {
		return
	}
	c.at("attempts").notNegative(int64(r.GetAttempts()))
	if r.GetAttempts() == 0 && (r.GetPerTryTimeout() != nil || r.GetRetryOn() != "" || r.GetRetryRemoteLocalities() != nil) {
		c.at("attempts").failf("is 0, which turns retries off; remove the other settings or give a number")
	}
	c.at("perTryTimeout").millis(r.GetPerTryTimeout())
	c.at("backoff").millis(r.GetBackoff())
	if r.GetRetryOn() == "" {
		return
	}
	for _, t := range strings.Split(r.GetRetryOn(), ",") {
		if n, err := strconv.Atoi(t); (err != nil || !isStatus(n)) && !slices.Contains(retryConditions(), t) {
			c.at("retryOn").failf("%q is not a reason to retry; use statuses and %s, with commas and no blanks between", clip(t), strings.Join(retryConditions(), ", "))
		}
	}
}

// retryConditions lists what proxies may retry on.
func retryConditions() []string {
	return []string{"5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "retriable-4xx", "refused-stream",
		"retriable-status-codes", "retriable-headers", "envoy-ratelimited", "http3-post-connect-failure",
		"cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable"}
}

func validateRewrite(c *checker, r *networking.HTTPRewrite) {
	if r == nil {
		return
	}
	re := r.GetUriRegexRewrite()
	switch {
	case r.GetUri() != "" && re != nil:
		c.failf("has both uri and uriRegexRewrite; keep one")
	case r.GetUri() == "" && re == nil && r.GetAuthority() == "":
		c.failf("is empty; give uri, uriRegexRewrite or authority")
	}
	if re == nil {
		return
	}
	if re.GetRewrite() == "" {
		c.at("uriRegexRewrite.rewrite").failf("is empty; say what replaces the match")
	}
	c.at("uriRegexRewrite.match").regex(re.GetMatch())
}

// validateDestination checks where requests go to.
func validateDestination(c *checker, d *networking.Destination, required bool) {
	if d == nil {
		if required {
			c.failf("is missing; name the host")
		}
		return
	}
	if d.GetHost() == "*" {
		c.at("host").failf(`"*" is no place to send to; name a host`)
	} else {
		c.at("host").host(d.GetHost(), true)
	}
	if d.GetSubset() != "" {
		c.at("subset").label(d.GetSubset(), "a subset")
	}
	if d.GetPort() != nil {
		c.at("port.number").port(int64(d.GetPort().GetNumber()))
	}
}
