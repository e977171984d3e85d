package xds

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/isthmus-mesh/isthmus/registry"
)

// benchProxy is a transport that accepts every response at once, and costs as
// little as it can.
type benchProxy struct {
	ctx    context.Context
	cancel context.CancelFunc
	delta  bool
	in     chan []byte
	names  []string // repeated in acknowledgements of assignments, state of the world only
	eds    *sync.WaitGroup
	acks   [2][]byte // requests without and with names, the nonce at the end
}

func (p *benchProxy) Context() context.Context { return p.ctx }

func (p *benchProxy) Recv(r *request) error {
	select {
	case b := <-p.in:
		return r.decode(b)
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
}

func (p *benchProxy) Send(r *response) error {
	tail := r.data[len(r.data)-1].ReadOnlyData()
	nonce := tail[len(tail)-versionLen:]
	var ack []byte
	if p.delta {
		ack = marshalACK(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: TypeEDS, ResponseNonce: string(nonce)})
	} else {
		ack = append(append(make([]byte, 0, len(p.acks[1])), p.acks[1][:len(p.acks[1])-versionLen]...), nonce...)
	}
	p.in <- ack
	p.eds.Done()
	return nil
}

func marshalACK(m proto.Message) []byte {
	b, _ := proto.Marshal(m)
	return b
}

func (p *benchProxy) Abort(*status.Status) { p.cancel() }

// fleet connects n proxies that are subscribed to the assignments of s services.
func fleet(b *testing.B, delta bool, n, s int) (*world, *sync.WaitGroup) {
	w := newWorld(b, nil)
	u := registry.Update{}
	names := make([]string, s)
	for i := range s {
		var pods []string
		for e := range 10 {
			pods = append(pods, fmt.Sprintf("10.%d.%d.%d/x", i/250, i%250, e+1))
		}
		u.Services = append(u.Services, serviceState("east", fmt.Sprint("s", i), svc{pods: pods}))
		names[i] = assignment(fmt.Sprint("s", i))
	}
	w.sinks["east"].Apply(u)
	eds := &sync.WaitGroup{}
	var done sync.WaitGroup
	var proxies []*benchProxy
	for i := range n {
		p := &benchProxy{delta: delta, in: make(chan []byte, 4), names: names, eds: eds}
		p.ctx, p.cancel = context.WithCancel(context.Background()) //nolint:fatcontext // one per proxy
		node := labNode(fmt.Sprintf("10.9.%d.%d", i/250, i%250), "east", "net-east", "shop", nil)
		eds.Add(1)
		if delta {
			p.in <- marshalACK(&discoveryv3.DeltaDiscoveryRequest{Node: node, TypeUrl: TypeEDS, ResourceNamesSubscribe: names})
		} else {
			p.in <- marshalACK(&discoveryv3.DiscoveryRequest{Node: node, TypeUrl: TypeEDS, ResourceNames: names})
			p.acks[1] = marshalACK(&discoveryv3.DiscoveryRequest{TypeUrl: TypeEDS, ResourceNames: names, ResponseNonce: hex16(1)})
		}
		proxies = append(proxies, p)
		done.Go(func() { _ = w.srv.serve(p, delta) })
	}
	b.Cleanup(func() {
		for _, p := range proxies {
			p.cancel()
		}
		done.Wait()
		w.stop()
	})
	return w, eds
}

// BenchmarkEndpointChange is one changed endpoint, sent to 1,000 proxies that
// have 1,000 services and acknowledge it, without the transport.
func BenchmarkEndpointChange(b *testing.B) {
	for name, delta := range map[string]bool{"delta": true, "sotw": false} {
		b.Run(name, func(b *testing.B) {
			const n = 1000
			w, eds := fleet(b, delta, n, 1000)
			eds.Wait()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			i := 0
			for b.Loop() {
				i++
				eds.Add(n)
				w.put("east", "s0", svc{pods: []string{fmt.Sprintf("10.250.%d.%d/x", i/250%250, i%250)}})
				eds.Wait()
			}
			runtime.ReadMemStats(&after)
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/proxy")
			b.ReportMetric(float64(after.Mallocs-before.Mallocs)/float64(i*n), "allocs/proxy")
			b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/float64(i*n), "B/proxy")
		})
	}
}

// BenchmarkSync is 1,000 proxies that subscribe to 1,000 assignments.
func BenchmarkSync(b *testing.B) {
	for b.Loop() {
		_, eds := fleet(b, true, 1000, 1000)
		eds.Wait()
	}
}

// BenchmarkIdleStream reports what the engine holds per connected proxy that is
// subscribed to 1,000 assignments, without the transport.
func BenchmarkIdleStream(b *testing.B) {
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	for b.Loop() {
		_, eds := fleet(b, true, 10, 1000)
		eds.Wait()
		before := heap()
		_, eds = fleet(b, true, 1010, 1000)
		eds.Wait()
		b.ReportMetric(float64(heap()-before)/1000, "B/stream")
	}
}

func BenchmarkAssemble(b *testing.B) {
	w, eds := fleet(b, true, 1, 1000)
	eds.Wait()
	s := w.srv.all()[0]
	require.NotNil(b, s.types[1].group)
	b.ReportAllocs()
	for b.Loop() {
		j := job{kind: w.srv.kinds.eds, group: s.types[1].group, dirty: dirtySet{all: true}}
		if !s.make(&j) {
			b.Fatal("nothing")
		}
	}
}
