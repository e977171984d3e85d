package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-multierror"
	"google.golang.org/protobuf/types/known/durationpb"
	"k8s.io/apimachinery/pkg/util/validation"
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

// maxErrors bounds how many faults of one object are reported.
const maxErrors = 16

// checker collects everything that is wrong with one object. All checkers made
// from one by at and index share their findings.
type checker struct {
	path  string
	found *[]error
}

func (c *checker) list() *[]error {
	if c.found == nil {
		c.found = &[]error{}
	}
	return c.found
}

// at returns a checker for a field below.
func (c *checker) at(field string) *checker {
	return &checker{path: join(c.path, field), found: c.list()}
}

// index returns a checker for an element of a list.
func (c *checker) index(field string, i int) *checker { return c.at(fmt.Sprintf("%s[%d]", field, i)) }

// key returns a checker for an entry of a map.
func (c *checker) key(field, k string) *checker { return c.at(fmt.Sprintf("%s[%s]", field, clip(k))) }

// failf records that the checker's field is wrong.
func (c *checker) failf(format string, args ...any) {
	if l := c.list(); len(*l) < maxErrors {
		*l = append(*l, fieldError(c.path, format, args...))
	}
}

// err returns all findings as one error, or nil.
func (c *checker) err() error {
	if c.found == nil || len(*c.found) == 0 {
		return nil
	}
	return &multierror.Error{Errors: *c.found, ErrorFormat: oneLine}
}

func oneLine(errs []error) string {
	parts := make([]string, len(errs))
	for i, e := range errs {
		parts[i] = e.Error()
	}
	return strings.Join(parts, "; ")
}

// port checks a number that is dialled or listened on.
func (c *checker) port(n int64) {
	if n < 1 || n > 65535 {
		c.failf("%d is not a port; use 1-65535", n)
	}
}

// host checks a fully qualified host name. A wildcard stands for, or begins, the
// first label: "*", "*.example.com", "*-api.example.com".
func (c *checker) host(h string, wildcard bool) {
	name := strings.TrimSuffix(h, ".")
	if h == "*" && wildcard {
		return
	}
	if why := badHost(name, wildcard); why != "" {
		c.failf("%q is not a host name: %s", clip(h), why)
	}
}

func badHost(name string, wildcard bool) string {
	switch {
	case name == "":
		return "it is empty"
	case len(name) > 253:
		return "it is longer than 253 characters"
	}
	labels := strings.Split(name, ".")
	for i, l := range labels {
		if i == 0 && wildcard && strings.HasPrefix(l, "*") {
			l = strings.TrimPrefix(strings.TrimPrefix(l, "*"), "-")
			if l == "" && len(labels) > 1 {
				continue
			}
		}
		switch {
		case l == "":
			return "it has an empty label; remove the dot"
		case strings.Contains(l, "*"):
			return "a wildcard may only stand at the start, as in *.example.com"
		case len(validation.IsDNS1123Label(strings.ToLower(l))) > 0:
			return fmt.Sprintf("label %q must be letters, digits and inner hyphens, at most 63", clip(l))
		}
	}
	return ""
}

// address checks an IP or a host name.
func (c *checker) address(a string) {
	if _, err := netip.ParseAddr(a); err != nil {
		c.host(a, false)
	}
}

// hostPort checks "HOST:PORT" with an IP (IPv6 in brackets) or a name as host.
func (c *checker) hostPort(s string) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		c.failf("%q has no port; use HOST:PORT", clip(s))
		return
	}
	var n int64
	if _, err := fmt.Sscanf(s[i+1:], "%d", &n); err != nil || fmt.Sprint(n) != s[i+1:] {
		c.failf("%q has no port number after the colon; use HOST:PORT", clip(s))
		return
	}
	c.port(n)
	c.address(strings.TrimSuffix(strings.TrimPrefix(s[:i], "["), "]"))
}

// namespace checks the name of a namespace.
func (c *checker) namespace(ns string) {
	if len(validation.IsDNS1123Label(ns)) > 0 {
		c.failf("%q is not a namespace; use lower-case letters, digits and inner hyphens, at most 63", clip(ns))
	}
}

// exportTo checks a list of namespaces and the signs for all, own and none.
func (c *checker) exportTo(list []string) {
	for i, e := range list {
		at := &checker{path: fmt.Sprintf("%s[%d]", c.path, i), found: c.list()}
		switch e {
		case "*", ".", "~":
			if len(list) > 1 && e != "." {
				at.failf("%q stands for itself; remove it or the other entries", e)
			}
		default:
			at.namespace(e)
		}
		if slices.Contains(list[:i], e) {
			at.failf("%q is there twice; remove one", clip(e))
		}
	}
}

// labels checks a selector: an entry that no label can match is a mistake.
func (c *checker) labels(field string, sel map[string]string) {
	for k, v := range sel {
		if len(validation.IsQualifiedName(k)) > 0 {
			c.key(field, k).failf("%q is not a label key", clip(k))
		}
		if len(validation.IsValidLabelValue(v)) > 0 {
			c.key(field, k).failf("%q is not a label value; no workload can have it", clip(v))
		}
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
