package install

import (
	"context"
	"encoding/base64"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/isthmus-mesh/isthmus/ca/webhooks"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/install"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/serve"
	"github.com/isthmus-mesh/isthmus/testenv/plane"
)

const injector = "istio-sidecar-injector"

// bundles are the bundles of an injection configuration, without repetition.
func (w *world) bundles(cluster, name string) []string {
	w.t.Helper()
	c, err := w.clusters[cluster].Client().AdmissionregistrationV1().MutatingWebhookConfigurations().Get(w.ctx, name, metav1.GetOptions{})
	require.NoError(w.t, err)
	var out []string
	for _, h := range c.Webhooks {
		out = append(out, string(h.ClientConfig.CABundle))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// overwrite writes a bundle into the first webhook of a configuration, as another
// manager.
func (w *world) overwrite(cluster, name, manager, bundle string) {
	w.t.Helper()
	_, err := w.clusters[cluster].Client().AdmissionregistrationV1().MutatingWebhookConfigurations().Patch(w.ctx, name, types.JSONPatchType,
		patchOf(w.t, `[{"op":"replace","path":"/webhooks/0/clientConfig/caBundle","value":%q}]`, base64.StdEncoding.EncodeToString([]byte(bundle))),
		metav1.PatchOptions{FieldManager: manager})
	require.NoError(w.t, err)
}

func (w *world) hasBundle(p *plane.Plane, cluster, name string) {
	w.t.Helper()
	want := []string{string(p.RootsPEM())}
	w.eventually("the bundle is in "+name+" of cluster "+cluster, func() bool { return slices.Equal(want, w.bundles(cluster, name)) })
}

// certificate is any certificate that is not the mesh's root.
const certificate = `-----BEGIN CERTIFICATE-----
MIIBVDCB+6ADAgECAgEBMAoGCCqGSM49BAMCMBAxDjAMBgNVBAMTBW90aGVyMB4X
DTI2MDEwMTAwMDAwMFoXDTM2MDEwMTAwMDAwMFowEDEOMAwGA1UEAxMFb3RoZXIw
WTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAQ=
-----END CERTIFICATE-----
`

// TestBundles: the bundle is in the configurations of our revision and its tags,
// in the primary and in a remote that names us, also when somebody empties it.
// Another revision's are left alone. What another manager insists on is told
// once, and left to it; what istiod has written is taken over.
func TestBundles(t *testing.T) {
	w := newWorld(t)
	api := w.clusters["east"].Client().AdmissionregistrationV1().MutatingWebhookConfigurations()
	other := func(name, rev, tag string) {
		made := &admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"istio.io/rev": rev}}}
		if tag != "" {
			made.Labels["istio.io/tag"] = tag
		}
		none, url := admissionv1.SideEffectClassNone, "https://"+w.webhooks+"/inject"
		for _, hook := range []string{"rev.object.sidecar-injector.istio.io", "something.else.example.com"} {
			made.Webhooks = append(made.Webhooks, admissionv1.MutatingWebhook{Name: hook, SideEffects: &none, AdmissionReviewVersions: []string{"v1"},
				ClientConfig:   admissionv1.WebhookClientConfig{URL: &url},
				ObjectSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"nobody": "matches"}}})
		}
		_, err := api.Create(w.ctx, made, metav1.CreateOptions{})
		require.NoError(t, err)
		t.Cleanup(func() { _ = api.Delete(context.WithoutCancel(w.ctx), name, metav1.DeleteOptions{}) })
	}
	other("tag-prod", "default", "prod")
	other("of-canary", "canary", "")
	p := w.start("istiod-0")
	w.join("west", "network-2")
	w.hasBundle(p, "east", injector)
	w.hasBundle(p, "west", injector)
	w.eventually("the tag's webhook is patched, and only ours in it", func() bool {
		return slices.Equal([]string{"", string(p.RootsPEM())}, w.bundles("east", "tag-prod"))
	})
	require.Equal(t, []string{""}, w.bundles("east", "of-canary"))
	w.overwrite("west", injector, "somebody", "")
	w.hasBundle(p, "west", injector)
	w.overwrite("west", injector, "pilot-discovery", certificate)
	w.hasBundle(p, "west", injector)

	// istiod comes back: it still runs.
	failures := `webhook_patch_failures_total{cluster="west",name="` + injector + `",reason="conflict"}`
	w.overwrite("west", injector, "cert-manager", certificate)
	w.eventually("the conflict is told", func() bool { return p.Metric(failures) == "1" })
	w.eventually("an Event says so", func() bool {
		return slices.ContainsFunc(w.events("istio-remote-secret-west"), func(e string) bool { return strings.Contains(e, "cert-manager keeps") })
	})
	require.Len(t, p.Overview().Registry.Problems, 1)
	require.Contains(t, p.Overview().Registry.Problems[0].Message, "cert-manager")
	// Whatever else changes in the object, it is not fought over.
	_, err := w.clusters["west"].Client().AdmissionregistrationV1().MutatingWebhookConfigurations().Patch(w.ctx, injector, types.MergePatchType,
		patchOf(t, `{"metadata":{"annotations":{"changed":"yes"}}}`), metav1.PatchOptions{FieldManager: "somebody"})
	require.NoError(t, err)
	w.overwrite("east", injector, "somebody", "") // what comes after has been seen
	w.hasBundle(p, "east", injector)
	require.Equal(t, "1", p.Metric(failures))
	require.Len(t, w.bundles("west", injector), 2)
	w.overwrite("west", injector, "cert-manager", "")
	w.hasBundle(p, "west", injector)
	w.eventually("the problem is gone", func() bool { return len(p.Overview().Registry.Problems) == 0 })
}

func gateways() schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "gateways"}
}

// TestValidationIsEnforced: validation begins lax and refuses when the control
// plane answers; installing again leaves that as it is, also with fewer webhooks.
func TestValidationIsEnforced(t *testing.T) {
	w := newWorld(t)
	api := w.clusters["east"].Client().AdmissionregistrationV1()
	policies := func() []admissionv1.FailurePolicyType {
		var out []admissionv1.FailurePolicyType
		for _, name := range []string{"istio-validator-istio-system", "istiod-default-validator"} {
			c, err := api.ValidatingWebhookConfigurations().Get(w.ctx, name, metav1.GetOptions{})
			require.NoError(t, err)
			for _, h := range c.Webhooks {
				out = append(out, *h.FailurePolicy)
			}
		}
		return out
	}
	require.Equal(t, []admissionv1.FailurePolicyType{"Ignore", "Ignore"}, policies())
	bad := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "networking.istio.io/v1", "kind": "Gateway",
		"metadata": map[string]any{"name": "bad", "namespace": "shop"}, "spec": map[string]any{}}}
	make := func() error {
		_, err := w.clusters["east"].Dynamic().Resource(gateways()).Namespace("shop").Create(w.ctx, bad, metav1.CreateOptions{DryRun: []string{"All"}})
		return err
	}
	require.NoError(t, make(), "nobody is kept from writing while nobody answers")
	p := w.start("istiod-0")
	w.eventually("validation is enforced", func() bool { return slices.Equal(policies(), []admissionv1.FailurePolicyType{"Fail", "Fail"}) })
	require.ErrorContains(t, make(), "denied the request")

	again := func(set ...string) string {
		var said strings.Builder
		plan, err := install.Input{Set: append(set, "global.multiCluster.clusterName=east", "global.network=network-1",
			"istiodRemote.injectionURL=https://"+w.webhooks+"/inject", "base.validationURL=https://"+w.webhooks+"/validate")}.Plan()
		require.NoError(t, err)
		i := &install.Installer{Target: w.target("east"), Out: &said, NoWait: true, Timeout: plane.Patience}
		require.NoError(t, i.Install(w.ctx, plan), "%s", &said)
		return said.String()
	}
	again() // we keep what is enforced, too
	require.NotContains(t, again(), "\nchanged")
	w.hasBundle(p, "east", injector)
	again("sidecarInjectorWebhook.enableNamespacesByDefault=true")
	w.hasBundle(p, "east", injector)
	require.Contains(t, again(), "changed    MutatingWebhookConfiguration "+injector, "the webhook that is not wanted any more goes")
	w.hasBundle(p, "east", injector)
	require.Equal(t, []admissionv1.FailurePolicyType{"Fail", "Fail"}, policies())

	p.Halt()
	require.Error(t, make(), "from then on nothing unchecked comes in")
}

// TestOneWriter is row 47: of two replicas one writes; when it goes the other
// takes its place.
func TestOneWriter(t *testing.T) {
	w := newWorld(t)
	first := w.start("istiod-0")
	w.join("west", "network-2")
	holder := func(cluster, lease string) string {
		l, err := w.clusters[cluster].Client().CoordinationV1().Leases(system).Get(w.ctx, lease, metav1.GetOptions{})
		if err != nil || l.Spec.HolderIdentity == nil {
			return ""
		}
		return *l.Spec.HolderIdentity
	}
	leads := func(pod string) {
		t.Helper()
		for _, x := range [][2]string{{"east", webhooks.Lease}, {"west", webhooks.Lease}, {"east", "isthmus-root-cert"}, {"west", "isthmus-root-cert"}, {"east", "isthmus-remote-tokens"}} {
			w.eventually(pod+" holds "+x[1]+" of cluster "+x[0], func() bool { return holder(x[0], x[1]) == pod })
		}
	}
	leads("istiod-0")
	elsewhere := func(s *serve.Settings) { s.HTTPSAddr = "127.0.0.1:0" }
	second := w.start("istiod-1", elsewhere)
	second.AwaitHealth("west", "ok")
	w.overwrite("west", injector, "somebody", "")
	w.hasBundle(first, "west", injector)
	leads("istiod-0")
	first.Halt()
	leads("istiod-1")
	w.overwrite("west", injector, "somebody", "")
	w.hasBundle(second, "west", injector)
	require.Equal(t, string(first.RootsPEM()), string(second.RootsPEM()))
	third := w.start("istiod-2", elsewhere)
	third.AwaitHealth("west", "ok")
	leads("istiod-1")
}

// TestWebhookDown is row 48: while nobody answers, a pod that is to have a proxy
// does not start without one; namespaces that ask for nothing, and the system
// namespace, go on.
func TestWebhookDown(t *testing.T) {
	w := newWorld(t)
	p := w.start("istiod-0")
	w.join("west", "network-2")
	w.create("west", pod("before"))
	p.Halt()
	api := w.clusters["west"].Client().CoreV1()
	_, err := api.Pods("shop").Create(w.ctx, pod("refused"), metav1.CreateOptions{})
	require.ErrorContains(t, err, "failed calling webhook")
	require.ErrorContains(t, err, "sidecar-injector.istio.io")
	for _, namespace := range []string{system, "kube-system", "default"} {
		require.NoError(t, w.clusters["west"].EnsureNamespace(w.ctx, namespace))
		_, err := api.Pods(namespace).Create(w.ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "plain"},
			Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "app"}}}}, metav1.CreateOptions{DryRun: []string{"All"}})
		require.NoError(t, err, "namespace %s", namespace)
	}
	_, err = api.Pods("shop").Create(w.ctx, func() *corev1.Pod {
		p := pod("without")
		p.Labels["sidecar.istio.io/inject"] = "false"
		return p
	}(), metav1.CreateOptions{DryRun: []string{"All"}})
	require.NoError(t, err, "a pod that refuses a proxy needs nobody")
	w.start("istiod-1")
	w.create("west", pod("refused"))
}
