package xds

import (
	"context"
	"slices"
	"sync"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/isthmus-mesh/isthmus/mesh"
)

const typeShelf = "type.example/Shelf"

// shelf answers with what a test has put on it, and counts who asks. The test
// touches it only while everybody waits; streams ask side by side.
type shelf struct {
	mu      sync.Mutex
	content map[string]string // by resource name
	err     error
	asked   map[string]int // by proxy
}

func (s *shelf) Respond(_ context.Context, p *mesh.Proxy, url string, names []string) ([]NamedAny, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked[p.ID]++
	if s.err != nil {
		return nil, s.err
	}
	var out []NamedAny
	for _, n := range names {
		if text, ok := s.content[n]; ok {
			out = append(out, NamedAny{Name: n, Any: &anypb.Any{TypeUrl: url, Value: []byte(text)}})
		}
	}
	return out, nil
}

// reader is a client that takes what there is of a type, in either protocol.
type reader struct{ *client }

func (r reader) ask(names ...string) {
	if r.delta {
		r.sendDelta(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeShelf, ResourceNamesSubscribe: names})
		return
	}
	r.sendSotW(&discoveryv3.DiscoveryRequest{TypeUrl: typeShelf, ResourceNames: names})
}

// got is what has come since the last call, as texts, and is acknowledged.
func (r reader) got() []string {
	settle()
	out := []string{}
	for b := r.p.take(); b != nil; b = r.p.take() {
		if r.delta {
			var m discoveryv3.DeltaDiscoveryResponse
			require.NoError(r.t, proto.Unmarshal(b, &m))
			for _, x := range m.Resources {
				out = append(out, string(x.Resource.Value))
			}
			r.sendDelta(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeShelf, ResponseNonce: m.Nonce})
			continue
		}
		var m discoveryv3.DiscoveryResponse
		require.NoError(r.t, proto.Unmarshal(b, &m))
		for _, x := range m.Resources {
			out = append(out, string(x.Value))
		}
	}
	slices.Sort(out)
	return out
}

// Refresh asks anew for the streams that match and are subscribed, for no other
// ones, and sends only what has changed.
func TestRefresh(t *testing.T) {
	bothProtocols(t, func(t *testing.T, delta bool) {
		s := &shelf{content: map[string]string{"a": "a1", "b": "b1"}, asked: map[string]int{}}
		w := twoServices(t, func(c *Config) { c.PerProxy = map[string]PerProxy{typeShelf: s} })
		defer w.stop()
		settle()
		join := func(ip string) reader {
			return reader{w.client(delta, labNode(ip, "east", "net-east", "shop", nil))}
		}
		one, two, idle := join("10.9.9.1"), join("10.9.9.2"), join("10.9.9.3")
		defer one.close()
		defer two.close()
		defer idle.close()
		one.ask("a", "b")
		two.ask("a")
		if delta {
			idle.sendDelta(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: TypeCDS})
		} else {
			idle.sendSotW(&discoveryv3.DiscoveryRequest{TypeUrl: TypeCDS})
		}
		require.Equal(t, []string{"a1", "b1"}, one.got())
		require.Equal(t, []string{"a1"}, two.got())

		visited := map[string][]string{}
		w.srv.Subscribed(typeShelf, func(p *mesh.Proxy, names []string) { visited[p.ID] = slices.Sorted(slices.Values(names)) })
		id := func(r reader) string { return "pod-" + r.node.Id[len("sidecar~"):len("sidecar~10.9.9.1")] + ".shop" }
		require.Equal(t, map[string][]string{id(one): {"a", "b"}, id(two): {"a"}}, visited)

		all := func(*mesh.Proxy, []string) bool { return true }
		clear(s.asked)
		w.srv.Refresh(typeShelf, all)
		require.Empty(t, one.got(), "nothing is new")
		require.Empty(t, two.got())
		require.Equal(t, map[string]int{id(one): 1, id(two): 1}, s.asked, "who is not subscribed is not asked for")

		s.content["a"] = "a2"
		w.srv.Refresh(typeShelf, func(p *mesh.Proxy, _ []string) bool { return p.ID == id(two) })
		require.Empty(t, one.got(), "it does not match")
		require.Equal(t, []string{"a2"}, two.got())
		w.srv.Refresh(typeShelf, func(_ *mesh.Proxy, names []string) bool { return slices.Contains(names, "b") })
		if delta {
			require.Equal(t, []string{"a2"}, one.got(), "what is new")
		} else {
			require.Equal(t, []string{"a2", "b1"}, one.got(), "all, because something is new")
		}
		require.Empty(t, two.got())

		// What cannot be told now is told at the next refresh; nothing is taken away.
		s.content["a"], s.err = "a3", ErrWithheld
		w.srv.Refresh(typeShelf, all)
		require.Empty(t, append(one.got(), two.got()...))
		s.err = nil
		w.srv.Refresh("type.example/Other", all)
		require.Empty(t, append(one.got(), two.got()...))
		w.srv.Refresh(typeShelf, all)
		require.Contains(t, one.got(), "a3")
		require.Equal(t, []string{"a3"}, two.got())
	})
}
