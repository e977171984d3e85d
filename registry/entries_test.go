package registry

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
)

func entryObject(id mesh.ClusterID, name string, spec *networking.ServiceEntry) ObjectState {
	k := mesh.ObjectKey{Kind: mesh.KindServiceEntry, Namespace: "shop", Name: name}
	spec.Ports = []*networking.ServicePort{{Name: "http", Number: 80, Protocol: "HTTP", TargetPort: 8080}}
	return ObjectState{k, &mesh.Object{Key: k, Origin: origin(id, k), Spec: spec}}
}

func machineObject(id mesh.ClusterID, name string, spec *networking.WorkloadEntry) ObjectState {
	k := mesh.ObjectKey{Kind: mesh.KindWorkloadEntry, Namespace: "shop", Name: name}
	return ObjectState{k, &mesh.Object{Key: k, Origin: origin(id, k), Spec: spec}}
}

func networksOf(set *EndpointSet) map[string]mesh.NetworkID {
	out := map[string]mesh.NetworkID{}
	for e := range set.All() {
		out[e.Addr.String()] = e.Network
	}
	return out
}

// Where the endpoints of a ServiceEntry are: machines of the primary where they
// say, those of a remote on its network, what is written in the entry where it
// says or nowhere known; pods as always.
func TestNetworksOfMachines(t *testing.T) {
	s := NewStore(Config{Primary: primary})
	app := map[string]string{"app": "a"}
	pod := pod("west", "p1", "10.0.0.1")
	pod.Labels = app
	west := s.NewSink("west")
	west.Replace(Update{Cluster: &ClusterState{Network: "n-west"}, Workloads: []WorkloadState{{Key: "shop/p1", Workload: pod, Health: mesh.HealthReady}},
		Objects: []ObjectState{machineObject("west", "remote", &networking.WorkloadEntry{Address: "192.0.2.3", Labels: app}),
			entryObject("west", "ignored", &networking.ServiceEntry{Hosts: []string{"ignored.example"}})}})
	s.NewSink(primary).Replace(Update{Cluster: &ClusterState{Network: "n-east"}, Objects: []ObjectState{
		machineObject(primary, "plain", &networking.WorkloadEntry{Address: "192.0.2.1", Labels: app}),
		machineObject(primary, "named", &networking.WorkloadEntry{Address: "192.0.2.2", Labels: app, Network: "n9"}),
		entryObject(primary, "selects", &networking.ServiceEntry{Hosts: []string{"a.example"}, Resolution: networking.ServiceEntry_STATIC,
			WorkloadSelector: &networking.WorkloadSelector{Labels: app}}),
		entryObject(primary, "written", &networking.ServiceEntry{Hosts: []string{"b.example"}, Resolution: networking.ServiceEntry_STATIC,
			Endpoints: []*networking.WorkloadEntry{{Address: "192.0.2.8"}, {Address: "192.0.2.9", Network: "n9"}}}),
	}})
	a, b := mesh.ServiceKey{Namespace: "shop", Hostname: "a.example"}, mesh.ServiceKey{Namespace: "shop", Hostname: "b.example"}
	require.Equal(t, map[string]mesh.NetworkID{"10.0.0.1": "n-west", "192.0.2.1": "", "192.0.2.2": "n9", "192.0.2.3": "n-west"}, networksOf(s.Endpoints(a)))
	require.Equal(t, map[string]mesh.NetworkID{"192.0.2.8": "", "192.0.2.9": "n9"}, networksOf(s.Endpoints(b)))
	require.Empty(t, s.Catalog().Host("ignored.example"), "ServiceEntries of a remote do not count")
	require.Nil(t, s.Catalog().Object(mesh.ObjectKey{Kind: mesh.KindWorkloadEntry, Namespace: "shop", Name: "plain"}), "nobody asks for those")

	west.Apply(Update{Cluster: &ClusterState{Network: "n2"}})
	require.Equal(t, map[string]mesh.NetworkID{"10.0.0.1": "n2", "192.0.2.1": "", "192.0.2.2": "n9", "192.0.2.3": "n2"}, networksOf(s.Endpoints(a)))
	west.Close(Drop)
	require.Equal(t, map[string]mesh.NetworkID{"192.0.2.1": "", "192.0.2.2": "n9"}, networksOf(s.Endpoints(a)))
}

// A Kubernetes Service selects machines of its own cluster and namespace.
func TestServicesSelectMachines(t *testing.T) {
	s := NewStore(Config{Primary: primary})
	k := key("web")
	states := map[mesh.ClusterID]Sink{}
	for _, id := range []mesh.ClusterID{primary, "west"} {
		st := service(id, k, "http:80/HTTP")
		st.Definition.Selector = map[string]string{"app": "web"}
		states[id] = s.NewSink(id)
		states[id].Replace(Update{Services: []ServiceState{st}})
	}
	seen := record(s)
	states["west"].Apply(Update{Objects: []ObjectState{machineObject("west", "vm", &networking.WorkloadEntry{Address: "192.0.2.1", ServiceAccount: "web", Labels: map[string]string{"app": "web"}})}})
	require.Equal(t, map[string]mesh.NetworkID{"192.0.2.1": ""}, networksOf(s.Endpoints(k)))
	w := s.Workload(WorkloadKey{"west", netip.MustParseAddr("192.0.2.1")})
	require.Equal(t, mesh.Identity{TrustDomain: mesh.DefaultTrustDomain, Namespace: "shop", ServiceAccount: "web"}, w.Identity)
	changes := seen.take()
	require.Len(t, changes, 1)
	require.Empty(t, changes[0].Objects, "a machine is no policy: no proxy needs to be looked at for it but its own")
	require.Contains(t, changes[0].Workloads, WorkloadKey{"west", netip.MustParseAddr("192.0.2.1")})

	s.SetSettings(mesh.Settings{Mesh: &meshconfig.MeshConfig{TrustDomain: "td"}})
	require.Equal(t, []mesh.Identity{{TrustDomain: "td", Namespace: "shop", ServiceAccount: "web"}}, s.Endpoints(k).Identities())
	states["west"].Apply(Update{Objects: []ObjectState{machineObject("west", "vm", &networking.WorkloadEntry{Address: "192.0.2.1", Labels: map[string]string{"app": "other"}})}})
	require.Zero(t, s.Endpoints(k).Len())
}

// A host that a Service has and a ServiceEntry too is the Service's; the entry
// adds its endpoints, and both are named.
func TestEntryForTheHostOfAService(t *testing.T) {
	s := NewStore(Config{Primary: primary})
	k := key("web")
	sink := s.NewSink(primary)
	sink.Replace(Update{Objects: []ObjectState{entryObject(primary, "e", &networking.ServiceEntry{Hosts: []string{string(k.Hostname)},
		Addresses: []string{"240.0.0.1"}, Resolution: networking.ServiceEntry_STATIC, Endpoints: []*networking.WorkloadEntry{{Address: "192.0.2.1"}}})}})
	require.True(t, s.Catalog().Service(k).Lead.FromEntry())
	require.Empty(t, s.Catalog().Conflicts())

	west := s.NewSink("west")
	west.Replace(Update{Services: []ServiceState{service("west", k, "http:80/HTTP", pod("west", "p", "10.0.0.1"))}})
	svc := s.Catalog().Service(k)
	require.Equal(t, mesh.ClusterID("west"), svc.LeadCluster)
	require.Len(t, svc.In, 1)
	require.Equal(t, map[string]mesh.NetworkID{"10.0.0.1": "", "192.0.2.1": ""}, networksOf(s.Endpoints(k)))
	require.Equal(t, []mesh.Conflict{{Service: k, Field: "ServiceEntry", Winner: "west", Loser: primary,
		Detail: "ServiceEntry shop/e in cluster east defines the host of Service shop/web.shop.svc.cluster.local in cluster west, which counts; the entry adds its endpoints"}}, s.Catalog().Conflicts())

	sink.Apply(Update{Objects: []ObjectState{{Key: mesh.ObjectKey{Kind: mesh.KindServiceEntry, Namespace: "shop", Name: "e"}}}})
	require.Empty(t, s.Catalog().Conflicts(), "the conflict goes with the entry")
	require.Equal(t, map[string]mesh.NetworkID{"10.0.0.1": ""}, networksOf(s.Endpoints(k)))
}
