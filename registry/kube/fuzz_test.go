package kube

import (
	"encoding/json"
	"slices"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// requireSound holds what everything behind relies on, whatever the objects were.
func requireSound(t *testing.T, u registry.Update) {
	t.Helper()
	text := func(list ...string) {
		for _, s := range list {
			require.True(t, utf8.ValidString(s), "%q would spoil a resource", s)
		}
	}
	workload := func(w *mesh.Workload) {
		text(w.Name, w.Namespace, w.WorkloadName, w.Node, w.Hostname, w.Subdomain, w.Locality.String(), string(w.NetworkLabel))
		for k, v := range w.Labels {
			text(k, v)
		}
		if !w.Identity.IsZero() {
			back, err := mesh.ParseIdentity(w.Identity.SPIFFE())
			require.NoError(t, err)
			require.Equal(t, w.Identity, back)
		}
	}
	for _, s := range u.Services {
		d := s.Definition
		require.NotNil(t, d)
		text(string(s.Key.Hostname), s.Key.Namespace, string(d.ExternalName))
		text(d.External...)
		text(d.ExportTo...)
		text(d.Identities...)
		for _, p := range d.Ports {
			text(p.Name, p.TargetName)
			require.NotZero(t, p.Number)
			require.True(t, p.TargetPort != 0 || p.TargetName != "")
		}
		require.True(t, slices.IsSortedFunc(s.Endpoints, mesh.Endpoint.Compare))
		for i, e := range s.Endpoints {
			require.True(t, e.Addr.IsValid() && e.Addr.Zone() == "" && !e.Addr.Is4In6())
			require.NotZero(t, e.Port)
			text(e.PortName)
			require.NotNil(t, e.Workload)
			workload(e.Workload)
			require.False(t, i > 0 && e.Addr == s.Endpoints[i-1].Addr && e.Port == s.Endpoints[i-1].Port && e.PortName == s.Endpoints[i-1].PortName, "twice")
		}
	}
	for _, w := range u.Workloads {
		workload(w.Workload)
	}
	for _, g := range u.Cluster.Gateways {
		require.NotZero(t, g.Port)
		text(g.Host, string(g.Network))
	}
}

func fuzz[T any](f *testing.F, seeds []T, around ...any) {
	for _, s := range seeds {
		doc, err := json.Marshal(s)
		require.NoError(f, err)
		f.Add(string(doc), byte(0))
	}
	f.Fuzz(func(t *testing.T, doc string, broken byte) {
		obj := new(T)
		if json.Unmarshal([]byte(doc), obj) != nil {
			return
		}
		// JSON cannot carry invalid UTF-8, but the protobuf of an API server can.
		if broken > 0 {
			breakText(obj, broken)
		}
		tr := NewTranslator(TranslatorConfig{Cluster: "east", Primary: true, DeriveEndpoints: true, Problems: registry.NewProblems(nil)})
		for _, o := range around {
			tr.Set(o)
		}
		tr.Set(obj)
		requireSound(t, tr.Snapshot())
		stripped, err := Strip(any(obj))
		require.NoError(t, err)
		tr.Set(stripped)
		u, changed := tr.Flush()
		require.False(t, changed, "stripping changed something: %s", render(u))
	})
}

// breakText spoils one text of an object.
func breakText(obj any, which byte) {
	bad := "\xff;/|"
	switch o := obj.(type) {
	case *corev1.Service:
		switch which % 4 {
		case 0:
			o.Name = bad
		case 1:
			o.Labels = map[string]string{labelNetwork: bad}
		case 2:
			o.Annotations = map[string]string{annotationExportTo: bad, annotationAccounts: bad, annotationIdentities: bad, annotationNodeSelector: bad}
		case 3:
			for i := range o.Spec.Ports {
				o.Spec.Ports[i].Name, o.Spec.Ports[i].TargetPort.StrVal = bad, bad
			}
		}
	case *corev1.Pod:
		switch which % 4 {
		case 0:
			o.Spec.NodeName = bad
		case 1:
			o.Labels = map[string]string{bad: bad, labelLocality: bad, labelWorkloadName: bad}
		case 2:
			o.Spec.ServiceAccountName = bad
		case 3:
			for i := range o.OwnerReferences {
				o.OwnerReferences[i].Name = bad
			}
		}
	case *discoveryv1.EndpointSlice:
		for i := range o.Ports {
			o.Ports[i].Name = &bad
		}
		for i := range o.Endpoints {
			o.Endpoints[i].NodeName = &bad
		}
	case *gatewayv1.Gateway:
		o.Labels = map[string]string{labelNetwork: bad}
	}
}

func FuzzSlice(f *testing.F) {
	fuzz(f, []discoveryv1.EndpointSlice{*aSlice("a", "s", "x", anEndpoint("10.0.0.1", "p"), anEndpoint("10.0.0.2", ""), anEndpoint("fe80::1%eth0", ""))},
		aService("a", "x", aPort("http", 80)), aPod("a", "p", "10.0.0.1", "n1"), aPod("a", "q", "10.0.0.2", "n1"), aNode("n1", "r"))
}

func FuzzService(f *testing.F) {
	headless, outside := aService("a", "h", aPort("tcp", 1)), aService("a", "o")
	headless.Spec.ClusterIP, headless.Spec.ClusterIPs = "None", nil
	outside.Spec.Type, outside.Spec.ExternalName = corev1.ServiceTypeExternalName, "example.com"
	gateway := aService("a", "g", aPort("tls", 15443))
	gateway.Labels, gateway.Annotations = map[string]string{labelNetwork: "n"}, map[string]string{annotationNodeSelector: `{"a":"b"}`}
	gateway.Spec.Type = corev1.ServiceTypeNodePort
	fuzz(f, []corev1.Service{*aService("a", "x", aPort("http", 80)), *headless, *outside, *gateway},
		aSlice("a", "s", "x", anEndpoint("10.0.0.1", "p")), aPod("a", "p", "10.0.0.1", "n1"), aNode("n1", "r"))
}

func FuzzPod(f *testing.F) {
	owned := aPod("a", "p", "10.0.0.1", "n1")
	owned.GenerateName = "p-"
	yes := true
	owned.OwnerReferences = append(owned.OwnerReferences, ownerOf("ReplicaSet", "p-abc", &yes))
	fuzz(f, []corev1.Pod{*owned}, aService("a", "x", aPort("http", 80)), aService("a", "web", aPort("http", 80)),
		aSlice("a", "s", "x", anEndpoint("10.0.0.1", "p"), anEndpoint("10.0.0.2", "")), aNode("n1", "r"))
}

func FuzzGateway(f *testing.F) {
	kind := gatewayv1.HostnameAddressType
	g := gatewayv1.Gateway{Spec: gatewayv1.GatewaySpec{Listeners: []gatewayv1.Listener{{Port: 15443}},
		Addresses: []gatewayv1.GatewaySpecAddress{{Type: &kind, Value: "gw.example.com"}}}}
	g.Labels = map[string]string{labelNetwork: "n"}
	fuzz(f, []gatewayv1.Gateway{g})
}
