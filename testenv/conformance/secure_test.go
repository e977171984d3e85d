package conformance

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/gateway-api/conformance/utils/roundtripper"
)

// What a proxy is given says how TLS is spoken; here it is spoken so, by Go's
// implementation. Secrets and roots are read where their names say.

var (
	errNotAccepted = errors.New("none of its names is one of those that are accepted")
	errNoSecret    = errors.New("is not served")
)

// pair reads the certificate that a name of SDS means.
func (w *world) pair(ctx context.Context, resource string) (tls.Certificate, error) {
	namespace, name, ok := strings.Cut(strings.TrimPrefix(resource, "kubernetes-gateway://"), "/")
	if !ok {
		return tls.Certificate{}, fmt.Errorf("secret %s: %w", resource, errNoSecret)
	}
	s, err := w.cluster.Client().CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair(s.Data[corev1.TLSCertKey], s.Data[corev1.TLSPrivateKeyKey])
}

// roots reads the roots that a name of SDS means.
func (w *world) roots(ctx context.Context, resource string) (*x509.CertPool, error) {
	rest, isMap := strings.CutPrefix(strings.TrimSuffix(resource, "-cacert"), "configmap://")
	if !isMap {
		return nil, fmt.Errorf("roots %s: %w", resource, errNoSecret)
	}
	pool := x509.NewCertPool()
	for one := range strings.SplitSeq(rest, ",") {
		namespace, name, _ := strings.Cut(one, "/")
		m, err := w.cluster.Client().CoreV1().ConfigMaps(namespace).Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		pool.AppendCertsFromPEM([]byte(m.Data["ca.crt"]))
	}
	return pool, nil
}

// validation is how peers are checked.
type validation struct {
	roots  *x509.CertPool // nil for none
	accept []*matcherv3.StringMatcher
	hashes []string
	// anybody lets those in whose certificates are not good.
	anybody bool
}

// validates reads how peers are checked; nil if they are not.
func (w *world) validates(ctx context.Context, c *tlsv3.CommonTlsContext) (*validation, error) {
	inline, name := c.GetValidationContext(), c.GetValidationContextSdsSecretConfig().GetName()
	if x := c.GetCombinedValidationContext(); x != nil {
		inline, name = x.GetDefaultValidationContext(), x.GetValidationContextSdsSecretConfig().GetName()
	}
	if inline == nil && name == "" {
		return nil, nil
	}
	out := &validation{accept: inline.GetMatchSubjectAltNames(), hashes: inline.GetVerifyCertificateHash(), //nolint:staticcheck // what proxies are given
		anybody: inline.GetTrustChainVerification() == tlsv3.CertificateValidationContext_ACCEPT_UNTRUSTED}
	var err error
	if name != "" {
		out.roots, err = w.roots(ctx, name)
	}
	return out, err
}

// check checks a peer's certificates.
func (v *validation) check(peer []*x509.Certificate) error {
	if v == nil || v.anybody || len(peer) == 0 {
		return nil
	}
	if len(v.hashes) > 0 {
		sum := sha256.Sum256(peer[0].Raw)
		if !slices.Contains(v.hashes, hex.EncodeToString(sum[:])) {
			return errNotAccepted
		}
	}
	if v.roots != nil {
		between := x509.NewCertPool()
		for _, c := range peer[1:] {
			between.AddCert(c)
		}
		if _, err := peer[0].Verify(x509.VerifyOptions{Roots: v.roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
			return err
		}
	}
	names := slices.Clone(peer[0].DNSNames)
	for _, u := range peer[0].URIs {
		names = append(names, (*url.URL).String(u))
	}
	if len(v.accept) > 0 && !slices.ContainsFunc(v.accept, func(m *matcherv3.StringMatcher) bool { return slices.Contains(names, m.GetExact()) }) {
		return errNotAccepted
	}
	return nil
}

// server is how a router opens TLS.
func (w *world) server(ctx context.Context, c *tlsv3.DownstreamTlsContext) (*tls.Config, error) {
	out := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: c.GetCommonTlsContext().GetAlpnProtocols(), SessionTicketsDisabled: true}
	for _, s := range c.GetCommonTlsContext().GetTlsCertificateSdsSecretConfigs() {
		pair, err := w.pair(ctx, s.GetName())
		if err != nil {
			return nil, err
		}
		out.Certificates = append(out.Certificates, pair)
	}
	clients, err := w.validates(ctx, c.GetCommonTlsContext())
	if err != nil {
		return nil, err
	}
	switch {
	case c.GetRequireClientCertificate().GetValue():
		out.ClientAuth = tls.RequireAnyClientCert
	case clients != nil:
		out.ClientAuth = tls.RequestClientCert
	}
	out.VerifyConnection = func(s tls.ConnectionState) error { return clients.check(s.PeerCertificates) }
	return out, nil
}

// client is how a proxy speaks TLS to an upstream.
func (w *world) client(ctx context.Context, c *tlsv3.UpstreamTlsContext) (*tls.Config, error) {
	out := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.GetSni(), NextProtos: c.GetCommonTlsContext().GetAlpnProtocols(),
		InsecureSkipVerify: true} //nolint:gosec // it is verified below, as the proxy is told to
	for _, s := range c.GetCommonTlsContext().GetTlsCertificateSdsSecretConfigs() {
		pair, err := w.pair(ctx, s.GetName())
		if err != nil {
			return nil, err
		}
		out.Certificates = append(out.Certificates, pair)
	}
	servers, err := w.validates(ctx, c.GetCommonTlsContext())
	if err != nil {
		return nil, err
	}
	out.VerifyConnection = func(s tls.ConnectionState) error { return servers.check(s.PeerCertificates) }
	return out, nil
}

// visitor is how the suite's clients speak TLS.
func visitor(q *roundtripper.Request, sni string) *tls.Config {
	out := &tls.Config{ServerName: sni, MinVersion: tls.VersionTLS12, RootCAs: x509.NewCertPool(), GetClientCertificate: q.GetClientCertificateHook}
	out.RootCAs.AppendCertsFromPEM(q.ServerCertificate)
	if q.Protocol == roundtripper.H2Protocol {
		out.NextProtos = []string{"h2"}
	}
	return out
}

// handshake has two parties shake hands, and tells what the server knows then.
func handshake(ctx context.Context, client, server *tls.Config) (tls.ConnectionState, error) {
	here, there := net.Pipe()
	c, s := tls.Client(here, client), tls.Server(there, server)
	done := make(chan error, 1)
	go func() {
		err := c.HandshakeContext(ctx)
		if err == nil {
			_, err = c.Read(make([]byte, 1)) // what the server thinks of a certificate comes late
		}
		done <- err
		here.Close()
	}()
	err := s.HandshakeContext(ctx)
	if err == nil {
		_, err = s.Write([]byte{1})
	}
	state := s.ConnectionState()
	there.Close()
	return state, errors.Join(<-done, err)
}

// backend is a pod's port.
type backend struct {
	pod *corev1.Pod
	// tls is how it opens TLS, nil if it does not.
	tls *tls.Config
}

// tlsPort is the port on which the suite's backends open TLS, if they have a
// certificate.
const tlsPort = "8443"

// backendAt finds the pod that has an endpoint, ADDRESS:PORT.
func (w *world) backendAt(ctx context.Context, endpoint string) (*backend, error) {
	host, port, err := net.SplitHostPort(endpoint)
	if err != nil {
		return nil, err
	}
	p := w.standIns.podAt(host)
	if p == nil {
		return nil, fmt.Errorf("no pod has endpoint %s", endpoint)
	}
	out := &backend{pod: p}
	for _, v := range p.Spec.Volumes {
		if v.Secret == nil || port != tlsPort {
			continue
		}
		s, err := w.cluster.Client().CoreV1().Secrets(p.Namespace).Get(ctx, v.Secret.SecretName, metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		pair, err := tls.X509KeyPair(s.Data[corev1.TLSCertKey], s.Data[corev1.TLSPrivateKeyKey])
		if err != nil {
			return nil, err
		}
		out.tls = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, SessionTicketsDisabled: true, ClientAuth: tls.RequestClientCert}
	}
	return out, nil
}

// peers are the certificates of a client in PEM form, as echo servers tell them.
func peers(s tls.ConnectionState) []string {
	var out []string
	for _, c := range s.PeerCertificates {
		out = append(out, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})))
	}
	return out
}
