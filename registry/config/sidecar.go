package config

import (
	"net"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

func sidecarKind() descriptor {
	kind, versions := networkingKind(mesh.KindSidecar, "sidecars")
	return descriptor{
		Kind: kind, versions: versions,
		newSpec:  func() proto.Message { return &networking.Sidecar{} },
		typed:    typedAs(func(o *networkingv1.Sidecar) proto.Message { return &o.Spec }),
		validate: checks(validateSidecar),
	}
}

func validateSidecar(c *checker, s *networking.Sidecar) {
	c.workloads(s.GetWorkloadSelector())
	if len(s.GetEgress()) == 0 && len(s.GetIngress()) == 0 && s.GetOutboundTrafficPolicy() == nil && s.GetInboundConnectionPool() == nil {
		c.failf("is empty; give egress, ingress, outboundTrafficPolicy or inboundConnectionPool")
	}
	ports := seen{}
	for i, l := range s.GetIngress() {
		at := c.index("ingress", i)
		validateIngressListener(at, l)
		if n := l.GetPort().GetNumber(); n != 0 && ports.twice(strconv.FormatUint(uint64(n), 10)) {
			at.at("port.number").failf("%d is used by an earlier listener; give each its own", n)
		}
	}
	validateConnectionPool(c.at("inboundConnectionPool"), s.GetInboundConnectionPool())
	validateEgress(c, s)
	validateOutboundPolicy(c.at("outboundTrafficPolicy"), s.GetOutboundTrafficPolicy())
}

func validateIngressListener(c *checker, l *networking.IstioIngressListener) {
	p := l.GetPort()
	if p == nil {
		c.at("port").failf("is missing; give number, protocol and name")
		return
	}
	validateSidecarPort(c.at("port"), p)
	c.at("port.number").port(int64(p.GetNumber()))
	if l.GetBind() != "" {
		c.at("bind").ip(l.GetBind())
	}
	if d := l.GetDefaultEndpoint(); d != "" {
		validateDefaultEndpoint(c.at("defaultEndpoint"), d)
	}
	if t := l.GetTls(); t != nil {
		validateIngressTLS(c.at("tls"), t, p.GetProtocol())
	}
	validateConnectionPool(c.at("connectionPool"), l.GetConnectionPool())
	if l.GetConnectionPool().GetHttp() != nil && !speaksHTTP(p.GetProtocol()) {
		c.at("connectionPool.http").warnf("has no effect on a port of protocol %q", clip(p.GetProtocol()))
	}
}

func validateSidecarPort(c *checker, p *networking.SidecarPort) {
	if p.GetName() != "" {
		c.at("name").label(p.GetName(), "a port")
	}
	c.at("protocol").protocol(p.GetProtocol(), true)
	if p.GetTargetPort() != 0 { //nolint:staticcheck // deprecated, and that is what is said
		c.at("targetPort").failf("has no effect on a sidecar; remove it")
	}
}

// validateDefaultEndpoint checks where a sidecar hands requests to: something on
// its own machine.
func validateDefaultEndpoint(c *checker, e string) {
	if strings.HasPrefix(e, unixPrefix) {
		c.unixSocket(e)
		return
	}
	host, port, err := net.SplitHostPort(e)
	if err != nil {
		c.failf("%q has no port; write 127.0.0.1:PORT, 0.0.0.0:PORT or unix:///PATH", clip(e))
		return
	}
	if !slices.Contains([]string{"", "127.0.0.1", "0.0.0.0", "::1", "::"}, host) {
		c.failf("%q is on another machine; write 127.0.0.1:PORT, 0.0.0.0:PORT, [::1]:PORT, [::]:PORT or unix:///PATH", clip(e))
	}
	if n, err := strconv.Atoi(port); err != nil {
		c.failf("%q has no port number after the colon", clip(e))
	} else {
		c.port(int64(n))
	}
}

func validateIngressTLS(c *checker, t *networking.ServerTLSSettings, protocol string) {
	for _, f := range []struct {
		field string
		set   bool
	}{
		{"subjectAltNames", len(t.GetSubjectAltNames()) > 0}, {"httpsRedirect", t.GetHttpsRedirect()}, {"credentialName", t.GetCredentialName() != ""},
		{"credentialNames", len(t.GetCredentialNames()) > 0}, {"tlsCertificates", len(t.GetTlsCertificates()) > 0},
	} {
		if f.set {
			c.at(f.field).failf("does not work in a sidecar; remove it")
		}
	}
	if m := t.GetMode(); m == networking.ServerTLSSettings_ISTIO_MUTUAL || m == networking.ServerTLSSettings_AUTO_PASSTHROUGH {
		c.at("mode").failf("%s does not work in a sidecar; use SIMPLE or MUTUAL", m)
	}
	if !speaksTLS(protocol) {
		c.failf("is set on a port of protocol %q; use protocol HTTPS or TLS, or remove it", clip(protocol))
	}
	validateServerOptions(c, t)
}

func validateEgress(c *checker, s *networking.Sidecar) {
	ports, sockets := seen{}, seen{}
	for i, l := range s.GetEgress() {
		at := c.index("egress", i)
		p := l.GetPort()
		switch {
		case p == nil:
			if i != len(s.GetEgress())-1 {
				at.failf("has no port, so it takes all; move it to the end, and keep one such listener")
			}
		case p.GetNumber() == 0:
			validateSidecarPort(at.at("port"), p)
			validateEgressSocket(at, l)
			if sockets.twice(l.GetBind()) {
				at.at("bind").failf("%q is used by an earlier listener; give each its own", clip(l.GetBind()))
			}
		default:
			validateSidecarPort(at.at("port"), p)
			at.at("port.number").port(int64(p.GetNumber()))
			if l.GetBind() != "" {
				at.at("bind").ip(l.GetBind())
			}
			if ports.twice(strconv.FormatUint(uint64(p.GetNumber()), 10)) {
				at.at("port.number").failf("%d is used by an earlier listener; give each its own", p.GetNumber())
			}
		}
		validateEgressHosts(at, l.GetHosts())
	}
}

func validateEgressSocket(c *checker, l *networking.IstioEgressListener) {
	if strings.HasPrefix(l.GetBind(), unixPrefix) {
		c.at("bind").unixSocket(l.GetBind())
	} else {
		c.at("port.number").failf("is 0, which is for Unix sockets; give a number, or bind: unix:///PATH")
	}
	if m := l.GetCaptureMode(); m != networking.CaptureMode_DEFAULT && m != networking.CaptureMode_NONE {
		c.at("captureMode").failf("%s does not work with a Unix socket; use NONE or DEFAULT", m)
	}
}

// validateEgressHosts checks the hosts NAMESPACE/HOST that a sidecar sees. What
// begins with ~ is taken out of what the others say, wherever it stands.
func validateEgressHosts(c *checker, hosts []string) {
	if len(hosts) == 0 {
		c.at("hosts").failf("is empty; name at least one host as in ./* or */*.example.com")
	}
	seen := map[string]bool{}
	for i, h := range hosts {
		at := c.index("hosts", i)
		ns, host, ok := strings.Cut(h, "/")
		if !ok {
			at.failf("%q has no namespace; write NAMESPACE/HOST, as in ./%s or */%s", clip(h), clip(h), clip(h))
			continue
		}
		from, out := strings.CutPrefix(ns, "~")
		if out && from == "" {
			from = "*"
		}
		at.scopedHost(from, host, false, "*", ".")
		if out {
			continue
		}
		if ns == "." {
			ns = c.namespace
		}
		if seen[ns+"/"+host] || seen[ns+"/*"] || seen["*/*"] {
			at.warnf("%q is within what an earlier host says", clip(h))
		}
		seen[ns+"/"+host] = true
	}
}

func validateOutboundPolicy(c *checker, p *networking.OutboundTrafficPolicy) {
	to := p.GetEgressProxy()
	if to == nil {
		return
	}
	at := c.at("egressProxy")
	if p.GetMode() != networking.OutboundTrafficPolicy_ALLOW_ANY {
		at.failf("is set with mode %s; use ALLOW_ANY", p.GetMode())
		return
	}
	if to.GetPort() == nil {
		at.at("port").failf("is missing; give its number")
	}
	at.at("host").host(to.GetHost(), false)
	if badHost(to.GetHost(), false) == "" {
		validateDestination(at, to, true)
	}
}
