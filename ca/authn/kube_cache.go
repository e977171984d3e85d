package authn

import (
	"container/list"
	"context"
	"crypto/sha256"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// tokenKey finds a reviewed token. Only the hash of a token is kept.
type tokenKey struct {
	cluster mesh.ClusterID
	sum     [sha256.Size]byte
}

type tokenEntry struct {
	key tokenKey
	// client that answered: an answer of a cluster's former API server says
	// nothing about its present one.
	client kubernetes.Interface
	who    reviewed
	until  time.Time
}

// tokenCache remembers accepted tokens, the least recently used going first
// when it is full. It holds no refusals and no errors.
type tokenCache struct {
	size int

	mu      sync.Mutex
	entries map[tokenKey]*list.Element
	order   *list.List // of *tokenEntry, most recently used first
}

func newTokenCache(size int) *tokenCache {
	return &tokenCache{size: size, entries: map[tokenKey]*list.Element{}, order: list.New()}
}

func (c *tokenCache) get(key tokenKey, client kubernetes.Interface, now time.Time) (reviewed, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	el, ok := c.entries[key]
	if !ok {
		return reviewed{}, false
	}
	e := el.Value.(*tokenEntry)
	if e.client != client || !now.Before(e.until) {
		c.remove(el)
		return reviewed{}, false
	}
	c.order.MoveToFront(el)
	return e.who, true
}

func (c *tokenCache) put(key tokenKey, client kubernetes.Interface, who reviewed, until time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if el, ok := c.entries[key]; ok {
		c.remove(el)
	}
	c.entries[key] = c.order.PushFront(&tokenEntry{key: key, client: client, who: who, until: until})
	for len(c.entries) > c.size {
		c.remove(c.order.Back())
	}
}

// remove drops an element; the caller holds mu.
func (c *tokenCache) remove(el *list.Element) {
	c.order.Remove(el)
	delete(c.entries, el.Value.(*tokenEntry).key)
}

func (c *tokenCache) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.entries)
}

// slots bounds concurrent calls per cluster, so that an API server that hangs
// takes no others with it. A cluster's entry lives while it is in use.
type slots struct {
	size int

	mu sync.Mutex
	by map[mesh.ClusterID]*slot
}

type slot struct {
	tokens chan struct{}
	users  int
}

// acquire waits for a slot of the cluster and returns the function that gives
// it back. The error is that of the context.
func (s *slots) acquire(ctx context.Context, cluster mesh.ClusterID) (release func(), err error) {
	s.mu.Lock()
	if s.by == nil {
		s.by = map[mesh.ClusterID]*slot{}
	}
	sl := s.by[cluster]
	if sl == nil {
		sl = &slot{tokens: make(chan struct{}, s.size)}
		s.by[cluster] = sl
	}
	sl.users++
	s.mu.Unlock()

	leave := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if sl.users--; sl.users == 0 {
			delete(s.by, cluster)
		}
	}
	select {
	case sl.tokens <- struct{}{}:
		return func() { <-sl.tokens; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
