package deploy

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// rule allows a field of an overlay to those who write ConfigMaps beside a
// Gateway. In its path * is any key of a map, [] an element of a list and a final
// ** everything below.
type rule struct {
	path string
	// check judges the value under a key; nil takes all.
	check func(key string, value any) error
}

// allowed lists what parameters beside a Gateway may set of a kind: nothing that
// lets a pod run something else, as somebody else, or with more of its node; that
// takes other pods' place on nodes; or that leads others' traffic here.
func allowed(key string) []rule {
	metadata := []rule{{path: "metadata/labels/*"}, {path: "metadata/annotations/*"}, {path: "apiVersion"}, {path: "kind"}}
	var out []rule
	switch key {
	case keyAccount:
		out = plain("automountServiceAccountToken", "imagePullSecrets/**")
	case keyService:
		out = append(plain("spec/allocateLoadBalancerNodePorts", "spec/externalTrafficPolicy", "spec/healthCheckNodePort", "spec/internalTrafficPolicy",
			"spec/ipFamilies/**", "spec/ipFamilyPolicy", "spec/loadBalancerClass", "spec/loadBalancerIP", "spec/loadBalancerSourceRanges/**", "spec/ports/**",
			"spec/publishNotReadyAddresses", "spec/sessionAffinity", "spec/sessionAffinityConfig/**", "spec/trafficDistribution"),
			rule{"spec/type", oneOf(serviceTypes()...)})
	case keyDeployment:
		out = allowedOfPods()
	case keyScaler:
		out = plain("spec/behavior/**", "spec/maxReplicas", "spec/metrics/**", "spec/minReplicas")
	case keyBudget:
		out = plain("spec/maxUnavailable", "spec/minAvailable", "spec/unhealthyPodEvictionPolicy")
	}
	return append(out, metadata...)
}

func allowedOfPods() []rule {
	const pod, proxy = "spec/template/spec/", "spec/template/spec/containers/[]/"
	out := plain("spec/minReadySeconds", "spec/progressDeadlineSeconds", "spec/replicas", "spec/revisionHistoryLimit", "spec/strategy/**",
		"spec/template/metadata/labels/*",
		pod+"affinity/**", pod+"automountServiceAccountToken", pod+"enableServiceLinks", pod+"imagePullSecrets/**", pod+"nodeSelector/**",
		pod+"terminationGracePeriodSeconds", pod+"tolerations/**", pod+"topologySpreadConstraints/**",
		proxy+"imagePullPolicy", proxy+"resources/**", proxy+"terminationMessagePath", proxy+"terminationMessagePolicy",
		proxy+"ports/[]/containerPort", proxy+"ports/[]/name", proxy+"ports/[]/protocol",
		proxy+"env/[]/value", proxy+"env/[]/valueFrom/fieldRef/**", proxy+"env/[]/valueFrom/resourceFieldRef/**")
	return append(out,
		rule{"spec/template/metadata/annotations/*", func(key string, value any) error {
			text, _ := value.(string)
			return podAnnotation(key, text)
		}},
		rule{pod + "securityContext/seccompProfile/type", oneOf("RuntimeDefault")},
		rule{proxy + "securityContext/seccompProfile/type", oneOf("RuntimeDefault")},
		rule{proxy + "name", oneOf(proxyContainer)},
		rule{proxy + "env/[]/name", func(_ string, value any) error {
			name, _ := value.(string)
			return proxyVariable(name)
		}})
}

func plain(paths ...string) []rule {
	out := make([]rule, len(paths))
	for i, p := range paths {
		out[i].path = p
	}
	return out
}

func oneOf(values ...string) func(string, any) error {
	return func(_ string, value any) error {
		if text, ok := value.(string); ok && slices.Contains(values, text) {
			return nil
		}
		return fmt.Errorf("%v is not one of %v", value, values)
	}
}

// judge reports the first field of an overlay that is not allowed.
func judge(key string, overlay map[string]any) error {
	rules := allowed(key)
	segments := make([][]string, len(rules))
	for i, r := range rules {
		segments[i] = strings.Split(r.path, "/")
	}
	var walk func(path []string, value any) error
	walk = func(path []string, value any) error {
		inside := len(path) == 0
		for i, pattern := range segments {
			switch whole, begins := match(pattern, path); {
			case whole && rules[i].check != nil:
				if err := rules[i].check(path[len(path)-1], value); err != nil {
					return fmt.Errorf("%s: %w", strings.Join(path, "."), err)
				}
				return nil
			case whole:
				return nil
			case begins:
				inside = true
			}
		}
		if !inside {
			return fmt.Errorf("%s is refused in parameters beside a Gateway, whose author may not decide it; the defaults of a class may have it", strings.Join(path, "."))
		}
		switch x := value.(type) {
		case map[string]any:
			for _, k := range sortedKeys(x) {
				if err := walk(append(slices.Clone(path), k), x[k]); err != nil {
					return err
				}
			}
			return nil
		case []any:
			element := append(slices.Clone(path), "[]")
			named := slices.ContainsFunc(rules, func(r rule) bool { return r.check != nil && r.path == strings.Join(append(element, "name"), "/") })
			for _, v := range x {
				if m, _ := v.(map[string]any); named && m["name"] == nil {
					return fmt.Errorf("%s has no name", strings.Join(element, "."))
				}
				if err := walk(element, v); err != nil {
					return err
				}
			}
			return nil
		}
		return fmt.Errorf("%s is neither a map nor a list of what parameters beside a Gateway may have", strings.Join(path, "."))
	}
	return walk(nil, overlay)
}

// match reports whether a path is what a pattern means, or leads there. Directives
// of patches, which begin with $, are no keys.
func match(pattern, path []string) (whole, begins bool) {
	for i, p := range path {
		switch {
		case i >= len(pattern):
			return false, false
		case pattern[i] == "**":
			return true, false
		case pattern[i] == "*" && !strings.HasPrefix(p, "$"), pattern[i] == p:
		default:
			return false, false
		}
	}
	if len(path) == len(pattern) {
		return true, false
	}
	return pattern[len(path)] == "**", true
}

// podAnnotation says why an annotation that a Gateway's author wrote may not be on
// its pods: injection, and runtimes, would do what only who makes pods may ask.
func podAnnotation(key, value string) error {
	domain, _, _ := strings.Cut(key, "/")
	for _, d := range []string{"container.apparmor.security.beta.kubernetes.io", "container.seccomp.security.alpha.kubernetes.io", "seccomp.security.alpha.kubernetes.io",
		"k8s.v1.cni.cncf.io", "v1.multus-cni.io", "io.containerd", "io.kubernetes.cri-o"} {
		if domain == d || strings.HasPrefix(domain, d+".") {
			return errors.New("it changes how the node runs the pod")
		}
	}
	if domain != "istio.io" && !strings.HasSuffix(domain, ".istio.io") {
		return nil
	}
	switch key {
	case "sidecar.istio.io/proxyCPU", "sidecar.istio.io/proxyCPULimit", "sidecar.istio.io/proxyMemory", "sidecar.istio.io/proxyMemoryLimit",
		"sidecar.istio.io/logLevel", "sidecar.istio.io/componentLogLevel", "sidecar.istio.io/agentLogLevel",
		"sidecar.istio.io/statsInclusionPrefixes", "sidecar.istio.io/statsInclusionSuffixes", "sidecar.istio.io/statsInclusionRegexps",
		"sidecar.istio.io/statsHistogramBuckets", "sidecar.istio.io/extraStatTags", "sidecar.istio.io/statsCompression":
		return nil
	case "proxy.istio.io/config":
		return proxyConfig(value)
	}
	return errors.New("it would change what injection makes of the pod")
}

// proxyConfig judges annotation proxy.istio.io/config: what only tunes the proxy is
// taken, what names a program, a file or whom to trust is not.
func proxyConfig(text string) error {
	var config map[string]any
	if err := yaml.Unmarshal([]byte(text), &config); err != nil {
		return fmt.Errorf("it is no YAML: %w", err)
	}
	for _, key := range sortedKeys(config) {
		switch key {
		case "concurrency", "drainDuration", "terminationDrainDuration", "parentShutdownDuration", "holdApplicationUntilProxyStarts", "proxyStatsMatcher",
			"extraStatTags", "tracing", "gatewayTopology", "proxyHeaders", "envoyAccessLogService", "envoyMetricsService", "statsdUdpAddress", "runtimeValues":
		case "image":
			image, _ := config[key].(map[string]any)
			for _, k := range sortedKeys(image) {
				if k != "imageType" {
					return fmt.Errorf("image.%s is not for who writes a Gateway to decide", k)
				}
			}
		case "proxyMetadata":
			variables, _ := config[key].(map[string]any)
			for _, name := range sortedKeys(variables) {
				if err := proxyVariable(name); err != nil {
					return fmt.Errorf("proxyMetadata: %w", err)
				}
			}
		default:
			return fmt.Errorf("%s is not for who writes a Gateway to decide", key)
		}
	}
	return nil
}

// proxyVariable says why a variable may not be set in the proxy by who writes a
// Gateway: it might decide whom the proxy trusts or what it runs.
func proxyVariable(name string) error {
	switch name {
	case "EXIT_ON_ZERO_ACTIVE_CONNECTIONS", "MINIMUM_DRAIN_DURATION", "TERMINATION_DRAIN_DURATION_SECONDS", "GOGC", "GOMAXPROCS", "GOMEMLIMIT":
		return nil
	}
	if strings.HasPrefix(name, "ISTIO_META_") {
		return nil
	}
	return fmt.Errorf("variable %s is not for who writes a Gateway to decide; those called ISTIO_META_... are", name)
}
