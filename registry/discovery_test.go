package registry

import (
	"testing"

	"github.com/stretchr/testify/require"
	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// TestDiscoverySelectors: what is in a namespace comes into the mesh with its
// label, in each cluster by itself, and leaves with it; nothing need be said again.
func TestDiscoverySelectors(t *testing.T) {
	s := NewStore(Config{Primary: primary, Settings: mesh.Settings{Mesh: &meshconfig.MeshConfig{
		DiscoverySelectors: []*meshconfig.LabelSelector{{MatchLabels: map[string]string{"mesh": "in"}}}}}})
	namespace := func(labels map[string]string) ObjectState {
		k := namespaceKey("shop")
		return ObjectState{k, &mesh.Object{Key: k, Labels: labels}}
	}
	in, out := map[string]string{"mesh": "in"}, map[string]string{"mesh": "out"}
	web := key("web")
	east, west := s.NewSink(primary), s.NewSink("west")
	podEast, podWest := pod(primary, "e", "10.0.0.1"), pod("west", "w", "10.1.0.1")
	full := func(id mesh.ClusterID, p *mesh.Workload, labels map[string]string) Update {
		return Update{Cluster: &ClusterState{}, Services: []ServiceState{service(id, web, "http:80/HTTP", p)},
			Workloads: []WorkloadState{{Key: "shop/" + p.Name, Workload: p}}, Objects: []ObjectState{object("gw", "1", "x"), namespace(labels)}}
	}
	gateway := object("gw", "1", "x").Key
	east.Replace(full(primary, podEast, nil))
	west.Replace(full("west", podWest, in))
	require.Equal(t, 1, s.Endpoints(web).Len(), "the label counts where it is")
	require.Nil(t, s.Catalog().Object(gateway))
	require.Nil(t, s.Workload(WorkloadKey{primary, podEast.Addresses[0]}))

	east.Apply(Update{Services: []ServiceState{service(primary, web, "http:80/HTTP", podEast, pod(primary, "e2", "10.0.0.2"))}})
	east.Apply(Update{Objects: []ObjectState{namespace(in)}})
	require.Equal(t, 3, s.Endpoints(web).Len(), "with what changed meanwhile")
	require.NotNil(t, s.Catalog().Object(gateway))
	require.NotNil(t, s.Workload(WorkloadKey{primary, podEast.Addresses[0]}))

	west.Apply(Update{Objects: []ObjectState{namespace(out)}})
	require.Equal(t, 2, s.Endpoints(web).Len())
	s.SetSettings(mesh.Settings{})
	require.Equal(t, 3, s.Endpoints(web).Len(), "without selectors everything is in")
}
