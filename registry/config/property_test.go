package config

import (
	"encoding/json"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"pgregory.net/rapid"
)

// drawMessage draws JSON for a message from its description: mostly well-formed,
// so that validation is reached, with texts that mean something somewhere.
func drawMessage(t *rapid.T, md protoreflect.MessageDescriptor, depth int) any {
	switch {
	case md.Name() == "Duration" && md.ParentFile().Package() == "google.protobuf":
		return rapid.SampledFrom([]string{"0s", "1s", "1ms", "1h30m", "1.5s", "1us", "-1s", "999999h"}).Draw(t, "duration")
	case md.ParentFile().Path() == "google/protobuf/wrappers.proto":
		return drawSingle(t, md.Fields().ByName("value"), depth)
	case md.ParentFile().Package() == "google.protobuf":
		return rapid.SampledFrom([]any{map[string]any{}, map[string]any{"name": "a", "typed_config": map[string]any{"@type": "x/y.Z"}},
			map[string]any{"connect_timeout": "500ms"}, map[string]any{"a": []any{nil, 1.5, "b"}}}).Draw(t, "struct")
	}
	out := map[string]any{}
	taken := map[protoreflect.FullName]bool{}
	for i := range md.Fields().Len() {
		fd := md.Fields().Get(i)
		if depth > 7 || rapid.IntRange(0, 2).Draw(t, "present") == 0 {
			continue
		}
		if of := fd.ContainingOneof(); of != nil {
			if taken[of.FullName()] {
				continue
			}
			taken[of.FullName()] = true
		}
		switch {
		case fd.IsMap():
			m := map[string]any{}
			for range rapid.IntRange(0, 2).Draw(t, "entries") {
				key := rapid.SampledFrom(words()).Draw(t, "key")
				if fd.MapKey().Kind() != protoreflect.StringKind {
					key = rapid.SampledFrom([]string{"0", "80", "70000"}).Draw(t, "key")
				}
				m[key] = drawSingle(t, fd.MapValue(), depth)
			}
			out[fd.JSONName()] = m
		case fd.IsList():
			l := []any{}
			for range rapid.IntRange(0, 3).Draw(t, "elements") {
				l = append(l, drawSingle(t, fd, depth))
			}
			out[fd.JSONName()] = l
		default:
			out[fd.JSONName()] = drawSingle(t, fd, depth)
		}
	}
	return out
}

func words() []string {
	return []string{"", "a", "*", ".", "~", "mesh", "a.example", "*.example", "*.b.example", "a/b", "./*", "*/*", "10.0.0.1", "10.0.0.0/8",
		"unix:///a", "80", "[", "a*", "%A%", "%", "HTTP", "TLS", "tcp", "5xx", "host", ":path", "@request.auth.claims.x", "GET",
		"{*}", "/{**}/x", "https://a", "oci://a", "source.ip", "request.headers[a]", `{"keys":[]}`, "region/*", "r/z", "é\u0001"}
}

func drawSingle(t *rapid.T, fd protoreflect.FieldDescriptor, depth int) any {
	switch fd.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return drawMessage(t, fd.Message(), depth+1)
	case protoreflect.EnumKind:
		return string(fd.Enum().Values().Get(rapid.IntRange(0, fd.Enum().Values().Len()-1).Draw(t, "enum")).Name())
	case protoreflect.StringKind:
		return rapid.SampledFrom(words()).Draw(t, "word")
	case protoreflect.BytesKind:
		return "aGk="
	case protoreflect.BoolKind:
		return rapid.Bool().Draw(t, "bool")
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		return rapid.SampledFrom([]float64{0, 0.5, 50, 100, 101, -1}).Draw(t, "number")
	case protoreflect.Uint32Kind, protoreflect.Uint64Kind, protoreflect.Fixed32Kind, protoreflect.Fixed64Kind:
		return rapid.SampledFrom([]int{0, 1, 80, 100, 200, 65537, 4294967295}).Draw(t, "number")
	}
	return rapid.SampledFrom([]int{0, 1, 50, 100, 200, 503, -1, 2147483647}).Draw(t, "number")
}

// TestAnySpecification: whatever the fields of a specification are, validation
// says the same twice, a review refuses at least what decoding refuses, and what
// is accepted means the same when it is read again.
func TestAnySpecification(t *testing.T) {
	for _, d := range table() {
		t.Run(string(d.Kind.Kind), func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				spec := drawMessage(rt, d.newSpec().ProtoReflect().Descriptor(), 0)
				doc, err := json.Marshal(map[string]any{"metadata": map[string]any{"name": "x", "namespace": "edge"}, "spec": spec})
				if err != nil {
					rt.Fatal(err)
				}
				o, err := Decode("east", d.Kind, doc)
				_, again := Decode("east", d.Kind, doc)
				_, review := Review("east", d.Kind, doc)
				if (err == nil) != (review == nil) {
					rt.Fatalf("decoded: %v, reviewed: %v", err, review)
				}
				if err != nil {
					if again == nil || err.Error() != again.Error() {
						rt.Fatalf("first %v, then %v", err, again)
					}
					return
				}
				requireRoundTrip(t, d.Kind, o)
			})
		})
	}
}
