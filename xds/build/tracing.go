package build

import (
	"cmp"

	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	metadatav3 "github.com/envoyproxy/go-control-plane/envoy/type/metadata/v3"
	tracingv3 "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
)

// Sampling rates, in percent.
const (
	defaultRandomSampling = 1
	fullSampling          = 100
)

// traced reports whether requests of the view's proxy are traced: tracing is on
// and somebody set up a tracer. Without one, spans and their tags go nowhere,
// and leaving them out lets proxies of different workloads share listeners.
func traced(in Inputs, v View) bool {
	m := in.Catalog.Settings.Mesh
	if !m.GetEnableTracing() {
		return false
	}
	return v.Traced || m.GetDefaultConfig().GetTracing() != nil || len(m.GetDefaultProviders().GetTracing()) > 0
}

// tracing makes the tracing section of an HTTP connection manager, nil if the
// view's proxy is not traced.
func tracing(in Inputs, v View) *hcmv3.HttpConnectionManager_Tracing {
	if !traced(in, v) {
		return nil
	}
	random := float64(defaultRandomSampling)
	if s := in.Catalog.Settings.Mesh.GetDefaultConfig().GetTracing().GetSampling(); s > 0 && s <= fullSampling {
		random = s
	}
	spec := v.Inbound.Spec()
	tags := []*tracingv3.CustomTag{
		dryRunTag("istio.authorization.dry_run.allow_policy.name", "istio_dry_run_allow_shadow_effective_policy_id"),
		dryRunTag("istio.authorization.dry_run.allow_policy.result", "istio_dry_run_allow_shadow_engine_result"),
		dryRunTag("istio.authorization.dry_run.deny_policy.name", "istio_dry_run_deny_shadow_effective_policy_id"),
		dryRunTag("istio.authorization.dry_run.deny_policy.result", "istio_dry_run_deny_shadow_engine_result"),
		literalTag("istio.canonical_revision", spec.CanonicalRevision),
		literalTag("istio.canonical_service", spec.CanonicalName),
		literalTag("istio.cluster_id", string(v.Cluster)),
		literalTag("istio.mesh_id", cmp.Or(spec.MeshID, in.Catalog.TrustDomain())),
		literalTag("istio.namespace", v.Namespace),
	}
	return &hcmv3.HttpConnectionManager_Tracing{
		ClientSampling:  &typev3.Percent{Value: fullSampling},
		RandomSampling:  &typev3.Percent{Value: random},
		OverallSampling: &typev3.Percent{Value: fullSampling},
		CustomTags:      tags,
	}
}

// literalTag is a tag that is equal for all spans of a proxy. A tag without a
// value is refused by Envoy.
func literalTag(name, value string) *tracingv3.CustomTag {
	return &tracingv3.CustomTag{Tag: name, Type: &tracingv3.CustomTag_Literal_{
		Literal: &tracingv3.CustomTag_Literal{Value: cmp.Or(value, "unknown")},
	}}
}

// dryRunTag tells what an authorization policy in dry-run mode would have done,
// which the RBAC filter leaves in the request's metadata.
func dryRunTag(name, key string) *tracingv3.CustomTag {
	return &tracingv3.CustomTag{Tag: name, Type: &tracingv3.CustomTag_Metadata_{Metadata: &tracingv3.CustomTag_Metadata{
		Kind: &metadatav3.MetadataKind{Kind: &metadatav3.MetadataKind_Request_{Request: &metadatav3.MetadataKind_Request{}}},
		MetadataKey: &metadatav3.MetadataKey{
			Key: "envoy.filters.http.rbac",
			Path: []*metadatav3.MetadataKey_PathSegment{{
				Segment: &metadatav3.MetadataKey_PathSegment_Key{Key: key},
			}},
		},
	}}}
}
