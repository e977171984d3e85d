package build

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// ruledLab is 1,000 services of 4 pods each, every fifth with a DestinationRule
// of two subsets and a policy of their own.
func ruledLab(b *testing.B) *lab {
	b.Helper()
	l := newLab(nil)
	var services []registry.ServiceState
	var rules []registry.ObjectState
	for i := range 1000 {
		name := fmt.Sprintf("web-%d", i)
		st := labService(name, "shop", labPorts(labPort("http", 80, mesh.ProtocolHTTP)), []string{fmt.Sprintf("10.96.%d.%d", i>>8, i&255)})
		services = append(services, labPods(st, "c1", "", fmt.Sprintf("10.1.%d.%d", i>>6, 4*i&255), fmt.Sprintf("10.1.%d.%d", i>>6, (4*i+1)&255),
			fmt.Sprintf("10.1.%d.%d", i>>6, (4*i+2)&255), fmt.Sprintf("10.1.%d.%d", i>>6, (4*i+3)&255)))
		if i%5 == 0 {
			rules = append(rules, ruleState(b, name, "shop", "{host: "+name+`, trafficPolicy: {connectionPool: {tcp: {maxConnections: 100}}, outlierDetection: {consecutive5xxErrors: 5}},
				subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}]}`))
		}
	}
	l.services("c1", services...)
	l.objects(rules...)
	return l
}

// BenchmarkFullBuildWithRules builds and encodes all upstreams and assignments
// of a view from nothing: 1,000 services, 200 DestinationRules.
func BenchmarkFullBuildWithRules(b *testing.B) {
	l := ruledLab(b)
	in, v := l.in(), labSidecar()
	names := Upstreams{}.List(in, v)
	require.Greater(b, len(names), 1400)
	b.ReportAllocs()
	var bytes int
	for b.Loop() {
		bytes = 0
		var buf []byte
		for _, n := range (Upstreams{}).List(in, v) {
			m, err := Upstreams{}.Build(in, v, n)
			if err != nil {
				b.Fatal(err)
			}
			body, err := deterministic().Marshal(m)
			if err != nil {
				b.Fatal(err)
			}
			buf, _, err = Assignments{}.Encode(in, v, n, buf[:0])
			if err != nil {
				b.Fatal(err)
			}
			bytes += len(body) + len(buf)
		}
	}
	b.ReportMetric(float64(bytes), "bytes/view")
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(names)), "ns/upstream")
}

// BenchmarkProjectWithRules projects a view to each of those upstreams.
func BenchmarkProjectWithRules(b *testing.B) {
	l := ruledLab(b)
	in, v := l.in(), labSidecar()
	names := Upstreams{}.List(in, v)
	b.ReportAllocs()
	for b.Loop() {
		for _, n := range names {
			Upstreams{}.Project(in, v, n)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(names)), "ns/upstream")
}

// BenchmarkChangedRule makes the index anew after one of 200 rules changed, and
// finds what it concerns.
func BenchmarkChangedRule(b *testing.B) {
	l := ruledLab(b)
	change := ruleState(b, "web-0", "shop", "host: web-0")
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		o := *change.Object
		o.Version = fmt.Sprint(i)
		l.objects(registry.ObjectState{Key: change.Key, Object: &o})
		if n := len((Upstreams{}).Affected(l.in(), View{Kind: mesh.ProxySidecar}, &l.last).Names); n == 0 || n > 20 {
			b.Fatal(n)
		}
	}
}
