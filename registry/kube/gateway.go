package kube

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry/config"
)

// Ports and names of network gateways.
const (
	defaultGatewayPort = 15443
	hbonePort          = 15008
	// remoteGatewayClass is the class of Gateways that describe one that runs
	// elsewhere.
	remoteGatewayClass = "istio-remote"
	// listenerProtocolOption and autoPassthrough mark a listener that forwards by
	// SNI.
	listenerProtocolOption = "gateway.istio.io/listener-protocol"
	autoPassthrough        = "auto-passthrough"
	hboneProtocol          = "HBONE"
)

// gatewaySpec is what makes a Service a network gateway. The zero value is none.
type gatewaySpec struct {
	network     mesh.NetworkID
	port, hbone uint16
	// nodePort and hboneNodePort are the same ports on the nodes.
	nodePort, hboneNodePort uint16
	// nodeSelector is not nil if the gateway is entered through nodes.
	nodeSelector map[string]string
}

// readGatewaySpec reads whether a Service is a network gateway: it carries the
// network label and listens on the gateway port. A gateway for HBONE alone is
// left out: nothing speaks HBONE to it.
func readGatewaySpec(o *corev1.Service, d *mesh.Definition, f *faults) gatewaySpec {
	network := o.Labels[labelNetwork]
	if network == "" || !clean(network) || d.Resolution == mesh.ResolutionAlias {
		return gatewaySpec{}
	}
	port, ok := gatewayPort(o.Labels, f)
	if !ok {
		return gatewaySpec{}
	}
	g := gatewaySpec{network: mesh.NetworkID(network)}
	for _, p := range o.Spec.Ports {
		if p.Protocol == corev1.ProtocolUDP {
			continue
		}
		n, _ := portNumber(p.Port)
		onNode, _ := portNumber(p.NodePort)
		switch n {
		case port:
			g.port, g.nodePort = n, onNode
		case hbonePort:
			g.hbone, g.hboneNodePort = n, onNode
		}
	}
	if g.port == 0 {
		f.add("spec.ports", fmt.Sprintf("the Service is labelled as a gateway of network %s but does not listen on port %d; "+
			"add the port, or name another in label %s; it is not used as a gateway", network, port, labelGatewayPort))
		return gatewaySpec{}
	}
	if o.Spec.Type == corev1.ServiceTypeNodePort {
		g.nodeSelector = readNodeSelector(o, f)
		if g.nodeSelector != nil && g.nodePort == 0 {
			f.add("spec.ports", fmt.Sprintf("port %d has no nodePort; it is not entered through nodes", port))
			g.nodeSelector = nil
		}
		if g.nodeSelector == nil && len(d.External) == 0 {
			return gatewaySpec{}
		}
	}
	return g
}

// gatewayPort is the port of the label, else 15443.
func gatewayPort(labels map[string]string, f *faults) (uint16, bool) {
	s := labels[labelGatewayPort]
	if s == "" {
		return defaultGatewayPort, true
	}
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		f.add("metadata.labels["+labelGatewayPort+"]", "is not between 1 and 65535; it is not used as a gateway")
		return 0, false
	}
	return uint16(n), true
}

// readNodeSelector reads the annotation that lets a NodePort Service be a
// gateway: the labels of the nodes to enter through, as a JSON object.
func readNodeSelector(o *corev1.Service, f *faults) map[string]string {
	field := "metadata.annotations[" + annotationNodeSelector + "]"
	text, ok := o.Annotations[annotationNodeSelector]
	if !ok {
		if len(o.Spec.ExternalIPs) == 0 {
			f.add(field, `a gateway of type NodePort names the nodes to enter through, for example {"kubernetes.io/os":"linux"}, or {} for all; it is not used as a gateway`)
		}
		return nil
	}
	selector := map[string]string{}
	if err := json.Unmarshal([]byte(text), &selector); err != nil {
		f.add(field, "is not a JSON object of labels; the Service is not entered through nodes: "+printable(err.Error()))
		return nil
	}
	if selector == nil {
		selector = map[string]string{}
	}
	return selector
}

// networkGateways lists the gateways that the cluster's objects make, in a fixed
// order.
func (t *Translator) networkGateways() []mesh.NetworkGateway {
	var out []mesh.NetworkGateway
	for k := range t.index.gatewayServices {
		out = append(out, t.serviceGateways(t.services[k])...)
	}
	for _, list := range t.gateways {
		out = append(out, list...)
	}
	slices.SortFunc(out, mesh.CompareGateways)
	return out
}

func (t *Translator) serviceGateways(s *ksvc) []mesh.NetworkGateway {
	g := s.gateway
	var out []mesh.NetworkGateway
	base := mesh.NetworkGateway{Network: g.network, Cluster: t.cfg.Cluster, Port: g.port, HBONEPort: g.hbone, Origin: s.base.Origin}
	for _, host := range s.base.External {
		out = append(out, withHost(base, host))
	}
	if g.nodeSelector == nil {
		return out
	}
	base.Port, base.HBONEPort = g.nodePort, g.hboneNodePort
	for _, name := range slices.Sorted(maps.Keys(t.nodes)) {
		if n := t.nodes[name]; matches(g.nodeSelector, n.labels) {
			for _, a := range n.addrs {
				out = append(out, withHost(base, a.String()))
			}
		}
	}
	return out
}

func withHost(g mesh.NetworkGateway, host string) mesh.NetworkGateway {
	g.Host = host
	return g
}

// setGateway reads the network gateways of a Gateway of the Gateway API: the
// addresses of its status, else of its spec, on every listener that forwards by
// SNI. Such a listener has the TLS option listener-protocol: auto-passthrough,
// or the gateway port of a labelled Gateway.
func (t *Translator) setGateway(o *gatewayv1.Gateway) {
	k := types.NamespacedName{Namespace: o.Namespace, Name: o.Name}
	var f faults
	next := t.readGateway(o, &f)
	if t.cfg.Primary {
		t.setObject(config.FromGateway(t.cfg.Cluster, o))
	}
	t.problems.report(KindGateway, o.Namespace, o.Name, f)
	if len(next) == 0 {
		t.deleteNetworkGateway(k)
		return
	}
	t.gateways[k] = next
	t.dirty.cluster = true
}

func (t *Translator) deleteGateway(k types.NamespacedName) {
	t.DeleteObject(mesh.ObjectKey{Kind: mesh.KindGatewayAPIGateway, Namespace: k.Namespace, Name: k.Name})
	t.deleteNetworkGateway(k)
}

func (t *Translator) deleteNetworkGateway(k types.NamespacedName) {
	if _, ok := t.gateways[k]; ok {
		delete(t.gateways, k)
		t.dirty.cluster = true
	}
}

func (t *Translator) readGateway(o *gatewayv1.Gateway, f *faults) []mesh.NetworkGateway {
	network := o.Labels[labelNetwork]
	remote := o.Spec.GatewayClassName == remoteGatewayClass
	if network == "" || !clean(network) || remote && !t.cfg.Primary {
		return nil
	}
	port, ok := gatewayPort(o.Labels, f)
	if !ok {
		return nil
	}
	var ports []uint16
	var hbone uint16
	for _, l := range o.Spec.Listeners {
		n, ok := portNumber(l.Port)
		switch {
		case !ok:
		case l.Protocol == hboneProtocol:
			hbone = n
		case forwardsBySNI(l) || n == port:
			if !slices.Contains(ports, n) {
				ports = append(ports, n)
			}
		}
	}
	if len(ports) == 0 {
		f.add("spec.listeners", fmt.Sprintf("the Gateway is labelled as a gateway of network %s but no listener has port %d or the TLS option %s: %s; it is not used",
			network, port, listenerProtocolOption, autoPassthrough))
		return nil
	}
	base := mesh.NetworkGateway{Network: mesh.NetworkID(network), Cluster: t.cfg.Cluster, HBONEPort: hbone,
		Origin: t.problems.ref(KindGateway, o.Namespace, o.Name)}
	if remote {
		base.Cluster = "" // it runs in a cluster that nobody reads
	}
	var out []mesh.NetworkGateway
	for _, host := range t.gatewayHosts(o, remote, f) {
		for _, p := range ports {
			base.Port = p
			out = append(out, withHost(base, host))
		}
	}
	return out
}

func forwardsBySNI(l gatewayv1.Listener) bool {
	return l.TLS != nil && l.TLS.Options[listenerProtocolOption] == autoPassthrough
}

// gatewayHosts lists the addresses of a Gateway. Names inside the cluster are
// left out: other networks cannot dial them.
func (t *Translator) gatewayHosts(o *gatewayv1.Gateway, remote bool, f *faults) []string {
	var out []string
	add := func(field string, kind *gatewayv1.AddressType, value string) {
		value = strings.ToLower(strings.TrimSuffix(value, "."))
		addr, err := netip.ParseAddr(value)
		switch {
		case value == "":
			return
		case kind != nil && *kind != gatewayv1.IPAddressType && *kind != gatewayv1.HostnameAddressType:
			return
		case err == nil:
			value = addr.Unmap().String()
		case !isDNSName(value) || kind == nil || *kind == gatewayv1.IPAddressType:
			f.add(field, fmt.Sprintf("%q is not an address of its type and is left out", printable(value)))
			return
		case strings.HasSuffix(value, ".svc."+t.cfg.Domain) || strings.HasSuffix(value, ".svc"):
			return
		}
		if !slices.Contains(out, value) {
			out = append(out, value)
		}
	}
	if !remote {
		for i, a := range o.Status.Addresses {
			add(fmt.Sprintf("status.addresses[%d]", i), a.Type, a.Value)
		}
	}
	if len(out) == 0 {
		for i, a := range o.Spec.Addresses {
			add(fmt.Sprintf("spec.addresses[%d]", i), a.Type, a.Value)
		}
	}
	return out
}
