package inject

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-multierror"
	"google.golang.org/protobuf/proto"
	meshconfig "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/yaml"
)

// annotationRules says for every annotation that templates and injection read
// what it may be. What is not listed may be anything.
func annotationRules() map[string]func(string) error {
	return map[string]func(string) error{
		annotationInterception:                                  oneOf("REDIRECT", "TPROXY", "NONE"),
		annotationMergeMetrics:                                  isBool,
		annotationNativeSidecar:                                 isBool,
		annotationRewriteProbes:                                 isBool,
		annotationProxyConfig:                                   isProxyConfig,
		annotationOverrides:                                     isOverrides,
		annotationStatusPort:                                    isPort,
		"readiness.status.sidecar.istio.io/applicationPorts":    isPorts,
		"readiness.status.sidecar.istio.io/failureThreshold":    isCount,
		"readiness.status.sidecar.istio.io/initialDelaySeconds": isCount,
		"readiness.status.sidecar.istio.io/periodSeconds":       isCount,
		"sidecar.istio.io/proxyCPU":                             isQuantity,
		"sidecar.istio.io/proxyCPULimit":                        isQuantity,
		"sidecar.istio.io/proxyMemory":                          isQuantity,
		"sidecar.istio.io/proxyMemoryLimit":                     isQuantity,
		"sidecar.istio.io/statsFlushInterval":                   isDuration,
		"sidecar.istio.io/statsEvictionInterval":                isDuration,
		"sidecar.istio.io/statsHistogramBuckets":                isBuckets,
		"sidecar.istio.io/userVolume":                           isJSONObject,
		"sidecar.istio.io/userVolumeMount":                      isJSONObject,
		"traffic.sidecar.istio.io/excludeInboundPorts":          isPorts,
		"traffic.sidecar.istio.io/excludeOutboundIPRanges":      isRanges,
		"traffic.sidecar.istio.io/excludeOutboundPorts":         isPorts,
		"traffic.sidecar.istio.io/includeInboundPorts":          anyOr(isPorts),
		"traffic.sidecar.istio.io/includeOutboundIPRanges":      anyOr(isRanges),
		"traffic.sidecar.istio.io/includeOutboundPorts":         anyOr(isPorts),
	}
}

// validateAnnotations reports every annotation that is wrong, by name.
func validateAnnotations(in map[string]string) error {
	rules := annotationRules()
	var errs *multierror.Error
	for _, name := range slices.Sorted(maps.Keys(in)) {
		rule, ok := rules[name]
		if !ok {
			continue
		}
		if err := rule(in[name]); err != nil {
			errs = multierror.Append(errs, fmt.Errorf("annotation %s=%q: %w", name, shorten(in[name]), err))
		}
	}
	if errs != nil {
		errs.ErrorFormat = oneLine
	}
	return errs.ErrorOrNil()
}

// oneLine joins errors: an admission answer is one line for users of kubectl.
func oneLine(errs []error) string {
	texts := make([]string, len(errs))
	for i, e := range errs {
		texts[i] = e.Error()
	}
	return strings.Join(texts, "; ")
}

func shorten(s string) string {
	if len(s) > 80 {
		return s[:80] + "..."
	}
	return s
}

func oneOf(values ...string) func(string) error {
	return func(s string) error {
		if !slices.Contains(values, s) {
			return fmt.Errorf("want one of %s", strings.Join(values, ", "))
		}
		return nil
	}
}

func isBool(s string) error {
	if _, err := strconv.ParseBool(s); err != nil {
		return fmt.Errorf("want true or false")
	}
	return nil
}

func isPort(s string) error {
	if _, err := strconv.ParseUint(strings.TrimSpace(s), 10, 16); err != nil {
		return fmt.Errorf("%q is not a port from 0 to 65535", shorten(s))
	}
	return nil
}

func isPorts(s string) error {
	for _, p := range strings.Split(s, ",") {
		if strings.TrimSpace(p) == "" {
			continue
		}
		if err := isPort(p); err != nil {
			return fmt.Errorf("want ports with commas: %w", err)
		}
	}
	return nil
}

func isRanges(s string) error {
	for _, r := range strings.Split(s, ",") {
		r = strings.TrimSpace(r)
		if r == "" {
			continue
		}
		if _, err := netip.ParsePrefix(r); err != nil {
			return fmt.Errorf("want IP ranges with commas, such as 10.0.0.0/8: %q is none", shorten(r))
		}
	}
	return nil
}

func anyOr(rule func(string) error) func(string) error {
	return func(s string) error {
		if s == "*" {
			return nil
		}
		if err := rule(s); err != nil {
			return fmt.Errorf("%w; or * for all", err)
		}
		return nil
	}
}

func isCount(s string) error {
	if _, err := strconv.ParseUint(s, 10, 31); err != nil {
		return fmt.Errorf("want a whole number that is not negative")
	}
	return nil
}

func isQuantity(s string) error {
	if _, err := resource.ParseQuantity(s); err != nil {
		return fmt.Errorf("want a quantity such as 100m or 128Mi")
	}
	return nil
}

func isDuration(s string) error {
	if _, err := time.ParseDuration(s); err != nil {
		return fmt.Errorf("want a duration such as 10s")
	}
	return nil
}

func isBuckets(s string) error {
	var v map[string][]float64
	if err := json.Unmarshal([]byte(s), &v); err != nil {
		return fmt.Errorf("want a JSON map from prefix to a list of numbers: %w", err)
	}
	return nil
}

func isJSONObject(s string) error {
	var v any
	if err := json.Unmarshal([]byte(s), &v); err != nil {
		return fmt.Errorf("not JSON: %w", err)
	}
	switch v.(type) {
	case map[string]any, []any:
		return nil
	}
	return fmt.Errorf("want a JSON map from name to settings")
}

func isProxyConfig(s string) error {
	_, err := OverlayProxyConfig(&meshconfig.ProxyConfig{}, s)
	return err
}

func isOverrides(s string) error {
	_, err := parseOverrides(s)
	return err
}

// overrides are containers of the user that a template has containers of the
// same name for. They are kept in an annotation, so that injecting again can
// tell them from what was injected.
type overrides struct {
	Containers     []corev1.Container `json:"containers,omitempty"`
	InitContainers []corev1.Container `json:"initContainers,omitempty"`
}

func parseOverrides(s string) (overrides, error) {
	var o overrides
	if s == "" {
		return o, nil
	}
	if err := json.Unmarshal([]byte(s), &o); err != nil {
		return overrides{}, fmt.Errorf("not what injection writes there: %w", err)
	}
	return o, nil
}

// OverlayProxyConfig returns a ProxyConfig with what a YAML text gives, as
// annotation proxy.istio.io/config does: field by field, maps by key, lists and
// values whole. Fields that are not known are left out. Neither argument changes.
func OverlayProxyConfig(base *meshconfig.ProxyConfig, text string) (*meshconfig.ProxyConfig, error) {
	j, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("not YAML: %w", err)
	}
	out := proto.CloneOf(base)
	if string(j) == "null" {
		return out, nil // an empty text gives nothing
	}
	if err := overlayJSON(out, j); err != nil {
		return nil, fmt.Errorf("not a ProxyConfig: %w", err)
	}
	return out, nil
}
