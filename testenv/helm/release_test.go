package helm

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/isthmus-mesh/isthmus/ca/webhooks"
	"github.com/isthmus-mesh/isthmus/manifests"
	"github.com/isthmus-mesh/isthmus/testenv/apiserver"
)

// TestReleases takes every chart through its life with helm on a real API server:
// installed, upgraded with other values, rolled back, taken out. In between the
// control plane writes into its webhook configurations, which helm leaves alone.
func TestReleases(t *testing.T) {
	apiserver.NeedBinary(t)
	c := newCommand(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cluster, err := apiserver.Start(ctx, apiserver.Config{Name: "east"})
	require.NoError(t, err)
	t.Cleanup(func() { _ = cluster.Stop() })
	c.kubeconfig = filepath.Join(c.home, "config")
	require.NoError(t, os.WriteFile(c.kubeconfig, cluster.Kubeconfig(), 0o600))
	before := everything(ctx, t, cluster)

	primary := []string{chart(manifests.Primary), "--namespace", system, "--set", "global.multiCluster.clusterName=east,global.network=network-1"}
	c.run(append([]string{"install", "isthmus", "--create-namespace"}, primary...)...)
	c.run("install", "istio-eastwestgateway", chart(manifests.EastWest), "--namespace", system, "--set", "networkGateway=network-1")
	c.run("upgrade", "istio-eastwestgateway", chart(manifests.EastWest), "--namespace", system, "--set", "networkGateway=network-1,controlPlane.expose=true,autoscaling.enabled=false")
	services := schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "virtualservices"}
	_, err = cluster.Dynamic().Resource(services).Namespace(system).Get(ctx, "istiod-gateway", metav1.GetOptions{})
	require.NoError(t, err)

	controlPlaneWrites(ctx, t, cluster) // from here on Istio's objects are refused: nobody validates them
	for _, change := range [][]string{
		{"upgrade", "isthmus", "--set", "pilot.replicaCount=3,pilot.autoscaleEnabled=false"},
		{"upgrade", "isthmus", "--set", "revisionTags={prod},pilot.externalService.enabled=true"},
	} {
		c.run(append(change, primary...)...)
		requireBundles(ctx, t, cluster)
		controlPlaneWrites(ctx, t, cluster) // what helm made lax is enforced again
	}
	c.run("rollback", "isthmus", "1", "--namespace", system)
	requireBundles(ctx, t, cluster)
	require.Contains(t, c.run("list", "--namespace", system, "--output", "yaml"), "status: deployed")

	// A remote is another cluster; its objects meet none of the primary's under
	// another revision.
	remote := []string{chart(manifests.Remote), "--namespace", system, "--set", "revision=far,global.multiCluster.clusterName=west,global.remotePilotAddress=192.0.2.10"}
	c.run(append([]string{"install", "isthmus-remote"}, remote...)...)
	c.run(append([]string{"upgrade", "isthmus-remote", "--set", "global.network=network-2"}, remote...)...)

	for _, release := range []string{"isthmus-remote", "istio-eastwestgateway", "isthmus"} {
		c.run("uninstall", release, "--namespace", system)
	}
	require.NoError(t, cluster.Client().CoreV1().Namespaces().Delete(ctx, system, metav1.DeleteOptions{}))
	require.Eventually(t, func() bool { return slices.Equal(before, everything(ctx, t, cluster)) }, time.Minute, 50*time.Millisecond, "what is left: %v", everything(ctx, t, cluster))
}

// bundle is what the control plane writes.
const bundle = "-----BEGIN CERTIFICATE-----\nMIIBVDCB+6ADAgECAgEBMAoGCCqGSM49BAMCMBAxDjAMBgNVBAMTBW90aGVyMB4X\nDTI2MDEwMTAwMDAwMFoXDTM2MDEwMTAwMDAwMFowEDEOMAwGA1UEAxMFb3RoZXIw\nWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAQ=\n-----END CERTIFICATE-----\n"

// controlPlaneWrites runs what the control plane writes webhooks with until it has
// written all of them.
func controlPlaneWrites(ctx context.Context, t *testing.T, c *apiserver.Cluster) {
	t.Helper()
	p, err := webhooks.New(webhooks.Config{Client: c.Client(), SystemNamespace: system, Replica: "istiod-0", Bundle: func() []byte { return []byte(bundle) },
		Elect: func(ctx context.Context, lead func(context.Context)) error { lead(ctx); return nil },
		Works: func(context.Context, *admissionv1.ValidatingWebhook) error { return nil }})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	require.Eventually(t, func() bool {
		hasBundle, enforced := isWritten(ctx, t, c)
		return hasBundle && enforced
	}, time.Minute, 20*time.Millisecond)
	cancel()
	require.NoError(t, <-done)
}

// requireBundles: helm leaves the bundles alone.
func requireBundles(ctx context.Context, t *testing.T, c *apiserver.Cluster) {
	t.Helper()
	hasBundle, _ := isWritten(ctx, t, c)
	require.True(t, hasBundle, "helm has undone what the control plane wrote")
}

// isWritten reports whether the webhooks that the chart had at first have the
// bundle, and whether validation is enforced and left to whoever wants to say
// something else.
func isWritten(ctx context.Context, t *testing.T, c *apiserver.Cluster) (hasBundle, enforced bool) {
	t.Helper()
	api := c.Client().AdmissionregistrationV1()
	m, err := api.MutatingWebhookConfigurations().Get(ctx, "istio-sidecar-injector", metav1.GetOptions{})
	require.NoError(t, err)
	hasBundle, enforced = len(m.Webhooks) > 0, true
	for _, w := range m.Webhooks {
		hasBundle = hasBundle && string(w.ClientConfig.CABundle) == bundle
	}
	for _, name := range []string{"istio-validator-istio-system", "istiod-default-validator"} {
		v, err := api.ValidatingWebhookConfigurations().Get(ctx, name, metav1.GetOptions{})
		require.NoError(t, err)
		hasBundle = hasBundle && string(v.Webhooks[0].ClientConfig.CABundle) == bundle
		enforced = enforced && *v.Webhooks[0].FailurePolicy == admissionv1.Fail && !slices.ContainsFunc(v.ManagedFields, func(m metav1.ManagedFieldsEntry) bool {
			return m.Manager == webhooks.FieldManager && strings.Contains(string(m.FieldsV1.Raw), "f:failurePolicy")
		})
	}
	return hasBundle, enforced
}

// everything lists the objects that a release could leave behind.
func everything(ctx context.Context, t *testing.T, c *apiserver.Cluster) []string {
	t.Helper()
	var out []string
	for _, gvr := range []schema.GroupVersionResource{
		{Version: "v1", Resource: "namespaces"}, {Version: "v1", Resource: "services"}, {Version: "v1", Resource: "configmaps"},
		{Version: "v1", Resource: "serviceaccounts"}, {Version: "v1", Resource: "secrets"}, {Group: "apps", Version: "v1", Resource: "deployments"},
		{Group: "autoscaling", Version: "v2", Resource: "horizontalpodautoscalers"}, {Group: "policy", Version: "v1", Resource: "poddisruptionbudgets"},
		{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterroles"}, {Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterrolebindings"},
		{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "roles"}, {Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "rolebindings"},
		{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "mutatingwebhookconfigurations"},
		{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingwebhookconfigurations"},
	} {
		list, err := c.Dynamic().Resource(gvr).List(ctx, metav1.ListOptions{})
		require.NoError(t, err)
		for _, o := range list.Items {
			out = append(out, gvr.Resource+" "+o.GetNamespace()+"/"+o.GetName())
		}
	}
	slices.Sort(out)
	return out
}
