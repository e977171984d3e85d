package simulate

import (
	"fmt"
	"net"
	"sort"
	"strconv"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
)

// overprovisioning is how much more than its share the healthy part of a
// priority level or locality may take, in percent (Envoy's default).
const overprovisioning = 140

// Endpoints tells how an upstream spreads its load, largest share first:
// priority levels by how healthy they are, localities by weight if the upstream
// heeds it, endpoints by weight. Nothing if no endpoint takes requests.
//
// Source: "Priority levels" and "Locality weighted load balancing" in Envoy's
// documentation.
func (p *Proxy) Endpoints(upstream string) ([]Share, error) {
	a, err := p.assignment(upstream)
	if err != nil {
		return nil, err
	}
	shares := map[string]float64{}
	for level, load := range levelLoads(a) {
		if load == 0 {
			continue
		}
		spread(shares, a, uint32(level), load, p.Upstreams[upstream].GetCommonLbConfig().GetLocalityWeightedLbConfig() != nil)
	}
	out := make([]Share, 0, len(shares))
	for name, percent := range shares {
		out = append(out, Share{name, percent})
	}
	sort.Slice(out, func(i, j int) bool {
		if out[i].Percent != out[j].Percent {
			return out[i].Percent > out[j].Percent
		}
		return out[i].Name < out[j].Name
	})
	return out, nil
}

// assignment returns what an upstream spreads its load over.
func (p *Proxy) assignment(upstream string) (*endpointv3.ClusterLoadAssignment, error) {
	u := p.Upstreams[upstream]
	if u == nil {
		return nil, fmt.Errorf("balance %s: the proxy has no such upstream", upstream)
	}
	if u.GetType() != clusterv3.Cluster_EDS {
		return u.GetLoadAssignment(), nil
	}
	name := u.GetEdsClusterConfig().GetServiceName()
	if name == "" {
		name = upstream
	}
	a := p.Assignments[name]
	if a == nil {
		return nil, fmt.Errorf("balance %s: the proxy has no assignment %s", upstream, name)
	}
	return a, nil
}

// levelLoads is the percentage of requests that each priority level gets. The
// simulation knows no panic: a level without a healthy endpoint gets nothing.
func levelLoads(a *endpointv3.ClusterLoadAssignment) []float64 {
	var all, healthy []float64
	for _, l := range a.GetEndpoints() {
		for int(l.GetPriority()) >= len(all) {
			all, healthy = append(all, 0), append(healthy, 0)
		}
		for _, e := range l.GetLbEndpoints() {
			all[l.GetPriority()]++
			if serves(e) {
				healthy[l.GetPriority()]++
			}
		}
	}
	var total float64
	health := make([]float64, len(all))
	for i := range all {
		if all[i] > 0 {
			health[i] = min(100, overprovisioning*healthy[i]/all[i])
		}
		total += health[i]
	}
	if total == 0 {
		return nil
	}
	loads, left := make([]float64, len(all)), 100.0
	for i := range all {
		loads[i] = min(left, health[i]*100/min(100, total))
		left -= loads[i]
	}
	return loads
}

func spread(shares map[string]float64, a *endpointv3.ClusterLoadAssignment, level uint32, load float64, byLocality bool) {
	type part struct {
		locality *endpointv3.LocalityLbEndpoints
		weight   float64
	}
	var parts []part
	var total float64
	for _, l := range a.GetEndpoints() {
		if l.GetPriority() != level {
			continue
		}
		w := readyWeight(l)
		if byLocality && w > 0 {
			ready, n := 0.0, float64(len(l.GetLbEndpoints()))
			for _, e := range l.GetLbEndpoints() {
				if serves(e) {
					ready++
				}
			}
			w = float64(l.GetLoadBalancingWeight().GetValue()) * min(1, overprovisioning*ready/n/100)
		}
		parts, total = append(parts, part{l, w}), total+w
	}
	for _, x := range parts {
		for _, e := range x.locality.GetLbEndpoints() {
			if serves(e) && total > 0 {
				shares[address(e)] += load * x.weight / total * weight(e) / readyWeight(x.locality)
			}
		}
	}
}

func readyWeight(l *endpointv3.LocalityLbEndpoints) float64 {
	var sum float64
	for _, e := range l.GetLbEndpoints() {
		if serves(e) {
			sum += weight(e)
		}
	}
	return sum
}

func serves(e *endpointv3.LbEndpoint) bool {
	switch e.GetHealthStatus() {
	case corev3.HealthStatus_UNHEALTHY, corev3.HealthStatus_DRAINING, corev3.HealthStatus_TIMEOUT:
		return false
	}
	return true
}

func weight(e *endpointv3.LbEndpoint) float64 {
	if w := e.GetLoadBalancingWeight(); w != nil {
		return float64(w.GetValue())
	}
	return 1
}

func address(e *endpointv3.LbEndpoint) string {
	a := e.GetEndpoint().GetAddress()
	if p := a.GetPipe(); p != nil {
		return p.GetPath()
	}
	s := a.GetSocketAddress()
	return net.JoinHostPort(s.GetAddress(), strconv.Itoa(int(s.GetPortValue())))
}
