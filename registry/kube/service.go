package kube

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// ksvc is what is read of a Service.
type ksvc struct {
	// base is the definition without what depends on the trust domain; def is
	// whole, nil until it is asked for.
	base, def *mesh.Definition
	// accounts are service accounts of the annotation kubernetes-serviceaccounts.
	accounts []string
	families []corev1.IPFamily
	gateway  gatewaySpec
}

func (t *Translator) setService(o *corev1.Service) {
	k := types.NamespacedName{Namespace: o.Namespace, Name: o.Name}
	s, f := t.readService(o)
	t.problems.report(KindService, o.Namespace, o.Name, f)
	if s == nil {
		t.deleteService(k)
		return
	}
	old := t.services[k]
	if old != nil && old.base.Equal(s.base) && slices.Equal(old.accounts, s.accounts) {
		s.base, s.def = old.base, old.def
	}
	t.services[k] = s
	t.touch(k)
	if t.cfg.DeriveEndpoints {
		if len(s.base.Selector) > 0 {
			addTo(t.index.selecting, k.Namespace, k, struct{}{})
		} else {
			removeFrom(t.index.selecting, k.Namespace, k)
		}
	}
	if s.gateway.network != "" {
		t.index.gatewayServices[k] = struct{}{}
		t.dirty.cluster = true
	} else if old != nil && old.gateway.network != "" {
		delete(t.index.gatewayServices, k)
		t.dirty.cluster = true
	}
}

func (t *Translator) deleteService(k types.NamespacedName) {
	old := t.services[k]
	if old == nil {
		return
	}
	delete(t.services, k)
	t.touch(k)
	removeFrom(t.index.selecting, k.Namespace, k)
	if old.gateway.network != "" {
		delete(t.index.gatewayServices, k)
		t.dirty.cluster = true
	}
}

// definition completes a service's definition with the identities that it names
// in the cluster's trust domain.
func (t *Translator) definition(s *ksvc) *mesh.Definition {
	if s.def != nil {
		return s.def
	}
	if len(s.accounts) == 0 {
		s.def = s.base
		return s.def
	}
	def := *s.base
	for _, a := range s.accounts {
		id := mesh.Identity{TrustDomain: t.trustDomain, Namespace: def.Origin.Namespace, ServiceAccount: a}
		def.Identities = append(slices.Clip(def.Identities), id.SPIFFE())
	}
	s.def = &def
	return s.def
}

// readService reads a Service. It returns nil if nothing of it can be served;
// otherwise the faulty parts are left out.
func (t *Translator) readService(o *corev1.Service) (*ksvc, faults) {
	var f faults
	if !isDNSLabel(o.Name) || !isDNSLabel(o.Namespace) {
		f.add("metadata.name", "name and namespace must be DNS labels; the Service is not served")
		return nil, f
	}
	d := &mesh.Definition{
		Name:            o.Name,
		Created:         o.CreationTimestamp.UTC(),
		Origin:          t.problems.ref(KindService, o.Namespace, o.Name),
		NodeLocal:       o.Spec.InternalTrafficPolicy != nil && *o.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal,
		PublishNotReady: o.Spec.PublishNotReadyAddresses,
	}
	s := &ksvc{base: d, families: o.Spec.IPFamilies}
	if d.Labels = o.Labels; !cleanMap(o.Labels) {
		f.add("metadata.labels", "are not valid text and are left out")
		d.Labels = nil
	}
	if !readResolution(o, d, &f) {
		return nil, f
	}
	if d.Resolution != mesh.ResolutionAlias && len(o.Spec.Selector) > 0 {
		d.Selector = o.Spec.Selector
	}
	d.Ports = readPorts(o.Spec.Ports, &f)
	d.External = externalAddresses(o, &f)
	d.AwaitsAddress = o.Spec.Type == corev1.ServiceTypeLoadBalancer && len(d.External) == 0
	s.accounts = readAnnotations(o, d, &f)
	s.gateway = readGatewaySpec(o, d, &f)
	return s, f
}

// readResolution decides how endpoints are found and reads the virtual IPs. It
// reports false for a name without a target.
func readResolution(o *corev1.Service, d *mesh.Definition, f *faults) bool {
	if o.Spec.Type == corev1.ServiceTypeExternalName {
		host := strings.ToLower(strings.TrimSuffix(o.Spec.ExternalName, "."))
		if !isDNSName(strings.ReplaceAll(host, "_", "-")) {
			f.add("spec.externalName", "is not a host name; the Service is not served")
			return false
		}
		d.Resolution, d.ExternalName = mesh.ResolutionAlias, mesh.Hostname(host)
		return true
	}
	ips := o.Spec.ClusterIPs
	if len(ips) == 0 && o.Spec.ClusterIP != "" {
		ips = []string{o.Spec.ClusterIP}
	}
	for i, ip := range ips {
		switch addr, err := netip.ParseAddr(ip); {
		case ip == corev1.ClusterIPNone:
			d.Resolution = mesh.ResolutionPassthrough
		case err != nil || addr.Zone() != "":
			f.add(fmt.Sprintf("spec.clusterIPs[%d]", i), "is not an IP address and is left out")
		default:
			d.Addresses = append(d.Addresses, addr.Unmap())
		}
	}
	if d.Resolution == mesh.ResolutionPassthrough {
		d.Addresses = nil
	}
	return true
}

// readPorts reads the ports in their order, but UDP ports last: where TCP and
// UDP share a number, looking a port up by number finds the one that proxies
// serve.
func readPorts(in []corev1.ServicePort, f *faults) []mesh.Port {
	out := make([]mesh.Port, 0, len(in))
	for i, p := range in {
		at := func(field string) string { return fmt.Sprintf("spec.ports[%d].%s", i, field) }
		port := mesh.Port{Name: p.Name, Protocol: protocolOf(p)}
		var ok bool
		switch port.Number, ok = portNumber(p.Port); {
		case !ok:
			f.add(at("port"), "is not between 1 and 65535; the port is left out")
			continue
		case p.Name != "" && !clean(p.Name):
			f.add(at("name"), "is not valid text; the port is left out")
			continue
		case slices.ContainsFunc(out, func(x mesh.Port) bool { return x.Name == p.Name }):
			f.add(at("name"), fmt.Sprintf("%q is the name of two ports; the second is left out", p.Name))
			continue
		}
		switch {
		case p.TargetPort.Type == intstr.String:
			if port.TargetName = p.TargetPort.StrVal; port.TargetName == "" || !clean(port.TargetName) {
				port.TargetName, port.TargetPort = "", port.Number
			}
		case p.TargetPort.IntVal == 0:
			port.TargetPort = port.Number
		default:
			if port.TargetPort, ok = portNumber(p.TargetPort.IntVal); !ok {
				f.add(at("targetPort"), "is not between 1 and 65535; the port's own number is used")
				port.TargetPort = port.Number
			}
		}
		out = append(out, port)
	}
	slices.SortStableFunc(out, func(a, b mesh.Port) int { return rankUDP(a) - rankUDP(b) })
	return out
}

func rankUDP(p mesh.Port) int {
	if p.Protocol == mesh.ProtocolUDP {
		return 1
	}
	return 0
}

func portNumber(n int32) (uint16, bool) {
	if n < 1 || n > 65535 {
		return 0, false
	}
	return uint16(n), true
}

// externalAddresses lists the load balancer's addresses and host names, then
// the externalIPs.
func externalAddresses(o *corev1.Service, f *faults) []string {
	var out []string
	add := func(field, s string, ok bool) {
		switch {
		case !ok:
			f.add(field, "is neither an IP address nor a host name and is left out")
		case !slices.Contains(out, s):
			out = append(out, s)
		}
	}
	if o.Spec.Type == corev1.ServiceTypeLoadBalancer {
		for i, in := range o.Status.LoadBalancer.Ingress {
			at := fmt.Sprintf("status.loadBalancer.ingress[%d]", i)
			switch {
			case in.IP != "":
				addr, err := netip.ParseAddr(in.IP)
				add(at+".ip", addr.String(), err == nil)
			case in.Hostname != "":
				host := strings.ToLower(strings.TrimSuffix(in.Hostname, "."))
				add(at+".hostname", host, isDNSName(strings.ReplaceAll(host, "_", "-")))
			}
		}
	}
	for i, ip := range o.Spec.ExternalIPs {
		addr, err := netip.ParseAddr(ip)
		add(fmt.Sprintf("spec.externalIPs[%d]", i), addr.String(), err == nil)
	}
	return out
}

// readAnnotations reads what Istio's annotations say of a Service and returns
// the service accounts that they name.
func readAnnotations(o *corev1.Service, d *mesh.Definition, f *faults) (accounts []string) {
	a := o.Annotations
	d.ExportTo = splitList(a[annotationExportTo])
	for i, e := range d.ExportTo {
		d.ExportTo[i] = printable(e)
		if e != "*" && e != "." && e != "~" && !isDNSLabel(e) {
			f.add("metadata.annotations["+annotationExportTo+"]", fmt.Sprintf("%q is neither a namespace nor one of '*', '.' and '~'; it matches nothing", printable(e)))
		}
	}
	for _, id := range splitList(a[annotationIdentities]) {
		if !clean(id) {
			f.add("metadata.annotations["+annotationIdentities+"]", "is not valid text and is left out")
			continue
		}
		d.Identities = append(d.Identities, id)
	}
	for _, sa := range splitList(a[annotationAccounts]) {
		if !isDNSName(sa) {
			f.add("metadata.annotations["+annotationAccounts+"]", fmt.Sprintf("%q is not a service account and is left out", printable(sa)))
			continue
		}
		accounts = append(accounts, sa)
	}
	d.TrafficDistribution = trafficDistribution(o)
	return accounts
}

// trafficDistribution is the field if it is one of the known values, else the
// annotation, in the spelling of the field.
func trafficDistribution(o *corev1.Service) string {
	known := []string{corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone,
		corev1.ServiceTrafficDistributionPreferSameNode}
	if v := o.Spec.TrafficDistribution; v != nil && slices.Contains(known, *v) {
		return *v
	}
	v := strings.TrimSpace(o.Annotations[annotationTrafficDistribution])
	for _, k := range append(known, "PreferSameNetwork", "Any") {
		if strings.EqualFold(k, v) {
			return k
		}
	}
	return ""
}

func splitList(s string) []string {
	var out []string
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.TrimSpace(part); part != "" && !slices.Contains(out, part) {
			out = append(out, part)
		}
	}
	return out
}

// matches reports whether labels carry everything that a selector asks for.
func matches(selector, labels map[string]string) bool {
	for k, want := range selector {
		if v, ok := labels[k]; !ok || v != want {
			return false
		}
	}
	return true
}
