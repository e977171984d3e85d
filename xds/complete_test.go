package xds

import (
	"context"
	"strings"
	"sync"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// vault adds a secret to routes, for callers of namespace shop once it is known.
type vault struct {
	mu     sync.Mutex
	secret string
}

func (v *vault) set(s string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.secret = s
}

func (v *vault) Complete(_ *mesh.Proxy, caller any, name string, message []byte) ([]byte, string, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if caller != "shop" || name != "80" {
		return message, "", true
	}
	if v.secret == "" {
		return nil, "", false
	}
	more, err := proto.Marshal(&routev3.RouteConfiguration{RequestHeadersToRemove: []string{v.secret}})
	return append(append([]byte(nil), message...), more...), v.secret, err == nil
}

func vaultWorld(t *testing.T, v *vault) *world {
	return twoServices(t, func(c *Config) {
		c.Completers = map[string]Completer{TypeRDS: v}
		c.Authenticate = func(_ context.Context, p *mesh.Proxy) (Credential, error) {
			if p.Namespace == "shop" {
				return Credential{Caller: "shop"}, nil
			}
			return Credential{}, nil
		}
	})
}

// TestAdditionsAreForOne: what is added for one proxy reaches no other and is not
// kept; while it is not known, the resource is withheld from that one, and others
// wait for nothing.
func TestAdditionsAreForOne(t *testing.T) {
	bothProtocols(t, func(t *testing.T, delta bool) {
		v := &vault{}
		w := vaultWorld(t, v)
		defer w.stop()
		settle()
		entitled, other := w.client(delta, labNode("10.9.9.9", "east", "net-east", "shop", nil)), w.client(delta, labNode("10.9.9.8", "east", "net-east", "bank", nil))
		defer entitled.close()
		defer other.close()
		for _, c := range []*client{entitled, other} {
			c.subscribe(TypeRDS, false, []string{"80"}, nil)
		}
		settle(entitled, other)
		require.Empty(t, entitled.log, "not decided yet")
		require.Len(t, other.log, 1)
		plain := other.of(TypeRDS).have["80"]

		told := func(p *mesh.Proxy, caller any) bool { return p.Namespace == "shop" && caller == "shop" }
		for i, secret := range []string{"first", "second"} {
			v.set(secret)
			w.srv.Completed(TypeRDS, "80", told)
			w.srv.Completed(TypeRDS, "81", told)
			w.srv.Completed("no such type", "80", told)
			settle(entitled, other)
			require.Len(t, entitled.log, i+1)
			require.Contains(t, entitled.of(TypeRDS).have["80"], secret)
			require.True(t, strings.HasPrefix(entitled.of(TypeRDS).have["80"], plain))
		}
		require.Len(t, other.log, 1)
		require.Equal(t, plain, other.of(TypeRDS).have["80"])

		w.put("east", "c", svc{ports: []uint16{80}, pods: []string{"10.0.0.3/x"}})
		settle(entitled, other)
		require.Contains(t, entitled.of(TypeRDS).have["80"], "second", "what is shared has changed")
		require.NotContains(t, other.of(TypeRDS).have["80"], "second")

		require.Len(t, entitled.log, 3)
		entitled.close()
		entitled.resume(w)
		settle(entitled, other)
		if delta {
			require.Len(t, entitled.log, 3, "it has what it would be sent")
		}
		require.Contains(t, entitled.of(TypeRDS).have["80"], "second")
	})
}

// TestAdditionsNeedNames: of a type of which a response holds everything, nothing
// can be withheld.
func TestAdditionsNeedNames(t *testing.T) {
	w := twoServices(t, nil)
	defer w.stop()
	c := w.srv.cfg
	c.Completers, c.Metrics = map[string]Completer{TypeCDS: &vault{}}, nil
	_, err := New(c)
	require.ErrorContains(t, err, "a completer for "+TypeCDS)
}
