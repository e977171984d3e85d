package entry

import (
	"fmt"
	"testing"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// BenchmarkPodChange: what one pod costs that becomes ready, in a mesh of 10,000
// ServiceEntries of which one selects it and nine others select in its namespace.
func BenchmarkPodChange(b *testing.B) {
	x := NewIndex(domain)
	for ns := range 1000 {
		for i := range 10 {
			o := serviceEntry(fmt.Sprintf("e%d", i), int64(i), &networking.ServiceEntry{Hosts: []string{fmt.Sprintf("h%d.ns%d.example", i, ns)},
				Addresses: []string{"240.0.0.1"}, Ports: ports("http:80"), Resolution: networking.ServiceEntry_STATIC,
				WorkloadSelector: &networking.WorkloadSelector{Labels: map[string]string{"app": fmt.Sprintf("a%d", i)}}})
			o.Key.Namespace = fmt.Sprintf("ns%d", ns)
			x.SetEntry(o.Key, o)
		}
	}
	x.Flush(none)
	var pods []Pod
	for i := range 20 {
		p := pod("east", fmt.Sprintf("p%d", i), fmt.Sprintf("10.0.0.%d", i+1), map[string]string{"app": fmt.Sprintf("a%d", i%2)})
		p.Workload.Namespace = "ns7"
		x.SetPod(nil, &p)
		pods = append(pods, p)
	}
	x.Flush(none)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		now := pods[0]
		now.Health = []mesh.Health{mesh.HealthNotReady, mesh.HealthReady}[i%2]
		x.SetPod(&pods[0], &now)
		if len(x.Flush(none)) != 1 {
			b.Fatal("not exactly one host changed")
		}
		pods[0] = now
	}
}

// BenchmarkAllocate: virtual IPs for all hosts, as a new ServiceEntry costs.
func BenchmarkAllocate(b *testing.B) {
	var claims []Claim
	for i := range 10000 {
		claims = append(claims, Claim{Key: mesh.ServiceKey{Namespace: "shop", Hostname: mesh.Hostname(fmt.Sprintf("h%d.example", i))}})
	}
	b.ReportAllocs()
	for b.Loop() {
		Allocate(claims, nil)
	}
}
