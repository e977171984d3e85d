package apiserver

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestResourceOf(t *testing.T) {
	for path, want := range map[string]string{
		"/api/v1/pods":                                                      "pods",
		"/api/v1/namespaces":                                                "namespaces",
		"/api/v1/namespaces/shop":                                           "namespaces",
		"/api/v1/namespaces/shop/status":                                    "namespaces/status",
		"/api/v1/namespaces/shop/pods":                                      "pods",
		"/api/v1/namespaces/shop/pods/a":                                    "pods",
		"/api/v1/namespaces/shop/pods/a/log":                                "pods/log",
		"/apis/apps/v1/deployments":                                         "deployments",
		"/apis/coordination.k8s.io/v1/namespaces/istio-system/leases/a":     "leases",
		"/apis/networking.istio.io/v1/namespaces/a/serviceentries/b/status": "serviceentries/status",
		"/version": "/version",
		"/":        "/",
	} {
		require.Equal(t, want, resourceOf(path), path)
	}
}
