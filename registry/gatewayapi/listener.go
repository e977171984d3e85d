package gatewayapi

import (
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

const (
	// optionProtocol and autoPassthrough mark a TLS listener that leads to the
	// services of a network by their SNI.
	optionProtocol  = "gateway.istio.io/listener-protocol"
	autoPassthrough = "auto-passthrough"
	hboneProtocol   = "HBONE"
)

// Kinds of routes.
const (
	kindHTTPRoute = "HTTPRoute"
	kindGRPCRoute = "GRPCRoute"
	kindTLSRoute  = "TLSRoute"
	kindTCPRoute  = "TCPRoute"
)

// verdict is why something is not as it should be; the zero value is that it is.
type verdict struct{ reason, message string }

func (v verdict) ok() bool { return v.reason == "" }

// listener is a listener of a Gateway.
type listener struct {
	gateway *gateway
	spec    *gatewayv1.Listener
	// hostname is in lower case, "" for any.
	hostname string
	// kinds are those of the routes that may be attached.
	kinds []string
	// accepted, conflicted and resolved say what is wrong with it.
	accepted, conflicted, resolved verdict
	// secrets are its certificates; roots those that clients' certificates are
	// checked against, "" for none.
	secrets []Name
	roots   string
	// rooted is the Secret that has the roots, if one does.
	rooted Name
	// partly says that only some of the roots cannot be used.
	partly bool
	// insecure lets clients without a valid certificate in.
	insecure bool
	// selector selects namespaces, nil if it cannot be read.
	selector labels.Selector
	attached int32
	// names are the Gateways that were made of it, spaces the namespaces of their
	// routers; none if it is not told to any.
	names, spaces []string
	// hosts are the rules for requests, streams those for connections.
	hosts   map[string]*hostRules
	streams []placed
}

// unsupported reports whether we cannot have such a listener at all.
func (l *listener) unsupported() bool { return !l.accepted.ok() }

// usable reports whether routers may be told of the listener.
func (l *listener) usable() bool {
	return l.accepted.ok() && l.conflicted.ok() && (l.resolved.ok() || l.partly || l.resolved.reason == string(gatewayv1.ListenerReasonInvalidRouteKinds))
}

func (l *listener) conflicts(reason gatewayv1.ListenerConditionReason, with *listener) {
	if l.conflicted.ok() {
		l.conflicted = verdict{string(reason), fmt.Sprintf("port %d is also that of listener %s, which is of protocol %s and hostname %q",
			l.spec.Port, with.spec.Name, with.spec.Protocol, with.hostname)}
	}
}

// terminates reports whether the listener opens TLS.
func (l *listener) terminates() bool {
	switch l.spec.Protocol {
	case gatewayv1.HTTPSProtocolType:
		return true
	case gatewayv1.TLSProtocolType:
		return l.spec.TLS != nil && deref(l.spec.TLS.Mode, gatewayv1.TLSModeTerminate) == gatewayv1.TLSModeTerminate && !l.leadsToNetwork()
	}
	return false
}

func (l *listener) leadsToNetwork() bool {
	return l.spec.TLS != nil && l.spec.TLS.Options[optionProtocol] == autoPassthrough
}

func (t *translator) readListener(g *gateway, spec *gatewayv1.Listener) *listener {
	l := &listener{gateway: g, spec: spec, hostname: strings.ToLower(string(deref(spec.Hostname, ""))), hosts: map[string]*hostRules{}}
	if l.hostname == "*" {
		l.hostname = ""
	}
	switch spec.Protocol {
	case gatewayv1.HTTPProtocolType, gatewayv1.HTTPSProtocolType:
		l.kinds = []string{kindHTTPRoute, kindGRPCRoute}
	case gatewayv1.TLSProtocolType:
		l.kinds = []string{kindTLSRoute}
	case gatewayv1.TCPProtocolType:
		l.kinds = []string{kindTCPRoute}
	case hboneProtocol:
		if !g.class.eastWest && !g.class.remote {
			l.accepted = verdict{string(gatewayv1.ListenerReasonUnsupportedProtocol), "HBONE is for Gateways of class istio-east-west"}
		}
	default: // UDP among others
		l.accepted = verdict{string(gatewayv1.ListenerReasonUnsupportedProtocol), fmt.Sprintf("protocol %s is not one of HTTP, HTTPS, TLS, TCP", spec.Protocol)}
	}
	if l.hostname != "" && !validHost(l.hostname) {
		l.accepted = verdict{string(gatewayv1.ListenerReasonUnsupportedValue), fmt.Sprintf("hostname %q is not one", l.hostname)}
	}
	if spec.Port < 1 || spec.Port > 65535 {
		l.accepted = verdict{string(gatewayv1.ListenerReasonPortUnavailable), fmt.Sprintf("%d is not a port", spec.Port)}
	}
	l.readAllowed()
	if l.terminates() {
		t.readCertificates(l)
		t.readClients(l)
	}
	return l
}

// readAllowed reads which routes may be attached.
func (l *listener) readAllowed() {
	a := l.spec.AllowedRoutes
	if a == nil {
		return
	}
	if ns := a.Namespaces; ns != nil && ns.Selector != nil {
		if s, err := metav1.LabelSelectorAsSelector(ns.Selector); err == nil {
			l.selector = s
		}
	}
	if len(a.Kinds) == 0 {
		return
	}
	may := l.kinds
	if l.terminates() && l.spec.Protocol == gatewayv1.TLSProtocolType { // what is inside is nobody's TLS any more
		may = []string{kindTLSRoute, kindTCPRoute}
	}
	l.kinds = nil
	for _, k := range a.Kinds {
		if deref(k.Group, groupGateway) == groupGateway && slices.Contains(may, string(k.Kind)) {
			if !slices.Contains(l.kinds, string(k.Kind)) {
				l.kinds = append(l.kinds, string(k.Kind))
			}
			continue
		}
		l.unresolved(gatewayv1.ListenerReasonInvalidRouteKinds, "routes of kind %s cannot be attached to a listener of protocol %s", k.Kind, l.spec.Protocol)
	}
}

func (l *listener) unresolved(reason gatewayv1.ListenerConditionReason, format string, args ...any) {
	if l.resolved.ok() {
		l.resolved = verdict{string(reason), fmt.Sprintf(format, args...)}
	}
}

// readCertificates reads the certificates of a listener that opens TLS.
func (t *translator) readCertificates(l *listener) {
	if l.spec.TLS == nil || len(l.spec.TLS.CertificateRefs) == 0 {
		l.unresolved(gatewayv1.ListenerReasonInvalidCertificateRef, "names no certificate; set tls.certificateRefs")
		return
	}
	if mode := deref(l.spec.TLS.Mode, gatewayv1.TLSModeTerminate); mode != gatewayv1.TLSModeTerminate {
		l.accepted = verdict{string(gatewayv1.ListenerReasonUnsupportedValue), fmt.Sprintf("TLS mode %s is not for protocol %s", mode, l.spec.Protocol)}
		return
	}
	from := l.gateway.name.Namespace
	for _, ref := range l.spec.TLS.CertificateRefs {
		if deref(ref.Group, "") != "" || deref(ref.Kind, kindSecret) != kindSecret {
			l.unresolved(gatewayv1.ListenerReasonInvalidCertificateRef, "certificate %s is a %s; only Secrets can be used", ref.Name, deref(ref.Kind, kindSecret))
			continue
		}
		n := Name{string(deref(ref.Namespace, gatewayv1.Namespace(from))), string(ref.Name)}
		if !t.permitted(kindGateway, from, "", kindSecret, n) {
			l.unresolved(gatewayv1.ListenerReasonRefNotPermitted, "Secret %s is in another namespace, and no ReferenceGrant there allows it", n)
			continue
		}
		switch t.credential(kindSecret, n) {
		case CredentialMissing:
			l.unresolved(gatewayv1.ListenerReasonInvalidCertificateRef, "there is no Secret %s", n)
			continue
		case CredentialMalformed:
			l.unresolved(gatewayv1.ListenerReasonInvalidCertificateRef, "Secret %s does not hold a certificate and its key (tls.crt, tls.key)", n)
			continue
		}
		l.secrets = append(l.secrets, n)
	}
}

// admits reports whether routes of a namespace may be attached.
func (t *translator) admits(l *listener, namespace string) bool {
	from, own := gatewayv1.NamespacesFromSame, l.gateway.name.Namespace
	if a := l.spec.AllowedRoutes; a != nil && a.Namespaces != nil {
		from = deref(a.Namespaces.From, from)
	}
	switch from {
	case gatewayv1.NamespacesFromAll:
		return true
	case gatewayv1.NamespacesFromSame:
		return namespace == own
	case gatewayv1.NamespacesFromSelector:
		set, known := t.namespaces[namespace]
		return known && l.selector != nil && l.selector.Matches(labels.Set(set))
	}
	return false
}

// common lists the hosts that a listener and a route have in common: the
// narrower of each two; "" for any. A route without hosts is for those of the
// listener.
func (l *listener) common(hosts []gatewayv1.Hostname) []string {
	if len(hosts) == 0 {
		return []string{l.hostname}
	}
	var out []string
	for _, h := range hosts {
		host := strings.ToLower(string(h))
		both, ok := intersect(l.hostname, host)
		if ok && !slices.Contains(out, both) {
			out = append(out, both)
		}
	}
	return out
}

// intersect returns the narrower of two hosts, of which either may be "" or a
// wildcard; ok is false if they have nothing in common.
func intersect(a, b string) (host string, ok bool) {
	switch {
	case a == "" || a == b:
		return b, true
	case b == "":
		return a, true
	case strings.HasPrefix(a, "*.") && strings.HasSuffix(b, a[1:]):
		return b, true
	case strings.HasPrefix(b, "*.") && strings.HasSuffix(a, b[1:]):
		return a, true
	}
	return "", false
}
