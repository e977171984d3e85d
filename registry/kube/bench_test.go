package kube

import (
	"fmt"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/isthmus-mesh/isthmus/registry"
)

// fill gives a translator services of a size, in slices of 100 as the slice
// controller makes them.
func fill(tr *Translator, services, endpoints int) (pods []*corev1.Pod, slices []*discoveryv1.EndpointSlice) {
	ip := netip.AddrFrom4([4]byte{10, 0, 0, 1})
	tr.Set(aNode("n1", "r1"))
	for s := range services {
		name := fmt.Sprintf("svc-%d", s)
		tr.Set(aService("a", name, aPort("http", 80)))
		var batch []discoveryv1.Endpoint
		for e := range endpoints {
			pod := fmt.Sprintf("%s-%d", name, e)
			pods = append(pods, aPod("a", pod, ip.String(), "n1"))
			batch = append(batch, anEndpoint(ip.String(), pod))
			ip = ip.Next()
			if len(batch) == 100 || e == endpoints-1 {
				slices = append(slices, aSlice("a", fmt.Sprintf("%s-%d", name, e/100), name, batch...))
				batch = nil
			}
		}
	}
	for _, p := range pods {
		tr.Set(p)
	}
	for _, s := range slices {
		tr.Set(s)
	}
	return pods, slices
}

var sink registry.Update

// BenchmarkTranslatePodUpdate is one pod that changes in a mesh of 1,000
// endpoints, to the update that the sink gets.
func BenchmarkTranslatePodUpdate(b *testing.B) {
	for _, size := range []int{10, 100, 1000} {
		b.Run(fmt.Sprintf("endpoints=%d", size), func(b *testing.B) {
			tr := NewTranslator(TranslatorConfig{Cluster: "east"})
			pods, _ := fill(tr, 1000/size, size)
			tr.Snapshot()
			one, two := pods[0], pods[0].DeepCopy()
			two.Labels["version"] = "v2"
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				tr.Set([]*corev1.Pod{two, one}[i%2])
				sink, _ = tr.Flush()
			}
			if len(sink.Services) != 1 {
				b.Fatal("nothing was translated")
			}
		})
	}
}

// BenchmarkTranslateSliceUpdate is one endpoint that becomes unready.
func BenchmarkTranslateSliceUpdate(b *testing.B) {
	for _, size := range []int{10, 100, 1000} {
		b.Run(fmt.Sprintf("endpoints=%d", size), func(b *testing.B) {
			tr := NewTranslator(TranslatorConfig{Cluster: "east"})
			_, slices := fill(tr, 1000/size, size)
			tr.Snapshot()
			one, two := slices[0], slices[0].DeepCopy()
			no := false
			two.Endpoints[0].Conditions.Ready = &no
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				tr.Set([]*discoveryv1.EndpointSlice{two, one}[i%2])
				sink, _ = tr.Flush()
			}
			if len(sink.Services) != 1 {
				b.Fatal("nothing was translated")
			}
		})
	}
}

// BenchmarkTranslateUnrelatedPodStatus is what most events of a cluster are: a
// pod whose change means nothing here.
func BenchmarkTranslateUnrelatedPodStatus(b *testing.B) {
	tr := NewTranslator(TranslatorConfig{Cluster: "east"})
	pods, _ := fill(tr, 10, 100)
	tr.Snapshot()
	b.ReportAllocs()
	for b.Loop() {
		tr.Set(pods[0])
		if _, changed := tr.Flush(); changed {
			b.Fatal("something changed")
		}
	}
}

// BenchmarkTranslateAll is the first report of 1,000 services with 10 endpoints.
func BenchmarkTranslateAll(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		tr := NewTranslator(TranslatorConfig{Cluster: "east"})
		fill(tr, 1000, 10)
		sink = tr.Snapshot()
	}
}
