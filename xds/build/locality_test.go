package build

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

func labRule(name, ns string, spec *networking.DestinationRule) registry.ObjectState {
	k := mesh.ObjectKey{Kind: mesh.KindDestinationRule, Namespace: ns, Name: name}
	return registry.ObjectState{Key: k, Object: &mesh.Object{Key: k, Spec: spec}}
}

func (l *lab) objects(list ...registry.ObjectState) {
	l.sinks["c1"].Apply(registry.Update{Objects: list})
}

// geoLab has web.shop with one pod in each of five localities: three of region
// r1 in c1, and behind the gateway of n2 one in r2 and one in r3.
func geoLab(settings *meshconfig.MeshConfig) *lab {
	l := netLab(settings, gatewayAt("9.9.9.9"))
	for addr, at := range map[string]mesh.Locality{
		"10.1.0.1": {Region: "r1", Zone: "z1", SubZone: "a"}, "10.1.0.2": {Region: "r1", Zone: "z1", SubZone: "b"}, "10.1.0.3": {Region: "r1", Zone: "z2"},
	} {
		webPod(l, "c1", addr, func(e *mesh.Endpoint) { e.Workload.Locality = at })
	}
	for addr, at := range map[string]mesh.Locality{"10.2.0.1": {Region: "r2", Zone: "z3"}, "10.2.0.2": {Region: "r3", Zone: "z4"}} {
		webPod(l, "c2", addr, func(e *mesh.Endpoint) { e.Workload.Locality = at })
	}
	return l
}

var atHome = mesh.Locality{Region: "r1", Zone: "z1", SubZone: "a"}

func geoView(edits ...func(*View)) View {
	return labSidecar(append([]func(*View){func(v *View) { v.Network, v.Locality = "n1", atHome }}, edits...)...)
}

// priorities renders LOCALITY=PRIORITY for each group, with its share if a rule sets one.
func priorities(s Selection) []string {
	var out []string
	for _, g := range s.Groups {
		x := fmt.Sprintf("%s=%d", g.Locality, g.Priority)
		if g.Share != 0 {
			x += fmt.Sprintf(" share %d of %d", g.Share, len(g.Entries))
		}
		out = append(out, x)
	}
	return out
}

func lbSetting(s *networking.LocalityLoadBalancerSetting) *networking.DestinationRule {
	return &networking.DestinationRule{Host: "web", TrafficPolicy: &networking.TrafficPolicy{
		LoadBalancer: &networking.LoadBalancerSettings{LocalityLbSetting: s}}}
}

func TestFailoverByLocality(t *testing.T) {
	outliers := &networking.DestinationRule{Host: "web", TrafficPolicy: &networking.TrafficPolicy{OutlierDetection: &networking.OutlierDetection{}}}
	flat := []string{"r1/z1/a=0", "r1/z1/b=0", "r1/z2=0", "r2/z3=0", "r3/z4=0"}
	near := []string{"r1/z1/a=0", "r1/z1/b=1", "r1/z2=2", "r2/z3=3", "r3/z4=3"}
	toR3 := &networking.LocalityLoadBalancerSetting{Failover: []*networking.LocalityLoadBalancerSetting_Failover{{From: "r1", To: "r3"}}}
	for name, c := range map[string]struct {
		mesh     *networking.LocalityLoadBalancerSetting
		rule     *networking.DestinationRule
		at       mesh.Locality
		likeThem bool
		want     []string
	}{
		"nothing asked":                          {at: atHome, want: flat},
		"the mesh's default does not ask":        {mesh: &networking.LocalityLoadBalancerSetting{}, at: atHome, want: flat},
		"outlier detection and the default":      {mesh: &networking.LocalityLoadBalancerSetting{}, rule: outliers, at: atHome, want: near},
		"outlier detection in a mesh without":    {rule: outliers, at: atHome, want: flat},
		"asked without outlier detection":        {rule: lbSetting(toR3), at: atHome, want: []string{"r1/z1/a=0", "r1/z1/b=1", "r1/z2=2", "r2/z3=4", "r3/z4=3"}},
		"the mesh asks":                          {mesh: toR3, at: atHome, want: []string{"r1/z1/a=0", "r1/z1/b=1", "r1/z2=2", "r2/z3=4", "r3/z4=3"}},
		"as Istio has it":                        {rule: lbSetting(toR3), at: atHome, likeThem: true, want: flat},
		"a client in another region":             {rule: lbSetting(toR3), at: mesh.Locality{Region: "r2", Zone: "z3"}, want: []string{"r1/z1/a=1", "r1/z1/b=1", "r1/z2=1", "r2/z3=0", "r3/z4=1"}},
		"a client whose locality nobody knows":   {rule: lbSetting(toR3), want: flat},
		"switched off":                           {mesh: toR3, rule: lbSetting(&networking.LocalityLoadBalancerSetting{Enabled: boolean(false)}), at: atHome, want: flat},
		"a rule without a say leaves the mesh's": {mesh: toR3, rule: lbSetting(nil), at: atHome, want: []string{"r1/z1/a=0", "r1/z1/b=1", "r1/z2=2", "r2/z3=4", "r3/z4=3"}},
	} {
		t.Run(name, func(t *testing.T) {
			settings := &meshconfig.MeshConfig{LocalityLbSetting: c.mesh}
			l := geoLab(settings)
			l.store.SetSettings(mesh.Settings{Mesh: settings, FailoverNeedsOutliers: c.likeThem})
			if c.rule != nil {
				l.objects(labRule("web", "shop", c.rule))
			}
			require.Equal(t, c.want, priorities(l.selectWeb(geoView(func(v *View) { v.Locality = c.at }))))
		})
	}
}

func TestFailoverByLabels(t *testing.T) {
	l := geoLab(nil)
	webPod(l, "c1", "10.1.0.4", func(e *mesh.Endpoint) {
		e.Workload.Locality, e.Workload.Labels = atHome, map[string]string{"tier": "gold"}
	})
	rule := func(keys ...string) []string {
		l.objects(labRule("web", "shop", lbSetting(&networking.LocalityLoadBalancerSetting{FailoverPriority: keys})))
		return priorities(l.selectWeb(geoView(func(v *View) { v.Labels = MakeLabels(map[string]string{"tier": "gold"}, []string{"tier"}) })))
	}
	require.Equal(t, []string{"r1/z1/a=0", "r1/z1/b=0", "r1/z2=0", "r2/z3=1", "r3/z4=1"}, rule(labelCluster), "gateways are in the cluster that they stand for")
	require.Equal(t, []string{"r1/z1/a=0", "r1/z1/a=1", "r1/z1/b=1", "r1/z2=1", "r2/z3=2", "r3/z4=2"}, rule(labelRegion, "tier"),
		"one locality at two priorities, and gateways keep the region of what is behind them")
	require.Equal(t, []string{"r1/z1/a=0", "r1/z1/b=0", "r1/z2=0", "r2/z3=1", "r3/z4=1"}, rule(labelRegion+"=r1", labelNetwork))
	require.Equal(t, []string{"r1/z1/a=1", "r1/z1/b=1", "r1/z2=1", "r2/z3=0", "r3/z4=1"}, rule(labelRegion+"=r2"), "a value stands in for the client's own")
	require.Equal(t, []string{"r1/z1/a=0", "r1/z1/b=0", "r1/z2=0", "r2/z3=0", "r3/z4=0"}, rule("unknown"))
}

// TestNetworkFirst: a network named first splits the others into those within and
// those outside, and outside they count, too.
func TestNetworkFirst(t *testing.T) {
	l := geoLab(nil)
	webPod(l, "c2", "10.2.0.3", func(e *mesh.Endpoint) { e.Workload.Locality = atHome })
	webPod(l, "c2", "10.2.0.4", func(e *mesh.Endpoint) { e.Workload.Locality = mesh.Locality{Region: "r1", Zone: "z2"} })
	webPod(l, "c1", "10.1.0.5", func(e *mesh.Endpoint) { e.Workload.Locality = mesh.Locality{Region: "r4"} })
	rule := func(keys ...string) []string {
		l.objects(labRule("web", "shop", lbSetting(&networking.LocalityLoadBalancerSetting{FailoverPriority: keys})))
		return priorities(l.selectWeb(geoView()))
	}
	require.Equal(t, []string{"r1/z1/a=0", "r1/z1/a=3", "r1/z1/b=0", "r1/z2=1", "r1/z2=4", "r2/z3=5", "r3/z4=5", "r4=2"},
		rule(labelNetwork, labelRegion, labelZone), "the farthest of the own network goes before the nearest of another")
	require.Equal(t, []string{"r1/z1/a=0", "r1/z1/a=1", "r1/z1/b=0", "r1/z2=0", "r1/z2=1", "r2/z3=1", "r3/z4=1", "r4=0"}, rule(labelNetwork))
	require.Equal(t, []string{"r1/z1/a=0", "r1/z1/a=1", "r1/z1/b=0", "r1/z2=0", "r1/z2=1", "r2/z3=2", "r3/z4=2", "r4=2"}, rule(labelRegion, labelNetwork), "elsewhere it is as any other label")
}

func TestTrafficDistribution(t *testing.T) {
	l := geoLab(nil)
	for id, state := range map[mesh.ClusterID]registry.ServiceState{"c1": labService("web", "shop", webPorts, []string{"10.96.0.1"}, func(d *mesh.Definition) { d.TrafficDistribution = "PreferClose" })} {
		state.Endpoints = l.podsOf(id, state.Key)
		l.services(id, state)
	}
	require.Equal(t, []string{"r1/z1/a=0", "r1/z1/b=0", "r1/z2=1", "r2/z3=2", "r3/z4=2"}, priorities(l.selectWeb(geoView())))
	l.objects(labRule("web", "shop", lbSetting(&networking.LocalityLoadBalancerSetting{Enabled: boolean(false)})))
	require.Equal(t, []string{"r1/z1/a=0", "r1/z1/b=0", "r1/z2=0", "r2/z3=0", "r3/z4=0"}, priorities(l.selectWeb(geoView())), "a rule goes first")
}

func TestDistribute(t *testing.T) {
	to := func(from string, m map[string]uint32) *networking.LocalityLoadBalancerSetting_Distribute {
		return &networking.LocalityLoadBalancerSetting_Distribute{From: from, To: m}
	}
	l := geoLab(nil)
	l.objects(labRule("web", "shop", lbSetting(&networking.LocalityLoadBalancerSetting{Distribute: []*networking.LocalityLoadBalancerSetting_Distribute{
		to("r1/z1/*", map[string]uint32{"r1/z1/*": 70, "r1/z2/*": 20, "r2/*": 10}), to("r2/*", map[string]uint32{"*": 100}),
	}})))
	require.Equal(t, []string{"r1/z1/a=0 share 35 of 1", "r1/z1/b=0 share 35 of 1", "r1/z2=0 share 20 of 1", "r2/z3=0 share 10 of 1", "r3/z4=0 share 1 of 0"},
		priorities(l.selectWeb(geoView())), "what is not named keeps its place without anything to dial")
	require.Equal(t, []string{"r1/z1/a=0 share 20 of 1", "r1/z1/b=0 share 20 of 1", "r1/z2=0 share 20 of 1", "r2/z3=0 share 20 of 1", "r3/z4=0 share 20 of 1"},
		priorities(l.selectWeb(geoView(func(v *View) { v.Locality = mesh.Locality{Region: "r2", Zone: "z9"} }))))
	require.Equal(t, []string{"r1/z1/a=0", "r1/z1/b=0", "r1/z2=0", "r2/z3=0", "r3/z4=0"},
		priorities(l.selectWeb(geoView(func(v *View) { v.Locality = mesh.Locality{Region: "r9"} }))), "no rule for the client's locality")
}

// A preference is in the key of an assignment exactly as far as it matters.
func TestProjectLocality(t *testing.T) {
	l := geoLab(nil)
	project := func(v View) View { return Assignments{}.Project(l.in(), v, "outbound|80||web.shop.svc.cluster.local") }
	far := geoView(func(v *View) { v.Locality = mesh.Locality{Region: "r2"} })
	require.Equal(t, project(geoView()), project(far), "nobody prefers anything")
	l.objects(labRule("web", "shop", lbSetting(&networking.LocalityLoadBalancerSetting{FailoverPriority: []string{labelCluster}})))
	require.Equal(t, project(geoView()), project(far), "only the cluster counts")
	require.NotEqual(t, project(geoView()), project(geoView(func(v *View) { v.Cluster = "c2" })))
	l.objects(labRule("web", "shop", lbSetting(&networking.LocalityLoadBalancerSetting{})))
	require.NotEqual(t, project(geoView()), project(far))
}

func TestDistinctKeepsTheBestPriority(t *testing.T) {
	l := geoLab(nil) // 9.9.9.9 stands for r2 and r3
	l.objects(labRule("web", "shop", lbSetting(&networking.LocalityLoadBalancerSetting{Failover: []*networking.LocalityLoadBalancerSetting_Failover{{From: "r1", To: "r3"}}})))
	sel := l.selectWeb(geoView(func(v *View) { v.Dialect = mesh.DialectGRPC }))
	require.Equal(t, []string{"r1/z1/a=0", "r1/z1/b=1", "r1/z2=2", "r3/z4=3"}, priorities(sel))
}
