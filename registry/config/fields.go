package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// maxDepth bounds the nesting of a document.
const maxDepth = 64

// decodeProto reads JSON into a message. It first walks the document beside the
// message's description, so that a value of a wrong type is reported with its
// full path and unknown fields are known by name; protojson alone would either
// refuse all unknown fields or also swallow misspelt enum names. It returns the
// canonical JSON of what was read and the paths of unknown fields.
func decodeProto(doc []byte, path string, into proto.Message) (canonical []byte, unknown []string, err error) {
	if len(bytes.TrimSpace(doc)) == 0 {
		doc = []byte("{}")
	}
	dec := json.NewDecoder(bytes.NewReader(doc))
	dec.UseNumber()
	var tree any
	if err := dec.Decode(&tree); err != nil {
		return nil, nil, fieldError(path, "is not JSON: %v", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, nil, fieldError(path, "has text after the JSON value")
	}
	if tree == nil {
		tree = map[string]any{}
	}
	w := walker{}
	pruned, err := w.message(path, tree, into.ProtoReflect().Descriptor(), 0)
	if err != nil {
		return nil, nil, err
	}
	if canonical, err = json.Marshal(pruned); err != nil {
		return nil, nil, fieldError(path, "cannot be encoded: %v", err)
	}
	if err := protojson.Unmarshal(canonical, into); err != nil {
		return nil, nil, fieldError(path, "%v", trimProto(err))
	}
	slices.Sort(w.unknown)
	return canonical, w.unknown, nil
}

// trimProto removes protojson's prefix and its position, which is that in a
// document the user has never seen.
func trimProto(err error) string {
	s := strings.ReplaceAll(err.Error(), "\u00a0", " ")
	s = strings.TrimPrefix(s, "proto: ")
	if strings.HasPrefix(s, "(line ") {
		if _, rest, ok := strings.Cut(s, "): "); ok {
			return rest
		}
	}
	return s
}

// walker checks a JSON tree against a message description.
type walker struct{ unknown []string }

func (w *walker) message(path string, v any, md protoreflect.MessageDescriptor, depth int) (any, error) {
	if depth > maxDepth {
		return nil, fieldError(path, "is nested deeper than %d levels", maxDepth)
	}
	if md.ParentFile().Package() == "google.protobuf" {
		return w.wellKnown(path, v, md, depth)
	}
	m, ok := v.(map[string]any)
	if !ok {
		return nil, wrongType(path, v, "an object")
	}
	out := make(map[string]any, len(m))
	chosen := map[protoreflect.FullName]string{} // what was given of each set of alternatives
	for _, name := range slices.Sorted(maps.Keys(m)) {
		at := join(path, name)
		fd := md.Fields().ByJSONName(name)
		if fd == nil {
			fd = md.Fields().ByTextName(name)
		}
		if fd == nil {
			w.unknown = append(w.unknown, at)
			continue
		}
		if m[name] == nil && !isValue(fd) {
			continue // null means absent
		}
		if _, twice := out[fd.JSONName()]; twice {
			return nil, fieldError(at, "is given twice, as %s and as %s; keep one", fd.JSONName(), fd.TextName())
		}
		if of := fd.ContainingOneof(); of != nil {
			if first := chosen[of.FullName()]; first != "" {
				return nil, fieldError(at, "is set beside %s; keep one", first)
			}
			chosen[of.FullName()] = name
		}
		x, err := w.field(at, m[name], fd, depth)
		if err != nil {
			return nil, err
		}
		out[fd.JSONName()] = x
	}
	return out, nil
}

// wellKnown reads the types of protobuf itself, which have forms of their own.
func (w *walker) wellKnown(path string, v any, md protoreflect.MessageDescriptor, depth int) (any, error) {
	switch {
	case md.Name() == "Duration":
		text, ok := v.(string)
		if !ok {
			return nil, wrongType(path, v, "a duration such as 1.5s")
		}
		return duration(path, text)
	case md.ParentFile().Path() == "google/protobuf/wrappers.proto":
		return w.single(path, v, md.Fields().ByName("value"), depth)
	}
	return v, nil // structs: protojson checks them
}

// duration turns what users write ("1h30m", "500ms") into what protojson reads,
// which is seconds.
func duration(path, text string) (any, error) {
	d, err := time.ParseDuration(text)
	if err != nil {
		return nil, fieldError(path, "%q is not a duration; write it as in 1.5s, 500ms or 1h", clip(text))
	}
	sign := ""
	if d < 0 {
		sign = "-"
	}
	return fmt.Sprintf("%s%d.%09ds", sign, d.Abs()/time.Second, d.Abs()%time.Second), nil
}

// isValue reports whether null is a value of the field and not its absence.
func isValue(fd protoreflect.FieldDescriptor) bool {
	return fd.Message() != nil && fd.Message().FullName() == "google.protobuf.Value"
}

func (w *walker) field(path string, v any, fd protoreflect.FieldDescriptor, depth int) (any, error) {
	switch {
	case fd.IsMap():
		m, ok := v.(map[string]any)
		if !ok {
			return nil, wrongType(path, v, "an object")
		}
		out := make(map[string]any, len(m))
		for k, x := range m {
			y, err := w.single(path+"["+k+"]", x, fd.MapValue(), depth)
			if err != nil {
				return nil, err
			}
			out[k] = y
		}
		return out, nil
	case fd.IsList():
		l, ok := v.([]any)
		if !ok {
			return nil, wrongType(path, v, "a list")
		}
		out := make([]any, len(l))
		for i, x := range l {
			y, err := w.single(path+"["+strconv.Itoa(i)+"]", x, fd, depth)
			if err != nil {
				return nil, err
			}
			out[i] = y
		}
		return out, nil
	}
	return w.single(path, v, fd, depth)
}

func (w *walker) single(path string, v any, fd protoreflect.FieldDescriptor, depth int) (any, error) {
	switch fd.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return w.message(path, v, fd.Message(), depth+1)
	case protoreflect.EnumKind:
		return enumValue(path, v, fd.Enum())
	case protoreflect.StringKind, protoreflect.BytesKind:
		if _, ok := v.(string); !ok {
			return nil, wrongType(path, v, "a string")
		}
	case protoreflect.BoolKind:
		if _, ok := v.(bool); !ok {
			return nil, wrongType(path, v, "true or false")
		}
	default:
		return number(path, v, fd.Kind())
	}
	return v, nil
}

func enumValue(path string, v any, ed protoreflect.EnumDescriptor) (any, error) {
	switch x := v.(type) {
	case string:
		if ed.Values().ByName(protoreflect.Name(x)) != nil {
			return v, nil
		}
		names := make([]string, ed.Values().Len())
		for i := range names {
			names[i] = string(ed.Values().Get(i).Name())
		}
		return nil, fieldError(path, "%q is not known; use one of %s", x, strings.Join(names, ", "))
	case json.Number:
		if n, err := strconv.ParseInt(x.String(), 10, 32); err == nil && ed.Values().ByNumber(protoreflect.EnumNumber(n)) != nil {
			return v, nil
		}
		return nil, fieldError(path, "%s is not a number of %s", x, ed.Name())
	}
	return nil, wrongType(path, v, "a name")
}

// number checks a numeric field. As in protojson, integers may be written as
// strings; a number is not rounded into an integer.
func number(path string, v any, kind protoreflect.Kind) (any, error) {
	var s string
	switch x := v.(type) {
	case json.Number:
		s = x.String()
	case string:
		s = x
	default:
		return nil, wrongType(path, v, "a number")
	}
	var err error
	switch kind {
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		_, err = strconv.ParseFloat(s, 64)
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		_, err = strconv.ParseUint(s, 10, 32)
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		_, err = strconv.ParseUint(s, 10, 64)
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		_, err = strconv.ParseInt(s, 10, 32)
	default:
		_, err = strconv.ParseInt(s, 10, 64)
	}
	if err != nil {
		return nil, fieldError(path, "%s is not a number of type %s", s, kind)
	}
	return v, nil
}

func wrongType(path string, v any, want string) error {
	return fieldError(path, "want %s, got %s", want, describe(v))
}

func describe(v any) string {
	switch x := v.(type) {
	case nil:
		return "null"
	case string:
		return fmt.Sprintf("the string %q", clip(x))
	case bool:
		return strconv.FormatBool(x)
	case json.Number:
		return "the number " + clip(x.String())
	case []any:
		return "a list"
	}
	return "an object"
}

// clip keeps quoted user input short enough for a log line.
func clip(s string) string {
	const limit = 80
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "..."
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}
