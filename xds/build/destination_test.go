package build

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
	typebeta "istio.io/api/type/v1beta1"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/registry/config"
	"github.com/isthmus-mesh/isthmus/testenv/validate"
)

// ruleState is a DestinationRule from its spec in YAML; the older year is older.
func ruleState(t testing.TB, name, ns, spec string, year ...int) registry.ObjectState {
	t.Helper()
	doc, err := yaml.YAMLToJSON([]byte(spec))
	require.NoError(t, err)
	r := &networking.DestinationRule{}
	require.NoError(t, protojson.Unmarshal(doc, r))
	k := mesh.ObjectKey{Kind: mesh.KindDestinationRule, Namespace: ns, Name: name}
	o := &mesh.Object{Key: k, Version: fmt.Sprint(spec, year), Spec: r, Origin: mesh.ObjectRef{Cluster: "c1", Kind: string(k.Kind), Namespace: ns, Name: name}}
	for _, y := range year {
		o.Created = time.Date(y, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	return registry.ObjectState{Key: k, Object: o}
}

// ruleLab has the services web.shop, api.store and conf.root-ns, and istio-system
// as root namespace.
func ruleLab(edits ...func(*meshconfig.MeshConfig)) *lab {
	m := &meshconfig.MeshConfig{TrustDomain: "td", RootNamespace: mixRoot}
	for _, e := range edits {
		e(m)
	}
	l := newLab(m, "c2")
	ports := labPorts(labPort("http", 80, mesh.ProtocolHTTP))
	l.services("c1", labService("web", "shop", ports, []string{"10.96.0.1"}), labService("api", "store", ports, []string{"10.96.0.2"}),
		labService("conf", mixRoot, ports, []string{"10.96.0.3"}))
	return l
}

// ruleOf names the rule that a client of a namespace gets about a service.
func (l *lab) ruleOf(ns, service string, labels map[string]string) string {
	in := l.in()
	v := labSidecar(func(v *View) {
		v.Namespace, v.Labels = ns, MakeLabels(labels, policyLabelKeys(in))
	})
	name, space, _ := strings.Cut(service, ".")
	s := in.Catalog.Service(mesh.ServiceKey{Namespace: space, Hostname: mesh.Hostname(name + "." + space + ".svc.cluster.local")})
	r := ruleFor(in, v, s)
	if r == nil {
		return ""
	}
	return r.origin.Key.Namespace + "/" + r.origin.Key.Name
}

func TestWhoseRuleIsInForce(t *testing.T) {
	private := func(m *meshconfig.MeshConfig) { m.DefaultDestinationRuleExportTo = []string{"."} }
	listed := func(m *meshconfig.MeshConfig) { m.DefaultDestinationRuleExportTo = []string{".", "shop"} }
	for name, tc := range map[string]struct {
		edit    func(*meshconfig.MeshConfig)
		rules   []registry.ObjectState
		client  string
		labels  map[string]string
		service string
		want    string
	}{
		"the client's namespace goes first": {client: "shop", service: "api.store", want: "shop/r", rules: []registry.ObjectState{
			ruleState(t, "r", "shop", "host: api.store.svc.cluster.local"), ruleState(t, "r", "store", "host: api")}},
		"then the service's": {client: "shop", service: "api.store", want: "store/r", rules: []registry.ObjectState{
			ruleState(t, "r", mixRoot, "host: api.store.svc.cluster.local"), ruleState(t, "r", "store", "host: api")}},
		"then the root namespace's": {client: "shop", service: "api.store", want: "istio-system/r", rules: []registry.ObjectState{
			ruleState(t, "r", mixRoot, "host: '*.svc.cluster.local'"), ruleState(t, "r", "other", "host: api.store.svc.cluster.local")}},
		"a wildcard of the client's namespace goes before an exact host of the service's": {client: "shop", service: "api.store", want: "shop/r", rules: []registry.ObjectState{
			ruleState(t, "r", "shop", "host: '*.local'"), ruleState(t, "r", "store", "host: api")}},
		"an exact host before a wildcard, a longer one before a shorter": {client: "shop", service: "api.store", want: "store/c", rules: []registry.ObjectState{
			ruleState(t, "a", "store", "host: '*.local'"), ruleState(t, "b", "store", "host: '*.cluster.local'"), ruleState(t, "c", "store", "host: '*.store.svc.cluster.local'")}},
		"what is not exported is not seen": {client: "shop", service: "api.store", want: "", rules: []registry.ObjectState{
			ruleState(t, "r", "store", "{host: api, exportTo: ['.']}")}},
		"what is not seen hides nothing": {client: "shop", service: "api.store", want: "store/wide", rules: []registry.ObjectState{
			ruleState(t, "near", "store", "{host: api, exportTo: ['.']}"), ruleState(t, "wide", "store", "host: '*.local'")}},
		"a rule that is for others only is not for its own namespace": {client: "store", service: "api.store", want: "", rules: []registry.ObjectState{
			ruleState(t, "r", "store", "{host: api, exportTo: [shop]}")}},
		"by default rules may be private":                {edit: private, client: "shop", service: "api.store", want: "", rules: []registry.ObjectState{ruleState(t, "r", "store", "host: api")}},
		"the default may name namespaces beside the own": {edit: listed, client: "shop", service: "api.store", want: "store/r", rules: []registry.ObjectState{ruleState(t, "r", "store", "host: api")}},
		"and nobody else is meant":                       {edit: listed, client: "other", service: "api.store", want: "", rules: []registry.ObjectState{ruleState(t, "r", "store", "host: api")}},
		"the default is for rules that say nothing": {edit: private, client: "shop", service: "api.store", want: "store/r", rules: []registry.ObjectState{
			ruleState(t, "r", "store", "{host: api, exportTo: ['*']}")}},
		"private rules are for their own namespace": {edit: private, client: "store", service: "api.store", want: "store/r", rules: []registry.ObjectState{ruleState(t, "r", "store", "host: api")}},
		"in the root namespace a service's own rule goes first": {client: mixRoot, service: "api.store", want: "store/r", rules: []registry.ObjectState{
			ruleState(t, "r", "store", "host: api"), ruleState(t, "mesh", mixRoot, "host: '*'")}},
		"unless nobody else can see the root's": {client: mixRoot, service: "api.store", want: "istio-system/mine", rules: []registry.ObjectState{
			ruleState(t, "r", "store", "host: api"), ruleState(t, "mine", mixRoot, "{host: '*', exportTo: ['.']}")}},
		"the root namespace's rules hold for its own services": {client: mixRoot, service: "conf.istio-system", want: "istio-system/mesh", rules: []registry.ObjectState{
			ruleState(t, "mesh", mixRoot, "host: '*'")}},
		"a selected workload gets the rule that selects it": {client: "shop", labels: map[string]string{"app": "x", "tier": "1"}, service: "api.store", want: "shop/for-x", rules: []registry.ObjectState{
			ruleState(t, "all", "shop", "host: api.store.svc.cluster.local", 2020), ruleState(t, "for-x", "shop", "{host: api.store.svc.cluster.local, workloadSelector: {matchLabels: {app: x}}}", 2021)}},
		"and another one that for all": {client: "shop", labels: map[string]string{"app": "y"}, service: "api.store", want: "shop/all", rules: []registry.ObjectState{
			ruleState(t, "all", "shop", "host: api.store.svc.cluster.local", 2021), ruleState(t, "for-x", "shop", "{host: api.store.svc.cluster.local, workloadSelector: {matchLabels: {app: x}}}", 2020)}},
		"a selector does not reach into other namespaces": {client: "shop", labels: map[string]string{"app": "x"}, service: "api.store", want: "", rules: []registry.ObjectState{
			ruleState(t, "for-x", "store", "{host: api, exportTo: ['*'], workloadSelector: {matchLabels: {app: x}}}")}},
	} {
		t.Run(name, func(t *testing.T) {
			l := ruleLab()
			if tc.edit != nil {
				l = ruleLab(tc.edit)
			}
			l.objects(tc.rules...)
			require.Equal(t, tc.want, l.ruleOf(tc.client, tc.service, tc.labels))
		})
	}
}

// TestRulesOfOneHostAreOneRule: the oldest word counts, for subsets each by itself.
func TestRulesOfOneHostAreOneRule(t *testing.T) {
	l := ruleLab()
	l.objects(
		ruleState(t, "a", "shop", "{host: web, subsets: [{name: v1, labels: {version: old}}]}", 2020),
		ruleState(t, "b", "shop", "{host: web.shop.svc.cluster.local, trafficPolicy: {loadBalancer: {simple: RANDOM}}, subsets: [{name: v1, labels: {version: new}}, {name: v2, labels: {version: v2}}]}", 2021),
		ruleState(t, "c", "shop", "{host: web, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}, exportTo: [store]}", 2019))
	s := l.in().Catalog.Service(mesh.ServiceKey{Namespace: "shop", Hostname: "web.shop.svc.cluster.local"})
	mine := ruleFor(l.in(), labSidecar(), s)
	require.Equal(t, "a", mine.origin.Key.Name)
	require.Equal(t, networking.LoadBalancerSettings_RANDOM, mine.policy.GetLoadBalancer().GetSimple())
	require.Equal(t, map[string]string{"version": "old"}, mine.subset("v1").GetLabels())
	require.NotNil(t, mine.subset("v2"))
	theirs := ruleFor(l.in(), labSidecar(func(v *View) { v.Namespace = "store" }), s)
	require.Equal(t, "c", theirs.origin.Key.Name, "whoever sees one more has another rule")
	require.Equal(t, networking.LoadBalancerSettings_ROUND_ROBIN, theirs.policy.GetLoadBalancer().GetSimple())
	require.NotNil(t, theirs.subset("v2"))
	require.Same(t, theirs, ruleFor(l.in(), labSidecar(func(v *View) { v.Namespace = "store" }), s))
}

// TestSubsetsByWhereEndpointsAre: where an endpoint is counts as its labels do.
func TestSubsetsByWhereEndpointsAre(t *testing.T) {
	e := &mesh.Endpoint{Network: "n1", Workload: &mesh.Workload{Cluster: "c1", Node: "node1", Locality: mesh.Locality{Region: "r", Zone: "z", SubZone: "s"},
		Labels: map[string]string{"version": "v1", "empty": "", labelRegion: "not this"}}}
	for want, labels := range map[bool][]map[string]string{
		true: {nil, {"version": "v1"}, {labelCluster: "c1", labelNetwork: "n1"}, {labelRegion: "r", labelZone: "z", labelSubZone: "s"}, {labelNode: "node1"}, {"empty": ""}},
		false: {{"version": "v2"}, {labelCluster: "c2"}, {labelNetwork: "n2"}, {"version": "v1", labelCluster: "c2"}, {"absent": ""},
			{labelRegion: "not this"}, {labelSubZone: ""}},
	} {
		for _, l := range labels {
			require.Equal(t, want, inSubset(e, &networking.Subset{Labels: l}), "%v", l)
		}
	}
}

// TestChangedRuleNamesItsUpstreams: those of its hosts and of no other.
func TestChangedRuleNamesItsUpstreams(t *testing.T) {
	l := ruleLab()
	l.objects(ruleState(t, "other", "store", "{host: api, subsets: [{name: east}]}"), ruleState(t, "r", "shop", "{host: web, subsets: [{name: old}]}"))
	l.objects(ruleState(t, "r", "shop", "{host: web, subsets: [{name: new}]}"))
	want := []string{"outbound_.80_._.web.shop.svc.cluster.local", "outbound_.80_.new_.web.shop.svc.cluster.local", "outbound_.80_.old_.web.shop.svc.cluster.local",
		"outbound|80||web.shop.svc.cluster.local", "outbound|80|new|web.shop.svc.cluster.local", "outbound|80|old|web.shop.svc.cluster.local"}
	require.ElementsMatch(t, want, Assignments{}.Affected(l.in(), View{}, &l.last).Names)
	require.ElementsMatch(t, append(want, "inbound|80||"), Upstreams{}.Affected(l.in(), View{Kind: mesh.ProxySidecar}, &l.last).Names)

	l.objects(ruleState(t, "wide", "shop", "host: '*.store.svc.cluster.local'"))
	require.ElementsMatch(t, []string{"outbound_.80_._.api.store.svc.cluster.local", "outbound_.80_.east_.api.store.svc.cluster.local",
		"outbound|80||api.store.svc.cluster.local", "outbound|80|east|api.store.svc.cluster.local"},
		Assignments{}.Affected(l.in(), View{}, &l.last).Names, "the rule that it hides or uncovers may have subsets")
}

// TestPassingThroughFollowsTheEndpoints: where a rule makes an upstream dial the
// original destination, its TLS depends on all endpoints, as that of headless
// services does.
func TestPassingThroughFollowsTheEndpoints(t *testing.T) {
	l := ruleLab()
	l.objects(ruleState(t, "r", "shop", "{host: web, trafficPolicy: {loadBalancer: {simple: PASSTHROUGH}}}"))
	pods := func(mtls bool) registry.ServiceState {
		st := labPods(labService("web", "shop", labPorts(labPort("http", 80, mesh.ProtocolHTTP)), []string{"10.96.0.1"}), "c1", "", "10.0.0.1")
		st.Endpoints[0].Workload.MTLS = mtls
		return st
	}
	const name = "outbound|80||web.shop.svc.cluster.local"
	l.services("c1", pods(true))
	require.NotNil(t, tlsOf(t, l.upstreams(t, labSidecar())[name]))
	l.services("c1", pods(false))
	require.Nil(t, tlsOf(t, l.upstreams(t, labSidecar())[name]))
	require.Contains(t, Upstreams{}.Affected(l.in(), View{Kind: mesh.ProxySidecar}, &l.last).Names, name)
}

// TestRuleKeepsViewsTogether: what a rule makes of a service is shared by all
// that get the same rule, and told apart where they do not.
func TestRuleKeepsViewsTogether(t *testing.T) {
	l := ruleLab()
	const name = "outbound|80||api.store.svc.cluster.local"
	project := func(ns string, labels map[string]string) View {
		v := labSidecar(func(v *View) { v.Namespace, v.Labels = ns, MakeLabels(labels, []string{"app", "tier"}) })
		return Upstreams{}.Project(l.in(), v, name)
	}
	l.objects(ruleState(t, "r", "store", "host: api"))
	require.Equal(t, View{}, project("shop", map[string]string{"app": "x"}))
	l.objects(ruleState(t, "mine", "shop", "host: api.store.svc.cluster.local"))
	require.Equal(t, View{Namespace: "shop"}, project("shop", map[string]string{"app": "x"}))
	require.Equal(t, View{}, project("elsewhere", nil))
	l.objects(ruleState(t, "for-x", "shop", "{host: api.store.svc.cluster.local, workloadSelector: {matchLabels: {app: x}}}"))
	require.Equal(t, View{Namespace: "shop", Labels: MakeLabels(map[string]string{"app": "x"}, []string{"app"})}, project("shop", map[string]string{"app": "x", "tier": "1"}))
	require.Equal(t, View{Namespace: "shop"}, project("shop", map[string]string{"app": "y"}), "what selects others is no difference")
}

func TestExplainTellsOfTheRule(t *testing.T) {
	l := ruleLab()
	l.services("c1", labPods(labService("web", "shop", labPorts(labPort("http", 80, mesh.ProtocolHTTP)), []string{"10.96.0.1"}), "c1", "", "10.0.0.1"))
	l.objects(ruleState(t, "r", "shop", "{host: web, subsets: [{name: east, labels: {topology.istio.io/cluster: c2}}]}"))
	x, ok := ExplainUpstream(l.in(), labSidecar(), "outbound|80|east|web.shop.svc.cluster.local")
	require.True(t, ok)
	require.Equal(t, "shop/r", x.Rule)
	require.Equal(t, VerdictSubset, x.Candidates[0].Verdict)
	require.Equal(t, "subset east is for endpoints with topology.istio.io/cluster=c2", x.Candidates[0].Reason)
	require.Contains(t, x.Text(), "Rule      DestinationRule shop/r\n")
	x, _ = ExplainUpstream(l.in(), labSidecar(), "outbound|80|west|web.shop.svc.cluster.local")
	require.Equal(t, []string{`no DestinationRule in force for the proxy gives web.shop.svc.cluster.local a subset "west": shop/r is`}, x.Notes)
}

// FuzzDestinationRule: whatever a DestinationRule says, validated or not, what
// is built is what proxies take, and List names exactly it.
func FuzzDestinationRule(f *testing.F) {
	cases, err := os.ReadDir("testdata")
	require.NoError(f, err)
	for _, c := range cases {
		if !strings.HasPrefix(c.Name(), "destinationrule-") {
			continue
		}
		text, err := os.ReadFile("testdata/" + c.Name() + "/clusters/c1.yaml")
		require.NoError(f, err)
		for doc := range strings.SplitSeq(string(text), "---\n") {
			var o struct {
				Kind string          `json:"kind"`
				Spec json.RawMessage `json:"spec"`
			}
			if yaml.Unmarshal([]byte(doc), &o) == nil && o.Kind == string(mesh.KindDestinationRule) {
				f.Add([]byte(o.Spec))
			}
		}
	}
	k, _ := config.Lookup("networking.istio.io/v1", string(mesh.KindDestinationRule))
	f.Fuzz(func(t *testing.T, spec []byte) {
		key := mesh.ObjectKey{Kind: mesh.KindDestinationRule, Namespace: "shop", Name: "r"}
		object, err := config.Decode("c1", k, slices.Concat([]byte(`{"metadata":{"name":"r","namespace":"shop"},"spec":`), spec, []byte("}")))
		if err != nil {
			r := &networking.DestinationRule{}
			if (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(spec, r) != nil {
				return
			}
			object = &mesh.Object{Key: key, Spec: r} // one that nobody validated
		}
		fuzzRule(t, registry.ObjectState{Key: key, Object: object}, err == nil)
	})
}

func fuzzRule(t *testing.T, rule registry.ObjectState, valid bool) {
	t.Helper()
	l := ruleLab()
	l.services("c1", labPods(labService("web", "shop", webPorts, []string{"10.96.0.1"}), "c1", "", "10.0.0.1", "10.0.0.2"))
	if valid { // rules that are refused never get here, but nothing may break if one does
		spec := rule.Object.Spec.(*networking.DestinationRule)
		if spec.GetWorkloadSelector() == nil {
			rule.Object.Spec = &networking.DestinationRule{Host: "web", TrafficPolicy: spec.GetTrafficPolicy(), Subsets: spec.GetSubsets(),
				WorkloadSelector: &typebeta.WorkloadSelector{MatchLabels: map[string]string{"app": "x"}}}
		}
	}
	l.objects(rule)
	for _, v := range []View{labSidecar(), labSidecar(func(v *View) { v.Labels = MakeLabels(map[string]string{"app": "x"}, []string{"app"}) }),
		routerOf(nil), labSidecar(dialect(mesh.DialectGRPC))} {
		o := validate.Options{GRPC: v.Dialect == mesh.DialectGRPC}
		for _, n := range (Upstreams{}).List(l.in(), v) {
			m, err := Upstreams{}.Build(l.in(), v, n)
			if err != nil && !valid {
				continue // told by name
			}
			require.NoError(t, err)
			require.NotNil(t, m, n)
			require.NoError(t, o.Message(m))
			if a, err := (Assignments{}).Build(l.in(), v, n); a != nil {
				require.NoError(t, err)
				require.NoError(t, o.Message(a.(*endpointv3.ClusterLoadAssignment)))
			}
		}
	}
}
