package deploy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"pgregory.net/rapid"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/registry/gatewayapi"
)

// fixture reads a file of testdata/make: a Gateway, and maybe a ConfigMap of the
// system namespace with the defaults of its class, one beside it with its
// parameters, and what is there already.
func fixture(t testing.TB, text string) Input {
	t.Helper()
	return fixtureOf(t, text)
}

func fixtureOf(t require.TestingT, text string) Input {
	in := Input{Controller: gatewayapi.Controller, Network: "network-1", CopyMetadata: true}
	live := map[string]*unstructured.Unstructured{}
	for doc := range strings.SplitSeq(text, "\n---\n") {
		u := &unstructured.Unstructured{}
		require.NoError(t, yaml.Unmarshal([]byte(doc), &u.Object))
		switch u.GetKind() {
		case "Gateway":
			in.Gateway = &gatewayv1.Gateway{}
			require.NoError(t, yaml.UnmarshalStrict([]byte(doc), in.Gateway))
		case "ConfigMap":
			m := &corev1.ConfigMap{}
			require.NoError(t, yaml.UnmarshalStrict([]byte(doc), m))
			if m.Namespace == "istio-system" {
				in.Class = m
			} else {
				in.Parameters = m
			}
		default:
			raw, err := u.MarshalJSON() // as from an API server: whole numbers are integers
			require.NoError(t, err)
			require.NoError(t, u.UnmarshalJSON(raw))
			live[kindOf(u).key] = u
		}
	}
	in.Live = func(key, _ string) *unstructured.Unstructured { return live[key] }
	if in.Gateway.Spec.GatewayClassName == gatewayapi.ClassEastWest {
		in.Controller = gatewayapi.ControllerEastWest
	}
	return in
}

// TestMake makes the objects of every Gateway of testdata/make.
func TestMake(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/make/*.yaml")
	require.NoError(t, err)
	for _, file := range files {
		if strings.HasSuffix(file, ".golden.yaml") {
			continue
		}
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			in := fixture(t, string(text))
			before := in.Gateway.DeepCopy()
			made := render(t, in)
			golden(t, strings.TrimSuffix(file, ".yaml")+".golden.yaml", made)
			require.Equal(t, made, render(t, in), "the same every time")
			require.Equal(t, before, in.Gateway, "what was given stays as it was")
		})
	}
}

func render(t *testing.T, in Input) []byte {
	t.Helper()
	objects, err := Make(in)
	var out bytes.Buffer
	if err != nil {
		fmt.Fprintf(&out, "# refused: %v\n", err)
		return out.Bytes()
	}
	for _, text := range objects.LeftOut {
		fmt.Fprintf(&out, "# %s\n", text)
	}
	if len(objects.List) == 0 {
		fmt.Fprintln(&out, "# nothing")
	}
	for _, o := range objects.List {
		raw, err := yaml.Marshal(o.Object)
		require.NoError(t, err)
		fmt.Fprintf(&out, "---\n%s", raw)
	}
	return out.Bytes()
}

const plainGateway = `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw, namespace: edge, uid: 0000-1}
spec:
  gatewayClassName: istio
  listeners: [{name: http, port: 80, protocol: HTTP}]`

// beside is a ConfigMap of the Gateway's author with an overlay.
func beside(key, overlay string) string {
	return parameters("edge", key, overlay)
}

func parameters(namespace, key, overlay string) string {
	m := corev1.ConfigMap{Data: map[string]string{key: overlay}}
	m.APIVersion, m.Kind, m.Namespace, m.Name = "v1", "ConfigMap", namespace, "options"
	raw, err := yaml.Marshal(m)
	if err != nil {
		panic(err)
	}
	return string(raw)
}

func inPod(text string) string {
	return "spec: {template: {spec: {" + text + "}}}"
}

// TestParametersCannotEscalate: whoever may write a Gateway and a ConfigMap beside
// it gets a proxy of its own and nothing that only who makes pods and Services may
// have. Every row is an attempt; the defaults of a class, whose author is trusted,
// may have most of them.
func TestParametersCannotEscalate(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		key, overlay, refused string
		never                 bool // nobody may
	}{
		"host network":           {keyDeployment, inPod("hostNetwork: true"), "spec.template.spec.hostNetwork", false},
		"host PIDs":              {keyDeployment, inPod("hostPID: true"), "spec.template.spec.hostPID", false},
		"host IPC":               {keyDeployment, inPod("hostIPC: true"), "spec.template.spec.hostIPC", false},
		"host path":              {keyDeployment, inPod("volumes: [{name: x, hostPath: {path: /}}]"), "spec.template.spec.volumes", false},
		"Secret as a volume":     {keyDeployment, inPod("volumes: [{name: x, secret: {secretName: theirs}}]"), "spec.template.spec.volumes", false},
		"Secret as a variable":   {keyDeployment, inPod("containers: [{name: istio-proxy, env: [{name: ISTIO_META_X, valueFrom: {secretKeyRef: {name: theirs, key: k}}}]}]"), "secretKeyRef", false},
		"all of a Secret":        {keyDeployment, inPod("containers: [{name: istio-proxy, envFrom: [{secretRef: {name: theirs}}]}]"), "envFrom", false},
		"variable of the agent":  {keyDeployment, inPod("containers: [{name: istio-proxy, env: [{name: CA_ADDR, value: 'evil:1'}]}]"), "variable CA_ADDR", false},
		"preloaded library":      {keyDeployment, inPod("containers: [{name: istio-proxy, env: [{name: LD_PRELOAD, value: /x}]}]"), "variable LD_PRELOAD", false},
		"another image":          {keyDeployment, inPod("containers: [{name: istio-proxy, image: evil}]"), "image is refused", false},
		"another command":        {keyDeployment, inPod("containers: [{name: istio-proxy, command: [sh]}]"), "command is refused", false},
		"other arguments":        {keyDeployment, inPod("containers: [{name: istio-proxy, args: [x]}]"), "args is refused", false},
		"another container":      {keyDeployment, inPod("containers: [{name: evil}]"), "evil is not one of [istio-proxy]", false},
		"variable without name":  {keyDeployment, inPod("containers: [{name: istio-proxy, env: [{value: x}]}]"), "env.[] has no name", false},
		"init container":         {keyDeployment, inPod("initContainers: [{name: evil, image: evil}]"), "initContainers", false},
		"hook":                   {keyDeployment, inPod("containers: [{name: istio-proxy, lifecycle: {postStart: {exec: {command: [sh]}}}}]"), "lifecycle", false},
		"probe":                  {keyDeployment, inPod("containers: [{name: istio-proxy, livenessProbe: {exec: {command: [sh]}}}]"), "livenessProbe", false},
		"privileged":             {keyDeployment, inPod("containers: [{name: istio-proxy, securityContext: {privileged: true}}]"), "securityContext.privileged", false},
		"capability":             {keyDeployment, inPod("containers: [{name: istio-proxy, securityContext: {capabilities: {add: [SYS_ADMIN]}}}]"), "securityContext.capabilities", false},
		"root":                   {keyDeployment, inPod("securityContext: {runAsUser: 0}"), "securityContext.runAsUser", false},
		"no seccomp":             {keyDeployment, inPod("securityContext: {seccompProfile: {type: Unconfined}}"), "Unconfined is not one of", false},
		"host port":              {keyDeployment, inPod("containers: [{name: istio-proxy, ports: [{containerPort: 80, hostPort: 80}]}]"), "hostPort", false},
		"a node":                 {keyDeployment, inPod("nodeName: control-plane"), "nodeName", false},
		"priority":               {keyDeployment, inPod("priorityClassName: system-node-critical"), "priorityClassName", false},
		"another account":        {keyDeployment, inPod("serviceAccountName: admin"), "serviceAccountName", true},
		"another account, old":   {keyDeployment, inPod("serviceAccount: admin"), "serviceAccount", true},
		"injection's volumes":    {keyDeployment, `spec: {template: {metadata: {annotations: {sidecar.istio.io/userVolume: '{"x":{"hostPath":{"path":"/"}}}'}}}}`, "userVolume: it would change what injection makes", false},
		"injection's image":      {keyDeployment, `spec: {template: {metadata: {annotations: {sidecar.istio.io/proxyImage: evil/x}}}}`, "proxyImage: it would change what injection makes", false},
		"other templates":        {keyDeployment, `spec: {template: {metadata: {annotations: {inject.istio.io/templates: custom}}}}`, "it would change what injection makes", false},
		"program of the agent":   {keyDeployment, `spec: {template: {metadata: {annotations: {proxy.istio.io/config: "binaryPath: /bin/sh"}}}}`, "binaryPath is not for", false},
		"apparmor":               {keyDeployment, `spec: {template: {metadata: {annotations: {container.apparmor.security.beta.kubernetes.io/istio-proxy: unconfined}}}}`, "how the node runs the pod", false},
		"other pods":             {keyDeployment, "spec: {selector: {matchLabels: {app: theirs}}}", "spec.selector", true},
		"no injection":           {keyDeployment, `spec: {template: {metadata: {labels: {sidecar.istio.io/inject: "false"}}}}`, "sidecar.istio.io/inject", true},
		"another gateway's pods": {keyDeployment, `spec: {template: {metadata: {labels: {gateway.networking.k8s.io/gateway-name: other}}}}`, "gateway-name", true},
		"delete by directive":    {keyDeployment, inPod("containers: [{name: istio-proxy, $patch: delete}]"), "$patch", false},
		"replace by directive":   {keyDeployment, "spec: {template: {$patch: replace, spec: {hostNetwork: true}}}", "$patch", true},
		"no template":            {keyDeployment, "spec: {template: null}", "spec.template", true},
		"another name":           {keyDeployment, "metadata: {name: other}", "metadata.name", true},
		"another namespace":      {keyDeployment, "metadata: {namespace: kube-system}", "metadata.namespace", true},
		"no owner":               {keyDeployment, "metadata: {ownerReferences: null}", "metadata.ownerReferences", true},
		"finalizer":              {keyDeployment, "metadata: {finalizers: [x/y]}", "metadata.finalizers", true},
		"another kind":           {keyDeployment, "kind: Pod", "kind would become", true},
		"what is not its label":  {keyDeployment, "metadata: {labels: {gateway.istio.io/managed: other}}", "gateway.istio.io/managed", true},
		"field that is none":     {keyDeployment, "spec: {strategy: {nonsense: 1}}", "unknown field", true},
		"field in capitals":      {keyDeployment, "spec: {template: {spec: {HostNetwork: true}}}", "HostNetwork", true},
		"no map":                 {keyDeployment, "[]", "is no map of fields", true},
		"no YAML":                {keyDeployment, "{", "is no YAML", true},
		"a field twice":          {keyDeployment, "spec: {replicas: 1}\nspec: {replicas: 2}", "is no YAML", true},
		"of the wrong type":      {keyDeployment, "spec: {replicas: many}", "makes no Deployment", true},
		"too large":              {keyDeployment, "spec: {replicas: 1} #" + strings.Repeat("x", maxOverlay), "are the most", true},
		"unknown overlay":        {"configMap", "{}", "nothing of that name", true},
		"others' traffic":        {keyService, "spec: {externalIPs: [192.0.2.1]}", "spec.externalIPs", false},
		"others' pods":           {keyService, "spec: {selector: {app: theirs}}", "spec.selector", true},
		"another host":           {keyService, "spec: {type: ExternalName, externalName: example.com}", "spec.externalName", false},
		"other Secrets":          {keyAccount, "secrets: [{name: theirs}]", "secrets is refused", false},
		"scaling another":        {keyScaler, "spec: {scaleTargetRef: {name: other}}", "spec.scaleTargetRef", true},
		"budget of other pods":   {keyBudget, "spec: {selector: {matchLabels: {app: theirs}}}", "spec.selector", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Make(fixture(t, plainGateway+"\n---\n"+beside(c.key, c.overlay)))
			require.ErrorContains(t, err, c.refused)
			require.ErrorContains(t, err, "ConfigMap edge/options: "+c.key)
			_, err = Make(fixture(t, plainGateway+"\n---\n"+parameters("istio-system", c.key, c.overlay)))
			if c.never {
				require.Error(t, err)
			} else {
				require.NoError(t, err, "the defaults of a class may")
			}
		})
	}
}

// TestRefused: what cannot be made of a Gateway is told with what to do about it.
func TestRefused(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 64)
	for name, c := range map[string]struct{ gateway, refused string }{
		"service type":    {strings.Replace(plainGateway, "uid: 0000-1", "annotations: {networking.istio.io/service-type: ExternalName}", 1), "want one of [LoadBalancer ClusterIP NodePort]"},
		"name":            {strings.Replace(plainGateway, "name: gw", "name: "+long, 1), "make the Gateway anew under a shorter name"},
		"name of Service": {strings.Replace(plainGateway, "name: gw", "name: "+long[:60], 1), "name another one in annotation gateway.istio.io/name-override"},
		"override":        {strings.Replace(plainGateway, "uid: 0000-1", `annotations: {gateway.istio.io/name-override: "a\nb: c"}`, 1), "cannot be the name of a Service"},
		"account":         {strings.Replace(plainGateway, "uid: 0000-1", `annotations: {gateway.istio.io/service-account: "a\nb: c"}`, 1), "cannot be the name of a ServiceAccount"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Make(fixture(t, c.gateway))
			require.ErrorContains(t, err, c.refused)
		})
	}
}

// FuzzParameters: whatever a ConfigMap beside a Gateway says, the pod is the proxy
// alone, under its own account, and nothing panics.
func FuzzParameters(f *testing.F) {
	f.Add(keyDeployment, inPod("containers: [{name: istio-proxy, resources: {limits: {cpu: 1}}}]"))
	f.Add(keyDeployment, inPod("tolerations: [{$patch: replace}], nodeSelector: {$retainKeys: [x]}"))
	f.Add(keyDeployment, "spec: {template: {spec: {affinity: {nodeAffinity: null}}}, strategy: {$setElementOrder/x: [1]}}")
	f.Add(keyService, "spec: {ports: [{port: 80, nodePort: 30080}]}")
	f.Add(keyService, "spec: {ports: [{$patch: replace}], loadBalancerSourceRanges: [10.0.0.0/8]}")
	f.Add(keyScaler, "spec: {maxReplicas: 3, metrics: [{type: Resource}]}")
	f.Add(keyBudget, "spec: {minAvailable: 1}")
	f.Add(keyAccount, "imagePullSecrets: [{name: x}]")
	f.Fuzz(func(t *testing.T, key, overlay string) {
		in := fixture(t, plainGateway)
		in.Parameters = &corev1.ConfigMap{Data: map[string]string{key: overlay}}
		harmless(t, in)
	})
}

// harmless makes the objects of a Gateway and, if it may, checks what they may be
// whatever its author wrote; it reports whether anything was made.
func harmless(t require.TestingT, in Input) bool {
	objects, err := Make(in)
	if err != nil {
		return false
	}
	for _, o := range objects.List {
		require.Equal(t, "edge", o.GetNamespace())
		require.Equal(t, "gw-istio", o.GetName())
		require.Equal(t, "0000-1", string(o.GetOwnerReferences()[0].UID))
		require.Equal(t, "gw", o.GetLabels()[gatewayapi.LabelGateway])
		if o.GetKind() == "Service" {
			s := &corev1.Service{}
			require.NoError(t, runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, s))
			require.Equal(t, map[string]string{gatewayapi.LabelGateway: "gw"}, s.Spec.Selector)
			require.Empty(t, s.Spec.ExternalIPs)
			require.Empty(t, s.Spec.ExternalName)
		}
		if o.GetKind() != "Deployment" {
			continue
		}
		pod := podOf(o)
		require.Len(t, pod.Spec.Containers, 1)
		c := pod.Spec.Containers[0]
		require.Equal(t, proxyContainer, c.Name)
		require.Equal(t, proxyImage, c.Image)
		require.Empty(t, c.Command)
		require.Empty(t, c.Args)
		require.Empty(t, pod.Spec.NodeName+pod.Spec.PriorityClassName)
		require.Nil(t, c.Lifecycle)
		require.Empty(t, c.EnvFrom)
		require.Empty(t, c.VolumeMounts)
		if s := c.SecurityContext; s != nil {
			require.Nil(t, s.Privileged)
			require.Nil(t, s.Capabilities)
			require.Nil(t, s.RunAsUser)
		}
		for _, p := range c.Ports {
			require.Zero(t, p.HostPort)
		}
		for _, e := range c.Env {
			require.True(t, strings.HasPrefix(e.Name, "ISTIO_META_"), e.Name)
			require.True(t, e.ValueFrom == nil || e.ValueFrom.SecretKeyRef == nil && e.ValueFrom.ConfigMapKeyRef == nil)
		}
		require.Empty(t, pod.Spec.InitContainers)
		require.Empty(t, pod.Spec.Volumes)
		require.Equal(t, "gw-istio", pod.Spec.ServiceAccountName)
		require.False(t, pod.Spec.HostNetwork || pod.Spec.HostPID || pod.Spec.HostIPC)
		require.Equal(t, "true", pod.Labels[labelInject])
		require.Equal(t, Template, pod.Annotations[annotationTemplates])
	}
	return true
}

// TestParametersProperty: the same for trees of the fields that there are, with the
// directives of patches among them.
func TestParametersProperty(t *testing.T) {
	t.Parallel()
	words := []string{"spec", "template", "metadata", "labels", "annotations", "containers", "name", "env", "value", "valueFrom", "secretKeyRef", "fieldRef",
		"ports", "hostPort", "containerPort", "image", "command", "volumes", "hostPath", "hostNetwork", "securityContext", "privileged", "seccompProfile", "type",
		"serviceAccountName", "selector", "matchLabels", "externalIPs", "tolerations", "nodeSelector", "resources", "limits", "replicas", "strategy", "affinity",
		"$patch", "$retainKeys", "$setElementOrder/containers", "$deleteFromPrimitiveList/externalIPs", "gateway.networking.k8s.io/gateway-name",
		"sidecar.istio.io/inject", "inject.istio.io/templates", "sidecar.istio.io/userVolume", "ownerReferences", "initContainers", "priorityClassName"}
	leaves := []any{"istio-proxy", "evil", "replace", "delete", "merge", "RuntimeDefault", "Unconfined", "ISTIO_META_X", "CA_ADDR", true, false, nil, 1.0, 80.0, "gw", ""}
	// paths lead to where something may be changed, so that trees get beyond the top.
	paths := [][]string{{}, {"spec"}, {"metadata"}, {"metadata", "labels"}, {"spec", "template"}, {"spec", "template", "metadata", "annotations"}, {"spec", "template", "metadata", "labels"},
		{"spec", "template", "spec"}, {"spec", "template", "spec", "containers", "[]"}, {"spec", "template", "spec", "containers", "[]", "env", "[]"},
		{"spec", "template", "spec", "containers", "[]", "ports", "[]"}, {"spec", "template", "spec", "containers", "[]", "securityContext"}, {"spec", "ports", "[]"},
		{"spec", "template", "spec", "tolerations", "[]"}, {"spec", "template", "spec", "nodeSelector"}}
	made := 0
	rapid.Check(t, func(t *rapid.T) {
		var value func(depth int) any
		value = func(depth int) any {
			switch n := rapid.IntRange(0, 5).Draw(t, "form"); {
			case depth == 0 || n < 3:
				return rapid.SampledFrom(leaves).Draw(t, "leaf")
			case n == 3:
				return []any{value(depth - 1)}
			}
			return map[string]any{rapid.SampledFrom(words).Draw(t, "key"): value(depth - 1)}
		}
		tree := any(map[string]any{})
		for range rapid.IntRange(0, 2).Draw(t, "fields") {
			tree.(map[string]any)[rapid.SampledFrom(words).Draw(t, "key")] = value(2)
		}
		path := rapid.SampledFrom(paths).Draw(t, "path")
		for _, p := range slices.Backward(path) {
			if p == "[]" {
				if m, ok := tree.(map[string]any); ok && m["name"] == nil && rapid.Bool().Draw(t, "named") {
					m["name"] = rapid.SampledFrom([]any{"istio-proxy", "ISTIO_META_X", "http"}).Draw(t, "name")
				}
				tree = []any{tree}
			} else {
				tree = map[string]any{p: tree}
			}
		}
		raw, err := json.Marshal(tree)
		require.NoError(t, err)
		in := fixtureOf(t, plainGateway)
		in.Parameters = &corev1.ConfigMap{Data: map[string]string{rapid.SampledFrom([]string{keyDeployment, keyService, keyScaler, keyBudget, keyAccount}).Draw(t, "kind"): string(raw)}}
		if harmless(t, in) {
			made++
		}
	})
	require.Positive(t, made, "some may be meant")
}
