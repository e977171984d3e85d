package main

import (
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/serve"
	"github.com/isthmus-mesh/isthmus/manifests"
)

// TestUnknownVariables: of what Istio's chart sets, exactly what has no meaning
// here is named; what this build reads is known by being read.
func TestUnknownVariables(t *testing.T) {
	read := map[string]bool{}
	serve.Defaults(knownBy(func(string) string { return "" }, read))
	got := unknownVariables([]string{
		"REVISION=default", "PILOT_CERT_PROVIDER=istiod", "POD_NAME=a", "POD_NAMESPACE=b", "SERVICE_ACCOUNT=istiod", "KUBECONFIG=/x",
		"CA_TRUSTED_NODE_ACCOUNTS=istio-system/ztunnel", "CLUSTER_ID=c1", "EXTERNAL_ISTIOD=true", "SHARED_MESH_CONFIG=istio",
		"LOCAL_CLUSTER_SECRET_WATCHER=true", "PILOT_TRACE_SAMPLING=1", "PILOT_ENABLE_ANALYSIS=false", "PLATFORM=", "GODEBUG=",
		"PILOT_ENABLE_AMBIENT=true", "PATH=/bin", "HOME=/",
		// What Kubernetes sets for Services of these names.
		"ISTIOD_SERVICE_HOST=10.0.0.1", "ISTIOD_SERVICE_PORT=15010", "ISTIOD_SERVICE_PORT_HTTPS_DNS=15012", "ISTIOD_PORT=tcp://10.0.0.1:15010",
		"ISTIOD_PORT_15012_TCP=tcp://10.0.0.1:15012", "ISTIOD_PORT_15012_TCP_ADDR=10.0.0.1", "ISTIO_EASTWESTGATEWAY_PORT_15443_TCP_PROTO=tcp",
	}, read)
	require.Equal(t, []string{"PILOT_ENABLE_AMBIENT", "PILOT_ENABLE_ANALYSIS"}, got)
}

// TestChartStartsTheBinary: every argument and variable that the charts give the
// control plane has a meaning here.
func TestChartStartsTheBinary(t *testing.T) {
	objects, err := manifests.Render(manifests.Options{Chart: manifests.Primary, Values: map[string]any{
		"global": map[string]any{"logAsJson": true, "externalIstiod": true, "sds": map[string]any{"token": map[string]any{"aud": "mesh"}}}}})
	require.NoError(t, err)
	for _, o := range objects {
		if o.GetKind() != "Deployment" {
			continue
		}
		containers, _, err := unstructured.NestedSlice(o.Object, "spec", "template", "spec", "containers")
		require.NoError(t, err)
		container := containers[0].(map[string]any)
		var args, environ []string
		for _, x := range container["args"].([]any) {
			args = append(args, x.(string))
		}
		for _, x := range container["env"].([]any) {
			environ = append(environ, x.(map[string]any)["name"].(string)+"=")
		}
		require.Equal(t, "discovery", args[0], "the name under which istiod's chart starts it")
		cmd := environment{getenv: func(string) string { return "" }}.serveCommand()
		require.Contains(t, cmd.Aliases, args[0])
		require.NoError(t, cmd.ParseFlags(args[1:]))
		require.Empty(t, unknownFlags(cmd.Flags(), args[1:]))
		read := map[string]bool{}
		serve.Defaults(knownBy(func(string) string { return "" }, read))
		require.Empty(t, unknownVariables(environ, read))
		require.Contains(t, environ, "TOKEN_AUDIENCES=")
		require.Contains(t, environ, "EXTERNAL_ISTIOD=")
		return
	}
	t.Fatal("the chart has no Deployment")
}
