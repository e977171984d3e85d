package config

import (
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/isthmus-mesh/isthmus/mesh"
)

func gatewayKind() descriptor {
	return descriptor{
		Kind:     Kind{Kind: mesh.KindGateway, Group: "networking.istio.io", Version: "v1", Resource: "gateways"},
		versions: []string{"v1", "v1beta1", "v1alpha3"},
		newSpec:  func() proto.Message { return &networking.Gateway{} },
		typed: func(o runtime.Object) (metav1.Object, proto.Message) {
			if g, ok := o.(*networkingv1.Gateway); ok && g != nil {
				return g, &g.Spec
			}
			return nil, nil
		},
		validate: func(c *checker, m proto.Message) { validateGateway(c, m.(*networking.Gateway)) },
	}
}

func validateGateway(c *checker, g *networking.Gateway) {
	if len(g.GetServers()) == 0 {
		c.at("servers").failf("is empty; a gateway needs at least one server")
	}
	c.labels("selector", g.GetSelector())
	var portNames, names []string
	for i, s := range g.GetServers() {
		at := c.index("servers", i)
		validateServer(at, s)
		if n := s.GetPort().GetName(); n != "" {
			if slices.Contains(portNames, n) {
				at.at("port.name").failf("%q is used by an earlier server; give each port of a gateway its own name", clip(n))
			}
			portNames = append(portNames, n)
		}
		if n := s.GetName(); n != "" {
			if slices.Contains(names, n) {
				at.at("name").failf("%q is used by an earlier server; give each server its own name", clip(n))
			}
			names = append(names, n)
		}
	}
}

func validateServer(c *checker, s *networking.Server) {
	unix := strings.HasPrefix(s.GetBind(), "unix:")
	validateServerPort(c, s.GetPort(), unix)
	if b := s.GetBind(); b != "" && !unix {
		if _, err := netip.ParseAddr(b); err != nil {
			c.at("bind").failf("%q is neither an IP address nor unix:PATH", clip(b))
		}
	}
	if len(s.GetHosts()) == 0 {
		c.at("hosts").failf(`is empty; name at least one host, "*" for all`)
	}
	for i, h := range s.GetHosts() {
		validateServerHost(c.index("hosts", i), h)
	}
	validateServerTLS(c.at("tls"), s)
}

func validateServerPort(c *checker, p *networking.Port, unix bool) {
	if p == nil {
		c.at("port").failf("is missing; give number, name and protocol")
		return
	}
	if !unix || p.GetNumber() != 0 {
		c.at("port.number").port(int64(p.GetNumber()))
	}
	if p.GetName() == "" {
		c.at("port.name").failf("is empty; name the port")
	}
	if !slices.Contains(serverProtocols(), strings.ToUpper(p.GetProtocol())) {
		c.at("port.protocol").failf("%q is not known; use one of %s", clip(p.GetProtocol()), strings.Join(serverProtocols()[:8], ", "))
	}
}

// serverProtocols lists what a gateway's port may speak; the documented names
// come first.
func serverProtocols() []string {
	return []string{"HTTP", "HTTPS", "GRPC", "GRPC-WEB", "HTTP2", "MONGO", "TCP", "TLS",
		"HTTP_PROXY", "REDIS", "MYSQL", "HBONE", "UDP"}
}

// validateServerHost checks the form [NAMESPACE/]HOST, with "*" or "." as namespace.
func validateServerHost(c *checker, h string) {
	ns, host, ok := strings.Cut(h, "/")
	if !ok {
		ns, host = "*", h
	}
	if ns != "*" && ns != "." {
		c.namespace(ns)
	}
	if _, err := netip.ParseAddr(host); err != nil {
		c.host(host, true)
	}
}

// validateServerTLS checks that TLS settings are there exactly where the
// protocol needs them, and that the mode has the certificates it needs.
func validateServerTLS(c *checker, s *networking.Server) {
	protocol, t := strings.ToUpper(s.GetPort().GetProtocol()), s.GetTls()
	secure := protocol == "HTTPS" || protocol == "TLS"
	switch {
	case t == nil && secure:
		c.failf("is missing; a port of protocol %s needs a tls mode", protocol)
		return
	case t == nil:
		return
	case !secure:
		if strings.HasPrefix(protocol, "HTTP") || strings.HasPrefix(protocol, "GRPC") {
			if onlyRedirects(t) {
				return
			}
		}
		c.failf("is set on a port of protocol %s; use protocol HTTPS or TLS, or remove it", protocol)
		return
	}
	switch t.GetMode() {
	case networking.ServerTLSSettings_SIMPLE, networking.ServerTLSSettings_OPTIONAL_MUTUAL, networking.ServerTLSSettings_MUTUAL:
		validateCertificates(c, t)
	case networking.ServerTLSSettings_ISTIO_MUTUAL:
		if len(certificateSources(t)) > 0 || t.GetCaCertificates() != "" {
			c.failf("names certificates; mode ISTIO_MUTUAL takes those of the mesh, remove them")
		}
	}
	lo, hi := t.GetMinProtocolVersion(), t.GetMaxProtocolVersion()
	if hi != networking.ServerTLSSettings_TLS_AUTO && lo > hi {
		c.at("minProtocolVersion").failf("%s is above maxProtocolVersion %s", lo, hi)
	}
}

func onlyRedirects(t *networking.ServerTLSSettings) bool {
	return len(certificateSources(t)) == 0 && t.GetCaCertificates() == "" && t.GetMode() == networking.ServerTLSSettings_PASSTHROUGH
}

// certificateSources names the ways in which a server says where its own
// certificate is.
func certificateSources(t *networking.ServerTLSSettings) []string {
	var out []string
	if t.GetServerCertificate() != "" || t.GetPrivateKey() != "" {
		out = append(out, "serverCertificate")
	}
	if t.GetCredentialName() != "" {
		out = append(out, "credentialName")
	}
	if len(t.GetCredentialNames()) > 0 {
		out = append(out, "credentialNames")
	}
	if len(t.GetTlsCertificates()) > 0 {
		out = append(out, "tlsCertificates")
	}
	return out
}

func validateCertificates(c *checker, t *networking.ServerTLSSettings) {
	from := certificateSources(t)
	switch {
	case len(from) == 0:
		c.failf("has no certificate; mode %s needs credentialName, or serverCertificate and privateKey", t.GetMode())
	case len(from) > 1:
		c.failf("names certificates in %s; keep one", strings.Join(from, " and "))
	}
	if (t.GetServerCertificate() == "") != (t.GetPrivateKey() == "") {
		c.failf("has only one of serverCertificate and privateKey; give both")
	}
	for i, x := range t.GetTlsCertificates() {
		if x.GetServerCertificate() == "" || x.GetPrivateKey() == "" {
			c.index("tlsCertificates", i).failf("has only one of serverCertificate and privateKey; give both")
		}
	}
	c.at("credentialNames").atMostTwo(len(t.GetCredentialNames()))
	c.at("tlsCertificates").atMostTwo(len(t.GetTlsCertificates()))
	byFile := t.GetCredentialName() == "" && len(t.GetCredentialNames()) == 0
	if t.GetMode() != networking.ServerTLSSettings_SIMPLE && byFile && t.GetCaCertificates() == "" && t.GetCaCertCredentialName() == "" {
		c.at("caCertificates").failf("is empty; mode %s must know whom to trust", t.GetMode())
	}
}

func (c *checker) atMostTwo(n int) {
	if n > 2 {
		c.failf("has %d entries; at most two are taken, one RSA and one ECDSA", n)
	}
}
