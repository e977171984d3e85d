package inject

import (
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networkingv1beta1 "istio.io/api/networking/v1beta1"
	typev1beta1 "istio.io/api/type/v1beta1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestSelected(t *testing.T) {
	type m = map[string]string
	for _, tc := range []struct {
		name     string
		ns, pod  m
		revision string
		tags     []string
		want     bool
	}{
		{name: "nothing", want: false},
		{name: "namespace enabled", ns: m{labelInjection: "enabled"}, want: true},
		{name: "namespace enabled, other revision", ns: m{labelInjection: "enabled"}, revision: "canary", want: false},
		{name: "namespace enabled, default tag", ns: m{labelInjection: "enabled"}, revision: "canary", tags: []string{"default"}, want: true},
		{name: "namespace enabled, pod not", ns: m{labelInjection: "enabled"}, pod: m{labelInject: "false"}, want: false},
		{name: "namespace disabled, pod wants", ns: m{labelInjection: "disabled"}, pod: m{labelInject: "true"}, want: false},
		{name: "namespace of revision", ns: m{labelRevision: "canary"}, revision: "canary", want: true},
		{name: "namespace of tag", ns: m{labelRevision: "prod"}, revision: "canary", tags: []string{"prod"}, want: true},
		{name: "namespace of another revision", ns: m{labelRevision: "canary"}, pod: m{labelRevision: ""}, want: false},
		{name: "both labels", ns: m{labelInjection: "enabled", labelRevision: "canary"}, revision: "canary", want: false},
		{name: "pod wants", pod: m{labelInject: "true"}, want: true},
		{name: "pod wants, other revision", pod: m{labelInject: "true"}, revision: "canary", want: false},
		{name: "pod of revision", pod: m{labelRevision: "canary"}, revision: "canary", want: true},
		{name: "pod of revision, not wanted", pod: m{labelRevision: "canary", labelInject: "false"}, revision: "canary", want: false},
	} {
		d := Selected(tc.ns, tc.pod, tc.revision, tc.tags...)
		require.Equal(t, tc.want, d.Inject, tc.name)
		require.NotEmpty(t, d.Reason)
	}
}

func TestParsePath(t *testing.T) {
	type m = map[string]string
	for path, want := range map[string]m{
		"":                                  {},
		"/inject":                           {},
		"/inject/":                          {},
		"/inject/cluster":                   {},
		"/inject/cluster/c2/net/net2":       {EnvCluster: "c2", EnvNetwork: "net2"},
		"/inject/cluster/c2/net/net2/":      {EnvCluster: "c2", EnvNetwork: "net2"},
		"/inject/cluster/a--slash--b/odd":   {EnvCluster: "a/b"},
		"/inject/my_var/x":                  {"MY_VAR": "x"},
		"/inject//x/net/n":                  {EnvNetwork: "n"},
		"/inject/:ENV:cluster=c2:ENV:net=n": {EnvCluster: "c2", EnvNetwork: "n"},
		"/inject/:ENV:a=:ENV:=b:ENV:c":      {"A": ""},
	} {
		require.Equal(t, want, ParsePath(path), path)
	}
}

func TestOwnerOf(t *testing.T) {
	yes := true
	pod := func(kind, name string, labels, annotations map[string]string) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "gen-", Labels: labels, Annotations: annotations}}
		if kind != "" {
			p.OwnerReferences = []metav1.OwnerReference{{Kind: "Other", Name: "x"}, {APIVersion: "apps/v1", Kind: kind, Name: name, Controller: &yes}}
		}
		return p
	}
	for _, tc := range []struct {
		pod        *corev1.Pod
		kind, name string
	}{
		{pod("", "", nil, nil), "Pod", "gen"},
		{pod("ReplicaSet", "web-abc", map[string]string{labelTemplateHash: "abc"}, nil), "Deployment", "web"},
		{pod("ReplicaSet", "web-abc", nil, nil), "ReplicaSet", "web-abc"},
		{pod("ReplicaSet", "web-abc", map[string]string{labelRolloutHash: "abc"}, nil), "Rollout", "web"},
		{pod("Job", "nightly-27652100", nil, nil), "CronJob", "nightly"},
		{pod("Job", "nightly-2765", nil, nil), "Job", "nightly-2765"},
		{pod("Job", "12345678", nil, nil), "Job", "12345678"},
		{pod("StatefulSet", "db", nil, nil), "StatefulSet", "db"},
		{pod("ReplicationController", "web-1", nil, map[string]string{annotationDeploymentConf: "web"}), "DeploymentConfig", "web"},
		{pod("ReplicationController", "web-1", map[string]string{labelDeploymentConf: "web"}, nil), "DeploymentConfig", "web"},
	} {
		o := OwnerOf(tc.pod, "shop")
		require.Equal(t, [3]string{tc.kind, tc.name, "shop"}, [3]string{o.Kind, o.Name, o.Namespace})
	}
}

func TestEffectiveProxyConfig(t *testing.T) {
	m := &meshconfig.MeshConfig{RootNamespace: "istio-system", DefaultConfig: &meshconfig.ProxyConfig{Concurrency: wrapperspb.Int32(1), ProxyMetadata: map[string]string{"mesh": "1", "who": "mesh"},
		HoldApplicationUntilProxyStarts: wrapperspb.Bool(true), ClusterName: &meshconfig.ProxyConfig_ServiceCluster{ServiceCluster: "s"}}}
	resource := func(ns string, selector map[string]string, env string, concurrency int32) ProxyConfigResource {
		r := ProxyConfigResource{Namespace: ns, Spec: &networkingv1beta1.ProxyConfig{EnvironmentVariables: map[string]string{env: "1", "who": env}, Concurrency: wrapperspb.Int32(concurrency),
			Image: &networkingv1beta1.ProxyImage{ImageType: env}}}
		if selector != nil {
			r.Spec.Selector = &typev1beta1.WorkloadSelector{MatchLabels: selector}
		}
		return r
	}
	resources := []ProxyConfigResource{
		resource("istio-system", nil, "root", 2), resource("shop", nil, "namespace", 3), resource("shop", nil, "younger", 9),
		resource("shop", map[string]string{"app": "web"}, "workload", 4), resource("other", nil, "elsewhere", 8),
	}
	web := &metav1.ObjectMeta{Labels: map[string]string{"app": "web"}}
	got, err := EffectiveProxyConfig(m, "shop", web, resources)
	require.NoError(t, err)
	require.Equal(t, map[string]string{"mesh": "1", "root": "1", "namespace": "1", "workload": "1", "who": "workload"}, got.ProxyMetadata)
	require.EqualValues(t, 4, got.Concurrency.Value)
	require.Equal(t, "workload", got.Image.ImageType)

	web.Annotations = map[string]string{annotationProxyConfig: "{concurrency: 0, holdApplicationUntilProxyStarts: false, tracingServiceName: CANONICAL_NAME_ONLY, proxyMetadata: {who: pod}, nosuch: 1, tracing: {sampling: 5}}"}
	got, err = EffectiveProxyConfig(m, "shop", web, resources)
	require.NoError(t, err)
	require.EqualValues(t, 0, got.Concurrency.GetValue())
	require.NotNil(t, got.Concurrency)
	require.False(t, got.HoldApplicationUntilProxyStarts.Value)
	require.Equal(t, "pod", got.ProxyMetadata["who"])
	require.Equal(t, "1", got.ProxyMetadata["mesh"])
	require.Empty(t, got.GetServiceCluster(), "one of the two names of a cluster replaces the other")
	require.InDelta(t, 5, got.Tracing.Sampling, 0)

	require.Equal(t, "1", m.DefaultConfig.ProxyMetadata["mesh"])
	require.Len(t, m.DefaultConfig.ProxyMetadata, 2, "the mesh's settings must not change")
	web.Annotations[annotationProxyConfig] = "[1]"
	_, err = EffectiveProxyConfig(m, "shop", web, nil)
	require.ErrorContains(t, err, annotationProxyConfig)
}

func TestProxyImage(t *testing.T) {
	for _, tc := range [][3]string{
		{"1.31.1", "", "1.31.1"}, {"1.31.1", "distroless", "1.31.1-distroless"}, {"1.31.1-debug", "distroless", "1.31.1-distroless"},
		{"1.31.1-distroless", "default", "1.31.1"}, {"1.31.1-mine", "debug", "1.31.1-mine-debug"},
	} {
		require.Equal(t, tc[2], imageTag(tc[0], tc[1]), tc)
	}
	v, err := ParseValues("global: {hub: h, tag: 1.29, proxy: {image: p}}")
	require.NoError(t, err)
	require.Equal(t, "h/p:1.29", proxyImage(v, nil, nil))
	v, err = ParseValues("global: {hub: h, tag: 1.31.1, variant: distroless}")
	require.NoError(t, err)
	require.Equal(t, "h/proxyv2:1.31.1-distroless", proxyImage(v, &meshconfig.ProxyConfig{}, nil))
	debug := &meshconfig.ProxyConfig{Image: &networkingv1beta1.ProxyImage{ImageType: "debug"}}
	require.Equal(t, "h/proxyv2:1.31.1-debug", proxyImage(v, debug, nil), "ProxyConfig wins over the values")
	require.Equal(t, "h/proxyv2:1.31.1", proxyImage(v, debug, map[string]string{annotationImageType: "default"}), "the pod wins over both")
}

func TestRanges(t *testing.T) {
	for text, want := range map[string]int64{"1000/10": 1009, "5-9": 9, "x": 0, "1/0": 0, "a/b": 0, "9223372036854775807/2": 0, "-5/2": 0} {
		got, ok := lastOfRange(text)
		require.Equal(t, want != 0, ok, text)
		if ok {
			require.Equal(t, want, got, text)
		}
	}
}
