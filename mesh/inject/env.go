package inject

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// ParsePath reads what the webhook's path says about the proxy's environment:
// /inject/KEY/VALUE/KEY/VALUE, where key cluster is ISTIO_META_CLUSTER_ID, net
// is ISTIO_META_NETWORK and any other is a variable's name in capitals. In values
// --slash-- stands for a slash. A last key without a value is left out. The
// older form /inject/:ENV:NAME=VALUE:ENV:NAME=VALUE is read too.
func ParsePath(path string) map[string]string {
	out := map[string]string{}
	_, rest, _ := strings.Cut(strings.Trim(path, "/"), "/")
	if rest == "" {
		return out
	}
	if older, ok := strings.CutPrefix(rest, ":ENV:"); ok {
		for _, pair := range strings.Split(older, ":ENV:") {
			if name, value, ok := strings.Cut(pair, "="); ok {
				setPathEnv(out, name, value)
			}
		}
		return out
	}
	parts := strings.Split(rest, "/")
	for i := 0; i+1 < len(parts); i += 2 {
		setPathEnv(out, parts[i], strings.ReplaceAll(parts[i+1], "--slash--", "/"))
	}
	return out
}

func setPathEnv(out map[string]string, key, value string) {
	switch key {
	case "":
		return
	case "cluster":
		key = EnvCluster
	case "net":
		key = EnvNetwork
	}
	out[strings.ToUpper(key)] = value
}

// ClusterOf is the cluster of a request: the one that its environment names, the
// one of the values, or Request.Cluster.
func (c *Config) ClusterOf(r Request) string {
	return cmp.Or(r.Env[EnvCluster], c.values.text("global", "multiCluster", "clusterName"), r.Cluster)
}

// setEnvs sets variables: in place where they are, else at the end, by name.
func setEnvs(c *corev1.Container, env map[string]string) {
	left := maps.Clone(env)
	for i := range c.Env {
		if v, ok := left[c.Env[i].Name]; ok {
			c.Env[i] = corev1.EnvVar{Name: c.Env[i].Name, Value: v}
			delete(left, c.Env[i].Name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(left)) {
		c.Env = append(c.Env, corev1.EnvVar{Name: name, Value: left[name]})
	}
}
