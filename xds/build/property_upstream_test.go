package build

import (
	"bytes"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	meshconfig "istio.io/api/mesh/v1alpha1"
	"pgregory.net/rapid"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/testenv/validate"
)

// A mix is a random mesh for upstreams and assignments: several networks with
// and without gateways, endpoints of every kind, settings that matter to them.
// The ranges are small, so that things meet.
var (
	mixClusters = []mesh.ClusterID{"c1", "c2", "c3"}
	mixNetworks = []mesh.NetworkID{"", "n1", "n2"}
	mixHosts    = []mesh.Hostname{"x.a.svc.cluster.local", "kubernetes.default.svc.cluster.local", "istiod.istio-system.svc.cluster.local"}
	mixNumbers  = []uint16{80, 443}
	mixDialects = []mesh.Dialect{mesh.DialectIstio, mesh.DialectEnvoy, mesh.DialectGRPC}
)

func mixOf[T any](t *rapid.T, label string, from ...T) T {
	return rapid.SampledFrom(from).Draw(t, label)
}

func mixSettings(t *rapid.T) mesh.Settings {
	m := &meshconfig.MeshConfig{
		TrustDomain:                    "td",
		RootNamespace:                  mixRoot,
		TrustDomainAliases:             mixOf(t, "aliases", nil, []string{"old", "td"}),
		EnableAutoMtls:                 mixOf(t, "auto mTLS", nil, nil, wrapperspb.Bool(true), wrapperspb.Bool(false)),
		ConnectTimeout:                 mixOf(t, "timeout", nil, durationpb.New(time.Second), durationpb.New(0)),
		DefaultServiceExportTo:         mixOf(t, "default export", nil, nil, []string{"."}),
		DefaultDestinationRuleExportTo: mixOf(t, "default rule export", nil, nil, []string{"."}),
		OutboundClusterStatName:        mixOf(t, "outbound stat", "", "", "%SERVICE%_%SERVICE_PORT_NAME%_%SUBSET_NAME%"),
		InboundClusterStatName:         mixOf(t, "inbound stat", "", "", "%SERVICE_NAME%_%SERVICE_PORT_NAME%_%TARGET_PORT%"),
		InboundTrafficPolicy:           &meshconfig.MeshConfig_InboundTrafficPolicy{Mode: mixOf(t, "inbound policy", meshconfig.MeshConfig_InboundTrafficPolicy_PASSTHROUGH, meshconfig.MeshConfig_InboundTrafficPolicy_LOCALHOST)},
		DefaultConfig:                  &meshconfig.ProxyConfig{DiscoveryAddress: mixOf(t, "discovery", "", "istiod.istio-system.svc:15012")},
	}
	if rapid.Bool().Draw(t, "service settings") {
		m.ServiceSettings = []*meshconfig.MeshConfig_ServiceSettings{{
			Hosts:    mixOf(t, "setting hosts", []string{"*.a.svc.cluster.local"}, []string{"kubernetes.default.svc.cluster.local", "*"}),
			Settings: &meshconfig.MeshConfig_ServiceSettings_Settings{ClusterLocal: rapid.Bool().Draw(t, "cluster-local")},
		}}
	}
	n := &meshconfig.MeshNetworks{Networks: map[string]*meshconfig.Network{}}
	if rapid.Bool().Draw(t, "mesh networks") {
		n.Networks["n2"] = &meshconfig.Network{Gateways: []*meshconfig.Network_IstioNetworkGateway{
			{Gw: &meshconfig.Network_IstioNetworkGateway_Address{Address: mixOf(t, "address", "192.0.2.1", "gw.example")}, Port: 15443}}}
	}
	return mesh.Settings{Mesh: m, Networks: n}
}

func mixService(t *rapid.T, id mesh.ClusterID) registry.ServiceState {
	st := registry.ServiceState{Key: mesh.ServiceKey{Namespace: mixOf(t, "namespace", "a", "b"), Hostname: rapid.SampledFrom(mixHosts).Draw(t, "host")}}
	if rapid.IntRange(0, 7).Draw(t, "gone") == 0 {
		return st
	}
	d := &mesh.Definition{
		Name:         "svc",
		Resolution:   mixOf(t, "resolution", mesh.ResolutionStatic, mesh.ResolutionStatic, mesh.ResolutionPassthrough, mesh.ResolutionAlias),
		Private:      rapid.IntRange(0, 7).Draw(t, "private") == 0,
		ExportTo:     mixOf(t, "exportTo", nil, nil, []string{"*"}, []string{"."}, []string{"b"}, []string{"~"}),
		NodeLocal:    rapid.IntRange(0, 4).Draw(t, "node local") == 0,
		MeshExternal: rapid.IntRange(0, 4).Draw(t, "external") == 0,
		Identities:   mixOf(t, "identities", nil, nil, []string{"spiffe://td/ns/a/sa/extra", "a-name"}),
	}
	if rapid.IntRange(0, 3).Draw(t, "vip") == 0 {
		d.Addresses = []netip.Addr{netip.MustParseAddr("10.96.0.1")}
	}
	if rapid.IntRange(0, 3).Draw(t, "entry") == 0 {
		d.Origin.Kind = string(mesh.KindServiceEntry)
		d.Resolution = mixOf(t, "entry resolution", mesh.ResolutionStatic, mesh.ResolutionPassthrough, mesh.ResolutionDNS, mesh.ResolutionDNSRoundRobin)
	}
	for range rapid.IntRange(1, 3).Draw(t, "ports") {
		d.Ports = append(d.Ports, mesh.Port{Name: mixOf(t, "port name", "one", "two"), Number: rapid.SampledFrom(mixNumbers).Draw(t, "number"),
			Protocol: mixOf(t, "protocol", mesh.ProtocolHTTP, mesh.ProtocolGRPC, mesh.ProtocolTCP, mesh.ProtocolAuto, mesh.ProtocolUDP)})
	}
	st.Definition, st.Endpoints = d, mixPods(t, id)
	return st
}

func mixPods(t *rapid.T, id mesh.ClusterID) []mesh.Endpoint {
	var out []mesh.Endpoint
	for range rapid.IntRange(0, 5).Draw(t, "pods") {
		addr := netip.MustParseAddr(mixOf(t, "pod address", "10.0.0.1", "10.0.0.2", "::ffff:10.0.0.3", "fd00::1", "203.0.113.1"))
		w := &mesh.Workload{Cluster: id, Namespace: "a", Name: "p", WorkloadName: "p-v1", Kind: mixOf(t, "kind", "Pod", "Pod", ""),
			Addresses: []netip.Addr{addr}, NetworkLabel: rapid.SampledFrom(mixNetworks).Draw(t, "pod network"),
			Locality: mesh.Locality{Region: mixOf(t, "region", "", "r1", "r2"), Zone: mixOf(t, "zone", "", "z")},
			Identity: mesh.Identity{TrustDomain: mixOf(t, "trust domain", "td", "other"), Namespace: "a", ServiceAccount: mixOf(t, "account", "s1", "s2")},
			MTLS:     rapid.Bool().Draw(t, "mTLS"), Node: mixOf(t, "pod node", "", "node1"),
			Host:   mixOf(t, "name", "", "", "name.example", "unix:///run/a.sock"),
			Labels: mixOf(t, "labels", nil, map[string]string{"app": "shop", "version": "v1"}, map[string]string{"service.istio.io/canonical-revision": "latest"}),
		}
		if w.Host != "" {
			addr, w.Addresses = netip.Addr{}, nil
		}
		for _, name := range []string{"one", "two"} {
			out = append(out, mesh.Endpoint{Addr: addr, Port: mixOf(t, "target", uint16(8080), 15443, 0), PortName: name, Workload: w,
				Weight: mixOf(t, "weight", uint32(0), 1, 7, 1<<32-1),
				Health: mixOf(t, "health", mesh.HealthReady, mesh.HealthReady, mesh.HealthNotReady, mesh.HealthDraining, mesh.HealthUnknown)})
		}
	}
	return out
}

func mixCluster(t *rapid.T, id mesh.ClusterID) *registry.ClusterState {
	c := &registry.ClusterState{Network: rapid.SampledFrom(mixNetworks).Draw(t, "cluster network")}
	for range rapid.IntRange(0, 3).Draw(t, "gateways") {
		c.Gateways = append(c.Gateways, mesh.NetworkGateway{Network: mixOf(t, "gateway network", mesh.NetworkID("n1"), "n2"), Cluster: id,
			Host: mixOf(t, "gateway host", "203.0.113.1", "203.0.113.2", "fd00::99", "gw.example"), Port: mixOf(t, "gateway port", uint16(15443), 15443, 0)})
	}
	return c
}

func mixChange(t *rapid.T, l *lab) {
	switch rapid.IntRange(0, 13).Draw(t, "what changes") {
	case 0:
		l.store.SetSettings(mixSettings(t))
	case 1:
		l.store.SetResolved("gw.example", []netip.Addr{netip.MustParseAddr(mixOf(t, "resolved", "203.0.113.7", "203.0.113.1"))})
	case 2:
		id := rapid.SampledFrom(mixClusters).Draw(t, "cluster")
		l.sinks[id].Apply(registry.Update{Cluster: mixCluster(t, id)})
	case 3:
		l.sinks["c1"].Apply(registry.Update{Objects: []registry.ObjectState{drawGateway(t)}})
	case 4:
		id := rapid.SampledFrom(mixClusters[1:]).Draw(t, "cluster that leaves")
		l.sinks[id].Close(registry.Drop)
		l.sinks[id] = l.store.NewSink(id)
		l.sinks[id].Replace(registry.Update{Cluster: mixCluster(t, id), Services: []registry.ServiceState{mixService(t, id)}})
	case 5, 6, 7:
		id := rapid.SampledFrom(mixClusters).Draw(t, "cluster")
		l.services(id, mixService(t, id))
	case 13:
		l.sinks["c1"].Apply(registry.Update{Objects: []registry.ObjectState{mixSidecar(t)}})
	case 10, 11, 12:
		l.sinks["c1"].Apply(registry.Update{Objects: []registry.ObjectState{mixRule(t)}})
	default:
		mixPodChange(t, l)
	}
}

// mixPodChange changes the endpoints of a service and nothing else.
func mixPodChange(t *rapid.T, l *lab) {
	list := l.in().Catalog.SortedServices()
	if len(list) == 0 {
		return
	}
	s := rapid.SampledFrom(list).Draw(t, "service")
	id := rapid.SampledFrom(s.Clusters).Draw(t, "cluster of the pods")
	l.services(id, registry.ServiceState{Key: s.Key, Definition: s.In[id], Endpoints: mixPods(t, id)})
}

func mixLab(t *rapid.T) *lab {
	l := newLab(nil, mixClusters[1:]...)
	l.store.SetSettings(mixSettings(t))
	if rapid.Bool().Draw(t, "passthrough") {
		l.sinks["c1"].Apply(registry.Update{Objects: []registry.ObjectState{drawGateway(t)}})
	}
	for range rapid.IntRange(0, 8).Draw(t, "changes") {
		mixChange(t, l)
	}
	return l
}

func mixView(t *rapid.T) View {
	v := View{
		Kind:         mixOf(t, "kind", mesh.ProxySidecar, mesh.ProxySidecar, mesh.ProxyRouter),
		Dialect:      rapid.SampledFrom(mixDialects).Draw(t, "dialect"),
		Cluster:      rapid.SampledFrom(mixClusters).Draw(t, "proxy cluster"),
		Network:      rapid.SampledFrom(mixNetworks).Draw(t, "proxy network"),
		NetworkView:  mixOf(t, "network view", "", "", "n1", "n1,n2"),
		Namespace:    mixOf(t, "proxy namespace", "a", "b", "c", mixRoot),
		Labels:       MakeLabels(map[string]string{"app": mixOf(t, "label", "x", "y")}, []string{"app"}),
		Domain:       DefaultDomain,
		Locality:     mesh.Locality{Region: "r1"},
		Node:         mixOf(t, "proxy node", "", "node1"),
		IPv4:         rapid.Bool().Draw(t, "IPv4"),
		IPv6:         rapid.Bool().Draw(t, "IPv6"),
		Interception: mixOf(t, "interception", mesh.InterceptRedirect, mesh.InterceptTProxy, mesh.InterceptNone),
	}
	if v.Kind == mesh.ProxySidecar {
		v.Sidecar = mixOf(t, "Sidecar", ObjectName{}, ObjectName{"a", "s"})
	}
	spec := InboundSpec{Labels: mixOf(t, "proxy labels", nil, map[string]string{"app": "x"}), MeshID: mixOf(t, "mesh", "", "m")}
	for _, target := range mixOf(t, "targets", []uint16{}, []uint16{8080}, []uint16{8080, 8080, 9090}) {
		spec.Targets = append(spec.Targets, InboundTarget{Hostname: string(rapid.SampledFrom(mixHosts).Draw(t, "target host")), Name: "n", Namespace: "a",
			Port: 80, Target: target, Protocol: string(mixOf(t, "target protocol", mesh.ProtocolHTTP, mesh.ProtocolGRPC, mesh.ProtocolAuto))})
	}
	v.Inbound = MakeInbound(spec)
	return v
}

// mixNames are all names that anybody may ask for in a mix.
func mixNames() []string {
	out := []string{UpstreamBlackHole, UpstreamPassthrough, UpstreamInboundPassthrough, "", "nonsense", "outbound|80|v1|" + string(mixHosts[0]), "outbound|80||"}
	for _, p := range append([]uint16{8080, 9090, 15443}, mixNumbers...) {
		out = append(out, UpstreamName(DirectionInbound, p, "", ""), UpstreamName(DirectionInbound, p, "", mixHosts[0]))
		for _, h := range mixHosts {
			out = upstreamNames(out, h, p, mixSubsets())
		}
	}
	return out
}

func mixBuild(t *rapid.T, in Inputs, v View, g Generator) map[string]proto.Message {
	out := map[string]proto.Message{}
	for _, n := range mixNames() {
		m, err := g.Build(in, v, n)
		if err != nil {
			t.Fatalf("build %s: %v", n, err)
		}
		if m != nil {
			out[n] = m
		}
	}
	return out
}

// TestUpstreamsListWhatIsBuilt: an upstream is listed if and only if it is built.
func TestUpstreamsListWhatIsBuilt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l, v := mixLab(t), mixView(t)
		built := slices.Sorted(maps.Keys(mixBuild(t, l.in(), v, Upstreams{})))
		if listed := (Upstreams{}).List(l.in(), v); !slices.Equal(listed, built) {
			t.Fatalf("listed %v\nbuilt  %v", listed, built)
		}
	})
}

// TestUpstreamProjectionKeepsEverythingThatCounts: what is built for a view and
// for its projection is equal, and so is the list.
func TestUpstreamProjectionKeepsEverythingThatCounts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l, v := mixLab(t), mixView(t)
		for _, g := range []Generator{Upstreams{}, Assignments{}} {
			if a, b := g.List(l.in(), v), g.List(l.in(), g.ListView(v)); !slices.Equal(a, b) {
				t.Fatalf("listed %v, for the projected view %v", a, b)
			}
			for _, n := range mixNames() {
				p := g.Project(l.in(), v, n)
				if again := g.Project(l.in(), p, n); again != p {
					t.Fatalf("%s: projecting twice gives another view: %+v, then %+v", n, p, again)
				}
				a, errA := g.Build(l.in(), v, n)
				b, errB := g.Build(l.in(), p, n)
				if errA != nil || errB != nil || !equalResources(a, b) {
					t.Fatalf("%s differs for the projected view %+v of %+v: %v, %v\n%v\n%v", n, p, v, errA, errB, a, b)
				}
			}
		}
	})
}

// TestUpstreamAffectedNamesEveryChange: whatever a change alters is among what
// is called affected.
func TestUpstreamAffectedNamesEveryChange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l, v := mixLab(t), mixView(t)
		gens := []Generator{Upstreams{}, Assignments{}}
		before := map[Generator]map[string]proto.Message{}
		for _, g := range gens {
			before[g] = mixBuild(t, l.in(), v, g)
		}
		for range 8 {
			var c registry.Change
			cancel := l.store.OnChange(func(x registry.Change) { c.Merge(x) })
			mixChange(t, l)
			cancel()
			for _, g := range gens {
				a := g.Affected(l.in(), v, &c)
				after := mixBuild(t, l.in(), v, g)
				serves := mixServes(l.in(), v)
				for _, n := range mixNames() {
					if mixInbound(n) && !serves[n] {
						continue
					}
					if !equalResources(before[g][n], after[n]) && !a.All && !slices.Contains(a.Names, n) {
						t.Fatalf("%s of %+v changed, but only %v are affected by %+v", n, v, a.Names, c)
					}
				}
				before[g] = after
			}
		}
	})
}

// TestAssignmentEncoderWritesWhatIsBuilt: the bytes that the encoder writes
// decode to what Build makes, are written alike again, and leave alone what is
// in the buffer.
func TestAssignmentEncoderWritesWhatIsBuilt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l, v := mixLab(t), mixView(t)
		for _, n := range mixNames() {
			want, err := Assignments{}.Build(l.in(), v, n)
			if err != nil {
				t.Fatal(err)
			}
			got, ok, err := Assignments{}.Encode(l.in(), v, n, []byte("before"))
			if err != nil || ok != (want != nil) || !bytes.HasPrefix(got, []byte("before")) {
				t.Fatalf("%s: encoded %t, built %t, error %v, %q", n, ok, want != nil, err, got)
			}
			if !ok {
				continue
			}
			a := &endpointv3.ClusterLoadAssignment{}
			if err := proto.Unmarshal(got[len("before"):], a); err != nil || !proto.Equal(a, want) {
				t.Fatalf("%s: encoded as\n%v\nwant\n%v\n%v", n, a, want, err)
			}
			again, _, _ := Assignments{}.Encode(l.in(), v, n, nil)
			if !bytes.Equal(again, got[len("before"):]) {
				t.Fatalf("%s: encoded in two ways", n)
			}
		}
	})
}

// TestProxiesWouldTakeEveryUpstream: all upstreams of any view with their
// assignments pass the deep validator.
func TestProxiesWouldTakeEveryUpstream(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l, v := mixLab(t), mixView(t)
		o := validate.Options{GRPC: v.Dialect == mesh.DialectGRPC}
		for n, m := range mixBuild(t, l.in(), v, Upstreams{}) {
			if err := o.Message(m); err != nil {
				t.Fatal(err)
			}
			a, err := Assignments{}.Build(l.in(), v, n)
			if err != nil {
				t.Fatal(err)
			}
			if u := m.(*clusterv3.Cluster); u.GetType() == clusterv3.Cluster_EDS && a == nil {
				t.Fatalf("upstream %s has no assignment", n)
			}
			if a == nil {
				continue
			}
			if err := o.Message(a); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestSelectionIsSoundAndExplained: every candidate has a verdict; what is sent
// is exactly what the verdicts keep, with the weight of all that is kept; no
// address goes to where it cannot be routed.
func TestSelectionIsSoundAndExplained(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l, v := mixLab(t), mixView(t)
		in := l.in()
		for s := range in.Catalog.Services() {
			for _, p := range servedPorts(s) {
				for _, sni := range []bool{false, true} {
					checkSelection(t, in, v, selection(in, v, served{s, p}, "", sni), in.Endpoints.Endpoints(s.Key).Port(p.Name))
				}
			}
		}
	})
}

func checkSelection(t *rapid.T, in Inputs, v View, sel Selection, list []mesh.Endpoint) {
	if len(sel.Candidates) < len(list) {
		t.Fatalf("%d endpoints, %d verdicts", len(list), len(sel.Candidates))
	}
	var want, got uint64
	saturated := false
	for _, c := range sel.Candidates {
		if c.Text(v) == "" || c.Text(v) == c.Verdict.Code.String() {
			t.Fatalf("no reason for %v", c.Verdict.Code)
		}
		if c.Verdict.Code.Kept() {
			w := scaled(c.Endpoint.Weight, in.Catalog.WeightScale())
			saturated = saturated || w == 1<<32-1
			want += uint64(w)
		}
		if c.Verdict.Code == VerdictDirect && v.Network != "" && c.Endpoint.Network != "" && v.Network != c.Endpoint.Network {
			t.Fatalf("%v on network %s is dialled from network %s", c.Endpoint.Addr, c.Endpoint.Network, v.Network)
		}
	}
	seen := map[netip.AddrPort]bool{}
	for _, g := range sel.Groups {
		for _, e := range g.Entries {
			got += uint64(e.Weight)
			if e.Endpoint != nil && !e.Endpoint.Addr.IsValid() {
				if e.Endpoint.Workload.Host == "" {
					t.Fatalf("nothing to dial in %+v", e)
				}
				continue
			}
			addr := e.Address()
			if seen[addr] && v.Dialect == mesh.DialectGRPC {
				t.Fatalf("%v twice for gRPC", addr)
			}
			seen[addr] = true
			if v.IPv4 != v.IPv6 && addr.Addr().Is4() != v.IPv4 {
				t.Fatalf("%v for a proxy with IPv4 %t and IPv6 %t", addr, v.IPv4, v.IPv6)
			}
			if e.Weight == 0 || (e.Gateway == nil) == (e.Endpoint == nil) {
				t.Fatalf("entry %+v", e)
			}
		}
	}
	if v.Dialect == mesh.DialectGRPC && slices.ContainsFunc(sel.Groups, func(g Group) bool { return g.Priority > 0 }) && got < want {
		return // an address of several priorities has the weight of the first
	}
	if want <= 1<<32-1 && want != got || want > 1<<32-1 && !saturated && got > 1<<32-1 {
		t.Fatalf("weights of %d are sent as %d", want, got)
	}
}
