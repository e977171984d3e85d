package inject

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	meshconfig "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// rendered runs an expression in a template and returns what it writes.
func rendered(t *testing.T, o Options, expression string, data *Data) (string, error) {
	t.Helper()
	c, err := compile("t", "metadata: {name: {{ ("+expression+") | toString | quote }}}", o)
	require.NoError(t, err)
	if data == nil {
		data = &Data{}
	}
	out, err := run(c, data, o.Getenv, newBudget(Limits{}.withDefaults()))
	if err != nil {
		return "", err
	}
	meta, ok := out["metadata"].(map[string]any)
	require.True(t, ok)
	name, ok := meta["name"].(string)
	require.True(t, ok)
	return name, nil
}

func TestFunctionsOfTemplates(t *testing.T) {
	data := &Data{NativeSidecars: true,
		ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{"a": "1", "e": ""}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{
			{Name: "x", Ports: []corev1.ContainerPort{{ContainerPort: 80}, {ContainerPort: 53, Protocol: corev1.ProtocolUDP}}},
			{Name: ProxyContainer, Ports: []corev1.ContainerPort{{ContainerPort: 90, Protocol: corev1.ProtocolTCP}}}}},
		ProxyConfig: &meshconfig.ProxyConfig{ConfigPath: "./etc/istio/proxy", StatusPort: 15021, DrainDuration: durationpb.New(time.Minute)},
		Values: map[string]any{"tmpl": `{{ .Revision }}!`, "deep": `{{ render .Values.deep }}`, "m": map[string]any{"a": nil, "b": "c"},
			"nested": map[string]any{"s": "x", "l": []any{nil, 1.0}, "e": []any{nil}, "m": map[string]any{"a": nil, "b": "c"}, "n": map[string]any{"a": nil}}},
		Revision: "r1",
	}
	for expression, want := range map[string]string{
		`annotation .ObjectMeta "a" "d"`:                               "1",
		`annotation .ObjectMeta "e" "d"`:                               "",
		`annotation .ObjectMeta "none" 15020`:                          "15020",
		`annotation .ObjectMeta "none" .ProxyConfig.InterceptionMode`:  "REDIRECT",
		`isset .ObjectMeta.Annotations "e"`:                            "true",
		`isset .ObjectMeta.Annotations "none"`:                         "false",
		`valueOrDefault "" "d"`:                                        "d",
		`valueOrDefault .Values.none "d"`:                              "d",
		`valueOrDefault "v" "d"`:                                       "v",
		`contains "/" "a/b"`:                                           "true",
		`contains "a/b" "/"`:                                           "false",
		`excludeInboundPort 15020 ""`:                                  "15020",
		`excludeInboundPort "15020" "80, 15020"`:                       "80, 15020",
		`excludeInboundPort 15020 "80,, 443 "`:                         "80,443,15020",
		`excludeInboundPort 0 "80"`:                                    "80",
		`includeInboundPorts .Spec.Containers`:                         "80,90",
		`applicationPorts .Spec.Containers`:                            "80",
		`directory "/etc/certs/ca.pem"`:                                "/etc/certs/",
		`toLower "ABC"`:                                                "abc",
		`formatDuration .ProxyConfig.DrainDuration`:                    "1m0s",
		`toJSON .ObjectMeta.Annotations`:                               `{"a":"1","e":""}`,
		`toJSON .ObjectMeta.Labels`:                                    "{}",
		`structToJSON .Values.none`:                                    "{}",
		`protoToJSON .ProxyConfig`:                                     `{"drainDuration":"60s","statusPort":15021}`,
		`index (fromJSON "{\"k\":\"v\"}") "k"`:                         "v",
		`len (fromJSON "nonsense")`:                                    "0",
		`indent 2 "a\nb\nc"`:                                           "a\n  b\n  c",
		`toYaml .Values.m | trim`:                                      "a: null\nb: c",
		`structToJSON (omitNil .Values.m)`:                             `{"b":"c"}`,
		`structToJSON (omitNil .Values.nested)`:                        `{"l":[1],"m":{"b":"c"},"s":"x"}`,
		`structToJSON (omitNil .Values.none)`:                          `{}`,
		`structToJSON (omit .Values.m "b")`:                            `{"a":null}`,
		`toJsonMap (omit .ObjectMeta.Annotations "e" "no")`:            `{"a":"1"}`,
		`toJsonMap (omit .ObjectMeta.Labels "e")`:                      `{}`,
		`toJsonMap (strdict "a" "1" "b" "" "d") (strdict "c" "2")`:     `{"a":"1","b":"","c":"2","d":""}`,
		`toYamlMap (strdict) | quote`:                                  `""`,
		`otelResourceAttributes (strdict "b" "2" "a" "1")`:             "a=1,b=2",
		`appendMultusNetwork "" "istio-cni"`:                           "istio-cni",
		`appendMultusNetwork "mine" "istio-cni"`:                       "mine, istio-cni",
		`appendMultusNetwork "mine, istio-cni" "istio-cni"`:            "mine, istio-cni",
		`appendMultusNetwork "[]" "istio-cni"`:                         `[{"name": "istio-cni"}]`,
		`appendMultusNetwork "[{\"name\":\"a\"}]" "istio-cni"`:         `[{"name":"a"}, {"name": "istio-cni"}]`,
		`appendMultusNetwork "[{\"name\":\"istio-cni\"}]" "istio-cni"`: `[{"name":"istio-cni"}]`,
		`appendMultusNetwork "[nonsense]" "istio-cni"`:                 "[nonsense]",
		`kubevirtInterfaces "a"`:                                       "a",
		`strjoin "-" (splitList "," "a,b")`:                            "a-b",
		`render .Values.tmpl`:                                          "r1!",
		`env "SET" "d"`:                                                "from environment",
		`env "ENABLE_NATIVE_SIDECARS" "x"`:                             "true",
		`env "UNSET" "d"`:                                              "d",
		`"x" | upper`:                                                  "X",
		`until 3 | len`:                                                "3",
		`untilStep 4 0 -2`:                                             "[4 2]",
		`seq 2 2 6`:                                                    "2 4 6",
		`seq 3`:                                                        "1 2 3",
		`repeat 3 "ab"`:                                                "ababab",
	} {
		got, err := rendered(t, Options{Getenv: func(k string) string {
			if k == "SET" {
				return "from environment"
			}
			return ""
		}}, expression, data)
		require.NoError(t, err, expression)
		require.Equal(t, want, got, expression)
	}
	for expression, want := range map[string]string{
		`render .Values.deep`:         "8 levels are the most",
		`repeat 100000 "x"`:           "65536 bytes are the most",
		`repeat -1 "x"`:               "are the most",
		`until 1000000`:               "10000 numbers are the most",
		`untilStep 0 9 0 | len`:       "",
		`expandenv "$HOME"`:           "not available",
		`getHostByName "example.com"`: "not available",
		`randAlphaNum 5`:              "not available",
		`genPrivateKey "rsa"`:         "not available",
		`indent 10000 "a"`:            "between 0 and 256",
		`fail "because"`:              "because",
		`omit "text" "k"`:             "want a map",
		`index .Spec.Containers 7`:    "out of range",
	} {
		_, err := rendered(t, Options{}, expression, data)
		if want == "" {
			require.NoError(t, err, expression)
			continue
		}
		require.ErrorContains(t, err, want, expression)
		var te *TemplateError
		require.ErrorAs(t, err, &te)
		require.Equal(t, 1, te.Line, expression)
	}
}

// The text of a message does not vary, though protojson's does.
func TestProtoJSONIsStable(t *testing.T) {
	pc := &meshconfig.ProxyConfig{StatusPort: 1, ProxyMetadata: map[string]string{"b": "1", "a": "2"}, CustomConfigFile: "f"}
	first, err := protoToJSON(pc)
	require.NoError(t, err)
	require.NotContains(t, first, " ")
	for range 20 {
		again, err := protoToJSON(pc)
		require.NoError(t, err)
		require.Equal(t, first, again)
	}
	none, err := protoToJSON((*meshconfig.ProxyConfig)(nil))
	require.NoError(t, err)
	require.Equal(t, "{}", none)
}

// Templates that want too much end, also those that write nothing.
func TestTemplatesAreBounded(t *testing.T) {
	loop := `{{ range until 9000 }}`
	end := `{{ end }}`
	for name, tc := range map[string]struct {
		template string
		limits   Limits
		want     error
	}{
		"output":        {loop + loop + "x: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\n" + end + end, Limits{Output: 1000}, errOutput},
		"silent loop":   {loop + loop + loop + end + end + end, Limits{Time: time.Nanosecond}, errTime},
		"loop in parts": {`{{ define "a" }}` + loop + loop + loop + end + end + end + `{{ end }}{{ template "a" . }}`, Limits{Time: time.Nanosecond}, errTime},
		"in render":     {`{{ render "` + strings.ReplaceAll(loop+loop+loop+end+end+end, `"`, `\"`) + `" }}`, Limits{Time: time.Nanosecond}, errTime},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := compile(name, tc.template, Options{})
			require.NoError(t, err)
			_, err = run(c, &Data{}, nil, newBudget(tc.limits.withDefaults()))
			require.ErrorIs(t, err, tc.want)
		})
	}
	c, err := compile("deep", `{{ define "a" }}{{ template "a" . }}{{ end }}{{ template "a" . }}`, Options{})
	require.NoError(t, err)
	_, err = run(c, &Data{}, nil, newBudget(Limits{}.withDefaults()))
	require.ErrorContains(t, err, "exceeded maximum template depth")
}

// A template that changes its values changes them for nobody else.
func TestTemplatesCannotChangeValues(t *testing.T) {
	c, err := Parse("policy: enabled\ntemplates:\n  sidecar: |\n    {{ $_ := set .Values.m \"k\" (print .Values.m.k \"x\") }}\n    metadata: {annotations: {k: {{ .Values.m.k }}}}\n", "m: {k: a}", Options{})
	require.NoError(t, err)
	for range 2 {
		r, err := c.Inject(Request{Pod: &corev1.Pod{}, Namespace: "shop"})
		require.NoError(t, err)
		require.Equal(t, "ax", r.Pod.Annotations["k"])
	}
}

func TestErrorsOfConfigurations(t *testing.T) {
	for name, tc := range map[string]struct {
		config, values string
		want           []string
	}{
		"not YAML":     {"a: [", "", []string{"key config"}},
		"values":       {"policy: enabled\ntemplates: {sidecar: ''}", "a: [", []string{"key values"}},
		"all at once":  {"policy: maybe\nneverInjectSelector: [{matchExpressions: [{key: a, operator: Wrong}]}]\ndefaultTemplates: [one, two]\ntemplates: {one: '{{ if }}', two: \"\\n{{ nosuch }}\"}", "", []string{`policy "maybe"`, "neverInjectSelector[0]", `template "one", line 1`, `template "two", line 2`}},
		"old format":   {"policy: enabled\ntemplate: x", "", []string{"before 1.10"}},
		"no templates": {"policy: enabled", "", []string{"there are none"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse(tc.config, tc.values, Options{})
			for _, want := range tc.want {
				require.ErrorContains(t, err, want)
			}
		})
	}
	// So Istio's chart writes it: a template of the old format that an injector older
	// than the chart must fail with, beside those that count.
	_, err := Parse("policy: enabled\ninjectedAnnotations:\ntemplate: '{{ Template_Version_And_Istio_Version_Mismatched_Check_Installation }}'\ntemplates: {sidecar: ''}", "{}", Options{})
	require.NoError(t, err)
	_, err = ParseConfigMap(map[string]string{KeyConfig: ""}, Options{})
	require.ErrorContains(t, err, `key "values" is missing`)
	c, err := Parse("policy: enabled\ndefaultTemplates: [nosuch]\ntemplates: {sidecar: ''}", "", Options{})
	require.NoError(t, err)
	require.Len(t, c.Warnings(), 1)
	c, err = Parse("policy: enabled\ntemplates: {sidecar: '', other: '{{ functionOfTomorrow }}'}", "{}", Options{})
	require.NoError(t, err)
	require.Equal(t, []string{`key config: template "other", line 1: function "functionOfTomorrow" not defined: pods that name the template will be refused`}, c.Warnings())
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n"}}
	_, err = c.Inject(Request{Pod: pod})
	require.NoError(t, err)
	pod.Annotations = map[string]string{annotationTemplates: "other"}
	_, err = c.Inject(Request{Pod: pod})
	require.ErrorContains(t, err, `inject pod n/p: template "other", line 1`)
}

// TestGuardOfCharts: what Istio's charts write beside templates, for an istiod too
// old to know them, keeps nobody from using the templates.
func TestGuardOfCharts(t *testing.T) {
	c, err := Parse("policy: enabled\ninjectedAnnotations:\ntemplate: \"{{ Template_Version_And_Istio_Version_Mismatched_Check_Installation }}\"\n"+
		"templates: {sidecar: 'metadata: {annotations: {k: v}}'}", "", Options{})
	require.NoError(t, err)
	r, err := c.Inject(Request{Pod: &corev1.Pod{}, Namespace: "shop"})
	require.NoError(t, err)
	require.Equal(t, "v", r.Pod.Annotations["k"])
}

// TestEstimatedConcurrency: what templates of older releases give their proxies.
func TestEstimatedConcurrency(t *testing.T) {
	for _, tc := range []struct {
		mesh        *wrapperspb.Int32Value
		annotations map[string]string
		values      string
		want        string
	}{
		{nil, map[string]string{"sidecar.istio.io/proxyCPULimit": "4"}, "", "2"},
		{wrapperspb.Int32(3), map[string]string{"sidecar.istio.io/proxyCPULimit": "4"}, "", "3"},
		{wrapperspb.Int32(0), map[string]string{"sidecar.istio.io/proxyCPULimit": "1500m", "sidecar.istio.io/proxyCPU": "4"}, "", "2"},
		{wrapperspb.Int32(0), map[string]string{"sidecar.istio.io/proxyCPU": "4"}, "", "4"},
		{wrapperspb.Int32(0), nil, "global: {proxy: {resources: {limits: {cpu: 5000m}, requests: {cpu: 100m}}}}", "5"},
		{wrapperspb.Int32(0), nil, "global: {proxy: {resources: {requests: {cpu: 100m}}}}", "1"},
		{wrapperspb.Int32(0), nil, "", "2"},
	} {
		c, err := Parse("policy: enabled\ntemplates: {sidecar: 'metadata: {annotations: {k: \"{{ .EstimatedConcurrency }}\"}}'}", tc.values, Options{})
		require.NoError(t, err)
		r, err := c.Inject(Request{Pod: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: tc.annotations}}, Namespace: "shop",
			Mesh: &meshconfig.MeshConfig{DefaultConfig: &meshconfig.ProxyConfig{Concurrency: tc.mesh}}})
		require.NoError(t, err)
		require.Equal(t, tc.want, r.Pod.Annotations["k"], "%+v", tc)
	}
}

func TestErrorsNameThePod(t *testing.T) {
	c, err := Default(Options{})
	require.NoError(t, err)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "web-", Annotations: map[string]string{annotationTemplates: "x"}}}
	_, err = c.Inject(Request{Pod: pod, Namespace: "shop"})
	var pe *PodError
	require.ErrorAs(t, err, &pe)
	require.Equal(t, "shop", pe.Namespace)
	require.Equal(t, "web-*", pe.Pod)
	_, err = c.Inject(Request{})
	require.ErrorAs(t, err, &pe)
	unnamed := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{annotationTemplates: "x"}}}
	_, err = c.Inject(Request{Pod: unnamed, Namespace: "shop", Owner: &Owner{TypeMeta: metav1.TypeMeta{Kind: "Deployment"}, Name: "web"}})
	require.ErrorContains(t, err, "inject pod shop/deployment web:")
}

// Annotations that only injection writes may be anything in a request.
func TestForgedAnnotations(t *testing.T) {
	c, err := Default(Options{})
	require.NoError(t, err)
	for _, text := range []string{"{", "null", "[]", `{"containers":["web"],"volumes":["v"]}`, `{"containers":[1]}`} {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Annotations: map[string]string{annotationStatus: text}},
			Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: "x"}}}}
		r, err := c.Inject(Request{Pod: pod, Namespace: "shop"})
		require.NoError(t, err, text)
		require.NotNil(t, find(r.Pod.Spec.Containers, ProxyContainer))
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Annotations: map[string]string{annotationOverrides: "{"}}}
	_, err = c.Inject(Request{Pod: pod, Namespace: "shop"})
	require.ErrorContains(t, err, annotationOverrides)
	pod = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Annotations: map[string]string{annotationStatus: "{}"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: ProxyContainer, Env: []corev1.EnvVar{{Name: envProbers, Value: "{"}}}}}}
	_, err = c.Inject(Request{Pod: pod, Namespace: "shop"})
	require.ErrorContains(t, err, envProbers)
}

func TestDefaultsAreOfTheFormat(t *testing.T) {
	c, err := ParseConfigMap(map[string]string{KeyConfig: DefaultConfig(), KeyValues: DefaultValues()}, Options{})
	require.NoError(t, err)
	require.Empty(t, c.Warnings())
	require.Contains(t, c.Templates(), "gateway")
	require.Contains(t, c.Templates(), sidecarTemplate)
	require.Equal(t, DefaultTemplates(), c.Sources())
	var values map[string]any
	require.NoError(t, json.Unmarshal([]byte(DefaultValues()), &values))
	require.Equal(t, values, c.Values().Tree())
}

// No configuration and no pod makes injection panic or run without end.
func FuzzTemplates(f *testing.F) {
	f.Add("metadata: {labels: {a: {{ .Values.a }}}}", "a: b", "{}")
	f.Add("{{ range .Spec.Containers }}{{ render .Name }}{{ end }}", "", `{"spec":{"containers":[{"name":"{{ . }}"}]}}`)
	f.Add("spec: {containers: [{name: istio-proxy}], initContainers: , volumes: [{name: v, emptyDir: }]}", "global: 1", `{"metadata":{"annotations":{"sidecar.istio.io/status":"{}"}}}`)
	f.Add("{{ define \"a\" }}{{ template \"a\" . }}{{ end }}{{ template \"a\" . }}", "", "{}")
	f.Add("{{ range until 9999 }}{{ range until 9999 }}{{ end }}{{ end }}", "", "{}")
	f.Fuzz(func(t *testing.T, text, values, object string) {
		tmpl, err := json.Marshal(text)
		require.NoError(t, err)
		c, err := Parse("policy: enabled\ntemplates: {sidecar: "+string(tmpl)+"}", values, Options{Limits: Limits{Output: 1 << 16, Time: 50 * time.Millisecond}})
		if err != nil {
			return
		}
		pod := &corev1.Pod{}
		if json.Unmarshal([]byte(object), pod) != nil {
			return
		}
		r, err := c.Inject(Request{Pod: pod, Namespace: "shop", Always: true})
		if err != nil {
			var pe *PodError
			require.ErrorAs(t, err, &pe)
			return
		}
		require.True(t, json.Valid(r.Patch))
	})
}
