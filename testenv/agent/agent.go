// Package agent is a client that asks what an unmodified Istio agent asks, in
// the same order and with the same headers: for certificates from the CSR
// service, and for configuration over ADS in the name of the Envoy behind it.
//
// What the agent does was recorded between real ones; see the acceptance tests
// of this package, which hold a control plane to it. It owns no Envoy and checks
// no resources: package testenv/recorder does that.
package agent

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"
	securityapi "istio.io/api/security/v1alpha1"
)

// DefaultServerName is the name under which agents call the control plane.
const DefaultServerName = "istiod.istio-system.svc"

// Config says who an agent is and whom it calls.
type Config struct {
	// Address of the control plane's port 15012.
	Address string
	// ServerName that the server's certificate must have. Default [DefaultServerName].
	ServerName string
	// Roots in PEM, as in the mounted ConfigMap.
	Roots []byte
	// Plaintext calls without TLS.
	Plaintext bool
	// Token of the pod, "" if it has none.
	Token string
	// Cluster is the header clusterid, "" to leave it out.
	Cluster string
	// Certificate is presented to the server (PROV_CERT), nil if there is none.
	Certificate *tls.Certificate
}

// Agent is a connection to the control plane. An agent has one for certificates
// and one for each ADS stream.
type Agent struct {
	cfg  Config
	conn *grpc.ClientConn
}

// Dial makes an agent. It connects when it first asks.
func Dial(cfg Config) (*Agent, error) {
	if cfg.ServerName == "" {
		cfg.ServerName = DefaultServerName
	}
	creds := insecure.NewCredentials()
	if !cfg.Plaintext {
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(cfg.Roots) {
			return nil, errors.New("dial as agent: no roots")
		}
		c := &tls.Config{RootCAs: roots, ServerName: cfg.ServerName, MinVersion: tls.VersionTLS12,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				if cfg.Certificate == nil {
					return &tls.Certificate{}, nil
				}
				return cfg.Certificate, nil
			}}
		creds = credentials.NewTLS(c)
	}
	conn, err := grpc.NewClient("passthrough:///"+cfg.Address, grpc.WithTransportCredentials(creds),
		grpc.WithInitialWindowSize(1<<20), grpc.WithInitialConnWindowSize(1<<20),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}))
	if err != nil {
		return nil, fmt.Errorf("dial as agent: %w", err)
	}
	return &Agent{cfg: cfg, conn: conn}, nil
}

// Close ends the connection.
func (a *Agent) Close() error { return a.conn.Close() }

// headers adds what the agent sends with every call.
func (a *Agent) headers(ctx context.Context) context.Context {
	if a.cfg.Token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+a.cfg.Token)
	}
	if a.cfg.Cluster != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "clusterid", a.cfg.Cluster)
	}
	return ctx
}

// CSR says what to ask a certificate for.
type CSR struct {
	// URI of the SAN, "" for a request without one.
	URI string
	// ECDSA asks with a P-256 key instead of RSA-2048.
	ECDSA bool
	// Lifetime asked for. Default 24 h.
	Lifetime time.Duration
	// Key to use; a new one is made if it is nil.
	Key crypto.Signer
}

// Issued is what the CSR service answered.
type Issued struct {
	// Chain are the elements of the answer in PEM.
	Chain []string
	Key   crypto.Signer
	// Leaf is the first element.
	Leaf *x509.Certificate
}

// Roots is the last element: what the agent trusts from now on.
func (i *Issued) Roots() []byte { return []byte(i.Chain[len(i.Chain)-1]) }

// TLS is the certificate in the form that a client presents.
func (i *Issued) TLS() *tls.Certificate {
	c := &tls.Certificate{PrivateKey: i.Key, Leaf: i.Leaf}
	for _, text := range i.Chain[:len(i.Chain)-1] {
		if block, _ := pem.Decode([]byte(text)); block != nil {
			c.Certificate = append(c.Certificate, block.Bytes)
		}
	}
	return c
}

// Certificate asks for a certificate as the agent does: one CSR whose subject is
// an empty organisation, with a critical SAN.
func (a *Agent) Certificate(ctx context.Context, csr CSR) (*Issued, error) {
	if csr.Lifetime == 0 {
		csr.Lifetime = 24 * time.Hour
	}
	if csr.Key == nil {
		var err error
		if csr.Key, err = newKey(csr.ECDSA); err != nil {
			return nil, err
		}
	}
	text, err := csr.encode()
	if err != nil {
		return nil, err
	}
	md, err := structpb.NewStruct(map[string]any{"CertSigner": ""})
	if err != nil {
		return nil, fmt.Errorf("make metadata: %w", err)
	}
	resp, err := securityapi.NewIstioCertificateServiceClient(a.conn).CreateCertificate(a.headers(ctx), &securityapi.IstioCertificateRequest{
		Csr: string(text), ValidityDuration: int64(csr.Lifetime / time.Second), Metadata: md})
	if err != nil {
		return nil, err // its status is what callers look at
	}
	if len(resp.GetCertChain()) < 2 {
		return nil, errors.New("invalid empty CertChain")
	}
	block, _ := pem.Decode([]byte(resp.GetCertChain()[0]))
	if block == nil {
		return nil, errors.New("first element is not PEM")
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse first element: %w", err)
	}
	return &Issued{Chain: resp.GetCertChain(), Key: csr.Key, Leaf: leaf}, nil
}

func newKey(useECDSA bool) (crypto.Signer, error) {
	if useECDSA {
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	return rsa.GenerateKey(rand.Reader, 2048)
}

func (c CSR) encode() ([]byte, error) {
	tmpl := &x509.CertificateRequest{Subject: pkix.Name{Organization: []string{""}}}
	if c.URI != "" {
		const tagURI = 6
		san, err := asn1.Marshal([]asn1.RawValue{{Tag: tagURI, Class: asn1.ClassContextSpecific, Bytes: []byte(c.URI)}})
		if err != nil {
			return nil, fmt.Errorf("encode SAN: %w", err)
		}
		tmpl.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: san}}
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, c.Key)
	if err != nil {
		return nil, fmt.Errorf("make CSR: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}
