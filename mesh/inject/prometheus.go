package inject

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// scrapePath is where the agent serves its own metrics, Envoy's and the application's.
const scrapePath = "/stats/prometheus"

// scrape is ISTIO_PROMETHEUS_ANNOTATIONS: where the agent finds the
// application's own metrics.
type scrape struct {
	Scrape string `json:"scrape"`
	Path   string `json:"path"`
	Port   string `json:"port"`
}

// mergePrometheus sends Prometheus to the agent, which merges metrics, and tells
// the agent where the application's are.
func (j *job) mergePrometheus(pod *corev1.Pod) error {
	if !j.mergeWanted(pod.Annotations) {
		return nil
	}
	port := strconv.Itoa(j.statusPort)
	if cur, ok := scrapeAnnotation(pod.Annotations, "port"); ok && cur == port {
		return nil // ours, or the user has pointed Prometheus at the agent
	}
	var s scrape
	s.Port, _ = scrapeAnnotation(pod.Annotations, "port")
	s.Path, _ = scrapeAnnotation(pod.Annotations, "path")
	s.Scrape, _ = scrapeAnnotation(pod.Annotations, "scrape")
	if proxy := proxyOf(pod); proxy != nil && s != (scrape{}) {
		raw, err := json.Marshal(s)
		if err != nil {
			return fmt.Errorf("write variable %s: %w", envPrometheus, err)
		}
		setEnvs(proxy, map[string]string{envPrometheus: string(raw)})
	}
	clearScrapeAnnotations(pod.Annotations)
	pod.Annotations["prometheus.io/port"] = port
	pod.Annotations["prometheus.io/path"] = scrapePath
	pod.Annotations["prometheus.io/scrape"] = "true"
	return nil
}

func (j *job) mergeWanted(annotations map[string]string) bool {
	if v, ok := scrapeAnnotation(annotations, "scrape"); ok {
		if wanted, err := strconv.ParseBool(v); err == nil && !wanted {
			return false
		}
	}
	if v, ok := annotations[annotationMergeMetrics]; ok {
		wanted, _ := strconv.ParseBool(v) // valid, it was checked
		return wanted
	}
	return j.mesh.GetEnablePrometheusMerge() == nil || j.mesh.GetEnablePrometheusMerge().GetValue()
}

// scrapeAnnotation finds prometheus.io/NAME in any of its spellings: Prometheus
// makes an underscore of every character that a label cannot have. Of several
// the first in the alphabet counts.
func scrapeAnnotation(annotations map[string]string, name string) (string, bool) {
	for _, k := range slices.Sorted(maps.Keys(annotations)) {
		if sanitized(k) == "prometheus_io_"+name {
			return annotations[k], true
		}
	}
	return "", false
}

func clearScrapeAnnotations(annotations map[string]string) {
	maps.DeleteFunc(annotations, func(k, _ string) bool {
		s := sanitized(k)
		return s == "prometheus_io_port" || s == "prometheus_io_path" || s == "prometheus_io_scrape"
	})
}

func sanitized(key string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' {
			return r
		}
		return '_'
	}, key)
}
