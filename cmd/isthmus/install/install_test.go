package install_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/install"
	"github.com/isthmus-mesh/isthmus/manifests"
)

// lab is an installer with what it said.
type lab struct {
	*install.Installer
	out    *bytes.Buffer
	client kubernetes.Interface
}

func newLab(t *testing.T) lab {
	t.Helper()
	c := cluster(t)
	target, err := install.NewTarget("east", c.REST())
	require.NoError(t, err)
	out := &bytes.Buffer{}
	return lab{&install.Installer{Target: target, Out: out, NoWait: true, Poll: 20 * time.Millisecond, Timeout: 30 * time.Second}, out, c.Client()}
}

// plan is an installation in a namespace of its own, as a revision named like it.
func plan(t *testing.T, name string, set ...string) install.Plan {
	t.Helper()
	p, err := install.Input{Namespace: name, Revision: name, Set: set}.Plan()
	require.NoError(t, err)
	return p
}

// left counts the objects of a release.
func (l lab) left(t *testing.T, p install.Plan) int {
	t.Helper()
	n := 0
	for _, i := range p.Installations {
		l.out.Reset()
		dry := *l.Installer
		dry.DryRun = true
		err := dry.Uninstall(t.Context(), i.Release, i.Namespace)
		if err != nil {
			require.ErrorIs(t, err, install.ErrNothing)
			continue
		}
		n += strings.Count(l.out.String(), "would be deleted")
	}
	return n
}

// TestInstall: everything is applied by server-side apply and accepted by a real
// API server; again changes nothing; what a plan does not have any more goes;
// uninstalling leaves nothing behind.
func TestInstall(t *testing.T) {
	l := newLab(t)
	p := plan(t, "whole")
	gateway, err := install.Input{Namespace: "whole", Profile: "eastwest", Set: []string{"networkGateway=network-1"}, Release: "whole-gateway"}.Plan()
	require.NoError(t, err)
	p.Installations = append(p.Installations, gateway.Installations...)
	objects, err := p.Objects()
	require.NoError(t, err)

	require.NoError(t, l.Install(t.Context(), p))
	require.Equal(t, len(objects), l.left(t, p))
	crds, err := manifests.CRDs()
	require.NoError(t, err)
	for _, o := range crds {
		_, err := cluster(t).Client().Discovery().ServerResourcesForGroupVersion(groupVersion(t, o.Object))
		require.NoError(t, err)
	}

	l.out.Reset()
	require.NoError(t, l.Install(t.Context(), p))
	require.NotContains(t, l.out.String(), "created")
	require.NotContains(t, l.out.String(), "\nchanged")
	require.Equal(t, len(objects), strings.Count(l.out.String(), "unchanged"), "%s", l.out)

	manifests.Set(p.Installations[0].Values, "pilot.autoscaleEnabled", false)
	l.out.Reset()
	require.NoError(t, l.Install(t.Context(), p))
	require.Contains(t, l.out.String(), "deleted    HorizontalPodAutoscaler whole/istiod-whole")

	for _, i := range p.Installations {
		require.NoError(t, l.Uninstall(t.Context(), i.Release, i.Namespace))
	}
	require.Zero(t, l.left(t, p))
	_, err = l.client.CoreV1().Namespaces().Get(t.Context(), "whole", metav1.GetOptions{})
	require.NoError(t, err, "the namespace is the user's")
}

func groupVersion(t *testing.T, crd map[string]any) string {
	t.Helper()
	spec := crd["spec"].(map[string]any)
	version := spec["versions"].([]any)[0].(map[string]any)["name"].(string)
	return spec["group"].(string) + "/" + version
}

// TestRemoteInstall: the remote's chart is accepted, with an address and with a
// name.
func TestRemoteInstall(t *testing.T) {
	for name, address := range map[string]string{"remote-address": "192.0.2.10", "remote-six": "2001:db8::10", "remote-name": "pilot.example.com"} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			p, err := install.Input{Profile: "remote", Namespace: name, Revision: name,
				Set: []string{"global.remotePilotAddress=" + address, "global.multiCluster.clusterName=west", "global.network=network-2"}}.Plan()
			require.NoError(t, err)
			require.NoError(t, l.Install(t.Context(), p))
			service, err := l.client.CoreV1().Services(name).Get(t.Context(), "istiod-"+name, metav1.GetOptions{})
			require.NoError(t, err)
			require.Equal(t, strings.Contains(address, "example"), service.Spec.Type == corev1.ServiceTypeExternalName)
			ns, err := l.client.CoreV1().Namespaces().Get(t.Context(), name, metav1.GetOptions{})
			require.NoError(t, err)
			require.Equal(t, "network-2", ns.Labels["topology.istio.io/network"])
			hooks, err := l.client.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(t.Context(), "istio-sidecar-injector-"+name+"-"+name, metav1.GetOptions{})
			require.NoError(t, err)
			require.Equal(t, "/inject/cluster/west/net/network-2", *hooks.Webhooks[0].ClientConfig.Service.Path)
			require.NoError(t, l.Uninstall(t.Context(), p.Installations[0].Release, name))
			require.Zero(t, l.left(t, p))
		})
	}
}

// TestDryRun changes nothing, not even the namespace.
func TestDryRun(t *testing.T) {
	l := newLab(t)
	l.DryRun = true
	require.NoError(t, l.Install(t.Context(), plan(t, "dry")))
	require.Contains(t, l.out.String(), "would be created Deployment dry/istiod-dry")
	_, err := l.client.CoreV1().Namespaces().Get(t.Context(), "dry", metav1.GetOptions{})
	require.True(t, apierrors.IsNotFound(err))
}

// TestCollision: an object of somebody else is named with its writer, and nothing
// is changed; --force takes it over.
func TestCollision(t *testing.T) {
	l, ctx := newLab(t), t.Context()
	require.NoError(t, cluster(t).EnsureNamespace(ctx, "taken"))
	_, err := l.client.CoreV1().ConfigMaps("taken").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "istio-taken",
		Annotations: map[string]string{"meta.helm.sh/release-name": "istiod"}}, Data: map[string]string{"mesh": "theirs"}}, metav1.CreateOptions{FieldManager: "somebody"})
	require.NoError(t, err)
	p := plan(t, "taken")
	err = l.Install(ctx, p)
	require.ErrorIs(t, err, install.ErrPreflight)
	require.Contains(t, l.out.String(), "ConfigMap taken/istio-taken is there already and is not ours (written by somebody, Helm release istiod)")
	require.Zero(t, l.left(t, p))

	l.Force = true
	require.NoError(t, l.Install(ctx, p))
	got, err := l.client.CoreV1().ConfigMaps("taken").Get(ctx, "istio-taken", metav1.GetOptions{})
	require.NoError(t, err)
	require.Contains(t, got.Data["mesh"], "discoveryAddress")
	l.Force = false
	require.NoError(t, l.Uninstall(ctx, p.Installations[0].Release, "taken"))
}

// TestOtherRelease: objects of another release of ours are somebody else's too.
func TestOtherRelease(t *testing.T) {
	l, ctx := newLab(t), t.Context()
	p := plan(t, "twice")
	require.NoError(t, l.Install(ctx, p))
	again := plan(t, "twice")
	again.Installations[0].Release = "second"
	require.ErrorIs(t, l.Install(ctx, again), install.ErrPreflight)
	require.Contains(t, l.out.String(), "of release isthmus-twice")
	require.NoError(t, l.Uninstall(ctx, p.Installations[0].Release, "twice"))
}

// TestFieldConflict: what somebody else has set in an object of ours is not
// overwritten in silence.
func TestFieldConflict(t *testing.T) {
	l, ctx := newLab(t), t.Context()
	p := plan(t, "conflict")
	require.NoError(t, l.Install(ctx, p))
	_, err := l.client.CoreV1().ConfigMaps("conflict").Patch(ctx, "istio-conflict", types.MergePatchType,
		[]byte(`{"data":{"mesh":"edited"}}`), metav1.PatchOptions{FieldManager: "editor"})
	require.NoError(t, err)
	err = l.Install(ctx, p)
	require.ErrorContains(t, err, "ConfigMap conflict/istio-conflict in cluster east")
	require.ErrorContains(t, err, "editor")
	require.ErrorContains(t, err, "--force")
	require.NoError(t, l.Uninstall(ctx, p.Installations[0].Release, "conflict"))
}

// TestInsufficientRights: every rule that is missing is named, those for applying
// and those that could not be passed on.
func TestInsufficientRights(t *testing.T) {
	l, ctx := newLab(t), t.Context()
	require.NoError(t, cluster(t).EnsureNamespace(ctx, "poor"))
	weak := l.as(t, "poor", "weak", []rbacv1.PolicyRule{
		{APIGroups: []string{"apiextensions.k8s.io", "admissionregistration.k8s.io", "rbac.authorization.k8s.io", "apps", "autoscaling", "policy"}, Resources: []string{"*"}, Verbs: []string{"get", "list", "create", "patch", "delete"}},
		{APIGroups: []string{""}, Resources: []string{"services", "serviceaccounts"}, Verbs: []string{"get", "list", "create", "patch", "delete"}},
		{APIGroups: []string{""}, Resources: []string{"namespaces"}, Verbs: []string{"get"}},
		{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: []string{"get", "list", "delete"}},
	})
	target, err := install.NewTarget("east", weak)
	require.NoError(t, err)
	l.Target = target
	err = l.Install(ctx, plan(t, "poor"))
	require.ErrorIs(t, err, install.ErrPreflight)
	said := l.out.String()
	for _, rule := range []string{
		"cluster east: you may not create configmaps in namespace poor\n",
		"cluster east: you may not patch configmaps in namespace poor\n",
		"you may not watch services, so you cannot grant it in ClusterRole isthmus-poor-poor-registry",
		"you may not create tokenreviews.authentication.k8s.io, so you cannot grant it in ClusterRole isthmus-poor-poor-identity",
		"you may not update configmaps istio-ca-root-cert, so you cannot grant it in ClusterRole isthmus-poor-poor-roots",
		"you may not update leases.coordination.k8s.io in namespace poor, so you cannot grant it in Role poor/istiod-poor",
	} {
		require.Contains(t, said, rule)
	}
	require.NotContains(t, said, "may not create services")
	require.NotContains(t, said, "namespaces\n", "the namespace is there")
	_, err = l.client.CoreV1().ServiceAccounts("poor").Get(ctx, "istiod-poor", metav1.GetOptions{})
	require.True(t, apierrors.IsNotFound(err), "nothing was changed")
}

// as returns credentials of a service account with these rules.
func (l lab) as(t *testing.T, namespace, name string, rules []rbacv1.PolicyRule) *rest.Config {
	t.Helper()
	ctx, opts := t.Context(), metav1.CreateOptions{}
	meta := metav1.ObjectMeta{Name: name, Namespace: namespace}
	_, err := l.client.CoreV1().ServiceAccounts(namespace).Create(ctx, &corev1.ServiceAccount{ObjectMeta: meta}, opts)
	require.NoError(t, err)
	wide := metav1.ObjectMeta{Name: namespace + "-" + name}
	_, err = l.client.RbacV1().ClusterRoles().Create(ctx, &rbacv1.ClusterRole{ObjectMeta: wide, Rules: rules}, opts)
	require.NoError(t, err)
	_, err = l.client.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{ObjectMeta: wide,
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: wide.Name},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: namespace, Name: name}}}, opts)
	require.NoError(t, err)
	token, err := cluster(t).Token(ctx, namespace, name)
	require.NoError(t, err)
	cfg := rest.AnonymousClientConfig(cluster(t).REST())
	cfg.BearerToken = token
	return cfg
}

// TestWaiting: the rollout is waited for, what it waits for is told, and the
// webhooks come only after it.
func TestWaiting(t *testing.T) {
	l, ctx := newLab(t), t.Context()
	l.NoWait = false
	p := plan(t, "slow")
	l.Timeout = 300 * time.Millisecond
	err := l.Install(ctx, p)
	require.ErrorContains(t, err, "Deployment slow/istiod-slow: 0 of 1 replicas available")
	_, err = l.client.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(ctx, "istio-sidecar-injector-slow-slow", metav1.GetOptions{})
	require.True(t, apierrors.IsNotFound(err), "nobody is sent to a control plane that does not answer")

	l.Timeout = 30 * time.Second
	done := make(chan error, 1)
	go func() { done <- l.Install(ctx, p) }()
	require.NoError(t, l.rollOut(ctx, "slow", "istiod-slow"))
	require.NoError(t, <-done)
	_, err = l.client.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(ctx, "istio-sidecar-injector-slow-slow", metav1.GetOptions{})
	require.NoError(t, err)
	require.NoError(t, l.Uninstall(ctx, p.Installations[0].Release, "slow"))
}

// rollOut does what the Deployment controller would.
func (l lab) rollOut(ctx context.Context, namespace, name string) error {
	_, err := l.client.AppsV1().Deployments(namespace).Patch(ctx, name, types.MergePatchType,
		[]byte(`{"status":{"observedGeneration":100,"replicas":1,"updatedReplicas":1,"readyReplicas":1,"availableReplicas":1}}`), metav1.PatchOptions{}, "status")
	return err
}

// TestDiff shows what install would change, and nothing when it would not.
func TestDiff(t *testing.T) {
	l, ctx := newLab(t), t.Context()
	p := plan(t, "differs")
	text, err := l.Diff(ctx, p)
	require.NoError(t, err)
	require.Contains(t, text, "+++ Deployment differs/istiod-differs (would be)")
	require.NoError(t, l.Install(ctx, p))
	text, err = l.Diff(ctx, p)
	require.NoError(t, err)
	require.Empty(t, text)
	manifests.Set(p.Installations[0].Values, "meshConfig.trustDomain", "example.org")
	text, err = l.Diff(ctx, p)
	require.NoError(t, err)
	require.Contains(t, text, "-    trustDomain: cluster.local\n+    trustDomain: example.org\n")
	require.Equal(t, 1, strings.Count(text, "+++ "))
	require.NoError(t, l.Uninstall(ctx, p.Installations[0].Release, "differs"))
}

// TestPreflight: clocks that differ are told, and a cluster that does not answer
// is named.
func TestPreflight(t *testing.T) {
	l, ctx := newLab(t), t.Context()
	for name, c := range map[string]struct {
		shift time.Duration
		level install.Level
	}{"same": {0, install.OK}, "ahead": {time.Hour, install.Warn}, "behind": {-time.Hour, install.Warn}} {
		t.Run(name, func(t *testing.T) {
			found, err := install.Preflight(ctx, l.Target, nil, nil, func() time.Time { return time.Now().Add(c.shift) }, false)
			require.NoError(t, err)
			require.Empty(t, found.Failed())
			for _, f := range found {
				if f.Check == "clock" {
					require.Equal(t, c.level, f.Level, f.Text)
				}
			}
		})
	}
	cfg := rest.AnonymousClientConfig(cluster(t).REST())
	cfg.Host = "https://127.0.0.1:1"
	away, err := install.NewTarget("west", cfg)
	require.NoError(t, err)
	_, err = install.Preflight(ctx, away, nil, nil, time.Now, false)
	require.ErrorContains(t, err, "reach cluster west at https://127.0.0.1:1")
}

// TestNothingInstalled: uninstalling what is not there is an error that says so.
func TestNothingInstalled(t *testing.T) {
	l := newLab(t)
	require.ErrorIs(t, l.Uninstall(t.Context(), "no-such-release", "default"), install.ErrNothing)
}

// TestSameInjection: two webhooks that inject the same pods are noticed before
// the second comes.
func TestSameInjection(t *testing.T) {
	l, ctx := newLab(t), t.Context()
	one := plan(t, "tagged", "revisionTags={prod-x}")
	require.NoError(t, l.Install(ctx, one))
	require.ErrorIs(t, l.Install(ctx, plan(t, "tagged-too", "revisionTags={prod-x}")), install.ErrPreflight)
	require.Contains(t, l.out.String(), "webhook rev.namespace.sidecar-injector.istio.io of MutatingWebhookConfiguration istio-revision-tag-prod-x-tagged injects the same pods")
	require.NoError(t, l.Uninstall(ctx, one.Installations[0].Release, "tagged"))
}

// TestEnforcedValidation: what the control plane writes into webhooks after the
// installation, the bundle and a stricter policy, stays when it is repeated.
func TestEnforcedValidation(t *testing.T) {
	l, ctx := newLab(t), t.Context()
	p := plan(t, "strict")
	require.NoError(t, l.Install(ctx, p))
	api := l.client.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	const name = "istio-validator-strict-strict"
	force := true
	_, err := api.Patch(ctx, name, types.ApplyPatchType, []byte(`{"apiVersion":"admissionregistration.k8s.io/v1","kind":"ValidatingWebhookConfiguration",
		"metadata":{"name":"`+name+`"},"webhooks":[{"name":"rev.validation.istio.io","failurePolicy":"Fail","clientConfig":{"caBundle":"`+testBundle(t)+`"}}]}`),
		metav1.PatchOptions{FieldManager: "control-plane", Force: &force})
	require.NoError(t, err)
	l.out.Reset()
	require.NoError(t, l.Install(ctx, p))
	got, err := api.Get(ctx, name, metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, admissionv1.Fail, *got.Webhooks[0].FailurePolicy)
	require.NotEmpty(t, got.Webhooks[0].ClientConfig.CABundle)
	text, err := l.Diff(ctx, p)
	require.NoError(t, err)
	require.Empty(t, text)
	require.NoError(t, l.Uninstall(ctx, p.Installations[0].Release, "strict"))
}

// testBundle is some root in the form of caBundle: that of the test's own API
// server.
func testBundle(t *testing.T) string {
	t.Helper()
	return base64.StdEncoding.EncodeToString(cluster(t).REST().CAData)
}
