package validate

// deprecatedButUsed lists deprecated fields that are set on purpose, with the
// reason.
func deprecatedButUsed() map[string]string {
	return map[string]string{
		"envoy.config.cluster.v3.Cluster.dns_jitter":                                                     "as Istio sends it; the extension that replaces it is unknown to older proxies",
		"envoy.config.cluster.v3.Cluster.dns_lookup_family":                                              "as dns_jitter",
		"envoy.config.cluster.v3.Cluster.dns_refresh_rate":                                               "as dns_jitter",
		"envoy.config.cluster.v3.Cluster.respect_dns_ttl":                                                "as dns_jitter",
		"envoy.config.route.v3.RouteAction.max_grpc_timeout":                                             "as Istio sends it; Envoy keeps it for good",
		"envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig.common_config":   "as Istio sends it; the fields that replace it are unknown to older proxies",
		"envoy.extensions.wasm.v3.PluginConfig.fail_open":                                                "what agents of all versions read to choose a filter for a module that they could not fetch",
		"envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext.match_subject_alt_names": "as Istio sends it, and the only one that gRPC reads",
	}
}

// structTypes lists types of Istio's own filters that no Go module publishes.
// They travel as TypedStruct, and what is in them cannot be checked.
func structTypes() map[string]string {
	return map[string]string{
		"type.googleapis.com/envoy.tcp.metadataexchange.config.MetadataExchange": "metadata exchange over TCP",
		"type.googleapis.com/io.istio.http.peer_metadata.Config":                 "metadata exchange over HTTP",
	}
}
