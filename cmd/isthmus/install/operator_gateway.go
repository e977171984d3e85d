package install

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/manifests"
)

// Names by which east-west gateways are known.
const (
	labelNetwork    = "topology.istio.io/network"
	envNetworkView  = "ISTIO_META_REQUESTED_NETWORK_VIEW"
	envRouterMode   = "ISTIO_META_ROUTER_MODE"
	eastWestDefault = "istio-eastwestgateway"
)

// gatewayList maps a list of gateways. East-west gateways are installed; others
// are none of ours.
func (m *mapping) gatewayList(at string, list any) error {
	entries, ok := list.([]any)
	if !ok && list != nil {
		return fmt.Errorf("read IstioOperator: %s is no list", at)
	}
	for i, x := range entries {
		where := fmt.Sprintf("%s[%d]", at, i)
		entry, ok := x.(map[string]any)
		if !ok {
			return fmt.Errorf("read IstioOperator: %s is no map", where)
		}
		if entry["enabled"] == false {
			continue
		}
		name, _ := entry["name"].(string)
		if !isEastWest(entry) {
			m.warn("%s (%s) is not installed here: gateways other than east-west ones are yours to run; Istio's gateway chart works with this control plane",
				where, cmp.Or(name, "without a name"))
			continue
		}
		g, err := m.eastWest(where, entry)
		if err != nil {
			return err
		}
		m.gateways = append(m.gateways, g)
	}
	return nil
}

// isEastWest recognises an east-west gateway by its label, its network or its
// name.
func isEastWest(entry map[string]any) bool {
	name, _ := entry["name"].(string)
	labels, _ := entry["label"].(map[string]any)
	return labels["istio"] == "eastwestgateway" || labels[labelNetwork] != nil || strings.Contains(name, "eastwest")
}

func eastWestFields() map[string]string {
	return map[string]string{
		"affinity": "affinity", "nodeSelector": "nodeSelector", "podAnnotations": "podAnnotations", "priorityClassName": "priorityClassName",
		"replicaCount": "replicaCount", "resources": "resources", "serviceAnnotations": "service.annotations", "tolerations": "tolerations",
		"hpaSpec.minReplicas": "autoscaling.minReplicas", "hpaSpec.maxReplicas": "autoscaling.maxReplicas",
		"service.ports": "service.ports", "service.type": "service.type", "service.loadBalancerIP": "service.loadBalancerIP",
		"service.externalTrafficPolicy": "service.externalTrafficPolicy", "service.externalIPs": "service.externalIPs",
		"service.loadBalancerSourceRanges": "service.loadBalancerSourceRanges",
	}
}

func (m *mapping) eastWest(at string, entry map[string]any) (gatewayPlan, error) {
	name, _ := entry["name"].(string)
	name = cmp.Or(name, eastWestDefault)
	g := gatewayPlan{name: name, values: map[string]any{"name": name}}
	g.namespace, _ = entry["namespace"].(string)
	labels, err := table(entry, "label")
	if err != nil {
		return g, err
	}
	k8s, err := table(entry, "k8s")
	if err != nil {
		return g, err
	}
	env, from, err := environment(at+".k8s", k8s)
	if err != nil {
		return g, err
	}
	for range from {
		m.warn("%s.k8s.env: variables with valueFrom are left out: the proxy's environment takes values only", at)
	}
	network := cmp.Or(manifests.Text(labels, strings.ReplaceAll(labelNetwork, ".", `\.`)), env[envNetworkView])
	network = cmp.Or(network, manifests.Text(m.values, "global.network"))
	if network != "" {
		g.values["networkGateway"] = network
	}
	extra := map[string]any{}
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		if key != "istio" && key != "app" && key != labelNetwork {
			extra[key] = labels[key]
		}
	}
	if len(extra) > 0 {
		g.values["labels"] = extra
	}
	for _, key := range slices.Sorted(maps.Keys(env)) {
		if key != envNetworkView && key != envRouterMode {
			manifests.Set(g.values, "env."+key, env[key])
		}
	}
	m.take(at+".k8s", "", k8s, eastWestFields(), g.values, "env")
	m.rest(at, entry, "enabled", "name", "namespace", "label", "k8s")
	if revision := manifests.Text(m.values, "revision"); revision != "" {
		g.values["revision"] = revision
	}
	return g, nil
}
