package main

import (
	"regexp"
	"slices"
	"strings"
)

// knownBy wraps a function that reads variables so that it notes their names.
func knownBy(getenv func(string) string, read map[string]bool) func(string) string {
	return func(name string) string {
		read[name] = true
		return getenv(name)
	}
}

// istiodPrefixes begin the names of istiod's variables.
func istiodPrefixes() []string {
	return []string{"AUDIENCE", "AUTO_", "BYPASS_", "CA_", "CERT_SIGNER_", "CITADEL_", "CLUSTER_", "COMPLIANCE_", "DEBUG_ENDPOINT_", "DEFAULT_WORKLOAD_",
		"DISABLE_", "ENABLE_", "ENFORCE_", "ENVOY_", "EXTERNAL_", "GATEWAY_", "GCP_", "INJECT", "ISTIOD_", "ISTIO_", "JWT_", "K8S_", "LABEL_CANONICAL_",
		"LOCAL_CLUSTER_", "MAX_WORKLOAD_", "MCS_", "METADATA_", "METRICS_", "MUTEX_", "PEER_METADATA_", "PERSIST_", "PILOT_", "PREFER_", "RESOLVE_",
		"REWRITE_", "ROOT_CA_", "SHARED_", "SPIFFE_", "TOKEN_", "TRUSTED_", "UNSAFE_", "USE_", "VALIDAT", "VERIFY_", "WASM_", "XDS_", "ZTUNNEL_"}
}

// unknownVariables lists the variables of istiod in an environment that nothing
// here reads, by name. Kubernetes' variables for Services may look like istiod's
// and are not.
func unknownVariables(environ []string, read map[string]bool) []string {
	service := regexp.MustCompile(`_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`)
	var out []string
	for _, entry := range environ {
		name, _, _ := strings.Cut(entry, "=")
		istiods := slices.ContainsFunc(istiodPrefixes(), func(p string) bool { return strings.HasPrefix(name, p) })
		if istiods && !read[name] && !service.MatchString(name) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}
