package config

import (
	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

func destinationRuleKind() descriptor {
	kind, versions := networkingKind(mesh.KindDestinationRule, "destinationrules")
	return descriptor{
		Kind: kind, versions: versions,
		newSpec:  func() proto.Message { return &networking.DestinationRule{} },
		typed:    typedAs(func(o *networkingv1.DestinationRule) proto.Message { return &o.Spec }),
		validate: checks(validateDestinationRule),
	}
}

func validateDestinationRule(c *checker, r *networking.DestinationRule) {
	c.at("host").host(r.GetHost(), true)
	validateTrafficPolicy(c.at("trafficPolicy"), r.GetTrafficPolicy())
	names := seen{}
	for i, s := range r.GetSubsets() {
		at := c.index("subsets", i)
		at.at("name").label(s.GetName(), "a subset")
		if names.twice(s.GetName()) {
			at.at("name").failf("%q is used by an earlier subset; give each its own name", clip(s.GetName()))
		}
		at.labels("labels", s.GetLabels())
		validateTrafficPolicy(at.at("trafficPolicy"), s.GetTrafficPolicy())
	}
	c.at("exportTo").exportedTo(r.GetExportTo(), false)
	if r.GetWorkloadSelector() == nil {
		return
	}
	c.selector("workloadSelector", r.GetWorkloadSelector())
	if to := r.GetExportTo(); len(to) > 1 || len(to) == 1 && to[0] != "." && to[0] != c.namespace {
		c.at("exportTo").failf(`names other namespaces, but a rule with a workloadSelector is for its own; use "." or remove it`)
	}
}
