package kube

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// objectsOf decodes a file of YAML documents of the kinds that a translator reads.
func objectsOf(t testing.TB, text string) []any {
	t.Helper()
	var out []any
	for doc := range strings.SplitSeq("\n"+text, "\n---") {
		var head metav1.TypeMeta
		require.NoError(t, yaml.Unmarshal([]byte(doc), &head))
		var obj any
		switch head.Kind {
		case "":
			continue
		case "Service":
			obj = &corev1.Service{}
		case "Pod":
			obj = &corev1.Pod{}
		case "Node":
			obj = &corev1.Node{}
		case "Namespace":
			obj = &corev1.Namespace{}
		case "ConfigMap":
			obj = &corev1.ConfigMap{}
		case "EndpointSlice":
			obj = &discoveryv1.EndpointSlice{}
		case "Gateway":
			obj = &gatewayv1.Gateway{}
		case "ServiceExport":
			obj = &ServiceExport{}
		case "ServiceImport":
			obj = &ServiceImport{}
		default:
			require.Fail(t, "unknown kind "+head.Kind)
		}
		require.NoError(t, yaml.UnmarshalStrict([]byte(doc), obj))
		out = append(out, obj)
	}
	return out
}

// render writes an update as text that is easy to compare by eye: one line per
// fact, what is empty left out.
func render(u registry.Update) string {
	var b strings.Builder
	line := func(depth int, format string, args ...any) {
		b.WriteString(strings.Repeat("  ", depth) + fmt.Sprintf(format, args...) + "\n")
	}
	if c := u.Cluster; c != nil {
		line(0, "cluster network=%q trustDomain=%q", c.Network, c.TrustDomain)
		for _, g := range c.Gateways {
			line(1, "gateway network=%s cluster=%q %s port=%d hbone=%d from %s", g.Network, g.Cluster, g.Host, g.Port, g.HBONEPort, g.Origin)
		}
	}
	workloads := map[*mesh.Workload]bool{}
	for _, s := range u.Services {
		if s.Definition == nil {
			line(0, "service %s is gone", s.Key)
			continue
		}
		renderDefinition(line, s)
		for _, e := range s.Endpoints {
			line(1, "endpoint %q %s:%d %s of %s", e.PortName, e.Addr, e.Port, e.Health, who(e.Workload))
			if e.Workload.Kind == "" {
				workloads[e.Workload] = true
			}
		}
	}
	for _, w := range u.Workloads {
		if w.Workload == nil {
			line(0, "workload %s is gone", w.Key)
			continue
		}
		line(0, "workload %s %+v", w.Key, *w.Workload)
	}
	return b.String()
}

func renderDefinition(line func(int, string, ...any), s registry.ServiceState) {
	d := s.Definition
	line(0, "service %s %s", s.Key, d.Resolution)
	for _, p := range d.Ports {
		line(1, "port %q %d %s -> %d%s", p.Name, p.Number, p.Protocol, p.TargetPort, p.TargetName)
	}
	show := func(name string, v any, empty bool) {
		if !empty {
			line(1, "%s %v", name, v)
		}
	}
	show("addresses", d.Addresses, len(d.Addresses) == 0)
	show("external", d.External, len(d.External) == 0)
	show("externalName", d.ExternalName, d.ExternalName == "")
	show("selector", d.Selector, len(d.Selector) == 0)
	show("labels", d.Labels, len(d.Labels) == 0)
	show("exportTo", d.ExportTo, len(d.ExportTo) == 0)
	show("identities", d.Identities, len(d.Identities) == 0)
	show("nodeLocal", d.NodeLocal, !d.NodeLocal)
	show("publishNotReady", d.PublishNotReady, !d.PublishNotReady)
	show("trafficDistribution", d.TrafficDistribution, d.TrafficDistribution == "")
	show("created", d.Created.Format(time.RFC3339), d.Created.IsZero())
}

func who(w *mesh.Workload) string {
	if w.Kind == "" {
		return fmt.Sprintf("no pod in %s on node %q", w.Namespace, w.Node)
	}
	return fmt.Sprintf("%s %s/%s", w.Kind, w.Namespace, w.Name)
}

// renderProblems lists problems without their times.
func renderProblems(p *registry.Problems) string {
	var b strings.Builder
	for _, x := range p.List() {
		fmt.Fprintf(&b, "problem %s: %s: %s\n", x.Object, x.Field, x.Message)
	}
	return b.String()
}

// ledger is what a sink knows after the updates it got.
type ledger struct {
	services  map[mesh.ServiceKey]registry.ServiceState
	workloads map[string]*mesh.Workload
	objects   map[mesh.ObjectKey]*mesh.Object
	cluster   *registry.ClusterState
}

func newLedger() *ledger {
	return &ledger{map[mesh.ServiceKey]registry.ServiceState{}, map[string]*mesh.Workload{}, map[mesh.ObjectKey]*mesh.Object{}, nil}
}

func (l *ledger) apply(u registry.Update) {
	for _, s := range u.Services {
		if s.Definition == nil {
			delete(l.services, s.Key)
		} else {
			l.services[s.Key] = s
		}
	}
	for _, w := range u.Workloads {
		if w.Workload == nil {
			delete(l.workloads, w.Key)
		} else {
			l.workloads[w.Key] = w.Workload
		}
	}
	for _, o := range u.Objects {
		if o.Object == nil {
			delete(l.objects, o.Key)
		} else {
			l.objects[o.Key] = o.Object
		}
	}
	if u.Cluster != nil {
		l.cluster = u.Cluster
	}
}

// update is everything the ledger has, ordered as a Snapshot.
func (l *ledger) update() registry.Update {
	u := registry.Update{Cluster: l.cluster}
	for _, k := range slices.SortedFunc(maps.Keys(l.services), func(a, b mesh.ServiceKey) int {
		return strings.Compare(a.Namespace+"/"+string(a.Hostname), b.Namespace+"/"+string(b.Hostname))
	}) {
		u.Services = append(u.Services, l.services[k])
	}
	for _, k := range slices.Sorted(maps.Keys(l.workloads)) {
		u.Workloads = append(u.Workloads, registry.WorkloadState{Key: k, Workload: l.workloads[k]})
	}
	return u
}

// Objects for tests, with as little as they need.

func aService(ns, name string, ports ...corev1.ServicePort) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
		Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1"}, Selector: map[string]string{"app": name}, Ports: ports}}
}

func aPort(name string, number int32) corev1.ServicePort {
	return corev1.ServicePort{Name: name, Port: number, TargetPort: intstr.FromInt32(number), Protocol: corev1.ProtocolTCP}
}

func aPod(ns, name, ip, node string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, Labels: map[string]string{"app": "web", labelTLSMode: "istio"}},
		Spec:       corev1.PodSpec{NodeName: node, ServiceAccountName: "web"},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}},
	}
}

func aSlice(ns, name, service string, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	port, portName := int32(8080), "http"
	return &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: ns, Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4, Endpoints: endpoints,
		Ports: []discoveryv1.EndpointPort{{Name: &portName, Port: &port}},
	}
}

func anEndpoint(ip, pod string) discoveryv1.Endpoint {
	ready := true
	e := discoveryv1.Endpoint{Addresses: []string{ip}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}
	if pod != "" {
		e.TargetRef = &corev1.ObjectReference{Kind: "Pod", Name: pod}
	}
	return e
}

func aNode(name, region string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{labelRegion: region}},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "172.16.0.1"}}}}
}

func ownerOf(kind, name string, controller *bool) metav1.OwnerReference {
	return metav1.OwnerReference{Kind: kind, Name: name, Controller: controller}
}
