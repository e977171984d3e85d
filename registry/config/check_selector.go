package config

import (
	"maps"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	typebeta "istio.io/api/type/v1beta1"
)

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// chosen checks labels that workloads are chosen by. Nothing here knows
// wildcards.
func (c *checker) chosen(field string, labels map[string]string, everything string) {
	for _, k := range sortedKeys(labels) {
		switch {
		case k == "":
			c.key(field, k).failf("has no key; name the label")
		case strings.Contains(k, "*") || strings.Contains(labels[k], "*"):
			c.key(field, k).failf("has a wildcard; give the label as it is")
		}
	}
	if len(labels) == 0 {
		c.at(field).warnf("is empty, which chooses %s; remove the selector to say that, or name labels", everything)
	}
}

// workloads checks the selector of networking objects.
func (c *checker) workloads(s *networking.WorkloadSelector) {
	if s != nil {
		c.at("workloadSelector").chosen("labels", s.GetLabels(), "all workloads of the namespace")
	}
}

// selector checks the selector of the newer objects.
func (c *checker) selector(field string, s *typebeta.WorkloadSelector) {
	if s != nil {
		c.at(field).chosen("matchLabels", s.GetMatchLabels(), "all workloads in its scope")
	}
}

// targets checks what a policy is attached to: a selector, or references.
func (c *checker) targets(s *typebeta.WorkloadSelector, one *typebeta.PolicyTargetReference, many []*typebeta.PolicyTargetReference) {
	set := 0
	for _, is := range []bool{s != nil, one != nil, len(many) > 0} {
		if is {
			set++
		}
	}
	if set > 1 {
		c.failf("has more than one of selector, targetRef and targetRefs; keep one")
	}
	c.selector("selector", s)
	if one != nil {
		c.at("targetRef").target(one)
	}
	for i, t := range many {
		c.index("targetRefs", i).target(t)
	}
}

func (c *checker) target(t *typebeta.PolicyTargetReference) {
	if t.GetName() == "" {
		c.at("name").failf("is empty; name what the policy is for")
	}
	if t.GetNamespace() != "" {
		c.at("namespace").failf("is set; a policy is for something in its own namespace, remove it")
	}
	switch t.GetGroup() + "/" + t.GetKind() {
	case "/Service", "core/Service", "networking.istio.io/ServiceEntry",
		"gateway.networking.k8s.io/Gateway", "gateway.networking.k8s.io/GatewayClass":
	default:
		c.at("kind").failf("%q of group %q cannot have policies; use Service, ServiceEntry, Gateway or GatewayClass", clip(t.GetKind()), clip(t.GetGroup()))
	}
}
