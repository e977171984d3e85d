package xds

import (
	"testing"
	"testing/synctest"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/stretchr/testify/require"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/isthmus-mesh/isthmus/xds/build"
)

// agent asks for its name table as an agent does: an empty request, and answers
// to what comes.
type agent struct {
	*client
	nonce string
}

func (a *agent) send(nonce, problem string) {
	var detail *rpcstatus.Status
	if problem != "" {
		detail = &rpcstatus.Status{Code: 13, Message: problem}
	}
	if a.delta {
		a.sendDelta(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: build.TypeNameTable, ResponseNonce: nonce, ErrorDetail: detail})
	} else {
		a.sendSotW(&discoveryv3.DiscoveryRequest{TypeUrl: build.TypeNameTable, ResponseNonce: nonce, ErrorDetail: detail})
	}
	settle()
}

// table returns the table that was sent, "" if nothing was.
func (a *agent) table() string {
	b := a.p.take()
	if b == nil {
		return ""
	}
	require.Nil(a.t, a.p.take())
	if a.delta {
		var r discoveryv3.DeltaDiscoveryResponse
		require.NoError(a.t, proto.Unmarshal(b, &r))
		require.Len(a.t, r.Resources, 1)
		require.Empty(a.t, r.Resources[0].Name)
		require.Empty(a.t, r.RemovedResources)
		require.Equal(a.t, build.TypeNameTable, r.Resources[0].Resource.TypeUrl)
		a.nonce = r.Nonce
		return string(r.Resources[0].Resource.Value)
	}
	var r discoveryv3.DiscoveryResponse
	require.NoError(a.t, proto.Unmarshal(b, &r))
	require.Len(a.t, r.Resources, 1)
	require.Equal(a.t, build.TypeNameTable, r.Resources[0].TypeUrl)
	a.nonce = r.Nonce
	return string(r.Resources[0].Value)
}

// TestNameTableOfAnAgent: an empty request gets the one table, an acceptance
// nothing, a change of a name the new table, and a refused table is not repeated.
func TestNameTableOfAnAgent(t *testing.T) {
	bothProtocols(t, func(t *testing.T, delta bool) {
		w := newWorld(t, func(c *Config) { c.Generators = append(c.Generators, build.NameTables{}) })
		defer w.stop()
		w.put("east", "a", svc{pods: []string{"10.0.0.1/x"}})
		w.put("east", "store", svc{headless: true, pods: []string{"10.0.0.2/x"}})
		settle()
		a := &agent{client: w.client(delta, labNode("10.9.9.9", "east", "net-east", "shop", nil))}
		defer a.close()
		a.send("", "")
		require.Contains(t, a.table(), "10.0.0.2")
		a.send(a.nonce, "")
		require.Empty(t, a.table())

		w.put("east", "a", svc{pods: []string{"10.0.0.5/x"}, labels: map[string]string{"v": "2"}})
		settle()
		require.Empty(t, a.table(), "no name has changed")

		w.put("east", "store", svc{headless: true, pods: []string{"10.0.0.2/x", "10.0.0.3/x"}})
		settle()
		require.Contains(t, a.table(), "10.0.0.3")
		a.send(a.nonce, "cannot take it")
		require.Empty(t, a.table())
		w.put("west", "more", svc{headless: true, pods: []string{"10.1.0.1/x"}})
		settle()
		require.Empty(t, a.table(), "on another network: nothing changes")

		w.drop("east", "store")
		settle()
		b := a.p.take()
		require.NotNil(t, b, "an empty table is a table")
		synctest.Wait()
		require.Nil(t, a.p.take())
	})
}
