package xds

import (
	"slices"
	"strings"
	"sync"
	"unicode/utf8"
	"weak"

	"github.com/cespare/xxhash/v2"
)

// NameSet is an immutable set of resource names. Sets are interned: equal sets
// of one server are one pointer, so ten thousand proxies that ask for the same
// thousand names share them.
type NameSet struct {
	sorted []string
	hash   uint64
	// region is the wire form, in the order of whoever sent the set first, that
	// the names are slices of; "" for a set that came about otherwise.
	region string
}

var emptySet = &NameSet{} //nolint:gochecknoglobals // a constant, compared by address

// Len is the number of names.
func (s *NameSet) Len() int { return len(s.sorted) }

// Names returns the names, sorted. The slice is shared: it must not be changed.
func (s *NameSet) Names() []string { return s.sorted }

// Has reports whether the name is in the set.
func (s *NameSet) Has(name string) bool {
	_, ok := slices.BinarySearch(s.sorted, name)
	return ok
}

// minus returns the names of s that o does not have, sorted.
func (s *NameSet) minus(o *NameSet) []string {
	if s == o {
		return nil
	}
	var out []string
	i := 0
	for _, n := range s.sorted {
		for i < len(o.sorted) && o.sorted[i] < n {
			i++
		}
		if i == len(o.sorted) || o.sorted[i] != n {
			out = append(out, n)
		}
	}
	return out
}

// nameSets interns sets. It holds them weakly: a set lives as long as a
// subscription uses it.
type nameSets struct {
	mu       sync.Mutex
	byHash   map[uint64]weak.Pointer[NameSet] // of the sorted names
	byRegion map[uint64]weak.Pointer[NameSet] // of the wire form
	sweepAt  int
}

func newNameSets() *nameSets {
	return &nameSets{byHash: map[uint64]weak.Pointer[NameSet]{}, byRegion: map[uint64]weak.Pointer[NameSet]{}, sweepAt: 256}
}

// of interns a list of names in any order, with or without duplicates.
func (t *nameSets) of(names []string) *NameSet {
	if len(names) == 0 {
		return emptySet
	}
	sorted := slices.Clone(names)
	slices.Sort(sorted)
	return t.intern(&NameSet{sorted: slices.Compact(sorted)})
}

// edit returns the set with some names added and others removed.
func (t *nameSets) edit(s *NameSet, add, remove []string) *NameSet {
	if len(s.sorted) == 0 && len(remove) == 0 {
		return t.of(add)
	}
	gone := make(map[string]struct{}, len(remove))
	for _, n := range remove {
		gone[n] = struct{}{}
	}
	out := make([]string, 0, len(s.sorted)+len(add))
	for _, n := range s.sorted {
		if _, ok := gone[n]; !ok {
			out = append(out, n)
		}
	}
	return t.of(append(out, add...))
}

// ofRegion interns the names in a run of length-delimited fields as it stood in
// a request. Seen before, the run costs one hash and one comparison.
func (t *nameSets) ofRegion(region []byte, hash uint64) (*NameSet, bool) {
	t.mu.Lock()
	s := t.byRegion[hash].Value()
	t.mu.Unlock()
	if s != nil && s.region == string(region) {
		return s, true
	}
	own := string(region)
	names, ok := regionNames(own)
	if !ok {
		return nil, false
	}
	if len(names) == 0 {
		return emptySet, true
	}
	slices.Sort(names)
	s = t.intern(&NameSet{sorted: slices.Compact(names), region: own})
	if s.region != "" {
		t.mu.Lock()
		t.byRegion[xxhash.Sum64String(s.region)] = weak.Make(s)
		t.mu.Unlock()
	}
	return s, true
}

// regionNames reads the strings of a run of fields, as slices of it.
func regionNames(region string) ([]string, bool) {
	// Tags and lengths below 128 are ASCII, so a run that is valid as a whole has
	// valid names only; any other is checked name by name.
	whole := utf8.ValidString(region)
	var out []string
	for off := 0; off < len(region); {
		off++ // the tag is one byte, as the walk that found the run has checked
		size, n := consumeVarint(region[off:])
		if n < 0 || size > uint64(len(region)-off-n) {
			return nil, false
		}
		name := region[off+n : off+n+int(size)]
		if !whole && !utf8.ValidString(name) {
			return nil, false
		}
		out = append(out, name)
		off += n + int(size)
	}
	return out, true
}

// consumeVarint is protowire.ConsumeVarint for strings; n < 0 means malformed.
func consumeVarint(s string) (v uint64, n int) {
	for i := 0; i < len(s) && i < 10; i++ {
		v |= uint64(s[i]&0x7f) << (7 * i)
		if s[i] < 0x80 {
			if i == 9 && s[i] > 1 {
				return 0, -1
			}
			return v, i + 1
		}
	}
	return 0, -1
}

// intern returns the set with the content of s that is already there, or s.
func (t *nameSets) intern(s *NameSet) *NameSet {
	s.hash = hashNames(s.sorted)
	t.mu.Lock()
	defer t.mu.Unlock()
	if have := t.byHash[s.hash].Value(); have != nil && slices.Equal(have.sorted, s.sorted) {
		return have
	}
	t.byHash[s.hash] = weak.Make(s)
	if len(t.byHash)+len(t.byRegion) > t.sweepAt {
		sweep(t.byHash)
		sweep(t.byRegion)
		t.sweepAt = max(256, 2*(len(t.byHash)+len(t.byRegion)))
	}
	return s
}

func sweep(m map[uint64]weak.Pointer[NameSet]) {
	for k, p := range m {
		if p.Value() == nil {
			delete(m, k)
		}
	}
}

// hashNames sums the hashes of the names: adding or removing one is O(1).
func hashNames(names []string) uint64 {
	var h uint64
	for _, n := range names {
		h += xxhash.Sum64String(n)
	}
	return h
}

// sortedUnion merges two sorted lists without duplicates.
func sortedUnion(a, b []string) []string {
	if len(b) == 0 {
		return a
	}
	if len(a) == 0 {
		return b
	}
	out := make([]string, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		switch c := strings.Compare(a[0], b[0]); {
		case c < 0:
			out, a = append(out, a[0]), a[1:]
		case c > 0:
			out, b = append(out, b[0]), b[1:]
		default:
			out, a, b = append(out, a[0]), a[1:], b[1:]
		}
	}
	return append(append(out, a...), b...)
}
