package entry

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	networking "istio.io/api/networking/v1alpha3"
	"pgregory.net/rapid"

	"github.com/isthmus-mesh/isthmus/mesh"
)

const (
	primary = mesh.ClusterID("east")
	domain  = "example.org"
)

func objectKey(kind mesh.ObjectKind, name string) mesh.ObjectKey {
	return mesh.ObjectKey{Kind: kind, Namespace: "shop", Name: name}
}

func serviceEntry(name string, age int64, spec *networking.ServiceEntry) *mesh.Object {
	k := objectKey(mesh.KindServiceEntry, name)
	return &mesh.Object{Key: k, Origin: mesh.ObjectRef{Cluster: primary, Kind: string(k.Kind), Namespace: k.Namespace, Name: name},
		Created: time.Unix(1000-age, 0), Spec: spec}
}

func workloadEntry(id mesh.ClusterID, name string, spec *networking.WorkloadEntry) *mesh.Object {
	k := objectKey(mesh.KindWorkloadEntry, name)
	return &mesh.Object{Key: k, Origin: mesh.ObjectRef{Cluster: id, Kind: string(k.Kind), Namespace: k.Namespace, Name: name}, Spec: spec}
}

func pod(id mesh.ClusterID, name, addr string, labels map[string]string) Pod {
	return Pod{Cluster: id, Key: "shop/" + name, Health: mesh.HealthReady, Workload: &mesh.Workload{Cluster: id, Namespace: "shop", Name: name,
		WorkloadName: name, Kind: "Pod", Addresses: []netip.Addr{netip.MustParseAddr(addr)}, Labels: labels}}
}

func ports(list ...string) []*networking.ServicePort {
	var out []*networking.ServicePort
	for _, s := range list { // name:number[:target]
		p := &networking.ServicePort{}
		f := strings.Split(s, ":")
		p.Name, p.Protocol = f[0], f[0]
		_, _ = fmt.Sscan(f[1], &p.Number)
		if len(f) > 2 {
			_, _ = fmt.Sscan(f[2], &p.TargetPort)
		}
		out = append(out, p)
	}
	return out
}

func none() iter.Seq[Pod] { return func(func(Pod) bool) {} }

// text writes what is derived of a host in lines that a table can hold.
func text(d *Derived) []string {
	if d == nil {
		return nil
	}
	out := []string{fmt.Sprintf("%s ports=%v vips=%v ranges=%v auto=%v", d.Definition.Resolution, d.Definition.Ports, d.Definition.Addresses,
		d.Definition.Prefixes, d.Definition.AutoAddresses)}
	for _, e := range d.Endpoints {
		addr := e.Workload.Host
		if e.Addr.IsValid() {
			addr = e.Addr.String()
		}
		out = append(out, fmt.Sprintf("%s %s:%d weight=%d network=%s locality=%s mtls=%v %s %s/%s", e.PortName, addr, e.Port, e.Weight,
			e.Workload.NetworkLabel, e.Workload.Locality, e.Workload.MTLS, e.Health, e.Workload.Cluster, e.Workload.WorkloadName))
	}
	for _, c := range d.Conflicts {
		out = append(out, "conflict: "+c.Detail)
	}
	return out
}

func TestServiceEntry(t *testing.T) {
	const http = "{http 80 HTTP 0 }"
	tests := map[string]struct {
		spec *networking.ServiceEntry
		host mesh.Hostname
		want []string
	}{
		"static with endpoints": {&networking.ServiceEntry{Hosts: []string{"A.example."}, Addresses: []string{"240.0.0.1", "10.1.0.0/16", "192.0.2.1/32"},
			Ports: ports("http:80:8080"), Resolution: networking.ServiceEntry_STATIC, Endpoints: []*networking.WorkloadEntry{
				{Address: "192.0.2.7", Ports: map[string]uint32{"http": 15443}, Weight: 3, Locality: "r/z", Network: "n2"},
				{Address: "192.0.2.8", Labels: map[string]string{"security.istio.io/tlsMode": "istio", "istio-locality": "r.z.s"}},
				{Address: "unix:///run/a.sock"}, {Address: "name.example"}, {Network: "n3", ServiceAccount: "web"}, {},
			}}, "a.example", []string{
			"Static ports=[{http 80 HTTP 8080 }] vips=[240.0.0.1 192.0.2.1] ranges=[10.1.0.0/16] auto=[]",
			"http unix:///run/a.sock:0 weight=0 network= locality= mtls=false Unknown east/e-2",
			"http :8080 weight=0 network=n3 locality= mtls=true Unknown east/e-4",
			"http 192.0.2.7:15443 weight=3 network=n2 locality=r/z mtls=false Unknown east/e-0",
			"http 192.0.2.8:8080 weight=0 network= locality=r/z/s mtls=true Unknown east/e-1",
		}},
		"static without anything gets a virtual IP": {&networking.ServiceEntry{Hosts: []string{"b.example"}, Ports: ports("http:80"), Resolution: networking.ServiceEntry_STATIC},
			"b.example", []string{"Static ports=[" + http + "] vips=[] ranges=[] auto=[240.240.168.195 2001:2::a8:c3]"}},
		"dns of the host itself": {&networking.ServiceEntry{Hosts: []string{"b.example"}, Ports: ports("http:80:8080"), Resolution: networking.ServiceEntry_DNS},
			"b.example", []string{"DNS ports=[{http 80 HTTP 8080 }] vips=[] ranges=[] auto=[240.240.168.195 2001:2::a8:c3]",
				"http b.example:8080 weight=0 network= locality= mtls=false Unknown east/e"}},
		"dns with endpoints": {&networking.ServiceEntry{Hosts: []string{"b.example"}, Addresses: []string{"240.0.0.1"}, Ports: ports("http:80"), Resolution: networking.ServiceEntry_DNS,
			Endpoints: []*networking.WorkloadEntry{{Address: "one.example"}, {Address: "192.0.2.1"}, {Address: "unix:///run/a.sock"}}},
			"b.example", []string{"DNS ports=[" + http + "] vips=[240.0.0.1] ranges=[] auto=[]",
				"http one.example:80 weight=0 network= locality= mtls=false Unknown east/e-0", "http 192.0.2.1:80 weight=0 network= locality= mtls=false Unknown east/e-1"}},
		"dns round robin": {&networking.ServiceEntry{Hosts: []string{"b.example"}, Addresses: []string{"240.0.0.1"}, Ports: ports("http:80"), Resolution: networking.ServiceEntry_DNS_ROUND_ROBIN},
			"b.example", []string{"DNSRoundRobin ports=[" + http + "] vips=[240.0.0.1] ranges=[] auto=[]", "http b.example:80 weight=0 network= locality= mtls=false Unknown east/e"}},
		"none": {&networking.ServiceEntry{Hosts: []string{"*.example"}, Ports: ports("tls:443"), Endpoints: []*networking.WorkloadEntry{{Address: "192.0.2.1"}}},
			"*.example", []string{"Passthrough ports=[{tls 443 TLS 0 }] vips=[] ranges=[] auto=[]"}},
		"dynamic dns keeps what names a host": {&networking.ServiceEntry{Hosts: []string{"*.example"}, Addresses: []string{"240.0.0.1"},
			Ports: ports("http:80", "tls:443", "https:444", "tcp:90", "odd:7"), Resolution: networking.ServiceEntry_DYNAMIC_DNS,
			Endpoints: []*networking.WorkloadEntry{{Address: "192.0.2.1"}}, WorkloadSelector: &networking.WorkloadSelector{Labels: map[string]string{"app": "a"}}},
			"*.example", []string{"DynamicDNS ports=[" + http + " {tls 443 TLS 0 } {https 444 HTTPS 0 }] vips=[] ranges=[] auto=[]"}},
		"an empty selector selects nothing": {&networking.ServiceEntry{Hosts: []string{"b.example"}, Addresses: []string{"240.0.0.1"}, Ports: ports("http:80"),
			Resolution: networking.ServiceEntry_DNS, WorkloadSelector: &networking.WorkloadSelector{}}, "b.example",
			[]string{"DNS ports=[" + http + "] vips=[240.0.0.1] ranges=[] auto=[]"}},
		"ports that cannot be": {&networking.ServiceEntry{Hosts: []string{"b.example"}, Addresses: []string{"240.0.0.1"}, Resolution: networking.ServiceEntry_STATIC,
			Ports: append(ports("http:80", "http:81", "grpc:80", "tcp:0", "tcp:65536", "tcp:9:70000", "odd:7"), nil)}, "b.example",
			[]string{"Static ports=[" + http + " {odd 7 Auto 0 }] vips=[240.0.0.1] ranges=[] auto=[]"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			x := NewIndex(domain)
			o := serviceEntry("e", 1, tt.spec)
			x.SetEntry(o.Key, o)
			x.Flush(none)
			require.Equal(t, tt.want, text(x.Derived(mesh.ServiceKey{Namespace: "shop", Hostname: tt.host})))
		})
	}
}

func TestMachine(t *testing.T) {
	o := workloadEntry("west", "vm", &networking.WorkloadEntry{Address: "::ffff:192.0.2.1", Labels: map[string]string{"app": "spec", "v": "1", "topology.istio.io/network": "n1"},
		ServiceAccount: "web", Weight: 2, Ports: map[string]uint32{"http": 8080, "bad": 70000}})
	o.Labels = map[string]string{"app": "object"}
	m := ReadMachine("west", o, domain)
	require.Equal(t, &mesh.Workload{Cluster: "west", Namespace: "shop", Name: "vm", WorkloadName: "vm", Kind: KindMachine,
		Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, NetworkLabel: "n1", MTLS: true,
		Identity: mesh.Identity{TrustDomain: domain, Namespace: "shop", ServiceAccount: "web"},
		Labels:   map[string]string{"app": "object", "v": "1", "topology.istio.io/network": "n1"}}, m.Workload)
	require.Equal(t, map[string]uint16{"http": 8080}, m.Ports)
	require.EqualValues(t, 2, m.Weight)
	require.Equal(t, mesh.HealthUnknown, m.Health)

	o.Annotations = map[string]string{annotationHealthChecks: "true"}
	require.Equal(t, mesh.HealthNotReady, ReadMachine("west", o, domain).Health, "no report yet")
	o.Status = &mesh.ObjectStatus{Health: mesh.HealthReady}
	require.Equal(t, mesh.HealthReady, ReadMachine("west", o, domain).Health)
	o.Spec.(*networking.WorkloadEntry).Labels["security.istio.io/tlsMode"] = "disabled"
	require.False(t, ReadMachine("west", o, domain).Workload.MTLS, "what it says itself goes before")
	require.Nil(t, ReadMachine("west", serviceEntry("x", 1, nil), domain))
}

func TestSelection(t *testing.T) {
	app := map[string]string{"app": "a"}
	x := NewIndex(domain)
	pods := []Pod{pod("east", "p1", "10.0.0.1", app), pod("west", "p2", "10.0.0.2", app), pod("west", "p3", "10.0.0.3", nil)}
	all := func() iter.Seq[Pod] { return slices.Values(pods) }
	k := mesh.ServiceKey{Namespace: "shop", Hostname: "a.example"}
	set := func(o *mesh.Object) {
		if o.Key.Kind == mesh.KindServiceEntry {
			x.SetEntry(o.Key, o)
			return
		}
		x.SetMachine(o.Origin.Cluster, o.Key, o)
	}
	set(workloadEntry("west", "vm", &networking.WorkloadEntry{Address: "192.0.2.1", Labels: app, Ports: map[string]uint32{"http": 8088}}))
	set(serviceEntry("e", 1, &networking.ServiceEntry{Hosts: []string{"a.example"}, Addresses: []string{"240.0.0.1"}, Ports: ports("http:80:8080"),
		Resolution: networking.ServiceEntry_STATIC, WorkloadSelector: &networking.WorkloadSelector{Labels: app}}))
	require.Equal(t, []mesh.ServiceKey{k}, x.Flush(all))
	east, west := "http 10.0.0.1:8080 weight=0 network= locality= mtls=false Ready east/p1", "http 10.0.0.2:8080 weight=0 network= locality= mtls=false Ready west/p2"
	vm := "http 192.0.2.1:8088 weight=0 network= locality= mtls=false Unknown west/vm"
	require.Equal(t, []string{east, west, vm}, text(x.Derived(k))[1:])

	x.SetPod(&pods[2], &Pod{Cluster: "west", Key: pods[2].Key, Workload: pods[2].Workload, Health: mesh.HealthNotReady})
	require.Empty(t, x.Flush(all), "a pod that nobody selects")
	other := pods[1]
	other.Workload = &mesh.Workload{Cluster: "west", Namespace: "shop", Name: "p2", Kind: "Pod", Addresses: pods[1].Workload.Addresses}
	x.SetPod(&pods[1], &other)
	require.Equal(t, []mesh.ServiceKey{k}, x.Flush(all), "it lost its label")
	require.Equal(t, []string{east, vm}, text(x.Derived(k))[1:])
	x.SetMachine("west", objectKey(mesh.KindWorkloadEntry, "vm"), nil)
	x.SetPod(&pods[0], nil)
	require.Len(t, x.Flush(all), 1)
	require.Empty(t, x.Derived(k).Endpoints)
	x.SetEntry(objectKey(mesh.KindServiceEntry, "e"), nil)
	require.Len(t, x.Flush(all), 1)
	require.Nil(t, x.Derived(k))
	require.Empty(t, x.spaces, "nothing is kept of what is gone")
}

// Entries of one host: the oldest leads, those that mean the same add to it.
func TestEntriesOfOneHost(t *testing.T) {
	x := NewIndex(domain)
	spec := func(r networking.ServiceEntry_Resolution, addr string, p ...string) *networking.ServiceEntry {
		return &networking.ServiceEntry{Hosts: []string{"a.example"}, Addresses: []string{"240.0.0.1"}, Ports: ports(p...), Resolution: r,
			Endpoints: []*networking.WorkloadEntry{{Address: addr}}}
	}
	for _, o := range []*mesh.Object{
		serviceEntry("young", 1, spec(networking.ServiceEntry_STATIC, "192.0.2.1", "http:80", "tcp:90", "grpc:91")),
		serviceEntry("old", 9, spec(networking.ServiceEntry_STATIC, "192.0.2.2", "http:80", "tcp:91")),
		serviceEntry("dns", 5, spec(networking.ServiceEntry_DNS, "name.example", "http:80")),
	} {
		x.SetEntry(o.Key, o)
	}
	x.Flush(none)
	d := x.Derived(mesh.ServiceKey{Namespace: "shop", Hostname: "a.example"})
	require.Equal(t, []string{
		"Static ports=[{http 80 HTTP 0 } {tcp 91 TCP 0 }] vips=[240.0.0.1] ranges=[] auto=[]",
		"http 192.0.2.1:80 weight=0 network= locality= mtls=false Unknown east/young-0",
		"http 192.0.2.2:80 weight=0 network= locality= mtls=false Unknown east/old-0",
		"tcp 192.0.2.2:91 weight=0 network= locality= mtls=false Unknown east/old-0",
		"conflict: ServiceEntry shop/old in cluster east and ServiceEntry shop/dns in cluster east: resolution Static counts, DNS is left out",
		"conflict: ServiceEntry shop/old in cluster east and ServiceEntry shop/young in cluster east: port 91 (tcp, TCP) counts, 90 (tcp, TCP) is left out",
		"conflict: ServiceEntry shop/old in cluster east and ServiceEntry shop/young in cluster east: port 91 (tcp, TCP) counts, 91 (grpc, GRPC) is left out",
	}, text(d))
	require.Equal(t, "old", d.Definition.Origin.Name)
}

func TestAllocate(t *testing.T) {
	claim := func(host string, age int64, held ...string) Claim {
		c := Claim{Key: mesh.ServiceKey{Namespace: "shop", Hostname: mesh.Hostname(host)}, Created: time.Unix(1000-age, 0)}
		for _, a := range held {
			c.Held = append(c.Held, netip.MustParseAddr(a))
		}
		return c
	}
	a, b := claim("a", 2), claim("b", 1)
	alone := Allocate([]Claim{b}, nil)[b.Key]
	require.Len(t, alone, 2)

	t.Run("an older host that holds the place moves the younger one on", func(t *testing.T) {
		a := claim("a", 2, alone[0].String())
		got := Allocate([]Claim{b, a}, nil)
		require.Equal(t, []netip.Addr{alone[0]}, got[a.Key])
		require.Equal(t, alone[0].Next(), got[b.Key][0])
	})
	t.Run("what was given stays, whoever is older", func(t *testing.T) {
		got := Allocate([]Claim{a, claim("b", 1, "240.240.0.1", "2001:2::1")}, nil)
		require.Equal(t, []netip.Addr{netip.MustParseAddr("240.240.0.1"), netip.MustParseAddr("2001:2::1")}, got[b.Key])
	})
	t.Run("of two that hold one the older keeps it", func(t *testing.T) {
		got := Allocate([]Claim{claim("b", 1, "240.240.0.1"), claim("a", 2, "240.240.0.1")}, nil)
		require.Equal(t, []netip.Addr{netip.MustParseAddr("240.240.0.1")}, got[a.Key])
		require.Equal(t, alone, got[b.Key])
	})
	t.Run("addresses that users gave themselves", func(t *testing.T) {
		got := Allocate([]Claim{b}, map[netip.Addr]struct{}{alone[1]: {}})
		require.Equal(t, alone[0].Next(), got[b.Key][0])
	})
	t.Run("more hosts than addresses", func(t *testing.T) {
		if testing.Short() {
			t.Skip("allocates all addresses")
		}
		var claims []Claim
		reserved := map[netip.Addr]struct{}{}
		for i := range slots - 2 {
			reserved[slotAddrs(i)[0]] = struct{}{}
		}
		for i := range 4 {
			claims = append(claims, claim(fmt.Sprint(i), int64(i)))
		}
		require.Len(t, Allocate(claims, reserved), 2)
	})
}

// Allocation is a function of the set of claims, gives nothing twice, and gives
// the same again to hosts that hold what they were given.
func TestAllocateProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		claims := rapid.SliceOfNDistinct(rapid.Custom(func(t *rapid.T) Claim {
			return Claim{Key: mesh.ServiceKey{Namespace: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "ns"), Hostname: mesh.Hostname(rapid.StringMatching(`[a-d]{1,2}`).Draw(t, "host"))},
				Created: time.Unix(rapid.Int64Range(0, 3).Draw(t, "age"), 0)}
		}), 0, 30, func(c Claim) mesh.ServiceKey { return c.Key }).Draw(t, "claims")
		got := Allocate(claims, nil)
		seen := map[netip.Addr]bool{}
		v4, v6 := netip.MustParsePrefix("240.240.0.0/16"), netip.MustParsePrefix("2001:2::/48")
		for _, c := range claims {
			require.Len(t, got[c.Key], 2)
			for _, a := range got[c.Key] {
				require.False(t, seen[a], "%s twice", a)
				seen[a] = true
				require.True(t, v4.Contains(a) || v6.Contains(a), a)
			}
		}
		require.Equal(t, got, Allocate(rapid.Permutation(claims).Draw(t, "order"), nil))
		for i := range claims { // status was written; then some hosts went
			claims[i].Held = got[claims[i].Key]
		}
		kept := claims[:rapid.IntRange(0, len(claims)).Draw(t, "kept")]
		again := Allocate(kept, nil)
		for _, c := range kept {
			require.Equal(t, got[c.Key], again[c.Key])
		}
	})
}

// Every address that is made up is found at its place, and no other is.
func TestPlacesOfAddresses(t *testing.T) {
	for slot := range slots {
		for family, a := range slotAddrs(slot) {
			got, of, ok := slotOf(a)
			require.True(t, ok, a)
			require.Equal(t, [2]int{slot, family}, [2]int{got, of})
		}
	}
	for _, text := range []string{"240.240.0.0", "240.240.7.255", "240.241.0.1", "10.0.0.1", "2001:2::", "2001:2::ff", "2001:2::1:0:1", "2001:3::1:1", "::ffff:240.240.0.1", "2001:2::1:1%eth0"} {
		_, _, ok := slotOf(netip.MustParseAddr(text))
		require.False(t, ok, text)
	}
	_, _, ok := slotOf(netip.Addr{})
	require.False(t, ok)
}
