package manifests

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// freeform values are whatever users write: what the chart has there are
// defaults, not all that there may be.
func freeform() []string { return []string{"meshConfig"} }

// UnknownValues lists the values that a chart does not have, by their paths:
// they have no meaning. Maps and lists that are empty in the chart take
// anything.
func UnknownValues(c Chart, values map[string]any) ([]string, error) {
	defaults, err := Defaults(c)
	if err != nil {
		return nil, err
	}
	var out []string
	unknown("", values, defaults, &out)
	return out, nil
}

func unknown(prefix string, values, known map[string]any, out *[]string) {
	for _, key := range slices.Sorted(maps.Keys(values)) {
		at := prefix + key
		was, ok := known[key]
		if !ok {
			*out = append(*out, at)
			continue
		}
		table, isTable := was.(map[string]any)
		given, isGiven := values[key].(map[string]any)
		if isTable && isGiven && len(table) > 0 && !slices.Contains(freeform(), at) {
			unknown(at+".", given, table, out)
		}
	}
}

// Set sets a value by its path, such as "global.network"; dots within a name
// are written "\.". What is on the way and is no map is replaced.
func Set(values map[string]any, at string, value any) {
	keys := splitPath(at)
	for _, key := range keys[:len(keys)-1] {
		next, ok := values[key].(map[string]any)
		if !ok {
			next = map[string]any{}
			values[key] = next
		}
		values = next
	}
	values[keys[len(keys)-1]] = value
}

// Get returns a value by its path.
func Get(values map[string]any, at string) (any, bool) {
	var x any = values
	for _, key := range splitPath(at) {
		m, ok := x.(map[string]any)
		if !ok {
			return nil, false
		}
		if x, ok = m[key]; !ok {
			return nil, false
		}
	}
	return x, true
}

// Text returns a value as text, "" if it is not there.
func Text(values map[string]any, at string) string {
	x, ok := Get(values, at)
	if !ok || x == nil {
		return ""
	}
	return fmt.Sprint(x)
}

// Merge puts values over others: maps are merged, everything else is replaced.
// It returns a new map.
func Merge(base, over map[string]any) map[string]any {
	out := clone(base)
	for k, v := range over {
		a, isMap := out[k].(map[string]any)
		b, overMap := v.(map[string]any)
		if isMap && overMap {
			out[k] = Merge(a, b)
			continue
		}
		if overMap {
			v = clone(b)
		}
		out[k] = v
	}
	return out
}

func splitPath(at string) []string {
	const hidden = "\x00"
	parts := strings.Split(strings.ReplaceAll(at, `\.`, hidden), ".")
	for i := range parts {
		parts[i] = strings.ReplaceAll(parts[i], hidden, ".")
	}
	return parts
}
