package validate

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Options say for whom resources are checked.
type Options struct {
	// GRPC adds what gRPC's own xDS clients refuse and Envoy takes: an address or
	// a locality twice in an assignment, transport_socket_matches, listener
	// filters, two HTTP filters of one name, certificates by SDS.
	GRPC bool
}

// Problem is one thing that is wrong with a resource.
type Problem struct {
	// Resource is the type and name of the resource, e.g. "Listener 0.0.0.0_80".
	Resource string
	// Path leads from the resource to the part at fault.
	Path string
	// Message says what is wrong.
	Message string
}

// Error renders the problem in one line.
func (p Problem) Error() string {
	return strings.TrimSuffix(p.Resource+": "+p.Path, ": ") + ": " + p.Message
}

// Resource checks one resource as it travels, for an Envoy.
func Resource(typeURL string, body *anypb.Any) error { return Options{}.Resource(typeURL, body) }

// Message checks one resource for an Envoy.
func Message(m proto.Message) error { return Options{}.Message(m) }

// All checks several resources, for an Envoy, each for itself.
func All(list ...proto.Message) error { return Options{}.All(list...) }

// Resource checks one resource as it travels: it must be of the type that was
// asked for.
func (o Options) Resource(typeURL string, body *anypb.Any) error {
	if body.GetTypeUrl() != typeURL {
		return Problem{Resource: typeURL, Message: fmt.Sprintf("resource is a %q", body.GetTypeUrl())}
	}
	m, err := body.UnmarshalNew()
	if err != nil {
		return Problem{Resource: typeURL, Message: fmt.Sprintf("does not decode: %v", err)}
	}
	return o.Message(m)
}

// All checks several resources, each for itself.
func (o Options) All(list ...proto.Message) error {
	var errs []error
	for _, m := range list {
		errs = append(errs, o.Message(m))
	}
	return errors.Join(errs...)
}

// Message checks one resource. The error joins all problems, each a [Problem].
func (o Options) Message(m proto.Message) error {
	c := &check{options: o, resource: title(m)}
	c.run(m)
	return c.err()
}

// title names a resource for people.
func title(m proto.Message) string {
	kind := string(m.ProtoReflect().Descriptor().Name())
	switch m := m.(type) {
	case interface{ GetName() string }:
		return kind + " " + m.GetName()
	case interface{ GetClusterName() string }:
		return kind + " " + m.GetClusterName()
	}
	return kind
}

// check collects the problems of one resource.
type check struct {
	options  Options
	resource string
	problems []Problem
}

func (c *check) add(path, format string, args ...any) {
	c.problems = append(c.problems, Problem{Resource: c.resource, Path: path, Message: fmt.Sprintf(format, args...)})
}

func (c *check) err() error {
	slices.SortFunc(c.problems, func(a, b Problem) int { return strings.Compare(a.Error(), b.Error()) })
	var errs []error
	for _, p := range slices.Compact(c.problems) {
		errs = append(errs, p)
	}
	return errors.Join(errs...)
}

func (c *check) run(m proto.Message) {
	c.constraints("", m)
	walk(m, c)
}

// constraints runs the validation that comes with a message's type. It does not
// look into Any, so it is run again for what is found there.
func (c *check) constraints(path string, m proto.Message) {
	v, ok := m.(interface{ ValidateAll() error })
	if !ok {
		return
	}
	err := v.ValidateAll()
	if err == nil {
		return
	}
	var all interface{ AllErrors() []error }
	if errors.As(err, &all) {
		for _, e := range all.AllErrors() {
			c.add(path, "%v", e)
		}
		return
	}
	c.add(path, "%v", err)
}

// visitor hears of everything in a message.
type visitor interface {
	// message is called for every message, those in Any included.
	message(path string, m proto.Message)
	// field is called for every field that is set.
	field(path string, f field)
	// opened is called for what was found in an Any.
	opened(path string, m proto.Message)
	// problem is called for what cannot be looked into.
	problem(path, message string)
}

func (c *check) problem(path, message string)        { c.add(path, "%s", message) }
func (c *check) opened(path string, m proto.Message) { c.constraints(path, m) }

func (c *check) field(path string, f field) {
	if f.isDeprecated() {
		if _, ok := deprecatedButUsed()[f.fullName()]; !ok {
			c.add(path, "field %s is deprecated", f.fullName())
		}
	}
}

func (c *check) message(path string, m proto.Message) {
	if n := len(m.ProtoReflect().GetUnknown()); n > 0 {
		c.add(path, "%d bytes of fields that %s does not have", n, m.ProtoReflect().Descriptor().FullName())
	}
	c.rules(path, m)
}
