package conformance

import (
	"io/fs"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	clientset "k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/gateway-api/apis/v1alpha2"
	"sigs.k8s.io/gateway-api/apis/v1alpha3"
	upstream "sigs.k8s.io/gateway-api/conformance"
	"sigs.k8s.io/gateway-api/conformance/tests"
	timeouts "sigs.k8s.io/gateway-api/conformance/utils/config"
	"sigs.k8s.io/gateway-api/conformance/utils/suite"
	"sigs.k8s.io/gateway-api/pkg/features"

	"github.com/isthmus-mesh/isthmus/registry/gatewayapi"
)

// supported are the features beside those of the core whose requests can be
// answered without a data plane.
func supported() []features.FeatureName {
	return []features.FeatureName{
		features.SupportHTTPRouteQueryParamMatching, features.SupportHTTPRouteMethodMatching, features.SupportHTTPRouteResponseHeaderModification,
		features.SupportHTTPRoutePortRedirect, features.SupportHTTPRouteSchemeRedirect, features.SupportHTTPRoutePathRedirect,
		features.SupportHTTPRouteHostRewrite, features.SupportHTTPRoutePathRewrite, features.SupportHTTPRouteBackendRequestHeaderModification,
		features.SupportHTTPRouteDestinationPortMatching, features.SupportHTTPRouteParentRefPort, features.SupportGatewayPort8080,
		features.SupportHTTPRoute303RedirectStatusCode, features.SupportHTTPRoute307RedirectStatusCode, features.SupportHTTPRoute308RedirectStatusCode,
		features.SupportHTTPRouteNamedRouteRule, features.SupportGRPCRouteNamedRouteRule,
		features.SupportTLSRouteModeTerminate, features.SupportTLSRouteModeMixed,
		features.SupportBackendTLSPolicy, features.SupportBackendTLSPolicySANValidation,
		features.SupportGatewayFrontendClientCertificateValidation, features.SupportGatewayFrontendClientCertificateValidationInsecureFallback,
		features.SupportGatewayAddressEmpty,
		features.SupportHTTPRouteRequestTimeout, features.SupportHTTPRouteBackendTimeout, features.SupportHTTPRouteBackendProtocolH2C,
		features.SupportMeshConsumerRoute, features.SupportMeshHTTPRouteRewritePath,
		features.SupportMeshHTTPRouteSchemeRedirect, features.SupportMeshHTTPRouteRedirectPort, features.SupportMeshHTTPRouteRedirectPath,
		features.SupportMeshHTTPRouteBackendRequestHeaderModification, features.SupportMeshHTTPRouteQueryParamMatching,
		features.SupportMeshHTTPRouteNamedRouteRule,
	}
}

// profiles are those whose core is claimed. Of UDP nothing is: there is no
// UDPRoute here. Those of TLS and TCP are left out where no doors can be opened.
func profiles(doors bool) []suite.ConformanceProfileName {
	out := []suite.ConformanceProfileName{suite.GatewayHTTPConformanceProfileName, suite.GatewayGRPCConformanceProfileName,
		suite.MeshHTTPConformanceProfileName, suite.MeshGRPCConformanceProfileName}
	if doors {
		out = append(out, suite.GatewayTLSConformanceProfileName, suite.GatewayTCPConformanceProfileName)
	}
	return out
}

// connections runs the tests that dial, or says why they cannot be run.
func connections(t *testing.T, w *world) bool {
	if w.doors.shut != nil {
		t.Run("Connections", func(t *testing.T) {
			t.Skipf("the profiles of TLS and TCP need sockets at port 80 (net.ipv4.ip_unprivileged_port_start=0, or root): %v", w.doors.shut)
		})
	}
	return w.doors.shut == nil
}

// skipped are the tests of the core that cannot be run here, with the reason.
func skipped() map[string]string {
	return map[string]string{}
}

// TestCore runs the suite's profiles.
func TestCore(t *testing.T) {
	w := newWorld(t)
	config := w.gate(t)
	api, err := client.New(config, client.Options{})
	require.NoError(t, err)
	require.NoError(t, v1alpha3.Install(api.Scheme()))
	require.NoError(t, v1alpha2.Install(api.Scheme()))
	require.NoError(t, gatewayv1.Install(api.Scheme()))
	require.NoError(t, apiextensionsv1.AddToScheme(api.Scheme()))
	all, err := clientset.NewForConfig(config)
	require.NoError(t, err)
	var skip []string
	for name, why := range skipped() {
		t.Logf("skipped: %s: %s", name, why)
		skip = append(skip, name)
	}
	times := timeouts.DefaultTimeoutConfig()
	times.MaxTimeToConsistency = 10 * time.Second // there is no data plane that has to hear of anything
	s, err := suite.NewConformanceTestSuite(suite.ConformanceOptions{
		ConfigurableOptions: suite.ConfigurableOptions{
			GatewayClassName: gatewayapi.ClassIstio, CleanupTestResources: true, TimeoutConfig: times,
			ConformanceProfiles: profiles(connections(t, w)), SupportedFeatures: supported(), SkipTests: skip, RunTest: os.Getenv("CONFORMANCE_TEST"), // "" for all
		},
		Client: api, Clientset: all, RestConfig: config, RoundTripper: roundTripper{w}, GRPCClient: caller{roundTripper{w}}, ManifestFS: []fs.FS{&upstream.Manifests},
	})
	require.NoError(t, err)
	t.Cleanup(func() { // when all tests have ended
		report, err := s.Report()
		require.NoError(t, err)
		for _, p := range report.ProfileReports {
			t.Logf("%s: core: %s %+v, skipped %v, failed %v", p.Name, p.Core.Result, p.Core.Statistics, p.Core.SkippedTests, p.Core.FailedTests)
			if x := p.Extended; x != nil {
				t.Logf("%s: extended: %s %+v, skipped %v, failed %v; claimed %v, not claimed %v", p.Name, x.Result, x.Statistics, x.SkippedTests, x.FailedTests,
					x.SupportedFeatures, x.UnsupportedFeatures)
			}
		}
	})
	s.Setup(t, tests.ConformanceTests)
	require.NoError(t, s.Run(t, tests.ConformanceTests))
}
