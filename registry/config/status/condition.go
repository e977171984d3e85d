package status

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/registry/config"
)

// ConditionType is the condition of the default revision; see [TypeOf].
const ConditionType = "isthmus.io/Accepted"

// Reasons of the condition.
const (
	// ReasonRefused: nothing of the object as it stands is served.
	ReasonRefused = "Refused"
	// ReasonPartsLeftOut: the object is served without some of its parts.
	ReasonPartsLeftOut = "PartsLeftOut"
)

// Bounds of a message: anybody may read it with every list of objects.
const (
	maxParts = 10  // parts that are told; of others, how many
	maxPart  = 300 // characters of what is told of one
)

// TypeOf is the type of the condition of a revision.
func TypeOf(revision string) string {
	if config.DefaultRevision(revision) {
		return ConditionType
	}
	return revision + "." + ConditionType
}

// Condition is what is said of one generation of an object that is not served as
// written.
type Condition struct {
	Reason, Message string
	Generation      int64
}

// refusal is the condition of an object that is refused for an error of
// registry/config.
func refusal(err error, generation int64) *Condition {
	var parts []registry.Part
	for _, f := range config.FieldErrors(err) {
		parts = append(parts, registry.Part{Field: f.Field, Message: f.Message})
	}
	if len(parts) == 0 {
		parts = []registry.Part{{Message: err.Error()}}
	}
	return &Condition{Reason: ReasonRefused, Generation: generation,
		Message: "Nothing of this is served, what was read before stays: " + list(parts)}
}

// partly is the condition of an object that is served without parts.
func partly(parts []registry.Part, generation int64) *Condition {
	return &Condition{Reason: ReasonPartsLeftOut, Generation: generation, Message: "Served without " + list(parts)}
}

// list tells what is wrong with each part, within bounds.
func list(parts []registry.Part) string {
	var b strings.Builder
	for i, p := range parts[:min(len(parts), maxParts)] {
		if i > 0 {
			b.WriteString("; ")
		}
		text := p.Message
		if p.Field != "" {
			text = p.Field + ": " + p.Message
		}
		b.WriteString(clip(text))
	}
	if more := len(parts) - maxParts; more > 0 {
		fmt.Fprintf(&b, "; and %d more", more)
	}
	return b.String()
}

// clip makes a text fit for a status: one line of valid characters, not too long.
func clip(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if utf8.RuneCountInString(s) <= maxPart {
		return s
	}
	return string([]rune(s)[:maxPart]) + "..."
}

// Merge puts what is wanted of a condition type into the conditions of an object,
// as they are in its status; nil is no condition of the type. Whatever else is in
// the list stays as it is and where it is. It reports whether anything is
// different; the list it was given is not changed.
func Merge(conditions []any, typ string, want *Condition, now time.Time) (merged []any, changed bool) {
	var have map[string]any
	at := -1
	for i, x := range conditions {
		c, ok := x.(map[string]any)
		if !ok || c["type"] != typ || want != nil && at >= 0 {
			merged = append(merged, x)
			continue
		}
		if have = c; want == nil { // all of them go
			changed = true
			continue
		}
		at = i
		merged = append(merged, nil)
	}
	if want == nil {
		return merged, changed
	}
	next := map[string]any{"type": typ, "status": string(metav1.ConditionFalse), "reason": want.Reason, "message": want.Message,
		"observedGeneration": want.Generation, "lastTransitionTime": now.UTC().Format(time.RFC3339)}
	if at < 0 {
		return append(merged, next), true
	}
	if since, _ := have["lastTransitionTime"].(string); since != "" && have["status"] == next["status"] {
		next["lastTransitionTime"] = since
	}
	merged[at] = next
	return merged, have["status"] != next["status"] || have["reason"] != want.Reason || have["message"] != want.Message ||
		generationOf(have) != want.Generation
}

// generationOf reads the generation of a condition in either of the forms in use:
// a number, or text as JSON of protobuf has it. Definitions that do not know the
// field drop it; then it is 0.
func generationOf(c map[string]any) int64 {
	switch x := c["observedGeneration"].(type) {
	case int64:
		return x
	case float64:
		return int64(x)
	case string:
		n, _ := strconv.ParseInt(x, 10, 64) // 0 if it is no number
		return n
	}
	return 0
}

// find returns the first condition of a type.
func find(conditions []any, typ string) (map[string]any, bool) {
	for _, x := range conditions {
		if c, ok := x.(map[string]any); ok && c["type"] == typ {
			return c, true
		}
	}
	return nil, false
}
