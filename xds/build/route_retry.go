package build

import (
	"net/http"
	"slices"
	"strconv"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	previoushostsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	previousprioritiesv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/priority/previous_priorities/v3"
	networking "istio.io/api/networking/v1alpha3"
)

const (
	// retryOn are the failures after which a request is safe to send again.
	retryOn = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
	// retryStatus has a request sent again after the statuses that are listed.
	retryStatus = "retriable-status-codes"
	// defaultRetries is how often a request is sent again.
	defaultRetries = 2
	// hostAttempts is how often a retry may look for a host not tried before.
	hostAttempts = 5
	// priorityAttempts is after how many attempts the priorities that were tried
	// are left out.
	priorityAttempts = 2
)

// retryPolicy translates retries; nil stands for the default and 0 attempts for
// none. sticky says that requests are bound to endpoints by a hash, so that a
// retry must not look for another one.
func retryPolicy(r *networking.HTTPRetry, sticky bool) *routev3.RetryPolicy {
	if r != nil && r.GetAttempts() <= 0 {
		return nil
	}
	out := &routev3.RetryPolicy{RetryOn: retryOn, NumRetries: u32(defaultRetries), HostSelectionRetryMaxAttempts: hostAttempts}
	if r != nil {
		out.NumRetries = u32(uint32(r.GetAttempts()))
		out.PerTryTimeout = r.GetPerTryTimeout()
		if r.GetRetryOn() != "" {
			out.RetryOn, out.RetriableStatusCodes = readRetryOn(r.GetRetryOn())
		}
		if r.GetBackoff() != nil {
			out.RetryBackOff = &routev3.RetryPolicy_RetryBackOff{BaseInterval: r.GetBackoff()}
		}
		if r.GetRetryRemoteLocalities().GetValue() {
			out.RetryPriority = &routev3.RetryPolicy_RetryPriority{
				Name: "envoy.retry_priorities.previous_priorities",
				ConfigType: &routev3.RetryPolicy_RetryPriority_TypedConfig{
					TypedConfig: mustAny(&previousprioritiesv3.PreviousPrioritiesConfig{UpdateFrequency: priorityAttempts}),
				},
			}
		}
	}
	elsewhere := !sticky
	if r.GetRetryIgnorePreviousHosts() != nil {
		elsewhere = r.GetRetryIgnorePreviousHosts().GetValue()
	}
	if elsewhere {
		out.RetryHostPredicate = []*routev3.RetryPolicy_RetryHostPredicate{{
			Name: "envoy.retry_host_predicates.previous_hosts",
			ConfigType: &routev3.RetryPolicy_RetryHostPredicate_TypedConfig{
				TypedConfig: mustAny(&previoushostsv3.PreviousHostsPredicate{}),
			},
		}}
	}
	return out
}

// readRetryOn separates HTTP statuses from the conditions that Envoy has names for.
func readRetryOn(s string) (string, []uint32) {
	var names []string
	var statuses []uint32
	for part := range strings.SplitSeq(s, ",") {
		part = strings.TrimSpace(part)
		if n, err := strconv.Atoi(part); err == nil && http.StatusText(n) != "" {
			statuses = append(statuses, uint32(n))
		} else if part != "" {
			names = append(names, part)
		}
	}
	if len(statuses) > 0 && !slices.Contains(names, retryStatus) {
		names = append(names, retryStatus)
	}
	return strings.Join(names, ","), statuses
}
