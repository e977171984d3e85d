package build

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"unique"
)

// Labels is a comparable handle of a set of labels: handles of equal sets are
// equal. The zero value is the empty set.
type Labels struct{ h unique.Handle[string] }

// MakeLabels interns the labels with the given keys; those that the set does not
// have are left out.
func MakeLabels(labels map[string]string, keys []string) Labels {
	kept := map[string]string{}
	for _, k := range keys {
		if v, ok := labels[k]; ok {
			kept[k] = v
		}
	}
	if len(kept) == 0 {
		return Labels{}
	}
	b, err := json.Marshal(kept)
	if err != nil {
		panic(err) // text always encodes
	}
	return Labels{unique.Make(string(b))}
}

// Map returns the labels behind the handle.
func (l Labels) Map() map[string]string {
	if l == (Labels{}) {
		return nil
	}
	var m map[string]string
	if err := json.Unmarshal([]byte(l.h.Value()), &m); err != nil {
		panic(err) // only MakeLabels makes handles
	}
	return m
}

// Only keeps the labels with the given keys.
func (l Labels) Only(keys []string) Labels {
	if l == (Labels{}) || len(keys) == 0 {
		return Labels{}
	}
	return MakeLabels(l.Map(), keys)
}

// And joins two sets of which neither contradicts the other.
func (l Labels) And(o Labels) Labels {
	if l == o || o == (Labels{}) {
		return l
	}
	if l == (Labels{}) {
		return o
	}
	m := l.Map()
	maps.Copy(m, o.Map())
	return MakeLabels(m, slices.Collect(maps.Keys(m)))
}

// ObjectName names a configuration object whose kind is known.
type ObjectName struct{ Namespace, Name string }

// String renders NAMESPACE/NAME, the empty string for the zero value.
func (n ObjectName) String() string {
	if n == (ObjectName{}) {
		return ""
	}
	return n.Namespace + "/" + n.Name
}

// ObjectNames is a comparable handle of a list of object names, in order.
type ObjectNames struct{ h unique.Handle[string] }

// MakeObjectNames interns a list.
func MakeObjectNames(names []ObjectName) ObjectNames {
	if len(names) == 0 {
		return ObjectNames{}
	}
	parts := make([]string, len(names))
	for i, n := range names {
		parts[i] = n.String()
	}
	return ObjectNames{unique.Make(strings.Join(parts, ","))}
}

// List returns the names behind the handle.
func (o ObjectNames) List() []ObjectName {
	if o == (ObjectNames{}) {
		return nil
	}
	var out []ObjectName
	for part := range strings.SplitSeq(o.h.Value(), ",") {
		ns, name, _ := strings.Cut(part, "/")
		out = append(out, ObjectName{ns, name})
	}
	return out
}

// Has reports whether a name is in the list.
func (o ObjectNames) Has(n ObjectName) bool { return slices.Contains(o.List(), n) }

// labelKeys collects keys of labels, sorted and each once.
type labelKeys map[string]struct{}

func (k labelKeys) addAll(labels map[string]string) {
	for key := range labels {
		k[key] = struct{}{}
	}
}

func (k labelKeys) sorted() []string { return slices.Sorted(maps.Keys(k)) }
