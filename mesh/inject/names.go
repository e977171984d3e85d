package inject

// Names of containers that injection knows by name.
const (
	// ProxyContainer is the proxy's container.
	ProxyContainer = "istio-proxy"
	// InitContainer redirects the pod's traffic to the proxy.
	InitContainer = "istio-init"
	// ValidationContainer checks that the CNI plugin has redirected it.
	ValidationContainer = "istio-validation"
	// coreDumpContainer allows core dumps.
	coreDumpContainer = "enable-core-dump"
)

// autoImage as the image of a container in the user's pod stands for the
// template's image: the field is required, and users who only want to add to
// the proxy's container have nothing to put there.
const autoImage = "auto"

// sidecarTemplate is used where nobody names another.
const sidecarTemplate = "sidecar"

// Labels.
const (
	labelInject         = "sidecar.istio.io/inject"
	labelRevision       = "istio.io/rev"
	labelInjection      = "istio-injection"
	labelNetwork        = "topology.istio.io/network"
	labelTemplateHash   = "pod-template-hash"
	labelRolloutHash    = "rollouts-pod-template-hash"
	labelDeploymentConf = "deploymentconfig"
)

// Annotations.
const (
	annotationInject          = "sidecar.istio.io/inject"
	annotationStatus          = "sidecar.istio.io/status"
	annotationTemplates       = "inject.istio.io/templates"
	annotationOverrides       = "proxy.istio.io/overrides"
	annotationProxyConfig     = "proxy.istio.io/config"
	annotationMergeMetrics    = "prometheus.istio.io/merge-metrics"
	annotationNativeSidecar   = "sidecar.istio.io/nativeSidecar"
	annotationRewriteProbes   = "sidecar.istio.io/rewriteAppHTTPProbers"
	annotationStatusPort      = "status.sidecar.istio.io/port"
	annotationInterception    = "sidecar.istio.io/interceptionMode"
	annotationImageType       = "sidecar.istio.io/proxyImageType"
	annotationInitBeforeProxy = "sidecar.istio.io/init-containers-before-proxy"
	annotationDeploymentConf  = "openshift.io/deployment-config.name"
	annotationUIDRange        = "openshift.io/sa.scc.uid-range"
	annotationGroups          = "openshift.io/sa.scc.supplemental-groups"
)

// Environment variables of the proxy.
const (
	// EnvCluster tells the proxy its cluster.
	EnvCluster = "ISTIO_META_CLUSTER_ID"
	// EnvNetwork tells the proxy its network.
	EnvNetwork    = "ISTIO_META_NETWORK"
	envNative     = "ENABLE_NATIVE_SIDECARS"
	envProbers    = "ISTIO_KUBE_APP_PROBERS"
	envPrometheus = "ISTIO_PROMETHEUS_ANNOTATIONS"
)
