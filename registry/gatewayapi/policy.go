package gatewayapi

import (
	"fmt"
	"maps"
	"slices"

	networking "istio.io/api/networking/v1alpha3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// policy is a BackendTLSPolicy.
type policy struct {
	object             *mesh.Object
	spec               *gatewayv1.BackendTLSPolicySpec
	accepted, resolved verdict
	tls                *networking.ClientTLSSettings
}

// policyTarget is what one policy decides about.
type policyTarget struct {
	Name
	section string
}

// readPolicies reads all policies, oldest first: of several about the same port
// of a Service the oldest counts.
func (t *translator) readPolicies() {
	taken := map[policyTarget]struct{}{}
	for _, o := range t.list(mesh.KindBackendTLSPolicy) {
		spec, ok := o.Value.(*gatewayv1.BackendTLSPolicySpec)
		if !ok {
			continue
		}
		p := &policy{object: o, spec: spec}
		t.readValidation(p)
		free := 0
		for _, ref := range spec.TargetRefs {
			if ref.Group != "" || ref.Kind != kindService {
				continue
			}
			n := policyTarget{Name{o.Key.Namespace, string(ref.Name)}, string(deref(ref.SectionName, ""))}
			if _, conflict := taken[n]; conflict {
				continue
			}
			taken[n] = struct{}{}
			free++
		}
		if free == 0 && len(spec.TargetRefs) > 0 && p.accepted.ok() {
			p.accepted = verdict{string(gatewayv1.PolicyReasonConflicted), "an older policy is about the same"}
		}
		for _, ref := range spec.TargetRefs {
			n := Name{o.Key.Namespace, string(ref.Name)}
			if ref.Group == "" && ref.Kind == kindService && !slices.Contains(t.policies[n], p) {
				t.policies[n] = append(t.policies[n], p)
			}
		}
	}
}

// readValidation reads how servers are checked. If they cannot be, nobody is
// connected to.
func (t *translator) readValidation(p *policy) {
	v := p.spec.Validation
	p.tls = &networking.ClientTLSSettings{Mode: networking.ClientTLSSettings_SIMPLE, Sni: string(v.Hostname), SubjectAltNames: []string{string(v.Hostname)}}
	if len(v.SubjectAltNames) > 0 {
		p.tls.SubjectAltNames = nil
		for _, s := range v.SubjectAltNames {
			if s.Type == gatewayv1.URISubjectAltNameType {
				p.tls.SubjectAltNames = append(p.tls.SubjectAltNames, string(s.URI))
			} else {
				p.tls.SubjectAltNames = append(p.tls.SubjectAltNames, string(s.Hostname))
			}
		}
	}
	if v.WellKnownCACertificates != nil && len(v.CACertificateRefs) == 0 {
		if *v.WellKnownCACertificates == gatewayv1.WellKnownCACertificatesSystem {
			p.tls.CaCertificates = "system"
			return
		}
		p.accepted = verdict{string(gatewayv1.PolicyReasonInvalid), fmt.Sprintf("certificates %s are not known; System are", *v.WellKnownCACertificates)}
	}
	var maps []Name
	for _, ref := range v.CACertificateRefs {
		n := Name{p.object.Key.Namespace, string(ref.Name)}
		switch {
		case ref.Group != "" || ref.Kind != kindConfigMap:
			p.unresolved(gatewayv1.BackendTLSPolicyReasonInvalidKind, "roots %s are a %s; only ConfigMaps can be used", ref.Name, ref.Kind)
		case t.credential(kindConfigMap, n) > CredentialUsable:
			p.unresolved(gatewayv1.BackendTLSPolicyReasonInvalidCACertificateRef, "there is no ConfigMap %s with ca.crt", n)
		default:
			maps = append(maps, n)
		}
	}
	if p.tls.CredentialName = rootsName(maps); len(maps) == 0 {
		p.tls.CredentialName = NoRootsScheme + p.object.Key.Namespace + "/" + p.object.Key.Name
		if p.accepted.ok() {
			p.accepted = verdict{string(gatewayv1.BackendTLSPolicyReasonNoValidCACertificate), "there are no roots that servers can be checked against"}
		}
	}
}

func (p *policy) unresolved(reason gatewayv1.PolicyConditionReason, format string, args ...any) {
	if p.resolved.ok() {
		p.resolved = verdict{string(reason), fmt.Sprintf(format, args...)}
	}
}

// leads notes that a Gateway leads to the backends of a route.
func (t *translator) leads(g *gateway, r *route) {
	t.attaching.led = append(t.attaching.led, g)
	for _, n := range r.backends {
		t.lead(n, g, 1)
	}
}

// parents are the Gateways that lead to what a policy is about.
func (t *translator) parents(p *policy) []*gateway {
	all := map[*gateway]struct{}{}
	for _, ref := range p.spec.TargetRefs {
		if ref.Group == "" && ref.Kind == kindService {
			for g := range t.led[Name{p.object.Key.Namespace, string(ref.Name)}] {
				all[g] = struct{}{}
			}
		}
	}
	return slices.SortedFunc(maps.Keys(all), func(a, b *gateway) int { return compareNames(a.name, b.name) })
}

// judgePolicies wants the status of all policies that are in force for a Gateway.
func (t *translator) judgePolicies() {
	if t.in.Silent {
		return
	}
	for _, list := range t.policies {
		for _, p := range list {
			st := &Status{}
			for _, g := range t.parents(p) {
				group, kind, ns := gatewayv1.Group(groupGateway), gatewayv1.Kind(kindGateway), gatewayv1.Namespace(g.name.Namespace)
				st.Ancestors = append(st.Ancestors, gatewayv1.PolicyAncestorStatus{
					AncestorRef:    gatewayv1.ParentReference{Group: &group, Kind: &kind, Namespace: &ns, Name: gatewayv1.ObjectName(g.name.Name)},
					ControllerName: Controller,
					Conditions: []metav1.Condition{
						condition(gatewayv1.PolicyConditionAccepted, p.accepted, string(gatewayv1.PolicyReasonAccepted), p.object.Generation),
						condition(gatewayv1.BackendTLSPolicyConditionResolvedRefs, p.resolved, string(gatewayv1.BackendTLSPolicyReasonResolvedRefs), p.object.Generation),
					},
				})
			}
			if len(st.Ancestors) > 0 {
				t.judge(p.object.Key, func() *Status { return st })
			}
		}
	}
}

// finishPolicy makes the DestinationRule of a Service with policies, for the
// namespaces of the routers that lead there.
func (t *translator) finishPolicy(n Name) {
	key := mesh.ObjectKey{Kind: mesh.KindDestinationRule, Namespace: n.Namespace, Name: n.Name + "-" + internalSuffix}
	s := t.service(n, false)
	if s == nil {
		t.drop(key)
		return
	}
	rule, value := &networking.DestinationRule{Host: string(s.Key.Hostname), TrafficPolicy: &networking.TrafficPolicy{}}, &BackendTLS{}
	for g := range t.led[n] {
		for _, b := range g.bindings() {
			if !slices.Contains(rule.ExportTo, b.namespace) {
				rule.ExportTo = append(rule.ExportTo, b.namespace)
			}
		}
	}
	slices.Sort(rule.ExportTo)
	ports := map[uint16]bool{}
	var from *mesh.Object
	for _, p := range t.policies[n] {
		if p.accepted.reason == string(gatewayv1.PolicyReasonConflicted) {
			continue
		}
		if value.Origins = append(value.Origins, p.object.Key); from == nil {
			from = p.object
		}
		for _, ref := range p.spec.TargetRefs {
			if string(ref.Name) == n.Name && ref.Group == "" && ref.Kind == kindService {
				applyPolicy(rule.TrafficPolicy, s, p, string(deref(ref.SectionName, "")), ports)
			}
		}
	}
	if len(rule.ExportTo) == 0 || from == nil {
		t.drop(key)
		return
	}
	t.emit(&mesh.Object{Key: key, Origin: from.Origin, Created: from.Created, Spec: rule, Value: value})
}

func applyPolicy(to *networking.TrafficPolicy, s *mesh.Service, p *policy, section string, ports map[uint16]bool) {
	if section == "" {
		if to.Tls == nil {
			to.Tls = p.tls
		}
		return
	}
	for _, port := range s.Ports {
		if port.Name == section && !ports[port.Number] {
			ports[port.Number] = true
			to.PortLevelSettings = append(to.PortLevelSettings, &networking.TrafficPolicy_PortTrafficPolicy{
				Port: &networking.PortSelector{Number: uint32(port.Number)}, Tls: p.tls})
		}
	}
}
