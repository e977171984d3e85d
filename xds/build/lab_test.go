package build

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/testenv/validate"
)

// lab is a mesh to try generators on. Its primary is c1.
type lab struct {
	store *registry.Store
	sinks map[mesh.ClusterID]registry.Sink
	last  registry.Change
	// known are the services that random updates made, to change only their pods.
	known map[mesh.ClusterID][]registry.ServiceState
}

func newLab(settings *meshconfig.MeshConfig, clusters ...mesh.ClusterID) *lab {
	l := &lab{sinks: map[mesh.ClusterID]registry.Sink{}, known: map[mesh.ClusterID][]registry.ServiceState{}}
	l.store = registry.NewStore(registry.Config{Primary: "c1", Settings: mesh.Settings{Mesh: settings}})
	for _, id := range append([]mesh.ClusterID{"c1"}, clusters...) {
		l.sinks[id] = l.store.NewSink(id)
		l.sinks[id].Replace(registry.Update{Cluster: &registry.ClusterState{}})
	}
	l.store.OnChange(func(c registry.Change) { l.last = c })
	return l
}

func (l *lab) in() Inputs { return Inputs{Catalog: l.store.Catalog(), Endpoints: l.store} }

func (l *lab) services(id mesh.ClusterID, list ...registry.ServiceState) {
	l.sinks[id].Apply(registry.Update{Services: list})
}

func (l *lab) listener(t *testing.T, v View, name string) proto.Message {
	t.Helper()
	m, err := Listeners{}.Build(l.in(), v, name)
	require.NoError(t, err)
	if m != nil {
		require.NoError(t, validate.Options{GRPC: v.Dialect == mesh.DialectGRPC}.Message(m))
	}
	return m
}

func (l *lab) routes(t *testing.T, v View, name string) proto.Message {
	t.Helper()
	m, err := Routes{}.Build(l.in(), v, name)
	require.NoError(t, err)
	if m != nil {
		require.NoError(t, validate.Message(m))
	}
	return m
}

// labService is a Kubernetes Service NAME.NS with virtual IPs; edits change it.
func labService(name, ns string, ports []mesh.Port, vips []string, edits ...func(*mesh.Definition)) registry.ServiceState {
	d := &mesh.Definition{Name: name, Ports: ports, Selector: map[string]string{"app": name}}
	for _, a := range vips {
		d.Addresses = append(d.Addresses, netip.MustParseAddr(a))
	}
	for _, e := range edits {
		e(d)
	}
	host := mesh.Hostname(name + "." + ns + ".svc.cluster.local")
	return registry.ServiceState{Key: mesh.ServiceKey{Namespace: ns, Hostname: host}, Definition: d}
}

func labHeadless(d *mesh.Definition) { d.Resolution = mesh.ResolutionPassthrough }
func labExport(to ...string) func(*mesh.Definition) {
	return func(d *mesh.Definition) { d.ExportTo = to }
}
func labAlias(to mesh.Hostname) func(*mesh.Definition) {
	return func(d *mesh.Definition) { d.Resolution, d.ExternalName, d.Selector = mesh.ResolutionAlias, to, nil }
}
func labAge(year int) func(*mesh.Definition) {
	return func(d *mesh.Definition) { d.Created = time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC) }
}

// labPods adds a pod per address to every port of the service.
func labPods(s registry.ServiceState, id mesh.ClusterID, network mesh.NetworkID, addrs ...string) registry.ServiceState {
	for _, a := range addrs {
		w := &mesh.Workload{Cluster: id, Namespace: s.Key.Namespace, Name: "pod-" + a, Kind: "Pod", NetworkLabel: network, MTLS: true,
			Addresses: []netip.Addr{netip.MustParseAddr(a)}, Labels: s.Definition.Selector}
		for _, p := range s.Definition.Ports {
			s.Endpoints = append(s.Endpoints, mesh.Endpoint{Addr: w.Addresses[0], Port: p.Number, PortName: p.Name, Health: mesh.HealthReady, Workload: w})
		}
	}
	return s
}

func labPort(name string, number uint16, p mesh.Protocol) mesh.Port {
	return mesh.Port{Name: name, Number: number, Protocol: p, TargetPort: number}
}

func labPorts(p ...mesh.Port) []mesh.Port { return p }

// labSidecar is the view of an Istio sidecar of namespace shop in c1.
func labSidecar(edits ...func(*View)) View {
	v := View{Kind: mesh.ProxySidecar, Cluster: "c1", Namespace: "shop", Domain: DefaultDomain, IPv4: true, Interception: mesh.InterceptRedirect}
	for _, e := range edits {
		e(&v)
	}
	return v
}
