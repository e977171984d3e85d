//go:build unix

package xds

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/registry/config"
	"github.com/isthmus-mesh/isthmus/xds/build"
)

// routeProxy is a transport that accepts every response at once and counts bytes.
type routeProxy struct {
	ctx    context.Context
	cancel context.CancelFunc
	in     chan []byte
	heard  *sync.WaitGroup
	bytes  *atomic.Int64
}

func (p *routeProxy) Context() context.Context { return p.ctx }

func (p *routeProxy) Recv(r *request) error {
	select {
	case b := <-p.in:
		return r.decode(b)
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
}

func (p *routeProxy) Send(r *response) error {
	tail := r.data[len(r.data)-1].ReadOnlyData()
	for _, d := range r.data {
		p.bytes.Add(int64(d.Len()))
	}
	p.in <- marshalACK(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: TypeRDS, ResponseNonce: string(tail[len(tail)-versionLen:])})
	p.heard.Done()
	return nil
}

// ruleOf is the VirtualService of service i, for everybody or one namespace.
func ruleOf(i, version int, exportTo ...string) registry.ObjectState {
	name := fmt.Sprint("s", i)
	k := mesh.ObjectKey{Kind: mesh.KindVirtualService, Namespace: "shop", Name: name}
	return registry.ObjectState{Key: k, Object: &mesh.Object{Key: k, Version: fmt.Sprint(version), Spec: &networking.VirtualService{
		Hosts: []string{name}, ExportTo: exportTo,
		Http: []*networking.HTTPRoute{{Timeout: durationpb.New(time.Duration(version+1) * time.Second),
			Route: []*networking.HTTPRouteDestination{{Destination: &networking.Destination{Host: name}}}}},
	}}}
}

// routeFleet connects n proxies of ten namespaces that are subscribed to the
// routes of a port with 1,000 services, 200 of which have a VirtualService.
func routeFleet(b *testing.B, n int) (w *world, heard *sync.WaitGroup, sent *atomic.Int64) {
	w = newWorld(b, func(c *Config) {
		c.Generators = []build.Generator{build.Upstreams{}, build.Assignments{}, build.Listeners{}, build.Routes{}}
		c.DeriveView, c.ViewConcerned = build.DeriveView, build.ViewConcerned
	})
	w.store.SetSettings(config.Defaults())
	u := registry.Update{}
	for i := range 1000 {
		s := serviceState("east", fmt.Sprint("s", i), svc{})
		s.Definition.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(i / 250), byte(i%250 + 1)})}
		u.Services = append(u.Services, s)
	}
	for i := range 200 {
		u.Objects = append(u.Objects, ruleOf(i, 0))
	}
	w.sinks["east"].Apply(u)
	heard, sent = &sync.WaitGroup{}, &atomic.Int64{}
	var done sync.WaitGroup
	var proxies []*routeProxy
	for i := range n {
		p := &routeProxy{in: make(chan []byte, 4), heard: heard, bytes: sent}
		p.ctx, p.cancel = context.WithCancel(context.Background()) //nolint:fatcontext // one per proxy
		node := labNode(fmt.Sprintf("10.9.%d.%d", i/250, i%250), "east", "net-east", fmt.Sprint("ns-", i%10), nil)
		heard.Add(1)
		p.in <- marshalACK(&discoveryv3.DeltaDiscoveryRequest{Node: node, TypeUrl: TypeRDS, ResourceNamesSubscribe: []string{"80"}})
		proxies = append(proxies, p)
		done.Go(func() { _ = w.srv.serve(p, true) })
	}
	heard.Wait()
	b.Cleanup(func() {
		for _, p := range proxies {
			p.cancel()
		}
		done.Wait()
		w.stop()
	})
	return w, heard, sent
}

func cpuTime(b *testing.B) time.Duration {
	var r syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &r))
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// BenchmarkRuleChange is one changed VirtualService in a mesh of 1,000 services,
// 200 VirtualServices and 1,000 proxies of ten namespaces, without the transport:
// one that everybody sees, and one that is exported to one namespace.
func BenchmarkRuleChange(b *testing.B) {
	const n = 1000
	for name, c := range map[string]struct {
		exportTo []string
		hear     int
	}{"everybody": {nil, n}, "one namespace": {[]string{"ns-1"}, n / 10}} {
		b.Run(name, func(b *testing.B) {
			w, heard, sent := routeFleet(b, n)
			change := func(version int) {
				w.sinks["east"].Apply(registry.Update{Objects: []registry.ObjectState{ruleOf(0, version, c.exportTo...)}})
			}
			if len(c.exportTo) > 0 {
				heard.Add(n) // the others lose the rule
				change(1)
				heard.Wait()
			}
			sent.Store(0)
			cpu, i := cpuTime(b), 1
			for b.Loop() {
				i++
				heard.Add(c.hear)
				change(i)
				heard.Wait()
			}
			b.ReportMetric(float64((cpuTime(b)-cpu).Microseconds())/float64(i-1), "cpu-µs/change")
			b.ReportMetric(float64(sent.Load())/float64(i-1), "sent-B/change")
		})
	}
}

func (p *routeProxy) Abort(*status.Status) { p.cancel() }
