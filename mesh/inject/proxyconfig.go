package inject

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/wrapperspb"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networkingv1beta1 "istio.io/api/networking/v1beta1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// ProxyConfigResource is a ProxyConfig object of networking.istio.io.
type ProxyConfigResource struct {
	Namespace string
	Spec      *networkingv1beta1.ProxyConfig
}

// EffectiveProxyConfig is the ProxyConfig of a pod. What is more special wins:
// the mesh's default, ProxyConfig objects of the root namespace, of the pod's
// namespace, those that select the pod, and annotation proxy.istio.io/config.
// Of several objects of a kind the first counts, so they are to be given oldest
// first.
func EffectiveProxyConfig(m *meshconfig.MeshConfig, namespace string, meta *metav1.ObjectMeta, resources []ProxyConfigResource) (*meshconfig.ProxyConfig, error) {
	out := mesh.DefaultProxyConfig()
	if d := m.GetDefaultConfig(); d != nil {
		out = proto.CloneOf(d)
	}
	root := cmp.Or(m.GetRootNamespace(), "istio-system")
	pick := func(ns string, selecting bool) {
		for _, r := range resources {
			selector := r.Spec.GetSelector().GetMatchLabels()
			if r.Namespace != ns || selecting != (len(selector) > 0) {
				continue
			}
			if !selecting || labels.SelectorFromSet(selector).Matches(labels.Set(meta.Labels)) {
				applyResource(out, r.Spec)
				return
			}
		}
	}
	pick(root, false)
	if namespace != root {
		pick(namespace, false)
	}
	pick(namespace, true)
	if text, ok := meta.Annotations[annotationProxyConfig]; ok {
		merged, err := OverlayProxyConfig(out, text)
		if err != nil {
			return nil, fmt.Errorf("annotation %s: %w", annotationProxyConfig, err)
		}
		return merged, nil
	}
	return out, nil
}

func applyResource(to *meshconfig.ProxyConfig, r *networkingv1beta1.ProxyConfig) {
	if r.GetConcurrency() != nil {
		to.Concurrency = wrapperspb.Int32(r.GetConcurrency().GetValue())
	}
	for k, v := range r.GetEnvironmentVariables() {
		if to.ProxyMetadata == nil {
			to.ProxyMetadata = map[string]string{}
		}
		to.ProxyMetadata[k] = v
	}
	if r.GetImage() != nil {
		to.Image = proto.CloneOf(r.Image)
	}
}

// overlayJSON sets in a message what a JSON document gives.
func overlayJSON(to proto.Message, doc []byte) error {
	given := to.ProtoReflect().New().Interface()
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(doc, given); err != nil {
		return tidyProtoError(err)
	}
	present := map[string]json.RawMessage{}
	if err := json.Unmarshal(doc, &present); err != nil {
		return fmt.Errorf("want fields and values: %w", err)
	}
	return overlayFields(to.ProtoReflect(), given.ProtoReflect(), present)
}

func overlayFields(to, given protoreflect.Message, present map[string]json.RawMessage) error {
	fields := to.Descriptor().Fields()
	for name, raw := range present {
		fd := fields.ByJSONName(name)
		if fd == nil {
			fd = fields.ByTextName(name)
		}
		switch {
		case fd == nil:
		case !given.Has(fd):
			to.Clear(fd) // given as null, or as its zero value
		case fd.IsMap():
			m := to.Mutable(fd).Map()
			given.Get(fd).Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				m.Set(k, v)
				return true
			})
		case mergeable(fd):
			sub := map[string]json.RawMessage{}
			if err := json.Unmarshal(raw, &sub); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if err := overlayFields(to.Mutable(fd).Message(), given.Get(fd).Message(), sub); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		default:
			to.Set(fd, given.Get(fd))
		}
	}
	return nil
}

// mergeable: a single message that is not one of protobuf's own kinds of value.
func mergeable(fd protoreflect.FieldDescriptor) bool {
	return fd.Message() != nil && !fd.IsList() && !strings.HasPrefix(string(fd.Message().FullName()), "google.protobuf.")
}

// tidyProtoError takes out the prefix of protobuf, whose spaces vary on purpose.
func tidyProtoError(err error) error {
	text := strings.ReplaceAll(err.Error(), "\u00a0", " ")
	return trimmedError{strings.TrimPrefix(text, "proto: "), err}
}

// proxyImage is the proxy's image as values and settings give it. The kind of
// image is the pod's own, else ProxyConfig's, else value global.variant.
func proxyImage(v Values, pc *meshconfig.ProxyConfig, annotations map[string]string) string {
	kind := v.text("global", "variant")
	if pc.GetImage() != nil {
		kind = pc.GetImage().GetImageType()
	}
	if t, ok := annotations[annotationImageType]; ok {
		kind = t
	}
	return v.text("global", "hub") + "/" + cmp.Or(v.text("global", "proxy", "image"), "proxyv2") + ":" + imageTag(v.text("global", "tag"), kind)
}

// imageTag puts the kind of image into a tag, in place of one that is there.
func imageTag(tag, kind string) string {
	if kind == "" {
		return tag
	}
	for _, known := range []string{"-distroless", "-debug"} {
		if cut, ok := strings.CutSuffix(tag, known); ok {
			tag = cut
			break
		}
	}
	if kind == "default" {
		return tag
	}
	return tag + "-" + kind
}

// inboundMode is the text that templates have for the inbound traffic policy.
func inboundMode(m *meshconfig.MeshConfig) string {
	if m.GetInboundTrafficPolicy().GetMode() == meshconfig.MeshConfig_InboundTrafficPolicy_LOCALHOST {
		return "localhost"
	}
	return "passthrough"
}

// truthy are the spellings of yes that the inject label may have.
func truthy(s string) bool {
	return slices.Contains([]string{"y", "yes", "true", "on"}, strings.ToLower(s))
}

// defaultConcurrency is istiod's for a proxy about which nothing is said.
const defaultConcurrency = 2

// concurrency is how many threads a proxy gets: what its configuration says; if
// that says 0, as many as it may use CPUs, by annotation or by values.
func concurrency(proxy *meshconfig.ProxyConfig, annotations map[string]string, v Values) int {
	if proxy.GetConcurrency() == nil {
		return defaultConcurrency
	}
	if n := int(proxy.GetConcurrency().GetValue()); n > 0 {
		return n
	}
	for _, text := range []string{annotations["sidecar.istio.io/proxyCPULimit"], annotations["sidecar.istio.io/proxyCPU"],
		v.text("global", "proxy", "resources", "limits", "cpu"), v.text("global", "proxy", "resources", "requests", "cpu")} {
		if q, err := resource.ParseQuantity(text); err == nil {
			return int((q.MilliValue() + 999) / 1000)
		}
	}
	return defaultConcurrency
}
