package config

import (
	"strings"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

func gatewayKind() descriptor {
	kind, versions := networkingKind(mesh.KindGateway, "gateways")
	return descriptor{
		Kind: kind, versions: versions,
		newSpec:  func() proto.Message { return &networking.Gateway{} },
		typed:    typedAs(func(o *networkingv1.Gateway) proto.Message { return &o.Spec }),
		validate: checks(validateGateway),
	}
}

func validateGateway(c *checker, g *networking.Gateway) {
	if len(g.GetServers()) == 0 {
		c.at("servers").failf("is empty; a gateway needs at least one server")
	}
	portNames, names := seen{}, seen{}
	for i, s := range g.GetServers() {
		at := c.index("servers", i)
		validateServer(at, s)
		if n := s.GetPort().GetName(); n != "" && portNames.twice(n) {
			at.at("port.name").failf("%q is used by an earlier server; give each port of a gateway its own name", clip(n))
		}
		if n := s.GetName(); n != "" && names.twice(n) {
			at.at("name").warnf("%q is used by an earlier server; give each server its own name", clip(n))
		}
	}
}

func validateServer(c *checker, s *networking.Server) {
	unix := strings.HasPrefix(s.GetBind(), unixPrefix)
	validateServerPort(c, s.GetPort(), unix)
	switch b := s.GetBind(); {
	case unix:
		c.at("bind").unixSocket(b)
	case b != "":
		if !isAddress(b) {
			c.at("bind").failf("%q is neither an IP address nor unix://PATH", clip(b))
		}
	}
	if len(s.GetHosts()) == 0 {
		c.at("hosts").failf(`is empty; name at least one host, "*" for all`)
	}
	for i, h := range s.GetHosts() {
		ns, host, ok := strings.Cut(h, "/")
		if !ok {
			ns, host = "*", h
		}
		c.index("hosts", i).scopedHost(ns, host, true, "*", ".")
	}
	validateServerTLS(c.at("tls"), s)
}

func validateServerPort(c *checker, p *networking.Port, unix bool) {
	if p == nil {
		c.at("port").failf("is missing; give number, name and protocol")
		return
	}
	switch at := c.at("port.number"); {
	case !unix:
		at.port(int64(p.GetNumber()))
	case p.GetNumber() != 0:
		at.failf("is set with a bind to a Unix socket; use 0")
	}
	if p.GetTargetPort() != 0 { //nolint:staticcheck // deprecated, and that is what is said
		c.at("port.targetPort").failf("has no effect on a gateway; remove it")
	}
	if p.GetName() == "" {
		c.at("port.name").failf("is empty; name the port")
	}
	c.at("port.protocol").protocol(p.GetProtocol(), false)
}

// validateServerTLS checks that TLS settings are there exactly where the
// protocol needs them, and that the mode has the certificates it needs.
func validateServerTLS(c *checker, s *networking.Server) {
	protocol, t := strings.ToUpper(s.GetPort().GetProtocol()), s.GetTls()
	secure := speaksTLS(protocol)
	if t.GetHttpsRedirect() && !speaksHTTP(protocol) {
		c.at("httpsRedirect").warnf("has no effect on a port of protocol %s; set it on one of protocol HTTP", protocol)
	}
	switch {
	case t == nil && secure:
		c.failf("is missing; a port of protocol %s needs a tls mode", protocol)
	case t == nil:
	case !secure && (!speaksHTTP(protocol) || !onlyRedirects(t)):
		c.failf("is set on a port of protocol %s; use protocol HTTPS or TLS, or remove it", protocol)
	case secure:
		validateServerOptions(c, t)
	}
}

func onlyRedirects(t *networking.ServerTLSSettings) bool {
	passes := t.GetMode() == networking.ServerTLSSettings_PASSTHROUGH || t.GetMode() == networking.ServerTLSSettings_AUTO_PASSTHROUGH
	return passes && t.GetServerCertificate() == "" && t.GetPrivateKey() == "" && t.GetCaCertificates() == ""
}

// validateServerOptions checks TLS settings by themselves.
func validateServerOptions(c *checker, t *networking.ServerTLSSettings) {
	validateCiphers(c, t)
	lo, hi := t.GetMinProtocolVersion(), t.GetMaxProtocolVersion()
	if hi != networking.ServerTLSSettings_TLS_AUTO && lo > hi {
		c.at("minProtocolVersion").warnf("%s is above maxProtocolVersion %s", lo, hi)
	}
	from := certificateSources(t)
	switch t.GetMode() {
	case networking.ServerTLSSettings_ISTIO_MUTUAL:
		if len(from) > 0 || t.GetServerCertificate() != "" || t.GetPrivateKey() != "" || t.GetCaCertificates() != "" {
			c.failf("names certificates; mode ISTIO_MUTUAL takes those of the mesh, remove them")
		}
		if lo != networking.ServerTLSSettings_TLS_AUTO || hi != networking.ServerTLSSettings_TLS_AUTO || len(t.GetCipherSuites()) > 0 {
			c.warnf("names versions or cipher suites; they have no effect with mode ISTIO_MUTUAL")
		}
		return
	case networking.ServerTLSSettings_PASSTHROUGH, networking.ServerTLSSettings_AUTO_PASSTHROUGH:
		if len(from) > 0 || t.GetCaCertificates() != "" || t.GetCaCrl() != "" {
			c.warnf("names certificates; mode %s does not use them", t.GetMode())
		}
	}
	if len(from) > 1 {
		c.failf("names certificates in %s; keep one", strings.Join(from, " and "))
	}
	if terminates(t) && t.GetCredentialName() == "" && len(t.GetCredentialNames()) == 0 {
		validateCertificates(c, t, from)
	}
	c.at("credentialNames").atMostTwo(len(t.GetCredentialNames()))
	c.at("tlsCertificates").atMostTwo(len(t.GetTlsCertificates()))
	if t.GetCaCrl() != "" && t.GetMode() == networking.ServerTLSSettings_SIMPLE && t.GetCredentialName() == "" {
		c.at("caCrl").failf("is set, but mode SIMPLE checks no client certificates; remove it or use MUTUAL")
	}
}

func terminates(t *networking.ServerTLSSettings) bool {
	switch t.GetMode() {
	case networking.ServerTLSSettings_SIMPLE, networking.ServerTLSSettings_MUTUAL, networking.ServerTLSSettings_OPTIONAL_MUTUAL:
		return true
	}
	return false
}

// certificateSources names the ways in which a server says where its own
// certificate is.
func certificateSources(t *networking.ServerTLSSettings) []string {
	var out []string
	if t.GetServerCertificate() != "" && t.GetPrivateKey() != "" {
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

// validateCertificates checks a server whose certificates are files.
func validateCertificates(c *checker, t *networking.ServerTLSSettings, from []string) {
	half := (t.GetServerCertificate() == "") != (t.GetPrivateKey() == "")
	switch {
	case half && len(t.GetTlsCertificates()) == 0:
		c.failf("has only one of serverCertificate and privateKey; give both")
	case len(from) == 0:
		c.failf("has no certificate; mode %s needs credentialName, or serverCertificate and privateKey", t.GetMode())
	}
	for i, x := range t.GetTlsCertificates() {
		if x.GetServerCertificate() == "" || x.GetPrivateKey() == "" {
			c.index("tlsCertificates", i).failf("has only one of serverCertificate and privateKey; give both")
		}
	}
	if t.GetMode() != networking.ServerTLSSettings_SIMPLE && t.GetCaCertificates() == "" && t.GetCaCertCredentialName() == "" {
		c.at("caCertificates").failf("is empty; mode %s must know whom to trust", t.GetMode())
	}
}

func (c *checker) atMostTwo(n int) {
	if n > 2 {
		c.warnf("has %d entries; at most two are taken, one RSA and one ECDSA", n)
	}
}

// validateCiphers warns of ciphers that proxies do not know: they are left out.
func validateCiphers(c *checker, t *networking.ServerTLSSettings) {
	old := t.GetMinProtocolVersion() == networking.ServerTLSSettings_TLSV1_0 || t.GetMinProtocolVersion() == networking.ServerTLSSettings_TLSV1_1
	if old && len(t.GetCipherSuites()) == 0 {
		c.at("cipherSuites").warnf("is empty, and the default suites need TLS 1.2; name suites for %s", t.GetMinProtocolVersion())
	}
	there := seen{}
	for i, s := range t.GetCipherSuites() {
		switch {
		case !mesh.KnownCipherSuite(s):
			c.index("cipherSuites", i).warnf("%q is not known and left out", clip(s))
		case there.twice(s):
			c.index("cipherSuites", i).warnf("%q is there twice", clip(s))
		}
	}
}
