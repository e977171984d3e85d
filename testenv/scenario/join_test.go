package scenario

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/isthmus-mesh/isthmus/multicluster"
)

// TestCreateRemoteSecret joins clusters as users do: with what
// `isthmus create-remote-secret` makes.
func TestCreateRemoteSecret(t *testing.T) {
	w := NewWorld(t, "east", "west", "south")
	w.Apply("west", Service("web")+Pods("web", true, "10.2.0.1"))
	w.Apply("south", Service("web")+Pods("web", true, "10.3.0.1"))
	w.Serve()
	p := w.Proxy("east", "", true)
	join := func(cluster string, lifetime time.Duration) {
		c := w.Clusters[cluster]
		secret, err := multicluster.CreateRemoteSecret(w.ctx, multicluster.RemoteSecretOptions{
			Client: c.Client(), RESTConfig: c.REST(), Name: cluster, CreateReader: true, TokenLifetime: lifetime})
		require.NoError(t, err)
		w.PutSecret(secret)
		w.Plane.AwaitHealth(cluster, multicluster.HealthOK)
		require.Empty(t, w.problems(cluster), "the account may read everything")
	}
	join("west", 0)
	w.Hears(p, Upstream("web"), "10.2.0.1:8080 1")
	join("south", time.Hour)
	w.Hears(p, Upstream("web"), "10.2.0.1:8080 1", "10.3.0.1:8080 1")
	require.Empty(t, w.Plane.Refusals())
}
