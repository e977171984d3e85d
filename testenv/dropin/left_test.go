package dropin

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/isthmus-mesh/isthmus/ca"
	"github.com/isthmus-mesh/isthmus/multicluster"
	"github.com/isthmus-mesh/isthmus/testenv/apiserver"
)

// What istiod and its charts leave behind in a cluster: names, labels and keys are
// Istio's; templates and settings are small ones of our own in the same format.

// Names of what is left behind.
const (
	system        = apiserver.SystemNamespace
	injector      = "istio-sidecar-injector"
	validator     = "istio-validator-" + system
	defaultHook   = "istiod-default-validator"
	istiodManager = "pilot-discovery" // as which istiod writes
)

// installed are the objects of Istio's charts for the control plane.
const installed = `
apiVersion: v1
kind: Namespace
metadata: {name: istio-system, labels: {topology.istio.io/network: network-1}}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio-injection: enabled}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: istiod, namespace: istio-system, labels: {app: istiod, release: istiod}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: web, namespace: shop}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system, labels: {istio.io/rev: default, release: istiod}}
data:
  mesh: |-
    defaultConfig:
      discoveryAddress: istiod.istio-system.svc:15012
    enablePrometheusMerge: true
    rootNamespace: istio-system
    trustDomain: cluster.local
  meshNetworks: "networks: {}"
---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio-sidecar-injector, namespace: istio-system, labels: {istio.io/rev: default, release: istiod}}
data:
  values: |-
    {"global": {"hub": "registry.example.com/mesh", "tag": "1.2.3", "proxy": {"image": "proxyv2", "clusterDomain": "cluster.local"},
      "multiCluster": {"clusterName": "east"}, "network": "network-1", "istioNamespace": "istio-system"}, "sidecarInjectorWebhook": {}, "revision": ""}
  config: |-
    defaultTemplates: [sidecar]
    policy: enabled
    alwaysInjectSelector: []
    neverInjectSelector: []
    injectedAnnotations:
    template: "{{ Template_Version_And_Istio_Version_Mismatched_Check_Installation }}"
    templates:
      sidecar: |
        metadata:
          annotations: {left.example.com/by: istiod}
        spec:
          containers:
          - name: istio-proxy
            image: "{{ annotation .ObjectMeta ` + "`sidecar.istio.io/proxyImage`" + ` (print .Values.global.hub "/" .Values.global.proxy.image ":" .Values.global.tag) }}"
            args: [proxy, sidecar, --domain, "$(POD_NAMESPACE).svc.{{ .Values.global.proxy.clusterDomain }}"]
            env:
            - {name: ISTIO_META_CLUSTER_ID, value: "{{ valueOrDefault .Values.global.multiCluster.clusterName ` + "`Kubernetes`" + ` }}"}
---
apiVersion: v1
kind: Service
metadata: {name: istiod, namespace: istio-system, labels: {app: istiod, istio: pilot, istio.io/rev: default, release: istiod}}
spec:
  selector: {app: istiod, istio: pilot}
  ports:
  - {name: grpc-xds, port: 15010}
  - {name: https-dns, port: 15012}
  - {name: https-webhook, port: 443, targetPort: 15017}
  - {name: http-monitoring, port: 15014}
`

// remoteInstalled are those of the chart for a remote of that control plane.
const remoteInstalled = `
apiVersion: v1
kind: Namespace
metadata: {name: istio-system, labels: {topology.istio.io/network: network-2}, annotations: {topology.istio.io/controlPlaneClusters: east}}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio-injection: enabled}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: web, namespace: shop}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: istio-reader-service-account, namespace: istio-system}
`

// leave prepares a cluster as Istio's charts and a running istiod leave it.
func (w *world) leave() {
	w.t.Helper()
	east, west := w.clusters["east"], w.clusters["west"]
	for c, yaml := range map[*apiserver.Cluster]string{east: installed, west: remoteInstalled} {
		require.NoError(w.t, c.Apply(w.ctx, []byte(yaml)))
		require.NoError(w.t, c.EnsureNamespace(w.ctx, "shop"))
	}
	w.leaveRoot()
	for _, c := range []*apiserver.Cluster{east, west} {
		for _, namespace := range []string{system, "shop"} {
			w.create(c.Client().CoreV1().ConfigMaps(namespace).Create(w.ctx, &corev1.ConfigMap{
				ObjectMeta: metav1.ObjectMeta{Name: ca.RootConfigMap, Labels: map[string]string{"istio.io/config": "true"}},
				Data:       map[string]string{"root-cert.pem": w.root}}, metav1.CreateOptions{FieldManager: istiodManager}))
		}
		w.leaveInjection(c)
	}
	w.leaveValidation(east, validator, "rev.validation.istio.io", &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
		{Key: "istio.io/rev", Operator: metav1.LabelSelectorOpIn, Values: []string{"default"}}}})
	w.leaveValidation(east, defaultHook, "validation.istio.io", nil)
	w.leaveRemoteSecret()
}

func (w *world) create(_ any, err error) {
	w.t.Helper()
	require.NoError(w.t, err)
}

// leaveRoot makes the self-signed root that istiod keeps in istio-ca-secret.
func (w *world) leaveRoot() {
	w.t.Helper()
	dir := filepath.Join(w.t.TempDir(), "root")
	_, err := ca.MakeRoot(ca.RootOptions{Dir: dir, Organization: "cluster.local", CommonName: "what istiod signed"})
	require.NoError(w.t, err)
	file := func(name string) []byte {
		raw, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(w.t, err)
		return raw
	}
	w.root = string(file("root-cert.pem"))
	w.create(w.clusters["east"].Client().CoreV1().Secrets(system).Create(w.ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: ca.SelfSignedSecret}, Type: "istio.io/ca-root",
		Data: map[string][]byte{"ca-cert.pem": file("ca-cert.pem"), "ca-key.pem": file("ca-key.pem"), "cert-chain.pem": {}, "key.pem": {}, "root-cert.pem": {}},
	}, metav1.CreateOptions{FieldManager: istiodManager}))
}

// leaveInjection makes the injection webhooks as a chart does, then writes the
// bundle as istiod does. Istio's Service is a URL here: nothing routes to Services.
func (w *world) leaveInjection(c *apiserver.Cluster) {
	w.t.Helper()
	none, fail := admissionv1.SideEffectClassNone, admissionv1.Fail
	url := "https://" + w.webhooks + "/inject"
	if c.Name() != "east" {
		url += "/cluster/" + c.Name() + "/net/network-2"
	}
	o := &admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: injector,
		Labels: map[string]string{"app": "sidecar-injector", "istio.io/rev": "default", "release": "istiod"}}}
	for name, labels := range map[string]map[string]string{
		"namespace.sidecar-injector.istio.io": {"istio-injection": "enabled"}, "rev.namespace.sidecar-injector.istio.io": {"istio.io/rev": "default"},
	} {
		o.Webhooks = append(o.Webhooks, admissionv1.MutatingWebhook{Name: name, SideEffects: &none, FailurePolicy: &fail,
			AdmissionReviewVersions: []string{"v1"}, ClientConfig: admissionv1.WebhookClientConfig{URL: &url},
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: labels},
			Rules: []admissionv1.RuleWithOperations{{Operations: []admissionv1.OperationType{admissionv1.Create},
				Rule: admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}}}}})
	}
	api := c.Client().AdmissionregistrationV1().MutatingWebhookConfigurations()
	made, err := api.Create(w.ctx, o, metav1.CreateOptions{FieldManager: "helm"})
	require.NoError(w.t, err)
	for i := range made.Webhooks {
		made.Webhooks[i].ClientConfig.CABundle = []byte(w.root)
	}
	w.create(api.Update(w.ctx, made, metav1.UpdateOptions{FieldManager: istiodManager}))
}

// leaveValidation does the same for validation, which istiod has enforced.
func (w *world) leaveValidation(c *apiserver.Cluster, object, hook string, selector *metav1.LabelSelector) {
	w.t.Helper()
	none, ignore, fail := admissionv1.SideEffectClassNone, admissionv1.Ignore, admissionv1.Fail
	url := "https://" + w.webhooks + "/validate"
	o := &admissionv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: object,
		Labels: map[string]string{"app": "istiod", "istio": "istiod", "istio.io/rev": "default", "release": "istiod"}},
		Webhooks: []admissionv1.ValidatingWebhook{{Name: hook, SideEffects: &none, FailurePolicy: &ignore, AdmissionReviewVersions: []string{"v1"},
			ClientConfig: admissionv1.WebhookClientConfig{URL: &url}, ObjectSelector: selector,
			Rules: []admissionv1.RuleWithOperations{{Operations: []admissionv1.OperationType{admissionv1.Create, admissionv1.Update},
				Rule: admissionv1.Rule{APIGroups: []string{"security.istio.io", "networking.istio.io", "telemetry.istio.io", "extensions.istio.io"},
					APIVersions: []string{"*"}, Resources: []string{"*"}}}}}}}
	api := c.Client().AdmissionregistrationV1().ValidatingWebhookConfigurations()
	made, err := api.Create(w.ctx, o, metav1.CreateOptions{FieldManager: "helm"})
	require.NoError(w.t, err)
	made.Webhooks[0].ClientConfig.CABundle = []byte(w.root)
	if w.enforced {
		made.Webhooks[0].FailurePolicy = &fail
	}
	w.create(api.Update(w.ctx, made, metav1.UpdateOptions{FieldManager: istiodManager}))
}

// leaveRemoteSecret makes the secret that istioctl made for west, with a token
// that somebody else renews.
func (w *world) leaveRemoteSecret() {
	w.t.Helper()
	w.create(w.clusters["east"].Client().CoreV1().Secrets(system).Create(w.ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: multicluster.SecretPrefix + "west", Labels: map[string]string{multicluster.SecretLabel: "true"},
			Annotations: map[string]string{"networking.istio.io/cluster": "west"}},
		Data: map[string][]byte{"west": w.as("west", multicluster.ReaderAccount)}}, metav1.CreateOptions{}))
}

// as is a kubeconfig of a cluster for an account of the system namespace.
func (w *world) as(cluster, account string) []byte {
	w.t.Helper()
	token, err := w.clusters[cluster].Token(w.ctx, system, account)
	require.NoError(w.t, err)
	raw, err := w.witnesses[cluster].Kubeconfig(account, token)
	require.NoError(w.t, err)
	return raw
}

// writeFile writes a file that only we read.
func (w *world) writeFile(name string, raw []byte) string {
	w.t.Helper()
	path := filepath.Join(w.t.TempDir(), name)
	require.NoError(w.t, os.WriteFile(path, raw, 0o600), fmt.Sprint(len(raw)))
	return path
}
