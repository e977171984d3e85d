// Package envoypatch decodes the values of EnvoyFilters: pieces of Envoy's
// configuration that users write by hand.
//
// It owns which message a value is for, and which types are known by name. It
// does not apply anything (xds/build does) and knows nothing of Kubernetes.
package envoypatch

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/structpb"
	networking "istio.io/api/networking/v1alpha3"
)

// maxDepth bounds the nesting of a value.
const maxDepth = 64

// typeField names the type of an Any in JSON.
const typeField = "@type"

// typedStruct is the type that carries a message that is not known here to
// proxies, which may know it.
const typedStruct = "type.googleapis.com/udpa.type.v1.TypedStruct"

// New returns an empty message of what a patch is for, nil if that is nothing
// that Envoy has.
func New(to networking.EnvoyFilter_ApplyTo) proto.Message {
	switch to {
	case networking.EnvoyFilter_LISTENER:
		return &listenerv3.Listener{}
	case networking.EnvoyFilter_FILTER_CHAIN:
		return &listenerv3.FilterChain{}
	case networking.EnvoyFilter_LISTENER_FILTER:
		return &listenerv3.ListenerFilter{}
	case networking.EnvoyFilter_NETWORK_FILTER:
		return &listenerv3.Filter{}
	case networking.EnvoyFilter_HTTP_FILTER:
		return &hcmv3.HttpFilter{}
	case networking.EnvoyFilter_ROUTE_CONFIGURATION:
		return &routev3.RouteConfiguration{}
	case networking.EnvoyFilter_VIRTUAL_HOST:
		return &routev3.VirtualHost{}
	case networking.EnvoyFilter_HTTP_ROUTE:
		return &routev3.Route{}
	case networking.EnvoyFilter_CLUSTER:
		return &clusterv3.Cluster{}
	case networking.EnvoyFilter_EXTENSION_CONFIG:
		return &corev3.TypedExtensionConfig{}
	case networking.EnvoyFilter_BOOTSTRAP:
		return &bootstrapv3.Bootstrap{}
	}
	return nil
}

// Decoded is the value of a patch.
type Decoded struct {
	// Message is the value, with what is not known here as TypedStructs.
	Message proto.Message
	// Unknown lists the types that are not known here. Proxies may know them.
	Unknown []string
	// Strict is why the value would not decode if fields that are not known here
	// were refused, nil if it has none or if types are unknown.
	Strict error
}

// Decode reads the value of a patch. Unknown fields are left out and unknown
// types are passed on as they are: proxies may be newer. A value that is absent
// gives the zero Decoded.
func Decode(to networking.EnvoyFilter_ApplyTo, value *structpb.Struct) (Decoded, error) {
	if value == nil {
		return Decoded{}, nil
	}
	out := Decoded{Message: New(to)}
	if out.Message == nil {
		return Decoded{}, fmt.Errorf("decode patch: nothing is known of applyTo %s", to)
	}
	tree, err := out.message("", value.AsMap(), out.Message.ProtoReflect().Descriptor(), 0)
	if err != nil {
		return Decoded{}, fmt.Errorf("decode patch: %w", err)
	}
	doc, err := json.Marshal(tree)
	if err != nil {
		return Decoded{}, fmt.Errorf("decode patch: %w", err)
	}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(doc, out.Message); err != nil {
		return Decoded{}, fmt.Errorf("decode patch: %w", tidy(err))
	}
	slices.Sort(out.Unknown)
	out.Unknown = slices.Compact(out.Unknown)
	if len(out.Unknown) == 0 {
		if err := protojson.Unmarshal(doc, New(to)); err != nil {
			out.Strict = tidy(err)
		}
	}
	return out, nil
}

// message prepares a message for protojson: messages of unknown types go into a
// TypedStruct, and durations, of which protojson reads seconds only, may be
// written as "500ms" too. It refuses what protojson would take for a field from
// the future: names of enums that do not exist, and an Any without a type. md is
// nil where nothing is known of the fields.
func (d *Decoded) message(path string, m map[string]any, md protoreflect.MessageDescriptor, depth int) (map[string]any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("%s: nested deeper than %d levels", path, maxDepth)
	}
	url, _ := m[typeField].(string)
	switch {
	case url != "":
		if md = find(url); md == nil {
			d.Unknown = append(d.Unknown, url)
			delete(m, typeField)
			return map[string]any{typeField: typedStruct, "type_url": url, "value": m}, nil
		}
	case md != nil && md.FullName() == "google.protobuf.Any" && len(m) > 0:
		return nil, fmt.Errorf("%s: has no %s; name the type of the message", path, typeField)
	}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		var fd protoreflect.FieldDescriptor
		if md != nil {
			if fd = md.Fields().ByJSONName(k); fd == nil {
				fd = md.Fields().ByTextName(k)
			}
		}
		x, err := d.value(strings.TrimPrefix(path+"."+k, "."), m[k], fd, depth+1)
		if err != nil {
			return nil, err
		}
		m[k] = x
	}
	return m, nil
}

func (d *Decoded) value(path string, v any, fd protoreflect.FieldDescriptor, depth int) (any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("%s: nested deeper than %d levels", path, maxDepth)
	}
	switch x := v.(type) {
	case string:
		return text(path, x, fd)
	case []any:
		for i := range x {
			y, err := d.value(path+"["+strconv.Itoa(i)+"]", x[i], fd, depth+1)
			if err != nil {
				return nil, err
			}
			x[i] = y
		}
	case map[string]any:
		switch {
		case fd == nil || fd.Message() == nil:
			return d.message(path, x, nil, depth)
		case !fd.IsMap():
			return d.message(path, x, fd.Message(), depth)
		}
		for _, k := range slices.Sorted(maps.Keys(x)) {
			y, err := d.value(path+"["+k+"]", x[k], fd.MapValue(), depth+1)
			if err != nil {
				return nil, err
			}
			x[k] = y
		}
	}
	return v, nil
}

func text(path, s string, fd protoreflect.FieldDescriptor) (any, error) {
	switch {
	case fd == nil:
	case fd.Message() != nil && fd.Message().FullName() == "google.protobuf.Duration":
		return seconds(s), nil
	case fd.Enum() != nil && fd.Enum().FullName() != "google.protobuf.NullValue" && fd.Enum().Values().ByName(protoreflect.Name(s)) == nil:
		return nil, fmt.Errorf("%s: %q is not a %s", path, s, fd.Enum().Name())
	}
	return s, nil
}

// seconds writes a duration as protojson reads it. What is none stays.
func seconds(text string) string {
	d, err := time.ParseDuration(text)
	if err != nil {
		return text
	}
	sign := ""
	if d < 0 {
		sign = "-"
	}
	return fmt.Sprintf("%s%d.%09ds", sign, d.Abs()/time.Second, d.Abs()%time.Second)
}

// find returns the description of a type, nil if it is not known here.
func find(url string) protoreflect.MessageDescriptor {
	name := protoreflect.FullName(url[strings.LastIndexByte(url, '/')+1:])
	if !name.IsValid() {
		return nil
	}
	t, err := protoregistry.GlobalTypes.FindMessageByName(name)
	if err != nil {
		return nil
	}
	return t.Descriptor()
}

// plainError is an error of protojson without its prefix and its position, which
// is that in a document that nobody wrote.
type plainError struct {
	text string
	err  error
}

func (e *plainError) Error() string { return e.text }
func (e *plainError) Unwrap() error { return e.err }

func tidy(err error) error {
	s := strings.TrimPrefix(strings.ReplaceAll(err.Error(), "\u00a0", " "), "proto: ")
	if strings.HasPrefix(s, "(line ") {
		if _, rest, ok := strings.Cut(s, "): "); ok {
			s = rest
		}
	}
	return &plainError{s, err}
}
