package validate

// deprecatedButUsed lists deprecated fields that are set on purpose, with the
// reason.
func deprecatedButUsed() map[string]string {
	return map[string]string{
		"envoy.config.route.v3.RouteAction.max_grpc_timeout":                                             "as Istio sends it; Envoy keeps it for good",
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
