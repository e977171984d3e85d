package validate

import (
	"fmt"
	"strconv"
	"strings"

	typev1 "github.com/cncf/xds/go/udpa/type/v1"
	xdstypev3 "github.com/cncf/xds/go/xds/type/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
)

// field is a field that is set, with the name of its message.
type field struct{ protoreflect.FieldDescriptor }

func (f field) fullName() string { return string(f.FullName()) }

func (f field) isDeprecated() bool {
	o, ok := f.Options().(*descriptorpb.FieldOptions)
	return ok && o.GetDeprecated()
}

// walk shows a message, everything in it and everything in any Any in it to a
// visitor.
func walk(m proto.Message, v visitor) { (&walker{v}).message("", m) }

type walker struct{ v visitor }

func (w *walker) message(path string, m proto.Message) {
	w.v.message(path, m)
	switch m := m.(type) {
	case *anypb.Any:
		w.any(path, m)
		return
	case *typev1.TypedStruct:
		w.typedStruct(path, m.GetTypeUrl(), m.GetValue())
		return
	case *xdstypev3.TypedStruct:
		w.typedStruct(path, m.GetTypeUrl(), m.GetValue())
		return
	case *structpb.Struct:
		return // free form
	}
	m.ProtoReflect().Range(func(fd protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		p := join(path, string(fd.Name()))
		w.v.field(p, field{fd})
		w.value(p, fd, value)
		return true
	})
}

func (w *walker) value(path string, fd protoreflect.FieldDescriptor, value protoreflect.Value) {
	switch {
	case fd.IsMap():
		if fd.MapValue().Message() == nil {
			return
		}
		value.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
			w.message(path+"["+k.String()+"]", v.Message().Interface())
			return true
		})
	case fd.Message() == nil:
	case fd.IsList():
		for i := range value.List().Len() {
			w.message(path+"["+strconv.Itoa(i)+"]", value.List().Get(i).Message().Interface())
		}
	default:
		w.message(path, value.Message().Interface())
	}
}

// any opens an Any.
func (w *walker) any(path string, a *anypb.Any) {
	t, err := messageType(a.GetTypeUrl())
	if err != nil {
		w.v.problem(path, err.Error())
		return
	}
	m := t.New().Interface()
	if err := proto.Unmarshal(a.GetValue(), m); err != nil {
		w.v.problem(path, fmt.Sprintf("%s does not decode: %v", a.GetTypeUrl(), err))
		return
	}
	p := path + "(" + string(t.Descriptor().Name()) + ")"
	w.v.opened(p, m)
	w.message(p, m)
}

// typedStruct turns fields by name into the message that they stand for.
func (w *walker) typedStruct(path, url string, value *structpb.Struct) {
	if _, ok := structTypes()[url]; ok {
		return
	}
	t, err := messageType(url)
	if err != nil {
		w.v.problem(path, "TypedStruct: "+err.Error())
		return
	}
	text, err := protojson.Marshal(value)
	if err != nil {
		w.v.problem(path, fmt.Sprintf("TypedStruct of %s: %v", url, err))
		return
	}
	m := t.New().Interface()
	if err := protojson.Unmarshal(text, m); err != nil {
		w.v.problem(path, fmt.Sprintf("TypedStruct of %s: %v", url, err))
		return
	}
	p := path + "{" + string(t.Descriptor().Name()) + "}"
	w.v.opened(p, m)
	w.message(p, m)
}

func messageType(url string) (protoreflect.MessageType, error) {
	if !strings.HasPrefix(url, "type.googleapis.com/") {
		return nil, fmt.Errorf("type URL %q does not begin with type.googleapis.com/", url)
	}
	t, err := protoregistry.GlobalTypes.FindMessageByURL(url)
	if err != nil {
		return nil, fmt.Errorf("unknown type %q", url)
	}
	return t, nil
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}
