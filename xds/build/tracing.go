package build

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"unique"

	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	metadatav3 "github.com/envoyproxy/go-control-plane/envoy/type/metadata/v3"
	tracingv3 "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/encoding/protojson"
	meshconfig "istio.io/api/mesh/v1alpha1"
	telemetry "istio.io/api/telemetry/v1alpha1"
)

// Sampling rates, in percent.
const (
	defaultRandomSampling = 1
	fullSampling          = 100
)

// Tracer is a comparable handle of the tracing section of a proxy's own
// configuration (PROXY_CONFIG). The zero value is for a proxy that has none.
type Tracer struct{ h unique.Handle[string] }

// MakeTracer interns a tracing section as an agent sends it, nil for none. What
// is not understood of it is left out; that there is one counts.
func MakeTracer(section any) Tracer {
	if section == nil {
		return Tracer{}
	}
	b, err := json.Marshal(section)
	if err != nil {
		b = []byte("{}")
	}
	return Tracer{unique.Make(string(b))}
}

// config returns the section behind the handle, nil for none.
func (t Tracer) config() *meshconfig.Tracing {
	if t == (Tracer{}) {
		return nil
	}
	out := &meshconfig.Tracing{}
	if (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal([]byte(t.h.Value()), out) != nil {
		return &meshconfig.Tracing{}
	}
	return out
}

// proxyTracing is the tracing section that holds for the view's proxies: their
// own, else MeshConfig's default; nil if neither sets up a tracer.
func proxyTracing(in Inputs, v View) *meshconfig.Tracing {
	if t := v.Tracer.config(); t != nil {
		return t
	}
	return in.Catalog.Settings.Mesh.GetDefaultConfig().GetTracing()
}

// tracingSpec is how one side's requests are traced.
type tracingSpec struct {
	provider string // "": the tracer of the bootstrap configuration
	off      bool
	// sampling is nil for the rate of the tracing section.
	sampling      *float64
	tags          map[string]*telemetry.Tracing_CustomTag
	istioTags     bool
	keepRequestID bool // the decision is not read from the request's ID
	silent        bool // the trace's context is not passed on
}

// tracingFor works out how one side's requests are traced; nil if they are not.
// Providers come from the Telemetries or MeshConfig's defaults; without either,
// requests are traced by the tracer of the bootstrap configuration if there is
// one. Without a tracer, spans and their tags go nowhere, and leaving them out
// lets proxies of different workloads share listeners.
func tracingFor(in Inputs, v View, d Direction) *tracingSpec {
	m := in.Catalog.Settings.Mesh
	defaults := m.GetDefaultProviders().GetTracing()
	var all []*telemetry.Tracing
	for _, t := range telemetries(in, v) {
		all = append(all, t.GetTracing()...)
	}
	if len(all) == 0 && len(defaults) == 0 {
		section := proxyTracing(in, v)
		if !m.GetEnableTracing() || section == nil {
			return nil
		}
		tags := section.GetEnableIstioTags()
		return &tracingSpec{istioTags: tags == nil || tags.GetValue()}
	}
	s := &tracingSpec{istioTags: true}
	if len(defaults) > 0 {
		s.provider = defaults[0] // proxies have one tracer
	}
	for _, t := range all {
		if onSide(t.GetMatch().GetMode(), workloadMode(d)) {
			s.apply(t)
		}
	}
	if s.off || provider(in, s.provider) == nil {
		return nil
	}
	return s
}

func (s *tracingSpec) apply(t *telemetry.Tracing) {
	if names := providerNames(t.GetProviders()); len(names) > 0 {
		s.provider = names[0]
	}
	if x := t.GetDisableSpanReporting(); x != nil {
		s.off = x.GetValue()
	}
	if len(t.GetCustomTags()) > 0 {
		s.tags = t.GetCustomTags()
	}
	if x := t.GetRandomSamplingPercentage(); x != nil {
		s.sampling = &x.Value
	}
	if x := t.GetUseRequestIdForTraceSampling(); x != nil {
		s.keepRequestID = !x.GetValue()
	}
	if x := t.GetEnableIstioTags(); x != nil {
		s.istioTags = x.GetValue()
	}
	if x := t.GetDisableContextPropagation(); x != nil {
		s.silent = x.GetValue()
	}
}

// traced reports whether any requests of the view's proxies are traced, so that
// their listeners name the workload.
func traced(in Inputs, v View) bool {
	m := in.Catalog.Settings.Mesh
	if v.Telemetry == (ObjectNames{}) && len(m.GetDefaultProviders().GetTracing()) == 0 { // asked for every listener: no section is decoded
		return m.GetEnableTracing() && (v.Tracer != (Tracer{}) || m.GetDefaultConfig().GetTracing() != nil)
	}
	return tracingFor(in, v, DirectionInbound) != nil || tracingFor(in, v, DirectionOutbound) != nil
}

// tracing makes the tracing section of an HTTP connection manager, nil if the
// requests are not traced, and tells how the request's ID is made.
func tracing(in Inputs, v View, d Direction) (*hcmv3.HttpConnectionManager_Tracing, *hcmv3.RequestIDExtension, error) {
	s := tracingFor(in, v, d)
	if s == nil {
		return nil, requestID(true), nil
	}
	section := proxyTracing(in, v)
	random := float64(defaultRandomSampling)
	if x := in.Catalog.Settings.TraceSampling; x != nil {
		random = *x
	}
	if x := section.GetSampling(); x > 0 && x <= fullSampling {
		random = x
	}
	if s.sampling != nil {
		random = *s.sampling
	}
	out := &hcmv3.HttpConnectionManager_Tracing{}
	if s.provider != "" {
		t, err := providerTracer(in, v, provider(in, s.provider))
		if t == nil || err != nil {
			return nil, requestID(true), err
		}
		out.Provider, out.SpawnUpstreamSpan = t.driver, t.childSpans
		if t.sampler {
			random = fullSampling // it decides, of all
		}
		if t.maxTagLength > 0 {
			out.MaxPathTagLength = u32(t.maxTagLength)
		}
	}
	if n := section.GetMaxPathTagLength(); n > 0 && out.MaxPathTagLength == nil {
		out.MaxPathTagLength = u32(n)
	}
	out.ClientSampling = &typev3.Percent{Value: fullSampling}
	out.RandomSampling = &typev3.Percent{Value: random}
	out.OverallSampling = &typev3.Percent{Value: fullSampling}
	out.CustomTags = s.customTags(in, v, section)
	out.NoContextPropagation = s.silent
	return out, requestID(!s.keepRequestID), nil
}

// customTags lists what spans are labelled with, by name.
func (s *tracingSpec) customTags(in Inputs, v View, section *meshconfig.Tracing) []*tracingv3.CustomTag {
	var tags []*tracingv3.CustomTag
	if s.istioTags {
		tags = istioTags(in, v)
	}
	if len(s.tags) > 0 {
		for _, name := range slices.Sorted(maps.Keys(s.tags)) {
			if t := telemetryTag(name, s.tags[name]); t != nil {
				tags = append(tags, t)
			}
		}
	} else {
		for _, name := range slices.Sorted(maps.Keys(section.GetCustomTags())) {
			if t := sectionTag(name, section.GetCustomTags()[name]); t != nil {
				tags = append(tags, t)
			}
		}
	}
	slices.SortStableFunc(tags, func(a, b *tracingv3.CustomTag) int { return cmp.Compare(a.Tag, b.Tag) })
	return tags
}

// istioTags name the workload and what dry-run policies would have done.
func istioTags(in Inputs, v View) []*tracingv3.CustomTag {
	spec := v.Inbound.Spec()
	return []*tracingv3.CustomTag{
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
}

// literalTag is a tag that is equal for all spans of a proxy. A tag without a
// value is refused by Envoy.
func literalTag(name, value string) *tracingv3.CustomTag {
	return &tracingv3.CustomTag{Tag: name, Type: &tracingv3.CustomTag_Literal_{
		Literal: &tracingv3.CustomTag_Literal{Value: cmp.Or(value, "unknown")},
	}}
}

func headerTag(tag, name, value string) *tracingv3.CustomTag {
	if name == "" {
		return nil
	}
	return &tracingv3.CustomTag{Tag: tag, Type: &tracingv3.CustomTag_RequestHeader{
		RequestHeader: &tracingv3.CustomTag_Header{Name: name, DefaultValue: value},
	}}
}

func environmentTag(tag, name, value string) *tracingv3.CustomTag {
	if name == "" {
		return nil
	}
	return &tracingv3.CustomTag{Tag: tag, Type: &tracingv3.CustomTag_Environment_{
		Environment: &tracingv3.CustomTag_Environment{Name: name, DefaultValue: value},
	}}
}

// telemetryTag is a tag of a Telemetry; nil if it has no value that is known here.
func telemetryTag(name string, t *telemetry.Tracing_CustomTag) *tracingv3.CustomTag {
	if name == "" {
		return nil
	}
	switch x := t.GetType().(type) {
	case *telemetry.Tracing_CustomTag_Literal:
		return literalTag(name, x.Literal.GetValue())
	case *telemetry.Tracing_CustomTag_Header:
		return headerTag(name, x.Header.GetName(), x.Header.GetDefaultValue())
	case *telemetry.Tracing_CustomTag_Environment:
		return environmentTag(name, x.Environment.GetName(), x.Environment.GetDefaultValue())
	case *telemetry.Tracing_CustomTag_Formatter:
		return &tracingv3.CustomTag{Tag: name, Type: &tracingv3.CustomTag_Value{Value: x.Formatter.GetValue()}}
	}
	return nil
}

// sectionTag is a tag of a tracing section; nil if it has no value.
func sectionTag(name string, t *meshconfig.Tracing_CustomTag) *tracingv3.CustomTag {
	if name == "" {
		return nil
	}
	switch x := t.GetType().(type) {
	case *meshconfig.Tracing_CustomTag_Literal:
		return literalTag(name, x.Literal.GetValue())
	case *meshconfig.Tracing_CustomTag_Header:
		return headerTag(name, x.Header.GetName(), x.Header.GetDefaultValue())
	case *meshconfig.Tracing_CustomTag_Environment:
		return environmentTag(name, x.Environment.GetName(), x.Environment.GetDefaultValue())
	}
	return nil
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

// spanned is what of a workload its spans name.
func spanned(v View) Inbound {
	s := v.Inbound.Spec()
	return MakeInbound(InboundSpec{CanonicalName: s.CanonicalName, CanonicalRevision: s.CanonicalRevision, MeshID: s.MeshID})
}
