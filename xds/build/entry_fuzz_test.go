package build

import (
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/proto"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/registry/config"
	"github.com/isthmus-mesh/isthmus/testenv/validate"
)

// FuzzServiceEntry: whatever ServiceEntry and WorkloadEntry the configuration
// lets through, proxies take what is made of them.
func FuzzServiceEntry(f *testing.F) {
	f.Add(`{"hosts":["*.wiki.example"],"ports":[{"number":443,"name":"tls","protocol":"TLS"}],"resolution":"NONE"}`, `{"address":"192.0.2.1","labels":{"app":"a"}}`)
	f.Add(`{"hosts":["a.example"],"addresses":["10.0.0.0/8"],"ports":[{"number":80,"name":"http","protocol":"HTTP"},{"number":443,"name":"tcp","protocol":"TCP"}],"resolution":"STATIC","location":"MESH_INTERNAL","workloadSelector":{"labels":{"app":"a"}}}`,
		`{"address":"192.0.2.1","labels":{"app":"a"},"serviceAccount":"web","ports":{"http":8080}}`)
	f.Add(`{"hosts":["a.example"],"ports":[{"number":80,"name":"grpc","protocol":"GRPC"}],"resolution":"DNS","endpoints":[{"address":"b.example","weight":7,"locality":"r/z"}]}`, `{}`)
	f.Add(`{"hosts":["a.example"],"ports":[{"number":80,"name":"x","protocol":""}],"resolution":"STATIC","endpoints":[{"address":"unix:///run/a.sock"}]}`, `{}`)
	f.Add(`{"hosts":["*.a.example"],"ports":[{"number":80,"name":"http","protocol":"HTTP"},{"number":443,"name":"tls","protocol":"TLS"},{"number":90,"name":"tcp","protocol":"TCP"}],"resolution":"DYNAMIC_DNS"}`, `{}`)
	f.Fuzz(func(t *testing.T, service, workload string) {
		if len(service)+len(workload) > 4096 {
			return
		}
		objects := map[mesh.ObjectKind]string{mesh.KindServiceEntry: service, mesh.KindWorkloadEntry: workload}
		l := newLab(nil)
		l.services("c1", labService("web", "shop", labPorts(labPort("http", 80, mesh.ProtocolHTTP), labPort("tcp", 443, mesh.ProtocolTCP)), []string{"10.0.0.1"}))
		for kind, spec := range objects {
			k, ok := config.Lookup("networking.istio.io/v1", string(kind))
			if !ok {
				t.Fatal(kind)
			}
			o, err := config.Decode("c1", k, []byte(`{"metadata":{"name":"x","namespace":"shop"},"spec":`+spec+`}`))
			if err != nil {
				continue // refused by name
			}
			l.sinks["c1"].Apply(registry.Update{Objects: []registry.ObjectState{{Key: o.Key, Object: o}}})
		}
		for _, v := range []View{labSidecar(), labSidecar(func(v *View) { v.DNSCapture, v.IPv6 = true, true }), routerOf(nil), labSidecar(dialect(mesh.DialectGRPC))} {
			takesEverything(t, l.in(), v)
		}
	})
}

func takesEverything(t *testing.T, in Inputs, v View) {
	s := validate.Snapshot{Options: validate.Options{GRPC: v.Dialect == mesh.DialectGRPC}}
	add := func(g Generator, name string) proto.Message {
		m, err := g.Build(in, v, name)
		if err != nil || m == nil {
			t.Fatalf("%q of %s is not built: %v", name, v.Dialect, err)
		}
		if err := s.Add(m); err != nil {
			t.Fatal(err)
		}
		return m
	}
	for _, n := range (Listeners{}).List(in, v) {
		for _, r := range routeNames(add(Listeners{}, n)) {
			add(Routes{}, r)
		}
	}
	for _, n := range (Upstreams{}).List(in, v) {
		if u := add(Upstreams{}, n).(*clusterv3.Cluster); u.GetType() == clusterv3.Cluster_EDS {
			add(Assignments{}, u.GetEdsClusterConfig().GetServiceName())
		}
	}
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
	if _, err := (NameTables{}).Build(in, v, ""); err != nil {
		t.Fatal(err)
	}
}
