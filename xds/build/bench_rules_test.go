package build

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/types/known/durationpb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// labRuled has n services, and for the first rules of them a VirtualService that
// splits requests over the subsets of a DestinationRule.
func labRuled(n, rules int) *lab {
	l := labLarge(n)
	var all []registry.ObjectState
	for i := range rules {
		name, ns := fmt.Sprintf("service-%d", i), fmt.Sprintf("ns-%d", i%10)
		to := func(subset string, weight int32) *networking.HTTPRouteDestination {
			return &networking.HTTPRouteDestination{Destination: &networking.Destination{Host: name, Subset: subset}, Weight: weight}
		}
		all = append(all, labVirtualService(ns, name, 2020, &networking.VirtualService{Hosts: []string{name}, Http: []*networking.HTTPRoute{
			{Match: []*networking.HTTPMatchRequest{{Headers: map[string]*networking.StringMatch{"x-canary": exactly("1")}}},
				Route: []*networking.HTTPRouteDestination{to("v2", 0)}, Timeout: durationpb.New(2e9)},
			{Route: []*networking.HTTPRouteDestination{to("v1", 90), to("v2", 10)}},
		}, Tcp: []*networking.TCPRoute{{Route: []*networking.RouteDestination{{Destination: &networking.Destination{Host: name, Subset: "v1"}}}}}}))
		k := mesh.ObjectKey{Kind: mesh.KindDestinationRule, Namespace: ns, Name: name}
		all = append(all, registry.ObjectState{Key: k, Object: &mesh.Object{Key: k, Version: "1", Spec: &networking.DestinationRule{Host: name,
			TrafficPolicy: &networking.TrafficPolicy{ConnectionPool: &networking.ConnectionPoolSettings{Tcp: &networking.ConnectionPoolSettings_TCPSettings{MaxConnections: 100}}},
			Subsets:       []*networking.Subset{{Name: "v1", Labels: map[string]string{"version": "v1"}}, {Name: "v2", Labels: map[string]string{"version": "v2"}}}}}})
	}
	l.objects(all...)
	return l
}

// BenchmarkFullBuild builds and encodes everything that a view has in a mesh of
// 1,000 services, without rules and with 200 VirtualServices and DestinationRules.
func BenchmarkFullBuild(b *testing.B) {
	for _, rules := range []int{0, 200} {
		b.Run(fmt.Sprintf("rules=%d", rules), func(b *testing.B) {
			l := labRuled(1000, rules)
			in, v := l.in(), labSidecar(func(v *View) { v.Namespace = "ns-1" })
			size, count := 0, 0
			b.ReportAllocs()
			for b.Loop() {
				size, count = 0, 0
				build := func(g Generator, names []string) {
					for _, n := range names {
						m, err := g.Build(in, v, n)
						if err != nil || m == nil {
							b.Fatal(n, err)
						}
						body, err := deterministic().Marshal(m)
						if err != nil {
							b.Fatal(err)
						}
						size, count = size+len(body), count+1
					}
				}
				upstreams := Upstreams{}.List(in, v)
				build(Upstreams{}, upstreams)
				build(Listeners{}, Listeners{}.List(in, v))
				build(Routes{}, []string{"80"})
			}
			b.ReportMetric(float64(size), "bytes")
			b.ReportMetric(float64(count), "resources")
		})
	}
}

// BenchmarkRuleIndex makes the index of 1,000 VirtualServices, as each change of
// one of them does.
func BenchmarkRuleIndex(b *testing.B) {
	all := labRuled(1000, 1000).store.Catalog().Objects(mesh.KindVirtualService)
	b.ReportAllocs()
	for b.Loop() {
		if x := indexVirtualServices(all); len(x.byName) != 1000 {
			b.Fatal(len(x.byName))
		}
	}
}
