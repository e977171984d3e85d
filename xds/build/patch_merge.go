package build

import (
	"errors"
	"fmt"
	"regexp/syntax"

	udpatypev1 "github.com/cncf/xds/go/udpa/type/v1"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/anypb"
	networking "istio.io/api/networking/v1alpha3"
)

// maxAnyDepth bounds how deep messages may be packed into one another.
const maxAnyDepth = 16

// mergeMessage merges src into dst: fields that src has are set, lists are
// appended to, or with replace take the place of what is there, maps get src's
// entries, messages are merged. Values that are one
// thing though they are messages (numbers whose absence has a meaning, durations,
// packed messages) are replaced, but what is packed in the same socket is merged.
func mergeMessage(dst, src protoreflect.Message, replace bool) (err error) {
	src.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsList():
			if replace {
				dst.Clear(fd)
			}
			to := dst.Mutable(fd).List()
			for i := range v.List().Len() {
				to.Append(copyValue(fd, v.List().Get(i)))
			}
		case fd.IsMap():
			to := dst.Mutable(fd).Map()
			v.Map().Range(func(k protoreflect.MapKey, x protoreflect.Value) bool {
				to.Set(k, copyValue(fd.MapValue(), x))
				return true
			})
		case fd.Message() != nil && dst.Has(fd) && !single(fd.Message()):
			to := dst.Mutable(fd).Message()
			if socket, ok := to.Interface().(*corev3.TransportSocket); ok {
				if with, same := v.Message().Interface().(*corev3.TransportSocket); same && socket.GetName() != with.GetName() && with.GetName() != "" {
					dst.Set(fd, copyValue(fd, v))
					return true
				}
			}
			err = mergeExtension(to, v.Message(), replace)
		default:
			dst.Set(fd, copyValue(fd, v))
		}
		return err == nil
	})
	return err
}

// mergeExtension merges messages of which each may have one message packed in it,
// its configuration. Lists within that are appended to.
func mergeExtension(dst, src protoreflect.Message, replace bool) error {
	fd := dst.Descriptor().Fields().ByName("typed_config")
	if fd == nil || !dst.Has(fd) || !src.Has(fd) {
		return mergeMessage(dst, src, replace)
	}
	to, ok := dst.Get(fd).Message().Interface().(*anypb.Any)
	from, same := src.Get(fd).Message().Interface().(*anypb.Any)
	if !ok || !same {
		return mergeMessage(dst, src, replace)
	}
	packed, err := mergePacked(to, from)
	if err != nil {
		return err
	}
	if err := mergeMessage(dst, src, replace); err != nil {
		return err
	}
	dst.Set(fd, protoreflect.ValueOfMessage(packed.ProtoReflect()))
	return nil
}

// merge merges a patch's value into a message of the same type.
func merge(dst, src proto.Message, replace bool) error {
	if dst.ProtoReflect().Descriptor() != src.ProtoReflect().Descriptor() {
		return fmt.Errorf("value is a %s, not a %s", src.ProtoReflect().Descriptor().FullName(), dst.ProtoReflect().Descriptor().FullName())
	}
	return mergeExtension(dst.ProtoReflect(), src.ProtoReflect(), replace)
}

// hasLists reports whether a merge into what a patch is for may replace lists: not
// within filters, whose configuration is packed.
func hasLists(to networking.EnvoyFilter_ApplyTo) bool {
	switch to {
	case networking.EnvoyFilter_CLUSTER, networking.EnvoyFilter_LISTENER, networking.EnvoyFilter_FILTER_CHAIN,
		networking.EnvoyFilter_ROUTE_CONFIGURATION, networking.EnvoyFilter_VIRTUAL_HOST, networking.EnvoyFilter_HTTP_ROUTE:
		return true
	}
	return false
}

// single reports whether a message is one value.
func single(m protoreflect.MessageDescriptor) bool {
	switch m.FullName() {
	case "google.protobuf.Any", "google.protobuf.Duration", "google.protobuf.Timestamp", "google.protobuf.BoolValue",
		"google.protobuf.BytesValue", "google.protobuf.DoubleValue", "google.protobuf.FloatValue", "google.protobuf.Int32Value",
		"google.protobuf.Int64Value", "google.protobuf.StringValue", "google.protobuf.UInt32Value", "google.protobuf.UInt64Value":
		return true
	}
	return false
}

func copyValue(fd protoreflect.FieldDescriptor, v protoreflect.Value) protoreflect.Value {
	if fd.Message() == nil {
		return v
	}
	return protoreflect.ValueOfMessage(proto.Clone(v.Message().Interface()).ProtoReflect())
}

// mergePacked merges two packed messages of one type. Types that are not known
// here, and those that differ, cannot be merged.
func mergePacked(dst, src *anypb.Any) (*anypb.Any, error) {
	if dst.MessageName() != src.MessageName() {
		return nil, fmt.Errorf("value is a %s, but what it is merged into is a %s", src.MessageName(), dst.MessageName())
	}
	to, err := dst.UnmarshalNew()
	if err != nil {
		return nil, fmt.Errorf("merge a %s, which is not known here: %w", dst.MessageName(), err)
	}
	from, err := src.UnmarshalNew()
	if err != nil {
		return nil, fmt.Errorf("merge a %s: %w", src.MessageName(), err)
	}
	if a, ok := to.(*udpatypev1.TypedStruct); ok && a.GetTypeUrl() != from.(*udpatypev1.TypedStruct).GetTypeUrl() {
		return nil, fmt.Errorf("value is a %s, but what it is merged into is a %s", from.(*udpatypev1.TypedStruct).GetTypeUrl(), a.GetTypeUrl())
	}
	if err := mergeMessage(to.ProtoReflect(), from.ProtoReflect(), false); err != nil {
		return nil, err
	}
	return toAny(to)
}

// acceptable reports why proxies would refuse a message: by the bounds that
// Envoy's API sets, also for what is packed in it, as far as it is known here.
func acceptable(m proto.Message) error {
	if v, ok := m.(interface{ Validate() error }); ok {
		if err := v.Validate(); err != nil {
			return err
		}
	}
	if !m.ProtoReflect().IsValid() {
		return nil
	}
	return acceptablePacked(m.ProtoReflect(), 0)
}

func acceptablePacked(m protoreflect.Message, depth int) error {
	if depth > maxAnyDepth {
		return fmt.Errorf("messages are packed deeper than %d levels", maxAnyDepth)
	}
	if a, ok := m.Interface().(*anypb.Any); ok {
		if a.GetTypeUrl() == "" {
			return nil
		}
		inner, err := a.UnmarshalNew()
		switch {
		case isUnknownType(err):
			return nil
		case err != nil:
			return fmt.Errorf("decode %s: %w", a.MessageName(), err)
		}
		if v, ok := inner.(interface{ Validate() error }); ok {
			if err := v.Validate(); err != nil {
				return err
			}
		}
		return acceptablePacked(inner.ProtoReflect(), depth+1)
	}
	if r, ok := m.Interface().(*matcherv3.RegexMatcher); ok {
		return acceptablePattern(r.GetRegex())
	}
	var err error
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap():
			if fd.MapValue().Message() != nil {
				v.Map().Range(func(_ protoreflect.MapKey, x protoreflect.Value) bool {
					err = acceptablePacked(x.Message(), depth)
					return err == nil
				})
			}
		case fd.Message() == nil:
		case fd.IsList():
			for i := 0; i < v.List().Len() && err == nil; i++ {
				err = acceptablePacked(v.List().Get(i).Message(), depth)
			}
		default:
			err = acceptablePacked(v.Message(), depth)
		}
		return err == nil
	})
	return err
}

// maxPattern bounds a regular expression in a patch, in bytes.
const maxPattern = 8192

// acceptablePattern reports why proxies would refuse a regular expression. It is
// parsed but not compiled.
func acceptablePattern(re string) error {
	if len(re) > maxPattern {
		return fmt.Errorf("a regular expression is %d characters long; it may have %d", len(re), maxPattern)
	}
	if _, err := syntax.Parse(re, syntax.Perl); err != nil {
		return fmt.Errorf("%.64q is not a regular expression in the syntax of RE2", re)
	}
	return nil
}

// isUnknownType reports whether a message could not be unpacked because its type
// is not known here. Proxies may know it.
func isUnknownType(err error) bool { return errors.Is(err, protoregistry.NotFound) }
