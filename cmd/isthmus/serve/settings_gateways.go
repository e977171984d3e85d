package serve

// Gateways are the settings of routers for Gateways of the Kubernetes Gateway
// API. They come from the environment, under istiod's names.
type Gateways struct {
	// Deploy (PILOT_ENABLE_GATEWAY_API_DEPLOYMENT_CONTROLLER, on unless it says no)
	// gives Gateways a Deployment and a Service of their own.
	Deploy bool
	// CopyMetadata (PILOT_ENABLE_GATEWAY_API_COPY_LABELS_ANNOTATIONS, on unless it
	// says no) puts a Gateway's own labels and annotations on what is made for it.
	CopyMetadata bool
}

func gatewayDefaults(getenv func(string) string) Gateways {
	return Gateways{Deploy: !isFalse(getenv("PILOT_ENABLE_GATEWAY_API_DEPLOYMENT_CONTROLLER")),
		CopyMetadata: !isFalse(getenv("PILOT_ENABLE_GATEWAY_API_COPY_LABELS_ANNOTATIONS"))}
}
