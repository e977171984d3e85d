package file

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	yaml3 "go.yaml.in/yaml/v3"

	"github.com/isthmus-mesh/isthmus/registry/config"
)

// lineOf finds the line of a field in the file. A path that leads nowhere gives
// the line of what it reaches. It parses the document a second time, but only
// for lists and where something is wrong.
func (d *document) lineOf(path ...any) int {
	if len(path) == 0 {
		return d.line + leadingLines(d.text)
	}
	if d.tree == nil {
		d.tree = &yaml3.Node{}
		if yaml3.Unmarshal(d.text, d.tree) != nil {
			d.tree = &yaml3.Node{}
		}
	}
	if len(d.tree.Content) == 0 {
		return d.line
	}
	at := d.tree.Content[0]
	for _, p := range path {
		next := child(at, p)
		if next == nil {
			break
		}
		at = next
	}
	return d.line + max(at.Line-1, 0)
}

func child(n *yaml3.Node, step any) *yaml3.Node {
	if n.Kind == yaml3.AliasNode {
		n = n.Alias
	}
	switch s := step.(type) {
	case int:
		if n.Kind == yaml3.SequenceNode && s >= 0 && s < len(n.Content) {
			return n.Content[s]
		}
	case string:
		if n.Kind == yaml3.MappingNode {
			for i := 0; i+1 < len(n.Content); i += 2 {
				if n.Content[i].Value == s {
					return n.Content[i+1]
				}
			}
		}
	}
	return nil
}

// leadingLines counts the empty lines and comments before a document begins.
func leadingLines(text []byte) int {
	n := 0
	for line := range strings.Lines(string(text)) {
		if s := strings.TrimSpace(line); s != "" && !strings.HasPrefix(s, "#") {
			return n
		}
		n++
	}
	return 0
}

// fieldPath is the path to the field that an error is about, as far as it says.
func fieldPath(err error) []any {
	field := ""
	var fe *config.FieldError
	var wrong *json.UnmarshalTypeError
	switch {
	case errors.As(err, &fe):
		field = fe.Field
	case errors.As(err, &wrong):
		field = wrong.Field
	}
	var out []any
	for part := range strings.FieldsFuncSeq(field, func(r rune) bool { return r == '.' || r == '[' || r == ']' }) {
		if n, err := strconv.Atoi(part); err == nil {
			out = append(out, n)
			continue
		}
		out = append(out, part)
	}
	return out
}

// join writes a path with dots.
func join(path []any) string {
	parts := make([]string, len(path))
	for i, p := range path {
		parts[i] = fmt.Sprint(p)
	}
	return strings.Join(parts, ".")
}
