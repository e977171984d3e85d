package build

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
	"pgregory.net/rapid"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// nameInfo is an entry of a table as an agent reads it.
type nameInfo struct {
	IPs       []string `json:"ips"`
	Registry  string   `json:"registry"`
	Short     string   `json:"shortname"`
	Namespace string   `json:"namespace"`
}

func kubeName(short string, ips ...string) nameInfo {
	return nameInfo{IPs: ips, Registry: "Kubernetes", Short: short, Namespace: "shop"}
}

// names decodes the table that a view gets.
func (l *lab) names(t *testing.T, v View) map[string]nameInfo {
	t.Helper()
	b, ok, err := NameTables{}.Encode(l.in(), v, "", nil)
	require.NoError(t, err)
	require.True(t, ok)
	m := nameTableMessage(nil)
	require.NoError(t, proto.Unmarshal(b, m))
	require.Empty(t, m.ProtoReflect().GetUnknown())
	text, err := protojson.Marshal(m)
	require.NoError(t, err)
	var out struct{ Table map[string]nameInfo }
	require.NoError(t, json.Unmarshal(text, &out))
	return out.Table
}

// labNamed gives a service's pods names: HOST-0, HOST-1, ... under subdomain.
func labNamed(s registry.ServiceState, host, subdomain string) registry.ServiceState {
	seen := map[netip.Addr]*mesh.Workload{}
	for i, e := range s.Endpoints {
		w := seen[e.Addr]
		if w == nil {
			copied := *e.Workload
			w = &copied
			w.Hostname, w.Subdomain = host+"-"+string(rune('0'+len(seen))), subdomain
			seen[e.Addr] = w
		}
		s.Endpoints[i].Workload = w
	}
	return s
}

var labTwoPorts = labPorts(labPort("tcp", 7000, mesh.ProtocolTCP), labPort("udp", 53, mesh.ProtocolUDP))

func TestNamesOfServices(t *testing.T) {
	l := newLab(nil, "c2")
	hidden := labService("hidden", "shop", labTwoPorts, []string{"10.96.0.9"}, labExport("elsewhere"))
	l.services("c1",
		labService("web", "shop", labTwoPorts, []string{"10.96.0.1"}),
		labService("dual", "shop", labTwoPorts, []string{"10.96.0.2", "fd00::2"}),
		labService("six", "shop", labTwoPorts, []string{"fd00::3"}),
		labService("mapped", "shop", labTwoPorts, []string{"::ffff:10.96.0.4"}),
		labService("alias", "shop", labTwoPorts, nil, labAlias("web.shop.svc.cluster.local")),
		labService("pending", "shop", labTwoPorts, nil), hidden)
	l.services("c2", labService("web", "shop", labTwoPorts, []string{"10.97.0.1"}), labService("far", "shop", labTwoPorts, []string{"10.97.0.2"}))

	const domain = ".shop.svc.cluster.local"
	require.Equal(t, map[string]nameInfo{
		"web" + domain: kubeName("web", "10.96.0.1"), "dual" + domain: kubeName("dual", "10.96.0.2"), "six" + domain: kubeName("six", "fd00::3"),
		"mapped" + domain: kubeName("mapped", "10.96.0.4"), "far" + domain: kubeName("far", "10.97.0.2"),
	}, l.names(t, labSidecar()))

	remote := l.names(t, labSidecar(func(v *View) { v.Cluster = "c2" }))
	require.Equal(t, kubeName("web", "10.97.0.1"), remote["web"+domain], "the proxy's own cluster's address")

	both := l.names(t, labSidecar(func(v *View) { v.IPv6 = true }))
	require.Equal(t, kubeName("dual", "10.96.0.2", "fd00::2"), both["dual"+domain])

	elsewhere := l.names(t, labSidecar(func(v *View) { v.Namespace = "elsewhere" }))
	require.Equal(t, kubeName("hidden", "10.96.0.9"), elsewhere["hidden"+domain])
}

func TestNamesOfHeadlessServices(t *testing.T) {
	store := func() registry.ServiceState { return labService("store", "shop", labTwoPorts, nil, labHeadless) }
	l := newLab(nil, "c2", "c3")
	own := labNamed(labPods(store(), "c1", "n1", "10.0.0.2", "10.0.0.1", "10.0.0.3"), "store", "store")
	own.Endpoints[4].Health, own.Endpoints[5].Health = mesh.HealthNotReady, mesh.HealthDraining // both of 10.0.0.3
	l.services("c1", own, labService("empty", "shop", labTwoPorts, nil, labHeadless))
	l.services("c2", labNamed(labPods(store(), "c2", "n1", "10.0.0.0", "10.1.0.2", "10.1.0.3", "10.1.0.4"), "store", "store"))
	l.services("c3", labNamed(labPods(store(), "c3", "n3", "10.3.0.1"), "lost", "store"))

	const host = "store.shop.svc.cluster.local"
	require.Equal(t, map[string]nameInfo{
		host:              kubeName("store", "10.0.0.1", "10.0.0.2", "10.0.0.0", "10.1.0.2", "10.1.0.3", "10.1.0.4"),
		"store-0." + host: kubeName("store-0.store", "10.0.0.2"), // its own cluster's
		"store-1." + host: kubeName("store-1.store", "10.0.0.1"),
		"store-2." + host: kubeName("store-2.store", "10.1.0.3"), // the own one is not ready
		"store-3." + host: kubeName("store-3.store", "10.1.0.4"),
	}, l.names(t, labSidecar(func(v *View) { v.Network = "n1" })), "own pods first, no pod on another network")
	unknown := l.names(t, labSidecar())
	require.Equal(t, kubeName("lost-0.store", "10.3.0.1"), unknown["lost-0."+host], "a proxy whose network is not known")
}

func TestNameTableIsTheOnlyOne(t *testing.T) {
	l := shopLab()
	require.Equal(t, []string{""}, NameTables{}.List(l.in(), labSidecar()))
	m, err := NameTables{}.Build(l.in(), labSidecar(), "other")
	require.NoError(t, err)
	require.Nil(t, m)
	_, ok, err := NameTables{}.Encode(l.in(), labSidecar(), "other", nil)
	require.NoError(t, err)
	require.False(t, ok)
	// An empty mesh has an empty table, not none.
	_, ok, err = NameTables{}.Encode(newLab(nil).in(), labSidecar(), "", nil)
	require.NoError(t, err)
	require.True(t, ok)
}

// TestNameTablesAreShared: proxies of namespaces that see the same have one
// table, however else they differ.
func TestNameTablesAreShared(t *testing.T) {
	l := shopLab() // "hidden" is exported to "elsewhere" only
	project := func(ns string) View {
		return NameTables{}.Project(l.in(), labSidecar(func(v *View) {
			v.Namespace, v.Node, v.Locality, v.Inbound = ns, "node-"+ns, mesh.Locality{Region: ns}, MakeInbound(InboundSpec{MeshID: ns})
		}), "")
	}
	require.Equal(t, project("shop"), project("default"))
	require.NotEqual(t, project("shop"), project("elsewhere"))
	l.store.SetSettings(mesh.Settings{Mesh: &meshconfig.MeshConfig{DefaultServiceExportTo: []string{"."}}})
	require.NotEqual(t, project("shop"), project("default"))
}

// TestNameTablesOfOneSidecar: what a Sidecar for all namespaces imports from "."
// is another thing in each.
func TestNameTablesOfOneSidecar(t *testing.T) {
	l := shopLab()
	k := mesh.ObjectKey{Kind: mesh.KindSidecar, Namespace: "istio-system", Name: "default"}
	l.objects(registry.ObjectState{Key: k, Object: &mesh.Object{Key: k, Spec: &networking.Sidecar{Egress: []*networking.IstioEgressListener{{Hosts: []string{"./*"}}}}}})
	table := func(ns string) map[string]nameInfo {
		v := labSidecar(func(v *View) { v.Namespace, v.Sidecar = ns, ObjectName{"istio-system", "default"} })
		return l.names(t, NameTables{}.Project(l.in(), v, ""))
	}
	require.Contains(t, table("shop"), "web.shop.svc.cluster.local")
	require.Empty(t, table("default"))
}

// TestNameTableIsNotAffectedByWhatItDoesNotTell: what most changes are about
// costs no walk over the mesh.
func TestNameTableIsNotAffectedByWhatItDoesNotTell(t *testing.T) {
	l := newLab(nil, "c2")
	web := labPods(labService("web", "shop", labTwoPorts, []string{"10.96.0.1"}), "c1", "", "10.0.0.1")
	store := labPods(labService("store", "shop", labTwoPorts, nil, labHeadless), "c1", "", "10.0.0.2")
	l.services("c1", web, store)
	changed := func(s registry.ServiceState) bool {
		before := l.last.Revision
		l.services("c1", s)
		require.Greater(t, l.last.Revision, before, "the change was seen")
		return len(NameTables{}.Affected(l.in(), labSidecar(), &l.last).Names) > 0
	}
	require.False(t, changed(labPods(web, "c1", "", "10.0.0.7")), "pods behind a virtual IP")
	web.Definition = labService("web", "shop", labPorts(labPort("http", 80, mesh.ProtocolHTTP)), []string{"10.96.0.1"}, func(d *mesh.Definition) {
		d.Labels = map[string]string{"a": "b"}
	}).Definition
	require.False(t, changed(web), "ports and labels")
	require.True(t, changed(labPods(store, "c1", "", "10.0.0.8")), "pods of a headless service")
	web.Definition = labService("web", "shop", labTwoPorts, []string{"10.96.0.5"}).Definition
	require.True(t, changed(web), "virtual IP")
	require.True(t, changed(registry.ServiceState{Key: web.Key}), "gone")
}

// nameChange is a change of a mix in which pods have names and some hosts come
// from outside Kubernetes.
func nameChange(t *rapid.T, l *lab) {
	if rapid.IntRange(0, 3).Draw(t, "other") == 0 {
		mixChange(t, l)
		return
	}
	id := rapid.SampledFrom(mixClusters).Draw(t, "cluster")
	s := mixService(t, id)
	if d := s.Definition; d != nil {
		d.Name = mixOf(t, "short", "svc", "other")
		d.Origin.Kind = mixOf(t, "kind of origin", "Service", "Service", "ServiceEntry")
		d.Addresses = mixOf(t, "vips", nil, nil, []netip.Addr{netip.MustParseAddr("10.96.0.1")},
			[]netip.Addr{netip.MustParseAddr("fd00::96"), netip.MustParseAddr("10.96.0.2")})
	}
	for i, e := range s.Endpoints {
		w := *e.Workload
		w.Hostname, w.Subdomain = mixOf(t, "hostname", "", "pod-0", "pod-1"), mixOf(t, "subdomain", "", "x")
		s.Endpoints[i].Workload = &w
	}
	l.services(id, s)
}

func nameLab(t *rapid.T) *lab {
	l := newLab(nil, mixClusters[1:]...)
	l.store.SetSettings(mixSettings(t))
	for range rapid.IntRange(0, 8).Draw(t, "changes") {
		nameChange(t, l)
	}
	return l
}

// tableOf builds a view's table, in the protobuf library's own encoding.
func tableOf(t *rapid.T, l *lab, v View) string {
	m, err := NameTables{}.Build(l.in(), v, "")
	if err != nil || m == nil {
		t.Fatalf("no table: %v", err)
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatalf("not a message: %v", err)
	}
	return string(b)
}

// TestNameTableProjectionKeepsEverythingThatCounts: the table of a view and of
// its projection are equal, and projecting twice changes nothing.
func TestNameTableProjectionKeepsEverythingThatCounts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l, v := nameLab(t), mixView(t)
		p := NameTables{}.Project(l.in(), v, "")
		if again := (NameTables{}).Project(l.in(), p, ""); again != p {
			t.Fatalf("projected twice: %+v, then %+v", p, again)
		}
		if a, b := tableOf(t, l, v), tableOf(t, l, p); a != b {
			t.Fatalf("differs for the projected view %+v of %+v:\n%q\n%q", p, v, a, b)
		}
	})
}

// TestNameTableAffectedMissesNothing: a table changes only if a change says so.
func TestNameTableAffectedMissesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l, v := nameLab(t), mixView(t)
		before := tableOf(t, l, v)
		for range 8 {
			var c registry.Change
			cancel := l.store.OnChange(func(x registry.Change) { c.Merge(x) })
			nameChange(t, l)
			cancel()
			after := tableOf(t, l, v)
			a := NameTables{}.Affected(l.in(), NameTables{}.AffectedView(v), &c)
			if before != after && !a.All && !slices.Equal(a.Names, []string{""}) {
				t.Fatalf("the table of %+v changed, but is not affected by %+v\n%q\n%q", v, c, before, after)
			}
			before = after
		}
	})
}

// TestNameTableEncoderWritesWhatIsBuilt: the bytes are those of what Build
// makes, with names in order and each once, and leave alone what is in the buffer.
func TestNameTableEncoderWritesWhatIsBuilt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l, v := nameLab(t), mixView(t)
		want := tableOf(t, l, v)
		got, ok, err := NameTables{}.Encode(l.in(), v, "", []byte("before"))
		if err != nil || !ok || !bytes.HasPrefix(got, []byte("before")) {
			t.Fatalf("encoded %t, error %v, %q", ok, err, got)
		}
		if string(got[len("before"):]) != want {
			t.Fatalf("encoded as\n%q\nwant\n%q", got, want)
		}
	})
}

// TestNameTableTellsOnlyWhatCanBeDialled: every address is a virtual IP of the
// name's service or that of a pod which the view's proxies may dial.
func TestNameTableTellsOnlyWhatCanBeDialled(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l, v := nameLab(t), mixView(t)
		in, allowed := l.in(), map[netip.Addr]bool{}
		for s := range in.Catalog.Services() {
			for _, d := range s.In {
				for _, a := range d.Addresses {
					allowed[dialled(a)] = true
				}
			}
			for e := range in.Endpoints.Endpoints(s.Key).All() {
				if dials(in, v, s, e) && e.Health != mesh.HealthNotReady {
					allowed[dialled(e.Addr)] = true
				}
			}
		}
		for _, r := range nameRecords(in, v) {
			if len(r.addrs) == 0 || slices.ContainsFunc(r.addrs, func(a netip.Addr) bool { return !allowed[dialled(a)] }) {
				t.Fatalf("%s has %v of %v", r.host, r.addrs, slices.Collect(maps.Keys(allowed)))
			}
		}
	})
}

// FuzzNameTable: whatever hosts and pods are called, within what the registry
// lets pass, the bytes are those of the protobuf library.
func FuzzNameTable(f *testing.F) {
	f.Add("store.shop.svc.cluster.local", "store", "store-0", "store", []byte{10, 0, 0, 1}, true)
	f.Add("*.example.com", "", "", "", []byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}, false)
	f.Add("host", "short", "a.b", "c", []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 1, 2, 3, 4}, true)
	f.Fuzz(func(t *testing.T, host, short, hostname, subdomain string, ip []byte, pods bool) {
		addr, ok := netip.AddrFromSlice(ip)
		for _, s := range []string{host, short, hostname, subdomain} {
			ok = ok && utf8.ValidString(s)
		}
		if !ok {
			t.Skip("not an address, or not text: sources refuse such objects before they get here")
		}
		d := &mesh.Definition{Name: short, Addresses: []netip.Addr{addr}}
		s := registry.ServiceState{Key: mesh.ServiceKey{Namespace: "shop", Hostname: mesh.Hostname(host)}, Definition: d}
		if pods {
			d.Resolution, d.Addresses = mesh.ResolutionPassthrough, nil
			s.Endpoints = []mesh.Endpoint{{Addr: addr, Workload: &mesh.Workload{Cluster: "c1", Hostname: hostname, Subdomain: subdomain}}}
		}
		l := newLab(nil)
		l.services("c1", s)
		want, err := NameTables{}.Build(l.in(), labSidecar(), "")
		require.NoError(t, err)
		got, ok, err := NameTables{}.Encode(l.in(), labSidecar(), "", nil)
		require.NoError(t, err)
		require.True(t, ok)
		bytes, err := proto.MarshalOptions{Deterministic: true}.Marshal(want)
		require.NoError(t, err)
		require.Equal(t, bytes, got)
	})
}

func BenchmarkNameTable(b *testing.B) {
	l := newLab(nil)
	var list []registry.ServiceState
	for i := range 5000 {
		list = append(list, labService("svc-"+string(rune('a'+i%26))+"-"+netip.AddrFrom4([4]byte{0, 0, byte(i >> 8), byte(i)}).String(), "shop", labTwoPorts, []string{"10.96.0.1"}))
	}
	l.services("c1", list...)
	in, v := l.in(), labSidecar()
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf, _, _ = NameTables{}.Encode(in, v, "", buf[:0])
	}
	b.ReportMetric(float64(len(buf)), "bytes")
}
