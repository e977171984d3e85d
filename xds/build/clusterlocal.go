package build

import (
	"strings"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// clusterLocal reports whether only the endpoints of the proxy's own cluster
// count for a host. MeshConfig.serviceSettings decides if any of its hosts
// match: an exact name before a wildcard, a longer wildcard before a shorter
// one, and of two equal ones the later. Without a match, the API server, the
// control plane and everything in kube-system are cluster-local: those names
// mean another thing in each cluster.
func clusterLocal(s mesh.Settings, host mesh.Hostname) bool {
	best, local := -1, false
	for _, setting := range s.Mesh.GetServiceSettings() {
		for _, pattern := range setting.GetHosts() {
			if rank, ok := hostRank(pattern, host); ok && rank >= best {
				best, local = rank, setting.GetSettings().GetClusterLocal()
			}
		}
	}
	if best >= 0 {
		return local
	}
	return clusterLocalByDefault(s, host)
}

func clusterLocalByDefault(s mesh.Settings, host mesh.Hostname) bool {
	name, _, kube := strings.Cut(string(host), ".svc.")
	if kube && (name == "kubernetes.default" || strings.HasSuffix(name, ".kube-system")) {
		return true
	}
	discovery, _, _ := strings.Cut(s.Mesh.GetDefaultConfig().GetDiscoveryAddress(), ":")
	if discovery == "" {
		return false
	}
	// The address is usually written without the cluster domain.
	return string(host) == discovery || strings.HasSuffix(discovery, ".svc") && strings.HasPrefix(string(host), discovery+".")
}

// hostRank tells whether a host name matches a pattern ("*", "*.suffix" or an
// exact name), and how specific the pattern is: higher is more specific.
func hostRank(pattern string, host mesh.Hostname) (int, bool) {
	suffix, wild := strings.CutPrefix(pattern, "*")
	if wild {
		return len(suffix), strings.HasSuffix(string(host), suffix)
	}
	return 1 << 16, pattern == string(host)
}
