package install

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/manifests"
)

// mapping turns the spec of an IstioOperator and values into values of ours.
type mapping struct {
	spec, values map[string]any

	// chart is what to install, "" for nothing but gateways.
	chart     manifests.Chart
	namespace string
	gateways  []gatewayPlan
	warnings  []string
	skipCRDs  bool
}

// gatewayPlan is an east-west gateway that an IstioOperator describes.
type gatewayPlan struct {
	name, namespace string
	values          map[string]any
}

func (m *mapping) warn(format string, args ...any) {
	m.warnings = append(m.warnings, fmt.Sprintf(format, args...))
}

// run maps everything.
func (m *mapping) run() error {
	// What the spec's own fields say goes over spec.values, and plain values over both.
	own := m.values
	given, err := table(m.spec, "values")
	if err != nil {
		return err
	}
	raw, err := table(m.spec, "unvalidatedValues")
	if err != nil {
		return err
	}
	m.values = manifests.Merge(raw, given)
	if err := m.profile(own); err != nil {
		return err
	}
	if err := m.fields(); err != nil {
		return err
	}
	components, err := table(m.spec, "components")
	if err != nil {
		return err
	}
	if err := m.components(components); err != nil {
		return err
	}
	m.values = manifests.Merge(m.values, own)
	m.image(own)
	if remote, _ := manifests.Get(m.values, "istiodRemote.enabled"); remote == true && m.chart == manifests.Primary {
		m.chart = manifests.Remote
	}
	if config, _ := manifests.Get(m.values, "global.configCluster"); config == true && m.chart == manifests.Remote {
		// Everything but the control plane itself, which runs elsewhere.
		m.chart = manifests.Primary
	}
	if m.chart == manifests.Remote {
		m.remote()
	}
	return nil
}

// profile decides which chart is meant.
func (m *mapping) profile(own map[string]any) error {
	name, _ := m.spec["profile"].(string)
	if name == "" {
		name = manifests.Text(own, "profile")
	}
	delete(own, "profile")
	switch name {
	case "", "primary", "minimal", "stable":
		m.chart = manifests.Primary
	case "default", "demo", "preview", "openshift":
		m.chart = manifests.Primary
		m.warn("profile %s: the control plane is installed; the ingress and egress gateways and the CNI plugin of this profile are not", name)
	case "remote", "external":
		m.chart = manifests.Remote
	case "eastwest":
		m.chart = manifests.EastWest
	case "empty":
	case "ambient", "openshift-ambient":
		return fmt.Errorf("plan the installation: profile %s: ambient mode is not supported; profiles are primary, remote, eastwest, and Istio's default, minimal, demo, remote, external and empty", name)
	default:
		return fmt.Errorf("plan the installation: profile %q is not known; profiles are primary, remote, eastwest, and Istio's default, minimal, demo, remote, external and empty", name)
	}
	return nil
}

// fields maps the fields of the spec that are no components.
func (m *mapping) fields() error {
	for _, key := range slices.Sorted(maps.Keys(m.spec)) {
		v := m.spec[key]
		switch key {
		case "profile", "values", "unvalidatedValues", "components":
		case "hub", "tag":
			manifests.Set(m.values, "global."+key, v)
			m.warn("spec.%s is the image of the proxies; the control plane's own is pilot.hub and pilot.tag", key)
		case "revision":
			m.values["revision"] = v
		case "namespace":
			m.namespace = fmt.Sprint(v)
		case "imagePullSecrets":
			manifests.Set(m.values, "global.imagePullSecrets", v)
		case "meshConfig":
			config, err := table(m.spec, "meshConfig")
			if err != nil {
				return err
			}
			m.values = manifests.Merge(m.values, map[string]any{"meshConfig": config})
		default:
			m.warn("spec.%s has no meaning here and is left out", key)
		}
	}
	return nil
}

// image takes the images of istiod out: what an Istio file names there would be
// started in our place.
func (m *mapping) image(own map[string]any) {
	for _, key := range []string{"hub", "tag", "image"} {
		at := "pilot." + key
		v, ok := manifests.Get(m.values, at)
		if _, ours := manifests.Get(own, at); !ok || ours && (key != "image" || !isPilot(fmt.Sprint(v))) {
			continue
		}
		m.warn("value %s (%v) is the image of istiod and is left out", at, v)
		pilot, _ := m.values["pilot"].(map[string]any)
		delete(pilot, key)
	}
}

// isPilot recognises the name of istiod's image, such as pilot or
// docker.io/istio/pilot:1.30.0.
func isPilot(image string) bool {
	name := image[strings.LastIndex(image, "/")+1:]
	name, _, _ = strings.Cut(name, ":")
	return name == "pilot"
}

// remote takes out of a remote's values what is only said for istiod's sake.
func (m *mapping) remote() {
	if r, ok := m.values["istiodRemote"].(map[string]any); ok {
		delete(r, "enabled")
	}
	if g, ok := m.values["global"].(map[string]any); ok {
		delete(g, "configCluster")
	}
}

// components maps spec.components.
func (m *mapping) components(components map[string]any) error {
	for _, name := range slices.Sorted(maps.Keys(components)) {
		at := "spec.components." + name
		switch name {
		case "pilot":
			pilot, err := table(components, name)
			if err != nil {
				return err
			}
			if err := m.pilot(at, pilot); err != nil {
				return err
			}
		case "base":
			base, _ := table(components, name)
			m.skipCRDs = base["enabled"] == false
			m.rest(at, base, "enabled")
		case "istiodRemote":
			r, _ := table(components, name)
			if r["enabled"] == true {
				m.chart = manifests.Remote
			}
			m.rest(at, r, "enabled")
		case "ingressGateways", "egressGateways":
			if err := m.gatewayList(at, components[name]); err != nil {
				return err
			}
		case "cni", "ztunnel":
			c, _ := table(components, name)
			if c["enabled"] != false {
				m.warn("%s is not installed here; Istio's own chart of it works beside this control plane", at)
			}
		default:
			m.warn("%s has no meaning here and is left out", at)
		}
	}
	return nil
}

// rest warns of every field that is not among the known ones.
func (m *mapping) rest(at string, fields map[string]any, known ...string) {
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		if !slices.Contains(known, key) {
			m.warn("%s.%s has no meaning here and is left out", at, key)
		}
	}
}

func (m *mapping) pilot(at string, pilot map[string]any) error {
	switch {
	case pilot["enabled"] == false && m.chart == manifests.Primary:
		m.chart = ""
	case pilot["enabled"] == true && m.chart == "":
		m.chart = manifests.Primary
	}
	if ns, ok := pilot["namespace"].(string); ok {
		m.namespace = ns
	}
	for _, key := range []string{"hub", "tag"} {
		if v, ok := pilot[key]; ok {
			m.warn("%s.%s (%v) is the image of istiod and is left out", at, key, v)
		}
	}
	m.rest(at, pilot, "enabled", "namespace", "hub", "tag", "k8s")
	k8s, err := table(pilot, "k8s")
	if err != nil {
		return err
	}
	return m.pilotK8s(at+".k8s", k8s)
}

// pilotFields names fields of k8s and the values that take them as they are.
func pilotFields() map[string]string {
	return map[string]string{
		"affinity": "pilot.affinity", "imagePullPolicy": "global.imagePullPolicy", "nodeSelector": "pilot.nodeSelector",
		"podAnnotations": "pilot.podAnnotations", "priorityClassName": "global.priorityClassName", "replicaCount": "pilot.replicaCount",
		"resources": "pilot.resources", "serviceAnnotations": "pilot.serviceAnnotations", "tolerations": "pilot.tolerations",
		"hpaSpec.minReplicas": "pilot.autoscaleMin", "hpaSpec.maxReplicas": "pilot.autoscaleMax", "hpaSpec.behavior": "pilot.autoscaleBehavior",
		"strategy.rollingUpdate.maxSurge": "pilot.rollingMaxSurge", "strategy.rollingUpdate.maxUnavailable": "pilot.rollingMaxUnavailable",
	}
}

func (m *mapping) pilotK8s(at string, k8s map[string]any) error {
	env, from, err := environment(at, k8s)
	if err != nil {
		return err
	}
	for name, value := range env {
		manifests.Set(m.values, "pilot.env."+strings.ReplaceAll(name, ".", `\.`), value)
	}
	if len(from) > 0 {
		manifests.Set(m.values, "pilot.envVarFrom", from)
	}
	m.take(at, "", k8s, pilotFields(), m.values, "env")
	return nil
}

// take moves the fields that have a value of their own, and warns of the others.
func (m *mapping) take(at, prefix string, fields map[string]any, to map[string]string, values map[string]any, known ...string) {
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		path := prefix + key
		if target, ok := to[path]; ok {
			manifests.Set(values, target, fields[key])
			continue
		}
		inner, isTable := fields[key].(map[string]any)
		deeper := slices.ContainsFunc(slices.Collect(maps.Keys(to)), func(k string) bool { return strings.HasPrefix(k, path+".") })
		switch {
		case isTable && deeper:
			m.take(at, path+".", inner, to, values)
		case !slices.Contains(known, path):
			m.warn("%s.%s has no meaning here and is left out", at, path)
		}
	}
}

// environment splits k8s.env into plain values and references.
func environment(at string, k8s map[string]any) (env map[string]string, from []any, err error) {
	if k8s["env"] == nil {
		return nil, nil, nil
	}
	list, ok := k8s["env"].([]any)
	if !ok {
		return nil, nil, fmt.Errorf("read IstioOperator: %s.env is no list", at)
	}
	env = map[string]string{}
	for i, x := range list {
		entry, _ := x.(map[string]any)
		name, _ := entry["name"].(string)
		switch {
		case name == "":
			return nil, nil, fmt.Errorf("read IstioOperator: %s.env[%d] has no name", at, i)
		case entry["valueFrom"] != nil:
			from = append(from, entry)
		default:
			env[name] = ""
			if entry["value"] != nil {
				env[name] = fmt.Sprint(entry["value"])
			}
		}
	}
	return env, from, nil
}

// table returns a field that must be a map, an empty one if it is not there.
func table(in map[string]any, key string) (map[string]any, error) {
	switch v := in[key].(type) {
	case nil:
		return map[string]any{}, nil
	case map[string]any:
		return v, nil
	}
	return nil, fmt.Errorf("read IstioOperator: %s is no map", key)
}
