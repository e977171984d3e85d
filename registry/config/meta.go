package config

import (
	"strconv"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Annotations that say how an object counts.
const (
	annotationDryRun = "istio.io/dry-run"
	// The next three are for objects that control planes make themselves: users
	// who set them would act for another namespace.
	annotationParents         = "internal.istio.io/parents"
	annotationParentNamespace = "internal.istio.io/parent-namespace"
	annotationReject          = "internal.istio.io/webhook-always-reject"
)

// validateMeta checks what an object says beside its specification.
func validateMeta(c *checker, meta metav1.Object, spec proto.Message) {
	for _, a := range []string{annotationParents, annotationParentNamespace, annotationReject} {
		if _, ok := meta.GetAnnotations()[a]; ok {
			c.key("annotations", a).failf("is not for users to set; remove it")
		}
	}
	if _, ok := spec.(*networking.Gateway); ok && meta.GetName() != "" {
		c.at("name").label(meta.GetName(), "a gateway") // it becomes part of names of routes
	}
	v, ok := meta.GetAnnotations()[annotationDryRun]
	if !ok {
		return
	}
	at := c.key("annotations", annotationDryRun)
	policy, ok := spec.(*security.AuthorizationPolicy)
	if !ok {
		at.failf("works for AuthorizationPolicies only; remove it")
		return
	}
	switch policy.GetAction() {
	case security.AuthorizationPolicy_ALLOW, security.AuthorizationPolicy_DENY:
		if _, err := strconv.ParseBool(v); err != nil {
			at.failf("%q is neither true nor false", clip(v))
		}
	default:
		at.failf("works for the actions ALLOW and DENY only; remove it from one of action %s", policy.GetAction())
	}
}
