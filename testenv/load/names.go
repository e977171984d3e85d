package load

import (
	"sync"

	"github.com/cespare/xxhash/v2"
)

// nameCache numbers the resource names that a fleet meets, and remembers which
// names follow from a resource by its content: the same bytes reach a thousand
// proxies on the machine of the server under test, so that the client must
// cost little.
type nameCache struct {
	mu     sync.RWMutex
	ids    map[string]uint32
	names  []string
	byHash map[uint64][]uint32
}

func (c *nameCache) id(name []byte) uint32 {
	c.mu.RLock()
	id, ok := c.ids[string(name)]
	c.mu.RUnlock()
	if ok {
		return id
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if id, ok := c.ids[string(name)]; ok {
		return id
	}
	if c.ids == nil {
		c.ids = map[string]uint32{}
	}
	id = uint32(len(c.names)) //nolint:gosec // some thousands
	c.names = append(c.names, string(name))
	c.ids[string(name)] = id
	return id
}

func (c *nameCache) name(id uint32) string {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.names[id]
}

// follow lists the names that a proxy asks for because of a response.
func (c *nameCache) follow(r response) []uint32 {
	out := make([]uint32, 0, len(r.resources))
	for _, x := range r.resources {
		h := xxhash.Sum64(x.body)
		c.mu.RLock()
		ids, ok := c.byHash[h]
		c.mu.RUnlock()
		if !ok {
			for _, n := range namesIn(r.typeURL, x.body) {
				ids = append(ids, c.id([]byte(n)))
			}
			c.mu.Lock()
			if c.byHash == nil {
				c.byHash = map[uint64][]uint32{}
			}
			c.byHash[h] = ids
			c.mu.Unlock()
		}
		out = append(out, ids...)
	}
	return out
}

// nameSet is a set of numbered names, as bits.
type nameSet struct{ words []uint64 }

// add reports whether the name is new.
func (s *nameSet) add(id uint32) bool {
	w, bit := int(id/64), uint64(1)<<(id%64)
	for w >= len(s.words) {
		s.words = append(s.words, 0)
	}
	if s.words[w]&bit != 0 {
		return false
	}
	s.words[w] |= bit
	return true
}

// covers reports whether every name of o is in s.
func (s *nameSet) covers(o *nameSet) bool {
	for i, w := range o.words {
		if i >= len(s.words) && w != 0 || i < len(s.words) && w&^s.words[i] != 0 {
			return false
		}
	}
	return true
}
