package serve

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/mesh/inject"
	"github.com/isthmus-mesh/isthmus/registry/config"
	"github.com/isthmus-mesh/isthmus/testenv/apiserver"
)

func ptr[T any](v T) *T { return &v }

// register tells an API server to ask the webhook about pods in namespaces that
// have the label.
func register(t *testing.T, client kubernetes.Interface, address string, bundle []byte) {
	t.Helper()
	_, err := client.AdmissionregistrationV1().MutatingWebhookConfigurations().Create(t.Context(), &admissionregistrationv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "istio-sidecar-injector"},
		Webhooks: []admissionregistrationv1.MutatingWebhook{{
			Name:                    "namespace.sidecar-injector.istio.io",
			ClientConfig:            admissionregistrationv1.WebhookClientConfig{URL: ptr("https://" + address + "/inject/cluster/c1/net/net2"), CABundle: bundle},
			NamespaceSelector:       &metav1.LabelSelector{MatchLabels: map[string]string{"istio-injection": "enabled"}},
			FailurePolicy:           ptr(admissionregistrationv1.Fail),
			ReinvocationPolicy:      ptr(admissionregistrationv1.IfNeededReinvocationPolicy),
			SideEffects:             ptr(admissionregistrationv1.SideEffectClassNone),
			AdmissionReviewVersions: []string{"v1"},
			Rules: []admissionregistrationv1.RuleWithOperations{{Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
				Rule: admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}}}},
		}},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
}

func labelledNamespace(t *testing.T, c *apiserver.Cluster, name string) {
	t.Helper()
	require.NoError(t, c.EnsureNamespace(t.Context(), name))
	ns, err := c.Client().CoreV1().Namespaces().Get(t.Context(), name, metav1.GetOptions{})
	require.NoError(t, err)
	ns.Labels["istio-injection"] = "enabled"
	_, err = c.Client().CoreV1().Namespaces().Update(t.Context(), ns, metav1.UpdateOptions{})
	require.NoError(t, err)
}

// injecting starts a control plane whose primary is a real API server, and
// registers its webhook there.
func injecting(t *testing.T) (*apiserver.Cluster, *Control) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cluster, err := apiserver.Start(ctx, apiserver.Config{Name: "c1"})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, cluster.Stop()) })
	for _, ns := range []string{"istio-system", "plain"} {
		require.NoError(t, cluster.EnsureNamespace(ctx, ns))
	}
	labelledNamespace(t, cluster, "shop")
	dir := t.TempDir()
	kubeconfig := filepath.Join(dir, "kubeconfig")
	require.NoError(t, os.WriteFile(kubeconfig, cluster.Kubeconfig(), 0o600))
	s := Defaults(func(string) string { return "" })
	s.Kubeconfig, s.Primary, s.PodName = kubeconfig, "c1", "istiod-0"
	s.GRPCAddr, s.SecureGRPCAddr, s.HTTPAddr, s.MonitoringAddr, s.HTTPSAddr = "", "127.0.0.1:0", "", "", "127.0.0.1:0"
	s.Security.CADir, s.Security.CustomHosts = filepath.Join(dir, "no-ca"), []string{"localhost"}
	c, err := New(s, Build{Version: "test"}, zap.NewNop())
	require.NoError(t, err)
	require.NoError(t, c.Listen())
	run, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(run) }()
	t.Cleanup(func() {
		stop()
		require.NoError(t, <-done)
	})
	require.Eventually(t, func() bool { return c.NotReady() == "" && c.injection.config() != nil }, time.Minute, 20*time.Millisecond)
	_, port, err := net.SplitHostPort(c.WebhookAddr())
	require.NoError(t, err)
	register(t, cluster.Client(), net.JoinHostPort("localhost", port), c.RootsPEM())
	return cluster, c
}

// A real API server asks the webhook, verifies it by the mesh's roots, applies
// its patch, and accepts what comes out; everything that injection makes of the
// table of cases validates there.
func TestRealAPIServerInjects(t *testing.T) {
	apiserver.NeedBinary(t)
	cluster, c := injecting(t)
	t.Run("patch is applied", func(t *testing.T) { patchIsApplied(t, cluster.Client()) })
	t.Run("injected twice is injected once", func(t *testing.T) { injectedAgain(t, cluster.Client()) })
	t.Run("refusal reaches the user", func(t *testing.T) { refusalReachesTheUser(t, cluster.Client()) })
	t.Run("what is injected offline validates", func(t *testing.T) { goldensValidate(t, cluster) })
	t.Run("configuration is followed", func(t *testing.T) { configurationIsFollowed(t, cluster, c) })
}

// The ConfigMap counts from the moment it is there; a broken one changes nothing
// and is on record.
func configurationIsFollowed(t *testing.T, cluster *apiserver.Cluster, c *Control) {
	apply := func(template string) {
		require.NoError(t, cluster.Apply(t.Context(), []byte(injectorConfigMap(t, template))))
	}
	marked := func() string {
		pod, err := cluster.Client().CoreV1().Pods("shop").Create(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "x-"},
			Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "x", Image: "x"}}}}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		require.NoError(t, err)
		return pod.Annotations["mark"]
	}
	apply("metadata: {annotations: {mark: one}}")
	require.Eventually(t, func() bool { return marked() == "one" }, 30*time.Second, 50*time.Millisecond)
	apply("{{ broken")
	require.Eventually(t, func() bool { return len(c.problems.List()) > 0 }, 30*time.Second, 20*time.Millisecond)
	require.Contains(t, c.problems.List()[0].Message, `template "sidecar", line 1`)
	require.Equal(t, "one", marked())
	apply("metadata: {annotations: {mark: two}}")
	require.Eventually(t, func() bool { return marked() == "two" }, 30*time.Second, 50*time.Millisecond)
	require.Empty(t, c.problems.List())
	require.NoError(t, cluster.Client().CoreV1().ConfigMaps("istio-system").Delete(t.Context(), "istio-sidecar-injector", metav1.DeleteOptions{}))
	require.Eventually(t, func() bool { return len(c.problems.List()) > 0 }, 30*time.Second, 20*time.Millisecond)
	require.Equal(t, "two", marked())
}

func createPod(t *testing.T, client kubernetes.Interface, namespace string, change func(*corev1.Pod)) (*corev1.Pod, error) {
	t.Helper()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "web-", Labels: map[string]string{"app": "web"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: "nginx", Ports: []corev1.ContainerPort{{ContainerPort: 80}}}}}}
	if change != nil {
		change(pod)
	}
	var out *corev1.Pod
	// A webhook counts from the moment that the API server has noticed it, and a
	// namespace's label likewise.
	require.Eventually(t, func() bool {
		var err error
		out, err = client.CoreV1().Pods(namespace).Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return err != nil || namespace != "shop" || out.Annotations["sidecar.istio.io/status"] != ""
	}, 30*time.Second, 50*time.Millisecond)
	return client.CoreV1().Pods(namespace).Create(t.Context(), pod, metav1.CreateOptions{})
}

func patchIsApplied(t *testing.T, client kubernetes.Interface) {
	pod, err := createPod(t, client, "shop", nil)
	require.NoError(t, err)
	require.Len(t, pod.Spec.Containers, 2)
	require.Equal(t, "web", pod.Spec.Containers[0].Name)
	proxy := pod.Spec.Containers[1]
	require.Equal(t, "istio-proxy", proxy.Name)
	env := map[string]string{}
	for _, e := range proxy.Env {
		env[e.Name] = e.Value
	}
	require.Equal(t, "c1", env["ISTIO_META_CLUSTER_ID"])
	require.Equal(t, "net2", env["ISTIO_META_NETWORK"])
	require.Equal(t, "net2", pod.Labels["topology.istio.io/network"])
	require.Len(t, pod.Spec.InitContainers, 1)
	for _, v := range pod.Spec.Volumes {
		if v.Name == "workload-socket" {
			require.NotNil(t, v.EmptyDir, "the API server gives a volume without a source an empty directory")
		}
	}
	other, err := createPod(t, client, "plain", nil)
	require.NoError(t, err)
	require.Len(t, other.Spec.Containers, 1)
	require.Empty(t, other.Annotations)
}

// A pod as the API server returns it, with all its defaults, comes out of
// injection as it went in.
func injectedAgain(t *testing.T, client kubernetes.Interface) {
	first, err := createPod(t, client, "shop", func(p *corev1.Pod) {
		p.Annotations = map[string]string{"prometheus.io/port": "9090"}
		p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 80}}}
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "istio-proxy", Image: "auto", Env: []corev1.EnvVar{{Name: "MINE", Value: "1"}}})
	})
	require.NoError(t, err)
	current, err := inject.Default(inject.Options{})
	require.NoError(t, err)
	result, err := current.Inject(inject.Request{Pod: first, Mesh: config.Defaults().Mesh, Env: inject.ParsePath("/inject/cluster/c1/net/net2"),
		Owner: &inject.Owner{TypeMeta: metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"}, Name: "web", Namespace: "shop"}})
	require.NoError(t, err)
	require.Equal(t, "[]", string(result.Patch))
}

func refusalReachesTheUser(t *testing.T, client kubernetes.Interface) {
	_, err := createPod(t, client, "shop", func(p *corev1.Pod) { p.Annotations = map[string]string{"inject.istio.io/templates": "nosuch"} })
	require.Error(t, err)
	require.Contains(t, err.Error(), `inject pod shop/web-*: there is no template "nosuch"`)
	require.Equal(t, metav1.StatusReasonInvalid, apierrors.ReasonForError(err))
}

func goldensValidate(t *testing.T, cluster *apiserver.Cluster) {
	files, err := filepath.Glob("../../../mesh/inject/testdata/cases/*.golden.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	dry := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}, FieldValidation: metav1.FieldValidationIgnore}
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		if strings.HasPrefix(string(text), "# error") {
			continue
		}
		var head metav1.TypeMeta
		require.NoError(t, yaml.Unmarshal(text, &head))
		t.Run(filepath.Base(file), func(t *testing.T) {
			var err error
			switch head.Kind {
			case "Pod":
				var o corev1.Pod
				require.NoError(t, yaml.Unmarshal(text, &o))
				o.OwnerReferences, o.Namespace, o.Spec.ServiceAccountName = nil, "plain", ""
				_, err = cluster.Client().CoreV1().Pods("plain").Create(t.Context(), &o, dry)
			case "Deployment":
				var o appsv1.Deployment
				require.NoError(t, yaml.Unmarshal(text, &o))
				o.Namespace = "plain"
				_, err = cluster.Client().AppsV1().Deployments("plain").Create(t.Context(), &o, dry)
			case "CronJob":
				var o batchv1.CronJob
				require.NoError(t, yaml.Unmarshal(text, &o))
				o.Namespace = "plain"
				_, err = cluster.Client().BatchV1().CronJobs("plain").Create(t.Context(), &o, dry)
			default:
				t.Fatalf("kind %s", head.Kind)
			}
			require.NoError(t, err)
		})
	}
}
