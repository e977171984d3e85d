package gatewayapi

import (
	"slices"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// validation is what is asked of clients of a port; nil for nothing.
func (g *gateway) validation(port gatewayv1.PortNumber) *gatewayv1.FrontendTLSValidation {
	if g.spec.TLS == nil || g.spec.TLS.Frontend == nil {
		return nil
	}
	v := g.spec.TLS.Frontend.Default.Validation
	for _, p := range g.spec.TLS.Frontend.PerPort {
		if p.Port == port {
			v = p.TLS.Validation
		}
	}
	if v == nil || len(v.CACertificateRefs) == 0 {
		return nil
	}
	return v
}

// lenient reports whether clients without a good certificate are let in at any
// port: authors are warned of that.
func (g *gateway) lenient() bool {
	return slices.ContainsFunc(g.listeners, func(l *listener) bool { return l.insecure })
}

// readClients reads whose certificates are asked for on the listener's port.
// Roots that cannot be used are left out; without any nobody is let in.
func (t *translator) readClients(l *listener) {
	v := l.gateway.validation(l.spec.Port)
	if v == nil || l.spec.Protocol != gatewayv1.HTTPSProtocolType {
		return
	}
	l.insecure = v.Mode == gatewayv1.AllowInsecureFallback
	from, before := l.gateway.name.Namespace, l.resolved.ok()
	var maps, secrets []Name
	for _, ref := range v.CACertificateRefs {
		n := Name{string(deref(ref.Namespace, gatewayv1.Namespace(from))), string(ref.Name)}
		switch {
		case ref.Group != "" || ref.Kind != kindConfigMap && ref.Kind != kindSecret:
			l.unresolved(gatewayv1.ListenerReasonInvalidCACertificateKind, "roots %s are a %s; only ConfigMaps and Secrets can be used", ref.Name, ref.Kind)
		case !t.permitted(kindGateway, from, "", string(ref.Kind), n):
			l.unresolved(gatewayv1.ListenerReasonRefNotPermitted, "%s %s is in another namespace, and no ReferenceGrant there allows it", ref.Kind, n)
		case ref.Kind == kindSecret:
			secrets = append(secrets, n)
		case t.credential(kindConfigMap, n) > CredentialUsable:
			l.unresolved(gatewayv1.ListenerReasonInvalidCACertificateRef, "there is no ConfigMap %s with ca.crt", n)
		default:
			maps = append(maps, n)
		}
	}
	l.partly = before && len(maps)+len(secrets) > 0
	switch {
	case len(secrets) > 1 || len(secrets) == 1 && len(maps) > 0:
		l.accepted = verdict{string(gatewayv1.ListenerReasonUnsupportedValue), "clients are checked against ConfigMaps or against one Secret; caCertificateRefs names more"}
	case len(secrets) == 1:
		l.roots, l.rooted = credentialScheme+secrets[0].String()+rootsSuffix, secrets[0]
	case len(maps) > 0:
		l.roots = rootsName(maps) + rootsSuffix
	default:
		l.accepted = verdict{string(gatewayv1.ListenerReasonNoValidCACertificate), "there are no roots that clients can be checked against"}
	}
}
