package build

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/proto"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networkingv1 "istio.io/api/networking/v1alpha3"
	"pgregory.net/rapid"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/testenv/validate"
)

// What random meshes are made of. The ranges are small, so that services clash.
var (
	labClusters   = []mesh.ClusterID{"c1", "c2"}
	labNamespaces = []string{"a", "b"}
	labHosts      = []mesh.Hostname{"x.a.svc.cluster.local", "y.a.svc.cluster.local", "x.b.svc.cluster.local", "x.example.com", "*.example.com", "x", "*"}
	labNumbers    = []uint16{80, 90, 15001}
	labAddresses  = []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1"}
	labProtocols  = []mesh.Protocol{mesh.ProtocolHTTP, mesh.ProtocolGRPC, mesh.ProtocolTCP, mesh.ProtocolAuto, mesh.ProtocolTLS, mesh.ProtocolUDP}
)

func drawAddrs(t *rapid.T, label string, limit int) []netip.Addr {
	var out []netip.Addr
	for _, s := range rapid.SliceOfNDistinct(rapid.SampledFrom(labAddresses), 0, limit, rapid.ID[string]).Draw(t, label) {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func drawService(t *rapid.T, id mesh.ClusterID) registry.ServiceState {
	st := registry.ServiceState{Key: mesh.ServiceKey{
		Namespace: rapid.SampledFrom(labNamespaces).Draw(t, "namespace"),
		Hostname:  rapid.SampledFrom(labHosts).Draw(t, "host"),
	}}
	if rapid.IntRange(0, 5).Draw(t, "gone") == 5 {
		return st
	}
	d := &mesh.Definition{
		Name:       "svc",
		Resolution: rapid.SampledFrom([]mesh.Resolution{mesh.ResolutionStatic, mesh.ResolutionStatic, mesh.ResolutionPassthrough, mesh.ResolutionAlias, mesh.ResolutionDNS}).Draw(t, "resolution"),
		Addresses:  drawAddrs(t, "vips", 2),
		ExportTo:   rapid.SampledFrom([][]string{nil, nil, {"*"}, {"."}, {"~"}, {"a"}}).Draw(t, "exportTo"),
		Private:    rapid.IntRange(0, 7).Draw(t, "private") == 0,
		Created:    time.Unix(rapid.Int64Range(0, 2).Draw(t, "created"), 0),
		Selector:   rapid.SampledFrom([]map[string]string{nil, {"app": "x"}, {"app": "y"}}).Draw(t, "selector"),
	}
	if d.Resolution == mesh.ResolutionAlias {
		d.ExternalName, d.Addresses = rapid.SampledFrom(labHosts).Draw(t, "target"), nil
	} else if rapid.IntRange(0, 2).Draw(t, "entry") == 0 {
		drawEntry(t, d)
	}
	for i := range rapid.IntRange(1, 3).Draw(t, "ports") {
		d.Ports = append(d.Ports, mesh.Port{
			Name: rapid.SampledFrom([]string{"one", "two", "p" + strconv.Itoa(i)}).Draw(t, "port name"), Number: rapid.SampledFrom(labNumbers).Draw(t, "number"),
			Protocol: rapid.SampledFrom(labProtocols).Draw(t, "protocol"), TargetName: rapid.SampledFrom([]string{"", "", "web"}).Draw(t, "target name"),
			TargetPort: rapid.SampledFrom([]uint16{0, 80, 8080, 15006}).Draw(t, "target port"),
		})
	}
	st.Definition = d
	if strings.HasPrefix(string(st.Key.Hostname), "*.") && st.Key.Namespace == "a" { // no Service has a wildcard, so all clusters agree
		byNameOfRequest(d)
		return st
	}
	st.Endpoints = drawPods(t, id, d.Ports)
	return st
}

// drawEntry makes a definition that of a ServiceEntry.
func drawEntry(t *rapid.T, d *mesh.Definition) {
	d.Origin.Kind = string(mesh.KindServiceEntry)
	d.Resolution = rapid.SampledFrom([]mesh.Resolution{mesh.ResolutionStatic, mesh.ResolutionPassthrough, mesh.ResolutionDNS, mesh.ResolutionDNSRoundRobin}).Draw(t, "entry resolution")
	d.MeshExternal = rapid.Bool().Draw(t, "external")
	for _, s := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"10.1.0.0/16", "10.0.0.0/8", "fd00::/64"}), 0, 2, rapid.ID[string]).Draw(t, "ranges") {
		d.Prefixes = append(d.Prefixes, netip.MustParsePrefix(s))
	}
	if len(d.Addresses)+len(d.Prefixes) == 0 && rapid.Bool().Draw(t, "allocated") {
		d.AutoAddresses = drawAddrs(t, "auto", 2)
	}
}

// byNameOfRequest makes a definition that of a wildcard whose names proxies look up.
func byNameOfRequest(d *mesh.Definition) {
	d.Origin.Kind, d.Resolution, d.ExternalName = string(mesh.KindServiceEntry), mesh.ResolutionDynamicDNS, ""
	d.Addresses, d.Prefixes, d.AutoAddresses, d.Selector = nil, nil, nil, nil
	d.Ports = slices.DeleteFunc(d.Ports, func(p mesh.Port) bool { return !p.Protocol.NamesHost() })
}

func drawPods(t *rapid.T, id mesh.ClusterID, ports []mesh.Port) []mesh.Endpoint {
	var out []mesh.Endpoint
	for _, a := range drawAddrs(t, "pods", 3) {
		w := &mesh.Workload{Cluster: id, Kind: "Pod", Addresses: []netip.Addr{a},
			NetworkLabel: rapid.SampledFrom([]mesh.NetworkID{"", "n1", "n2"}).Draw(t, "pod network")}
		for _, p := range ports {
			out = append(out, mesh.Endpoint{Addr: a, Port: 8080, PortName: p.Name, Workload: w,
				Health: rapid.SampledFrom([]mesh.Health{mesh.HealthReady, mesh.HealthNotReady}).Draw(t, "health")})
		}
	}
	return out
}

func drawGateway(t *rapid.T) registry.ObjectState {
	k := mesh.ObjectKey{Kind: mesh.KindGateway, Namespace: "a", Name: rapid.SampledFrom([]string{"g1", "g2"}).Draw(t, "gateway")}
	if rapid.IntRange(0, 4).Draw(t, "gateway gone") == 0 {
		return registry.ObjectState{Key: k}
	}
	g := &networkingv1.Gateway{Selector: rapid.SampledFrom([]map[string]string{nil, {"app": "x"}}).Draw(t, "gateway selector"),
		Servers: []*networkingv1.Server{{
			Port:  &networkingv1.Port{Number: rapid.SampledFrom([]uint32{80, 15443}).Draw(t, "gateway port"), Protocol: "TLS", Name: "tls"},
			Hosts: rapid.SampledFrom([][]string{{"*.local"}, {"*"}, {"./*"}, {"b/*.local", "x.example.com"}}).Draw(t, "gateway hosts"),
			Tls: &networkingv1.ServerTLSSettings{Mode: rapid.SampledFrom([]networkingv1.ServerTLSSettings_TLSmode{
				networkingv1.ServerTLSSettings_AUTO_PASSTHROUGH, networkingv1.ServerTLSSettings_SIMPLE}).Draw(t, "gateway mode")},
		}}}
	version := rapid.StringMatching("[a-z]{8}").Draw(t, "version")
	return registry.ObjectState{Key: k, Object: &mesh.Object{Key: k, Version: version, Spec: g}}
}

// drawUpdate changes something in one cluster.
func drawUpdate(t *rapid.T, l *lab) {
	id := rapid.SampledFrom(labClusters).Draw(t, "cluster")
	var u registry.Update
	if known := l.known[id]; len(known) > 0 && rapid.Bool().Draw(t, "pods only") {
		st := rapid.SampledFrom(known).Draw(t, "known")
		st.Endpoints = drawPods(t, id, st.Definition.Ports)
		u.Services = append(u.Services, st)
	} else {
		for range rapid.IntRange(1, 2).Draw(t, "services") {
			st := drawService(t, id)
			l.known[id] = slices.DeleteFunc(l.known[id], func(o registry.ServiceState) bool { return o.Key == st.Key })
			if st.Definition != nil {
				l.known[id] = append(l.known[id], st)
			}
			u.Services = append(u.Services, st)
		}
	}
	if rapid.IntRange(0, 3).Draw(t, "with gateway") == 0 {
		u.Objects = append(u.Objects, drawGateway(t))
	}
	if rapid.Bool().Draw(t, "with rule") {
		u.Objects = append(u.Objects, drawRule(t))
	}
	if rapid.IntRange(0, 3).Draw(t, "with hash rule") == 0 {
		u.Objects = append(u.Objects, drawHashRule(t))
	}
	if rapid.IntRange(0, 3).Draw(t, "with sidecar") == 0 {
		u.Objects = append(u.Objects, drawSidecar(t))
	}
	if rapid.IntRange(0, 2).Draw(t, "with destination rule") == 0 {
		u.Objects = append(u.Objects, mixRule(t))
	}
	l.sinks[id].Apply(u)
}

func drawLab(t *rapid.T) *lab {
	m := &meshconfig.MeshConfig{
		AccessLogFile: rapid.SampledFrom([]string{"", "/dev/stdout"}).Draw(t, "log"),
		EnableTracing: rapid.Bool().Draw(t, "tracing"),
		OutboundTrafficPolicy: &meshconfig.MeshConfig_OutboundTrafficPolicy{Mode: rapid.SampledFrom([]meshconfig.MeshConfig_OutboundTrafficPolicy_Mode{
			meshconfig.MeshConfig_OutboundTrafficPolicy_ALLOW_ANY, meshconfig.MeshConfig_OutboundTrafficPolicy_REGISTRY_ONLY,
			meshconfig.MeshConfig_OutboundTrafficPolicy_ALLOW_ANY_DYNAMIC_DNS}).Draw(t, "policy")},
		DefaultProviders: &meshconfig.MeshConfig_DefaultProviders{Metrics: rapid.SampledFrom([][]string{nil, {"prometheus"}}).Draw(t, "metrics")},
	}
	l := newLab(m, "c2")
	for range rapid.IntRange(0, 6).Draw(t, "updates") {
		drawUpdate(t, l)
	}
	return l
}

func drawProxy(t *rapid.T) *mesh.Proxy {
	p := &mesh.Proxy{
		Kind:         rapid.SampledFrom([]mesh.ProxyKind{mesh.ProxySidecar, mesh.ProxySidecar, mesh.ProxyRouter}).Draw(t, "kind"),
		Dialect:      rapid.SampledFrom([]mesh.Dialect{mesh.DialectIstio, mesh.DialectIstio, mesh.DialectEnvoy, mesh.DialectGRPC}).Draw(t, "dialect"),
		Cluster:      rapid.SampledFrom(labClusters).Draw(t, "proxy cluster"),
		Network:      rapid.SampledFrom([]mesh.NetworkID{"", "n1"}).Draw(t, "proxy network"),
		NetworkView:  rapid.SampledFrom([][]mesh.NetworkID{nil, {"n2"}}).Draw(t, "network view"),
		Namespace:    rapid.SampledFrom(labNamespaces).Draw(t, "proxy namespace"),
		DNSDomain:    "a.svc.cluster.local",
		Labels:       rapid.SampledFrom([]map[string]string{{"app": "x"}, {"app": "y", "version": "v1"}}).Draw(t, "labels"),
		Interception: rapid.SampledFrom([]mesh.Interception{"", mesh.InterceptTProxy, mesh.InterceptNone}).Draw(t, "interception"),
		Locality:     mesh.Locality{Region: rapid.SampledFrom([]string{"", "r1"}).Draw(t, "region")},
		NodeName:     rapid.SampledFrom([]string{"", "node"}).Draw(t, "node"),
		MeshID:       "m",
		DNSCapture:   rapid.Bool().Draw(t, "captures DNS"),
	}
	for _, a := range rapid.SampledFrom([][]string{{"10.0.0.3"}, {"fd00::1"}, {"10.0.0.3", "fd00::1"}}).Draw(t, "addresses") {
		p.Addresses = append(p.Addresses, netip.MustParseAddr(a))
	}
	if rapid.Bool().Draw(t, "traced") {
		p.ProxyConfig = map[string]any{"tracing": map[string]any{}}
	}
	drawTuning(t, p)
	return p
}

// drawTuning adds settings of the proxy's own.
func drawTuning(t *rapid.T, p *mesh.Proxy) {
	p.Metadata = rapid.SampledFrom([]map[string]any{nil, nil, {"HTTP10": "1", "IDLE_TIMEOUT": "1s"}, {"UNPRIVILEGED_POD": "true"}, {"HTTP_PROXY_PORT": "8080"}, {"HTTP_PROXY_PORT": "90"}}).Draw(t, "metadata")
	if rapid.IntRange(0, 3).Draw(t, "tuned") == 0 {
		p.ProxyConfig = map[string]any{
			"proxyHeaders": map[string]any{"attemptCount": map[string]any{"disabled": true}, "preserveHttp1HeaderCase": true,
				"xForwardedHost": map[string]any{"enabled": true}},
			"connectionSettings": map[string]any{"profile": "EDGE"},
			"gatewayTopology":    map[string]any{"numTrustedProxies": 1},
		}
	}
}

// candidates names everything that a proxy might be asked for in a random mesh.
func candidates(g Generator) []string {
	var out []string
	hosts := []string{"x.a", "x.a.svc", "y"}
	for _, h := range labHosts {
		hosts = append(hosts, string(h))
	}
	for _, port := range append([]uint16{15443, 15006, 8080}, labNumbers...) {
		n := strconv.Itoa(int(port))
		for _, h := range hosts {
			out = append(out, h+":"+n, UpstreamName(DirectionOutbound, port, "", mesh.Hostname(h)))
		}
		for _, a := range append([]string{"0.0.0.0", "::", "127.0.0.1", "::1"}, labAddresses...) {
			out = append(out, a+"_"+n)
		}
		out = append(out, n, grpcServerPrefix+"[::]:"+n)
	}
	return append(out, ListenerVirtualInbound, ListenerVirtualOutbound, routeHTTPProxy, "", "nonsense")
}

func buildAll(t *rapid.T, in Inputs, v View, g Generator) map[string]proto.Message {
	out := map[string]proto.Message{}
	for _, n := range candidates(g) {
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

// TestListIsWhatIsBuilt: a listener is listed if and only if it is built.
func TestListIsWhatIsBuilt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := drawLab(t)
		v := DeriveView(l.in(), drawProxy(t), nil)
		g := Listeners{}
		listed := g.List(l.in(), v)
		if v.Dialect == mesh.DialectGRPC {
			if listed != nil {
				t.Fatalf("gRPC asks by name only, but %v are listed", listed)
			}
			return
		}
		built := slices.Sorted(maps.Keys(buildAll(t, l.in(), v, g)))
		if !slices.Equal(listed, built) {
			t.Fatalf("listed %v\nbuilt  %v", listed, built)
		}
	})
}

// TestProjectionKeepsEverythingThatCounts: what is built for a view and for its
// projection is equal, and so is the list.
func TestProjectionKeepsEverythingThatCounts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := drawLab(t)
		v := DeriveView(l.in(), drawProxy(t), nil)
		for _, g := range []Generator{Listeners{}, Routes{}} {
			if a, b := g.List(l.in(), v), g.List(l.in(), g.ListView(v)); !slices.Equal(a, b) {
				t.Fatalf("listed %v, for the projected view %v", a, b)
			}
			for _, n := range candidates(g) {
				p := g.Project(l.in(), v, n)
				if again := g.Project(l.in(), p, n); again != p {
					t.Fatalf("%s: projecting twice gives another view: %+v, then %+v", n, p, again)
				}
				a, errA := g.Build(l.in(), v, n)
				b, errB := g.Build(l.in(), p, n)
				if errA != nil || errB != nil || !equalResources(a, b) {
					t.Fatalf("%s differs for the projected view %+v of %+v: %v %v", n, p, v, errA, errB)
				}
			}
		}
	})
}

// TestAffectedNamesEveryChange: whatever a change alters is among what is
// called affected; a change of endpoints never alters routes.
func TestAffectedNamesEveryChange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := drawLab(t)
		v := DeriveView(l.in(), drawProxy(t), nil)
		gens := []Generator{Listeners{}, Routes{}}
		before := map[Generator]map[string]proto.Message{}
		for _, g := range gens {
			before[g] = buildAll(t, l.in(), v, g)
		}
		for range 6 {
			l.last = registry.Change{}
			drawUpdate(t, l)
			for _, g := range gens {
				a := g.Affected(l.in(), v, &l.last)
				after := buildAll(t, l.in(), v, g)
				for _, n := range candidates(g) {
					if !equalResources(before[g][n], after[n]) && !a.All && !slices.Contains(a.Names, n) {
						t.Fatalf("%s of %+v changed, but only %v are affected by %+v", n, v, a.Names, l.last)
					}
				}
				before[g] = after
			}
		}
	})
}

func equalResources(a, b proto.Message) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return proto.Equal(a, b)
}

// TestViewConcernedTellsEveryChange: a view changes only by a change that
// concerns it.
func TestViewConcernedTellsEveryChange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := drawLab(t)
		p := drawProxy(t)
		before := DeriveView(l.in(), p, nil)
		l.last = registry.Change{}
		drawUpdate(t, l)
		if after := DeriveView(l.in(), p, nil); after != before && !ViewConcerned(p, &l.last) {
			t.Fatalf("view changed from %+v to %+v, but the change is said not to concern it: %+v", before, after, l.last)
		}
	})
}

// TestProxiesWouldTakeEverything: everything that a view has passes the deep
// validator, together: no clashes, and nothing refers to what is not there.
func TestProxiesWouldTakeEverything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := drawLab(t)
		v := DeriveView(l.in(), drawProxy(t), nil)
		s := validate.Snapshot{Options: validate.Options{GRPC: v.Dialect == mesh.DialectGRPC}, Bootstrap: ruleUpstreams(l.in())}
		add := func(g Generator, name string) proto.Message {
			m, err := g.Build(l.in(), v, name)
			if err != nil || m == nil {
				t.Fatalf("%q is referred to or listed, but not built: %v", name, err)
			}
			if err := s.Add(m); err != nil {
				t.Fatal(err)
			}
			return m
		}
		for n := range buildAll(t, l.in(), v, Listeners{}) {
			for _, name := range routeNames(add(Listeners{}, n)) {
				add(Routes{}, name)
			}
		}
		for _, n := range (Upstreams{}).List(l.in(), v) {
			u, ok := add(Upstreams{}, n).(*clusterv3.Cluster)
			if ok && u.GetType() == clusterv3.Cluster_EDS {
				add(Assignments{}, u.GetEdsClusterConfig().GetServiceName())
			}
		}
		if err := s.Check(); err != nil {
			t.Fatal(err)
		}
	})
}

// routeNames lists the route configurations that a listener refers to.
func routeNames(m proto.Message) []string {
	l, ok := m.(*listenerv3.Listener)
	if !ok {
		panic(fmt.Sprintf("%T is not a listener", m))
	}
	return validate.RouteNames(l)
}
