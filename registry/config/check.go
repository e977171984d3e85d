package config

import (
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/go-multierror"
	"google.golang.org/protobuf/types/known/durationpb"
)

// FieldError says which field is wrong and how to put it right. errors.As finds
// the first one of an error that this package returns.
type FieldError struct {
	// Field is the path, for example "spec.servers[0].port.number"; "" is the
	// whole document.
	Field string
	// Message says what is wrong and how to put it right.
	Message string
}

// Error renders "field: message", without the field if it is the whole document.
func (e *FieldError) Error() string {
	if e.Field == "" {
		return e.Message
	}
	return e.Field + ": " + e.Message
}

func fieldError(field, format string, args ...any) error {
	return &FieldError{Field: field, Message: fmt.Sprintf(format, args...)}
}

// maxErrors bounds how many faults, and how many warnings, of one object are reported.
const maxErrors = 16

// findings is what was found in one object.
type findings struct {
	errs  []error
	warns []string
}

// checker collects everything that is wrong with one object. All checkers made
// from one by at and index share their findings.
type checker struct {
	path  string
	found *findings
	// namespace is the object's, "" if it has none.
	namespace string
}

func (c *checker) all() *findings {
	if c.found == nil {
		c.found = &findings{}
	}
	return c.found
}

// at returns a checker for a field below.
func (c *checker) at(field string) *checker {
	return &checker{path: join(c.path, field), found: c.all(), namespace: c.namespace}
}

// index returns a checker for an element of a list.
func (c *checker) index(field string, i int) *checker { return c.at(fmt.Sprintf("%s[%d]", field, i)) }

// element returns a checker for an element of the list that the checker is for.
func (c *checker) element(i int) *checker {
	return &checker{path: fmt.Sprintf("%s[%d]", c.path, i), found: c.all(), namespace: c.namespace}
}

// key returns a checker for an entry of a map.
func (c *checker) key(field, k string) *checker { return c.at(fmt.Sprintf("%s[%s]", field, clip(k))) }

// failf records that the checker's field is wrong.
func (c *checker) failf(format string, args ...any) {
	if f := c.all(); len(f.errs) < maxErrors {
		f.errs = append(f.errs, fieldError(c.path, format, args...))
	}
}

// warnf records something about the checker's field that is accepted, but most
// likely not meant.
func (c *checker) warnf(format string, args ...any) {
	if f := c.all(); len(f.warns) < maxErrors {
		f.warns = append(f.warns, fieldError(c.path, format, args...).Error())
	}
}

// err returns all findings that are errors as one, or nil.
func (c *checker) err() error {
	if c.found == nil || len(c.found.errs) == 0 {
		return nil
	}
	return &multierror.Error{Errors: c.found.errs, ErrorFormat: oneLine}
}

func oneLine(errs []error) string {
	parts := make([]string, len(errs))
	for i, e := range errs {
		parts[i] = e.Error()
	}
	return strings.Join(parts, "; ")
}

// seen remembers what was there already. Lists may be long: to look through them
// again for every element would take for ever.
type seen map[string]struct{}

// twice reports whether a text was there, and remembers it.
func (s seen) twice(text string) bool {
	_, ok := s[text]
	s[text] = struct{}{}
	return ok
}

// port checks a number that is dialled or listened on.
func (c *checker) port(n int64) {
	if n < 1 || n > 65535 {
		c.failf("%d is not a port; use 1-65535", n)
	}
}

// duration checks that a duration is well-formed and not below the minimum.
// An absent one passes.
func (c *checker) duration(d *durationpb.Duration, minimum time.Duration) {
	if d == nil {
		return
	}
	if err := d.CheckValid(); err != nil {
		c.failf("is not a duration: %v", err)
		return
	}
	if x := d.AsDuration(); x < minimum {
		c.failf("%s is too short; use at least %s", x, minimum)
	}
}

// millis checks a duration as Envoy takes it: at least a millisecond, and whole
// ones. An absent one passes.
func (c *checker) millis(d *durationpb.Duration) {
	if d == nil {
		return
	}
	if err := d.CheckValid(); err != nil {
		c.failf("is not a duration: %v", err)
		return
	}
	switch x := d.AsDuration(); {
	case x < time.Millisecond:
		c.failf("%s is too short; use at least 1ms", x)
	case x%time.Millisecond != 0:
		c.failf("%s is not whole milliseconds; round it", x)
	}
}

// notNegative checks a number of which 0 is the smallest.
func (c *checker) notNegative(n int64) {
	if n < 0 {
		c.failf("%d is negative; use 0 or more", n)
	}
}

// percent checks a whole number of percent.
func (c *checker) percent(n int64) {
	if n < 0 || n > 100 {
		c.failf("%d is not a percentage; use 0-100", n)
	}
}
