package inject

import (
	"embed"
	"encoding/json"
	"fmt"
	"path"
	"strings"

	"sigs.k8s.io/yaml"
)

//go:embed templates
var templateFiles embed.FS //nolint:gochecknoglobals // embedded, never changed

// proxyVersion is the release of istio-proxy that the defaults inject.
const proxyVersion = "1.31.1"

// DefaultTemplates returns the templates of Isthmus by name. Each is whole.
func DefaultTemplates() map[string]string {
	common := read("common.tpl")
	out := map[string]string{}
	files, err := templateFiles.ReadDir("templates")
	if err != nil {
		return out
	}
	for _, f := range files {
		if name, ok := strings.CutSuffix(f.Name(), ".yaml"); ok {
			out[name] = common + read(f.Name())
		}
	}
	return out
}

func read(name string) string {
	raw, err := templateFiles.ReadFile(path.Join("templates", name))
	if err != nil {
		return ""
	}
	return string(raw)
}

// DefaultConfig returns key config of ConfigMap istio-sidecar-injector as it is
// without settings of users: YAML with policy, aliases and [DefaultTemplates].
func DefaultConfig() string {
	head := "# Which pods get a proxy, and the templates of what they get.\n" +
		"policy: enabled\nalwaysInjectSelector: []\nneverInjectSelector: []\ninjectedAnnotations: {}\n" +
		"defaultTemplates: [sidecar]\naliases: {}\n"
	raw, err := yaml.Marshal(map[string]any{"templates": DefaultTemplates()})
	if err != nil {
		return head
	}
	return head + string(raw)
}

// DefaultValues returns key values of ConfigMap istio-sidecar-injector as it is
// without settings of users: JSON, under the names of Istio's charts.
func DefaultValues() string {
	v := map[string]any{
		"revision": "",
		"global": map[string]any{
			"hub": "docker.io/istio", "tag": proxyVersion, "imagePullPolicy": "", "imagePullSecrets": []any{},
			"istioNamespace": "istio-system", "caAddress": "", "pilotCertProvider": "istiod", "trustBundleName": "",
			"meshID": "", "network": "", "multiCluster": map[string]any{"clusterName": ""},
			"logAsJson": false, "logging": map[string]any{"level": "default:info"}, "mountMtlsCerts": false,
			"sds": map[string]any{"token": map[string]any{"aud": "istio-ca"}}, "sts": map[string]any{"servicePort": 0},
			"proxy_init": map[string]any{"image": "proxyv2"},
			"proxy": map[string]any{
				"image": "proxyv2", "clusterDomain": "cluster.local", "logLevel": "warning", "componentLogLevel": "misc:error",
				"privileged": false, "enableCoreDump": false, "statusPort": 15020,
				"includeIPRanges": "*", "excludeIPRanges": "", "includeInboundPorts": "*", "excludeInboundPorts": "",
				"includeOutboundPorts": "", "excludeOutboundPorts": "",
				"readinessInitialDelaySeconds": 0, "readinessPeriodSeconds": 15, "readinessFailureThreshold": 4,
				"startupProbe": map[string]any{"enabled": true, "failureThreshold": 600},
				"resources": map[string]any{
					"requests": map[string]any{"cpu": "100m", "memory": "128Mi"},
					"limits":   map[string]any{"cpu": "2000m", "memory": "1024Mi"},
				},
			},
		},
		"pilot":                  map[string]any{"cni": map[string]any{"enabled": false, "provider": "default"}},
		"sidecarInjectorWebhook": map[string]any{"rewriteAppHTTPProbe": true},
	}
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return "{}"
	}
	return string(raw) + "\n"
}

// Default returns the configuration of [DefaultConfig] and [DefaultValues].
func Default(o Options) (*Config, error) {
	c, err := Parse(DefaultConfig(), DefaultValues(), o)
	if err != nil {
		return nil, fmt.Errorf("read Isthmus's own templates: %w", err)
	}
	return c, nil
}
