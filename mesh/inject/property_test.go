package inject

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"pgregory.net/rapid"
)

var restartAlways = corev1.ContainerRestartPolicyAlways

func drawProbe(t *rapid.T, label string) *corev1.Probe {
	p := &corev1.Probe{TimeoutSeconds: rapid.Int32Range(0, 3).Draw(t, label+" timeout")}
	port := rapid.SampledFrom([]intstr.IntOrString{intstr.FromInt32(8080), intstr.FromString("http"), intstr.FromString("nope"), intstr.FromInt32(15020)}).Draw(t, label+" port")
	switch rapid.SampledFrom([]string{"none", "http", "https", "far", "tcp", "grpc", "exec"}).Draw(t, label) {
	case "http":
		p.HTTPGet = &corev1.HTTPGetAction{Path: "/x", Port: port}
	case "https":
		p.HTTPGet = &corev1.HTTPGetAction{Port: port, Scheme: corev1.URISchemeHTTPS}
	case "far":
		p.HTTPGet = &corev1.HTTPGetAction{Port: port, Host: "far"}
	case "tcp":
		p.TCPSocket = &corev1.TCPSocketAction{Port: port}
	case "grpc":
		p.GRPC = &corev1.GRPCAction{Port: 9000}
	case "exec":
		p.Exec = &corev1.ExecAction{Command: []string{"x"}}
	default:
		return nil
	}
	return p
}

func drawContainer(t *rapid.T, name string, init bool) corev1.Container {
	c := corev1.Container{Name: name, Image: rapid.SampledFrom([]string{"a", "b", autoImage}).Draw(t, name+" image")}
	if rapid.Bool().Draw(t, name+" has ports") {
		c.Ports = []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}, {ContainerPort: 53, Protocol: corev1.ProtocolUDP}, {ContainerPort: 53, Protocol: corev1.ProtocolTCP}}
	}
	for _, e := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"A", "B", "POD_NAME", EnvNetwork, "TRUST_DOMAIN"}), 0, 3, rapid.ID[string]).Draw(t, name+" env") {
		c.Env = append(c.Env, corev1.EnvVar{Name: e, Value: "mine"})
	}
	native := init && rapid.Bool().Draw(t, name+" stays")
	if native {
		c.RestartPolicy = &restartAlways
	}
	if !init || native {
		c.ReadinessProbe = drawProbe(t, name+" readiness")
		c.LivenessProbe = drawProbe(t, name+" liveness")
		c.StartupProbe = drawProbe(t, name+" startup")
	}
	if rapid.Bool().Draw(t, name+" user") {
		uid := rapid.Int64Range(0, 2000).Draw(t, name+" uid")
		c.SecurityContext = &corev1.SecurityContext{RunAsUser: &uid}
	}
	return c
}

func drawPod(t *rapid.T) *corev1.Pod {
	pod := &corev1.Pod{}
	pod.Name, pod.Namespace = "p", "shop"
	pod.Labels = rapid.MapOf(rapid.SampledFrom([]string{"app", "version", labelNetwork, "security.istio.io/tlsMode"}), rapid.SampledFrom([]string{"x", "yy"})).Draw(t, "labels")
	pod.Annotations = map[string]string{}
	for _, a := range [][2]string{
		{annotationNativeSidecar, "true"}, {annotationNativeSidecar, "false"}, {annotationRewriteProbes, "false"}, {annotationMergeMetrics, "false"},
		{"prometheus.io/port", "9090"}, {"prometheus.io.scrape", "true"}, {"prometheus.io/scrape", "false"}, {"prometheus.io/port", "15020"},
		{annotationProxyConfig, "holdApplicationUntilProxyStarts: true"}, {annotationInterception, "TPROXY"}, {annotationInterception, "NONE"},
		{annotationTemplates, "gateway"}, {annotationTemplates, "sidecar,custom"}, {annotationTemplates, "custom"}, {annotationInitBeforeProxy, "i1"},
		{"sidecar.istio.io/proxyCPU", "10m"}, {annotationStatusPort, "15099"}, {annotationStatusPort, "0"},
		{"k8s.v1.cni.cncf.io/networks", `[{"name":"a"}]`},
	} {
		if rapid.IntRange(0, 5).Draw(t, a[0]+a[1]) == 0 {
			pod.Annotations[a[0]] = a[1]
		}
	}
	for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"app", "other", "web", ProxyContainer}), 1, 4, rapid.ID[string]).Draw(t, "containers") {
		pod.Spec.Containers = append(pod.Spec.Containers, drawContainer(t, name, false))
	}
	for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"i1", "i2", InitContainer}), 0, 3, rapid.ID[string]).Draw(t, "init containers") {
		pod.Spec.InitContainers = append(pod.Spec.InitContainers, drawContainer(t, name, true))
	}
	for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"mine", "istio-data"}), 0, 2, rapid.ID[string]).Draw(t, "volumes") {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
	}
	return pod
}

// configs are what pods are injected with: with and without CNI and a network.
func configs(tb testing.TB) []*Config {
	custom := "spec:\n  containers:\n  - name: web\n    env: [{name: T, value: '{{ len .Spec.Containers }}'}]\n  - {name: logger, image: l}\n" +
		"  initContainers:\n  - {name: i2, env: [{name: T, value: x}]}\n  volumes:\n"
	var out []*Config
	for _, cni := range []bool{false, true} {
		for _, network := range []string{"", "net1"} {
			with := map[string]any{"pilot": map[string]any{"cni": map[string]any{"enabled": cni, "provider": "multus"}}, "global": map[string]any{"network": network}}
			c, err := Parse(overlaid(tb, DefaultConfig(), map[string]any{"templates": map[string]any{"custom": custom}}), overlaid(tb, DefaultValues(), with), Options{})
			require.NoError(tb, err)
			out = append(out, c)
		}
	}
	return out
}

func names(list []corev1.Container) []string {
	var out []string
	for i := range list {
		out = append(out, list[i].Name)
	}
	return out
}

// For any pod: the patch is right, injecting again changes nothing, and the
// user's containers stay as many and in the order they were.
func TestInjectionOfAnyPod(t *testing.T) {
	all := configs(t)
	rapid.Check(t, func(rt *rapid.T) {
		c, pod := rapid.SampledFrom(all).Draw(rt, "config"), drawPod(rt)
		r := Request{Pod: pod, Mesh: testMesh(), NativeSidecars: rapid.Bool().Draw(rt, "native"), Env: ParsePath("/inject/cluster/c1")}
		before, err := json.Marshal(pod)
		require.NoError(rt, err)

		result, err := c.Inject(r)
		require.NoError(rt, err)
		untouched, err := json.Marshal(pod)
		require.NoError(rt, err)
		require.JSONEq(rt, string(before), string(untouched), "the pod of the request must not change")

		patch, err := jsonpatch.DecodePatch(result.Patch)
		require.NoError(rt, err)
		patched, err := patch.Apply(before)
		require.NoError(rt, err)
		want, err := json.Marshal(result.Pod)
		require.NoError(rt, err)
		require.JSONEq(rt, string(want), string(patched))

		own := slices.DeleteFunc(names(pod.Spec.Containers), func(s string) bool { return s == ProxyContainer })
		after := slices.DeleteFunc(names(result.Pod.Spec.Containers), func(s string) bool { return !slices.Contains(own, s) })
		require.Equal(rt, strings.Join(own, ","), strings.Join(after, ","))
		for i := range pod.Spec.Containers {
			c := &pod.Spec.Containers[i]
			have := find(append(slices.Clone(result.Pod.Spec.Containers), result.Pod.Spec.InitContainers...), c.Name)
			require.Subset(rt, have.Ports, c.Ports, "ports of the user")
		}
		all := append(names(result.Pod.Spec.Containers), names(result.Pod.Spec.InitContainers)...)
		slices.Sort(all)
		require.Equal(rt, slices.Compact(slices.Clone(all)), all, "no container twice")

		r.Pod = result.Pod
		again, err := c.Inject(r)
		require.NoError(rt, err)
		if string(again.Patch) != "[]" {
			rt.Fatalf("injecting again changes the pod: %s", again.Patch)
		}
	})
}

// A patch takes any pod to any other.
func TestPatchOfAnyPods(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		a, b := drawPod(rt), drawPod(rt)
		patch, err := createPatch(a, b)
		require.NoError(rt, err)
		raw, err := json.Marshal(a)
		require.NoError(rt, err)
		decoded, err := jsonpatch.DecodePatch(patch)
		require.NoError(rt, err)
		got, err := decoded.Apply(raw)
		require.NoError(rt, err, "%s", patch)
		want, err := json.Marshal(b)
		require.NoError(rt, err)
		require.JSONEq(rt, string(want), string(got))
		// What the command line uses agrees with the library.
		tree := map[string]any{}
		require.NoError(rt, json.Unmarshal(raw, &tree))
		require.NoError(rt, applyPatch(tree, patch))
		ours, err := json.Marshal(tree)
		require.NoError(rt, err)
		require.JSONEq(rt, string(want), string(ours))
	})
}

// A further container that another webhook adds to an injected pod is taken in:
// its probes are rewritten and its ports are known to the proxy.
func TestInjectingAgainTakesInWhatOthersAdded(t *testing.T) {
	c, err := Default(Options{})
	require.NoError(t, err)
	pod := &corev1.Pod{}
	pod.Name, pod.Namespace = "p", "shop"
	pod.Spec.Containers = []corev1.Container{{Name: "app", Image: "a", ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/a", Port: intstr.FromInt32(80)}}}}}
	first, err := c.Inject(Request{Pod: pod, Mesh: testMesh()})
	require.NoError(t, err)
	second := first.Pod.DeepCopy()
	find(second.Spec.Containers, ProxyContainer).Env = append(find(second.Spec.Containers, ProxyContainer).Env, corev1.EnvVar{Name: "THEIRS", Value: "1"})
	second.Spec.Containers = append(second.Spec.Containers, corev1.Container{Name: "late", Image: "l", Ports: []corev1.ContainerPort{{ContainerPort: 7}},
		LivenessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/l", Port: intstr.FromInt32(7)}}}})
	result, err := c.Inject(Request{Pod: second, Mesh: testMesh()})
	require.NoError(t, err)
	require.Equal(t, []string{"app", "late", ProxyContainer}, names(result.Pod.Spec.Containers))
	env := map[string]string{}
	for _, e := range proxyOf(result.Pod).Env {
		env[e.Name] = e.Value
	}
	require.Equal(t, "1", env["THEIRS"])
	require.Equal(t, "app,late", env["ISTIO_META_APP_CONTAINERS"])
	require.JSONEq(t, `[{"containerPort":7}]`, env["ISTIO_META_POD_PORTS"])
	require.JSONEq(t, `{"/app-health/app/readyz":{"httpGet":{"path":"/a","port":80}},"/app-health/late/livez":{"httpGet":{"path":"/l","port":7}}}`, env[envProbers])
}

// With another template than before, what only the older one had goes.
func TestInjectingWithOtherTemplates(t *testing.T) {
	c, err := Default(Options{})
	require.NoError(t, err)
	pod := &corev1.Pod{}
	pod.Name, pod.Namespace = "p", "shop"
	pod.Spec.Containers = []corev1.Container{{Name: "app", Image: "a"}}
	native, err := c.Inject(Request{Pod: pod, Mesh: testMesh(), NativeSidecars: true})
	require.NoError(t, err)
	plain, err := c.Inject(Request{Pod: native.Pod, Mesh: testMesh()})
	require.NoError(t, err)
	require.Equal(t, []string{"app", ProxyContainer}, names(plain.Pod.Spec.Containers))
	require.Equal(t, []string{InitContainer}, names(plain.Pod.Spec.InitContainers))
	fresh, err := c.Inject(Request{Pod: pod, Mesh: testMesh()})
	require.NoError(t, err)
	want, err := json.Marshal(fresh.Pod.Spec)
	require.NoError(t, err)
	got, err := json.Marshal(plain.Pod.Spec)
	require.NoError(t, err)
	require.JSONEq(t, string(want), string(got))
	require.Contains(t, string(fresh.Patch), InitContainer)
}

// What a user changes in an injected pod counts, and what is theirs stays theirs.
func TestChangesAfterInjectionCount(t *testing.T) {
	c, err := Default(Options{})
	require.NoError(t, err)
	for _, native := range []bool{false, true} {
		pod := &corev1.Pod{}
		pod.Name, pod.Namespace = "p", "shop"
		uid := int64(2000)
		pod.Spec.Containers = []corev1.Container{{Name: "app", Image: "a"}, {Name: ProxyContainer, Image: "mine:1", Args: []string{"x"},
			Env:             []corev1.EnvVar{{Name: "KEEP", Value: "1"}, {Name: "CHANGE", Value: "1"}, {Name: "TRUST_DOMAIN", Value: "mine"}},
			Ports:           []corev1.ContainerPort{{ContainerPort: 7}},
			VolumeMounts:    []corev1.VolumeMount{{Name: "v", MountPath: "/v"}},
			SecurityContext: &corev1.SecurityContext{RunAsUser: &uid}}}
		first, err := c.Inject(Request{Pod: pod, Mesh: testMesh(), NativeSidecars: native})
		require.NoError(t, err)
		edited := first.Pod.DeepCopy()
		proxy := proxyOf(edited)
		proxy.Image, proxy.Args = "mine:2", []string{"y"}
		for i := range proxy.Env {
			if proxy.Env[i].Name == "CHANGE" {
				proxy.Env[i].Value = "2"
			}
		}
		again, err := c.Inject(Request{Pod: edited, Mesh: testMesh(), NativeSidecars: native})
		require.NoError(t, err)
		got := proxyOf(again.Pod)
		require.Equal(t, "mine:2", got.Image)
		require.Equal(t, []string{"y"}, got.Args)
		require.Equal(t, uid, *got.SecurityContext.RunAsUser)
		env := map[string]string{}
		for _, e := range got.Env {
			env[e.Name] = e.Value
		}
		require.Equal(t, []string{"1", "2", "mine"}, []string{env["KEEP"], env["CHANGE"], env["TRUST_DOMAIN"]})
		third, err := c.Inject(Request{Pod: again.Pod, Mesh: testMesh(), NativeSidecars: native})
		require.NoError(t, err)
		require.Equal(t, "[]", string(third.Patch))
	}
}
