package build

import (
	"cmp"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Where a client is may decide which endpoints it prefers. Distribution gives
// each locality a share of the traffic; failover gives localities priorities, so
// that the next ones get traffic when those before are not healthy. A client
// learns of readiness from its assignment, so failover needs no outlier
// detection, which only adds what the client itself sees of endpoints. Istio
// fails over only with outlier detection; here an object that asks for failover
// in so many words gets it (see [mesh.Settings.FailoverNeedsOutliers]).
//
// Source of the rules: https://istio.io/latest/docs/reference/config/networking/destination-rule/#LocalityLoadBalancerSetting

// Labels that stand for where an endpoint or a client is.
const (
	labelRegion  = "topology.kubernetes.io/region"
	labelZone    = "topology.kubernetes.io/zone"
	labelSubZone = "topology.istio.io/subzone"
	labelNetwork = "topology.istio.io/network"
	labelCluster = "topology.istio.io/cluster"
	labelNode    = "kubernetes.io/hostname"
)

// maxRank is above any rank that failover by locality gives.
const maxRank = 5

// preference is what a client prefers among the endpoints of a service port. The
// zero value prefers nothing.
type preference struct {
	setting *networking.LocalityLoadBalancerSetting
	// failover says that priorities are wanted.
	failover bool
}

// localityPreference works out which setting is in force: the DestinationRule's,
// else what the service asks for (trafficDistribution), else MeshConfig's.
func localityPreference(in Inputs, at served, p *networking.TrafficPolicy) preference {
	outliers := p.GetOutlierDetection() != nil
	if l := p.GetLoadBalancer().GetLocalityLbSetting(); l != nil {
		return preferred(in, l, outliers, true)
	}
	if keys := distributionKeys(at.service.Lead.TrafficDistribution); keys != nil {
		return preference{&networking.LocalityLoadBalancerSetting{FailoverPriority: keys}, true}
	}
	l := in.Catalog.Settings.Mesh.GetLocalityLbSetting()
	return preferred(in, l, outliers, len(l.GetFailover())+len(l.GetFailoverPriority()) > 0)
}

// preferred reads one setting. asked says that somebody wrote it to have
// failover, rather than that it is there by default.
func preferred(in Inputs, l *networking.LocalityLoadBalancerSetting, outliers, asked bool) preference {
	if l == nil || l.GetEnabled() != nil && !l.GetEnabled().GetValue() {
		return preference{}
	}
	if len(l.GetDistribute()) > 0 {
		return preference{setting: l}
	}
	return preference{l, outliers || asked && !in.Catalog.Settings.FailoverNeedsOutliers}
}

// distributionKeys are the labels in order of which a trafficDistribution
// prefers endpoints; nil if it asks for nothing.
func distributionKeys(d string) []string {
	switch strings.ToLower(d) {
	case "preferclose", "prefersamezone":
		return []string{labelNetwork, labelRegion, labelZone}
	case "prefersamenode":
		return []string{labelNetwork, labelRegion, labelZone, labelSubZone, labelNode}
	}
	return nil
}

// looksAt reduces a view to what the preference depends on.
func (f preference) looksAt(v View) View {
	switch {
	case f.setting == nil, !f.failover && len(f.setting.GetDistribute()) == 0:
		return View{}
	case len(f.setting.GetFailoverPriority()) == 0 || !f.failover:
		return View{Locality: v.Locality}
	}
	var keys []string
	out := View{}
	for _, k := range f.setting.GetFailoverPriority() {
		key, _, fixed := strings.Cut(k, "=")
		switch {
		case fixed:
		case key == labelRegion || key == labelZone || key == labelSubZone:
			out.Locality = v.Locality
		case key == labelNetwork:
			out.Network = v.Network
		case key == labelCluster:
			out.Cluster = v.Cluster
		case key == labelNode:
			out.Node = v.Node
		default:
			keys = append(keys, key)
		}
	}
	if len(f.setting.GetFailover()) > 0 {
		out.Locality = v.Locality
	}
	out.Labels = v.Labels.Only(keys)
	return out
}

// weighted makes an upstream heed the weights of localities where the users or
// the service asked for it.
func weighted(in Inputs, at served, p *networking.TrafficPolicy, u *clusterv3.Cluster) {
	f := localityPreference(in, at, p)
	l := in.Catalog.Settings.Mesh.GetLocalityLbSetting()
	if f.setting == nil || f.setting == l && len(l.GetDistribute())+len(l.GetFailover())+len(l.GetFailoverPriority()) == 0 {
		return
	}
	if u.CommonLbConfig == nil {
		u.CommonLbConfig = &clusterv3.Cluster_CommonLbConfig{}
	}
	u.CommonLbConfig.LocalityConfigSpecifier = &clusterv3.Cluster_CommonLbConfig_LocalityWeightedLbConfig_{
		LocalityWeightedLbConfig: &clusterv3.Cluster_CommonLbConfig_LocalityWeightedLbConfig{},
	}
}

// arrange gives the groups of a plan their priorities or shares.
func (p *plan) arrange(v View, f preference) {
	switch {
	case f.setting == nil || len(p.groups) == 0:
	case len(f.setting.GetDistribute()) > 0:
		p.distribute(v.Locality, f.setting.GetDistribute())
	case !f.failover:
	case len(f.setting.GetFailoverPriority()) > 0:
		p.byLabels(v, f.setting.GetFailoverPriority())
		if len(f.setting.GetFailover()) > 0 {
			p.byLocality(v.Locality, f.setting.GetFailover())
		}
		p.dense()
	default:
		p.byLocality(v.Locality, f.setting.GetFailover())
		p.dense()
	}
}

// distribute divides traffic by the first rule that is for the client's
// locality. Localities that it does not name keep their place with nothing to
// dial, as Istio's assignments have it.
func (p *plan) distribute(from mesh.Locality, rules []*networking.LocalityLoadBalancerSetting_Distribute) {
	i := slices.IndexFunc(rules, func(r *networking.LocalityLoadBalancerSetting_Distribute) bool { return inLocality(r.GetFrom(), from) })
	if i < 0 {
		return
	}
	named := make([]bool, len(p.groups))
	shares := make([]uint32, len(p.groups))
	for _, to := range sortedLocalities(rules[i].GetTo()) {
		var matched []int
		var total uint64
		for g := range p.groups {
			if !named[g] && inLocality(to, p.groups[g].locality) {
				named[g] = true
				matched = append(matched, g)
				total += uint64(p.groups[g].weight())
			}
		}
		for _, g := range matched {
			// Rounded up: a locality with endpoints never gets nothing.
			part := uint64(p.groups[g].weight()) * uint64(rules[i].GetTo()[to])
			shares[g] = saturate((part + total - 1) / total)
		}
	}
	for g := range p.groups {
		if named[g] && shares[g] > 0 {
			p.groups[g].share = shares[g]
			continue
		}
		p.groups[g].share = p.groups[g].weight()
		p.groups[g].picks = nil
	}
}

// sortedLocalities lists the localities of a rule, the most specific first, so
// that a locality which several match counts for the nearest.
func sortedLocalities(to map[string]uint32) []string {
	out := make([]string, 0, len(to))
	for k := range to {
		out = append(out, k)
	}
	slices.SortFunc(out, func(a, b string) int {
		return cmp.Or(cmp.Compare(strings.Count(b, "/")-strings.Count(b, "*"), strings.Count(a, "/")-strings.Count(a, "*")), cmp.Compare(a, b))
	})
	return out
}

// inLocality reports whether a locality is in REGION, REGION/ZONE or
// REGION/ZONE/SUBZONE, where "*" stands for all.
func inLocality(pattern string, l mesh.Locality) bool {
	parts := strings.SplitN(pattern, "/", 3)
	for i, have := range []string{l.Region, l.Zone, l.SubZone} {
		if i >= len(parts) || parts[i] == "*" {
			return true
		}
		if parts[i] != have {
			return false
		}
	}
	return true
}

// byLocality ranks groups by how near they are: the same subzone, zone, region,
// then the region that failover names for the client's, then all others.
func (p *plan) byLocality(from mesh.Locality, rules []*networking.LocalityLoadBalancerSetting_Failover) {
	for i := range p.groups {
		g := &p.groups[i]
		g.priority = g.priority*maxRank + nearness(from, g.locality, rules)
	}
}

func nearness(from, to mesh.Locality, rules []*networking.LocalityLoadBalancerSetting_Failover) uint32 {
	switch {
	case from.Region == to.Region && from.Zone == to.Zone && from.SubZone == to.SubZone:
		return 0
	case from.Region == to.Region && from.Zone == to.Zone:
		return 1
	case from.Region == to.Region:
		return 2
	}
	for _, r := range rules {
		if r.GetFrom() == from.Region {
			if to.Region != r.GetTo() {
				return 4
			}
			break
		}
	}
	return 3
}

// byLabels ranks what is dialled by how many labels it shares with the client,
// counted from the first until one differs, and splits groups by rank. A network
// named first is preferred whatever follows, but on other networks what follows
// counts, too: they take over from the nearest on.
func (p *plan) byLabels(v View, keys []string) {
	want := make([]labelWish, len(keys))
	own := v.Labels.Map()
	for i, k := range keys {
		key, value, fixed := strings.Cut(k, "=")
		if !fixed {
			if value = viewLabel(v, key); value == "" {
				value = own[key]
			}
		}
		want[i] = labelWish{key, value}
	}
	out := make([]planned, 0, len(p.groups))
	for i := range p.groups {
		g := &p.groups[i]
		from := len(out)
		for _, x := range g.picks {
			e := p.entry(x)
			rank := rankByLabels(want, &e, g.locality)
			at := slices.IndexFunc(out[from:], func(o planned) bool { return o.priority == rank })
			if at < 0 {
				at = len(out) - from
				out = append(out, planned{locality: g.locality, priority: rank})
			}
			out[from+at].picks = append(out[from+at].picks, x)
		}
		slices.SortFunc(out[from:], func(a, b planned) int { return cmp.Compare(a.priority, b.priority) })
	}
	p.groups = out
}

// labelWish is a label that a client prefers, with the value "" if it has none itself.
type labelWish struct{ key, value string }

func rankByLabels(want []labelWish, e *Entry, l mesh.Locality) uint32 {
	if want[0].key != labelNetwork {
		return uint32(len(want) - shared(want, e, l))
	}
	rest := want[1:]
	rank := len(rest) - shared(rest, e, l)
	if shared(want[:1], e, l) == 0 {
		rank += len(want) // after all of the client's network
	}
	return uint32(rank)
}

func shared(want []labelWish, e *Entry, l mesh.Locality) int {
	for i, w := range want {
		if entryLabel(e, l, w.key) != w.value {
			return i
		}
	}
	return len(want)
}

// viewLabel is the value of a label that says where a client is.
func viewLabel(v View, key string) string {
	switch key {
	case labelRegion:
		return v.Locality.Region
	case labelZone:
		return v.Locality.Zone
	case labelSubZone:
		return v.Locality.SubZone
	case labelNetwork:
		return string(v.Network)
	case labelCluster:
		return string(v.Cluster)
	case labelNode:
		return v.Node
	}
	return ""
}

// entryLabel is the value of a label of what is dialled. A gateway is where the
// endpoints behind it are; of their other labels it has none.
func entryLabel(e *Entry, l mesh.Locality, key string) string {
	switch key {
	case labelRegion:
		return l.Region
	case labelZone:
		return l.Zone
	case labelSubZone:
		return l.SubZone
	}
	if e.Gateway != nil {
		switch key {
		case labelNetwork:
			return string(e.Gateway.Network)
		case labelCluster:
			return string(e.Gateway.Cluster)
		}
		return ""
	}
	w := e.Endpoint.Workload
	switch key {
	case labelNetwork:
		return string(e.Endpoint.Network)
	case labelCluster:
		return string(w.Cluster)
	case labelNode:
		return w.Node
	}
	return w.Labels[key]
}

// dense numbers the priorities that occur from 0 without gaps, as clients need it.
func (p *plan) dense() {
	var ranks []uint32
	for i := range p.groups {
		if !slices.Contains(ranks, p.groups[i].priority) {
			ranks = append(ranks, p.groups[i].priority)
		}
	}
	slices.Sort(ranks)
	for i := range p.groups {
		p.groups[i].priority = uint32(slices.Index(ranks, p.groups[i].priority))
	}
}
