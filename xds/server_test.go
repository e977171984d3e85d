package xds

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// settle lets everything happen that is going to, clients' answers included.
func settle(clients ...*client) {
	for {
		time.Sleep(2 * time.Second)
		synctest.Wait()
		again := false
		for _, c := range clients {
			again = c.pump() || again
		}
		if !again {
			return
		}
	}
}

func bothProtocols(t *testing.T, f func(t *testing.T, delta bool)) {
	for name, delta := range map[string]bool{"state of the world": false, "delta": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(t, delta) })
		})
	}
}

func TestOneProxyHearsTheMesh(t *testing.T) {
	bothProtocols(t, func(t *testing.T, delta bool) {
		w := newWorld(t, nil)
		defer w.stop()
		w.put("east", "cart", svc{pods: []string{"10.0.0.1", "10.0.0.2"}})
		settle()
		c := w.client(delta, labNode("10.9.9.9", "east", "net-east", "shop", nil))
		defer c.close()
		c.subscribe(TypeCDS, true, nil, nil)
		settle(c)
		c.subscribe(TypeEDS, false, []string{"outbound|80||cart.shop.svc.cluster.local"}, nil)
		c.subscribe(TypeLDS, true, nil, nil)
		settle(c)
		c.subscribe(TypeRDS, false, []string{"80"}, nil)
		settle(c)
		require.Equal(t, []string{
			"cds BlackHoleCluster,outbound|80||cart.shop.svc.cluster.local",
			"eds outbound|80||cart.shop.svc.cluster.local",
			"lds svc_cart.shop.svc.cluster.local,virtualInbound",
			"rds 80",
		}, c.log)
		c.log = nil
		w.put("east", "cart", svc{pods: []string{"10.0.0.1"}})
		settle(c)
		require.Equal(t, []string{"eds outbound|80||cart.shop.svc.cluster.local"}, c.log)
	})
}
